"""Small DICOM files and pictures made for tests, in every encoding that the reader knows."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
    JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid)

ROWS, COLUMNS = 60, 80


def picture(bits: int = 12) -> np.ndarray:
    """(60, 80) int32 from 0 to 2**bits - 1: a ramp, a disc, noise; no symmetry, so that a flip or a transposition is seen."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    grey = 0.2 + 0.5 * x / COLUMNS + 0.2 * y / ROWS + 0.3 * ((x - 20) ** 2 + (y - 40) ** 2 < 90)
    grey += np.random.default_rng(0).normal(0, 0.02, grey.shape)
    return np.clip(grey / 1.3 * (2**bits - 1), 0, 2**bits - 1).round().astype(np.int32)


def ct(stored: np.ndarray, *, syntax=ExplicitVRLittleEndian, bits=None, **attributes) -> Dataset:
    """A CT data set of (h, w), (h, w, 3) or (frames, h, w) integers in `stored`, its attributes overridden by keyword; None
    removes one."""
    frames = stored.shape[0] if stored.ndim == 3 and stored.shape[-1] != 3 else 1
    samples = 3 if stored.shape[-1] == 3 else 1
    allocated = 8 * stored.dtype.itemsize
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[stored.tobytes().hex()])
    data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "CT", "1.2.3", 1
    data.Rows, data.Columns = stored.shape[-2:] if samples == 1 else stored.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = samples, "MONOCHROME2" if samples == 1 else "RGB"
    if samples == 3:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    data.BitsAllocated, data.BitsStored, data.PixelRepresentation = allocated, bits or allocated, int(stored.dtype.kind == "i")
    data.HighBit = data.BitsStored - 1
    data.PixelSpacing = [0.3, 0.3]
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    data.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OB" if allocated == 8 else "OW"
    for name, value in attributes.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    return data


def save(data: Dataset, path: Path) -> Path:
    if data.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and data.BitsAllocated == 16:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    with warnings.catch_warnings():  # a test file may hold what pydicom warns of
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def encoded(array: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom_bytes(**attributes) -> bytes:
    buffer = io.BytesIO()
    ct(picture().astype(np.uint16), **attributes).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    files = {"explicit": dicom_bytes(RescaleSlope=1.5), "implicit": dicom_bytes(syntax=ImplicitVRLittleEndian),
             "deflated": dicom_bytes(syntax=DeflatedExplicitVRLittleEndian),
             "MONOCHROME1": dicom_bytes(PhotometricInterpretation="MONOCHROME1"),
             "png": encoded(picture(16).astype(np.uint16), "PNG"), "jpeg": encoded(picture(8).astype(np.uint8), "JPEG"),
             "tiff": encoded(picture(8).astype(np.uint8), "TIFF", compression="tiff_lzw")}
    for name, syntax in (("RLE", RLELossless), ("JPEG 2000", JPEG2000Lossless)):
        data, buffer = ct(picture().astype(np.uint16)), io.BytesIO()
        if syntax == RLELossless:
            data.compress(syntax)
        else:
            data.file_meta.TransferSyntaxUID = syntax
            data.PixelData = encapsulate([encoded(picture().astype(np.uint16), "JPEG2000", irreversible=False, no_jp2=True)])
            data["PixelData"].is_undefined_length = True
        data.save_as(buffer, enforce_file_format=True)
        files[name] = buffer.getvalue()
    volume, buffer = ct(np.stack([picture()] * 3).astype(np.uint16), PixelPaddingValue=5), io.BytesIO()
    volume.save_as(buffer, enforce_file_format=True)
    return files | {"frames": buffer.getvalue()}


def bytes_of(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def in_stream(stored: np.ndarray, syntax, stream: bytes, **attributes) -> Dataset:
    """A data set whose one frame is `stream`, of `syntax`; `stored` gives it its header."""
    data = ct(stored, syntax=syntax, **attributes)
    data.PixelData = encapsulate([stream])
    data["PixelData"].is_undefined_length = True
    return data


#: One volume in each: syntax, how it is made, and what else is different.
VOLUMES = {
    "implicit": dict(syntax=ImplicitVRLittleEndian), "explicit": dict(), "big endian": dict(syntax=ExplicitVRBigEndian),
    "deflated": dict(syntax=DeflatedExplicitVRLittleEndian), "RLE": dict(compress=RLELossless), "JPEG-LS": dict(compress=JPEGLSLossless),
    "JPEG 2000": dict(compress=JPEG2000Lossless), "JPEG lossless": dict(compress=JPEGLosslessSV1), "MONOCHROME1": dict(inverted=True),
    "enhanced": dict(frames=True), "enhanced, RLE": dict(frames=True, compress=RLELossless)}


def write_volume(path: Path, values: np.ndarray, voxel_mm: float, name: str) -> Path:
    """Axial `values` (z, y, x) from -1000 to 3095 in the encoding `name` of VOLUMES: a folder of slices or, where enhanced, one file."""
    how = VOLUMES[name]
    stored = (values.astype(np.int32) + 1000).clip(0, 4095).astype(np.uint16)
    syntax, compress = how.get("syntax", ExplicitVRLittleEndian), how.get("compress")
    if how.get("frames"):
        data = enhanced(stored, voxel_mm)
        if compress:
            data.compress(compress)
        return save(data, path)
    path.mkdir()
    for k, image in enumerate(4095 - stored if how.get("inverted") else stored):
        data = ct(image, syntax=syntax, bits=12, InstanceNumber=k + 1, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], RescaleIntercept=-1000.0,
                  ImagePositionPatient=[0.0, 0.0, round(k * voxel_mm, 4)], PixelSpacing=[voxel_mm, voxel_mm], SliceThickness=voxel_mm)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(k)])
        if how.get("inverted"):
            data.PhotometricInterpretation = "MONOCHROME1"
        if compress and compress != JPEGLosslessSV1:
            data.compress(compress, generate_instance_uid=False)
        save(data, path / f"{k:04d}")
        if compress == JPEGLosslessSV1:
            lossless_jpeg(path / f"{k:04d}")
    return path


def lossless_jpeg(path: Path) -> None:
    """Compress a file in place by gdcm: pydicom has no encoder of it."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def enhanced(stored: np.ndarray, voxel_mm: float = 0.5) -> Dataset:
    """A multi-frame CT of `stored` (frames, h, w) uint16 with functional groups, rescaled by -1000."""
    data = ct(stored, bits=12, PixelSpacing=None, ImageOrientationPatient=None)
    shared, measures, face = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [voxel_mm, voxel_mm], voxel_mm
    face.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [face]
    data.SharedFunctionalGroupsSequence, groups = [shared], []
    for k in range(len(stored)):
        frame, place, transform = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, round(voxel_mm * k, 4)]
        transform.RescaleSlope, transform.RescaleIntercept = 1.0, -1000.0
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [transform]
        groups.append(frame)
    data.PerFrameFunctionalGroupsSequence = groups
    return data


def with_palette(data: Dataset, table: np.ndarray) -> Dataset:
    """`table` (n,) uint16 as all three palettes of an 8-bit data set."""
    data.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [len(table) % 65536, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    return data


def more_seeds() -> dict[str, bytes]:
    """`seeds`, and rarer kinds: to be damaged."""
    grey, word = picture(8).astype(np.uint8), picture().astype(np.uint16)
    rgb = np.stack([grey, grey[::-1], 255 - grey], -1)
    frames = enhanced(np.stack([np.roll(picture(), k) for k in range(4)]).astype(np.uint16))
    frames.compress(RLELossless)
    jpeg_ls = ct(word)
    jpeg_ls.compress(JPEGLSLossless)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.add_new("LUTData", "OW", np.arange(4096).astype("<u2").tobytes())
    return seeds() | {
        "big endian": dicom_bytes(syntax=ExplicitVRBigEndian), "JPEG-LS": bytes_of(jpeg_ls), "enhanced": bytes_of(frames),
        "JPEG in DICOM": bytes_of(in_stream(grey, JPEGBaseline8Bit, encoded(grey, "JPEG"))),
        "progressive in DICOM": bytes_of(in_stream(grey, JPEGBaseline8Bit, encoded(grey, "JPEG", progressive=True))),
        "palette": bytes_of(with_palette(ct(grey), np.arange(256) * 257)), "RGB": bytes_of(ct(rgb)),
        "YBR": bytes_of(ct(rgb, PhotometricInterpretation="YBR_FULL")),
        "tables": bytes_of(ct(word, bits=12, ModalityLUTSequence=[table], VOILUTSequence=[table])),
        "progressive": encoded(grey, "JPEG", progressive=True), "RGBA": encoded(np.dstack([rgb, grey]), "PNG"),
        "tiff of JPEG": encoded(rgb, "TIFF", compression="jpeg"), "tiff deflated": encoded(word, "TIFF", compression="tiff_adobe_deflate")}
