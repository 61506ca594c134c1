"""A virtual cohort on disk: one CT DICOM file (or, asked for volumes, a folder of axial slices) and one mask a patient, and a
manifest beside them.

Everything is a function of the seed and the patient's index: same seed, same bytes, whatever the number of workers.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import source_digest
from ..errors import CohortError
from .anatomy import Section, draw_section
from .population import Person, draw_person
from .scanner import Exposure, Preset, draw_exposure, expose
from .series import draw_scan, true_slice, write_series

COLUMNS = ("patient_id", "image", "stage", "age_y", "sex", "x0", "y0", "x1", "y1", "split", "mask", "spacing_mm", "device",
           "cohort_kind", "stage_true", "rater_1", "rater_2", "rater_3", "closed", "gap_mm", "scar", "maturity_y", "joint_x",
           "joint_y", "pitch_deg", "off_mm")
#: The truth about a volume, in patient coordinates (x left, y back, z to the head): normal of the mid-sagittal plane and a point on
#: it, the head's turn and shift, the joint's centre.
VOLUME_COLUMNS = COLUMNS + ("nx", "ny", "nz", "px", "py", "pz", "yaw_deg", "roll_deg", "shift_x_mm", "shift_y_mm", "shift_z_mm",
                            "joint_x_mm", "joint_y_mm", "joint_z_mm")


@dataclass(frozen=True)
class Patient:
    """One drawn patient: `pixels` (h, w) int16 grey values, `mask` (h, w) bool of the joint, `box` (x0, y0, x1, y1) in pixels,
    the truth."""

    seed: int
    index: int
    person: Person
    exposure: Exposure
    section: Section
    pixels: np.ndarray
    mask: np.ndarray
    box: tuple[float, float, float, float]
    joint_px: tuple[float, float]

    @property
    def patient_id(self) -> str:
        return patient_id(self.seed, self.index)


def patient_id(seed: int, index: int) -> str:
    """Anonymous identifier of one virtual patient."""
    return f"V{seed:04d}-{index:05d}"


def draw_patient(seed: int, index: int) -> Patient:
    """Draw patient `index` of the cohort `seed`: person, anatomy, scan, expert's box."""
    who, what, how = np.random.default_rng([seed, index]).spawn(3)
    person = draw_person(seed, index, who)
    exposure = draw_exposure(how)
    section = draw_section(person, what, exposure.shape, exposure.voxel_mm, exposure.pitch_deg, exposure.joint_px,
                           exposure.off_mm)
    pixels = expose(section.hu, exposure, how, section.landmarks)
    mask, box, (x, y) = section.joint, expert_box(section, exposure, how), section.landmarks["joint"]
    if exposure.mirrored:
        w = pixels.shape[1]
        pixels, mask, box, x = np.ascontiguousarray(pixels[:, ::-1]), mask[:, ::-1], (w - box[2], box[1], w - box[0],
                                                                                      box[3]), w - 1 - x
    return Patient(seed, index, person, exposure, section, pixels, mask, box, (float(x), float(y)))


def expert_box(section: Section, exposure: Exposure, rng) -> tuple[float, float, float, float]:
    """Box round clivus and sphenoid body as a person drags it: (x0, y0, x1, y1), 12 to 27 % of the width, always holding the
    joint."""
    (h, w), mm = exposure.shape, exposure.voxel_mm
    low, high = section.landmarks["extent"].min(0) - 2.0 / mm, section.landmarks["extent"].max(0) + 2.0 / mm
    low, high = low + rng.normal(0, 1.2, 2) / mm, high + rng.normal(0, 1.2, 2) / mm
    size = np.clip(high - low, 0.12 * w, 0.27 * w)
    ys, xs = np.nonzero(section.joint)
    middle = 0.5 * (low + high)
    first = np.minimum(np.maximum(middle - size / 2, (xs.max() + 2 - size[0], ys.max() + 2 - size[1])),
                       (xs.min() - 1, ys.min() - 1))
    x0, y0 = np.clip(np.floor(first), 0, (w, h) - np.ceil(size))
    x1, y1 = (x0, y0) + np.ceil(size)
    return float(x0), float(y0), float(x1), float(y1)


def uid(*parts) -> str:
    """Deterministic DICOM UID below 2.25 from `parts`."""
    digest = hashlib.sha256("/".join(map(str, ("sos-phantom",) + parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def ct_header(seed: int, index: int, person: Person, preset: Preset, voxel_mm: float):
    """What the files of one virtual patient have in common, as a data set: identity (no dates, no names), device, grey scale."""
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage

    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = uid(seed, index, "instance")
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ds.PatientBirthDate = ""
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "sos virtual scanner", preset.name
    ds.PatientName, ds.PatientID = f"Virtual^{patient_id(seed, index)}", patient_id(seed, index)
    ds.PatientSex, ds.PatientAge = person.sex, f"{int(person.age_y):03d}Y"
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "virtual patient"
    ds.SliceThickness, ds.KVP = f"{voxel_mm:g}", "90"
    ds.StudyInstanceUID = uid(seed, index, "study")
    ds.SeriesInstanceUID = uid(seed, index, "series")
    ds.FrameOfReferenceUID = uid(seed, index, "frame")
    ds.Laterality, ds.PatientPosition = "", "HFS"
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber, ds.PositionReferenceIndicator = "1", "1", "1", "1", ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelSpacing = [f"{voxel_mm:g}", f"{voxel_mm:g}"]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, preset.bits, preset.bits - 1, 0
    ds.WindowCenter, ds.WindowWidth = "400", "3000"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(preset.intercept), "1", "US"
    return ds


def to_dicom(patient: Patient) -> bytes:
    """The patient as a CT Image Storage file (explicit VR little endian, 16 bit, no dates, no names)."""
    mm = patient.exposure.voxel_mm
    ds = ct_header(patient.seed, patient.index, patient.person, patient.exposure.preset, mm)
    # columns run to the front (-y of the patient) in a head facing right, rows down (-z)
    forward = 1 if patient.exposure.mirrored else -1
    ds.ImageOrientationPatient = ["0", str(forward), "0", "0", "0", "-1"]
    x, y = patient.joint_px  # the origin of the frame of reference is the joint
    ds.ImagePositionPatient = [f"{patient.exposure.off_mm:.2f}", f"{-forward * x * mm:.2f}", f"{y * mm:.2f}"]
    return dicom_bytes(ds, patient.pixels)


def dicom_bytes(ds, pixels: np.ndarray) -> bytes:
    """A file of the data set `ds` with grey values (h, w), which are stored less the data set's rescale intercept."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    ds.Rows, ds.Columns = pixels.shape
    ds.PixelData = (pixels.astype(np.int32) - int(ds.RescaleIntercept)).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = uid("implementation"), "SOS_PHANTOM"
    ds.file_meta = meta
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_patient(job: tuple[Path, int, int]) -> dict:
    """Draw and write one patient; job is (cohort folder, seed, index). Returns the manifest row."""
    out, seed, index = job
    patient = draw_patient(seed, index)
    person, exposure = patient.person, patient.exposure
    image = f"images/{patient.patient_id}.dcm"
    _replace(out / image, to_dicom(patient))
    return dict(zip(COLUMNS, _row(out, patient.patient_id, person, exposure, image, patient.mask, patient.box, patient.joint_px),
                    strict=True))


def write_volume(job: tuple[Path, int, int]) -> dict:
    """Draw and write one patient as a series of axial slices, unless it is there; job as in `write_patient`. Returns the row.

    Box, mask and joint of the row are in pixels of the slice that `read_image` cuts where it finds the true mid-sagittal plane.
    """
    out, seed, index = job
    scan = draw_scan(seed, index)
    truth = true_slice(scan)
    section, name = truth.section, patient_id(seed, index)
    image = f"volumes/{name}"
    if not (out / image).is_dir():
        write_series(out / image, scan)
    box = expert_box(section, truth.exposure, np.random.default_rng([seed, index, 1]))
    values = (*_row(out, name, scan.person, truth.exposure, image, section.joint, box, section.landmarks["joint"]),
              *(f"{v:.6f}" for v in scan.plane.normal), *(f"{v:.3f}" for v in scan.plane.offset_mm * scan.plane.normal),
              *(f"{v:.3f}" for v in (*scan.turn_deg[:2], *scan.shift_mm, *scan.joint_mm)))
    return dict(zip(VOLUME_COLUMNS, values, strict=True))


def _row(out, name, person: Person, exposure: Exposure, image: str, mask, box, joint_px) -> tuple:
    """Values of COLUMNS; writes the mask on the way."""
    buffer, file = io.BytesIO(), f"masks/{name}.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=1)
    _replace(out / file, buffer.getvalue())
    return (name, image, person.stage, f"{person.age_y:.2f}", person.sex, *(f"{v:g}" for v in box), "", file,
            f"{exposure.voxel_mm:g}", exposure.preset.name, "virtual", person.fusion.stage, *person.raters,
            f"{person.fusion.closed:.4f}", f"{person.fusion.gap_mm:.3f}", f"{person.fusion.scar:.4f}", f"{person.maturity_y:.3f}",
            *(f"{v:.2f}" for v in joint_px), f"{exposure.pitch_deg:.2f}", f"{exposure.off_mm:.2f}")


def write_cohort(out, patients: int, seed: int, workers: int | None = None, progress: bool = False, volumes: bool = False) -> Path:
    """Write a virtual cohort of `patients` to the folder `out` and return the path of its manifest.

    `volumes`: for each patient a folder of axial slices (about 120 to 160 MB) in place of one sagittal image. Does nothing where
    the manifest exists with the same recipe (`cohort.json`: patients, seed, fingerprint of the drawing code); an interrupted run
    goes on, and keeps the volumes that are whole. `workers=None` uses all usable cores; the bytes do not depend on it. Raises
    CohortError for an impossible number or another cohort's folder.
    """
    if patients < 1 or seed < 0:
        raise CohortError(f"a virtual cohort needs patients >= 1 and seed >= 0, not {patients} and {seed}")
    out = Path(out)
    manifest, card = out / "manifest.csv", out / "cohort.json"
    recipe = {"kind": "virtual", "patients": int(patients), "seed": int(seed), "fingerprint": fingerprint()}
    recipe |= {"volumes": True} if volumes else {}
    begun = card.is_file() and json.loads(card.read_text()) == recipe
    if begun and manifest.is_file():
        return manifest
    (out / ("volumes" if volumes else "images")).mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    manifest.unlink(missing_ok=True)
    names = {patient_id(seed, index) for index in range(patients)}
    _clear(out, {"images": set() if volumes else names, "masks": names, "volumes": names if volumes and begun else set()})
    _replace(card, (json.dumps(recipe, indent=1) + "\n").encode())
    jobs = [(out, seed, index) for index in range(patients)]
    write, columns, batch = (write_volume, VOLUME_COLUMNS, 1) if volumes else (write_patient, COLUMNS, 8)
    # a pool takes about a second to start: not worth it for a few images
    workers = min(workers or len(os.sched_getaffinity(0)), -(-patients // batch))
    if workers == 1:
        rows = list(_watched(map(write, jobs), patients, progress))
    else:
        # an executor, not a Pool: where a script lacks its `if __name__ == "__main__":` guard, it fails, a Pool would hang
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            rows = list(_watched(pool.map(write, jobs, chunksize=batch), patients, progress))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _replace(manifest, text.getvalue().encode())
    return manifest


def fingerprint() -> str:
    """Short hash of the code that draws, so that a changed phantom makes a new cohort."""
    return source_digest(Path(__file__).parent)[:16]


def _clear(out: Path, keep: dict[str, set[str]]) -> None:
    """Remove what an earlier recipe or an interrupted run left in the cohort's folders, except what is named in `keep`."""
    for folder, names in keep.items():
        for path in (out / folder).iterdir() if (out / folder).is_dir() else ():
            name = re.fullmatch(r"\.?(V\d{4,}-\d{5})(\.dcm|\.png)?(\.\d+)?", path.name)
            if name and (name[1] not in names or name[3]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _watched(rows, total, progress):
    if not progress:
        return rows
    from tqdm.auto import tqdm

    return tqdm(rows, total=total, unit="patient", desc="virtual cohort")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
