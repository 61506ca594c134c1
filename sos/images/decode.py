"""Stored pixels to grey values in the scanner's units, bright = dense. Decoders are pydicom's and its plugins'."""

import numpy as np
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.uid import JPEGExtended12Bit, JPEGLSTransferSyntaxes, RLELossless

from .apart import APART, CRASHING
from .codecs import NAME, register
from .header import functional, numbers, whole
from .pixels import check_stream

register()

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def grey(dataset, index: int, record: dict) -> np.ndarray:
    """Frame `index` as (h, w) float32: colour to luminance, MONOCHROME1 inverted, padding to NaN, rescaled.

    dataset, record: after `pixels.describe`. Notes the rescale in the record. Raises one of header.DAMAGE.
    """
    array = _stored(dataset, index)
    if record["photometric"] == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
    if array.ndim == 3:  # (h, w, 3)
        return array[..., :3].astype(np.float32) @ LUMINANCE
    values = array.astype(np.float32)
    padding = _padding(array, dataset, index)
    table = "ModalityLUTSequence" in dataset
    if record["inverted"] and not table:  # complement within the bits stored, so that rescale gives the values of the positive
        bottom = -(2 ** (record["bits_stored"] - 1)) if array.dtype.kind == "i" else 0
        ends = (values.min() + values.max()) if array.dtype.kind == "f" else 2 * bottom + 2 ** record["bits_stored"] - 1
        np.subtract(np.float32(ends), values, out=values)
    if table:
        values = apply_modality_lut(array, dataset).astype(np.float32)
        if record["inverted"]:
            np.negative(values, out=values)
    else:
        slope = functional(dataset, index, "PixelValueTransformationSequence", "RescaleSlope", 1)
        intercept = functional(dataset, index, "PixelValueTransformationSequence", "RescaleIntercept", 1)
        slope = 1.0 if slope is None or slope[0] == 0 else float(slope[0])
        intercept = 0.0 if intercept is None else float(intercept[0])
        record["rescale"] = record["rescale"] or (slope, intercept)
        if (slope, intercept) != (1.0, 0.0):
            with np.errstate(over="ignore"):
                values *= np.float32(slope)
                values += np.float32(intercept)
    if record["display"] == "falling table":  # its maker shows it the other way round
        np.negative(values, out=values)
    if padding is not None:
        values[padding] = np.nan
    return values


def _stored(dataset, index: int) -> np.ndarray:
    """Stored pixels of frame `index`, within the bits stored."""
    if not _plain(dataset):
        return _decode(dataset, index)
    allocated, stored, high = (whole(dataset, name, 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if "PixelData" in dataset and stored <= high < allocated:  # pixels may begin above the lowest bit, or the tag may be wrong
        array, unused = _decode(dataset, index, correct_unused_bits=False), high + 1 - stored
        if array.dtype.kind in "iu" and not (unused and (array & ((1 << unused) - 1)).any()):
            return array if stored == allocated else (array << (allocated - 1 - high)) >> (allocated - stored)
    return _decode(dataset, index)


def _plain(dataset) -> bool:
    syntax = dataset.file_meta.TransferSyntaxUID
    return not syntax.is_compressed or syntax.is_deflated or syntax == RLELossless


def _decode(dataset, index: int, **options) -> np.ndarray:
    """Stored pixels of frame `index`, by whichever decoder can."""
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    if decoder.is_native:
        return decoder.as_array(dataset, index=index, view_only=True, **options)[0]
    stream = check_stream(dataset, index)
    safe = [name for name in decoder.available_plugins if name not in CRASHING]
    if syntax == JPEGExtended12Bit and stream.precision > 8:
        safe = []  # pydicom's plugins take 8 bits only
    if syntax in JPEGLSTransferSyntaxes and NAME in safe and len(safe) > 1:  # all of one library, which takes seconds to refuse some damage: asked once
        plain = whole(dataset, "SamplesPerPixel", 1) == 1 and not whole(dataset, "PixelRepresentation", 0)
        safe = [name for name in safe if (name == NAME) == plain]  # ours knows no colour, nor signs of JPEG-LS
    if not safe:
        return APART.decode(str(dataset.filename), index)
    for name in safe[:-1]:
        try:
            return decoder.as_array(dataset, index=index, decoding_plugin=name, **options)[0]
        except RuntimeError:
            continue  # the next one may know this kind
    return decoder.as_array(dataset, index=index, decoding_plugin=safe[-1], **options)[0]


def _padding(array: np.ndarray, dataset, index: int) -> np.ndarray | None:
    """Where stored pixels lie in the range of padding (PS3.3 C.7.5.1.1.2), or None where the header names none."""
    value = numbers(dataset, "PixelPaddingValue", 1)
    if value is None or array.dtype.kind not in "iu":
        return None
    limit = numbers(dataset, "PixelPaddingRangeLimit", 1)
    ends = np.array([value[0], value[0] if limit is None else limit[0]])
    if array.dtype.kind == "i":  # writers often state it unsigned
        ends[ends > np.iinfo(array.dtype).max] -= 2.0 ** (8 * array.dtype.itemsize)
    if _plain(dataset) and abs(ends).max() >= 2 ** whole(dataset, "BitsStored", 64):  # it uses the bits above those stored
        array = _decode(dataset, index, correct_unused_bits=False)
    mask = (array >= ends.min()) & (array <= ends.max())
    return mask if mask.any() else None
