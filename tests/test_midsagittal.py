"""From a volume to its mid-sagittal slice: whole heads are taken, whatever their stack's direction; all else is refused with its reason."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy.ndimage import map_coordinates

from sos.errors import ImageError
from sos.images.cranial_base import find_cranial_base
from sos.images.dicom import Volume, read_series
from sos.images.midsagittal import REFUSE_BASE, WARN_BASE, Plane, midsagittal_slice, resample, slice_index
from sos.images.reader import read_image
from sos.phantom import series

VOXEL_MM = 1.4
LARGE_FIELD, SMALL_FIELD = 0, 1  # patients of seed 2


def draw(index: int, voxel_mm: float = VOXEL_MM, **changes):
    """A virtual head: its scan (the truth) and its volume."""
    scan = replace(series.draw_scan(2, index, voxel_mm=voxel_mm), **changes)
    values = np.stack(list(series.axial_slices(scan))).astype(np.float32)
    return scan, Volume(values, scan.affine, True, {"warnings": []})


@pytest.fixture(scope="module")
def heads():
    """One head in a large field of view and one in a small one."""
    found = {"large": draw(LARGE_FIELD), "small": draw(SMALL_FIELD)}
    assert all(scan.preset.field == field for field, (scan, _) in found.items())
    return found


@pytest.fixture(params=["large", "small"])
def head(request, heads):
    scan, volume = heads[request.param]
    return scan, replace(volume, record={"warnings": []})


def cropped(volume: Volume, axis: int, low_mm: float = -np.inf, high_mm: float = np.inf) -> Volume:
    """The part between two places along a patient axis (0 x, 1 y, 2 z) of an axial volume."""
    k = 2 - axis
    place = volume.affine[axis, 3] + volume.affine[axis, k] * np.arange(volume.values.shape[k])
    kept = np.flatnonzero((place >= low_mm) & (place <= high_mm))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, k] * kept[0]
    return Volume(np.take(volume.values, kept, k), affine, True, {"warnings": []})


def turned(volume: Volume, signs) -> Volume:
    """The same voxels with a header that takes some patient axes for their opposites."""
    affine = volume.affine.copy()
    affine[:3] *= np.array(signs)[:, None]
    return Volume(volume.values, affine, True, {"warnings": []})


# whole heads


def test_whole_heads_are_taken_without_a_warning_and_the_record_says_how(head):
    scan, volume = head
    cut = midsagittal_slice(volume)
    assert volume.record["warnings"] == []
    assert np.degrees(np.arccos(min(cut.plane.normal @ scan.plane.normal, 1))) < 2
    assert abs(cut.plane.normal @ scan.joint_mm - cut.plane.offset_mm) < 2
    assert cut.record["cranial_base"] == 1 and cut.record["overlap"] > 0.7
    assert cut.record["voxel_mm"] == [VOXEL_MM] * 3 and cut.record["spacing_mm"] == VOXEL_MM and cut.record["interpolation"] == "trilinear"


def test_the_place_found_is_near_the_joint(head):
    scan, volume = head
    base = find_cranial_base(volume, scan.plane)
    assert np.linalg.norm(base.at_mm - scan.joint_mm) < 45 and abs(scan.plane.normal @ base.at_mm - scan.plane.offset_mm) < 1e-6


# other fields of view


@pytest.mark.parametrize("axis, side, mm", [(2, "below", -20), (2, "above", 20), (1, "behind", 25), (1, "before", -25)])
def test_fields_without_the_cranial_base_have_no_likeness_to_one(head, axis, side, mm):
    scan, volume = head
    edge = scan.joint_mm[axis] + mm
    part = cropped(volume, axis, high_mm=edge) if mm < 0 else cropped(volume, axis, low_mm=edge)
    base = find_cranial_base(part, scan.plane)
    assert base.likeness < REFUSE_BASE and base.turned < WARN_BASE


def test_jaws_and_neck_are_refused_though_symmetric(heads):
    scan, volume = heads["large"]
    with pytest.raises(ImageError, match=r"^case: no cranial base is seen in it \(likeness 0\.\d\d\)[^\n]*larger field of view"):
        midsagittal_slice(cropped(volume, 2, high_mm=scan.joint_mm[2] - 15), "case")


@pytest.mark.parametrize("field, beyond_mm", [("large", 0), ("small", 15)])
def test_half_a_head_is_refused(heads, field, beyond_mm):
    scan, volume = heads[field]
    with pytest.raises(ImageError, match="one half of the head is cut|no plane of symmetry stands out"):
        midsagittal_slice(cropped(volume, 0, low_mm=scan.joint_mm[0] - beyond_mm))


# wrong headers


@pytest.mark.parametrize("signs", [(1, 1, -1), (1, -1, 1), (1, -1, -1)], ids=["upside down", "back to front", "both"])
def test_a_cranial_base_turned_round_is_known_as_such(head, signs):
    scan, volume = head
    base = find_cranial_base(turned(volume, signs), replace(scan.plane, normal=scan.plane.normal * signs))
    assert base.likeness < WARN_BASE <= base.turned


def test_a_head_upside_down_is_refused_with_the_reason(heads):
    with pytest.raises(ImageError, match="^case: a cranial base is seen only with the header's directions turned round"):
        midsagittal_slice(turned(heads["large"][1], (1, 1, -1)), "case")


@pytest.mark.parametrize("field, other", [("large", 1), ("small", 2)])
def test_an_axis_taken_for_left_to_right_is_refused_or_told(heads, field, other):
    affine = heads[field][1].affine.copy()
    affine[[0, other]] = affine[[other, 0]]
    volume = Volume(heads[field][1].values, affine, True, {"warnings": []})
    try:
        midsagittal_slice(volume)
    except ImageError:
        return
    assert "the mid-sagittal plane is uncertain" in volume.record["warnings"][0]


def test_slices_three_mm_apart_are_refused(heads):
    volume = heads["large"][1]
    affine = volume.affine.copy()
    affine[:3, 0] *= 3 / VOXEL_MM
    with pytest.raises(ImageError, match="^case: voxels of 3 mm are too coarse"):
        midsagittal_slice(Volume(volume.values, affine, True, {"warnings": []}), "case")


# no heads


def blank(size_mm: float = 165.0, noise: float = 30.0) -> tuple[Volume, list[np.ndarray]]:
    """Noisy air, and its coordinates x, y, z in mm."""
    n = int(size_mm / 1.5)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 1.5 * np.eye(3)[::-1], -0.75 * (n - 1)
    place = (np.arange(n) - (n - 1) / 2) * 1.5
    z, y, x = np.meshgrid(place, place, place, indexing="ij", sparse=True)
    values = np.random.default_rng(0).normal(-1000, noise, (n, n, n)).astype(np.float32)
    return Volume(values, affine, True, {"warnings": []}), [x, y, z]


def painted(*solids) -> Volume:
    """Ellipsoids (centre, radii, grey value), later ones over earlier ones."""
    volume, place = blank()
    for centre, radii, value in solids:
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(place, centre, radii, strict=True)) < 1
        volume.values[inside] += np.float32(value + 1000) - (volume.values[inside] > -500) * (volume.values[inside] + 1000)
    return volume


def on_both(x, y, z, radii, value) -> list:
    return [((side * x, y, z), radii, value) for side in (-1, 1)]


NO_HEADS = {
    "water": [((0, 0, 0), (70, 70, 2000), 0)],
    "chest": [((0, 0, 0), (80, 62, 2000), 40), *on_both(40, -5, 0, (28, 42, 75), -800), ((0, -15, 0), (8, 8, 2000), -950),
              *(solid for z in range(-77, 78, 22) for solid in (((0, 38, z), (16, 14, 9), 500), ((0, 55, z), (3, 10, 6), 600)))],
    "hand": [((0, 0, -50), (45, 16, 45), 40), *(((x, 0, 10), (9, 9, 75), 40) for x in range(-40, 41, 20)),
             *(((x, 0, z), (5, 5, 16), 700) for x in range(-40, 41, 20) for z in (-40, -5, 30, 60)),
             *(((x, 0, -70), (6, 7, 8), 600) for x in range(-30, 31, 12))],
    "mandible": [((0, 0, -10), (60, 75, 70), 40), *(on_both(38 * np.sin(t), 10 - 62 * np.cos(t), 0, (5, 6, 14), 900)[k]
                                                    for t in np.arange(0, 1.7, 0.1) for k in (0, 1)),
                 *on_both(45, 20, 20, (4, 16, 35), 800), ((0, 30, 0), (14, 8, 2000), -950),
                 *(((0, 48, z), (13, 9, 9), 500) for z in range(-70, 71, 20))],
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_is_no_head_has_no_cranial_base(name):
    base = find_cranial_base(painted(*NO_HEADS[name]), Plane(np.array([1.0, 0, 0]), 0.0, 1.0, 1.0))
    assert base.likeness < REFUSE_BASE and base.turned < WARN_BASE


@pytest.mark.parametrize("name, reason", [("water", "no plane of symmetry stands out"), ("chest", "no cranial base is seen"),
                                          ("hand", "no cranial base is seen")])
def test_what_is_no_head_is_refused(name, reason):
    with pytest.raises(ImageError, match=f"^{name}: {reason}[^\n]*$"):
        midsagittal_slice(painted(*NO_HEADS[name]), name)


def test_nothing_measured_or_one_value_is_refused():
    for value in (np.nan, 7.0):
        volume = Volume(np.full((80, 80, 80), value, np.float32), blank()[0].affine, True, {"warnings": []})
        with pytest.raises(ImageError, match="no plane of symmetry stands out"):
            midsagittal_slice(volume)
        assert find_cranial_base(volume, Plane(np.array([1.0, 0, 0]), 0.0, 1.0, 1.0)).likeness == 0


# stacks


def write_stack(folder, volume: Volume, axis: int, flips=(False, False, False)) -> None:
    """The volume as single-frame files along array axis `axis`, with any axes reversed: the same head, another order of voxels."""
    order = [axis, *(k for k in range(3) if k != axis)]
    values, steps, first = volume.values.transpose(order), volume.affine[:3, :3][:, order], volume.affine[:3, 3].copy()
    steps = steps.copy()
    for k in np.flatnonzero(flips):
        values = np.flip(values, k)
        first += steps[:, k] * (values.shape[k] - 1)
        steps[:, k] *= -1
    edges = np.linalg.norm(steps, axis=0)
    folder.mkdir()
    for k, pixels in enumerate(values):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{k + 1}"
        data.SeriesInstanceUID, data.Modality, data.InstanceNumber = "1.2.3", "CT", k + 1
        data.Rows, data.Columns = pixels.shape
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel, data.PhotometricInterpretation = 15, 1, 1, "MONOCHROME2"
        data.PixelSpacing = [edges[1], edges[2]]
        data.ImageOrientationPatient = [*(steps[:, 2] / edges[2]), *(steps[:, 1] / edges[1])]
        data.ImagePositionPatient = [round(float(v), 6) for v in first + k * steps[:, 0]]
        data.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"{k:04d}.dcm", data, enforce_file_format=True)


@pytest.mark.parametrize("axis, flips", [(0, (1, 0, 0)), (0, (1, 1, 1)), (1, (0, 0, 0)), (1, (0, 0, 1)), (2, (0, 0, 0)), (2, (1, 1, 0))],
                         ids=["axial, last first", "axial, all reversed", "coronal", "coronal, from the left", "sagittal",
                              "sagittal, from the left, upside down"])
def test_any_stack_gives_the_same_slice_head_up_and_face_to_the_right(tmp_path, heads, axis, flips):
    scan, volume = heads["small"]
    write_stack(tmp_path / "series", volume, axis, flips)
    read = read_series(tmp_path / "series")
    assert read.oriented and read.record["warnings"] == []
    np.testing.assert_allclose(resample(read, scan.plane)[0], resample(volume, scan.plane)[0], atol=0.1)


def test_a_sagittal_series_from_the_left_is_read_as_an_axial_one_is(tmp_path, heads):
    scan, volume = heads["large"]
    write_stack(tmp_path / "series", volume, 2, (1, 0, 1))
    image, truth = read_image(tmp_path / "series"), resample(volume, scan.plane)[0]
    assert image.record["warnings"] == [] and abs(np.subtract(image.pixels.shape, truth.shape)).max() <= 4
    h, w = np.minimum(image.pixels.shape, truth.shape)
    pixels, truth = image.pixels[:h, :w], np.nan_to_num(truth, nan=-1000)[:h, :w]
    true = np.corrcoef(pixels.ravel(), truth.ravel())[0, 1]
    assert true > 0.9
    for wrong in (pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]):
        assert np.corrcoef(wrong.ravel(), truth.ravel())[0, 1] < true - 0.2


# uneven voxels


def test_thick_slices_are_resampled_to_the_finest_edge_and_told(heads):
    coarse = heads["small"][1]
    n, h, w = coarse.values.shape
    values = np.empty((n, 2 * h - 1, 2 * w - 1), np.float32)  # the same head, with pixels half as large in the axial plane
    values[:, ::2, ::2] = coarse.values
    values[:, 1::2, ::2] = (values[:, :-1:2, ::2] + values[:, 2::2, ::2]) / 2
    values[:, :, 1::2] = (values[:, :, :-1:2] + values[:, :, 2::2]) / 2
    affine = coarse.affine.copy()
    affine[:3, 1:3] /= 2
    thick = Volume(values, affine, True, {"warnings": []})
    cut = midsagittal_slice(thick)
    assert cut.spacing_mm == pytest.approx(0.7) and cut.record["voxel_mm"] == [1.4, 0.7, 0.7] and cut.record["spacing_mm"] == 0.7
    assert thick.record["warnings"] == ["voxels of 1.4 × 0.7 × 0.7 mm were interpolated to 0.7 mm, so the slice is less sharp than its pixels"]
    index, _ = slice_index(affine, values.shape, cut.plane)
    truth = map_coordinates(coarse.values, index * np.array([1, 0.5, 0.5])[:, None, None], order=1, cval=np.nan)
    seen = np.isfinite(truth)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    np.testing.assert_allclose(cut.values, truth[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], atol=0.5)
