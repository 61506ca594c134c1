"""Reading: every encoding of one picture gives the same picture; what cannot be read gives one line; what identifies stays in the
header."""

import json
import logging
import os
import signal
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import COLUMNS, ROWS, VOLUMES, bytes_of, ct, dicom_bytes, encoded, enhanced, in_stream, picture, save, seeds, write_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1,
    JPEGLSLossless, RLELossless)

from sos.errors import ImageError
from sos.images import apart, header, midsagittal, reader
from sos.images.dicom import DicomImage, Volume, read_dicom, read_series
from sos.images.midsagittal import find_plane, midsagittal_slice
from sos.images.reader import SPARSE, GreyImage, content_of, read_image, window_of

# damaged files make pydicom and Pillow warn, about places in the file
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}:{module}") for kind, module in (
    ("UserWarning", "pydicom"), ("UserWarning", "PIL.TiffImagePlugin"), ("PIL.Image.DecompressionBombWarning", "PIL.Image"))]

PYDICOM_FILES = Path(pydicom.__file__).parent / "data/test_files"
REFERENCE = Path(__file__).resolve().parents[2] / "shared/reference-images"


def expected(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The grey mapping, by other means than the reader's."""
    values = np.asarray(values, float)
    low, high = np.percentile(values, [0.5, 99.8], method="inverted_cdf")
    return np.clip((values - low) / (high - low), 0, 1), (low, high)


# --- one picture, many encodings ------------------------------------------------------------------------------------------------
ENCODINGS = {
    "explicit": dict(),
    "implicit": dict(syntax=ImplicitVRLittleEndian),
    "big endian": dict(syntax=ExplicitVRBigEndian),
    "deflated": dict(syntax=DeflatedExplicitVRLittleEndian),
    "RLE": dict(compress=RLELossless),
    "12 of 16 bits": dict(bits=12),
    "signed": dict(dtype=np.int16, offset=-1024, RescaleIntercept=1024.0),
    "signed, 13 bits": dict(dtype=np.int16, offset=-1024, bits=13, RescaleIntercept=1024.0),
    "32 bits": dict(dtype=np.uint32),
    "rescaled": dict(RescaleSlope=0.5, RescaleIntercept=-1000.0, slope=0.5, intercept=-1000.0),
    "MONOCHROME1": dict(bits=12, complement=4095, PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME1, signed": dict(dtype=np.int16, complement=-1, PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME1, RLE": dict(bits=12, complement=4095, PhotometricInterpretation="MONOCHROME1", compress=RLELossless),
    "no photometric interpretation": dict(PhotometricInterpretation=None),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_each_encoding_gives_the_same_pixels(tmp_path, name):
    options = dict(ENCODINGS[name])
    offset, complement = options.pop("offset", 0), options.pop("complement", None)
    slope, intercept = options.pop("slope", 1.0), options.pop("intercept", 0.0)
    compress, dtype = options.pop("compress", None), options.pop("dtype", np.uint16)
    stored = picture() + offset if complement is None else complement - picture()
    data = ct(stored.astype(dtype), **options)
    if compress:
        data.compress(compress, generate_instance_uid=False)
    image = read_image(save(data, tmp_path / "slice"))
    values = picture() * slope + intercept
    pixels, window = expected(values)
    assert image.pixels.dtype == np.float32 and image.pixels.shape == (ROWS, COLUMNS)
    np.testing.assert_allclose(image.pixels, pixels, atol=2e-6)
    assert image.record["window"] == pytest.approx(window)
    assert image.spacing_mm == pytest.approx(0.3)
    assert image.record["size"] == (COLUMNS, ROWS)
    assert image.record["transfer_syntax"] == data.file_meta.TransferSyntaxUID.name
    assert image.record["inverted"] == (complement is not None)
    wanted = ["the photometric interpretation is missing; MONOCHROME2 was assumed"] if name.startswith("no photo") else []
    assert image.record["warnings"] == wanted
    json.dumps(image.record)


def test_jpeg_2000_lossless_is_exact(tmp_path):
    stored = picture(16).astype(np.uint16)
    data = ct(stored, syntax=JPEG2000Lossless)
    data.PixelData = encapsulate([encoded(stored, "JPEG2000", irreversible=False, no_jp2=True)])
    data["PixelData"].is_undefined_length = True
    np.testing.assert_allclose(read_image(save(data, tmp_path / "a.dcm")).pixels, expected(stored)[0], atol=2e-6)


def test_jpeg_baseline_is_near(tmp_path):
    stored = picture(8).astype(np.uint8)
    data = ct(stored, syntax=JPEGBaseline8Bit)
    data.PixelData = encapsulate([encoded(stored, "JPEG", quality=100)])
    data["PixelData"].is_undefined_length = True
    assert abs(read_image(save(data, tmp_path / "a.dcm")).pixels - expected(stored)[0]).max() < 0.02


def test_jpeg_ls_is_exact_or_names_the_missing_decoder():
    compressed, plain = PYDICOM_FILES / "MR_small_jpeg_ls_lossless.dcm", PYDICOM_FILES / "MR_small.dcm"
    if get_decoder(JPEGLSLossless).is_available:
        assert (read_image(compressed).pixels == read_image(plain).pixels).all()
    else:
        with pytest.raises(ImageError, match="JPEG-LS Lossless Image Compression, for which no decoder is installed; install "):
            read_image(compressed)


LOSSLESS_JPEG = PYDICOM_FILES / "SC_rgb_jpeg_gdcm.dcm"


def test_lossless_jpeg_is_exact_or_names_the_missing_decoder():
    if get_decoder(JPEGLosslessSV1).is_available:
        assert (read_image(LOSSLESS_JPEG).pixels == read_image(PYDICOM_FILES / "SC_rgb_rle.dcm").pixels).all()
    else:
        with pytest.raises(ImageError, match="compressed as JPEG Lossless.*, for which no decoder is installed; install "):
            read_image(LOSSLESS_JPEG)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_lossless_jpeg_ends_in_an_image_error_not_in_a_crash(tmp_path, seed):
    """The only free decoder of it aborts on some damage, which nothing in the same process survives."""
    content, rng = bytearray(LOSSLESS_JPEG.read_bytes()), np.random.default_rng(seed)
    start = content.find(b"\xff\xd8\xff")
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(start, len(content), 3):
            damaged[at] = rng.integers(256)
        (tmp_path / "slice").write_bytes(damaged)
        try:
            assert np.isfinite(read_image(tmp_path / "slice").pixels).all()
        except ImageError as error:
            assert str(error).startswith("slice: ")


def test_the_process_apart_gives_the_same_pixels_and_comes_back_after_its_death(tmp_path):
    path, other = save(ct(picture().astype(np.uint16)), tmp_path / "slice"), apart.Apart()
    assert (other.decode(str(path), 0) == picture()).all()
    first = other.child
    first.kill()
    first.wait()
    assert (other.decode(str(path), 0) == picture()).all() and other.child is not first
    with pytest.raises(RuntimeError, match="refused"):
        other.decode(str(tmp_path / "none"), 0)
    assert (other.decode(str(path), 0) == picture()).all()
    os.kill(other.child.pid, signal.SIGSTOP)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="took too long"):
        patch.setattr(apart, "MAX_DECODE_S", 0.2)
        other.decode(str(path), 0)
    assert other.child is None


def test_colour_becomes_luminance_with_a_warning(tmp_path):
    grey = picture(8)
    rgb = np.stack([grey, grey[::-1], 255 - grey], -1).astype(np.uint8)
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    image = read_image(save(ct(rgb), tmp_path / "rgb"))
    assert abs(image.pixels - expected(luminance)[0]).max() < 1e-4
    assert image.record["warnings"] == ["RGB was converted to grey; a screenshot loses the scanner's grey values"]
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    image = read_image(save(ct(ybr, PhotometricInterpretation="YBR_FULL"), tmp_path / "ybr"))
    assert abs(image.pixels - expected(luminance)[0]).max() < 0.03
    assert "YBR_FULL was converted to grey" in image.record["warnings"][0]


def test_palette_is_looked_up(tmp_path):
    data = ct(picture(8).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    table = np.arange(255, -1, -1, dtype="<u2") * 257  # an inverting grey palette
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table.tobytes())
    image = read_image(save(data, tmp_path / "palette"))
    np.testing.assert_allclose(image.pixels, expected(255 - picture(8))[0], atol=1e-4)
    assert "PALETTE COLOR was converted to grey" in image.record["warnings"][0]


def test_modality_lut_replaces_rescale(tmp_path):
    data = ct(picture(8).astype(np.uint16), bits=8)
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [256, 0, 16], "US"
    lut.add_new("LUTData", "OW", (np.arange(256) ** 2).astype("<u2").tobytes())
    data.ModalityLUTSequence = [lut]
    np.testing.assert_allclose(read_image(save(data, tmp_path / "lut")).pixels, expected(picture(8) ** 2)[0], atol=2e-6)


def test_monochrome1_is_turned_round_after_a_short_table(tmp_path):
    """The complement within 12 bits lay beyond a table of 8 bits, and all became one grey."""
    data = ct(picture(8).astype(np.uint16), bits=12, PhotometricInterpretation="MONOCHROME1")
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [256, 0, 16], "US"
    lut.add_new("LUTData", "OW", (np.arange(256) ** 2).astype("<u2").tobytes())
    data.ModalityLUTSequence = [lut]
    np.testing.assert_allclose(read_image(save(data, tmp_path / "lut")).pixels, expected(-(picture(8) ** 2))[0], atol=2e-6)


@pytest.mark.parametrize("value, limit, dtype, stored",
                         [(0, None, np.uint16, 0), (63536, None, np.int16, -2000), (0, 2, np.uint16, 1)])
def test_padding_becomes_black_and_shifts_no_percentile(tmp_path, value, limit, dtype, stored):
    values = picture().astype(dtype) + dtype(10)
    values[:, :20] = stored
    data = ct(values, PixelRepresentation=int(dtype == np.int16))
    data.add_new("PixelPaddingValue", "US", value)
    if limit is not None:
        data.add_new("PixelPaddingRangeLimit", "US", limit)
    image = read_image(save(data, tmp_path / "padded"))
    assert (image.pixels[:, :20] == 0).all()
    np.testing.assert_allclose(image.pixels[:, 20:], expected(values[:, 20:].astype(int))[0], atol=2e-6)
    assert np.isnan(read_dicom(tmp_path / "padded").values[:, :20]).all()


LYING = "the head does not stand upright by its orientation; export it with the crown up"


@pytest.mark.parametrize("attributes, spacing, warning", [
    (dict(PixelSpacing=[0.2, 0.4]), 0.3, "pixels are not square (0.2 × 0.4 mm)"),
    (dict(PixelSpacing=None, ImagerPixelSpacing=[0.25, 0.25]), 0.25,
     "the pixel spacing is that at the detector, not in the patient"),
    (dict(PixelSpacing=None), None, "the pixel spacing is missing"),
    (dict(PixelSpacing=[0, 0]), None, "the pixel spacing is impossible and was ignored"),
    (dict(Modality="MR"), 0.3, "the modality is MR, not CT"),
    (dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), 0.3,
     "the slice is not sagittal by its orientation; give a mid-sagittal slice or a "
                                                           "whole volume"),
    (dict(ImageOrientationPatient=[0, -1, 0, 0, 0, 1]), 0.3, LYING),
    (dict(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), 0.3, LYING),
    (dict(ImageOrientationPatient=[0, 0, -1, 0, 1, 0]), 0.3, LYING),
    (dict(ImageOrientationPatient=None, PatientOrientation=["A", "H"]), 0.3, LYING),
])
def test_doubtful_headers_are_told(tmp_path, attributes, spacing, warning):
    image = read_image(save(ct(picture().astype(np.uint16), **attributes), tmp_path / "slice"))
    assert image.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert image.record["warnings"] == [warning]


@pytest.mark.parametrize("attributes", [dict(), dict(PatientOrientation=["A", "H"]), dict(ImageOrientationPatient=[0, -1, 0, 0, 0.6, -0.8]),
                                        *(dict(ImageOrientationPatient=None, PatientOrientation=letters)
                                          for letters in (None, "", "A", ["A", "F"], ["P", "FA"]))])
def test_a_head_that_stands_upright_or_of_which_nothing_is_known_is_not_told(tmp_path, attributes):
    data = ct(picture().astype(np.uint16))
    for name, value in attributes.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            del data[name]
    assert read_image(save(data, tmp_path / "slice")).record["warnings"] == []


def test_a_ratio_of_pixels_without_spacing_is_told(tmp_path):
    def told(**attributes):
        return read_image(save(ct(picture().astype(np.uint16), **attributes), tmp_path / "slice")).record["warnings"]

    assert told(PixelSpacing=None, PixelAspectRatio=[2, 1]) == ["the pixel spacing is missing", "pixels are not square (2 to 1)"]
    assert told(PixelSpacing=None, PixelAspectRatio=[1, 1]) == told(PixelSpacing=None, PixelAspectRatio=[0, 1]) == ["the pixel spacing is missing"]
    assert told(PixelAspectRatio=[2, 1]) == []


# --- wrong and missing tags ------------------------------------------------------------------------------------------------------
WRONG = {
    "no bits stored": (dict(BitsStored=None), "the bits stored are missing or impossible; 16 were assumed"),
    "more bits stored than allocated": (dict(BitsStored=40), "the bits stored are missing or impossible; 16 were assumed"),
    "no bits allocated": (dict(BitsAllocated=None), "the bits a pixel are missing; 16 were assumed"),
    "no sign": (dict(PixelRepresentation=None), "it is not stated whether pixels are signed; unsigned ones were assumed"),
    "no samples": (dict(SamplesPerPixel=None), "the samples a pixel are missing; 1 was assumed"),
    "wrong high bit": (dict(BitsStored=12, HighBit=15), None),
}


@pytest.mark.parametrize("name", WRONG)
def test_tags_that_are_wrong_or_missing_are_mended_and_told(tmp_path, name):
    attributes, told = WRONG[name]
    data = ct(picture().astype(np.uint16))
    for keyword, value in attributes.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    image = read_image(save(data, tmp_path / "slice"))
    np.testing.assert_allclose(image.pixels, expected(picture())[0], atol=2e-6)
    assert image.record["warnings"] == ([told] if told else [])


def test_a_malformed_number_of_frames_is_one(tmp_path):
    content = dicom_bytes(NumberOfFrames=2)
    (tmp_path / "slice").write_bytes(content.replace(b"IS\x02\0002 ", b"IS\x02\0001A"))
    image = read_image(tmp_path / "slice")
    assert image.record["frames"] == 1 and image.record["warnings"] == ["the number of frames is malformed; 1 was assumed"]
    np.testing.assert_allclose(image.pixels, expected(picture())[0], atol=2e-6)


@pytest.mark.parametrize("dtype, bits, high", [(np.uint16, 12, 15), (np.int16, 12, 13), (np.uint16, 12, 11)])
def test_pixels_may_begin_above_the_lowest_bit_and_overlays_lie_above_the_highest(tmp_path, dtype, bits, high):
    values = picture() - (2048 if dtype == np.int16 else 0)
    stored = (values & 0xFFF) << (high + 1 - bits)
    if high == 11:
        stored |= (picture() % 7 == 0).astype(int) << 12  # an overlay of the old kind
    image = read_image(save(ct(stored.astype(np.uint16), bits=bits, HighBit=high, PixelRepresentation=int(dtype == np.int16)), tmp_path / "a"))
    np.testing.assert_allclose(image.pixels, expected(picture())[0], atol=2e-6)


def test_padding_above_the_bits_stored_is_padding(tmp_path):
    values = picture().astype(np.uint16)
    values[:, :20] = 63536
    data = ct(values, bits=12)
    data.add_new("PixelPaddingValue", "US", 63536)
    image = read_image(save(data, tmp_path / "padded"))
    assert (image.pixels[:, :20] == 0).all()
    np.testing.assert_allclose(image.pixels[:, 20:], expected(picture()[:, 20:])[0], atol=2e-6)


def test_colour_planes_and_floats_are_read(tmp_path):
    rgb = np.stack([picture(8), picture(8)[::-1], 255 - picture(8)], -1).astype(np.uint8)
    pixelwise = read_image(save(ct(rgb), tmp_path / "a")).pixels
    data = ct(rgb, PlanarConfiguration=1)
    data.PixelData = rgb.transpose(2, 0, 1).tobytes()
    assert (read_image(save(data, tmp_path / "b")).pixels == pixelwise).all()
    data = ct(picture().astype(np.uint16), BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None, PixelData=None)
    data.FloatPixelData = (picture() / 7).astype("<f4").tobytes()
    np.testing.assert_allclose(read_image(save(data, tmp_path / "c")).pixels, expected((picture() / 7).astype(np.float32))[0], atol=2e-6)


@pytest.mark.parametrize("table, display", [(np.arange(4096), "table"), (np.arange(4096)[::-1], "falling table")])
def test_a_table_of_the_screen_is_followed_where_it_falls_and_else_left_alone(tmp_path, table, display):
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 16]
    lut.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    stored = picture() if display == "table" else 4095 - picture()
    image = read_image(save(ct(stored.astype(np.uint16), bits=12, VOILUTSequence=[lut]), tmp_path / "a"))
    np.testing.assert_allclose(image.pixels, expected(picture() if display == "table" else -stored)[0], atol=2e-6)
    assert image.record["display"] == display
    image = read_image(save(ct(picture().astype(np.uint16), WindowCenter=40, WindowWidth=4), tmp_path / "b"))
    np.testing.assert_allclose(image.pixels, expected(picture())[0], atol=2e-6)
    assert image.record["display"] == "window"


def test_twelve_bits_of_lossy_jpeg_are_decoded_apart():
    """pydicom's plugins refuse them. The same picture lies beside it as JPEG 2000, less its signed noise below zero."""
    lossy, near = (read_dicom(PYDICOM_FILES / name).values for name in ("JPGExtended.dcm", "JPEG2000.dcm"))
    assert lossy.shape == (1024, 256) and np.corrcoef(lossy.ravel(), near.ravel())[0, 1] > 0.95


def test_a_bright_edge_is_told(tmp_path):
    data = ct((4095 - picture() // 2).astype(np.uint16))
    data.PixelData = np.where(np.pad(np.zeros((40, 60)), 10, constant_values=1) > 0, 4000, picture() // 4).astype("<u2").tobytes()
    image = read_image(save(data, tmp_path / "slice"))
    assert image.record["warnings"] == ["the edge of the image is bright; its grey values may be inverted"]


# --- screenshots ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, bits", [("PNG", 8), ("PNG", 16), ("TIFF", 8), ("TIFF", 16)])
def test_screenshots_read_like_dicom(tmp_path, kind, bits):
    stored = picture(bits).astype(np.uint16 if bits == 16 else np.uint8)
    path = tmp_path / "named.dcm"  # content decides, not the name
    path.write_bytes(encoded(stored, kind))
    image = read_image(path)
    as_dicom = read_image(save(ct(stored), tmp_path / "slice.png"))
    assert (image.pixels == as_dicom.pixels).all()
    assert image.spacing_mm is None and image.record["format"] == kind and image.record["window"] == as_dicom.record["window"]
    assert as_dicom.record["format"] == "DICOM"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK", "I", "F"])
def test_modes_agree_with_grey(tmp_path, mode):
    grey = Image.fromarray(picture(8).astype(np.uint8))
    path = tmp_path / "image"
    (grey.convert("RGB") if mode == "CMYK" else grey).convert(mode).save(path, "TIFF" if mode in ("CMYK", "I", "F") else "PNG")
    image = read_image(path)
    np.testing.assert_allclose(image.pixels, expected(picture(8))[0], atol=0.01)
    assert image.record["warnings"] == [] and image.record["mode"] == mode


def test_colour_in_a_screenshot_is_told(tmp_path):
    grey = picture(8).astype(np.uint8)
    rgb = np.stack([grey] * 3, -1)
    rgb[5:15, 5:15] = (255, 0, 0)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.record["warnings"] == ["coloured pixels were converted to grey"]
    low, high = image.record["window"]
    assert image.pixels[10, 10] == pytest.approx((0.299 * 255 - low) / (high - low), abs=1e-5)


def test_transparent_pixels_are_padding(tmp_path):
    grey = picture(8).astype(np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[:30] = 0
    Image.fromarray(np.stack([grey, grey, grey, alpha], -1)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.pixels[:30] == 0).all()
    np.testing.assert_allclose(image.pixels[30:], expected(grey[30:].astype(int))[0], atol=2e-6)


def test_the_colour_that_stands_for_transparency_is_padding(tmp_path):
    colour = np.repeat(np.random.default_rng(5).integers(1, 255, (60, 70, 1), np.uint8), 3, 2)
    colour[:9] = (0, 255, 0)
    plain, keyed = tmp_path / "plain.png", tmp_path / "keyed.png"
    Image.fromarray(colour).save(plain)
    Image.fromarray(colour).save(keyed, transparency=(0, 255, 0))
    one, other = read_image(plain), read_image(keyed)
    assert one.record["mode"] == other.record["mode"] == "RGB"
    assert one.pixels[:9].min() > 0 and not other.pixels[:9].any()
    np.testing.assert_allclose(other.pixels[9:], expected(colour[9:, :, 0])[0], atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_grey_that_stands_for_transparency_is_padding(tmp_path, bits):
    grey = np.maximum(picture(bits), 1).astype(np.uint16 if bits == 16 else np.uint8)
    grey[:9] = key = 200
    grey[9:][grey[9:] == key] += 1
    Image.fromarray(grey).save(tmp_path / "keyed.png", transparency=key)
    image = read_image(tmp_path / "keyed.png")
    assert image.record["mode"] == ("I;16" if bits == 16 else "L") and not image.pixels[:9].any()
    np.testing.assert_allclose(image.pixels[9:], expected(grey[9:])[0], atol=2e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white_is_turned_round(tmp_path, bits):
    stored = picture(bits).astype(np.uint16 if bits == 16 else np.uint8)
    content = bytearray(encoded(stored, "TIFF"))
    at = content.index(struct.pack("<HHII", 262, 3, 1, 1))
    content[at + 8] = 0
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, expected(-stored.astype(int))[0], atol=2e-6)


def test_exif_orientation_is_recorded_not_applied(tmp_path):
    image, exif = Image.fromarray(picture(8).astype(np.uint8)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "a.jpg")
    assert read.pixels.shape == (ROWS, COLUMNS) and read.record["exif_orientation"] == 6
    assert read.record["warnings"] == ["EXIF orientation 6 was ignored; pixels are as stored"]


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused_unopened(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    tracemalloc.start()
    with pytest.raises(ImageError, match="bomb.png"):
        read_image(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_real_slices_of_the_shared_folder():
    files = sorted(REFERENCE.glob("*.jpg"))
    if not files:
        pytest.skip("no reference images beside the repository")
    for path in files:
        image = read_image(path)
        assert image.pixels.shape == np.asarray(Image.open(path)).shape[:2] and image.spacing_mm is None
        assert image.pixels.min() == 0 and image.pixels.max() == 1 and image.pixels.std() > 0.1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_window_is_that_of_a_sort(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.integers(2, 5000))
    kind = data.draw(st.sampled_from(["bytes", "words", "signed", "real", "outlier", "constant", "background", "sorted", "sparse"]))
    values = {"bytes": lambda: rng.integers(0, 256, size), "words": lambda: rng.integers(0, 65536, size),
              "signed": lambda: rng.integers(-3000, 3000, size) * 2, "real": lambda: rng.normal(0, 1e-3, size),
              "outlier": lambda: np.append(rng.normal(0, 1, size), 1e20),
              "constant": lambda: np.full(size, 7),
              "background": lambda: rng.integers(0, 4096, size) * (rng.random(size) < rng.random()),
              "sorted": lambda: np.sort(rng.integers(-999, 999, size)),
              "sparse": lambda: np.where(np.arange(size) % SPARSE, rng.integers(0, 256, size), rng.choice([-1000, 1000]))  # all that is seen at first
              }[kind]().astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.8], method="inverted_cdf")
    assert window_of(values) == (low, high)


def test_a_slice_of_usual_size_takes_milliseconds(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4000, (600, 600)).astype(np.uint16)
    path = save(ct(stored), tmp_path / "slice")
    took = []
    for _ in range(7):
        start = time.process_time()
        read_image(path)
        took.append(time.process_time() - start)
    assert min(took) < 0.05  # 4 ms on one core


def bordered(picture_px: np.ndarray, grey: int, before, after) -> np.ndarray:
    return np.pad(picture_px, [(before[0], after[0]), (before[1], after[1])], constant_values=grey)


@pytest.mark.parametrize("grey", [0, 50, 255])
@pytest.mark.parametrize("before, after", [((60, 80), (60, 80)), ((0, 0), (60, 80)), ((0, 70), (0, 40))])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_picture_between_wide_borders_is_found(tmp_path, grey, before, after, kind):
    seen = np.random.default_rng(0).integers(90, 230, (ROWS, COLUMNS), np.uint8)
    (tmp_path / "screen").write_bytes(encoded(bordered(seen, grey, before, after), kind, **({"quality": 90} if kind == "JPEG" else {})))
    x0, y0, x1, y1 = read_image(tmp_path / "screen").record["content"]
    near = 0 if kind == "PNG" else 8  # a block of JPEG
    np.testing.assert_allclose([x0, y0, x1, y1], [before[1], before[0], before[1] + COLUMNS, before[0] + ROWS], atol=near)


def test_a_picture_without_wide_borders_is_looked_at_whole(tmp_path):
    seen = np.random.default_rng(0).integers(90, 230, (ROWS, COLUMNS), np.uint8)
    for name, image in (("none", seen), ("narrow", bordered(seen, 0, (4, 6), (4, 6)))):
        (tmp_path / name).write_bytes(encoded(image, "PNG"))
        assert read_image(tmp_path / name).record["content"] is None


def test_two_plain_halves_are_no_borders(tmp_path):
    """Above and below are borders both, and nothing lies between them."""
    halves = np.full((200, 180), 40, np.uint8)
    halves[90:] = 200
    for k, pixels in enumerate((halves, halves.T)):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        image = read_image(tmp_path / f"{k}.png")
        assert image.record["content"] is None and image.pixels.shape == pixels.shape


def test_borders_beyond_transparent_pixels_are_found():
    values = np.random.default_rng(2).uniform(50, 200, (300, 300)).astype(np.float32)
    framed = np.pad(values, [(150, 90), (10, 120)], constant_values=np.nan)
    assert content_of(framed) == (10, 150, 310, 450) and np.isnan(framed[0, 0])
    assert content_of(np.full((99, 99), np.nan, np.float32)) is None


def test_a_large_deflated_file_ends(tmp_path):
    """Measuring it went round for ever where the last piece of the file was longer than what was inflated at once."""
    path = save(ct(np.pad(picture().astype(np.uint16), 1500), syntax=DeflatedExplicitVRLittleEndian), tmp_path / "large")
    assert read_dicom(path).values.shape == (ROWS + 3000, COLUMNS + 3000)


def test_a_compressed_frame_that_claims_another_size_is_not_decoded(tmp_path):
    stored = picture().astype(np.uint16)
    stream = bytearray(encoded(stored, "JPEG2000", irreversible=False, no_jp2=True))
    stream[8:12] = struct.pack(">I", 2**31 - 1)
    save(in_stream(stored, JPEG2000Lossless, bytes(stream)), tmp_path / "slice")
    with pytest.raises(ImageError, match="decoding its pixels .* failed .ValueError."):
        read_image(tmp_path / "slice")


def test_few_bytes_cannot_hold_many_compressed_pixels(tmp_path):
    data = in_stream(picture().astype(np.uint16), JPEG2000Lossless, bytes(100), Rows=5000, Columns=5000)
    with pytest.raises(ImageError, match="too many for .* compressed bytes"):
        read_image(save(data, tmp_path / "slice"))


def test_an_element_that_claims_gigabytes_allocates_none(tmp_path):
    content = dicom_bytes()
    at = content.rfind(b"OW\0\0") + 4
    (tmp_path / "slice").write_bytes(content[:at] + struct.pack("<I", 2**32 - 2) + content[at + 4:])
    tracemalloc.start()
    with pytest.raises(ImageError, match="^slice: "):
        read_image(tmp_path / "slice")
        raise ImageError("slice: read all the same")  # pydicom takes what there is
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


# --- failures -------------------------------------------------------------------------------------------------------------------
def without_pixels() -> bytes:
    return dicom_bytes(PixelData=None)


FAILURES = {
    "empty": (lambda: b"", "the file is empty"),
    "text named .dcm": (lambda: b"patient, stage\n" * 40, "not a DICOM file"),
    "cut in its pixels": (lambda: dicom_bytes()[:-100], "truncated, 9500 of 9600 bytes"),
    "cut in its header": (lambda: dicom_bytes()[:400], "slice.dcm: "),
    "no pixel data": (without_pixels, "holds no pixel data"),
    "more rows than data": (lambda: dicom_bytes(Rows=6000), "truncated, 9600 of 960000 bytes"),
    "absurd rows": (lambda: dicom_bytes(Rows=65535, Columns=65535), "which no scanner makes"),
    "no rows": (lambda: dicom_bytes(Rows=None), "which no scanner makes"),
    "absurd frames": (lambda: dicom_bytes(NumberOfFrames=2**31 - 1), "which no scanner makes"),
    "unknown photometric": (lambda: dicom_bytes(PhotometricInterpretation="DOE JOHN"), "photometric interpretation is unknown"),
    "video syntax": (lambda: dicom_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100\0"), "slice.dcm: "),
    "constant": (lambda: dicom_bytes(PixelData=bytes(9600)), "all pixels have the same value"),
    "only padding": (lambda: dicom_bytes(PixelData=bytes(9600), PixelPaddingValue=0), "nothing but padding"),
    "too small": (lambda: encoded(np.zeros((10, 10), np.uint8), "PNG"), "10×10 pixels are too few"),
    "cut PNG": (lambda: encoded(picture(8).astype(np.uint8), "PNG")[:-300], "decoding its pixels failed"),
    "cut JPEG": (lambda: encoded(picture(8).astype(np.uint8), "JPEG")[:-300], "decoding its pixels failed"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_one_line_that_names_the_file(tmp_path, name):
    content, message = FAILURES[name]
    path = tmp_path / "slice.dcm"
    path.write_bytes(content())
    with pytest.raises(ImageError) as caught:
        read_image(path)
    text = str(caught.value)
    assert message in text and text.startswith("slice.dcm: ") and "\n" not in text and str(tmp_path) not in text


def test_missing_path_empty_folder_and_device(tmp_path):
    with pytest.raises(ImageError, match="^none.dcm: no such file or folder"):
        read_image(tmp_path / "none.dcm")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="^folder: no DICOM image in this folder"):
        read_image(tmp_path / "folder")
    with pytest.raises(ImageError, match="^null: neither a file nor a folder"):
        read_image("/dev/null")


def test_a_zip_bomb_in_deflated_syntax_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_INFLATED", 2**16)
    data = ct(np.zeros((1000, 1000), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    path = save(data, tmp_path / "bomb")
    assert path.stat().st_size < 2**16
    with pytest.raises(ImageError, match="inflates to more than"):
        read_image(path)


def test_nothing_identifying_leaves_the_header(tmp_path, caplog, recwarn):
    secret = "SECRETNAME"
    attributes = dict(PatientName=f"{secret}^{secret}", PatientID=secret, PatientBirthDate=secret, InstitutionName=secret,
                      Modality=secret, AccessionNumber=secret, StudyDescription=secret, RescaleType=secret, ImageComments=secret)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = save(ct(picture().astype(np.uint16), **attributes), tmp_path / "good").read_bytes()
    caplog.set_level(logging.DEBUG)
    recwarn.clear()
    image = read_image(tmp_path / "good")
    said = [json.dumps(image.record)]
    bad = {"photometric": good.replace(b"MONOCHROME2 ", b"SECRETNAME2 "), "cut": good[:-50],
           "number": good.replace(b"0.3\\0.3 ", b"SECRET\\N")}
    for name, content in bad.items():
        assert content != good
        (tmp_path / name).write_bytes(content)
        try:
            said.append(json.dumps(read_image(tmp_path / name).record))
        except ImageError as error:
            said.append(str(error))
            assert error.__cause__ is None and error.__suppress_context__ or error.__context__ is None
    said += [record.getMessage() for record in caplog.records] + [str(warning.message) for warning in recwarn]
    assert len(said) >= 4 and not [text for text in said if "SECRET" in text]


# --- damage by chance -----------------------------------------------------------------------------------------------------------
SEEDS = seeds()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_files_give_an_image_or_an_image_error(tmp_path_factory, data):
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    header = min(len(content), 1200)  # most of what can go wrong stands at the front
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(content)
    start = time.process_time()
    try:
        image = read_image(path)
    except ImageError as error:
        assert str(error).startswith("fuzzed: ") and "\n" not in str(error)
    else:
        assert isinstance(image, GreyImage) and np.isfinite(image.pixels).all()
        assert image.pixels.min() >= 0 and image.pixels.max() <= 1 and image.pixels.ndim == 2
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_tenth_of_a_file_gives_an_image_or_an_image_error(tmp_path, name):
    path = tmp_path / "cut"
    for tenth in range(10):
        path.write_bytes(SEEDS[name][: len(SEEDS[name]) * tenth // 10])
        try:
            assert np.isfinite(read_image(path).pixels).all()
        except ImageError as error:
            assert str(error).startswith("cut: ")


def test_the_test_collection_of_pydicom_gives_images_or_image_errors():
    read, refused = [], []
    for path in sorted(item for item in PYDICOM_FILES.rglob("*") if item.is_file()):
        try:
            image = read_image(path)
            assert np.isfinite(image.pixels).all()
            read.append(path.name)
        except ImageError as error:
            refused.append(path.name)
            assert "\n" not in str(error)
    for name in ("GDCMJ2K_TextGBR.dcm", "JPEG-lossy.dcm", "JPGExtended.dcm", "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
                 "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
                 "image_dfl.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "SC_ybr_full_422_uncompressed.dcm",
                 "J2K_pixelrep_mismatch.dcm"):
        assert name in read
    for name in ("MR_truncated.dcm", "rtplan.dcm", "waveform_ecg.dcm", "README.txt", "zipMR.gz", "test-SR.dcm"):
        assert name in refused
    same = [read_image(PYDICOM_FILES / f"MR_small{end}.dcm").pixels
            for end in ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_expb")]
    assert all((pixels == same[0]).all() for pixels in same)


# --- volumes --------------------------------------------------------------------------------------------------------------------
EXTENT_MM = 168.0


def head(voxel_mm=2.0, yaw=0.0, roll=0.0, pitch=0.0, shift_mm=0.0, noise=40.0, cylinder=False, seed=0):
    """A drawn head as a Volume, the true normal of its mirror plane, and a function that draws it at points (…, 3) in mm."""
    a, b, c = np.radians([yaw, roll, pitch])
    left = np.array([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)])
    back = np.array([0, np.cos(c), np.sin(c)])
    back = (back - (back @ left) * left) / np.linalg.norm(back - (back @ left) * left)
    axes = np.stack([left, back, np.cross(left, back)])

    def draw(points):
        x, y, z = np.moveaxis(points @ axes.T, -1, 0)
        x = x - shift_mm
        value = np.full(x.shape, -1000.0, np.float32)

        def ellipsoid(centre, radii):
            return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2

        value[ellipsoid((0, 0, 5), (74, 92, 84)) < 1] = 40
        value[ellipsoid((0, -55, -50), (50, 38, 48)) < 1] = 50
        skull = ellipsoid((0, 5, 15), (68, 84, 74))
        value[skull < 1] = 1200
        value[skull < 0.86] = 35
        for side in (-1, 1):
            value[ellipsoid((32 * side, -68, 0), (18, 20, 17)) < 1] = 20
            value[ellipsoid((55 * side, 20, -35), (12, 18, 15)) < 1] = 900
            value[ellipsoid((52 * side, 22, -37), (6, 9, 8)) < 1] = -700
            value[ellipsoid((22 * side, -70, -35), (14, 16, 16)) < 1] = -900
            value[ellipsoid((40 * side, -52, -60), (6, 28, 18)) < 1] = 1300
        value[ellipsoid((0, -66, -25), (2, 22, 20)) < 1] = 700
        value[ellipsoid((0, -5, -25), (14, 22, 10)) < 1] = 600
        value[ellipsoid((0, 0, -80), (12, 14, 50)) < 1] = 500
        value[ellipsoid((12, -30, -10), (6, 6, 6)) < 1] = -300  # no face is quite symmetric
        value[ellipsoid((-40, 30, 40), (8, 8, 8)) < 1] = 300
        return value

    n = int(EXTENT_MM / voxel_mm)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = voxel_mm
    affine[:3, 3], affine[3, 3] = -(n - 1) / 2 * voxel_mm, 1
    index = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    values = draw(points) + np.random.default_rng(seed).normal(0, noise, (n, n, n)).astype(np.float32)
    if cylinder:
        values[:, np.hypot(points[0, ..., 0], points[0, ..., 1]) > EXTENT_MM / 2] = -1000
    return Volume(values, affine, True, {"warnings": []}), left, draw


@pytest.mark.parametrize("yaw, roll, pitch, shift_mm, cylinder", [
    (0, 0, 0, 0, False), (15, -15, 10, 15, False), (-15, 8, -12, -15, True), (6, 15, 0, 9, True), (-3, -11, 15, -6, False)])
def test_the_midsagittal_plane_is_found_within_2_mm_and_2_degrees(yaw, roll, pitch, shift_mm, cylinder):
    volume, left, _ = head(2.0, yaw, roll, pitch, shift_mm, cylinder=cylinder)
    plane = find_plane(volume)
    assert np.degrees(np.arccos(min(plane.normal @ left, 1))) < 1
    for y, z in ((0, 0), (-60, -40), (40, 50)):  # distance of true points in the plane from the one found
        point = left * shift_mm + np.array([0, y, z]) - left * (left @ [0, y, z])
        assert abs(plane.normal @ point - plane.offset_mm) < 2
    assert plane.yaw_deg == pytest.approx(yaw, abs=1) and plane.roll_deg == pytest.approx(roll, abs=1)
    assert plane.correlation > 0.9 and plane.confidence > midsagittal.WARN_BELOW
    if cylinder:
        again = find_plane(volume)
        assert (again.normal == plane.normal).all() and again.offset_mm == plane.offset_mm


def test_the_slice_shows_what_lies_in_the_plane():
    volume, left, draw = head(1.2, yaw=9, roll=-7, shift_mm=8, noise=0)
    cut = midsagittal_slice(volume)
    assert cut.spacing_mm == pytest.approx(1.2) and volume.record["warnings"] == []
    plane = cut.plane
    forward = np.array([0, -1, 0]) + plane.normal[1] * plane.normal
    forward /= np.linalg.norm(forward)
    down = np.cross(plane.normal, forward)
    assert down[2] < -0.9 and forward[1] < -0.9  # head up, face to the right
    h, w = cut.values.shape
    rows, columns = np.mgrid[:h, :w]
    # the slice's corner is not told; take it from the brightest correlation of whole-pixel shifts of the drawn slice
    grid = plane.offset_mm * plane.normal + 1.2 * ((rows - h / 2)[..., None] * down + (columns - w / 2)[..., None] * forward)
    truth = draw(grid)
    scores = {}
    seen = np.isfinite(cut.values)
    for dy in range(-6, 7):
        for dx in range(-6, 7):
            moved = np.roll(truth, (dy, dx), (0, 1))[8:-8, 8:-8][seen[8:-8, 8:-8]]
            scores[dy, dx] = np.corrcoef(moved, cut.values[8:-8, 8:-8][seen[8:-8, 8:-8]])[0, 1]
    assert max(scores.values()) > 0.97
    assert min(scores.values()) < 0.95


def test_noise_balls_small_and_coarse_volumes_are_refused():
    volume, _, _ = head(2.0)
    noise = np.random.default_rng(0).normal(0, 100, volume.values.shape).astype(np.float32)
    volume.affine[:3, :3] *= 0.7  # 1.4 mm voxels, 118 mm
    with pytest.raises(ImageError, match="^case: no plane of symmetry stands out"):
        midsagittal_slice(Volume(noise, volume.affine, True, {"warnings": []}), "case")
    grid = np.arange(84) - 41.5
    ball = ((grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2) < 1200).astype(np.float32)
    with pytest.raises(ImageError, match="no plane of symmetry stands out"):
        midsagittal_slice(Volume(ball, volume.affine, True, {"warnings": []}))
    with pytest.raises(ImageError, match="too small to find its mid-sagittal plane"):
        midsagittal_slice(Volume(volume.values[:40], volume.affine, True, {"warnings": []}))
    volume.affine[:3, :3] *= 2
    with pytest.raises(ImageError, match="voxels of 2.8 mm are too coarse"):
        midsagittal_slice(volume)


def test_the_search_takes_little_memory_beside_the_volume():
    volume, _, _ = head(1.2, 5, 5, 0, 5)
    tracemalloc.start()
    midsagittal_slice(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * volume.values.nbytes  # 11 MB here; what it takes does not grow with the volume's resolution


def write_series(folder: Path, volume: Volume, axis: int = 0, uid: str = "1.2.3", skip=(), **attributes) -> None:
    """The volume as single-frame files, one a slice along `axis` (axial, coronal, sagittal), in shuffled files and numbers."""
    folder.mkdir(exist_ok=True)
    stored = np.moveaxis(np.clip(volume.values + 1000, 0, 4095).round().astype(np.uint16), axis, 0)
    row_axis, column_axis = [i for i in range(3) if i != axis]
    steps = volume.affine[:3, :3]
    cosines = [*steps[:, column_axis] / volume.voxel_mm[column_axis], *steps[:, row_axis] / volume.voxel_mm[row_axis]]
    order = np.random.default_rng(0).permutation(len(stored))
    for name, k in enumerate(order):
        if k not in skip:
            data = ct(stored[k], SeriesInstanceUID=uid, InstanceNumber=int(name),
                      ImageOrientationPatient=[float(v) for v in cosines],
                      ImagePositionPatient=[float(v) for v in volume.affine[:3, 3] + k * steps[:, axis]],
                      RescaleIntercept=-1000.0,
                      PixelSpacing=[float(volume.voxel_mm[row_axis]), float(volume.voxel_mm[column_axis])], **attributes)
            save(data, folder / f"{uid}-{name:04d}")


@pytest.fixture(scope="module")
def small_head():
    volume, left, _ = head(1.4, yaw=8, roll=-6, shift_mm=5, noise=20)
    volume.values.clip(-1000, 3095, out=volume.values)
    return volume, left


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axial_coronal_and_sagittal_series_give_the_same_slice(tmp_path, small_head, axis):
    volume, left = small_head
    write_series(tmp_path / "series", volume, axis)
    read = read_series(tmp_path / "series")
    assert read.record["warnings"] == [] and read.oriented
    mapped = read.affine[:3, :3] @ (np.array(read.values.shape) - 1) + read.affine[:3, 3]
    first, last = np.minimum(read.affine[:3, 3], mapped), np.maximum(read.affine[:3, 3], mapped)
    n = volume.values.shape[0] - 1
    np.testing.assert_allclose(first, volume.affine[:3, 3], atol=1e-3)
    np.testing.assert_allclose(last, volume.affine[:3, 3] + 1.4 * n, atol=1e-3)
    image, direct = read_image(tmp_path / "series"), midsagittal_slice(volume)
    assert image.spacing_mm == pytest.approx(1.4) and image.record["format"] == "DICOM series"
    assert image.record["size"] == image.pixels.shape[::-1] and image.record["slice"]["plane"] == "mid-sagittal"
    assert image.record["slice"]["yaw_deg"] == pytest.approx(8, abs=1) and image.record["slice"]["confidence"] > 0.5
    h, w = (min(a, b) for a, b in zip(image.pixels.shape, direct.values.shape, strict=True))
    assert np.corrcoef(image.pixels[:h, :w].ravel(), np.nan_to_num(direct.values[:h, :w], nan=-1000).ravel())[0, 1] > 0.97
    json.dumps(image.record, default=list)


def test_the_largest_ct_series_is_taken_and_the_rest_told(tmp_path, small_head):
    volume, _ = small_head
    write_series(tmp_path / "all", volume, uid="1.2.3")
    write_series(tmp_path / "all", Volume(volume.values[:20], volume.affine, True, {}), uid="1.2.4")
    write_series(tmp_path / "all", Volume(np.repeat(volume.values, 2, 0)[:150], volume.affine, True, {}), uid="1.2.5",
                 Modality="MR")
    localiser = ct(volume.values[0].astype(np.int16), SeriesInstanceUID="1.2.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(localiser, tmp_path / "all/localiser")
    (tmp_path / "all/notes.txt").write_text("seen")
    read = read_series(tmp_path / "all")
    assert read.values.shape == volume.values.shape
    assert read.record["warnings"] == ["2 other series were left out",
                                       "1 files of the series with another size or orientation were left out",
                                       "1 files that are no readable DICOM were left out"]
    np.testing.assert_allclose(read.values, volume.values, atol=0.51)


def test_a_gap_is_interpolated_and_told(tmp_path, small_head):
    volume, _ = small_head
    write_series(tmp_path / "series", volume, skip=(50, 51))
    read = read_series(tmp_path / "series")
    assert read.values.shape == volume.values.shape
    assert read.record["warnings"] == ["slices are uneven (1.40 to 4.20 mm apart); missing ones were interpolated"]
    near = volume.values.clip(-1000, 3095)
    np.testing.assert_allclose(read.values[50], near[49] * 2 / 3 + near[52] / 3, atol=1)
    np.testing.assert_allclose(read.values[53], near[53], atol=1)


def test_a_slice_far_away_is_refused_before_anything_is_allocated(tmp_path):
    folder = tmp_path / "far"
    folder.mkdir()
    for k, z in enumerate((0.0, 1.0, 2.0, 1e9)):
        save(ct(picture().astype(np.uint16), InstanceNumber=k, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                ImagePositionPatient=[0, 0, z]), folder / f"{k}")
    with pytest.raises(ImageError, match=r"far: slices are missing or too many \(4 over 1e\+09 mm\)"):
        read_image(folder)


def test_doubled_slices_and_missing_positions_are_told(tmp_path, small_head):
    volume, _ = small_head
    write_series(tmp_path / "a", volume)
    write_series(tmp_path / "b", volume)
    for path in (tmp_path / "b").iterdir():
        path.rename(tmp_path / "a" / f"again-{path.name}")
    read = read_series(tmp_path / "a")
    assert read.values.shape == volume.values.shape
    assert read.record["warnings"] == [f"{len(volume.values)} slices at a place already taken were left out"]
    stack = volume.values[:10]
    folder = tmp_path / "c"
    folder.mkdir()
    for k in range(10):
        save(ct(stack[k].astype(np.int16), InstanceNumber=10 - k, SpacingBetweenSlices=0.9, ImageOrientationPatient=None),
             folder / f"{k}")
    read = read_series(folder)
    assert (read.values == stack[::-1].astype(np.int16)).all() and not read.oriented
    assert read.voxel_mm == pytest.approx([0.9, 0.3, 0.3])
    assert read.record["warnings"] == ["the orientation is missing; axial slices from foot to head were assumed",
                                       "the position of slices is missing; they were stacked by their number"]


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    stack = np.random.default_rng(0).integers(0, 100, (5, 40, 40)).astype(np.uint16)
    folder = tmp_path / "tilted"
    folder.mkdir()
    for k in range(5):
        save(ct(stack[k], InstanceNumber=k, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                ImagePositionPatient=[0, 0.3 * k, 1.0 * k]), folder / f"{k}")
    np.testing.assert_allclose(read_series(folder).affine[:3, 0], [0, 0.3, 1.0], atol=1e-9)


def test_a_series_of_one_slice_is_an_image(tmp_path):
    (tmp_path / "one").mkdir()
    save(ct(picture().astype(np.uint16)), tmp_path / "one/slice")
    assert isinstance(read_series(tmp_path / "one"), DicomImage)
    assert (read_image(tmp_path / "one").pixels == read_image(tmp_path / "one/slice").pixels).all()


@pytest.mark.parametrize("compress", [None, RLELossless])
def test_enhanced_multi_frame_files_are_volumes(tmp_path, small_head, compress):
    """Frames out of order, each with its own position and rescale in the functional groups."""
    volume, left = small_head
    order = np.random.default_rng(1).permutation(len(volume.values))
    stored = np.clip(volume.values + 1000, 0, 4095).round().astype(np.uint16)[order]
    data = ct(stored, PixelSpacing=None, ImageOrientationPatient=None)
    shared, measures, facing = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.4, 1.4], 1.4
    facing.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [facing]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in order:
        frame, place, transform = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in volume.affine[:3, 3] + [0, 0, 1.4 * k]]
        transform.RescaleSlope, transform.RescaleIntercept = 1.0, -1000.0 if k % 2 else -900.0
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [transform]
        groups.append(frame)
    data.PerFrameFunctionalGroupsSequence = groups
    if compress:
        data.compress(compress)
    read = read_dicom(save(data, tmp_path / "enhanced"))
    want = volume.values + np.where(np.arange(len(order)) % 2, 0, 100)[:, None, None]
    np.testing.assert_allclose(read.values, want, atol=0.51)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-6)
    assert read.record["warnings"] == []


def test_classic_multi_frame_files_are_stacked_by_their_spacing(tmp_path, small_head):
    volume, _ = small_head
    stored = np.clip(volume.values + 1000, 0, 4095).round().astype(np.uint16)
    data = ct(stored, PixelSpacing=[1.4, 1.4], SpacingBetweenSlices=1.4, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    image = read_image(save(data, tmp_path / "frames"))
    assert image.record["slice"]["yaw_deg"] == pytest.approx(8, abs=1)
    assert image.record["volume"]["voxel_mm"] == [1.4, 1.4, 1.4]
    assert image.record["warnings"] == ["the position of slices is missing; they were stacked by their number"]


@pytest.mark.parametrize("name", VOLUMES)
def test_one_volume_in_each_encoding_gives_the_same_voxels(tmp_path, name):
    values = np.random.default_rng(5).integers(-1000, 3000, (6, 40, 50)).astype(np.float32)
    path = write_volume(tmp_path / "volume", values, 0.8, name)
    read = read_series(path) if path.is_dir() else read_dicom(path)
    assert (read.values == values).all() and read.oriented and read.record["warnings"] == []
    assert read.voxel_mm == pytest.approx([0.8, 0.8, 0.8])


def test_frames_that_face_another_way_are_left_out(tmp_path):
    data = enhanced(np.random.default_rng(0).integers(0, 4000, (5, 40, 40)).astype(np.uint16))
    face = Dataset()
    face.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    data.PerFrameFunctionalGroupsSequence[0].PlaneOrientationSequence = [face]
    read = read_dicom(save(data, tmp_path / "frames"))
    assert read.values.shape == (4, 40, 40) and read.record["warnings"] == ["1 frames with another orientation were left out"]


def test_a_folder_of_two_patients_is_told_without_their_names(tmp_path):
    for k in range(5):
        save(ct(picture().astype(np.uint16) + k, PatientID=f"SECRET{k // 3}", SeriesInstanceUID=f"1.{k // 3}", InstanceNumber=k,
                ImagePositionPatient=[k, 0, 0]), tmp_path / f"{k}")
    record = read_series(tmp_path).record
    assert record["warnings"] == ["the folder holds images of 2 patients; the largest series was read", "1 other series was left out"]
    assert record["series"] == {"files": 3, "series": 2, "patients": 2} and "SECRET" not in json.dumps(record)


def directory(path: Path, *listed) -> Path:
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID, data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.2.1", "1.2.840.10008.1.3.10"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.DirectoryRecordSequence = []
    for parts in listed:
        item = Dataset()
        item.DirectoryRecordType, item.ReferencedFileID = "IMAGE", parts
        data.DirectoryRecordSequence.append(item)
    path.write_bytes(bytes_of(data))
    return path


def test_a_dicomdir_is_followed_within_its_folder_only(tmp_path):
    disc = tmp_path / "disc"
    (disc / "A").mkdir(parents=True)
    save(ct(picture().astype(np.uint16)), disc / "A/LISTED")
    save(ct((picture() // 2).astype(np.uint16)), disc / "A/STRAY")
    save(ct(picture().astype(np.uint16)), tmp_path / "OUTSIDE")
    image = read_image(directory(disc / "DICOMDIR", ["A", "LISTED"], ["..", "OUTSIDE"], ["A", "GONE"], [str(tmp_path / "OUTSIDE")]))
    assert image.record["series"]["files"] == 1 and image.record["window"] == expected(picture())[1]
    assert image.record["warnings"] == ["2 files that the DICOMDIR lists lie outside its folder and were not read",
                                        "1 files that the DICOMDIR lists are missing"]


def test_a_dicomdir_stands_for_its_folder():
    with pytest.raises(ImageError) as by_file:
        read_image(PYDICOM_FILES / "dicomdirtests/DICOMDIR")
    with pytest.raises(ImageError) as by_folder:
        read_image(PYDICOM_FILES / "dicomdirtests")
    assert str(by_file.value).split(": ")[1] == str(by_folder.value).split(": ")[1] and "too coarse" in str(by_file.value)


def test_the_reader_changes_no_file(tmp_path):
    path = save(ct(picture().astype(np.uint16)), tmp_path / "slice")
    before = path.read_bytes()
    first = read_image(path).pixels
    assert (read_image(path).pixels == first).all() and path.read_bytes() == before and reader.SMALLEST == 32
