"""One image or one volume of grey values with its geometry; frames and slices stacked into a volume."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import ImageError
from .decode import grey
from .header import damage_of, directions_of, functional, read_header, slice_distance, spacing_of, upright
from .pixels import MAX_VOXELS, describe


@dataclass(frozen=True)
class DicomImage:
    """One frame. values: (h, w) float32 after rescale, bright = dense, NaN where the scanner measured nothing; spacing_mm: rows,
    columns."""

    values: np.ndarray
    spacing_mm: tuple[float, float] | None
    record: dict


@dataclass(frozen=True)
class Volume:
    """A stack. values: (z, y, x) float32, NaN where nothing was measured; `affine` (4, 4) takes the index (z, y, x, 1) to patient
    coordinates in mm (x to the left, y to the back, z to the head); `oriented` is False where the header gave no orientation."""

    values: np.ndarray
    affine: np.ndarray
    oriented: bool
    record: dict

    @property
    def voxel_mm(self) -> np.ndarray:
        """Edges of a voxel along z, y, x in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass
class Slice:
    """A slice not yet decoded."""

    source: object  # a path, or a dataset that holds all frames
    index: int
    position: np.ndarray | None
    number: float = 0.0
    order: float = field(default=0.0, compare=False)


def read_file(dataset, path: Path) -> DicomImage | Volume:
    """The image or, where it holds several frames, the volume of one data set with its pixel data. Raises ImageError."""
    with damage_of(path, "reading its header"):
        record = describe(dataset, path)
        if record["frames"] > 1:
            slices, directions, spacing = _frames_in_space(dataset, record)
        else:
            directions = directions_of(dataset)
            if directions is not None and abs(np.cross(*directions)[0]) < 0.8:
                record["warnings"].append("the slice is not sagittal by its orientation; give a mid-sagittal slice or a whole volume")
            elif not upright(dataset, directions):
                record["warnings"].append("the head does not stand upright by its orientation; export it with the crown up")
            spacing = spacing_of(dataset, 0, record["warnings"])
    if record["frames"] > 1:
        return stack(slices, directions, spacing, record, path)
    with damage_of(path, f"decoding its pixels ({record['transfer_syntax']})"):
        return DicomImage(grey(dataset, 0, record), spacing, record)


def facing(directions) -> tuple | None:
    """Directions of rows and columns as a key that rounding does not split; None where unknown."""
    return None if directions is None else tuple(directions.ravel().round(2) + 0.0)


def _frames_in_space(dataset, record: dict):
    """Slices, directions and (slice, row, column) spacing of a multi-frame file, enhanced or not; of frames that face several ways the most."""
    faces = [facing(directions_of(dataset, i)) for i in range(record["frames"])]
    most = Counter(faces).most_common(1)[0][0]
    chosen = [i for i, face in enumerate(faces) if face == most]
    if len(chosen) < len(faces):
        record["warnings"].append(f"{len(faces) - len(chosen)} frames with another orientation were left out")
    spacing = spacing_of(dataset, chosen[0], record["warnings"]) or (1.0, 1.0)
    slices = [Slice(dataset, i, functional(dataset, i, "PlanePositionSequence", "ImagePositionPatient", 3), i) for i in chosen]
    if all(item.position is None or (item.position == slices[0].position).all() for item in slices):
        for item in slices:
            item.position = None
    return slices, directions_of(dataset, chosen[0]), (slice_distance(dataset), *spacing)


def stack(slices: list[Slice], directions, spacing, record: dict, path: Path) -> Volume:
    """Sort slices along their normal and put them on an even grid; a gap is filled by interpolation and told."""
    notes = record["warnings"]
    thick, row_mm, column_mm = spacing
    oriented = directions is not None
    if not oriented:
        notes.append("the orientation is missing; axial slices from foot to head were assumed")
        directions = np.eye(3)[:2]
    normal = np.cross(*directions)
    if any(item.position is None for item in slices):
        if thick is None:
            notes.append("the distance of slices is missing; cubic voxels were assumed")
        slices = sorted(slices, key=lambda item: item.number)
        for i, item in enumerate(slices):
            item.position = normal * i * float(thick or column_mm)
        notes.append("the position of slices is missing; they were stacked by their number")
    for item in slices:
        item.order = float(item.position @ normal)
    slices = sorted(slices, key=lambda item: (item.order, item.number))
    kept = [item for i, item in enumerate(slices) if i == 0 or item.order - slices[i - 1].order > 0.01]
    if len(kept) < len(slices):
        notes.append(f"{len(slices) - len(kept)} slices at a place already taken were left out")
    if len(kept) < 2:
        raise ImageError(f"{path.name}: all its slices lie at one place, so it is no volume; give one image or a whole volume")
    at = np.array([item.order for item in kept])
    gaps = np.diff(at)
    step = float(np.median(gaps))
    even = (abs(gaps - step) <= 0.1 * step + 0.005).all()
    columns, rows = record["size"]
    places = len(at) if even else (at[-1] - at[0]) / step + 1
    if not places * rows * columns <= MAX_VOXELS or places > 2 * len(kept):
        raise ImageError(f"{path.name}: slices are missing or too many ({len(kept)} over {at[-1] - at[0]:.4g} mm); "
                         f"export the whole series")
    grid = at if even else at[0] + step * np.arange(round(places))
    if not even:
        notes.append(f"slices are uneven ({gaps.min():.2f} to {gaps.max():.2f} mm apart); missing ones were interpolated")
    affine = np.eye(4)
    affine[:3, 0] = (kept[-1].position - kept[0].position) / (len(grid) - 1)  # keeps a gantry's tilt
    affine[:3, 1], affine[:3, 2], affine[:3, 3] = directions[1] * row_mm, directions[0] * column_mm, kept[0].position
    values = np.empty((len(grid), rows, columns), np.float32)
    loaded = {}
    for k, place in enumerate(grid):
        low = k if even else int(np.clip(np.searchsorted(at, place, side="right") - 1, 0, len(at) - 2))
        share = 0.0 if even else float(np.clip((place - at[low]) / gaps[low], 0, 1))
        near = (low,) if share < 1e-3 else (low, low + 1)
        loaded = {i: loaded[i] if i in loaded else _load(kept[i], record, path) for i in near}
        values[k] = loaded[low] if len(near) == 1 else loaded[low] * np.float32(1 - share) + loaded[low + 1] * np.float32(share)
    record["volume"] = {"shape": values.shape, "voxel_mm": [round(float(v), 4) for v in np.linalg.norm(affine[:3, :3], axis=0)]}
    return Volume(values, affine, oriented, record)


def _load(item: Slice, record: dict, path: Path) -> np.ndarray:
    columns, rows = record["size"]
    if isinstance(item.source, Path):
        dataset = read_header(item.source, pixels=True)
        with damage_of(item.source, "reading its header"):
            own = describe(dataset, item.source)
        if own["size"] != record["size"] or own["frames"] != 1:
            raise ImageError(f"{item.source.name}: differs in size from the rest of its series; export the series again")
        record["rescale"], own["rescale"] = record["rescale"], None
        with damage_of(item.source, f"decoding its pixels ({own['transfer_syntax']})"):
            values = grey(dataset, item.index, own)
        record["rescale"] = record["rescale"] or own["rescale"]
    else:
        with damage_of(path, f"decoding its pixels ({record['transfer_syntax']})"):
            values = grey(item.source, item.index, record)
    if values.shape != (rows, columns):
        raise ImageError(f"{path.name}: a frame decodes to another size than its header says; export it again")
    return values
