"""DICOM files and series: stored pixels to grey values in the scanner's units, bright = dense, with their geometry.

Header values reach the outside only where they are numbers or code words from a closed list; no name, identifier or date does.
pydicom quotes header values in its warnings and log lines, so it is told not to look for odd values on reading, and both are
silenced. """

import atexit
import json
import logging
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import ImageError

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

MAX_PIXELS = 100_000_000  # of one frame: no scanner comes near, a damaged header easily does
MAX_VOXELS = 2**30  # of one volume: 4 GiB as float32
MAX_INFLATED = 2**29  # bytes of a deflated file: 512 MiB
MAX_FILES = 20_000  # of one folder
MAX_DECODE_S = 60.0  # for one frame, in the process apart
CRASHING = ("gdcm",)  # decoders that end the whole process on some damaged files (5 in 1,000 mutated ones); used last, and apart
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
MODALITIES = ("CT", "MR", "US", "XA", "RF", "DX", "CR", "PX", "IO", "OT", "SC", "PT", "NM", "RTDOSE", "SEG")
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = b"1.2.840.10008.1.2.1.99"

# What pydicom, its decoders and numpy are known to raise on damaged files (fuzzed in tests/test_images.py). They share no base
# class.
DAMAGE = (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, MemoryError,
          SyntaxError, AssertionError, struct.error, zlib.error, InvalidDicomError, BytesLengthException,
          Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class DicomImage:
    """One frame. values: (h, w) float32 after rescale, bright = dense, NaN where the scanner measured nothing; spacing_mm: rows,
    columns."""

    values: np.ndarray
    spacing_mm: tuple[float, float] | None
    record: dict


@dataclass(frozen=True)
class Volume:
    """A stack. values: (z, y, x) float32, NaN where nothing was measured; `affine` (4, 4) takes the index (z, y, x, 1) to patient
    coordinates in mm (x to the left, y to the back, z to the head); `oriented` is False where the header gave no orientation."""

    values: np.ndarray
    affine: np.ndarray
    oriented: bool
    record: dict

    @property
    def voxel_mm(self) -> np.ndarray:
        """Edges of a voxel along z, y, x in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass
class _Slice:
    source: object  # a path, or a dataset that holds all frames
    index: int
    position: np.ndarray | None
    number: float = 0.0
    order: float = field(default=0.0, compare=False)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (132 bytes or more) is DICOM: by its magic word, or by a first element of group 2 or
    8."""
    if head[128:132] == b"DICM":
        return True
    byteorder = {b"\x02\0": "little", b"\x08\0": "little", b"\0\x08": "big"}.get(head[:2])
    if byteorder is None or int.from_bytes(head[2:4], byteorder) > 0x120:
        return False
    return head[4:6].isalpha() or int.from_bytes(head[4:8], byteorder) < 256


@contextmanager
def damage_of(path: Path, doing: str):
    """Turn whatever damaged data raises into an ImageError that names the file and the kind of failure, never a header's
    content."""
    try:
        yield
    except DAMAGE as error:
        kind = type(error).__name__
        reason = f"{doing} failed ({kind}), so it is damaged, truncated or of a rare kind"
        raise ImageError(f"{path.name}: {reason}; export it again") from None


def read_dicom(path) -> DicomImage | Volume:
    """Read one DICOM file: an image, or a volume where it holds several frames; a DICOMDIR stands for the folder it lies in.

    Raises ImageError for anything that is not a readable image. Memory: the file, and its voxels once as float32.
    """
    path = Path(path)
    dataset = read_header(path, pixels=True)
    with damage_of(path, "reading its header"):
        directory = str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == DICOMDIR
    if directory:
        return read_series(path.parent)
    with damage_of(path, "reading its header"):
        record = _describe(dataset, path)
        frames = record["frames"]
        if frames == 1:
            return _image(dataset, path, 0, record)
        slices, directions, spacing = _frames_in_space(dataset, frames, record["warnings"])
    return _stack(slices, directions, spacing, record, path)


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
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels, specific_tags=tags)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native
        return dataset


def _refuse_inflation(path: Path, head: bytes) -> None:
    """pydicom inflates a deflated data set at once; measure it first, in small pieces."""
    if head[132:140] != b"\x02\0\0\0UL\x04\0":
        raise ValueError("a deflated file needs the length of its meta group")
    with path.open("rb") as file:
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while piece := inflater.unconsumed_tail or file.read(1 << 16):
            total += len(inflater.decompress(piece, 1 << 22))
            if total > MAX_INFLATED:
                raise ImageError(f"{path.name}: inflates to more than {MAX_INFLATED >> 20} MiB; export it uncompressed")


def _describe(dataset, path: Path) -> dict:
    """Check that the pixel data can be what the header says, before anything is allocated; the record of what there is."""
    held = [keyword for keyword in PIXELS if keyword in dataset]
    if not held:
        raise ImageError(f"{path.name}: holds no pixel data (a report, a plan or a list of files?); give an image")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
    bits, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 0)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    notes = []
    if not photometric and samples == 1:
        dataset.PhotometricInterpretation = photometric = "MONOCHROME2"  # the decoder asks for it
        notes.append("the photometric interpretation is missing; MONOCHROME2 was assumed")
    if photometric not in MONOCHROME + COLOUR:
        raise ImageError(f"{path.name}: its photometric interpretation is unknown; export it as MONOCHROME2")
    if min(rows, columns, samples, frames, bits) < 1 or rows * columns > MAX_PIXELS or rows * columns * frames > MAX_VOXELS:
        raise ImageError(f"{path.name}: claims {columns}×{rows} pixels in {frames} frames, which no scanner makes; "
                         f"export it again")
    syntax = dataset.file_meta.TransferSyntaxUID
    length = len(dataset[held[0]].value or b"")
    if syntax.is_compressed and not syntax.is_deflated:
        if length < 8 * frames:
            raise ImageError(f"{path.name}: truncated, {length} bytes cannot hold {frames} compressed frames; "
                             f"copy or export it again")
    else:
        expected = -(-rows * columns * samples * frames * bits // 8)
        expected = expected * 2 // 3 if photometric == "YBR_FULL_422" else expected
        if length < expected:
            raise ImageError(f"{path.name}: truncated, {length} of {expected} bytes of pixel data are there; "
                             f"copy or export it again")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"{path.name}: its transfer syntax is not one for images; export it uncompressed") from None
    if not decoder.is_available:
        raise ImageError(f"{path.name}: compressed as {syntax.name}, for which no decoder is installed; "
                         f"install python-gdcm, pyjpegls or pylibjpeg-openjpeg, or export it uncompressed")
    modality = str(dataset.get("Modality", "")).strip()
    if modality != "CT":
        notes.append(f"the modality is {modality if modality in MODALITIES else 'not stated'}, not CT")
    if photometric in COLOUR:
        notes.append(f"{photometric} was converted to grey; a screenshot loses the scanner's grey values")
    return {"format": "DICOM", "size": (columns, rows), "frames": frames,
            "modality": modality if modality in MODALITIES else None,
            "photometric": photometric, "inverted": photometric == "MONOCHROME1", "bits_stored": stored,
            "transfer_syntax": syntax.name, "rescale": None, "warnings": notes}


def _numbers(dataset, keyword: str, count: int) -> np.ndarray | None:
    """`count` finite numbers of an element, or None where it is absent, empty or malformed."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    try:
        found = np.atleast_1d(np.asarray(value, float))
    except (TypeError, ValueError):
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None


def _functional(dataset, index: int, group: str, keyword: str, count: int) -> np.ndarray | None:
    """An element from the functional groups of frame `index`, else of all frames, else from the top level (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for item in [*per_frame[index:index + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]:
        for inner in (item.get(group) or [])[:1]:
            if (found := _numbers(inner, keyword, count)) is not None:
                return found
    return _numbers(dataset, keyword, count)


def _spacing(dataset, index: int, notes: list[str]) -> tuple[float, float] | None:
    """Distance between rows and between columns in mm, or None where unknown."""
    spacing = _functional(dataset, index, "PixelMeasuresSequence", "PixelSpacing", 2)
    if spacing is None and (spacing := _numbers(dataset, "ImagerPixelSpacing", 2)) is not None:
        notes.append("the pixel spacing is that at the detector, not in the patient")
    if spacing is None or not ((spacing > 0.01) & (spacing < 20)).all():
        notes.append("the pixel spacing is missing" if spacing is None else "the pixel spacing is impossible and was ignored")
        return None
    if max(spacing) > 1.02 * min(spacing):
        notes.append(f"pixels are not square ({spacing[0]:.3g} × {spacing[1]:.3g} mm)")
    return float(spacing[0]), float(spacing[1])


def _directions(dataset, index: int = 0) -> np.ndarray | None:
    """Unit vectors along a row and down a column in patient coordinates, (2, 3), or None where absent or not orthogonal."""
    cosines = _functional(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    pair = cosines.reshape(2, 3)
    length = np.linalg.norm(pair, axis=1)
    if (abs(length - 1) > 0.05).any() or abs(pair[0] @ pair[1]) > 0.05:
        return None
    return pair / length[:, None]


def _grey(dataset, index: int, record: dict) -> np.ndarray:
    """Frame `index` as (h, w) float32: colour to luminance, MONOCHROME1 inverted, padding to NaN, rescaled."""
    array = _decode(dataset, index)
    if record["photometric"] == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
    if array.ndim == 3:  # (h, w, 3)
        return array[..., :3].astype(np.float32) @ LUMINANCE
    values = array.astype(np.float32)
    padding = _padding(array, dataset)
    if record["inverted"]:  # complement within the bits stored, so that rescale gives the values of the positive
        bottom = -(2 ** (record["bits_stored"] - 1)) if array.dtype.kind == "i" else 0
        ends = (values.min() + values.max()) if array.dtype.kind == "f" else 2 * bottom + 2 ** record["bits_stored"] - 1
        values = np.float32(ends) - values
    if "ModalityLUTSequence" in dataset:
        stored = values.astype(array.dtype) if record["inverted"] else array
        values = apply_modality_lut(stored, dataset).astype(np.float32)
    else:
        slope = _functional(dataset, index, "PixelValueTransformationSequence", "RescaleSlope", 1)
        intercept = _functional(dataset, index, "PixelValueTransformationSequence", "RescaleIntercept", 1)
        slope = 1.0 if slope is None or slope[0] == 0 else float(slope[0])
        intercept = 0.0 if intercept is None else float(intercept[0])
        record["rescale"] = record["rescale"] or (slope, intercept)
        if (slope, intercept) != (1.0, 0.0):
            with np.errstate(over="ignore"):
                values = values * np.float32(slope) + np.float32(intercept)
    if padding is not None:
        values[padding] = np.nan
    return values


def _decode(dataset, index: int) -> np.ndarray:
    """Stored pixels of frame `index`, by whichever decoder can."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    safe = [name for name in decoder.available_plugins if name not in CRASHING]
    if decoder.is_native or "pydicom" in safe:
        return decoder.as_array(dataset, index=index, view_only=True)[0]
    for name in safe[:-1]:
        try:
            return decoder.as_array(dataset, index=index, decoding_plugin=name)[0]
        except RuntimeError:
            continue  # the next one may know this kind
    if safe:
        return decoder.as_array(dataset, index=index, decoding_plugin=safe[-1])[0]
    return _APART.decode(str(dataset.filename), index)


class _Apart:
    """A child process that decodes what could end the process it is decoded in. Started when first needed, again when it died."""

    def __init__(self):
        self.child, self.owner, self.lock = None, 0, threading.Lock()
        atexit.register(self.close)

    def decode(self, path: str, index: int) -> np.ndarray:
        """Stored pixels of frame `index` of a file. Raises RuntimeError where the child could not, died or took too long."""
        with self.lock:
            if self.owner != os.getpid():  # a fork of the owner must not read its answers
                self.child = None
            if self.child is None or self.child.poll() is not None:
                self._start()
            self.child.stdin.write(json.dumps([os.path.abspath(path), index]).encode() + b"\n")
            self.child.stdin.flush()
            ready, _, _ = select.select([self.child.stdout], [], [], MAX_DECODE_S)
            answer = json.loads(self.child.stdout.readline() or b"{}") if ready else {}
            if not answer:
                self.close()
                raise RuntimeError("the decoder died or took too long")
            if answer["size"] == 0:
                raise RuntimeError("the decoder refused the data")
            return np.frombuffer(self.child.stdout.read(answer["size"]), answer["dtype"]).reshape(answer["shape"])

    def _start(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-c", "from sos.images.dicom import serve; serve()"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                      env=os.environ | {"PYTHONPATH": paths})
        self.owner = os.getpid()

    def close(self) -> None:
        """End the child, if it is this process's."""
        if self.child is not None and self.owner == os.getpid():
            self.child.kill()
            self.child.communicate()
        self.child = None


_APART = _Apart()


def serve() -> None:
    """What the process apart does: for each line `[path, frame]` on standard input, one line about the pixels, and the pixels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    held, dataset = "", None
    for line in sys.stdin.buffer:
        path, index = json.loads(line)
        try:
            if path != held:
                held, dataset = path, read_header(path, pixels=True)
            array = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=index)[0]
        except (*DAMAGE, ImageError):
            held, array = "", np.empty(0, np.uint8)
        head = {"size": array.nbytes, "dtype": array.dtype.str, "shape": array.shape}
        answers.write(json.dumps(head).encode() + b"\n" + array.tobytes())
        answers.flush()


def _padding(array: np.ndarray, dataset) -> np.ndarray | None:
    """Where stored pixels lie in the range of padding (PS3.3 C.7.5.1.1.2), or None where the header names none."""
    value = _numbers(dataset, "PixelPaddingValue", 1)
    if value is None or array.dtype.kind not in "iu":
        return None
    limit = _numbers(dataset, "PixelPaddingRangeLimit", 1)
    ends = np.array([value[0], value[0] if limit is None else limit[0]])
    if array.dtype.kind == "i":  # writers often state it unsigned
        ends[ends > np.iinfo(array.dtype).max] -= 2.0 ** (8 * array.dtype.itemsize)
    mask = (array >= ends.min()) & (array <= ends.max())
    return mask if mask.any() else None


def _image(dataset, path: Path, index: int, record: dict) -> DicomImage:
    directions = _directions(dataset, index)
    if directions is not None and abs(np.cross(*directions)[0]) < 0.8:
        record["warnings"].append("the slice is not sagittal by its orientation; give a mid-sagittal slice or a whole volume")
    spacing = _spacing(dataset, index, record["warnings"])
    with damage_of(path, f"decoding its pixels ({record['transfer_syntax']})"):
        values = _grey(dataset, index, record)
    return DicomImage(values, spacing, record)


# --- volumes --------------------------------------------------------------------------------------------------------------------
def _frames_in_space(dataset, frames: int, notes: list[str]):
    """Slices, directions and (slice, row, column) spacing of a multi-frame file, enhanced or not."""
    directions = _directions(dataset)
    spacing = _spacing(dataset, 0, notes) or (1.0, 1.0)
    slices = [_Slice(dataset, i, _functional(dataset, i, "PlanePositionSequence", "ImagePositionPatient", 3), i)
              for i in range(frames)]
    if all(item.position is None or (item.position == slices[0].position).all() for item in slices):
        for item in slices:
            item.position = None
    thick = next((found[0] for keyword in ("SpacingBetweenSlices", "SliceThickness")
                  if (found := _functional(dataset, 0, "PixelMeasuresSequence", keyword, 1)) is not None and found[0] > 0), None)
    return slices, directions, (thick, *spacing)


def _stack(slices: list[_Slice], directions, spacing, record: dict, path: Path) -> Volume:
    """Sort slices along their normal and put them on an even grid; a gap is filled by interpolation and told."""
    notes = record["warnings"]
    thick, row_mm, column_mm = spacing
    oriented = directions is not None
    if not oriented:
        notes.append("the orientation is missing; axial slices from foot to head were assumed")
        directions = np.eye(3)[:2]
    normal = np.cross(*directions)
    if any(item.position is None for item in slices):
        if thick is None:
            notes.append("the distance of slices is missing; cubic voxels were assumed")
        slices = sorted(slices, key=lambda item: item.number)
        for i, item in enumerate(slices):
            item.position = normal * i * float(thick or column_mm)
        notes.append("the position of slices is missing; they were stacked by their number")
    for item in slices:
        item.order = float(item.position @ normal)
    slices = sorted(slices, key=lambda item: (item.order, item.number))
    kept = [item for i, item in enumerate(slices) if i == 0 or item.order - slices[i - 1].order > 0.01]
    if len(kept) < len(slices):
        notes.append(f"{len(slices) - len(kept)} slices at a place already taken were left out")
    if len(kept) < 2:
        raise ImageError(f"{path.name}: all its slices lie at one place, so it is no volume; give one image or a whole volume")
    at = np.array([item.order for item in kept])
    gaps = np.diff(at)
    step = float(np.median(gaps))
    even = (abs(gaps - step) <= 0.1 * step + 0.005).all()
    columns, rows = record["size"]
    places = len(at) if even else (at[-1] - at[0]) / step + 1
    if not places * rows * columns <= MAX_VOXELS or places > 2 * len(kept):
        raise ImageError(f"{path.name}: slices are missing or too many ({len(kept)} over {at[-1] - at[0]:.4g} mm); "
                         f"export the whole series")
    grid = at if even else at[0] + step * np.arange(round(places))
    if not even:
        notes.append(f"slices are uneven ({gaps.min():.2f} to {gaps.max():.2f} mm apart); missing ones were interpolated")
    affine = np.eye(4)
    affine[:3, 0] = (kept[-1].position - kept[0].position) / (len(grid) - 1)  # keeps a gantry's tilt
    affine[:3, 1], affine[:3, 2], affine[:3, 3] = directions[1] * row_mm, directions[0] * column_mm, kept[0].position
    values = np.empty((len(grid), rows, columns), np.float32)
    loaded = {}
    for k, place in enumerate(grid):
        low = k if even else int(np.clip(np.searchsorted(at, place, side="right") - 1, 0, len(at) - 2))
        share = 0.0 if even else float(np.clip((place - at[low]) / gaps[low], 0, 1))
        near = (low,) if share < 1e-3 else (low, low + 1)
        loaded = {i: loaded[i] if i in loaded else _load(kept[i], record, path) for i in near}
        values[k] = loaded[low] if len(near) == 1 else loaded[low] * np.float32(1 - share) + loaded[low + 1] * np.float32(share)
    record["volume"] = {"shape": values.shape, "voxel_mm": [round(float(v), 4) for v in np.linalg.norm(affine[:3, :3], axis=0)]}
    return Volume(values, affine, oriented, record)


def _load(item: _Slice, record: dict, path: Path) -> np.ndarray:
    columns, rows = record["size"]
    if isinstance(item.source, Path):
        dataset = read_header(item.source, pixels=True)
        with damage_of(item.source, "reading its header"):
            own = _describe(dataset, item.source)
        if own["size"] != record["size"] or own["frames"] != 1:
            raise ImageError(f"{item.source.name}: differs in size from the rest of its series; export the series again")
        record["rescale"], own["rescale"] = record["rescale"], None
        with damage_of(item.source, f"decoding its pixels ({own['transfer_syntax']})"):
            values = _grey(dataset, item.index, own)
        record["rescale"] = record["rescale"] or own["rescale"]
    else:
        with damage_of(path, f"decoding its pixels ({record['transfer_syntax']})"):
            values = _grey(item.source, item.index, record)
    if values.shape != (rows, columns):
        raise ImageError(f"{path.name}: a frame decodes to another size than its header says; export it again")
    return values


SCAN = ["SeriesInstanceUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "ImageOrientationPatient",
        "ImagePositionPatient", "InstanceNumber", "SpacingBetweenSlices", "SliceThickness", "PixelSpacing", "ImagerPixelSpacing"]


def read_series(folder) -> DicomImage | Volume:
    """Read a folder, and folders in it, as one series: of several, the CT one with most frames, localisers last; the rest is
    told.

    A series of one file gives what `read_dicom` gives of it. Raises ImageError where no file is a DICOM image.
    """
    folder = Path(folder)
    groups, unreadable = {}, 0
    files = sorted(islice((item for item in folder.rglob("*") if item.is_file()), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise ImageError(f"{folder.name}: more than {MAX_FILES} files; give the folder of one patient's series")
    for path in files:
        try:
            header = read_header(path, tags=SCAN)
            with damage_of(path, "reading its header"):
                size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
                frames, number = int(header.get("NumberOfFrames") or 1), float(header.get("InstanceNumber") or 0)
                localiser = "LOCALIZER" in (header.get("ImageType") or [])
                modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID", path.parent))
                directions = _directions(header)
        except ImageError:
            unreadable += 1
            continue
        if min(size) > 0:
            facing = None if directions is None else tuple(directions.ravel().round(2) + 0.0)
            key = (uid, size, facing, path if frames > 1 else None)
            rank = (modality == "CT" and not localiser, not localiser)
            groups.setdefault(key, (rank, []))[1].append((path, header, number, frames))
    if not groups:
        raise ImageError(f"{folder.name}: no DICOM image in this folder; give a folder with one CT series, or an image file")
    chosen = max(groups, key=lambda key: (groups[key][0], sum(file[3] for file in groups[key][1])))
    files = groups[chosen][1]
    path, header, _, frames = files[0]
    others = len({key[0] for key in groups} - {chosen[0]})
    strays = sum(len(group[1]) for key, group in groups.items() if key != chosen and key[0] == chosen[0])
    notes = [f"{count} {what} left out" for count, what in (
        (others, "other series were" if others > 1 else "other series was"),
        (strays, "files of the series with another size or orientation were"),
        (unreadable, "files that are no readable DICOM were")) if count]
    if len(files) == 1:
        result = read_dicom(path)
        result.record["warnings"][:0] = notes
        return result
    first = read_header(path, pixels=True)
    with damage_of(path, "reading its header"):
        record = _describe(first, path)
        record |= {"format": "DICOM series", "frames": len(files), "warnings": notes + record["warnings"]}
        slices = [_Slice(name, 0, _numbers(head, "ImagePositionPatient", 3), number) for name, head, number, _ in files]
        thick = next((found[0] for keyword in ("SpacingBetweenSlices", "SliceThickness")
                      if (found := _numbers(header, keyword, 1)) is not None and found[0] > 0), None)
        directions, spacing = _directions(header), _spacing(header, 0, record["warnings"]) or (1.0, 1.0)
    return _stack(slices, directions, (thick, *spacing), record, folder)
