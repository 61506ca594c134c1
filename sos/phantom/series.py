"""A cone-beam scan of a whole virtual head: a series of axial CT slices, one DICOM file a slice, and the truth about its midline.

Patient coordinates in mm (x left, y back, z to the head), the origin in the middle of the field of view. The head is turned about
the joint's centre and moved, then laid on the scanner's grid by one trilinear interpolation; blur, cupping, noise, grey scale and
the cylinder of the reconstruction follow, slice by slice, so that the volume is never whole in memory.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from ..images.midsagittal import Plane, slice_index
from .anatomy import Section
from .difficulty import Difficulty
from .head import Middle, draw_head, draw_middle
from .header import ct_header, dicom_bytes, patient_uid
from .population import Person, draw_person
from .scanner import PRESETS, Exposure, Preset, bowl, lowpass, streaks

#: Cylinder of the reconstruction by field of view: diameter, height, edge of the cubic voxels (mm), and how far before and below
#: the middle of the field the joint would lie were the head not moved.
FIELDS = {"large": (184.0, 150.4, 0.4, 8.0, 6.0), "small": (140.0, 130.2, 0.35, 20.0, 6.0)}
#: Spread of yaw, roll and pitch in degrees and of the shift along x, y, z in mm, and where both are clipped.
TURN_SD_DEG, TURN_MAX_DEG = (5.0, 4.0, 5.5), 15.0
SHIFT_SD_MM, SHIFT_MAX_MM = (4.0, 6.0, 6.0), 15.0
SLAB = 8  # slices that are interpolated at once
PADDING = -1000  # grey value outside the cylinder


@dataclass(frozen=True)
class Scan:
    """One patient in the scanner. shape: (n, h, w) of the volume; `rotation` (3, 3) turns the level head's axes (left, back, up)
    into the patient's; `joint_mm` (3,) is the joint's centre; `middle` the level head's mid-sagittal section, drawn at `voxel_mm`."""

    seed: int
    index: int
    person: Person
    preset: Preset
    shape: tuple[int, int, int]
    voxel_mm: float
    turn_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    joint_mm: np.ndarray
    middle: Middle
    difficulty: Difficulty

    @property
    def rotation(self) -> np.ndarray:
        """Yaw about z after roll about y after pitch about x; positive yaw turns the face to the left, roll lifts the left ear,
        pitch lowers the chin."""
        (cy, cr, cp), (sy, sr, sp) = (f(np.radians(self.turn_deg)) for f in (np.cos, np.sin))
        return (np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ np.array([[cr, 0, -sr], [0, 1, 0], [sr, 0, cr]])
                @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]))

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): from the index (z, y, x, 1) of a voxel to patient coordinates in mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[::-1] * self.voxel_mm
        affine[:3, 3] = -0.5 * (np.array(self.shape[::-1]) - 1) * self.voxel_mm
        return affine

    @property
    def plane(self) -> Plane:
        """The true mid-sagittal plane, its normal pointing to the left."""
        normal = self.rotation[:, 0]
        return Plane(normal, float(normal @ self.joint_mm), 1.0, 1.0)


@dataclass(frozen=True)
class TrueSlice:
    """The slice that `sos.images.midsagittal.resample` cuts in the true plane: its `section` (joint (h, w) bool and landmarks in
    its pixels; no grey values) and the `exposure` it amounts to."""

    section: Section
    exposure: Exposure


def streams(seed: int, index: int):
    """Random streams of one patient: who and what, the same as in the two-dimensional phantom, and one for all that is new."""
    who, what, _, rest = np.random.default_rng([seed, index]).spawn(4)
    return who, what, rest


def draw_pose(rest: np.random.Generator) -> tuple[Preset, np.ndarray, np.ndarray]:
    """Scanner, turn (yaw, roll, pitch) in degrees and shift (x, y, z) in mm, from the last of a patient's `streams`."""
    rng = rest.spawn(1)[0]
    preset = PRESETS[rng.integers(len(PRESETS))]
    turn = np.clip(rng.normal(0, TURN_SD_DEG), -TURN_MAX_DEG, TURN_MAX_DEG)
    return preset, turn, np.clip(rng.normal(0, SHIFT_SD_MM), -SHIFT_MAX_MM, SHIFT_MAX_MM)


def draw_scan(seed: int, index: int, difficulty: Difficulty = Difficulty(), voxel_mm: float | None = None) -> Scan:
    """Draw patient `index` of the cohort `seed` and a pose in the scanner; quick, no volume yet. `voxel_mm`: instead of the
    field's own, for small volumes."""
    who, what, rest = streams(seed, index)
    person = draw_person(seed, index, who, difficulty)
    preset, turn, shift = draw_pose(rest)
    across, high, edge, ahead, above = FIELDS[preset.field]
    edge = voxel_mm or edge
    shape = tuple(int(round(mm / edge)) for mm in (high, across, across))
    return Scan(seed, index, person, preset, shape, edge, tuple(turn.tolist()), tuple(shift.tolist()),
                np.array([0.0, ahead, above]) + shift, draw_middle(person, what, edge), difficulty)


def true_slice(scan: Scan) -> TrueSlice:
    """Where the joint and the landmarks lie in the slice that the reader would cut in the true mid-sagittal plane."""
    index, spacing_mm = slice_index(scan.affine, scan.shape, scan.plane)  # (3, h, w)
    inside = ((index >= 0) & (index <= np.array(scan.shape)[:, None, None] - 1)).all(0)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    index = index[:, rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    place = np.tensordot(scan.affine[:3, :3], index, 1) + (scan.affine[:3, 3] - scan.joint_mm)[:, None, None]
    level = np.tensordot(scan.rotation.T, place, 1)  # (3, h, w): left, back, up of the joint in the level head
    joint = scan.middle.section.landmarks["joint"]
    column, row = (np.rint(joint[k] - level[k + 1] / scan.voxel_mm).astype(int) for k in (0, 1))
    h, w = scan.middle.section.joint.shape
    known = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    mask = known & scan.middle.section.joint[row.clip(0, h - 1), column.clip(0, w - 1)]
    start = level[1:, 0, 0]  # back, up of the slice's first pixel; its axes in the level head, one pixel long:
    axes = np.stack([level[1:, 0, 1] - start, level[1:, 1, 0] - start], axis=1)  # (2, 2), columns x and y

    def to_px(points):
        return ((joint - np.asarray(points)) * scan.voxel_mm - start) @ np.linalg.inv(axes).T

    landmarks = {name: to_px(points) for name, points in scan.middle.section.landmarks.items()}
    section = Section(np.empty((0, 0), np.float32), mask, np.zeros_like(mask), landmarks)
    exposure = Exposure(scan.preset, mask.shape, spacing_mm, scan.turn_deg[2], tuple(landmarks["joint"].tolist()), 0.0, False)
    return TrueSlice(section, exposure)


def axial_slices(scan: Scan) -> Iterator[np.ndarray]:
    """Grey values (h, w) int16 of the slices from foot to head, rows from front to back, columns from the patient's right to left.

    Memory: the head (about 150 MB at 0.4 mm) and a few slices.
    """
    _, head_rng, look = streams(scan.seed, scan.index)[2].spawn(3)
    preset, mm = scan.preset, scan.voxel_mm
    head = draw_head(scan.person, scan.middle, head_rng, preset.blur_mm * look.uniform(0.85, 1.2))
    # patient coordinates to the head's index, over (X, y, x) = (left, -up, -back)
    turn = (scan.rotation.T[[0, 2, 1]] * np.array([[1.0], [-1], [-1]])) / head.step_mm[:, None]
    matrix = turn @ scan.affine[:3, :3]
    offset = turn @ (scan.affine[:3, 3] - scan.joint_mm) + head.centre
    n, h, w = scan.shape
    radius = np.hypot(*np.mgrid[0.5 - h / 2:h / 2, 0.5 - w / 2:w / 2].astype(np.float32)) * np.float32(mm)  # (h, w) mm
    outside = radius > 0.5 * w * mm - 0.5
    cupping = preset.cupping * look.uniform(0.3, 1.4) * bowl((h, w), look)
    rings = gaussian_filter(look.standard_normal(w), 0.7) * preset.stripes * look.uniform(1, 4)
    rings = rings[(radius / mm).astype(int).clip(max=w - 1)].astype(np.float32)
    gain, shift = np.float32(preset.slope * look.normal(1, 0.05)), np.float32(preset.offset + look.normal(0, 35))
    rings *= np.float32(scan.difficulty.noise)
    noise_sd, memory = scan.difficulty.noise * preset.noise * look.uniform(0.65, 1.3), float(np.exp(-0.5 / preset.grain_px**2))
    rays, bite = _streaks(scan, look)
    noise = _noise(look, (h, w), preset.grain_px)
    top = (1 << preset.bits) - 1 + preset.intercept if preset.bits < 16 else 4000
    for first in range(0, n, SLAB):
        slab = affine_transform(head.hu, matrix, offset + matrix[:, 0] * first, (min(SLAB, n - first), h, w), np.float32, order=1,
                                cval=-1000)
        for k, image in enumerate(slab, first):
            inside = lowpass(image > -500, 8)
            image += inside * (cupping + rays * np.float32(np.exp(-0.5 * ((k - bite) * mm / 4) ** 2)))
            image += 1000
            image *= gain
            image += shift * inside - 1000
            noise = memory * noise + np.sqrt(1 - memory**2) * _noise(look, (h, w), preset.grain_px)
            edge = 1 + 0.5 * abs(2 * k / n - 1) ** 4
            image += noise * (np.float32(noise_sd * edge) * (0.35 + 0.65 * inside)) + rings
            np.clip(image, preset.intercept, top, out=image)
            image[outside] = max(PADDING, preset.intercept)
            yield np.rint(image).astype(np.int16)


def _noise(rng, shape, grain_px: float) -> np.ndarray:
    """Correlated noise (h, w) float32 with unit variance."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), grain_px, truncate=3)
    return noise / noise[::4, ::4].std()


def _streaks(scan: Scan, rng) -> tuple[np.ndarray, float]:
    """Rays from the incisors in the axial plane (h, w), and the slice they are strongest in."""
    tips = np.stack([scan.middle.section.landmarks[name] - scan.middle.section.landmarks["joint"] for name in ("upper", "lower")]) * scan.voxel_mm
    place = scan.rotation @ np.array([0.0, *-tips.mean(0)]) + scan.joint_mm
    z, y, x = np.linalg.inv(scan.affine)[:3] @ np.array([*place, 1.0])
    metal = rng.random() < 0.3
    strength = scan.preset.streaks * (rng.uniform(30, 110) if metal else rng.uniform(3, 35))
    at = np.array([x, y])
    return streaks(scan.shape[1:], {"upper": at, "lower": at}, scan.voxel_mm, strength, rng), float(z)


def write_series(folder: Path, scan: Scan) -> None:
    """Write the slices as `0001.dcm` (the lowest) and on into `folder`, which appears when it is whole."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    who = scan.seed, scan.index, scan.difficulty
    ds = ct_header(*who, scan.person, scan.preset, scan.voxel_mm)
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]  # original ones would have to be in Hounsfield units
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = patient_uid(*who, "volume", "series"), patient_uid(*who, "volume", "frame")
    ds.SeriesNumber = "2"
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.Rows, ds.Columns = scan.shape[1:]
    x, y, z = scan.affine[:3, 3]
    for k, pixels in enumerate(axial_slices(scan)):
        ds.SOPInstanceUID, ds.InstanceNumber = patient_uid(*who, "volume", k), str(k + 1)
        ds.ImagePositionPatient = [f"{x:.4f}", f"{y:.4f}", f"{z + k * scan.voxel_mm:.4f}"]
        ds.SliceLocation = ds.ImagePositionPatient[2]
        (part / f"{k + 1:04d}.dcm").write_bytes(dicom_bytes(ds, pixels))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
