"""What a DICOM file claims of its pixels, held against what it holds, before anything is decoded or allocated.

A damaged or hostile file can claim anything. What is let through here decodes within seconds and a memory that its own length pays for.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.encaps import encapsulate, generate_frames, get_frame, parse_basic_offsets
from pydicom.pixels import apply_voi, get_decoder
from pydicom.uid import RLELossless

from ..errors import ImageError
from .header import numbers, whole

MAX_PIXELS = 30_000_000  # of one frame: no scanner comes near, a damaged header easily does
MAX_VOXELS = 2**30  # of one volume: 4 GiB as float32
MAX_FRAMES = 4096  # of one file
DENSE, DENSE_ABOVE = 50, 2**24  # pixels to a compressed byte, in images of more than 16 million: without loss there are about 2
MAX_SCANS = 100  # of one JPEG: progressive ones have about 10, and each costs a pass over all pixels
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
MODALITIES = ("CT", "MR", "US", "XA", "RF", "DX", "CR", "PX", "IO", "OT", "SC", "PT", "NM", "RTDOSE", "SEG")


class Stream(NamedTuple):
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    precision: int  # bits


def describe(dataset, path: Path) -> dict:
    """Check that the pixel data can be what the header says; the record of what there is. Mends `dataset` where a tag is missing that the
    decoder asks for and that has one sensible value. Raises ImageError."""
    held = [keyword for keyword in PIXELS if keyword in dataset]
    if not held:
        raise ImageError(f"{path.name}: holds no pixel data (a report, a plan or a list of files?); give an image")
    syntax = dataset.file_meta.TransferSyntaxUID
    compressed = syntax.is_compressed and not syntax.is_deflated
    pixels = dataset[held[0]].value or b""
    notes = _mend(dataset, held[0], len(pixels), compressed)
    rows, columns, samples, frames, bits = (
        whole(dataset, name, 0) for name in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated"))
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if photometric not in MONOCHROME + COLOUR:
        raise ImageError(f"{path.name}: its photometric interpretation is unknown; export it as MONOCHROME2")
    if (min(rows, columns, samples, frames, bits) < 1 or samples > 4 or frames > MAX_FRAMES or rows * columns > MAX_PIXELS
            or rows * columns * frames > MAX_VOXELS):
        raise ImageError(f"{path.name}: claims {columns}×{rows} pixels in {frames} frames, which no scanner makes; export it again")
    if compressed:
        if len(pixels) < 8 * frames:
            raise ImageError(f"{path.name}: truncated, {len(pixels)} bytes cannot hold {frames} compressed frames; copy or export it again")
        if rows * columns * frames > max(DENSE_ABOVE, DENSE * len(pixels)):
            raise ImageError(f"{path.name}: claims {columns}×{rows} pixels in {frames} frames, too many for {len(pixels)} compressed bytes; "
                             f"export it uncompressed")
    else:
        expected = -(-rows * columns * samples * frames * bits // 8)
        expected = expected * 2 // 3 if photometric == "YBR_FULL_422" else expected
        if len(pixels) < expected:
            raise ImageError(f"{path.name}: truncated, {len(pixels)} of {expected} bytes of pixel data are there; copy or export it again")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"{path.name}: its transfer syntax is not one for images; export it uncompressed") from None
    if not decoder.is_available:
        raise ImageError(f"{path.name}: compressed as {syntax.name}, for which no decoder is installed; "
                         f"install python-gdcm, pyjpegls or pylibjpeg-openjpeg, or export it uncompressed")
    if compressed:
        with_offsets(dataset, frames)
    modality = str(dataset.get("Modality", "")).strip()
    if modality != "CT":
        notes.append(f"the modality is {modality if modality in MODALITIES else 'not stated'}, not CT")
    if photometric in COLOUR:
        notes.append(f"{photometric} was converted to grey; a screenshot loses the scanner's grey values")
    return {"format": "DICOM", "size": (columns, rows), "frames": frames,
            "modality": modality if modality in MODALITIES else None,
            "photometric": photometric, "inverted": photometric == "MONOCHROME1", "bits_stored": whole(dataset, "BitsStored", bits),
            "transfer_syntax": syntax.name, "rescale": None, "display": _display(dataset), "warnings": notes}


def _mend(dataset, keyword: str, length: int, compressed: bool) -> list[str]:
    """Put in what the decoder asks for, where the header lacks it or holds no number; what was assumed."""
    notes = []
    samples = whole(dataset, "SamplesPerPixel", 0)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if samples < 1:
        dataset.SamplesPerPixel = samples = 3 if photometric in COLOUR[1:] else 1
        notes.append(f"the samples a pixel are missing; {samples} was assumed")
    if not photometric and samples == 1:
        dataset.PhotometricInterpretation = "MONOCHROME2"
        notes.append("the photometric interpretation is missing; MONOCHROME2 was assumed")
    frames = whole(dataset, "NumberOfFrames", 0)
    if frames < 1:
        if dataset.get("NumberOfFrames"):
            notes.append("the number of frames is malformed; 1 was assumed")
        frames = 1
    dataset.NumberOfFrames = frames
    if samples > 1 and "PlanarConfiguration" not in dataset:
        dataset.PlanarConfiguration = 0
        notes.append("the planar configuration is missing; colours pixel by pixel were assumed")
    bits = whole(dataset, "BitsAllocated", 0)
    if bits < 1:
        pixels = whole(dataset, "Rows", 0) * whole(dataset, "Columns", 0) * samples * frames
        fits = [n for n in (64, 32, 16, 8) if 0 < pixels * n // 8 <= length] if not compressed else [16]
        dataset.BitsAllocated = bits = fits[0] if fits else 8
        notes.append(f"the bits a pixel are missing; {bits} were assumed")
    if keyword == "PixelData":
        if not 0 < whole(dataset, "BitsStored", 0) <= bits:
            notes.append(f"the bits stored are missing or impossible; {bits} were assumed")
            dataset.BitsStored = bits
        if whole(dataset, "PixelRepresentation", -1) not in (0, 1):
            dataset.PixelRepresentation = 0
            notes.append("it is not stated whether pixels are signed; unsigned ones were assumed")
    return notes


def _display(dataset) -> str | None:
    """What the header asks a screen to do: `table` or `falling table` (high values dark), `window`, or nothing."""
    if table := dataset.get("VOILUTSequence"):
        descriptor = numbers(table[0], "LUTDescriptor", 3)
        if descriptor is not None and (descriptor[0] or 65536) > 1:
            ends = np.array([descriptor[1], descriptor[1] + (descriptor[0] or 65536) - 1]).astype(np.int32)
            low, high = apply_voi(ends, dataset)
            return "falling table" if low > high else "table"
    return "window" if "WindowCenter" in dataset else None


def with_offsets(dataset, frames: int) -> None:
    """Give several compressed frames a table of offsets where they have none; without it each look at a frame passes all before it."""
    if frames > 1 and "ExtendedOffsetTable" not in dataset and not parse_basic_offsets(dataset.PixelData):
        dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=frames)), has_bot=True)


def check_stream(dataset, index: int) -> Stream | None:
    """What compressed frame `index` says of itself; None for RLE, which says nothing. Raises ValueError where that is not what the header
    says: decoders allocate what a frame says of itself."""
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        return None
    frames = int(dataset.NumberOfFrames)
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    frame = get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)
    stream = read_stream(frame)
    if stream is None or stream[:3] != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise ValueError("the compressed frame has another size than the header says")
    if frame.count(b"\xff\xda") > MAX_SCANS and frame.startswith(b"\xff\xd8"):
        raise ValueError("too many scans")
    return stream


def read_stream(frame: bytes) -> Stream | None:
    """Size and precision in the header of a JPEG, JPEG-LS or JPEG 2000 code stream, or None where there is none."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 1024)  # a JPEG 2000 file's boxes may come first
    if at >= 0 and len(frame) >= at + 44:
        right, bottom, left, top = (int.from_bytes(frame[at + k:at + k + 4], "big") for k in (8, 12, 16, 20))
        return Stream(bottom - top, right - left, int.from_bytes(frame[at + 40:at + 42], "big"), (frame[at + 42] & 0x7F) + 1)
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a byte of filling
            at += 1
        elif marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows, columns = (int.from_bytes(frame[at + k:at + k + 2], "big") for k in (5, 7))
            return Stream(rows, columns, frame[at + 9], frame[at + 4])
        else:
            at += 2 + int.from_bytes(frame[at + 2:at + 4], "big")
    return None
