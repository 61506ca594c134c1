"""Volume to slice: the mid-sagittal plane of a head, found as its plane of mirror symmetry, and the slice in it.

A head is nearly its own mirror image. The plane is `normal · x = offset` in patient coordinates; its normal starts at the
patient's left-right axis, as the DICOM geometry gives it, and is turned by two angles: `yaw` about the head-foot axis (the head
looks aside) and `roll` about the front-back axis (the head is tilted). What is maximised over yaw, roll and offset is the Pearson
correlation between the volume, thinned and compressed in grey, and its reflection, over all points that both have been measured
at. """

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.ndimage import binary_dilation, map_coordinates
from scipy.optimize import minimize

from ..errors import ImageError
from .dicom import Volume

MIN_EXTENT_MM = 60.0  # along each patient axis: less holds no cranial base with both its sides
MAX_VOXEL_MM = 1.5  # an open joint is 1 to 3 mm wide
MAX_SLICE_PX = 2048
COARSE_MM, FINE_MM = 8.0, 2.5
YAW_ROLL_DEG = np.arange(-24, 25, 6)
OFFSET_MM = np.arange(-40, 41, 5)
COARSE_POINTS, FINE_POINTS = 4_000, 30_000
RIVALS = 40  # planes of the coarse grid, far from the best one, that are looked at on fine voxels
MIN_OVERLAP = 0.5  # of the head's mass must have a mirror image inside the volume
REFUSE_BELOW, WARN_BELOW = 0.3, 0.5  # of the confidence
OUTSIDE = -1000.0


@dataclass(frozen=True)
class Plane:
    """normal · x = offset_mm in patient coordinates (x left, y back, z head), the normal pointing to the left; `correlation` in
    [-1, 1] of the halves; `confidence` in [0, 1], see `find_plane`."""

    normal: np.ndarray
    offset_mm: float
    correlation: float
    confidence: float

    @property
    def yaw_deg(self) -> float:
        """Turn about the head-foot axis, positive where the normal's tip moves back."""
        return float(np.degrees(np.arctan2(self.normal[1], self.normal[0])))

    @property
    def roll_deg(self) -> float:
        """Tilt about the front-back axis, positive where the normal's tip moves to the head."""
        return float(np.degrees(np.arcsin(np.clip(self.normal[2], -1, 1))))


@dataclass(frozen=True)
class MidsagittalSlice:
    """values: (h, w) float32 in the volume's units, NaN outside it, rows from head to foot, columns from back to front."""

    values: np.ndarray
    spacing_mm: float
    plane: Plane
    record: dict


def midsagittal_slice(volume: Volume, name: str = "volume") -> MidsagittalSlice:
    """Cut the mid-sagittal slice out of a volume, at the finest of its voxel edges, with one trilinear interpolation.

    Adds its warnings to the volume's record. Raises ImageError where the volume is too small or too coarse to show the joint, or
    where no plane of symmetry stands out. Needs little memory beside the volume: a thinned copy and the slice. """
    _refuse_unfit(volume, name)
    plane = find_plane(volume)
    if not plane.confidence >= REFUSE_BELOW:
        raise ImageError(f"{name}: no plane of symmetry stands out (confidence {plane.confidence:.2f}), so this may be no whole "
                         f"head; give a mid-sagittal slice instead")
    notes = volume.record["warnings"]
    if plane.confidence < WARN_BELOW:
        notes.append(f"the mid-sagittal plane is uncertain (confidence {plane.confidence:.2f}); look at the slice")
    if max(abs(plane.yaw_deg), abs(plane.roll_deg)) > YAW_ROLL_DEG[-1]:
        notes.append("the head is turned as far as the search for the mid-sagittal plane goes; look at the slice")
    values, spacing_mm = resample(volume, plane)
    record = {"plane": "mid-sagittal", "offset_mm": round(plane.offset_mm, 2), "yaw_deg": round(plane.yaw_deg, 2),
              "roll_deg": round(plane.roll_deg, 2), "correlation": round(plane.correlation, 3),
              "confidence": round(plane.confidence, 3)}
    return MidsagittalSlice(values, spacing_mm, plane, record)


def _refuse_unfit(volume: Volume, name: str) -> None:
    extent = np.abs(volume.affine[:3, :3]) @ np.array(volume.values.shape)  # mm along x, y, z of the patient
    voxel = volume.voxel_mm
    if voxel.max() > MAX_VOXEL_MM:
        raise ImageError(f"{name}: voxels of {voxel.max():.2g} mm are too coarse to show the joint; "
                         f"export at {MAX_VOXEL_MM} mm or finer")
    if extent.min() < MIN_EXTENT_MM:
        size = " × ".join(f"{edge:.0f}" for edge in extent)
        raise ImageError(f"{name}: the volume ({size} mm) is too small to find its mid-sagittal plane; "
                         f"export the whole field of view, or one mid-sagittal slice")


def find_plane(volume: Volume) -> Plane:
    """The plane of best mirror correlation: a grid over two angles and the offset on 8 mm voxels, then Nelder–Mead on 2.5 mm
    voxels.

    The confidence is the correlation times how far it stands out: 1 where the best plane of the grid that lies more than 10 mm or
    12° away correlates worse by a quarter or more on the fine voxels, 0 where it correlates as well. """
    coarse, fine = _Mirror(volume, COARSE_MM, COARSE_POINTS), _Mirror(volume, FINE_MM, FINE_POINTS)
    grid = np.array(list(product(YAW_ROLL_DEG, YAW_ROLL_DEG, OFFSET_MM)), float)
    scores = np.array([coarse(point) for point in grid])
    starts, free = [], scores.copy()
    while len(starts) < 3:  # the best of the grid that are no neighbours of each other
        best = int(np.argmax(free))
        starts.append(best)
        free[(abs(grid - grid[best]) <= [6, 6, 5]).all(1)] = -1
    simplex = np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]], float)
    tries = [minimize(lambda p: -coarse(p), grid[i], method="Nelder-Mead",
                      options={"initial_simplex": grid[i] + simplex, "xatol": 0.3, "fatol": 1e-4, "maxfev": 80}) for i in starts]
    start = min(tries, key=lambda found: found.fun).x
    found = minimize(lambda p: -fine(p), start, method="Nelder-Mead",
                     options={"initial_simplex": start + simplex / 2, "xatol": 0.02, "fatol": 1e-6, "maxfev": 150})
    yaw, roll, shift = found.x
    away = (abs(grid[:, :2] - [yaw, roll]) > 12).any(1) | (abs(grid[:, 2] - shift) > 10)
    rival = max(fine(grid[i]) for i in np.flatnonzero(away)[np.argsort(scores[away])[-RIVALS:]])
    peak = max(float(-found.fun), 1e-9)
    margin = float(np.clip((peak - max(rival, 0)) / (0.25 * peak), 0, 1))
    normal = _normal(yaw, roll)
    return Plane(normal, float(normal @ fine.centre + shift), float(-found.fun), peak * margin)


def _normal(yaw_deg: float, roll_deg: float) -> np.ndarray:
    yaw, roll = np.radians([yaw_deg, roll_deg])
    return np.array([np.cos(roll) * np.cos(yaw), np.cos(roll) * np.sin(yaw), np.sin(roll)])


class _Mirror:
    """Mirror correlation of a thinned volume: call with (yaw_deg, roll_deg, offset_mm from the centre of the head)."""

    def __init__(self, volume: Volume, edge_mm: float, points: int):
        factors = np.maximum(np.round(edge_mm / volume.voxel_mm).astype(int), 1)
        thin = _thinned(volume.values, factors)  # NaN where nothing was measured
        measured = np.isfinite(thin)
        low, high = map(float, np.percentile(thin[measured], [10, 99.5])) if measured.any() else (0.0, 1.0)
        grey = np.clip((thin - low) / max(high - low, 1e-6), 0, 1)
        measured &= ~_outside_field(thin)
        self.grey = np.where(measured, grey, np.float32(OUTSIDE))
        to_mm = volume.affine[:3, :3] * factors
        origin = volume.affine[:3, :3] @ ((factors - 1) / 2) + volume.affine[:3, 3]
        self.to_index, self.origin = np.linalg.inv(to_mm), origin
        every = max(int(measured.sum() // points), 1)  # and no chance: the same volume gives the same plane
        index = np.flatnonzero(measured)[::every]
        index = np.stack(np.unravel_index(index, thin.shape), -1)  # (n, 3)
        self.at = index @ to_mm.T + origin  # (n, 3) mm
        self.here = self.grey[tuple(index.T)]
        self.centre = (self.at * self.here[:, None]).sum(0) / max(self.here.sum(), 1e-6)

    def __call__(self, parameters) -> float:
        yaw, roll, shift = parameters
        if max(abs(yaw), abs(roll)) > 35:
            return -1.0
        normal = _normal(yaw, roll)
        distance = self.at @ normal - (normal @ self.centre + shift)
        mirrored = self.at - 2 * distance[:, None] * normal
        index = self.to_index @ (mirrored - self.origin).T  # (3, n)
        there = map_coordinates(self.grey, index, order=1, mode="constant", cval=OUTSIDE, output=np.float32)
        both = there > -1e-3
        here, there = self.here[both], there[both]
        if here.sum() < MIN_OVERLAP * self.here.sum() or here.size < 100:
            return -1.0
        here, there = here - here.mean(), there - there.mean()
        norm = np.sqrt((here @ here) * (there @ there))
        return float(here @ there / norm) if norm > 0 else -1.0


def _thinned(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Means over blocks of `factors` voxels, slab by slab; NaN where any voxel of the block is. A rest that fills no block is
    cut."""
    (fz, fy, fx), shape = factors, np.array(values.shape) // factors
    thin = np.empty(shape, np.float32)
    for k in range(shape[0]):
        slab = values[k * fz:(k + 1) * fz, :shape[1] * fy, :shape[2] * fx].mean(0)
        thin[k] = slab.reshape(shape[1], fy, shape[2], fx).mean((1, 3))
    return thin


def _outside_field(thin: np.ndarray) -> np.ndarray:
    """Where a cylindrical field of view was filled up: lines through the whole volume that hold one value throughout, and the
    mixed voxels beside them.

    Left in, the round edge of the field is the most symmetric thing in the volume, about the wrong plane.
    """
    filled = np.zeros(thin.shape, bool)
    for axis in range(3):
        filled |= (thin == thin.take([0], axis)).all(axis, keepdims=True)
    return binary_dilation(filled)


def slice_index(affine: np.ndarray, shape, plane: Plane) -> tuple[np.ndarray, float]:
    """The grid of a slice in `plane` through a whole volume: indices (z, y, x) into it, (3, h, w), from head to foot and from back to
    front, also where they lie outside; and the spacing in mm, the finest edge of a voxel.

    affine, shape: as of a `Volume`."""
    spacing_mm = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    forward = np.array([0.0, -1.0, 0.0])
    forward -= (forward @ plane.normal) * plane.normal
    forward /= np.linalg.norm(forward)
    down = np.cross(plane.normal, forward)  # left × front = down
    last = np.array(shape) - 1.0
    corners = np.array(list(product(*zip((0, 0, 0), last, strict=True)))) @ affine[:3, :3].T + affine[:3, 3]
    down_mm, forward_mm = corners @ down, corners @ forward
    size = np.ceil([np.ptp(down_mm) / spacing_mm, np.ptp(forward_mm) / spacing_mm]).astype(int) + 1
    if size.max() > MAX_SLICE_PX:
        spacing_mm *= size.max() / MAX_SLICE_PX
        size = np.ceil([np.ptp(down_mm) / spacing_mm, np.ptp(forward_mm) / spacing_mm]).astype(int) + 1
    rows = down_mm.min() + spacing_mm * np.arange(size[0])
    columns = forward_mm.min() + spacing_mm * np.arange(size[1])
    to_index = np.linalg.inv(affine[:3, :3])
    start = to_index @ (plane.offset_mm * plane.normal - affine[:3, 3])
    index = (start[:, None, None] + (to_index @ down)[:, None, None] * rows[None, :, None]
             + (to_index @ forward)[:, None, None] * columns[None, None, :])  # (3, h, w)
    return index, spacing_mm


def resample(volume: Volume, plane: Plane) -> tuple[np.ndarray, float]:
    """The slice in `plane`: (h, w) float32 from head to foot and from back to front, NaN outside the volume; and its spacing in
    mm."""
    index, spacing_mm = slice_index(volume.affine, volume.values.shape, plane)
    values = map_coordinates(volume.values, index, order=1, mode="constant", cval=np.nan, output=np.float32)
    seen = np.isfinite(values)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not rows.size:
        return values, spacing_mm
    return np.ascontiguousarray(values[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]), spacing_mm
