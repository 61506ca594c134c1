"""Somebody else's folder and table become a manifest: every mapping told, every row that cannot be mapped kept out with its reason, hostile
spreadsheets refused, and nothing read, written or printed that was not asked for."""

import csv
import io
import os
import random
import shutil
import stat
import unicodedata
import zipfile
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openpyxl import Workbook
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from sos import cli
from sos.cohort import sheet as sheets
from sos.cohort.collect import collect, value_maps
from sos.cohort.locate import Folder
from sos.cohort.manifest import BOX, REQUIRED, read_manifest, read_rows
from sos.cohort.sheet import letter, read_sheet
from sos.cohort.words import Unmapped
from sos.errors import CohortError
from sos.images.dicom import read_series

SECRET = "ROSALIND^DOE"


def picture(path: Path, grey: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), grey, np.uint8)).save(path)
    return path


def slice_file(path: Path, series: str, number: int = 0, patient: str = SECRET, **attributes) -> Path:
    """One axial CT slice of 8×8 pixels, all of the value 10 + number."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    data.Modality, data.PatientID, data.PatientName, data.InstanceNumber = "CT", patient, SECRET, number + 1
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelSpacing = 1, "MONOCHROME2", [1, 1]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, number]
    data.PixelData = np.full((8, 8), 10 + number, np.uint16).tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def table(path: Path, *lines, encoding: str = "utf-8", mark: str = ",") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator="\n").writerows(lines)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def workbook(path: Path, *lines) -> Path:
    book = Workbook()
    for line in lines:
        book.active.append(line)
    book.save(path)
    return path


@pytest.fixture
def scans(tmp_path):
    """A folder with the pictures a.png to d.png."""
    for i, name in enumerate("abcd"):
        picture(tmp_path / "scans" / f"{name}.png", 50 + 20 * i)
    return tmp_path / "scans"


def manifest(done) -> pd.DataFrame:
    return pd.read_csv(done.manifest, dtype=str, keep_default_na=False)


def refused(*words, call, **options):
    """The call must raise one line that holds all words; no manifest is left behind."""
    with pytest.raises(CohortError) as caught:
        call(**options)
    told = str(caught.value)
    assert "\n" not in told
    for word in words:
        assert word in told, told


# ---- the whole way -------------------------------------------------------------------------------------------------


def test_loose_files_and_a_german_workbook_give_the_cohort_they_were_made_from(tiny_cohort, tmp_path, capsys):
    original = pd.read_csv(tiny_cohort, dtype=str)
    rng, lines = random.Random(1), []
    for i, row in enumerate(original.itertuples()):
        name = f"Aufnahme_{rng.randrange(10**6):06d}"
        place = tmp_path / "loose" / ("sub" if i % 5 == 0 else "") / f"{name}{Path(row.image).suffix.upper()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_cohort.parent / row.image, place)
        lines.append([row.patient_id, float(row.age_y), {"F": "w", "M": "m"}[row.sex], ["I", "II", "III", "IV", "V"][int(row.stage) - 1], name,
                      *(float(getattr(row, edge)) for edge in BOX)])
    rng.shuffle(lines)
    workbook(tmp_path / "Patienten.xlsx", ["Kohorte 2024"],
             ["PatNr", "Alter (Jahre)", "Geschlecht", "Stadium", "Datei", "li", "ob", "re", "un"], *lines)
    assert cli.main(["collect", str(tmp_path / "loose"), "--table", str(tmp_path / "Patienten.xlsx"), "--columns", "x0=li", "y0=ob", "x1=re",
                     "y1=un"]) == 0
    told = capsys.readouterr().out
    assert "stage ← 'Stadium' (column D, found by its name)" in told and "x0 ← 'li' (column F)\n" in told
    assert "24 rows, 24 patients" in told and "audit: 24 of 24 images readable; 0 errors" in told
    ours, theirs = read_manifest(tmp_path / "loose" / "manifest.csv"), read_manifest(tiny_cohort)
    columns = ["patient_id", "stage", "age_y", "sex", *BOX, "split", "target"]  # the split does not depend on the order of rows
    a, b = (cohort.table.sort_values("patient_id", ignore_index=True)[columns] for cohort in (ours, theirs))
    pd.testing.assert_frame_equal(a, b, check_dtype=False)
    place = {row.patient_id: theirs.root / row.image for row in theirs.table.itertuples()}
    assert all((ours.root / row.image).read_bytes() == place[row.patient_id].read_bytes() for row in ours.table.itertuples())


def test_what_cannot_be_mapped_is_kept_out_listed_and_nothing_else_is_lost(scans, tmp_path, capsys):
    table(tmp_path / "t.csv", ["id", "file", "stage", "sex", "age"], ["p1", "a", "2", "F", "9"], ["p2", "b", "unclear", "F", "9"], [],
          ["p3", "nowhere", "3", "M", "9"], ["p4", "d", "4", "x", "9"], ["", "c", "4", "M", "9"], ["p6", "c.png", "5", "M", "nine"],
          ["p7", "c", "5", "M", ""])
    assert cli.main(["collect", str(scans), "--table", str(tmp_path / "t.csv")]) == 1
    told = capsys.readouterr().out
    rejected = pd.read_csv(scans / "manifest.rejected.csv")
    assert rejected["row"].tolist() == [3, 5, 6, 7, 8]  # as a spreadsheet counts, the empty row 4 too
    for (row, reason), word in zip(rejected.itertuples(index=False), ["stage 'unclear'", "no file", "sex 'x'", "patient_id is empty", "age_y 'nine'"],
                                   strict=True):
        assert word in reason and f"kept out: row {row}: {reason}" in told
    found = pd.read_csv(scans / "manifest.csv", dtype=str, keep_default_na=False)
    assert list(found) == list(REQUIRED)
    assert found.values.tolist() == [["p1", "a.png", "2", "9", "F", "", "", "", "", ""], ["p7", "c.png", "5", "", "M", "", "", "", "", ""]]
    assert "2 rows without a box" in told and "age_y is empty: 1 row\n" in told


def test_where_no_row_is_left_the_reasons_are_told_and_no_manifest_is_written(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "x", "2"], ["p2", "y", "2"], ["p3", "a", "9"])
    refused("none of its 3 rows", "image ← 'file'", "row 2: no file", "row 4: stage '9'", call=lambda: collect(scans, sheet))
    assert not (scans / "manifest.csv").exists()


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_text_in_any_dialect_gives_the_same_rows(tmp_path, mark, encoding):
    sheet = read_sheet(table(tmp_path / "t.csv", ["Größe, in cm", "Alter"], ["1,5", "12,25"], [], ["ä; ö – €", "7"], mark=mark, encoding=encoding))
    assert sheet.columns == ("Größe, in cm", "Alter")
    assert sheet.rows == [(2, ("1,5", "12,25")), (4, ("ä; ö – €", "7"))]


def test_decimal_commas_are_read_and_told(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "Alter", "left", "top", "right", "bottom"],
                  ["p1", "a", "2", "9,5", "1,5", "2", "11", "12"], mark=";")
    done = collect(scans, sheet)
    assert manifest(done)[["age_y", *BOX]].values.tolist() == [["9.5", "1.5", "2", "11", "12"]]
    assert "age_y: a comma read as the decimal point: 1 row" in done.notes


def test_a_workbook_gives_numbers_dates_and_padded_identifiers_as_people_see_them(tmp_path):
    book = Workbook()
    book.active.append(["id", "born", "age", "stage"])
    book.active.append([7, datetime(2010, 3, 4), 12.5, 3.0])
    book.active["A2"].number_format = "0000"
    book.create_sheet("other").append(["x", "y"])
    book.save(tmp_path / "t.xlsx")
    sheet = read_sheet(tmp_path / "t.xlsx")
    assert sheet.rows == [(2, ("0007", "2010-03-04", "12.5", "3"))]
    assert sheet.notes[0] == "sheet 'Sheet' of 2 (--sheet chooses: Sheet, other)"
    refused("no row below", call=lambda: read_sheet(tmp_path / "t.xlsx", "other"))
    refused("no sheet 'third'; it has Sheet, other", call=lambda: read_sheet(tmp_path / "t.xlsx", "third"))


def test_formulas_give_their_stored_values_and_one_without_is_told(scans, tmp_path):
    path = workbook(tmp_path / "t.xlsx", ["id", "file", "stage", "note"], ["p1", "a", 2, "=cmd|'/c calc'!A1"], ["p2", "b", "=1+2", "n"],
                    ["p3", "c", "=1+2", "n"], ["p4", "d", "#N/A", "n"])  # an error is typed as one
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert members[name].count(b"<f>1+2</f><v") == 2
    members[name] = members[name].replace(b"<f>1+2</f><v />", b"<f>1+2</f><v>3</v>", 1).replace(b"<f>1+2</f><v></v>", b"<f>1+2</f><v>3</v>", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    done = collect(scans, path)
    assert manifest(done)["stage"].tolist() == ["2", "3"]
    assert [row for row, _ in done.rejected] == [4, 5]
    kept = collect(scans, path, keep=("note",), force=True)
    assert manifest(kept)["note"].tolist() == ["", "n"]
    assert "the kept column 'note' is empty in 1 row, whose formula has no stored value or an error" in kept.notes
    assert "cell C4) holds a formula without a stored value" in done.rejected[0][1] and "holds an error" in done.rejected[1][1]


def test_a_row_of_nothing_but_formulas_without_values_is_told_too(scans, tmp_path):
    path = workbook(tmp_path / "t.xlsx", ["id", "file", "stage"], ["=A9", "=B9", "=C9"], ["p2", "b", 2])
    assert [row for row, _ in collect(scans, path).rejected] == [2]


def test_a_merged_heading_leaves_columns_that_are_named_by_their_letter(scans, tmp_path):
    book = Workbook()
    book.active.append(["id", "file", "stage", "Box"])
    book.active.append(["p1", "a", 2, 1, 2, 11, 12])
    book.active.merge_cells("D1:G1")
    book.save(tmp_path / "t.xlsx")
    columns = {"x0": "Box", "y0": "column E", "x1": "column F", "y1": "column G"}
    assert manifest(collect(scans, tmp_path / "t.xlsx", columns=columns))[BOX].values.tolist() == [["1", "2", "11", "12"]]


HOSTILE = {
    "nothing": (b"", "is empty"),
    "bytes": (bytes(range(256)) * 40, "neither XLSX nor text"),
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old .xls"),
    "zip of nothing": (b"PK\x05\x06" + bytes(18), "not a readable XLSX"),
    "cut off": (b"PK\x03\x04" + bytes(60), "not a readable XLSX"),
    "one column": (b"id\np1\n", "no row with names of columns"),
    "heading alone": (b"id,stage\n", "no row below"),
    "wide": (b"," * 600 + b"x\na,b\n", "more than 500 columns"),
    "long": (b"id,stage\n" + b"p,1\n" * 100_001, "more than 100000 rows"),
    "endless cell": (b'id,stage\n"' + b"p" * 200_000 + b'",1\n', "not readable as CSV"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_table_is_told_in_one_line(tmp_path, name):
    data, word = HOSTILE[name]
    (tmp_path / "t.xlsx").write_bytes(data)
    refused(str(tmp_path / "t.xlsx"), word, call=lambda: read_sheet(tmp_path / "t.xlsx"))


def test_a_pipe_or_a_folder_in_place_of_a_table_is_told_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        refused("not a file", call=lambda path=path: read_sheet(path))
    refused("no such spreadsheet", call=lambda: read_sheet(tmp_path / "absent.csv"))


def with_sheet(path: Path, xml: bytes) -> Path:
    """A workbook whose one sheet is `xml`."""
    workbook(path, ["id", "stage"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members | {"xl/worksheets/sheet1.xml": xml}).items():
            archive.writestr(name, data)
    return path


def test_a_workbook_that_inflates_without_end_is_refused_before_it_does(tmp_path, monkeypatch):
    path = with_sheet(tmp_path / "t.xlsx", b" " * (sheets.MAX_BYTES + 1))
    assert path.stat().st_size < 10**6
    monkeypatch.setattr("openpyxl.load_workbook", lambda *_, **__: pytest.fail("it was opened"))
    refused("inflates to more than 64 MiB", call=lambda: read_sheet(path))


def test_entities_that_multiply_are_refused(tmp_path):
    entities = b"".join(b'<!ENTITY e%d "%s">' % (i, b"&e%d;" % (i - 1) * 10 if i else b"lol" * 10) for i in range(10))
    path = with_sheet(tmp_path / "t.xlsx", b"<!DOCTYPE w [" + entities + b"]><worksheet><sheetData>&e9;</sheetData></worksheet>")
    refused("not a readable XLSX workbook", call=lambda: read_sheet(path))


def test_a_cell_at_the_far_end_of_a_sheet_costs_nothing(tmp_path):
    book = Workbook()
    book.active.append(["id", "stage"])
    book.active["A90000"] = "p1"
    book.save(tmp_path / "t.xlsx")
    assert read_sheet(tmp_path / "t.xlsx").rows == [(90000, ("p1", ""))]


@pytest.mark.parametrize(("column", "name"), [(0, "A"), (25, "Z"), (26, "AA"), (701, "ZZ"), (702, "AAA")])
def test_letters_of_columns(column, name):
    assert letter(column) == name


# ---- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "columns", "words"), [
    (["id", "file", "stage"], {"patient_id": "PatNo"}, ["no column 'PatNo'", "it has: id, file, stage"]),
    (["PatNr", "file", "stage"], {"patient_id": "Pat Nummer"}, ["did you mean 'PatNr'?"]),
    (["id", "PatNr", "stage"], {}, ["'id' (column A) and 'PatNr' (column B) could both be patient_id"]),
    (["id", "file", "stage"], {"patientid": "id"}, ["no such column; did you mean patient_id?"]),
    (["Score", "file", "id"], {}, ["which column is stage?", "Score, file, id"]),
    (["id", "Age", "Age"], {"age_y": "Age", "stage": "Age"}, ["there 2 times", "'column B' or 'column C'"]),
    (["id", "stage", "left"], {}, ["only x0 is there"]),
    (["id", "stage", "DOB"], {"birth_date": "DOB"}, ["needed both"]),
])
def test_a_column_that_is_not_clear_is_an_error_that_says_what_there_is(scans, tmp_path, head, columns, words):
    sheet = table(tmp_path / "t.csv", head, ["1"] * len(head))
    refused(*words, call=lambda: collect(scans, sheet, columns=columns))
    assert sorted(path.name for path in scans.iterdir()) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_column_that_was_named_for_one_thing_is_not_found_for_another(tmp_path):
    picture(tmp_path / "scans" / "p1.png")
    sheet = table(tmp_path / "t.csv", ["id", "scan"], ["p1", "2"])
    done = collect(tmp_path / "scans", sheet, columns={"stage": "scan"})
    assert manifest(done)[["image", "stage"]].values.tolist() == [["p1.png", "2"]]


def test_ages_in_months_are_not_taken_for_years_by_the_name_of_their_column(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "Alter (Monate)"], ["p1", "a", "2", "150"])
    assert manifest(collect(scans, sheet))["age_y"].tolist() == [""]
    done = collect(scans, sheet, columns={"age_y": "alter monate"}, months=True, force=True)
    assert manifest(done)["age_y"].tolist() == ["12.50"]


def test_only_named_columns_are_carried_over_and_nothing_in_them_is_computed(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "Device", "Name"], ["p1", "a", "2", "=cmd|'/c calc'!A1", SECRET],
                  ["p2", "b", "2", "-1.5", SECRET])
    done = collect(scans, sheet, keep=("Device",))
    assert manifest(done)["Device"].tolist() == ["'=cmd|'/c calc'!A1", "-1.5"] and SECRET not in done.manifest.read_text()
    assert "not carried over (--keep does): Name" in done.notes
    assert "the kept column 'Name' may identify people" in collect(scans, sheet, keep=("Name",), force=True).notes
    refused("--keep stage", call=lambda: collect(scans, sheet, keep=("stage",), force=True))


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "stage"), [("3", "3"), ("3.0", "3"), ("III", "3"), ("iv", "4"), ("Ⅲ", "3"), ("Stage 3", "3"),
                                             ("SOS-Stadium V", "5"), ("3,0", "3"), ("3,5", None),
                                             ("endocranial", "2"), ("VI", None), ("2.5", None), ("2-3", None), ("0.5", None), ("stage", None)])
def test_stages_as_people_write_them(scans, tmp_path, text, stage):
    done = collect(scans, table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", text], ["p2", "b", "1"]))
    assert manifest(done)["stage"].tolist() == ([stage] if stage else []) + ["1"]


def test_stages_that_count_from_zero_are_not_shifted_silently(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "0"], ["p2", "b", "4"], ["p3", "c", "5"])
    refused("stage 0 occurs (1 row)", "--values stage:0=1,1=2,2=3,3=4,4=5", call=lambda: collect(scans, sheet))
    done = collect(scans, sheet, values=value_maps(["stage:0=1,1=2,2=3,3=4,4=5"]))
    assert manifest(done)["stage"].tolist() == ["1", "5"] and "not among the words" in done.rejected[0][1]


@pytest.mark.parametrize(("words", "texts", "stages"), [
    ("+=1,++=2,+++=3", ["+", "++", "+++", "-"], ["1", "2", "3", None]), ("2-=1,2=2,2+=3", ["2+", "2", "2-"], ["3", "2", "1"]),
    ("3=3,15=5", ["<3", "1.5", "3+", "3,0"], [None, None, None, "3"]), ("<3=2,>3=4", [">3", "<3", "3"], ["4", "2", None]),
    ("Früh=1,spät=4", ["fruh", "SPÄT", "früh ", "spä t"], ["1", "4", "1", "4"]), ("A=1,a=2", ["a", "A", "ä"], ["2", "1", None])])
def test_words_that_differ_by_signs_are_different_stages(scans, tmp_path, words, texts, stages):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], *([f"p{i}", "abcd"[i], text] for i, text in enumerate(texts)))
    done = manifest(collect(scans, sheet, values=value_maps([f"stage:{words}"])))
    assert dict(zip(done["patient_id"], done["stage"], strict=True)) == {f"p{i}": stage for i, stage in enumerate(stages) if stage}


@pytest.mark.parametrize(("words", "values", "sexes"), [
    (["weiblich", "Männlich", "-"], {}, ["F", "M", ""]), (["1", "2", "1.0"], {"sex": {"1": "M", "2": "F"}}, ["M", "F", "M"]),
    (["F", "H", "f"], {}, ["F", "M", "F"]), (["9", "Frau", "m"], {"sex": {"9": "", "frau": "F", "m": "M"}}, ["", "F", "M"])])
def test_sexes_in_several_languages_or_as_told(scans, tmp_path, words, values, sexes):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "Gender"], *([f"p{i}", "abc"[i], "2", word] for i, word in enumerate(words)))
    assert manifest(collect(scans, sheet, values=values))["sex"].tolist() == sexes


def test_m_for_mujer_is_not_taken_for_male(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "sexo"], ["p1", "a", "2", "M"], ["p2", "b", "2", "H"])
    refused("both H and M", "--values sex:h=M,m=F", call=lambda: collect(scans, sheet))
    assert manifest(collect(scans, sheet, values={"sex": {"h": "M", "m": "F"}}))["sex"].tolist() == ["F", "M"]


@pytest.mark.parametrize(("text", "word"), [("sex:1=X", "sex is one of F, M"), ("stage:a=7", "stage is one of 1, 2, 3, 4, 5"),
                                            ("age:1=2", "stage, sex, split"),
                                            ("sex", "COLUMN:OLD=NEW"), ("sex:1=M,1=F", "twice"), ("sex:1=M sex:2=F sex:1=F", "twice")])
def test_a_map_of_words_that_leads_nowhere_is_refused(scans, tmp_path, text, word):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "2"])
    refused(word, call=lambda: collect(scans, sheet, values=value_maps(text.split())))


@pytest.mark.parametrize(("born", "seen", "age"), [("2010-01-31", "2020-01-31", "10.00"), ("31.01.2010", "31.07.2020", "10.50"),
                                                   ("01/31/2010", "02/01/2020", "10.00"), ("31/01/2010", "01/02/2020", "10.00"),
                                                   ("20100131", "2020-01-31 12:00:00", "10.00"), ("2010-1-31", "2020/1/31", "10.00"),
                                                   ("2010013", "2020-01-31", None), ("31.01.10", "2020-01-31", None),
                                                   ("2010-02-31", "2020-01-31", None), ("2020-01-31", "2010-01-31", None)])
def test_an_age_from_two_dates_and_neither_date_anywhere(scans, tmp_path, capsys, born, seen, age):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "DOB", "Scan date"], ["p1", "a", "2", born, seen], ["p2", "b", "2", "", "2020-01-01"])
    assert cli.main(["collect", str(scans), "--table", str(sheet)]) == (0 if age else 1)
    found = pd.read_csv(scans / "manifest.csv", dtype=str, keep_default_na=False)
    assert found["age_y"].tolist() == ([age] if age else []) + [""]
    written = "".join(path.read_text() for path in scans.glob("*.csv")) + "".join(capsys.readouterr())
    assert born not in written and seen not in written and "2010" not in written


def test_dates_and_names_in_the_wrong_column_are_not_quoted(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "dob", "who"], ["p1", "a", "2", "2010-03-04", f"{SECRET} of Nowhere"],
                  ["p2", "b", "2", "", ""])
    for columns in ({"age_y": "dob"}, {"sex": "who"}, {"stage": "dob"}, {"stage": "who"}, {"x0": "dob", "y0": "dob", "x1": "dob", "y1": "dob"}):
        try:
            done = collect(scans, sheet, columns=columns, force=True)
            told = str(done.rejected) + done.rejects.read_text()
        except CohortError as error:
            told = str(error)
        assert "row 2" in told.replace("(2,", "row 2") and "(not shown)" in told and "2010" not in told and "ROSALIND" not in told


def test_dates_that_can_be_read_in_two_orders_are_an_error(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", "dob", "exam date"], ["p1", "a", "2", "03/04/2010", "05/06/2020"])
    refused("--dates dmy or --dates mdy", call=lambda: collect(scans, sheet))
    days = [(date(2020, 6, 5) - date(2010, 4, 3)).days, (date(2020, 5, 6) - date(2010, 3, 4)).days]
    ages = [manifest(collect(scans, sheet, dates=order, force=True))["age_y"][0] for order in ("dmy", "mdy")]
    assert ages == [f"{n / 365.25:.2f}" for n in days]


@pytest.mark.parametrize(("form", "cells"), [("xyxy", "10 20 30 50"), ("xywh", "10 20 20 30"), ("centre", "20 35 20 30")])
def test_boxes_in_three_forms(scans, tmp_path, form, cells):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage", *BOX], ["p1", "a", "2", *cells.split()], ["p2", "b", "2", "", "", "", ""],
                  ["p3", "c", "2", "1", "", "", ""], ["p4", "d", "2", "5", "5", "-1", "-1"])
    done = collect(scans, sheet, box=form)
    assert manifest(done)[BOX].values.tolist() == [["10", "20", "30", "50"], [""] * 4]
    assert ("incomplete" in done.rejected[0][1], "no extent" in done.rejected[1][1], done.without_box) == (True, True, 1)


@pytest.mark.parametrize("patient", ["=cmd|'/c calc'!A1", "@SUM(1)", "+cmd|x", "a\x07b"])
def test_an_identifier_that_a_spreadsheet_would_compute_is_refused(scans, tmp_path, patient):
    done = collect(scans, table(tmp_path / "t.csv", ["id", "file", "stage"], [patient, "a", "2"], ["-12", "b", "2"]))
    assert manifest(done)["patient_id"].tolist() == ["-12"] and "plain identifier" in done.rejected[0][1]


# ---- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "found"), [("x/one.png", "x/one.png"), ("x/one", "x/one.png"), ("ONE", "x/one.png"),
                                             (r"C:\scans\one.png", "x/one.png"),
                                             ("/elsewhere/one.png", "x/one.png"), ("two", None), ("y/two", "y/two.png"), ("1.2.3", "1.2.3"),
                                             ("1.2", None), ("../t.csv", None), ("note.txt", None), ("pipe", None)])
def test_an_image_is_found_by_what_a_cell_says_of_it(tmp_path, cell, found):
    root = tmp_path / "scans"
    for name in ("x/one.png", "x/two.png", "y/two.png"):
        picture(root / name)
    slice_file(root / "1.2.3", "s")
    (root / "note.txt").write_text("not an image")
    os.mkfifo(root / "pipe")
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", cell, "2"], ["p2", "1.2.3", "2"] if found != "1.2.3" else [])
    assert manifest(collect(root, sheet))["image"][0] == (found or "1.2.3")


def test_patients_are_found_by_folders_and_words_of_names_never_by_parts_of_them(tmp_path):
    root = tmp_path / "scans"
    picture(root / "1" / "any.png", 10)
    picture(root / "12" / "1" / "series folder named as another patient.png", 20)
    picture(root / "ct_A-7_final.png", 30)
    picture(root / "A-77.png", 40)
    picture(root / "x13.png", 50)
    picture(root / "B1_B2.png", 60)
    sheet = table(tmp_path / "t.csv", ["id", "stage"], *([name, "2"] for name in ("1", "12", "a-7", "A-77", "13", "B1", "B2")))
    done = collect(root, sheet)
    assert dict(manifest(done)[["patient_id", "image"]].values) == {"1": "1/any.png", "12": "12/1/series folder named as another patient.png",
                                                                    "a-7": "ct_A-7_final.png", "A-77": "A-77.png"}
    assert [row for row, _ in done.rejected] == [6, 7, 8]
    assert "no image found" in done.rejected[0][1] and "another patient" in done.rejected[1][1]


def test_headers_are_matched_in_memory_only(tmp_path, capsys):
    root = tmp_path / "scans"
    slice_file(root / "q.dcm", "one", patient="MRN-4711")
    slice_file(root / "r.dcm", "two", patient=SECRET)
    sheet = table(tmp_path / "t.csv", ["id", "stage"], ["MRN-4711", "2"], ["MRN-9", "3"])
    assert cli.main(["collect", str(root), "--table", str(sheet), "--match", "dicom-patient-id", "--pseudonyms"]) == 1
    told = "".join(capsys.readouterr()) + "".join(path.read_text() for path in root.glob("*.csv"))
    assert SECRET not in told and "MRN" not in told and "ROSALIND" not in repr(Folder(root, read_patients=True).kind(root / "r.dcm"))
    assert pd.read_csv(root / "manifest.csv")[["patient_id", "image"]].values.tolist() == [["p0001", "q.dcm"]]


def test_several_images_of_a_patient_are_several_rows_unless_there_is_one_box(tmp_path):
    root = tmp_path / "scans"
    for name in ("p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png", "p3.png"):
        picture(root / name, len(name) * 10 + ord(name[3]))
    sheet = table(tmp_path / "t.csv", ["id", "stage", *BOX], ["p1", "2", "", "", "", ""], ["p2", "3", "1", "1", "5", "5"],
                  ["p3", "1", "", "", "", ""], ["p3", "2", "", "", "", ""])
    done = collect(root, sheet)
    assert manifest(done)[["patient_id", "image"]].values.tolist() == [["p1", "p1/a.png"], ["p1", "p1/b.png"]]
    assert "2 images were found but the row has one box" in done.rejected[0][1] and "the patient has 2 rows" in done.rejected[1][1]


def test_one_image_under_two_patients_is_nobodys(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "2"], ["p2", "a.png", "2"], ["p3", "b", "2"], ["p3", "b", "2"])
    done = collect(scans, sheet)
    assert manifest(done)["patient_id"].tolist() == ["p3"]
    twice = "the same image is named for several patients (rows 2, 3)"
    assert [reason for _, reason in done.rejected] == [twice, twice, "the same image as in row 4"]


@pytest.fixture
def slices(tmp_path):
    """Two patients' series of four slices in one folder, each with a localiser; a third's alone in a folder, with a localiser and a note."""
    root = tmp_path / "scans"
    for number in range(4):
        for patient in ("p1", "p2"):
            slice_file(root / f"{patient}_{number}.dcm", patient, number)
        slice_file(root / "p3" / f"IM{number}", "p3", number)
    for patient in ("p1_loc.dcm", "p2_loc.dcm", "p3/loc"):
        slice_file(root / patient, f"{patient} scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (root / "p3" / "README").write_text("thanks")
    return root, table(tmp_path / "t.csv", ["id", "stage"], ["p1", "2"], ["p2", "3"], ["p3", "4"])


def test_a_series_in_a_folder_of_its_own_is_that_folder_and_one_among_others_is_told(slices):
    root, sheet = slices
    done = collect(root, sheet)
    assert manifest(done)[["patient_id", "image"]].values.tolist() == [["p3", "p3"]]
    assert read_series(root / "p3").values[:, 0, 0].tolist() == [10, 11, 12, 13]  # not the localiser
    assert [row for row, _ in done.rejected] == [2, 3] and all("--into DIR" in reason for _, reason in done.rejected)


def test_a_localiser_counts_only_where_there_is_nothing_else(tmp_path):
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    slice_file(tmp_path / "scans" / "p1" / "a.dcm", "p1 scout", **scout)
    slice_file(tmp_path / "scans" / "p1" / "b.dcm", "p1")
    slice_file(tmp_path / "scans" / "p2" / "a.dcm", "p2 scout", **scout)
    done = collect(tmp_path / "scans", table(tmp_path / "t.csv", ["id", "stage"], ["p1", "2"], ["p2", "3"]))
    assert manifest(done)["image"].tolist() == ["p1/b.dcm", "p2/a.dcm"]


def test_a_tidy_copy_has_neutral_names_and_each_series_in_a_folder(slices, tmp_path):
    root, sheet = slices
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    done = collect(root, sheet, into=tmp_path / "tidy", pseudonyms=True, key=tmp_path / "key.csv")
    assert done.manifest == tmp_path / "tidy" / "manifest.csv" and done.rejected == []
    assert manifest(done)[["patient_id", "image", "stage"]].values.tolist() == [[f"p000{p}", f"p000{p}", f"{p + 1}"] for p in (1, 2, 3)]
    names = sorted(path.relative_to(done.manifest.parent).as_posix() for path in (tmp_path / "tidy").rglob("*"))
    assert names == ["manifest.csv", *(f"p000{p}{n}" for p in (1, 2, 3) for n in ("", "/0001.dcm", "/0002.dcm", "/0003.dcm", "/0004.dcm"))]
    volume = read_series(tmp_path / "tidy" / "p0002")
    assert volume.values[:, 0, 0].tolist() == [10, 11, 12, 13]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    key = pd.read_csv(tmp_path / "key.csv")
    assert stat.S_IMODE((tmp_path / "key.csv").stat().st_mode) == 0o600
    assert key[key["patient_id"] == "p0002"]["file"].tolist() == [f"p2_{n}.dcm" for n in range(4)]
    assert set(key["patient_id_in_sheet"]) == {"p1", "p2", "p3"}
    refused("so that no key is lost", call=lambda: collect(root, sheet, into=tmp_path / "other", key=tmp_path / "key.csv"))
    refused("not empty", call=lambda: collect(root, sheet, tmp_path / "m.csv", into=tmp_path / "tidy"))


def test_a_key_that_cannot_be_written_is_told_before_anything_is(slices, tmp_path):
    root, sheet = slices
    for key, words in ((tmp_path / "no" / "key.csv", "no such folder; make it first"), (root / "manifest.csv", "a file of its own"),
                       (root / "manifest.rejected.csv", "a file of its own"), (sheet, "a file of its own")):
        refused(str(key.parent), words, call=lambda key=key: collect(root, sheet, pseudonyms=True, key=key))
    into = tmp_path / "tidy"
    refused("keep it elsewhere", call=lambda: collect(root, sheet, into=into, pseudonyms=True, key=into / "key.csv"))
    assert not list(root.glob("*.csv")) and not into.exists()


def test_no_pseudonym_is_written_before_its_key(slices, tmp_path, monkeypatch):
    root, sheet = slices

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sos.cohort.collect._csv", full)
    with pytest.raises(OSError, match="No space left"):
        collect(root, sheet, into=tmp_path / "tidy", pseudonyms=True, key=tmp_path / "key.csv")
    assert not (tmp_path / "tidy").exists() and not (tmp_path / "key.csv").exists()
    monkeypatch.undo()
    assert collect(root, sheet, into=tmp_path / "tidy", pseudonyms=True, key=tmp_path / "key.csv").rows == 3  # the next try is free


def test_identifiers_that_may_be_one_persons_are_told_by_their_rows(scans, tmp_path):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "2"], ["P 01", "b", "2"], ["p10", "c", "2"], ["p100", "d", "2"])
    told = "\n".join(collect(scans, sheet, pseudonyms=True).notes)
    assert "differ only in case, spaces or leading zeros (rows 2 and 3); where they are one" in told and "P 01" not in told


def test_names_of_files_with_accents_as_macos_writes_them_are_found(tmp_path):
    for name in ("Müller.png", "Größe_Ärger-7.png", "Özil/any.png"):
        picture(tmp_path / "scans" / unicodedata.normalize("NFD", name), len(name))
    cells = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "Müller.png", "2"], ["p2", "größe_ärger-7", "2"])
    assert len(manifest(collect(tmp_path / "scans", cells))) == 2
    ids = table(tmp_path / "u.csv", ["id", "stage"], ["Müller", "2"], ["ärger", "2"], [unicodedata.normalize("NFD", "Özil"), "2"])
    done = collect(tmp_path / "scans", ids, force=True)
    assert manifest(done)["patient_id"].tolist() == ["Müller", "ärger", "Özil"]


def test_copies_are_made_where_links_cannot_be(scans, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    done = collect(scans, table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "2"]), tmp_path / "m.csv", into=tmp_path / "tidy")
    assert manifest(done)["image"].tolist() == ["tidy/p0001.png"]
    assert (tmp_path / "tidy" / "p0001.png").read_bytes() == (scans / "a.png").read_bytes()


def test_links_out_of_the_folder_are_not_followed(scans, tmp_path):
    (scans / "p9.png").symlink_to(picture(tmp_path / "outside.png"))
    (scans / "away").symlink_to(tmp_path)
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p9", "p9", "2"], ["p1", "a", "2"])
    done = collect(scans, sheet)
    assert manifest(done)["patient_id"].tolist() == ["p1"] and "no file" in done.rejected[0][1]
    assert "2 links to folders or out of the folder were not followed" in done.notes


def test_nothing_is_written_over_and_images_may_be_read_from_where_the_manifest_will_lie(scans, tmp_path, monkeypatch):
    sheet = table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "a", "2"])
    (tmp_path / "m.csv").write_text("precious")
    refused("is there already", "--force", call=lambda: collect(scans, sheet, tmp_path / "m.csv"))
    refused("is the table that is read", call=lambda: collect(tmp_path, sheet, sheet, force=True))
    (tmp_path / "desk").mkdir()
    refused("outside its folder", "--into", "SOS_ALLOW_OUTSIDE=1", call=lambda: collect(scans, sheet, tmp_path / "desk" / "m.csv"))
    refused("lies inside", call=lambda: collect(scans, sheet, into=scans / "tidy"))
    assert (tmp_path / "m.csv").read_text() == "precious" and not list((tmp_path / "desk").iterdir())
    monkeypatch.setenv("SOS_ALLOW_OUTSIDE", "1")
    assert manifest(collect(scans, sheet, tmp_path / "desk" / "m.csv"))["image"].tolist() == ["../scans/a.png"]


def test_a_file_named_as_a_formula_is_written_as_a_path(tmp_path):
    picture(tmp_path / "scans" / "=1+1.png")
    done = collect(tmp_path / "scans", table(tmp_path / "t.csv", ["id", "file", "stage"], ["p1", "=1+1", "2"]))
    assert manifest(done)["image"].tolist() == ["./=1+1.png"] and (done.manifest.parent / "./=1+1.png").is_file()


def test_files_named_with_spaces_round_them_are_read_back_or_told(tmp_path):
    picture(tmp_path / "scans" / " p1.png")
    picture(tmp_path / "scans" / "q.png").rename(tmp_path / "scans" / "p2 ")
    done = collect(tmp_path / "scans", table(tmp_path / "t.csv", ["id", "stage"], ["p1", "2"], ["p2", "2"]))
    assert read_rows(done.manifest)["image"].tolist() == ["./ p1.png"]
    assert done.rejected == [(3, "the name of its file ends with a space; rename it, or use --into")]


def test_two_volumes_of_equal_size_in_one_folder_are_not_guessed_between(tmp_path):
    for series in "ab":
        for number in range(3):
            slice_file(tmp_path / "scans" / "p1" / f"{series}{number}.dcm", series, number)
    folder = Folder(tmp_path / "scans")
    images = folder.images(folder.below(folder.root / "p1"))
    assert [len(image) for image in images] == [3, 3]
    with pytest.raises(Unmapped, match="--into DIR"):
        folder.place(images[0])
