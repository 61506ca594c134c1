"""What all DICOM files of a virtual patient have in common: who it is, by which device, on which grey scale. No dates, no names."""

import hashlib
import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from .difficulty import Difficulty
from .population import Person
from .scanner import Preset

WINDOW = 400, 3000  # centre and width that the files suggest


def patient_id(seed: int, index: int, difficulty: Difficulty = Difficulty()) -> str:
    """Anonymous identifier of one virtual patient: `V0007-00003`, at another difficulty than 1 `V0007-00003-d0.5`."""
    return f"V{seed:04d}-{index:05d}{difficulty.mark}"


def uid(*parts) -> str:
    """Deterministic DICOM UID below 2.25 from `parts`."""
    digest = hashlib.sha256("/".join(map(str, ("sos-phantom",) + parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def patient_uid(seed: int, index: int, difficulty: Difficulty, *parts) -> str:
    """UID of one part of a patient's records: `instance`, `study`, …"""
    return uid(seed, f"{index}{difficulty.mark}", *parts)


def ct_header(seed: int, index: int, difficulty: Difficulty, person: Person, preset: Preset, voxel_mm: float) -> Dataset:
    """Identity, device and grey scale as a data set of the CT Image Storage class; place, size and pixels are still missing."""
    who = seed, index, difficulty
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = patient_uid(*who, "instance")
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ds.PatientBirthDate = ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "sos virtual scanner", preset.name
    ds.PatientName, ds.PatientID = f"Virtual^{patient_id(*who)}", patient_id(*who)
    ds.PatientSex, ds.PatientAge = person.sex, f"{int(person.age_y):03d}Y"
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "virtual patient"
    ds.SliceThickness, ds.KVP = f"{voxel_mm:g}", "90"
    ds.StudyInstanceUID = patient_uid(*who, "study")
    ds.SeriesInstanceUID = patient_uid(*who, "series")
    ds.FrameOfReferenceUID = patient_uid(*who, "frame")
    ds.Laterality, ds.PatientPosition = "", "HFS"  # the validator wants it, empty for a head
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber, ds.PositionReferenceIndicator = "1", "1", "1", "1", ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelSpacing = [f"{voxel_mm:g}", f"{voxel_mm:g}"]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, preset.bits, preset.bits - 1, 0
    ds.WindowCenter, ds.WindowWidth = map(str, WINDOW)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(preset.intercept), "1", "US"
    return ds


def dicom_bytes(ds: Dataset, pixels: np.ndarray, compression: tuple[str, str] | None = None) -> bytes:
    """A file of the data set `ds` with grey values (h, w), which are stored less its rescale intercept; MONOCHROME1 holds the complement
    within the bits stored. compression: transfer syntax and the name of pydicom's encoder; None: explicit VR little endian."""
    stored = pixels.astype(np.int32) - int(ds.RescaleIntercept)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        stored = (1 << ds.BitsStored) - 1 - stored
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelData = stored.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = uid("implementation"), "SOS_PHANTOM"
    ds.file_meta = meta
    if compression is not None:
        syntax, encoder = compression
        ds.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
