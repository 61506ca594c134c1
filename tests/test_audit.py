"""The audit of a sound cohort is empty; each fault planted in one is told once, in its row, and nothing identifying with it."""

import json
import logging
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from sos.cohort import audit_files
from sos.cohort.audit import audit
from sos.cohort.audit_headers import DUMMY, REMOVED
from sos.cohort.reviews import add_review
from sos.stages import BASSED5, FRANKLIN4

SIDE = 520
HEADER = "patient_id,image,stage,age_y,sex,x0,y0,x1,y1,split"
SECRET = "ROSALIND^DOE"


def pixels(seed: int) -> np.ndarray:
    """(520, 520) uint16 of a bright disc in grey in black, with noise of its own."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    grey = 800 * (np.hypot(x, y) < 230) + 1500 * (np.hypot(x - 40, y + 20) < 60)
    return (grey + np.random.default_rng(seed).integers(0, 500, grey.shape)).astype(np.uint16)


def write_dicom(path: Path, stored: np.ndarray, **attributes) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelSpacing, data.ImageOrientationPatient = [0.3, 0.3], [0, 1, 0, 0, 0, -1]
    data.PatientIdentityRemoved, data.DeidentificationMethod, data.PatientID, data.PatientName = "YES", "by a test", "p0", "p0"
    data.PatientAge, data.PatientSex = "012Y", "F"
    data.PixelData = stored.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_cohort(root: Path, count: int = 4) -> list[list]:
    """DICOM files for `count` patients; the rows of their manifest, all sound."""
    rows = []
    for i in range(count):
        write_dicom(root / f"{i}.dcm", pixels(i))
        rows.append([f"p{i}", f"{i}.dcm", i % 5 + 1, [10, 12.5, 14, 16, 18][i % 5], "FM"[i % 2], 200, 210, 290, 280, ""])
    return rows


def run(root: Path, rows: list[list], header: str = HEADER, **options):
    text = "\n".join([header] + [",".join(map(str, row)) for row in rows]) + "\n"
    (root / "manifest.csv").write_text(text)
    return audit(root / "manifest.csv", workers=2, **options)


def told(report) -> list[tuple]:
    return list(report.to_frame()[["severity", "row", "what"]].itertuples(index=False, name=None))


def test_a_sound_cohort_has_no_finding(tmp_path):
    calls = []
    report = run(tmp_path, write_cohort(tmp_path), progress=lambda done, total: calls.append((done, total)))
    assert told(report) == [] and report.usable and report.exit_code == 0
    assert report.counts == {"rows": 4, "patients": 4, "images": 4, "images_readable": 4, "errors": 0, "warnings": 0}
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(report.to_frame().columns) == ["severity", "row", "patient_id", "file", "what", "advice", "kind"]


CELLS = {  # column, what is written there in row 3 (patient p1), severity, what is told
    "stage outside": (2, 6, "error", "stage '6' is not in the scheme 'bassed5'"),
    "stage of words": (2, "open", "error", "stage 'open' is not in the scheme 'bassed5'"),
    "stage between": (2, 2.5, "error", "stage '2.5' is not in the scheme 'bassed5'"),
    "no stage": (2, "", "error", "stage '' is not in the scheme 'bassed5'"),
    "age of words": (3, "twelve", "error", "age_y 'twelve' is not a number"),
    "age in months": (3, 150, "warning", "an age of 150 years is implausible"),
    "no age": (3, "", "warning", "age_y is empty"),
    "sex in words": (4, "male", "warning", "sex 'male' is neither F nor M"),
    "old and endocranial": (3, 30, "warning", "an age of 30 years contradicts stage 2 (endocranial)"),
    "young and endocranial": (3, 4, "warning", "an age of 4 years contradicts stage 2 (endocranial)"),
    "unknown split": (9, "dev", "error", "split 'dev' is unknown"),
    "no identifier": (0, "", "error", "patient_id is empty"),
    "no box": (5, "", "error", "the box (, 210, 290, 280) is incomplete or no number"),
    "box of words": (6, "top", "error", "the box (200, top, 290, 280) is incomplete or no number"),
    "box reversed": (5, 400, "error", "the box has no extent"),
    "box outside": (7, 600, "error", "the box reaches outside the image (520×520 px)"),
    "box before the edge": (6, -3, "error", "the box reaches outside the image (520×520 px)"),
    "box too narrow": (5, 280, "warning", "the box covers 2 % of the image's width (12 to 27 % is usual)"),
    "box too wide": (5, 0.0, "warning", None),
}


@pytest.mark.parametrize("name", CELLS)
def test_each_wrong_cell_is_told_in_its_row(tmp_path, name):
    column, value, severity, what = CELLS[name]
    rows = write_cohort(tmp_path)
    rows[1][column] = value
    if name == "box too wide":
        rows[1][7], what = 400, "the box covers 77 % of the image's width (12 to 27 % is usual)"
    if name == "unknown split":
        rows = [row[:9] + [row[9] or "train"] for row in rows]
    report = run(tmp_path, rows)
    assert told(report) == [(severity, 3, what)]
    assert report.findings[0].file == "1.dcm" and report.findings[0].advice
    assert report.usable and report.exit_code == 1


def test_fused_in_a_child_and_open_in_an_adult_contradict_by_sex(tmp_path):
    rows = write_cohort(tmp_path)
    rows[0][2:5], rows[1][2:5], rows[2][2:5], rows[3][2:5] = [5, 7, "F"], [1, 17.5, "M"], [1, 17.5, "F"], [5, 60, "M"]
    assert told(run(tmp_path, rows)) == [("warning", 2, "an age of 7 years contradicts stage 5 (fused)"),
                                         ("warning", 4, "an age of 17.5 years contradicts stage 1 (open)")]


def test_another_scheme_has_other_labels(tmp_path):
    rows = write_cohort(tmp_path)
    for row in rows:
        row[2] -= 1
    assert told(run(tmp_path, rows, scheme=FRANKLIN4)) == []
    assert told(run(tmp_path, rows, scheme=BASSED5)) == [("error", 2, "stage '0' is not in the scheme 'bassed5'")]


def test_a_patient_in_two_splits_and_half_a_column_are_errors(tmp_path):
    rows = write_cohort(tmp_path)
    for row, split in zip(rows, ("train", "test", "train", ""), strict=True):
        row[9] = split
    rows[1][0] = "p0"
    rows[1][4] = "F"
    assert told(run(tmp_path, rows)) == [
        ("error", 2, "the patient is in test and train"), ("error", 3, "the patient is in test and train"),
        ("error", 5, "split is empty while other rows have one")]


def test_the_same_pixels_under_two_patients_whatever_the_format(tmp_path):
    rows = write_cohort(tmp_path)
    Image.fromarray(pixels(0)).save(tmp_path / "copy.png")
    write_dicom(tmp_path / "again.dcm", pixels(2), RescaleIntercept=-1000, RescaleSlope=1)
    rows[1][1] = "copy.png"
    rows.append(["p2", "again.dcm", *rows[2][2:]])
    assert told(run(tmp_path, rows)) == [
        ("error", 2, "the same pixels under several patients (rows 2, 3)"),
        ("error", 3, "the same pixels under several patients (rows 2, 3)"),
        ("warning", 6, "the same pixels as in row 4")]


def test_unreadable_files_are_told_and_the_rest_goes_on(tmp_path):
    rows = write_cohort(tmp_path, 5)
    (tmp_path / "0.dcm").write_bytes(b"")
    (tmp_path / "1.dcm").write_text("not an image " * 30)
    (tmp_path / "2.dcm").write_bytes((tmp_path / "2.dcm").read_bytes()[:-999])
    rows[3][1] = "none.dcm"
    report = run(tmp_path, rows)
    assert told(report) == [
        ("error", 2, "unreadable: the file is empty; copy it again"),
        ("error", 3, "unreadable: not a DICOM file; give a DICOM, PNG, JPEG or TIFF image"),
        ("error", 4, "unreadable: truncated, 539801 of 540800 bytes of pixel data are there; copy or export it again"),
        ("error", 5, "unreadable: no such file or folder; check the path")]
    assert report.counts["images_readable"] == 1 and report.exit_code == 1
    assert run(tmp_path, rows[:4]).exit_code == 2


@pytest.mark.parametrize("name", ["../outside.dcm", "/etc/hostname", "link.dcm"])
def test_files_outside_the_folder_are_not_opened(tmp_path, name, monkeypatch):
    root = tmp_path / "cohort"
    root.mkdir()
    rows = write_cohort(root)
    write_dicom(tmp_path / "outside.dcm", pixels(9))
    (root / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    rows[1][1] = name
    opened = []
    real = audit_files.read_image
    monkeypatch.setattr(audit_files, "read_image", lambda path: opened.append(path.name) or real(path))
    assert told(run(root, rows)) == [("error", 3, "unreadable: lies outside the manifest's folder and was not opened")]
    assert sorted(opened) == ["0.dcm", "2.dcm", "3.dcm"]


def test_coarse_small_clipped_and_odd_images_are_told(tmp_path):
    rows = write_cohort(tmp_path, 5)
    write_dicom(tmp_path / "0.dcm", pixels(0), PixelSpacing=[0.7, 0.7])
    Image.fromarray(pixels(1)[:400]).save(tmp_path / "1.dcm", "PNG")
    rows[1][5:9] = [200, 210, 260, 260]
    saturated = pixels(2)
    saturated[saturated > 1600] = 1600
    write_dicom(tmp_path / "2.dcm", saturated)
    dark = np.zeros((SIDE, SIDE), np.uint16)
    dark[240:400, 240:400] = pixels(3)[240:400, 240:400]
    write_dicom(tmp_path / "3.dcm", dark)
    write_dicom(tmp_path / "4.dcm", pixels(4), Modality="MR")
    share = round(100 * (saturated == 1600).mean())
    black = round(100 * (dark <= np.percentile(dark, 0.5)).mean())
    assert told(run(tmp_path, rows)) == [
        ("warning", 2, "pixels of 0.7 mm are too coarse to see the joint"),
        ("warning", 3, "60 px across the box are few to see the joint in"),
        ("warning", 4, f"{share} % of the pixels are clipped at the bright end"),
        ("warning", 5, f"{black} % of the pixels are clipped at the dark end"), ("warning", 6, "the modality is MR, not CT")]


def test_a_small_field_of_fine_pixels_is_no_low_resolution(tmp_path):
    rows = [row + [""] for row in write_cohort(tmp_path, 3)]
    for i in range(3):
        write_dicom(tmp_path / f"{i}.dcm", pixels(i)[60:460, 60:460])
    Image.fromarray(pixels(1)[60:460, 60:460]).save(tmp_path / "1.dcm", "PNG")  # 90 px across the box are enough
    Image.fromarray(pixels(2)[60:460, 60:460]).save(tmp_path / "2.dcm", "PNG")
    rows[2][5:9], rows[2][10] = [200, 210, 240, 250], 0.4  # the manifest knows the spacing
    assert told(run(tmp_path, rows, HEADER + ",spacing_mm")) == []
    rows[2][10] = 0.8
    assert told(run(tmp_path, rows, HEADER + ",spacing_mm")) == [("warning", 4, "pixels of 0.8 mm are too coarse to see the joint")]
    rows[2][5], rows[2][10] = "", ""
    assert ("warning", 4, "400×400 px are few to see the joint in") in told(run(tmp_path, rows, HEADER + ",spacing_mm"))


def test_the_spacing_column_is_compared_with_the_file(tmp_path):
    rows = [row + [spacing] for row, spacing in zip(write_cohort(tmp_path), (0.3, 0.31, 0.4, ""), strict=True)]
    assert told(run(tmp_path, rows, HEADER + ",spacing_mm")) == [("warning", 4, "spacing_mm says 0.4, the file 0.3")]


def test_identifying_fields_are_named_and_never_quoted(tmp_path):
    rows = write_cohort(tmp_path)
    nested, other = Dataset(), Dataset()
    nested.PatientMotherBirthName = SECRET
    other.PatientName = SECRET
    write_dicom(tmp_path / "0.dcm", pixels(0), PatientName=SECRET, PatientBirthDate="19991231", PatientIdentityRemoved="NO")
    write_dicom(tmp_path / "1.dcm", pixels(1), PatientAddress=SECRET, PatientName="p1", RequestAttributesSequence=[nested])
    write_dicom(tmp_path / "2.dcm", pixels(2), PatientIdentityRemoved="", PatientID="", PatientName="", BurnedInAnnotation="YES",
                OriginalAttributesSequence=[other])
    with_private = pydicom.dcmread(tmp_path / "3.dcm")
    with_private.private_block(0x0099, "VENDOR", create=True).add_new(1, "LO", SECRET)
    with_private.PatientIdentityRemoved = "NO"
    with_private.PatientID = with_private.PatientName = ""
    with_private.save_as(tmp_path / "3.dcm")
    report = run(tmp_path, rows)
    unmarked = "the header does not say that it was de-identified"
    assert told(report) == [
        ("warning", 2, "identifying header fields: PatientName, PatientID, PatientBirthDate"), ("warning", 2, unmarked),
        ("warning", 3, "identifying header fields: PatientAddress, PatientMotherBirthName"),
        ("warning", 4, "identifying header fields: PatientName"), ("warning", 4, unmarked),
        ("warning", 4, "the header says that text is burned into the pixels"),
        ("warning", 5, "identifying header fields: private elements"), ("warning", 5, unmarked)]
    for text in (report.to_json(), report.to_frame().to_csv()):
        assert "ROSALIND" not in text and "1999" not in text


def test_the_header_must_say_that_and_how_it_was_de_identified(tmp_path):
    rows = write_cohort(tmp_path, 4)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Application Confidentiality Profile"
    write_dicom(tmp_path / "0.dcm", pixels(0), DeidentificationMethod="")
    write_dicom(tmp_path / "1.dcm", pixels(1), DeidentificationMethod="", DeidentificationMethodCodeSequence=[code])
    write_dicom(tmp_path / "2.dcm", pixels(2), PatientIdentityRemoved="", PatientID="", PatientName="", DeidentificationMethod=SECRET)
    write_dicom(tmp_path / "3.dcm", pixels(3), PatientIdentityRemoved="NO", PatientID="", PatientName="", DeidentificationMethod="")
    report = run(tmp_path, rows)
    assert told(report) == [("warning", 2, "the header says that it was de-identified, and not how"),
                            ("warning", 4, "the header does not say that it was de-identified"),
                            ("warning", 5, "the header does not say that it was de-identified")]
    assert [finding.advice.endswith("beside the method that it names") for finding in report.findings] == [False, True, False]
    assert "ROSALIND" not in report.to_json()


def test_every_listed_header_field_is_one_of_the_standard():
    assert all(tag_for_keyword(name) for name in REMOVED + DUMMY if not name.startswith("Overlay"))
    assert len(set(REMOVED + DUMMY)) == len(REMOVED + DUMMY)


def test_every_header_of_a_series_is_looked_at(tmp_path, monkeypatch):
    rows = write_cohort(tmp_path)
    (tmp_path / "series").mkdir()
    for i in range(3):
        write_dicom(tmp_path / f"series/{i}", pixels(20 + i), **({"PatientAddress": SECRET} if i == 2 else {}))
    rows[1][1] = "series"
    real = audit_files.read_image  # three slices are no volume; what the reader cuts out of one is tested with the reader
    monkeypatch.setattr(audit_files, "read_image", lambda path: real(path / "0" if path.is_dir() else path))
    assert told(run(tmp_path, rows)) == [("warning", 3, "identifying header fields: PatientAddress")]


@pytest.mark.parametrize("content, what", [
    (None, "no such manifest"),
    (b"", "not a readable CSV file (No columns to parse from file)"),
    (b"\xff\xfe\x00stage", "not a readable CSV file (UnicodeDecodeError)"),
    (HEADER.encode() + b"\n", "the manifest has no row"),
    (HEADER.encode() + b"\np,0.dcm,1,10,F,1,2,3,4,,,,\n", "not a readable CSV file ("),
])
def test_what_is_no_manifest_is_unusable(tmp_path, content, what):
    if content is not None:
        (tmp_path / "manifest.csv").write_bytes(content)
    report = audit(tmp_path / "manifest.csv")
    (severity, row, text), = told(report)
    assert severity == "error" and pd.isna(row) and text.startswith(what)
    assert not report.usable and report.exit_code == 2 and report.counts["rows"] == 0


def test_missing_doubled_and_private_columns_are_told(tmp_path):
    rows = [row + row[2:3] + ["x"] for row in write_cohort(tmp_path)]
    report = run(tmp_path, [row[:3] + row[4:] for row in rows], "patient_id,image,stage,sex,x0,y0,x1,y1,split,stage,Birth_date")
    assert [what for _, _, what in told(report)] == ["column missing: age_y", "column twice: stage",
                                                     "the column 'Birth_date' may identify patients"]
    assert not report.usable and report.counts["images_readable"] == 4
    report = run(tmp_path, [], HEADER.replace(",", ";") + "\np;0.dcm;1;10;F;1;2;3;4;")
    assert report.findings[0].what.startswith("column missing: patient_id")
    assert report.findings[0].advice == "separate columns by commas"


def test_short_rows_blank_lines_and_a_byte_order_mark_are_taken(tmp_path):
    rows = write_cohort(tmp_path, 2)
    text = "\ufeff" + HEADER + "\n\n" + ",".join(map(str, rows[0])) + "\n" + ",".join(map(str, rows[1][:5])) + "\n"
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    assert told(audit(tmp_path / "manifest.csv")) == [("error", 4, "the box (, , , ) is incomplete or no number")]


def test_json_and_table_say_the_same(tmp_path):
    rows = write_cohort(tmp_path)
    rows[2][2], rows[0][3] = 9, 150
    report = run(tmp_path, rows)
    record = json.loads(report.to_json())
    assert record["manifest"] == "manifest.csv" and record["usable"] is True and record["counts"] == report.counts
    assert pd.DataFrame(record["findings"]).to_dict("list") == report.to_frame().astype({"row": int}).to_dict("list")
    assert [finding["severity"] for finding in record["findings"]] == ["error", "warning"]
    assert str(tmp_path) not in report.to_json()


# ---- reviews --------------------------------------------------------------------------------------------------------


def test_boxes_and_stages_of_reviews_count_and_excluded_images_do_not(tmp_path):
    rows = write_cohort(tmp_path)
    rows[0][2] = ""  # no stage
    rows[1][5:9] = [""] * 4  # no box
    rows[2][3] = 300  # an age in months, of an image that is excluded
    path = tmp_path / "reviews.csv"
    add_review(path, "AB", "p0", "stage", 1)
    add_review(path, "AB", "p1", "box", (200, 210, 290, 280))
    add_review(path, "AB", "p2", "exclude", "yes")
    report = run(tmp_path, rows)
    assert told(report) == [] and report.usable and report.counts["rows"] == 3
    path.unlink()
    assert [row for _, row, _ in told(run(tmp_path, rows))] == [2, 3, 4]


def test_a_review_that_makes_a_row_worse_is_told_in_that_row(tmp_path):
    add_review(tmp_path / "reviews.csv", "AB", "p1", "box", (200, 210, 900, 280))
    assert told(run(tmp_path, write_cohort(tmp_path))) == [("error", 3, "the box reaches outside the image (520×520 px)")]


def test_a_line_that_is_no_review_makes_the_cohort_unusable_and_is_named(tmp_path):
    add_review(tmp_path / "reviews.csv", "AB", "p0", "stage", 2)
    with open(tmp_path / "reviews.csv", "a") as file:
        file.write("yesterday,AB,p1,stage,3,,\n")
    report = run(tmp_path, write_cohort(tmp_path))
    assert report.exit_code == 2 and [(finding.file, finding.kind) for finding in report.findings] == [("reviews.csv", "reviews")]
    assert report.findings[0].what == "line 3: 'yesterday' is no time" and report.findings[0].advice == "write it as 2025-01-31T12:00:00+00:00"


# ---- metadata of other formats --------------------------------------------------------------------------------------


def write_screenshots(root: Path) -> list[list]:
    """A PNG, a JPEG and a TIFF that hold SECRET in each field of text that they can, and an image without any; the rows of their manifest."""
    rows, images = write_cohort(root), [Image.fromarray((pixels(i) // 12).astype(np.uint8)) for i in range(4)]
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    for name in ("Author", "PatientName", SECRET, "Software"):
        texts.add_text(name, SECRET)
    texts.add_text("Comment", " ")
    texts.add_itxt("XML:com.adobe.xmp", SECRET)
    images[0].save(root / "0.png", pnginfo=texts)
    exif[0x010E], exif[0x013B], exif[0x9C9D] = SECRET, " ", SECRET.encode("utf-16le")
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + SECRET.encode()
    exif.get_ifd(0x8825)[2] = (41.0, 52.0, 10.0)  # latitude
    images[1].save(root / "1.jpg", quality=95, comment=SECRET.encode(), exif=exif, xmp=SECRET.encode())
    caption = b"\x1c\x02\x78" + struct.pack(">H", len(SECRET)) + SECRET.encode()
    segment = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(caption)) + caption
    content = (root / "1.jpg").read_bytes()
    (root / "1.jpg").write_bytes(content[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    images[2].save(root / "2.tif", tiffinfo={tag: SECRET for tag in (270, 315, 316, 33432)} | {700: SECRET.encode()})
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0   "
    images[3].save(root / "3.jpg", quality=95, exif=exif)
    for row, name in zip(rows, ("0.png", "1.jpg", "2.tif", "3.jpg"), strict=True):
        row[1] = name
    return rows


def test_texts_in_other_formats_are_named_and_never_quoted(tmp_path, caplog):
    rows = write_screenshots(tmp_path)
    with caplog.at_level(logging.DEBUG):
        report = run(tmp_path, rows)
        found = [audit_files.inspect(tmp_path, row[1]) for row in rows]
    assert [facts.header.identifying for facts in found] == [
        ["Author", "PatientName", "text of another name", "XML:com.adobe.xmp"],
        ["JPEG comment", "XMP", "IPTC", "ImageDescription", "XPAuthor", "UserComment", "GPS"],
        ["ImageDescription", "Copyright", "HostComputer", "Artist", "XMP"], []]
    assert [what for _, _, what in told(report)] == [f"identifying header fields: {', '.join(facts.header.identifying)}" for facts in found[:3]]
    assert {finding.kind for finding in report.findings} == {"identifying header fields"}
    assert "ROSALIND" not in report.to_json() + report.to_frame().to_csv() + caplog.text


def test_screenshots_of_virtual_patients_hold_no_text(tiny_cohort):
    paths = [path for path in sorted((tiny_cohort.parent / "images").iterdir()) if path.suffix != ".dcm"]
    assert {path.suffix for path in paths} == {".png", ".jpg"}
    for path in paths:
        assert audit_files.inspect(path.parent, path.name).header.identifying == []
