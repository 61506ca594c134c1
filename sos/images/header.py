"""Headers of DICOM files: opening them unharmed, and what they say of size, place and grey scale, with wrong or missing tags mended or refused.

Header values reach the outside only where they are numbers or code words from a closed list; no name, identifier or date does.
pydicom quotes header values in its warnings and log lines, so it is told not to look for odd values on reading, and both are silenced.
"""

import io
import logging
import os
import struct
import warnings
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import ImageError

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

MAX_INFLATED = 2**29  # bytes of a deflated file: 512 MiB
DENSE, DENSE_ABOVE = 100, 2**25  # a deflated file may grow so many times, where it grows beyond 32 MiB: scans of heads grow tenfold at most
MAX_NUMBERS = 1024  # bytes of an element that holds a few numbers
DEFLATED = b"1.2.840.10008.1.2.1.99"

# What pydicom, its decoders and numpy are known to raise on damaged files (found by tests/fuzz_reader.py). They share no base class.
DAMAGE = (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, MemoryError,
          SyntaxError, SystemError, AssertionError, struct.error, zlib.error, InvalidDicomError, BytesLengthException,
          Image.DecompressionBombError, Image.DecompressionBombWarning)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (132 bytes or more) is DICOM: by its magic word, or by a first element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    byteorder = {b"\x02\0": "little", b"\x08\0": "little", b"\0\x08": "big"}.get(head[:2])
    if byteorder is None or int.from_bytes(head[2:4], byteorder) > 0x120:
        return False
    return head[4:6].isalpha() or int.from_bytes(head[4:8], byteorder) < 256


@contextmanager
def damage_of(path: Path, doing: str):
    """Turn whatever damaged data raises into an ImageError that names the file and the kind of failure, never a header's content."""
    try:
        yield
    except DAMAGE as error:
        kind = type(error).__name__
        reason = f"{doing} failed ({kind}), so it is damaged, truncated or of a rare kind"
        raise ImageError(f"{path.name}: {reason}; export it again") from None


def read_header(path, *, pixels: bool = False, tags: list[str] | None = None) -> pydicom.Dataset:
    """The header of one DICOM file (only `tags`, if given), with its pixel data if `pixels`. Raises ImageError."""
    path = Path(path)
    with damage_of(path, "opening it"):
        with path.open("rb") as file:
            head = file.read(4096)
    if not head:
        raise ImageError(f"{path.name}: the file is empty; copy it again")
    if not looks_like_dicom(head):
        raise ImageError(f"{path.name}: not a DICOM file; give a DICOM, PNG, JPEG or TIFF image")
    with damage_of(path, "reading its header"):
        if DEFLATED in head:
            _refuse_inflation(path, head)
        with Bounded(io.FileIO(path)) as file:
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=tags)
        dataset.filename = str(path)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native
        return dataset


class Bounded(io.BufferedReader):
    """A file that allocates no more than it holds, whatever length an element claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def _refuse_inflation(path: Path, head: bytes) -> None:
    """pydicom inflates a deflated data set at once; measure it first, in small pieces."""
    if head[132:140] != b"\x02\0\0\0UL\x04\0":
        raise ValueError("a deflated file needs the length of its meta group")
    most = min(MAX_INFLATED, max(DENSE_ABOVE, DENSE * path.stat().st_size))
    with path.open("rb") as file:
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflater.eof and (piece := inflater.unconsumed_tail or file.read(1 << 16)):
            total += len(inflater.decompress(piece, 1 << 22))
            if total > most:
                raise ImageError(f"{path.name}: inflates to more than {most >> 20} MiB; export it uncompressed")


_tag = cache(Tag)  # keywords are few, and pydicom first tries each as a hexadecimal number


def whole(dataset, keyword: str, default: int) -> int:
    """A whole number of the header; `default` where it is absent, empty or malformed."""
    found = numbers(dataset, keyword, 1)
    return default if found is None else int(found[0])


def numbers(dataset, keyword: str, count: int) -> np.ndarray | None:
    """`count` finite numbers of an element, or None where it is absent, empty or malformed."""
    tag = _tag(keyword)
    element = dataset.get_item(tag)
    if element is None or isinstance(element.value, bytes) and len(element.value) > MAX_NUMBERS:
        return None
    try:
        value = dataset[tag].value
        if value is None or value == "":
            return None
        found = np.atleast_1d(np.asarray(value, float))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def functional(dataset, index: int, group: str, keyword: str, count: int) -> np.ndarray | None:
    """An element from the functional groups of frame `index`, else of all frames, else from the top level (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for item in [*per_frame[index:index + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]:
        for inner in (item.get(group) or [])[:1]:
            if (found := numbers(inner, keyword, count)) is not None:
                return found
    return numbers(dataset, keyword, count)


def spacing_of(dataset, index: int, notes: list[str]) -> tuple[float, float] | None:
    """Distance between rows and between columns in mm, or None where unknown."""
    spacing = functional(dataset, index, "PixelMeasuresSequence", "PixelSpacing", 2)
    for keyword, where in (("ImagerPixelSpacing", "at the detector"), ("NominalScannedPixelSpacing", "on the scanned film")):
        if spacing is None and (spacing := numbers(dataset, keyword, 2)) is not None:
            notes.append(f"the pixel spacing is that {where}, not in the patient")
    if spacing is None or not ((spacing > 0.01) & (spacing < 20)).all():
        notes.append("the pixel spacing is missing" if spacing is None else "the pixel spacing is impossible and was ignored")
        ratio = numbers(dataset, "PixelAspectRatio", 2)
        if ratio is not None and max(ratio) > 1.02 * min(ratio) > 0:
            notes.append(f"pixels are not square ({ratio[0]:.4g} to {ratio[1]:.4g})")
        return None
    if max(spacing) > 1.02 * min(spacing):
        notes.append(f"pixels are not square ({spacing[0]:.3g} × {spacing[1]:.3g} mm)")
    return float(spacing[0]), float(spacing[1])


def directions_of(dataset, index: int = 0) -> np.ndarray | None:
    """Unit vectors along a row and down a column in patient coordinates, (2, 3), or None where absent or not orthogonal."""
    cosines = functional(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    pair = cosines.reshape(2, 3)
    length = np.linalg.norm(pair, axis=1)
    if (abs(length - 1) > 0.05).any() or abs(pair[0] @ pair[1]) > 0.05:
        return None
    return pair / length[:, None]


def upright(dataset, directions: np.ndarray | None) -> bool:
    """Whether columns run from head to foot by the orientation, see `directions_of`, or else by PatientOrientation; also where neither tells."""
    if directions is not None:
        return bool(directions[1, 2] <= -0.7)
    letters = dataset.get("PatientOrientation")
    down = str(letters[1]) if isinstance(letters, MultiValue) and len(letters) == 2 else ""
    return not down or down.startswith("F")


def slice_distance(dataset) -> float | None:
    """Distance of slices in mm as the header states it, or None."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        found = functional(dataset, 0, "PixelMeasuresSequence", keyword, 1)
        if found is not None and found[0] > 0:
            return float(found[0])
    return None
