"""Whole virtual heads: the truth in the manifest against the voxels, the tags against the truth, files against DICOM's own tools."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from sos import cli
from sos.cohort.manifest import read_manifest
from sos.images.dicom import Volume, read_series
from sos.images.midsagittal import Plane, resample
from sos.images.reader import read_image
from sos.phantom import series, write
from sos.phantom.write import VOLUME_COLUMNS, draw_patient, write_cohort

COARSE_MM = 1.2
COUNT = 2


@pytest.fixture(scope="module")
def small():
    """Fields with voxels of 1.2 mm: a volume in about a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "FIELDS", {name: (*field[:2], COARSE_MM, *field[3:]) for name, field in series.FIELDS.items()})
        yield


@pytest.fixture(scope="module")
def cohort(small, tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("volumes"), COUNT, seed=2, workers=1, volumes=True)


@pytest.fixture(scope="module")
def rows(cohort):
    with open(cohort, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def volumes(cohort, rows):
    return [read_series(cohort.parent / row["image"]) for row in rows]


def numbers(row, *names):
    return np.array([float(row[name]) for name in names])


def true_plane(row) -> Plane:
    normal = numbers(row, "nx", "ny", "nz")
    return Plane(normal, float(normal @ numbers(row, "px", "py", "pz")), 1.0, 1.0)


def mirrored(volume, plane, step=5) -> float:
    """Correlation of the voxels within 60 mm of the middle with their mirror images, by nearest neighbours."""
    at = np.stack(np.meshgrid(*[np.arange(0, n, step) for n in volume.values.shape], indexing="ij"), -1).reshape(-1, 3)
    place = at @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    at, place = at[np.hypot(*place.T[:2]) < 60], place[np.hypot(*place.T[:2]) < 60]
    image = place - 2 * (place @ plane.normal - plane.offset_mm)[:, None] * plane.normal
    index = np.rint((image - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T).astype(int)
    inside = ((index >= 0) & (index < volume.values.shape)).all(1) & (np.hypot(*image.T[:2]) < 60)
    return float(np.corrcoef(volume.values[tuple(at[inside].T)], volume.values[tuple(index[inside].T)])[0, 1])


# the truth


def test_the_manifest_is_a_cohorts_and_its_slices_can_be_read(cohort, rows):
    assert tuple(rows[0]) == VOLUME_COLUMNS
    table = read_manifest(cohort).table
    assert len(table) == COUNT and read_manifest(cohort).virtual
    for index, row in enumerate(rows):
        person = draw_patient(2, index).person  # who a patient is does not depend on what is written
        assert (int(row["stage"]), float(row["age_y"]), row["sex"]) == (person.stage, person.age_y, person.sex)
        assert abs(numbers(row, "yaw_deg", "roll_deg", "pitch_deg")).max() <= 15
        assert abs(numbers(row, "shift_x_mm", "shift_y_mm", "shift_z_mm")).max() <= 15


def test_poses_are_spread_and_clipped():
    poses = [series.draw_pose(series.streams(5, index)[2]) for index in range(400)]
    turns, shifts = (np.array(values) for values in list(zip(*poses, strict=True))[1:])
    assert abs(turns).max() <= 15 and abs(shifts).max() <= 15
    np.testing.assert_allclose(turns.std(0), series.TURN_SD_DEG, rtol=0.15)
    np.testing.assert_allclose(shifts.std(0), series.SHIFT_SD_MM, rtol=0.15)


def test_truth_of_plane_and_turn_agree(rows):
    for row in rows:
        plane = true_plane(row)
        assert np.linalg.norm(plane.normal) == pytest.approx(1, abs=1e-5)
        assert (plane.yaw_deg, plane.roll_deg) == pytest.approx(tuple(numbers(row, "yaw_deg", "roll_deg")), abs=2e-3)
        assert plane.normal @ numbers(row, "joint_x_mm", "joint_y_mm", "joint_z_mm") == pytest.approx(plane.offset_mm, abs=2e-3)


def test_box_and_mask_are_in_pixels_of_the_slice_in_the_true_plane(cohort, rows, volumes):
    for row, volume in zip(rows, volumes, strict=True):
        values, spacing_mm = resample(volume, true_plane(row))
        mask = np.asarray(Image.open(cohort.parent / row["mask"])) > 0
        assert mask.shape == values.shape and spacing_mm == pytest.approx(COARSE_MM)
        (x0, y0, x1, y1), (x, y) = numbers(row, "x0", "y0", "x1", "y1"), numbers(row, "joint_x", "joint_y")
        below, across = np.nonzero(mask)
        assert x0 <= across.min() and across.max() < x1 and y0 <= below.min() and below.max() < y1
        assert mask[int(round(y)), int(round(x))]
        # the pixel of the joint is where the joint's place in patient coordinates says: a spot put there is found there
        spot = np.zeros_like(volume.values)
        place = numbers(row, "joint_x_mm", "joint_y_mm", "joint_z_mm")
        spot[tuple(np.rint(np.linalg.inv(volume.affine) @ [*place, 1])[:3].astype(int))] = 1
        seen = resample(replace(volume, values=spot), true_plane(row))[0]
        assert np.hypot(*(np.unravel_index(np.nanargmax(seen), seen.shape) - np.array([y, x]))) < 1.5


def test_an_open_joint_is_dark_where_the_manifest_says():
    """In the slice cut from the scanner's own voxels in the true plane: along the joint's line, and 3 mm before and behind it."""
    index = next(i for i in range(40) if draw_patient(2, i).person.fusion.stage == 1)
    scan = series.draw_scan(2, index, voxel_mm=0.7)
    scan = replace(scan, shape=(114, 114, 114))  # the middle 80 mm of the field
    volume = Volume(np.stack(list(series.axial_slices(scan))).astype(np.float32), scan.affine, True, {"warnings": []})
    section = series.true_slice(scan).section
    values = gaussian_filter(resample(volume, scan.plane)[0], 0.5)
    line = section.landmarks["line"][14:-14]  # (n, 2) pixels, without the ends
    chord = line[-1] - line[0]
    across = np.array([chord[1], -chord[0]]) / np.linalg.norm(chord) * 3.0 / scan.voxel_mm
    there, *beside = (map_coordinates(values, (line + k * across).T[::-1], order=1).mean() for k in (0, -1, 1))
    assert there < min(beside) - 60
    assert section.joint[tuple(np.rint(line[len(line) // 2]).astype(int)[::-1])]


def test_the_middle_of_the_head_is_the_section(small):
    scan = series.draw_scan(2, 1)
    # the frame has the section's growth: both drew the same numbers
    np.testing.assert_allclose(scan.middle.frame.to_px(scan.middle.outline[0])[0], scan.middle.section.landmarks["basion"])
    head = series.draw_head(scan.person, scan.middle, np.random.default_rng(0), 0.1)
    middle = head.hu[int(head.centre[0])].astype(float)
    assert np.corrcoef(middle.ravel(), scan.middle.section.hu.ravel())[0, 1] > 0.99
    sides = [head.hu[int(head.centre[0]) + k].astype(float) for k in (-12, 12)]
    assert 0.9 < np.corrcoef(sides[0].ravel(), sides[1].ravel())[0, 1] < 1


def test_halves_are_alike_about_the_true_plane_only(rows, volumes):
    for row, volume in zip(rows, volumes, strict=True):
        plane = true_plane(row)
        true = mirrored(volume, plane)
        assert true > 0.75  # noise and the paired structures, which differ from side to side, keep it below 1
        for offset in (-4, 4):
            assert mirrored(volume, replace(plane, offset_mm=plane.offset_mm + offset)) < true - 0.02
        for tilt in ((0, 0.09, 0), (0, -0.09, 0), (0, 0, 0.09), (0, 0, -0.09)):
            normal = plane.normal + tilt
            normal /= np.linalg.norm(normal)
            wrong = replace(plane, normal=normal, offset_mm=float(normal @ numbers(row, "px", "py", "pz")))
            assert mirrored(volume, wrong) < true - 0.01


def test_the_reader_finds_the_plane(cohort, rows):
    for row in rows:
        image = read_image(cohort.parent / row["image"])
        found, true = image.record["slice"], true_plane(row)
        assert abs(found["yaw_deg"] - true.yaw_deg) < 1.5 and abs(found["roll_deg"] - true.roll_deg) < 1.5
        yaw, roll = np.radians([found["yaw_deg"], found["roll_deg"]])
        normal = np.array([np.cos(roll) * np.cos(yaw), np.cos(roll) * np.sin(yaw), np.sin(roll)])
        assert abs(normal @ numbers(row, "joint_x_mm", "joint_y_mm", "joint_z_mm") - found["offset_mm"]) < 1.5
        mask = Image.open(cohort.parent / row["mask"])
        assert np.abs(np.subtract(image.pixels.shape, mask.size[::-1])).max() <= 6  # so a box is off by a few pixels at most


# files


def test_tags_agree_with_the_truth_and_tell_nothing_more(cohort, rows, volumes):
    for row, volume in zip(rows, volumes, strict=True):
        files = sorted((cohort.parent / row["image"]).iterdir())
        assert len(files) == volume.values.shape[0] and volume.oriented and not volume.record["warnings"]
        np.testing.assert_allclose(volume.voxel_mm, COARSE_MM, atol=1e-6)
        middle = volume.affine @ [*(np.array(volume.values.shape) - 1) / 2, 1]
        np.testing.assert_allclose(middle[:3], 0, atol=1e-3)  # the origin is the middle of the field
        slices = [pydicom.dcmread(path) for path in (files[0], files[-1])]
        assert len({ds.FrameOfReferenceUID for ds in slices} | {ds.SeriesInstanceUID for ds in slices}) == 2
        assert slices[0].SOPInstanceUID != slices[1].SOPInstanceUID
        for ds, number in zip(slices, (1, len(files)), strict=True):
            assert (ds.InstanceNumber, ds.PatientPosition, ds.Modality) == (number, "HFS", "CT")
            assert list(ds.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
            assert ds.PatientID == row["patient_id"] and str(ds.PatientName) == f"Virtual^{row['patient_id']}"
            assert ds.PatientBirthDate == ds.StudyDate == ds.StudyTime == ds.ReferringPhysicianName == ""
            assert not any(str(element.value) for element in ds if element.VR in ("DA", "TM", "DT"))
        corner = volume.values[:, 0, 0]
        assert (corner == -1000).all() and (volume.values[:, -1, -1] == -1000).all()  # outside the cylinder


def test_same_seed_same_bytes_and_a_second_call_writes_nothing(small, cohort, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in cohort.parent.rglob("*")}
    assert write_cohort(cohort.parent, COUNT, seed=2, volumes=True) == cohort
    assert {path: path.stat().st_mtime_ns for path in cohort.parent.rglob("*")} == before
    again = write_cohort(tmp_path, 1, seed=2, workers=1, volumes=True)
    for path in (again.parent / "volumes" / "V0002-00000").iterdir():
        assert path.read_bytes() == (cohort.parent / "volumes" / "V0002-00000" / path.name).read_bytes(), path.name
    assert again.read_text().splitlines() == cohort.read_text().splitlines()[:2]


def test_an_interrupted_run_goes_on_and_another_recipe_starts_anew(small, tmp_path, monkeypatch):
    written = []

    def quick(folder, scan):
        written.append(folder.name)
        if scan.index == 1 and len(written) == 2:
            raise KeyboardInterrupt
        folder.mkdir()
        (folder / "0001.dcm").touch()

    monkeypatch.setattr(write, "write_series", quick)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, 2, seed=1, workers=1, volumes=True)
    (tmp_path / "volumes" / ".V0001-00001.123").mkdir()  # what a killed process leaves
    write_cohort(tmp_path, 2, seed=1, workers=1, volumes=True)
    assert written == ["V0001-00000", "V0001-00001", "V0001-00001"]
    assert sorted(path.name for path in (tmp_path / "volumes").iterdir()) == ["V0001-00000", "V0001-00001"]
    card = tmp_path / "cohort.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"fingerprint": "older"}))
    write_cohort(tmp_path, 1, seed=1, workers=1, volumes=True)
    assert written[3:] == ["V0001-00000"] and [path.name for path in (tmp_path / "volumes").iterdir()] == ["V0001-00000"]
    write_cohort(tmp_path, 1, seed=1, workers=1)
    assert not list((tmp_path / "volumes").iterdir()) and len(list((tmp_path / "images").iterdir())) == 1


def test_command_line(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, "write_series", lambda folder, scan: folder.mkdir())
    assert cli.main(["phantom", str(tmp_path / "a"), "--patients", "1", "--seed", "3", "--volumes"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "manifest.csv")
    assert (tmp_path / "a" / "volumes" / "V0003-00000").is_dir() and not (tmp_path / "a" / "images").exists()
    assert cli.main(["phantom", str(tmp_path / "b"), "--patients", "0", "--volumes"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "patients >= 1" in error


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_every_slice_is_valid(cohort, rows):
    for row in rows:
        for path in sorted((cohort.parent / row["image"]).iterdir())[::12]:
            told = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
            assert not re.search("^Error", told.stdout + told.stderr, re.MULTILINE), told.stderr


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not installed")
def test_a_series_converts_to_one_volume(cohort, rows, volumes, tmp_path):
    done = subprocess.run(["dcm2niix", "-o", tmp_path, "-f", "head", cohort.parent / rows[0]["image"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert [path.name for path in tmp_path.glob("*.nii")] == ["head.nii"]
    header = (tmp_path / "head.nii").read_bytes()[:348]
    assert tuple(np.frombuffer(header[42:48], "<i2")) == volumes[0].values.shape[::-1]
    np.testing.assert_allclose(np.frombuffer(header[80:92], "<f4"), COARSE_MM, rtol=1e-4)
