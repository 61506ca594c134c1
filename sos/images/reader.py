"""Any path to one grey image: DICOM file, folder with a DICOM series, PNG, JPEG or TIFF, told apart by content, never by name."""

import io
import logging
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decode import LUMINANCE
from .dicom import DicomImage, damage_of, looks_like_dicom, read_dicom, read_series
from .header import Bounded
from .pixels import MAX_PIXELS, MAX_SCANS

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs what stands in tags

DARK, BRIGHT = 0.005, 0.998  # shares of pixels below the grey values that become 0 and 1
SMALLEST = 32  # pixels along the shorter side; below, it is an icon
MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC = 262  # TIFF tag
SPARSE = 61  # pixels; a prime, so that every column is met
STRIP, EDGE = 512, 32  # rows at once
BORDER = 0.25  # of the longer side of a screenshot
PLAIN, STRAY = 0.03, 0.002  # of the grey range: noise of JPEG; of a line's pixels: a stray spot


@dataclass(frozen=True)
class GreyImage:
    """One grey image with the geometry of the input as decoded.

    pixels: (h, w) float32 in [0, 1], bright = dense. spacing_mm: mean distance of rows and columns, None where unknown. record:
    plain values that say what was read and done to it: `format`, `size` (width, height), `window` (source values that became 0
    and 1), `warnings` (list of str); from DICOM also `photometric`, `inverted`, `bits_stored`, `transfer_syntax`, `rescale`
    (slope, intercept), `modality`, `frames`, `display` (what the header asks of a screen; only a table that falls is followed), `series`
    where it was chosen from a folder, and `slice` where it was cut from a volume; from other formats `mode`, `exif_orientation` and
    `content`: where (x0, y0, x1, y1) the picture lies between wide plain borders, else None. """

    pixels: np.ndarray
    spacing_mm: float | None
    record: dict


def read_image(path) -> GreyImage:
    """Read `path` as one grey image.

    Grey values between the 0.5th and the 99.8th percentile of the measured pixels are mapped to [0, 1] and clipped there, the
    same way for every format; padding and transparent pixels are left out of the percentiles and become 0. Raises ImageError with
    a one-line reason. """
    path = Path(path)
    with damage_of(path, "opening it"):
        if path.is_dir():
            kind = "folder"
        elif not path.exists():
            raise ImageError(f"{path.name}: no such file or folder; check the path")
        elif not path.is_file():
            raise ImageError(f"{path.name}: neither a file nor a folder; give an image")
        else:
            with path.open("rb") as file:
                head = file.read(132)
            kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "DICOM")
            if looks_like_dicom(head):  # a dual-personality file (TIFF in the preamble) holds its calibrated pixels as DICOM
                kind = "DICOM"
    if kind in ("folder", "DICOM"):
        source = read_series(path) if kind == "folder" else read_dicom(path)
        if not isinstance(source, DicomImage):
            source = _cut(source, path)
        values, spacing, record = source.values, source.spacing_mm, source.record
    else:
        values, record = _read_screenshot(path, kind)
        spacing = None
        record["content"] = content_of(values)
    return GreyImage(_to_grey(values, path, record), None if spacing is None else float(np.mean(spacing)), record)


def _cut(volume, path: Path) -> DicomImage:
    from .midsagittal import midsagittal_slice  # volumes are rare, and it takes a while to import

    cut = midsagittal_slice(volume, path.name)
    height, width = cut.values.shape
    return DicomImage(cut.values, (cut.spacing_mm, cut.spacing_mm),
                      volume.record | {"size": (width, height), "slice": cut.record})


def _read_screenshot(path: Path, kind: str) -> tuple[np.ndarray, dict]:
    """Pixels of a PNG, JPEG or TIFF as (h, w) float32 in source values, NaN where transparent; and the record."""
    notes = []
    with damage_of(path, "decoding its pixels"), Bounded(io.FileIO(path)) as file, Image.open(file, formats=[kind]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{path.name}: {image.width}×{image.height} pixels are too many for an image of a head; "
                             f"export it smaller")
        orientation = image.getexif().get(ORIENTATION)
        record = {"format": kind, "size": image.size, "mode": image.mode, "exif_orientation": orientation, "warnings": notes}
        if kind == "JPEG" and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"{path.name}: more than {MAX_SCANS} scans, which no camera or screen makes; export it as PNG")
        if _holds_more(image) if kind == "TIFF" else getattr(image, "n_frames", 1) > 1:
            notes.append("the file holds several images; the first was read")
        if orientation not in (None, 1):
            notes.append(f"EXIF orientation {orientation} was ignored; pixels are as stored")
        if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.float32)
            clear = image.info.get("transparency")
            if clear is not None:
                values[values == clear] = np.nan
            if kind == "TIFF" and image.mode != "L" and image.tag_v2.get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns 8 bits round itself
                np.negative(values, out=values)
            return values, record
        opaque = image.mode == "RGB" and "transparency" not in image.info
        layers = np.asarray(image if opaque else image.convert("LA" if image.mode in ("1", "LA") else "RGBA"))  # (h, w, c) uint8
    channels = [*np.moveaxis(layers, -1, 0)]
    alpha = None if opaque else channels.pop()
    if all((channels[0] == other).all() for other in channels[1:]):
        values = channels[0].astype(np.float32)
    else:
        values = np.empty(layers.shape[:2], np.float32)
        for top in range(0, len(values), STRIP):  # three channels of a large image as float32 at once would take too much memory
            values[top:top + STRIP] = layers[top:top + STRIP, :, :3].astype(np.float32) @ LUMINANCE
        if (reduce(np.maximum, channels) - reduce(np.minimum, channels) > 32).mean() > 0.001:  # more than the chroma noise of JPEG
            notes.append("coloured pixels were converted to grey")
    if alpha is not None and alpha.min() < 128:
        values[alpha < 128] = np.nan
    return values, record


def content_of(values: np.ndarray) -> tuple[int, int, int, int] | None:
    """Where (x0, y0, x1, y1) the picture lies in a screenshot (h, w) with wide plain borders, or None where there are none to speak of.

    A border is made of whole rows or columns that hold little but the grey value of the corner that they lie at. It is told
    only where it takes more than BORDER of the longer side: narrower ones are usual in what networks were trained on, and nothing is gained.
    """
    measured = np.isfinite(values)
    filled = values if measured.all() else np.nan_to_num(values, nan=float(np.nanmin(values)) if measured.any() else 0.0)
    tolerance, ends = PLAIN * max(float(np.ptp(filled)), 1e-6), []
    for _ in range(2):  # rows, then columns of the rows that are left
        before, after = (_plain_lines(lines, tolerance) for lines in (filled, filled[::-1, ::-1]))
        first, end = (0, len(filled)) if len(filled) in (before, after) else (before, len(filled) - after)
        if end - first < SMALLEST:
            return None
        ends.append((first, end))
        filled = filled[first:end].T
    (y0, y1), (x0, x1) = ends
    height, width = values.shape
    return None if max(y1 - y0, x1 - x0) > (1 - BORDER) * max(height, width) else (x0, y0, x1, y1)


def _plain_lines(lines: np.ndarray, tolerance: float) -> int:
    """How many rows of (n, m), from the first on, hold no more than a few pixels that are not of the first one's grey."""
    for start in range(0, len(lines), EDGE):
        busy = (abs(lines[start:start + EDGE] - lines[0, 0]) > tolerance).mean(1) >= STRAY
        if busy.any():
            return start + int(busy.argmax())
    return len(lines)


def _holds_more(image) -> bool:
    """Whether a TIFF has a second image; counting them all would follow a list that may be endless."""
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def _to_grey(values: np.ndarray, path: Path, record: dict) -> np.ndarray:
    """Map source values to [0, 1] by robust percentiles, in their own memory; notes the window in `record`."""
    if min(values.shape) < SMALLEST:
        raise ImageError(f"{path.name}: {values.shape[1]}×{values.shape[0]} pixels are too few to show a head; export it larger")
    measured = np.isfinite(values)
    whole = bool(measured.all())
    sample = values.ravel() if whole else values[measured]
    if not sample.size:
        raise ImageError(f"{path.name}: holds nothing but padding; export another slice")
    low, high = window_of(sample)
    if low == high:
        low, high = float(sample.min()), float(sample.max())
        if low == high:
            raise ImageError(f"{path.name}: all pixels have the same value; export another slice")
        record["warnings"].append("almost all pixels have the same value")
    record["window"] = (low, high)
    # in double precision where the range is beyond float32's
    scale = 1 / (high - low)
    wide = not 1e-30 < scale < 1e30
    pixels = values.astype(np.float64) if wide else values
    pixels -= low
    pixels *= scale
    pixels = pixels.astype(np.float32, copy=False)
    np.clip(pixels, 0, 1, out=pixels)
    if not whole:
        pixels[~measured] = 0
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if np.median(border) > 0.8:
        record["warnings"].append("the edge of the image is bright; its grey values may be inverted")
    return pixels


def window_of(sample: np.ndarray) -> tuple[float, float]:
    """The DARK and BRIGHT percentiles of finite (n,) float32 values, as a full sort would give them (inverted distribution
    function).

    Every SPARSE-th value tells within which grey the darkest and the brightest lie, thrice as many as are asked for; only these are ordered,
    and where there are too few of them all: a tenth of a sort's time. """
    dark, bright = (max(int(np.ceil(share * sample.size)) - 1, 0) for share in (DARK, BRIGHT))
    few = np.sort(sample[::SPARSE])
    below, above = sample[sample <= few[int(3 * DARK * few.size)]], sample[sample >= few[int((1 - 3 * (1 - BRIGHT)) * few.size)]]
    below = below if below.size > dark else sample
    bright -= sample.size  # counted from the end
    above = above if above.size >= -bright else sample
    return float(np.partition(below, dark)[dark]), float(np.partition(above, bright)[bright])
