"""The plane of mirror symmetry of a volume.

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

from .dicom import Volume

COARSE_MM, FINE_MM = 8.0, 2.5
YAW_ROLL_DEG = np.arange(-24, 25, 6)
OFFSET_MM = np.arange(-40, 41, 5)
COARSE_POINTS, FINE_POINTS = 4_000, 30_000
RIVALS = 40  # planes of the coarse grid, far from the best one, that are looked at on fine voxels
MIN_OVERLAP = 0.5  # of the head's mass must have a mirror image inside the volume
OUTSIDE = -1000.0


@dataclass(frozen=True)
class Plane:
    """normal · x = offset_mm in patient coordinates (x left, y back, z head), the normal pointing to the left; `correlation` in
    [-1, 1] of the halves; `confidence` in [0, 1], see `find_plane`; `overlap`: share of the head's mass whose mirror image lies
    inside the volume."""

    normal: np.ndarray
    offset_mm: float
    correlation: float
    confidence: float
    overlap: float = 1.0

    @property
    def yaw_deg(self) -> float:
        """Turn about the head-foot axis, positive where the normal's tip moves back."""
        return float(np.degrees(np.arctan2(self.normal[1], self.normal[0])))

    @property
    def roll_deg(self) -> float:
        """Tilt about the front-back axis, positive where the normal's tip moves to the head."""
        return float(np.degrees(np.arcsin(np.clip(self.normal[2], -1, 1))))

    @property
    def forward(self) -> np.ndarray:
        """Unit vector in the plane to the front, level."""
        forward = np.array([0.0, -1.0, 0.0])
        forward -= (forward @ self.normal) * self.normal
        return forward / np.linalg.norm(forward)

    @property
    def down(self) -> np.ndarray:
        """Unit vector in the plane to the feet."""
        return np.cross(self.normal, self.forward)  # left × front = down


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
    return Plane(normal, float(normal @ fine.centre + shift), float(-found.fun), peak * margin, fine.overlap(found.x))


def _normal(yaw_deg: float, roll_deg: float) -> np.ndarray:
    yaw, roll = np.radians([yaw_deg, roll_deg])
    return np.array([np.cos(roll) * np.cos(yaw), np.cos(roll) * np.sin(yaw), np.sin(roll)])


class _Mirror:
    """Mirror correlation of a thinned volume: call with (yaw_deg, roll_deg, offset_mm from the centre of the head)."""

    def __init__(self, volume: Volume, edge_mm: float, points: int):
        thin = thinned(volume, edge_mm)
        measured = np.isfinite(thin.values)
        low, high = map(float, np.percentile(thin.values[measured], [10, 99.5])) if measured.any() else (0.0, 1.0)
        grey = np.clip((thin.values - low) / max(high - low, 1e-6), 0, 1)
        measured &= ~outside_field(thin.values)
        self.grey = np.where(measured, grey, np.float32(OUTSIDE))
        to_mm, self.origin = thin.affine[:3, :3], thin.affine[:3, 3]
        self.to_index = np.linalg.inv(to_mm)
        every = max(int(measured.sum() // points), 1)  # and no chance: the same volume gives the same plane
        index = np.flatnonzero(measured)[::every]
        index = np.stack(np.unravel_index(index, measured.shape), -1)  # (n, 3)
        self.at = index @ to_mm.T + self.origin  # (n, 3) mm
        self.here = self.grey[tuple(index.T)]
        self.centre = (self.at * self.here[:, None]).sum(0) / max(self.here.sum(), 1e-6)

    def _there(self, parameters) -> np.ndarray:
        """Grey values (n,) at the mirror images of all points, OUTSIDE where nothing was measured."""
        yaw, roll, shift = parameters
        normal = _normal(yaw, roll)
        distance = self.at @ normal - (normal @ self.centre + shift)
        mirrored = self.at - 2 * distance[:, None] * normal
        index = self.to_index @ (mirrored - self.origin).T  # (3, n)
        return map_coordinates(self.grey, index, order=1, mode="constant", cval=OUTSIDE, output=np.float32)

    def overlap(self, parameters) -> float:
        """Share of the mass whose mirror image was measured."""
        return float(self.here[self._there(parameters) > -1e-3].sum() / max(self.here.sum(), 1e-6))

    def __call__(self, parameters) -> float:
        if np.abs(parameters[:2]).max() > 35:
            return -1.0
        there = self._there(parameters)
        both = there > -1e-3
        here, there = self.here[both], there[both]
        if here.sum() < MIN_OVERLAP * self.here.sum() or here.size < 100:
            return -1.0
        here, there = here - here.mean(), there - there.mean()
        norm = np.sqrt((here @ here) * (there @ there))
        return float(here @ there / norm) if norm > 0 else -1.0


def thinned(volume: Volume, edge_mm: float) -> Volume:
    """Means over blocks of voxels, of about `edge_mm`, slab by slab; NaN where any voxel of the block is. A rest that fills no
    block is cut."""
    factors = np.maximum(np.round(edge_mm / volume.voxel_mm).astype(int), 1)
    (fz, fy, fx), shape = factors, np.array(volume.values.shape) // factors
    thin = np.empty(shape, np.float32)
    for k in range(shape[0]):
        slab = volume.values[k * fz:(k + 1) * fz, :shape[1] * fy, :shape[2] * fx].mean(0)
        thin[k] = slab.reshape(shape[1], fy, shape[2], fx).mean((1, 3))
    affine = volume.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] += volume.affine[:3, :3] @ ((factors - 1) / 2)
    return Volume(thin, affine, volume.oriented, volume.record)


def outside_field(thin: np.ndarray) -> np.ndarray:
    """Where a cylindrical field of view was filled up: lines through the whole volume that hold one value throughout, and the
    mixed voxels beside them.

    Left in, the round edge of the field is the most symmetric thing in the volume, about the wrong plane.
    """
    filled = np.zeros(thin.shape, bool)
    for axis in range(3):
        filled |= (thin == thin.take([0], axis)).all(axis, keepdims=True)
    return binary_dilation(filled)
