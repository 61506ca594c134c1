"""Exports: every kind of file holds the same picture and the truth in its own pixels; scanners are told apart by their images."""

import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.stats import chi2_contingency

from sos.cohort.audit import audit
from sos.cohort.manifest import BOX, read_manifest
from sos.images.reader import read_image
from sos.phantom import export, scanner
from sos.phantom.export import COMPRESSED, SCREEN_PX, SHARES, draw_export, export_patient
from sos.phantom.population import draw_person
from sos.phantom.write import draw_patient, write_cohort

DICOM = [kind for kind in SHARES if kind.startswith("dicom")]
SCREENSHOTS = [kind for kind in SHARES if kind not in DICOM]


@pytest.fixture(scope="module")
def patients():
    """Six patients, one of them facing left, devices of 12 and of 16 bits among them."""
    drawn = [draw_patient(3, index) for index in range(6)]
    assert {p.exposure.mirrored for p in drawn} == {True, False} and {p.exposure.preset.bits for p in drawn} == {12, 16}
    return drawn


def exported(patient, kind, folder):
    """The patient's file of that kind, and what the reader makes of it."""
    patient = replace(patient, export=replace(patient.export, kind=kind))
    file, path = export_patient(patient), folder / f"image{patient.export.suffix}"
    path.write_bytes(file.data)
    return file, read_image(path)


# kinds


def test_kinds_are_met_as_often_as_the_table_says_whatever_the_stage():
    n = 3000
    rngs = [np.random.default_rng([7, index]).spawn(4) for index in range(n)]
    kinds = np.array([draw_export(rng[3]).kind for rng in rngs])
    stages = np.array([draw_person(7, index, rng[0]).stage for index, rng in enumerate(rngs)])
    assert sum(SHARES.values()) == pytest.approx(1)
    assert SHARES["dicom"] == pytest.approx(0.5, abs=0.1) and sum(SHARES[kind] for kind in SCREENSHOTS) == pytest.approx(0.18, abs=0.05)
    for kind, share in SHARES.items():
        assert (kinds == kind).mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n)), kind
    counts = [[((kinds == kind) & (stages == stage)).sum() for stage in range(1, 6)] for kind in SHARES]
    assert chi2_contingency(counts).pvalue > 0.001


@pytest.mark.parametrize("kind", SHARES)
def test_same_patient_same_bytes(patients, kind):
    patient = replace(patients[0], export=replace(patients[0].export, kind=kind))
    assert export_patient(patient).data == export_patient(patient).data


# DICOM


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compression_loses_nothing(patients, kind):
    for patient in patients:
        plain, packed = (pydicom.dcmread(io.BytesIO(export.to_dicom(patient, name))) for name in ("dicom", kind))
        assert packed.file_meta.TransferSyntaxUID == COMPRESSED[kind][0] and len(packed.PixelData) < len(plain.PixelData)
        np.testing.assert_array_equal(packed.pixel_array, plain.pixel_array)
        assert {e.tag: e.value for e in packed if e.keyword != "PixelData"} == {e.tag: e.value for e in plain if e.keyword != "PixelData"}


def test_monochrome1_is_the_negative_and_shows_the_positive(patients):
    for patient in patients:
        plain, negative = (pydicom.dcmread(io.BytesIO(export.to_dicom(patient, kind))) for kind in ("dicom", "dicom-monochrome1"))
        assert negative.PhotometricInterpretation == "MONOCHROME1" and plain.PhotometricInterpretation == "MONOCHROME2"
        shown = []
        for ds in (plain, negative):  # the standard's pipeline: rescale, window, and white for the least value of MONOCHROME1
            grey = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
            grey = np.clip((grey - float(ds.WindowCenter)) / float(ds.WindowWidth) + 0.5, 0, 1)
            shown.append(grey if ds is plain else 1 - grey)
        np.testing.assert_allclose(shown[1], shown[0], atol=1e-9)


def test_the_reader_sees_one_image_in_all_kinds_of_dicom(patients, tmp_path):
    for patient in patients[:2]:
        pictures = {kind: exported(patient, kind, tmp_path)[1] for kind in DICOM}
        for kind, image in pictures.items():
            np.testing.assert_array_equal(image.pixels, pictures["dicom"].pixels)
            assert image.spacing_mm == patient.exposure.voxel_mm and image.record["inverted"] == (kind == "dicom-monochrome1")
            assert image.record["warnings"] == []


# truth


@pytest.mark.parametrize("kind", SHARES)
def test_box_and_mask_hold_the_joint_in_every_kind(patients, kind, tmp_path):
    for patient in patients:
        file, image = exported(patient, kind, tmp_path)
        (h, w), (x0, y0, x1, y1), (x, y) = image.pixels.shape, file.box, file.joint_px
        rows, columns = np.nonzero(file.mask)
        assert file.mask.shape == (h, w) and file.mask[round(y), round(x)]
        assert 0 <= x0 <= columns.min() and columns.max() < x1 <= w and 0 <= y0 <= rows.min() and rows.max() < y1 <= h
        box_mm = np.subtract(patient.box[2:], patient.box[:2]) * patient.exposure.voxel_mm
        np.testing.assert_allclose(np.subtract((x1, y1), (x0, y0)) * file.spacing_mm, box_mm, atol=2.5 * file.spacing_mm)
        area_mm2 = patient.mask.sum() * patient.exposure.voxel_mm**2
        assert file.mask.sum() * file.spacing_mm**2 == pytest.approx(area_mm2, rel=0.03)


def test_screenshots_show_the_same_thing_in_the_same_place(patients, tmp_path):
    """Grey values about the joint, sampled by millimetres: a shift of two pixels would be seen."""
    def about_the_joint(file, image):
        half = 12 / file.spacing_mm
        (x, y), side = file.joint_px, 48
        box = (x + 0.5 - half, y + 0.5 - half, x + 0.5 + half, y + 0.5 + half)
        return np.asarray(Image.fromarray(image.pixels).resize((side, side), Image.Resampling.BOX, box=box))

    for patient in patients:
        reference = about_the_joint(*exported(patient, "dicom", tmp_path))
        for kind in SCREENSHOTS:
            file, image = exported(patient, kind, tmp_path)
            crop = about_the_joint(file, image)
            here = np.corrcoef(reference.ravel(), crop.ravel())[0, 1]
            moved = file._replace(joint_px=(file.joint_px[0] + 2, file.joint_px[1]))
            assert here > 0.97 and here > np.corrcoef(reference.ravel(), about_the_joint(moved, image).ravel())[0, 1]


def test_screenshots_are_framed_as_drawn(patients, tmp_path):
    settings = [draw_export(np.random.default_rng(index)) for index in range(300)]
    assert {s.rgb for s in settings} == {True, False} and max(s.bar for s in settings) > 0 == min(s.bar for s in settings)
    assert all(SCREEN_PX[0] <= s.left + s.picture_px + s.right <= SCREEN_PX[1] for s in settings)
    framed = [s for s in settings if s.left > 5 and s.above > 0.02 and s.bar][:3]
    for setting, patient in zip(framed, patients, strict=False):
        for rgb in (False, True):
            patient = replace(patient, export=replace(setting, kind="png", rgb=rgb))
            file = export_patient(patient)
            picture = np.asarray(Image.open(io.BytesIO(file.data)))
            assert picture.dtype == np.uint8 and picture.ndim == (3 if rgb else 2)
            grey = picture[..., 0] if rgb else picture
            assert not rgb or (picture == grey[..., None]).all()
            height = round(patient.pixels.shape[0] * setting.picture_px / patient.pixels.shape[1])
            above = round(setting.above * height)
            inside = np.zeros(grey.shape, bool)
            inside[above:above + height, setting.left:setting.left + setting.picture_px] = True
            assert (grey[~inside] == setting.bar).all() and np.ptp(grey[inside]) > 150
            assert min(grey.shape) >= scanner.MIN_PIXELS
            assert setting.picture_px * file.spacing_mm == pytest.approx(patient.pixels.shape[1] * patient.exposure.voxel_mm)


# cohorts


def test_a_cohort_of_mixed_files_is_clean_and_says_what_it_is(tiny_cohort):
    cohort = read_manifest(tiny_cohort)
    table = cohort.table
    assert table["export"].nunique() >= 4 and set(table["export"]) <= set(SHARES)
    for row, kind in enumerate(table["export"]):
        image = read_image(cohort.image_path(row))
        assert image.record["format"] == {"png": "PNG", "jpeg": "JPEG"}.get(kind, "DICOM")
        assert image.spacing_mm is None if kind in SCREENSHOTS else image.spacing_mm == pytest.approx(table["spacing_mm"][row])
        x0, y0, x1, y1 = table.loc[row, BOX]
        mask = np.asarray(Image.open(cohort.root / table["mask"][row])) > 0
        assert mask.shape == image.pixels.shape and mask[round(table["joint_y"][row]), round(table["joint_x"][row])]
        assert x0 < table["joint_x"][row] < x1 and y0 < table["joint_y"][row] < y1
    report = audit(tiny_cohort)
    assert report.exit_code == 0, report.to_frame().to_string()


def test_a_patient_whose_kind_of_file_changed_leaves_no_file_of_the_old_kind(tmp_path, monkeypatch):
    for kind, suffix in (("dicom", ".dcm"), ("jpeg", ".jpg"), ("png", ".png"), ("dicom-rle", ".dcm")):
        monkeypatch.setattr(export, "SHARES", {kind: 1.0})
        manifest = write_cohort(tmp_path, 2, seed=1, workers=1)
        images = sorted(path.name for path in (tmp_path / "images").iterdir())
        assert images == [f"V0001-00000{suffix}", f"V0001-00001{suffix}"]
        assert set(read_manifest(manifest).table["export"]) == {kind}
        manifest.unlink()  # as after a change of the code that draws
    write_cohort(tmp_path, 1, seed=1, workers=1)
    assert len(list((tmp_path / "images").iterdir())) == 1


# scanners


def measured(preset, monkeypatch, folder, scans=12):
    """What images of a preset say of it, as (mean, spread over scans): voxel and field in mm from a file that was read; level of the
    noise, its correlation from pixel to pixel and the grey value of muscle from flat pictures, each from a scan of its own."""
    monkeypatch.setattr(scanner, "PRESETS", (preset,))
    _, image = exported(draw_patient(1, 0), "dicom", folder)
    marks = {name: np.array([9000.0, 9000.0]) for name in ("upper", "lower")}
    seen = []
    for seed in range(scans):
        rng = np.random.default_rng(seed)
        flat = np.full((256, 256), 45, np.float32)
        exposure = replace(scanner.draw_exposure(rng), shape=flat.shape)
        grey = scanner.expose(flat, exposure, rng, marks).astype(float)[64:192, 64:192]
        steps, wide = np.diff(grey, axis=1), grey[:, 3:] - grey[:, :-3]  # differences take away what changes slowly
        seen.append((wide.std() / 2**0.5, 1 - (steps.std() / wide.std()) ** 2, np.median(grey)))
    field = np.array(image.pixels.shape) * image.spacing_mm
    still = [(image.spacing_mm, 0.004), (field[1], 2.0), (field[0], 2.0)]
    return np.array([*still, *zip(np.mean(seen, 0), np.std(seen, 0) / np.sqrt(scans), strict=True)])


def test_scanners_are_told_apart_by_their_images(monkeypatch, tmp_path):
    """Any two differ in two or more of: voxel, width and height of the field, level and grain of noise, grey value of muscle."""
    found = {preset.name: measured(preset, monkeypatch, tmp_path) for preset in scanner.PRESETS}
    assert len(found) >= 6
    for a, b in combinations(found, 2):
        apart = np.abs(found[a][:, 0] - found[b][:, 0]) > 3 * np.hypot(found[a][:, 1], found[b][:, 1])
        assert apart.sum() >= 2, (a, b, found[a], found[b])
    for place in range(6):  # each of the six is a difference between devices
        values = [item[place, 0] for item in found.values()]
        assert np.ptp(values) > 3 * max(item[place, 1] for item in found.values()), place


def test_some_large_fields_end_in_a_circle_or_a_rectangle():
    preset = next(p for p in scanner.PRESETS if p.field == "large")
    image = np.zeros((512, 590), np.float32)
    shapes = []
    for seed in range(20):
        black = scanner.bound(image, preset.voxel_mm, np.random.default_rng(seed)) == -1000
        assert 0 < black.mean() < 0.3 and not black[150:350, 150:400].any()
        corners, middles = black[[0, 0, -1, -1], [0, -1, 0, -1]].all(), black[0, 295]
        assert corners
        shapes.append(bool(middles))
    assert 3 < sum(shapes) < 17
