"""The manifest: what is accepted, each fault told in one line with its file and row, and splits that keep patients together."""

import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sos.cohort.audit import audit
from sos.cohort.manifest import BOX, REQUIRED, SPLITS, make_split, read_manifest
from sos.cohort.reviews import add_review
from sos.errors import CohortError, ImageError
from sos.images.reader import read_image
from sos.record import manifest_fingerprint
from sos.stages import BASSED5, FRANKLIN4


def rows(n=10, **columns):
    """A manifest's table: n patients, one image each, in the stages of BASSED5 by turns."""
    i = np.arange(n)
    table = pd.DataFrame({"patient_id": [f"{k:03d}" for k in i], "image": [f"img/{k}.png" for k in i], "stage": i % 5 + 1, "age_y": 8.0 + i,
                          "sex": np.where(i % 2, "F", "M"), "x0": 10.0, "y0": 20.0, "x1": 30.5, "y1": 50.0, "split": ""})
    return table.assign(**columns)


@pytest.fixture
def write(tmp_path):
    return partial(_write, tmp_path)


def _write(folder, table, name="manifest.csv"):
    (folder / "img").mkdir(exist_ok=True)
    for image in table["image"].dropna() if "image" in table else ():
        (folder / image).write_bytes(b"pixels")
    table.to_csv(folder / name, index=False)
    return folder / name


def fault(path, *parts, **settings_):
    """Reading `path` must fail in one line that holds the file's name and all `parts`."""
    with pytest.raises(CohortError) as caught:
        read_manifest(path, **settings_)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


def test_a_clean_manifest_is_read_as_written(write):
    table = rows(split=["train"] * 6 + ["valid"] * 2 + ["test"] * 2, extra="kept")
    cohort = read_manifest(write(table))
    pd.testing.assert_frame_equal(cohort.table[list(table)], table, check_dtype=False)
    assert cohort.table["patient_id"][0] == "000"  # not the number 0
    assert (cohort.table["target"] == cohort.table["stage"] - 1).all()
    assert list(cohort.subset("valid").index) == [6, 7]
    assert cohort.image_path(3) == cohort.root / "img/3.png" and cohort.image_path(3).is_file()
    assert not cohort.virtual and cohort.label == "patients"


def test_targets_count_from_zero_in_any_scheme(write):
    cohort = read_manifest(write(rows(stage=[0, 1, 2, 3, 3] * 2)), FRANKLIN4)
    assert cohort.table["target"].tolist() == [0, 1, 2, 3, 3] * 2


def test_a_cohort_is_virtual_only_where_every_row_says_so(write):
    kinds = ["virtual"] * 10
    assert read_manifest(write(rows(cohort_kind=kinds))).label == "virtual patients"
    assert not read_manifest(write(rows(cohort_kind=[*kinds[:9], "clinic"]))).virtual


def test_fingerprint_sees_the_manifest_and_the_images(write):
    first = read_manifest(write(rows())).fingerprint
    assert read_manifest(write(rows())).fingerprint == first
    assert read_manifest(write(rows(age_y=9.0))).fingerprint != first
    path = write(rows())
    (path.parent / "img/4.png").write_bytes(b"more pixels")
    assert read_manifest(path).fingerprint != first


def test_unknown_age_is_allowed(write):
    assert read_manifest(write(rows(age_y=np.nan))).table["age_y"].isna().all()


def test_a_byte_order_mark_and_other_column_orders_do_no_harm(write):
    path = write(rows()[list(REQUIRED)[::-1]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_manifest(path).table) == 10


# ---- as the audit reads it -----------------------------------------------------------------------------------------


def test_cells_and_names_of_columns_are_read_without_the_spaces_around_them(write):
    table = rows(split=["train "] * 6 + [" valid"] * 2 + ["test"] * 2, sex=" F").astype({"stage": str, "x0": str})
    clean = read_manifest(write(table.assign(split=table["split"].str.strip(), sex="F"), "clean.csv")).table
    table.loc[3, ["patient_id", "image", "stage", "x0"]] = ["003 ", " img/3.png", " 4", "10.0 "]
    path = write(table.assign(image=table["image"].str.strip()), "spaced.csv")
    path.write_text(path.read_text().replace(",image,", ", image ,").replace(",img/3.png,", ", img/3.png,"))
    pd.testing.assert_frame_equal(read_manifest(path).table, clean)


def test_a_patient_with_a_space_behind_the_identifier_is_the_same_patient(write):
    ids = [f"{k:03d}" for k in range(9)] + ["004 "]
    path = write(rows(patient_id=ids, split=["train"] * 9 + ["test"]))
    fault(path, "patient 004 is in more than one split")
    assert sum(finding.kind == "patient in two splits" for finding in audit(path).findings) == 2


def test_a_patient_may_be_called_na(write):
    assert read_manifest(write(rows(patient_id=["NA", *(f"{k:03d}" for k in range(9))]))).table["patient_id"][0] == "NA"


def test_empty_lines_and_columns_are_left_out_and_rows_counted_with_them(write):
    path = write(rows().assign(stage=lambda t: t["stage"].where(t.index != 4, 9)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line + ",," for line in [*lines[:3], "", ",,,,,,,,,", *lines[3:], ",,,,,,,,,"]) + "\n\n")
    fault(path, "row 8: stage 9 is not in the scheme")
    assert "row 8" in audit(path).to_text(everything=True).partition("is not in the scheme")[0]
    path.write_text(path.read_text().replace(",9,", ",5,"))
    cohort = read_manifest(path)
    assert list(cohort.table.index) == list(range(10)) and cohort.table["patient_id"].tolist() == [f"{k:03d}" for k in range(10)]


@pytest.mark.parametrize(("column", "text"), [("age_y", "none"), ("age_y", "inf"), ("x1", "?")])
def test_a_word_for_no_number_is_refused_as_by_the_audit(write, column, text):
    table = rows().astype({column: object})
    table.loc[2, column] = text
    path = write(table)
    fault(path, "row 4", f"{column} = '{text}' is not a number")
    assert any(finding.severity == "error" and finding.row == 4 and "no number" in finding.kind + finding.what for finding in audit(path).findings)


def test_what_r_and_pandas_write_for_unknown_is_unknown(write):
    table = rows().astype({"age_y": object, "sex": object})
    table.loc[2, ["age_y", "sex"]], table.loc[3, "age_y"] = "NA", "nan"
    path = write(table.assign(split="NA"))
    read = read_manifest(path).table
    assert read["age_y"].isna().tolist() == [False] * 2 + [True] * 2 + [False] * 6 and pd.isna(read["sex"][2])
    assert set(read["split"]) <= {"train", "valid", "test"}
    assert not [finding for finding in audit(path).findings if "NA" in finding.what or "no number" in finding.kind]


def test_a_column_that_is_there_twice_is_told(write):
    path = write(rows())
    path.write_text("".join(f"{line},{'stage' if i == 0 else 5}\n" for i, line in enumerate(path.read_text().splitlines())))
    fault(path, "column stage is there twice; keep one of them")


# ---- faults --------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_told(tmp_path):
    fault(tmp_path / "absent.csv", "no such manifest")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary\x00\xff", b'a,b\n1,2\n1,2,3,4\n"'], ids=["empty", "binary", "ragged"])
def test_what_is_not_a_csv_is_told(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    fault(tmp_path / "m.csv", "not a readable CSV")


def test_a_folder_instead_of_a_file_is_told(tmp_path):
    fault(tmp_path, "not a readable CSV")


def test_all_missing_columns_are_named_together(write):
    fault(write(rows().drop(columns=["x1", "sex"])), "column sex, x1 missing")


def test_a_manifest_without_rows_is_told(write):
    fault(write(rows(0)), "no row")


@pytest.mark.parametrize("column", ["patient_id", "image", "stage"])
def test_an_empty_cell_is_told_with_its_row(write, column):
    table = rows().astype({column: object})
    table.loc[3, column] = None
    fault(write(table), "row 5", f"{column} is empty")  # the heading is row 1


@pytest.mark.parametrize("column", ["stage", "age_y", *BOX])
def test_a_word_in_place_of_a_number_is_told_with_its_row(write, column):
    table = rows().astype({column: object})
    table.loc[[6, 8], column] = "unclear"
    fault(write(table), "row 8", f"{column} = 'unclear' is not a number")


@pytest.mark.parametrize("stage", [0, 6, -1, 2.5])
def test_a_stage_outside_the_scheme_is_told_with_its_row(write, stage):
    table = rows().astype({"stage": float})
    table.loc[9, "stage"] = stage
    fault(write(table), "row 11", f"stage {stage:g} is not in the scheme 'bassed5' (1, 2, 3, 4, 5)")


@pytest.mark.parametrize("change", [{"x1": 10.0}, {"x1": 9.0}, {"y1": 20.0}, {"y0": 51.0}, {"x0": np.nan}])
def test_a_box_without_extent_is_told_with_its_row(write, change):
    table = rows()
    ((column, value),) = change.items()
    table.loc[0, column] = value
    fault(write(table), "row 2", "box has no extent")


def test_an_absent_image_is_told_with_its_row(write):
    path = write(rows())
    (path.parent / "img/7.png").unlink()
    fault(path, "row 9", "image img/7.png is not there")


@pytest.mark.parametrize("way", ["..", "absolute", "link", "folder link", "link in a series", "loop"])
def test_an_image_that_leads_out_of_the_folder_is_refused_unless_told_so(write, tmp_path, way, monkeypatch):
    path, outside = write(rows()), tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(b"pixels")
    (tmp_path / "link.png").symlink_to(outside / "a.png")
    (tmp_path / "away").symlink_to(outside)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").symlink_to(outside / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    name = {"..": f"../{outside.name}/a.png", "absolute": str(outside / "a.png"), "link": "link.png", "folder link": "away/a.png",
            "link in a series": "series", "loop": "loop"}[way]
    table = rows()
    table.loc[4, "image"] = name
    table.to_csv(path, index=False)
    fault(path, "row 6", f"image {name} leads out of the manifest's folder", "SOS_ALLOW_OUTSIDE=1")
    before = manifest_fingerprint(path)  # opens nothing outside either
    monkeypatch.setenv("SOS_ALLOW_OUTSIDE", "1")
    if way == "loop":
        fault(path, "row 6", "image loop is not there")
    else:
        assert read_manifest(path).table["image"][4] == name
        assert manifest_fingerprint(path) != before


def test_a_link_that_stays_in_the_folder_is_followed(write, tmp_path):
    path = write(rows())
    (tmp_path / "img" / "3.png").unlink()
    (tmp_path / "img" / "3.png").symlink_to("4.png")
    assert read_manifest(path).image_path(3).read_bytes() == b"pixels"


def test_a_pipe_in_place_of_an_image_is_refused_and_does_not_hang(write, tmp_path):
    path = write(rows())
    (tmp_path / "img" / "0.png").unlink()
    os.mkfifo(tmp_path / "img" / "0.png")
    with pytest.raises(ImageError, match="neither a file nor a folder"):
        read_image(read_manifest(path).image_path(0))


def test_a_half_filled_split_is_told(write):
    fault(write(rows(split=["train"] * 4 + [""] * 6)), "4 of 10 rows")


def test_an_unknown_split_is_told(write):
    fault(write(rows(split=["train"] * 9 + ["holdout"])), "split 'holdout' is unknown", "train, valid, test")


def test_a_patient_in_two_splits_is_told(write):
    ids = [f"{k:03d}" for k in range(9)] + ["004"]
    fault(write(rows(patient_id=ids, split=["train"] * 9 + ["test"])), "patient 004 is in more than one split")


# ---- reviews beside it ---------------------------------------------------------------------------------------------


def test_reviews_beside_the_manifest_are_honoured(write):
    path = write(rows(split=["train"] * 6 + ["valid"] * 2 + ["test"] * 2))
    reviews = path.with_name("reviews.csv")
    before = read_manifest(path)
    add_review(reviews, "AB", "003", "note", note="unchanged")
    add_review(reviews, "AB", "004", "stage", 5)  # confirmed
    assert read_manifest(path).fingerprint == before.fingerprint and before.changes.empty
    add_review(reviews, "AB", "001", "stage", 4)
    add_review(reviews, "CD", "002", "box", (1, 2, 30, 40.5))
    add_review(reviews, "CD", "000", "exclude", "yes")
    cohort = read_manifest(path)
    assert cohort.table["patient_id"].tolist() == [f"{k:03d}" for k in range(1, 10)] and list(cohort.table.index) == list(range(9))
    assert cohort.table.loc[0, ["stage", "target"]].tolist() == [4, 3] and cohort.table.loc[1, BOX].tolist() == [1, 2, 30, 40.5]
    assert cohort.image_path(0).name == "1.png" and cohort.fingerprint != before.fingerprint
    assert cohort.corrections[["patient_id", "field", "after"]].values.tolist() == [
        ["000", "exclude", "yes"], ["001", "stage", "4"], ["002", "box", "1 2 30 40.5"]]
    assert cohort.changes["outcome"].tolist() == ["excluded", "changed", "changed", "unchanged"]


def test_a_manifest_without_stages_and_boxes_is_filled_by_reviews(write):
    path = write(rows(3, stage=np.nan, x0=np.nan, y0=np.nan, x1=np.nan, y1=np.nan, split=["train", "valid", "test"]))
    reviews = path.with_name("reviews.csv")
    fault(path, "row 2 (and 2 more): stage is empty; read them with `sos.panels.review`")
    for patient in ("000", "002"):
        add_review(reviews, "AB", patient, "stage", 3)
    fault(path, "row 3: stage is empty")
    add_review(reviews, "AB", "001", "exclude", "yes")
    fault(path, "row 2 (and 1 more): box is empty; draw them with `sos.panels.review`, or take the row out")
    for patient in ("000", "002"):
        add_review(reviews, "AB", patient, "box", (0, 1, 20, 30))
    cohort = read_manifest(path)
    assert cohort.table[["stage", *BOX]].values.tolist() == [[3, 0, 1, 20, 30]] * 2 and cohort.table["split"].tolist() == ["train", "test"]
    assert cohort.corrections.query("field == 'stage'")[["before", "after"]].values.tolist() == [["", "3"]] * 2
    for patient in ("000", "002"):
        add_review(reviews, "AB", patient, "exclude", "yes")
    with pytest.raises(CohortError, match="reviews.csv: all images are excluded"):
        read_manifest(path)


def test_a_bad_line_among_the_reviews_is_named(write):
    path = write(rows())
    add_review(path.with_name("reviews.csv"), "AB", "001", "stage", 4)
    with path.with_name("reviews.csv").open("a") as file:
        file.write("yesterday,AB,001,stage,4,,\n")
    with pytest.raises(CohortError, match="reviews.csv, line 3: 'yesterday' is no time"):
        read_manifest(path)


def test_an_excluded_patient_may_be_a_bad_row(write):
    path = write(rows().assign(stage=lambda t: t["stage"].where(t.index != 4, 9)))
    (path.parent / "img/4.png").unlink()
    fault(path, "row 6", "stage 9 is not in the scheme")
    add_review(path.with_name("reviews.csv"), "AB", "004", "exclude", "yes")
    assert len(read_manifest(path).table) == 9


def test_no_review_moves_anybody_between_the_splits(write):
    path = write(rows(60))
    before = read_manifest(path).table.set_index("patient_id")["split"]
    for patient, field, value in (("000", "stage", 5), ("013", "stage", 1), ("021", "exclude", "yes"), ("058", "exclude", "yes")):
        add_review(path.with_name("reviews.csv"), "AB", patient, field, value)
    after = read_manifest(path).table.set_index("patient_id")["split"]
    assert len(after) == 58 and after.equals(before[after.index])


# ---- splits --------------------------------------------------------------------------------------------------------


def test_an_empty_split_is_filled_in_and_repeatable(write):
    path = write(rows(100))
    first, again, other = (read_manifest(path, valid_share=0.1, test_share=0.25, seed=seed).table["split"] for seed in (3, 3, 4))
    assert set(first) == set(SPLITS) and first.equals(again) and not first.equals(other)


def test_a_split_is_stratified_to_the_patient():
    stage = pd.Series(np.repeat(np.arange(5), (40, 100, 20, 60, 8)))
    ids = pd.Series([f"p{k}" for k in range(len(stage))])
    split = pd.Series(make_split(ids, stage, 0.1, 0.25, seed=1))
    for k, n in enumerate((40, 100, 20, 60, 8)):
        counts = split[stage == k].value_counts()
        assert counts["test"] == round(0.25 * n) and counts.get("valid", 0) == round(0.1 * n) and counts.sum() == n


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 4)), min_size=1, max_size=80), st.integers(0, 2**31),
       st.randoms(use_true_random=False))
def test_no_patient_is_torn_apart_and_the_order_of_rows_does_not_matter(images, seed, random):
    table = pd.DataFrame(images, columns=["patient", "target"])
    table["patient"] = "p" + table["patient"].astype(str)
    table["split"] = make_split(table["patient"], table["target"], 0.2, 0.3, seed)
    assert (table.groupby("patient")["split"].nunique() == 1).all() and set(table["split"]) <= set(SPLITS)
    order = list(table.index)
    random.shuffle(order)
    mixed = table.loc[order].reset_index(drop=True)
    assert make_split(mixed["patient"], mixed["target"], 0.2, 0.3, seed).tolist() == mixed["split"].tolist()


def test_virtual_cohort_is_a_clean_manifest(tiny_cohort):
    cohort = read_manifest(tiny_cohort)
    assert cohort.virtual and cohort.scheme is BASSED5 and len(cohort.table) == 24
    assert cohort.table["split"].isin(SPLITS).all()
