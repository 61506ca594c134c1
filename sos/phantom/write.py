"""A virtual cohort on disk: one image, DICOM or screenshot (or, asked for volumes, a folder of axial slices), and one mask a patient,
and a manifest beside them.

Everything is a function of the seed, the patient's index and the difficulty: same seed, same bytes, whatever the number of workers.
"""

import csv
import io
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import source_digest
from ..cores import processes
from ..errors import CohortError
from .anatomy import Section, draw_section
from .difficulty import Difficulty
from .export import SUFFIXES, Export, draw_export, export_patient
from .header import patient_id
from .population import Person, draw_person
from .scanner import Exposure, draw_exposure, expose
from .series import draw_scan, true_slice, write_series

COLUMNS = ("patient_id", "image", "stage", "age_y", "sex", "x0", "y0", "x1", "y1", "split", "mask", "spacing_mm", "device", "export",
           "cohort_kind", "stage_true", "rater_1", "rater_2", "rater_3", "closed", "gap_mm", "scar", "maturity_y", "joint_x",
           "joint_y", "pitch_deg", "off_mm")
#: The truth about a volume, in patient coordinates (x left, y back, z to the head): normal of the mid-sagittal plane and a point on
#: it, the head's turn and shift, the joint's centre.
VOLUME_COLUMNS = COLUMNS + ("nx", "ny", "nz", "px", "py", "pz", "yaw_deg", "roll_deg", "shift_x_mm", "shift_y_mm", "shift_z_mm",
                            "joint_x_mm", "joint_y_mm", "joint_z_mm")


@dataclass(frozen=True)
class Patient:
    """One drawn patient: `pixels` (h, w) int16 grey values, `mask` (h, w) bool of the joint, `box` (x0, y0, x1, y1) in pixels,
    the truth; `export`: which file is made of it."""

    seed: int
    index: int
    person: Person
    exposure: Exposure
    section: Section
    pixels: np.ndarray
    mask: np.ndarray
    box: tuple[float, float, float, float]
    joint_px: tuple[float, float]
    export: Export
    difficulty: Difficulty = Difficulty()

    @property
    def patient_id(self) -> str:
        return patient_id(self.seed, self.index, self.difficulty)


def draw_patient(seed: int, index: int, difficulty: Difficulty = Difficulty()) -> Patient:
    """Draw patient `index` of the cohort `seed`: person, anatomy, scan, expert's box, kind of file; the same person at every difficulty."""
    who, what, how, file = np.random.default_rng([seed, index]).spawn(4)
    person = draw_person(seed, index, who, difficulty)
    exposure = draw_exposure(how, difficulty)
    section = draw_section(person, what, exposure.shape, exposure.voxel_mm, exposure.pitch_deg, exposure.joint_px,
                           exposure.off_mm)
    pixels = expose(section.hu, exposure, how, section.landmarks)
    mask, box, (x, y) = section.joint, expert_box(section, exposure, how), section.landmarks["joint"]
    if exposure.mirrored:
        w = pixels.shape[1]
        pixels, mask, box, x = np.ascontiguousarray(pixels[:, ::-1]), mask[:, ::-1], (w - box[2], box[1], w - box[0],
                                                                                      box[3]), w - 1 - x
    return Patient(seed, index, person, exposure, section, pixels, mask, box, (float(x), float(y)), draw_export(file), difficulty)


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


def write_patient(job: tuple[Path, int, int, Difficulty]) -> dict:
    """Draw and write one patient; job is (cohort folder, seed, index, difficulty). Returns the manifest row."""
    out, seed, index, difficulty = job
    patient = draw_patient(seed, index, difficulty)
    file = export_patient(patient)
    image = f"images/{patient.patient_id}{patient.export.suffix}"
    _replace(out / image, file.data)
    for suffix in set(SUFFIXES) - {patient.export.suffix}:  # what another recipe made of this patient
        (out / "images" / f"{patient.patient_id}{suffix}").unlink(missing_ok=True)
    exposure = replace(patient.exposure, voxel_mm=file.spacing_mm)
    return dict(zip(COLUMNS, _row(out, patient.patient_id, patient.person, exposure, image, patient.export.kind, file.mask, file.box,
                                  file.joint_px), strict=True))


def write_volume(job: tuple[Path, int, int, Difficulty]) -> dict:
    """Draw and write one patient as a series of axial slices, unless it is there; job as in `write_patient`. Returns the row.

    Box, mask and joint of the row are in pixels of the slice that `read_image` cuts where it finds the true mid-sagittal plane.
    """
    out, seed, index, difficulty = job
    scan = draw_scan(seed, index, difficulty)
    truth = true_slice(scan)
    section, name = truth.section, patient_id(seed, index, difficulty)
    image = f"volumes/{name}"
    if not (out / image).is_dir():
        write_series(out / image, scan)
    box = expert_box(section, truth.exposure, np.random.default_rng([seed, index, 1]))
    values = (*_row(out, name, scan.person, truth.exposure, image, "dicom-series", section.joint, box, section.landmarks["joint"]),
              *(f"{v:.6f}" for v in scan.plane.normal), *(f"{v:.3f}" for v in scan.plane.offset_mm * scan.plane.normal),
              *(f"{v:.3f}" for v in (*scan.turn_deg[:2], *scan.shift_mm, *scan.joint_mm)))
    return dict(zip(VOLUME_COLUMNS, values, strict=True))


def _row(out, name, person: Person, exposure: Exposure, image: str, kind: str, mask, box, joint_px) -> tuple:
    """Values of COLUMNS; writes the mask on the way."""
    buffer, file = io.BytesIO(), f"masks/{name}.png"
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=1)
    _replace(out / file, buffer.getvalue())
    return (name, image, person.stage, f"{person.age_y:.2f}", person.sex, *(f"{v:g}" for v in box), "", file,
            f"{exposure.voxel_mm:g}", exposure.preset.name, kind, "virtual", person.fusion.stage, *person.raters,
            f"{person.fusion.closed:.4f}", f"{person.fusion.gap_mm:.3f}", f"{person.fusion.scar:.4f}", f"{person.maturity_y:.3f}",
            *(f"{v:.2f}" for v in joint_px), f"{exposure.pitch_deg:.2f}", f"{exposure.off_mm:.2f}")


def write_cohort(out, patients: int, seed: int, workers: int | None = None, progress: bool = False, difficulty: float = 1.0,
                 volumes: bool = False) -> Path:
    """Write a virtual cohort of `patients` to the folder `out` and return the path of its manifest.

    difficulty: 0 as easy as a textbook picture, 1 the standard cohort, 2 hard (see the room `difficulty`). volumes: for each patient a
    folder of axial slices (about 120 to 160 MB) in place of one sagittal image. Does nothing where the manifest exists with the same
    recipe (`cohort.json`); an interrupted run goes on, and keeps the volumes that are whole. `workers=None` uses all usable cores; the
    bytes do not depend on it. Raises CohortError for an impossible number or another cohort's folder.
    """
    if patients < 1 or seed < 0:
        raise CohortError(f"a virtual cohort needs patients >= 1 and seed >= 0, not {patients} and {seed}")
    how_hard, out, ours = Difficulty(difficulty), Path(out), recipe(patients, seed, difficulty, volumes)
    manifest, card = out / "manifest.csv", out / "cohort.json"
    if holds(out, ours):
        return manifest
    (out / ("volumes" if volumes else "images")).mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    manifest.unlink(missing_ok=True)
    names = {patient_id(seed, index, how_hard) for index in range(patients)}
    begun = card.is_file() and json.loads(card.read_text()) == ours
    _clear(out, {"images": set() if volumes else names, "masks": names, "volumes": names if volumes and begun else set()})
    _replace(card, (json.dumps(ours, indent=1) + "\n").encode())
    jobs = [(out, seed, index, how_hard) for index in range(patients)]
    write, columns, batch = (write_volume, VOLUME_COLUMNS, 1) if volumes else (write_patient, COLUMNS, 8)
    # a pool takes about a second to start: not worth it for a few images
    workers = min(workers or len(os.sched_getaffinity(0)), -(-patients // batch))
    if workers == 1:
        rows = list(_watched(map(write, jobs), patients, progress))
    else:
        with processes(workers) as pool:
            even = -(-patients // (4 * workers))  # so many in a batch that no worker is left alone for long
            rows = list(_watched(pool.map(write, jobs, chunksize=min(batch, even)), patients, progress))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _replace(manifest, text.getvalue().encode())
    return manifest


def recipe(patients: int, seed: int, difficulty: float = 1.0, volumes: bool = False) -> dict:
    """All that a cohort's files depend on, as kept in its `cohort.json`."""
    return {"kind": "virtual volumes" if volumes else "virtual", "patients": int(patients), "seed": int(seed), "difficulty": float(difficulty),
            "fingerprint": fingerprint()}


def holds(out: Path, ours: dict) -> bool:
    """Whether the folder `out` holds the whole cohort of the recipe `ours`."""
    card = out / "cohort.json"
    return (out / "manifest.csv").is_file() and card.is_file() and json.loads(card.read_text()) == ours


@cache
def fingerprint() -> str:
    """Short hash of the code that draws, so that a changed phantom makes a new cohort."""
    return source_digest(Path(__file__).parent)[:16]


def _clear(out: Path, keep: dict[str, set[str]]) -> None:
    """Remove what an earlier recipe or an interrupted run left in the cohort's folders, except what is named in `keep`."""
    for folder, names in keep.items():
        for path in (out / folder).iterdir() if (out / folder).is_dir() else ():
            name = re.fullmatch(r"\.?(V\d{4,}-\d{5}(?:-d[\d.e+-]+?)?)(\.dcm|\.png|\.jpg)?(\.\d+)?", path.name)
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
