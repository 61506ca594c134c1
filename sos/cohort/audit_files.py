"""What is found out about one image file; nothing of it identifies anyone."""

import hashlib
import io
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..cores import spread
from ..errors import ImageError
from ..files import leads_out
from ..images.dicom import damage_of
from ..images.header import Bounded
from ..images.reader import read_image
from .audit_headers import DUMMY, REMOVED, HeaderFacts, inspect_headers
from .audit_text import Place, suspected_text
from .duplicates import small_picture

EXIF_IFD, GPS_IFD, IPTC = 0x8769, 0x8825, 0x0404  # tags of EXIF; number in a Photoshop segment of JPEG
#: Tags of TIFF and EXIF that hold text.
TAGS = {270: "ImageDescription", 315: "Artist", 316: "HostComputer", 33432: "Copyright", 700: "XMP", 33723: "IPTC", 0x9286: "UserComment",
        0x9C9B: "XPTitle", 0x9C9C: "XPComment", 0x9C9D: "XPAuthor", 0x9C9E: "XPKeywords", 0x9C9F: "XPSubject"}
#: Texts of PNG that are told by their names; a name that a writer chose may itself say whose image it is.
TEXTS = ("Title", "Author", "Description", "Copyright", "Creation Time", "Disclaimer", "Warning", "Source", "Comment", "XML:com.adobe.xmp",
         "Raw profile type exif", "Raw profile type APP1", "Raw profile type iptc", "Raw profile type xmp", *REMOVED, *DUMMY)
HARMLESS_TEXTS = ("Software",)


@dataclass
class FileFacts:
    """One image. error: why it could not be read, else empty. size: width, height in pixels. digest: of its grey values. dark, bright: shares
    of pixels at the ends of the grey scale. text: places (x0, y0, x1, y1) in pixels where text may be burned in. small: (h, w) uint8, the image
    at 160 pixels along its longer side."""

    error: str = ""
    format: str = ""
    size: tuple[int, int] = (0, 0)
    spacing_mm: float | None = None
    warnings: list[str] = field(default_factory=list)
    digest: str = ""
    dark: float = 0.0
    bright: float = 0.0
    text: list[Place] = field(default_factory=list)
    header: HeaderFacts | None = None
    small: np.ndarray | None = field(default=None, repr=False, compare=False)


def inspect_all(root: Path, images: pd.Series, workers: int | None, progress) -> dict[str, FileFacts]:
    """Image name, relative to the folder `root` → its facts, each file once; `progress(done, total)` is called after each."""
    names = [name for name in dict.fromkeys(images) if name]
    files = {}
    with spread(len(names), workers) as each:
        for done, (name, found) in enumerate(zip(names, each(partial(inspect, root), names), strict=True), 1):
            files[name] = found
            if progress:
                progress(done, len(names))
    return files


def inspect(root: Path, name: str) -> FileFacts:
    """The facts of the image `name`; a file that leads out of `root` is not opened, and what is wrong with a file is a fact, no exception."""
    path = root / name
    if leads_out(path, root):
        return FileFacts(error="lies outside the manifest's folder and was not opened")
    try:
        image = read_image(path)
    except ImageError as error:
        return FileFacts(error=str(error).removeprefix(f"{path.name}: "))
    words = (image.pixels * 65535).round().astype("<u2")
    found = FileFacts(
        format=image.record["format"], size=image.pixels.shape[::-1], spacing_mm=image.spacing_mm, warnings=list(image.record["warnings"]),
        digest=hashlib.blake2b(words.tobytes() + repr(words.shape).encode()).hexdigest(), dark=float((image.pixels <= 0).mean()),
        bright=float((image.pixels >= 1).mean()), text=suspected_text(image.pixels), small=small_picture(image.pixels))
    try:
        found.header = inspect_headers(path) if found.format.startswith("DICOM") else inspect_metadata(path, found.format)
    except ImageError:
        found.warnings.append("the header is damaged in part and could not be checked for identifying fields")
    return found


def inspect_metadata(path: Path, kind: str) -> HeaderFacts:
    """Which fields of a PNG, JPEG or TIFF hold text, or a place. Raises ImageError where they are damaged."""
    with damage_of(path, "reading its metadata"), Bounded(io.FileIO(path)) as file, Image.open(file, formats=[kind]) as image:
        fields = [*image.text.items()] if kind == "PNG" else []  # some stand behind the pixels
        fields = [(name if name in TEXTS else "text of another name", text) for name, text in fields if name not in HARMLESS_TEXTS]
        if kind == "JPEG":
            segments = image.info.get("comment"), image.info.get("xmp"), image.info.get("photoshop", {}).get(IPTC)
            fields += zip(("JPEG comment", "XMP", "IPTC"), segments, strict=True)
        exif = image.getexif()
        fields += [(TAGS[tag], value) for tag, value in [*exif.items(), *exif.get_ifd(EXIF_IFD).items()] if tag in TAGS]
        fields += [("GPS", value) for value in exif.get_ifd(GPS_IFD).values()]
        return HeaderFacts(list(dict.fromkeys(name for name, value in fields if _filled(value))))


def _filled(value) -> bool:
    """Whether a field holds more than blanks and the name of their encoding."""
    text = value if isinstance(value, bytes) else str(value or "").encode()
    return text.strip(b"\0 ") not in (b"", b"ASCII", b"UNICODE", b"JIS")
