"""Whether a volume holds the cranial base: symmetry alone also finds the middle of a jaw, of a vault, of a chest.

The joint lies in the clivus. Round the clivus of a head lie six things that lie round no other bone of the midline: it is bone;
brain is behind it (the brainstem and cerebellum) and brain is above it; the temporal bones are at its sides; air is below and in
front (pharynx, nose); and the head goes on in front of it, as the face. All are asked of every place in the mid-sagittal plane at
a few millimetres' resolution, and relative to the grey values of air and of soft tissue in the same volume, since grey values of
cone beams are no Hounsfield units. A place is as good as the worst of its answers.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates, shift, uniform_filter

from .dicom import Volume
from .symmetry import FINE_MM, Plane, outside_field, thinned

STEP_MM = 2.5
LATERAL_MM = np.arange(-60, 61, 4)
LIKE_SOFT = 0.2  # grey values within this share of the step from air to soft tissue are soft tissue's, above they are bone's
#: For each question the value that is no answer and the one that is a full one.
FULL = {"bone": (0.06, 0.12), "brain behind": (0.75, 0.9), "brain above": (0.75, 0.9), "temporal bones": (0.04, 0.12),
        "air below": (0.03, 0.08), "face": (0.4, 0.8)}
FACE_MM = 50.0  # tissue so far in front of the clivus


@dataclass(frozen=True)
class CranialBase:
    """The place in the plane that is most like a clivus: `likeness` in [0, 1], `at_mm` (3,) in patient coordinates, `answers` in
    [0, 1] by question; `turned`: the best likeness were up and down, front and back, or both taken for each other."""

    likeness: float
    at_mm: np.ndarray
    answers: dict[str, float]
    turned: float


def find_cranial_base(volume: Volume, plane: Plane) -> CranialBase:
    """Look for the cranial base in the mid-sagittal plane of a volume. Sizes are a child's and an adult's alike: 6 years and over."""
    level, start = _levelled(volume, plane)
    answers = _answers(level)
    worst = np.min(list(answers.values()), axis=0)
    row, column = np.unravel_index(worst.argmax(), worst.shape)
    at_mm = start + STEP_MM * (row * plane.down + column * plane.forward)
    turned = max(np.min(list(_answers(np.flip(level, axes)).values()), axis=0).max() for axes in (1, 2, (1, 2)))
    return CranialBase(float(worst.max()), at_mm, {name: float(value[row, column]) for name, value in answers.items()}, float(turned))


def _levelled(volume: Volume, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """The volume along the plane's axes: (lateral, down, forward) float32 over LATERAL_MM and in steps of STEP_MM, 0 where it is
    soft tissue and -1 where it is air, NaN where nothing was measured; and where [middle, 0, 0] lies in patient coordinates."""
    thin = thinned(volume, FINE_MM)
    values = np.where(outside_field(thin.values), np.nan, thin.values)
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full((len(LATERAL_MM), 1, 1), np.nan, np.float32), plane.offset_mm * plane.normal
    air, soft = _levels(known)
    to_mm, origin = thin.affine[:3, :3], thin.affine[:3, 3]
    corners = np.array(list(product(*((0, n - 1) for n in values.shape)))) @ to_mm.T + origin
    axes = np.stack([plane.down, plane.forward])
    low, high = (corners @ axes.T).min(0), (corners @ axes.T).max(0)
    size = np.ceil((high - low) / STEP_MM).astype(int) + 1
    start = plane.offset_mm * plane.normal + low @ axes
    to_index = np.linalg.inv(to_mm)
    along = STEP_MM * np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))  # (2, h, w) mm down and forward
    middle = np.tensordot(to_index @ axes.T, along, 1) + (to_index @ (start - origin))[:, None, None]  # (3, h, w)
    level = np.empty((len(LATERAL_MM), *size), np.float32)
    for sheet, mm in zip(level, LATERAL_MM, strict=True):
        map_coordinates(values, middle + mm * (to_index @ plane.normal)[:, None, None], sheet, order=1, mode="constant", cval=np.nan)
    return (level - np.float32(soft)) / np.float32(max(soft - air, 1e-6)), start


def _levels(known: np.ndarray) -> tuple[float, float]:
    """Grey values of air and of soft tissue, the commonest that is clearly above air."""
    low, high = np.percentile(known, [0.5, 99.5])
    if high <= low:
        return float(low), float(low)
    counts, edges = np.histogram(known, 200, (low, high))
    counts = gaussian_filter1d(counts.astype(float), 2)
    counts[:40] = 0
    k = int(counts.argmax())
    return float(low), float(0.5 * (edges[k] + edges[k + 1]))


def _answers(level: np.ndarray) -> dict[str, np.ndarray]:
    """For every place (h, w) how fully each question of FULL is answered."""
    seen = np.isfinite(level)
    level = np.where(seen, level, 0)
    air, bone, soft = seen & (level < -0.5), seen & (level > LIKE_SOFT), seen & (abs(level) < LIKE_SOFT)
    beside = abs(LATERAL_MM)

    def share(what, sides, down, forward, enough=None):
        """Mean over a box beside each place (ranges in mm), and whether `enough` of the box was measured (from none to fully)."""
        count = seen[sides].sum(0)
        there = count > 0.35 * sides.sum()
        mean = (what[sides] * seen[sides]).sum(0) / np.maximum(count, 1)
        value, known = _box(mean * there, down, forward), _box(there.astype(float), down, forward)
        value = np.where(known > 1e-6, value / np.maximum(known, 1e-6), 0)
        return value, known if enough is None else _ramp(known, *enough)

    sides = [share(bone, (side * LATERAL_MM >= 20) & (beside <= 56), (-12, 20), (-34, 6)) for side in (-1, 1)]
    tissue = (seen & (level > -0.5))[beside <= 12].mean(0) > 0.3  # (h, w)
    ahead = np.maximum.accumulate(tissue[:, ::-1], axis=1)[:, ::-1]  # here or in front of here
    face = shift(ahead.astype(float), (0, -round(FACE_MM / STEP_MM)), order=0)
    raw = {"bone": (share(level, beside <= 6, (-6, 6), (-6, 6))[0], 1),
           "brain behind": share(soft, beside <= 16, (-26, 0), (-36, -14), (0.5, 0.7)),
           "brain above": share(soft, beside <= 22, (-46, -24), (-30, 18), (0.3, 0.5)),
           "temporal bones": (np.minimum(*(np.where(known > 0.4, value, 1) for value, known in sides)), 1),  # a side unseen says nothing
           "air below": share(air, beside <= 26, (0, 50), (0, 60), (0.3, 0.5)),
           "face": (_box(face, (-15, 15), (-2, 2)), 1)}
    return {name: _ramp(value, *FULL[name]) * known for name, (value, known) in raw.items()}


def _box(image: np.ndarray, down: tuple[float, float], forward: tuple[float, float]) -> np.ndarray:
    """Mean of (h, w) over the box that lies so many mm below and in front of each pixel, 0 outside the image."""
    size = [max(round((high - low) / STEP_MM), 1) for low, high in (down, forward)]
    middle = [-round((low + high) / 2 / STEP_MM) for low, high in (down, forward)]
    return shift(uniform_filter(image.astype(float), size, mode="constant"), middle, order=0)


def _ramp(value, none: float, full: float):
    return np.clip((value - none) / (full - none), 0, 1)
