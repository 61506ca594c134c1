"""Volume to slice: the mid-sagittal plane of a head, found as its plane of mirror symmetry, and the slice in it.

What is no head, no whole one, or too coarse is refused; what is doubtful is told.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.ndimage import map_coordinates

from ..errors import ImageError
from .cranial_base import CranialBase, find_cranial_base
from .dicom import Volume
from .symmetry import YAW_ROLL_DEG, Plane, find_plane

MIN_EXTENT_MM = 60.0  # along each patient axis: less holds no cranial base with both its sides
MAX_VOXEL_MM = 1.5  # an open joint is 1 to 3 mm wide
MAX_SLICE_PX = 2048
REFUSE_BELOW, WARN_BELOW = 0.3, 0.5  # of the confidence
REFUSE_OVERLAP, WARN_OVERLAP = 0.56, 0.62  # of the mirrored share: the search stops at 0.5, with a wrong plane where less is there
REFUSE_BASE, WARN_BASE = 0.6, 0.9  # of the likeness to a cranial base
UNEVEN = 1.6  # longest over shortest edge of a voxel, from which on the slice's blur is told


@dataclass(frozen=True)
class MidsagittalSlice:
    """values: (h, w) float32 in the volume's units, NaN outside it, rows from head to foot, columns from back to front."""

    values: np.ndarray
    spacing_mm: float
    plane: Plane
    record: dict


def midsagittal_slice(volume: Volume, name: str = "volume") -> MidsagittalSlice:
    """Cut the mid-sagittal slice out of a volume, at the finest of its voxel edges, with one trilinear interpolation.

    Adds its warnings to the volume's record. Raises ImageError where the volume is too small or too coarse to show the joint, where
    no plane of symmetry stands out, where one half of the head is cut, where no cranial base is seen, or where one is seen only with
    the header's directions turned round. Needs little memory beside the volume: thinned copies and the slice. """
    _refuse_unfit(volume, name)
    plane = find_plane(volume)
    if not plane.confidence >= REFUSE_BELOW:
        raise ImageError(f"{name}: no plane of symmetry stands out (confidence {plane.confidence:.2f}), so this may be no whole "
                         f"head; give a mid-sagittal slice instead")
    base = find_cranial_base(volume, plane)
    _refuse_no_head(plane, base, name)
    volume.record["warnings"] += _doubts(volume, plane, base)
    values, spacing_mm = resample(volume, plane)
    record = {"plane": "mid-sagittal", "offset_mm": round(plane.offset_mm, 2), "yaw_deg": round(plane.yaw_deg, 2),
              "roll_deg": round(plane.roll_deg, 2), "correlation": round(plane.correlation, 3),
              "confidence": round(plane.confidence, 3), "overlap": round(plane.overlap, 3), "cranial_base": round(base.likeness, 3),
              "voxel_mm": [round(float(edge), 4) for edge in volume.voxel_mm], "spacing_mm": round(spacing_mm, 4),
              "interpolation": "trilinear"}
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


def _refuse_no_head(plane: Plane, base: CranialBase, name: str) -> None:
    if plane.overlap < REFUSE_OVERLAP:
        raise ImageError(f"{name}: only {plane.overlap:.0%} of it lies on both sides of its best plane of symmetry, so one half of the "
                         f"head is cut; export both halves, or give a mid-sagittal slice")
    if base.likeness < WARN_BASE <= base.turned:
        raise ImageError(f"{name}: a cranial base is seen only with the header's directions turned round, so its orientation is wrong "
                         f"or the field of view too small; export the whole series again, or give a mid-sagittal slice")
    if base.likeness < REFUSE_BASE:
        raise ImageError(f"{name}: no cranial base is seen in it (likeness {base.likeness:.2f}), so it is no head, or leaves out the "
                         f"clivus or the brain round it; export a larger field of view, or give a mid-sagittal slice")


def _doubts(volume: Volume, plane: Plane, base: CranialBase) -> list[str]:
    doubts = []
    if plane.confidence < WARN_BELOW:
        doubts.append(f"the mid-sagittal plane is uncertain (confidence {plane.confidence:.2f}); look at the slice")
    if plane.overlap < WARN_OVERLAP:
        doubts.append(f"only {plane.overlap:.0%} of the volume lies on both sides of the mid-sagittal plane; look at the slice")
    if base.likeness < WARN_BASE:
        doubts.append(f"the cranial base is hard to make out (likeness {base.likeness:.2f}); look at the slice")
    if max(abs(plane.yaw_deg), abs(plane.roll_deg)) > YAW_ROLL_DEG[-1]:
        doubts.append("the head is turned as far as the search for the mid-sagittal plane goes; look at the slice")
    edges = volume.voxel_mm
    if edges.max() > UNEVEN * edges.min():
        doubts.append(f"voxels of {' × '.join(f'{edge:.3g}' for edge in edges)} mm were interpolated to {edges.min():.3g} mm, so the "
                      f"slice is less sharp than its pixels")
    return doubts


def slice_index(affine: np.ndarray, shape, plane: Plane) -> tuple[np.ndarray, float]:
    """The grid of a slice in `plane` through a whole volume: indices (z, y, x) into it, (3, h, w), from head to foot and from back to
    front, also where they lie outside; and the spacing in mm, the finest edge of a voxel.

    affine, shape: as of a `Volume`."""
    spacing_mm = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    forward, down = plane.forward, plane.down
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
