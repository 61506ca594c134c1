"""DICOM objects of an answer: the same values as in the table, the source's patient and study, a legal reference to the image that was staged."""

import csv
import hashlib
import json
import logging
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from highdicom import sr
from PIL import Image
from pydicom.uid import ComprehensiveSRStorage, CTImageStorage, SecondaryCaptureImageStorage, generate_uid
from test_predict import stager  # noqa: F401  (a fixture)

from sos import cli
from sos.images.reader import GreyImage, read_image
from sos.origin import find_origin
from sos.pictures import WARNING, capture
from sos.report import write_dicom
from sos.rows import USE


SECRETS = {"PatientName": "Mustermann^Jürgen", "PatientID": "ID-4711", "PatientBirthDate": "20101231", "StudyDate": "20240229",
           "AccessionNumber": "ACC99", "ReferringPhysicianName": "Gräfe^Anna"}


@pytest.fixture(scope="module")
def source(tiny_cohort, tmp_path_factory):
    """A virtual patient's image under a name, in Latin-1."""
    ds = pydicom.dcmread(sorted((tiny_cohort.parent / "images").glob("*.dcm"))[0])
    ds.SpecificCharacterSet = "ISO_IR 100"
    for name, value in SECRETS.items():
        setattr(ds, name, value)
    path = tmp_path_factory.mktemp("source") / "scan.dcm"
    ds.save_as(path)
    return path


@pytest.fixture(scope="module")
def written(source):
    """The table's row, the two objects, and all that was said, of one call of `sos predict`."""
    folder, before = source.parent, hashlib.sha256(source.read_bytes()).digest()
    command = ["predict", str(source), "--weights", "released", "--dicom", str(folder / "out"), "--out", str(folder / "stages.csv")]
    assert cli.main(command) == 0
    assert hashlib.sha256(source.read_bytes()).digest() == before
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0001_scan_capture.dcm", "0001_scan_report.dcm"]
    row = next(csv.DictReader((folder / "stages.csv").open(newline="")))
    return row, pydicom.dcmread(folder / "out" / "0001_scan_capture.dcm"), sr.srread(folder / "out" / "0001_scan_report.dcm")


@pytest.fixture(scope="module")
def image(source):
    return read_image(source)


def answered(stager, image):
    answer = stager.look(image)
    return answer.pop("cam"), answer


def objects(stager, image, path, folder):
    """Warnings, capture and report of an answer about `image`, said to come from `path`."""
    cam, answer = answered(stager, image)
    warnings = write_dicom(folder, "a", path, image, cam, answer, stager)
    return warnings, pydicom.dcmread(folder / "a_capture.dcm"), sr.srread(folder / "a_report.dcm")


def group_of(report):
    """The report's one group of measurements: of a region, or of an image."""
    content = report.content
    assert len(content.get_image_measurement_groups()) + len(content.get_planar_roi_measurement_groups()) == 1
    return (content.get_planar_roi_measurement_groups() or content.get_image_measurement_groups())[0]


def changed(source, folder, **values):
    """A copy of the source with elements changed, or gone where None."""
    ds = pydicom.dcmread(source)
    for name, value in values.items():
        if value is None:
            del ds[name]
        else:
            ds.add_new(name, pydicom.datadict.dictionary_VR(name), value)
    ds.save_as(folder / "changed.dcm")
    return folder / "changed.dcm"


def no_error_in(*paths):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    for path in paths:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert done.returncode == 0 and "Error" not in done.stdout + done.stderr, f"{path.name}: {done.stdout}{done.stderr}"


# what is said


def test_the_report_holds_the_values_of_the_table(written):
    row, _, report = written
    group = group_of(report)
    numbers = {item.name.value: float(item.value) for item in group.get_measurements()}
    assert all(item.unit.value == "1" and item.name.scheme_designator == "99SOS" for item in group.get_measurements())
    assert set(numbers) == {"expected-stage", "uncertainty", *(f"p-{k}" for k in range(1, 6))}
    for k in range(1, 6):
        assert numbers[f"p-{k}"] == pytest.approx(float(row[f"p{k}"]), abs=5.1e-5)
    for code, column in (("expected-stage", "expected_stage"), ("uncertainty", "uncertainty")):
        assert numbers[code] == pytest.approx(float(row[column]), abs=5.1e-4)
    stage, use = (item for item in group.get_qualitative_evaluations() if item.name.scheme_designator == "99SOS")
    assert stage.name.value == "bassed5" and stage.name.meaning == "Fusion stage (Bassed et al. 2010)"
    assert stage.value.value == f"bassed5-{row['stage']}" and stage.value.meaning.startswith(f"Stage {row['stage']}: ")
    assert use.value.meaning == "Research use only, not for clinical decisions"


def test_the_region_is_the_box_in_pixels_of_the_source(written, source):
    row, _, report = written
    region = group_of(report).roi
    x0, y0, x1, y1 = (float(row[f"box_{name}"]) for name in ("x0", "y0", "x1", "y1"))
    assert region.graphic_type.value == "POLYLINE"
    np.testing.assert_allclose(region.value, [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]], atol=0.051)
    assert group_of(report).reference_type.meaning == "Image Region"
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID


def test_it_is_told_who_computed_it(written):
    _, shown, report = written
    told = [(item.name.meaning, item.value) for item in group_of(report)[0].ContentSequence if item.ValueType == "TEXT"]
    assert ("Algorithm Name", "sos") in told and ("Algorithm Version", cli.__version__) in told
    parameters = [value for name, value in told if name == "Algorithm Parameters"]
    assert USE in parameters and any(text.startswith("weights: released student-") for text in parameters)
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"
    assert report.Manufacturer == shown.Manufacturer == "sos project"


def test_research_use_only_is_said_in_each_output(written, source, capsys):
    row, shown, report = written
    assert row["use"] == USE == "research use only"
    assert cli.main(["predict", str(source), "--weights", "released", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["use"] == USE
    assert USE in shown.SeriesDescription and "RESEARCH USE ONLY" in shown.ImageComments
    assert USE in report.SeriesDescription
    assert any(item.value.startswith("RESEARCH USE ONLY") for item in report.content[0].ContentSequence if item.ValueType == "TEXT")


# the picture


def test_the_capture_shows_box_and_warning_where_they_belong(written):
    row, shown, _ = written
    pixels = shown.pixel_array.astype(int)
    assert shown.PhotometricInterpretation == "RGB" and pixels.shape == (shown.Rows, shown.Columns, 3)
    scale = 900 / max(read_size(row["path"]))
    picture = pixels[:, :round(read_size(row["path"])[0] * scale)]
    rows, columns = np.nonzero((picture[..., 0] < 60) & (picture[..., 1] > 180) & (picture[..., 2] > 180))  # cyan
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(found, scale * np.array([float(row[f"box_{name}"]) for name in ("x0", "y0", "x1", "y1")]), atol=2.5)
    panel = pixels[:100, picture.shape[1]:]
    assert ((panel[..., 0] > 200) & (panel[..., 1] < 140) & (panel[..., 2] < 140)).sum() > 1000 and "RESEARCH USE ONLY" in WARNING


def read_size(path):
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return ds.Columns, ds.Rows


@pytest.mark.parametrize("size", [(300, 900), (900, 300), (40, 40)])
def test_a_capture_of_any_shape_has_room_for_the_words(stager, size):
    grey = np.random.default_rng(0).uniform(0, 1, size).astype(np.float32)
    seen = GreyImage(grey, None, {"warnings": []})
    pixels, scale = capture(seen, *answered(stager, seen), stager)
    assert pixels.shape == (max(round(size[0] * scale), 640), round(size[1] * scale) + 480, 3) and scale == 900 / max(size)
    assert pixels[620:, -400:].max() < 30  # the words end above


# whose it is


def test_patient_and_study_are_those_of_the_source(written, source):
    _, shown, report = written
    origin = pydicom.dcmread(source)
    for dataset in (shown, report):
        for name in (*SECRETS, "StudyInstanceUID", "PatientSex", "StudyID", "PatientIdentityRemoved"):
            assert str(dataset[name].value) == str(origin[name].value), name
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert len({dataset.SeriesInstanceUID for dataset in (shown, report, origin)}) == 3
    assert len({dataset.SOPInstanceUID for dataset in (shown, report, origin)}) == 3


def test_both_refer_to_the_source(written, source):
    _, shown, report = written
    uid = pydicom.dcmread(source).SOPInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in shown.SourceImageSequence] == [uid]
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    items = [item for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence]
    referred = {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in items}
    assert referred == {uid: CTImageStorage, shown.SOPInstanceUID: SecondaryCaptureImageStorage}
    names = [item.name.meaning for item in report.content[0].ContentSequence]
    assert names.index("Image Library") < names.index("Imaging Measurements")


def test_nothing_of_the_header_is_in_a_name_a_table_or_a_log(source, tmp_path, capsys, caplog):
    with caplog.at_level(logging.DEBUG):
        assert cli.main(["predict", str(source), "--weights", "released", "--dicom", str(tmp_path), "--cam", str(tmp_path), "--json"]) == 0
        assert cli.main(["predict", str(source), "--weights", "released", "--dicom", str(tmp_path), "--out", str(tmp_path / "a.csv")]) == 0
    told = capsys.readouterr()
    said = told.out + told.err + caplog.text + (tmp_path / "a.csv").read_text() + "".join(path.name for path in tmp_path.iterdir())
    for secret in (*SECRETS.values(), "Mustermann", "Gräfe", pydicom.dcmread(source).StudyInstanceUID):
        assert secret not in said


@pytest.mark.parametrize("odd", [{"PatientSex": "unclear"}, {"PatientBirthDate": "before 2010"}, {"PatientName": "A" * 90 + "^B^C^D^E^F^G"},
                                 {"StudyDate": "yesterday"}, {"AccessionNumber": "x" * 40}])
def test_an_odd_header_is_carried_over_and_not_quoted(odd, source, stager, image, tmp_path, caplog, recwarn):
    path = changed(source, tmp_path, **odd)
    with caplog.at_level(logging.DEBUG):
        warnings, shown, report = objects(stager, image, path, tmp_path)
    ((name, value),) = odd.items()
    assert str(shown[name].value) == str(report[name].value) == str(pydicom.dcmread(path)[name].value)
    assert value[:20] not in caplog.text + " ".join(warnings)


# what is missing


def test_a_header_without_identifiers_gives_legal_objects_and_says_so(source, stager, image, tmp_path):
    path = changed(source, tmp_path, PatientID=None, PatientName=None, StudyInstanceUID=None, SOPInstanceUID=None)
    warnings, shown, report = objects(stager, image, path, tmp_path)
    assert [text.partition(",")[0].partition(";")[0] for text in warnings] == [
        "the header has no study", "the header has no patient identifier", "the header lacks UIDs"]
    assert shown.StudyInstanceUID == report.StudyInstanceUID and shown.PatientID == report.PatientID == "" and "SourceImageSequence" not in shown
    region = group_of(report).roi
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == shown.SOPInstanceUID
    x0, y0, x1, y1 = 900 / max(image.pixels.shape) * np.array(stager.look(image)["box"])
    np.testing.assert_allclose(region.value[[0, 2]], [[x0, y0], [x1, y1]], atol=0.01)
    no_error_in(tmp_path / "a_capture.dcm", tmp_path / "a_report.dcm")


@pytest.mark.parametrize("uid", ["1.2.840.113619.4.30", "1.2.840.10008.5.1.4.1.1.6"])
def test_a_class_that_is_private_or_retired_is_not_referred_to(uid, source, stager, image, tmp_path):
    warnings, shown, report = objects(stager, image, changed(source, tmp_path, SOPClassUID=uid), tmp_path)
    assert len(warnings) == 1 and "names a class that is not known" in warnings[0] and "SourceImageSequence" not in shown
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    referred = [item.ReferencedSOPInstanceUID for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence]
    assert referred == [shown.SOPInstanceUID] and shown.StudyInstanceUID == pydicom.dcmread(source).StudyInstanceUID


def test_a_screenshot_has_no_study_and_gets_no_dicom(tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 300), np.uint8)).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "--weights", "released", "--dicom", str(tmp_path / "out"), "--out", str(tmp_path / "a.csv")]
    assert cli.main(command) == 0
    assert list((tmp_path / "out").iterdir()) == []
    assert "the input is no DICOM file" in next(csv.DictReader((tmp_path / "a.csv").open()))["warnings"]


def test_a_network_that_looked_nowhere_has_no_region(source, stager, image, tmp_path):
    cam, answer = answered(stager, image)
    assert write_dicom(tmp_path, "a", source, image, 0 * cam, answer | {"box": None, "peak": None}, stager) == []
    report = sr.srread(tmp_path / "a_report.dcm")
    assert not report.content.get_planar_roi_measurement_groups() and len(report.content.get_image_measurement_groups()) == 1
    no_error_in(tmp_path / "a_capture.dcm", tmp_path / "a_report.dcm")


@pytest.mark.parametrize("told", ["YES", "NO", None])
def test_burned_in_annotation_is_what_the_source_says(told, source, stager, image, tmp_path):
    """Our words name nobody; the image that they stand on may."""
    path = source if told is None else changed(source, tmp_path, BurnedInAnnotation=told)
    assert objects(stager, image, path, tmp_path)[1].get("BurnedInAnnotation") == told


def test_once_lossy_always_told(source, stager, image, tmp_path):
    path = changed(source, tmp_path, LossyImageCompression="01", LossyImageCompressionRatio="12.5", LossyImageCompressionMethod="ISO_10918_1")
    _, shown, _ = objects(stager, image, path, tmp_path)
    assert shown.LossyImageCompression == "01" and float(shown.LossyImageCompressionRatio) == 12.5


@pytest.mark.parametrize(("cosines", "letters"), [([0, -1, 0, 0, 0, -1], ["A", "F"]), ([0, 1, 0, 0, 0, -1], ["P", "F"]), (None, [])])
def test_the_orientation_is_that_of_the_source(cosines, letters, source, stager, image, tmp_path):
    path = changed(source, tmp_path, ImageOrientationPatient=cosines)
    _, shown, _ = objects(stager, image, path, tmp_path)
    assert list(shown.PatientOrientation or []) == letters


# series


@pytest.fixture
def series(tmp_path):
    """A folder with a CT series of five slices, a localiser of it, another patient's short series, and a text."""
    folder, uids = tmp_path / "series", [generate_uid() for _ in range(3)]
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    study = generate_uid()

    def write(name, series_uid, **more):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), study, series_uid
        ds.PatientID, ds.PatientName, ds.Modality, ds.Rows, ds.Columns = "P1", "One^A", "CT", 8, 6
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        for key, value in more.items():
            setattr(ds, key, value)
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / name, enforce_file_format=True)
        return ds.SOPInstanceUID

    kept = [write(f"{k}.dcm", uids[0]) for k in range(5)]
    write("localiser.dcm", uids[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for k in range(3):
        write(f"other{k}.dcm", uids[1], PatientID="P2")
    record = {"format": "DICOM series", "frames": 5, "volume": {"shape": (5, 8, 6)}, "slice": {}, "warnings": [], "size": (120, 100)}
    grey = np.random.default_rng(0).uniform(0.2, 0.4, (100, 120)).astype(np.float32)
    return folder, kept, GreyImage(grey, 0.4, record), write


def test_a_series_report_refers_to_all_its_files_and_its_region_to_the_capture(series, stager, tmp_path):
    folder, kept, cut, _ = series
    warnings, shown, report = objects(stager, cut, folder, tmp_path)
    assert warnings == [] and shown.BurnedInAnnotation == "NO" and list(shown.PatientOrientation) == ["A", "F"]
    assert {item.ReferencedSOPInstanceUID for item in shown.SourceImageSequence} == set(kept)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    referred = [item.ReferencedSOPInstanceUID for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence]
    assert sorted(referred) == sorted([*kept, shown.SOPInstanceUID])
    region = group_of(report).roi
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == shown.SOPInstanceUID
    x0, y0, x1, y1 = 900 / 120 * np.array(stager.look(cut)["box"])
    np.testing.assert_allclose(region.value[[0, 2]], [[x0, y0], [x1, y1]], atol=0.01)
    assert shown.PatientID == report.PatientID == "P1" and report.SOPClassUID == ComprehensiveSRStorage
    no_error_in(tmp_path / "a_capture.dcm", tmp_path / "a_report.dcm")


def test_two_series_that_fit_are_not_guessed_between(series, stager, tmp_path):
    folder, _, cut, write = series
    for k in range(2):
        write(f"more{k}.dcm", pydicom.dcmread(folder / "other0.dcm").SeriesInstanceUID)
    cam, answer = answered(stager, cut)
    assert write_dicom(tmp_path, "a", folder, cut, cam, answer, stager) == [
        "no DICOM objects were written: series: 2 series fit what was read; give the folder of one series"]
    assert not list(tmp_path.glob("*.dcm"))


def test_the_ct_series_is_taken_before_others_as_the_reader_does(series):
    folder, kept, cut, write = series
    uid = generate_uid()
    for k in range(5):
        write(f"mr{k}.dcm", uid, Modality="MR")
    assert {header.SOPInstanceUID for header in find_origin(folder, cut).headers} == set(kept)


# tools


def test_the_validator_finds_no_error(written, source):
    no_error_in(*(source.parent / "out").iterdir())


def test_objects_appear_only_when_whole(source, stager, image, tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom.Dataset, "save_as", lambda self, file, **_: file.write(b"half") and 1 / 0)
    cam, answer = answered(stager, image)
    assert write_dicom(tmp_path, "a", source, image, cam, answer, stager) == ["no DICOM objects were written (ZeroDivisionError)"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_objects_fail_stops_no_other_and_its_header_is_not_quoted(source, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError(SECRETS["PatientName"])

    monkeypatch.setattr("sos.report.structured_report", fail)
    command = ["predict", str(source), str(source), "--weights", "released", "--dicom", str(tmp_path / "out"), "--out", str(tmp_path / "a.csv")]
    assert cli.main(command) == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["warnings"] for row in rows] == ["no DICOM objects were written (ValueError)"] * 2 and rows[0]["stage"]
    assert list((tmp_path / "out").iterdir()) == []
