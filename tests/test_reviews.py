"""Reviews are only ever added, by several people at once; the last word on a patient counts, and what it changed is told."""

import csv
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sos.cohort.reviews import COLUMNS, add_review, apply_reviews, read_reviews
from sos.errors import CohortError
from sos.record import manifest_fingerprint
from sos.stages import BASSED5, FRANKLIN4

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
HEADER = ",".join(COLUMNS) + "\n"


def table() -> pd.DataFrame:
    return pd.DataFrame({"patient_id": ["a", "b", "c", "d", "d"], "image": list("12345"), "stage": [1, 2, 3, 4, 4],
                         "target": [0, 1, 2, 3, 3],
                         "x0": 10.0, "y0": 20.0, "x1": 110.0, "y1": 90.0, "split": "train"})


def test_what_is_added_is_read_back(tmp_path):
    path = tmp_path / "reviews.csv"
    add_review(path, "AB", "a", "box", (1, 2.5, 100, 80.25), "too tight", NOON)
    add_review(path, "CD", "b", "stage", 3, 'a "scar", maybe', NOON + timedelta(minutes=1))
    add_review(path, "CD", "c", "exclude", "yes", when=NOON + timedelta(minutes=2))
    add_review(path, "AB", "c", "note", note="moved\nduring the scan", when=NOON + timedelta(minutes=3))
    lines = path.read_text().splitlines()
    assert lines[0] == "when,who,patient_id,field,value,note,image" and len(lines) == 5
    assert lines[1] == "2025-03-01T12:00:00.000000+00:00,AB,a,box,1 2.5 100 80.25,too tight,"
    reviews = read_reviews(path)
    assert reviews["value"].tolist() == ["1 2.5 100 80.25", "3", "yes", ""]
    assert reviews["note"].tolist() == ["too tight", 'a "scar", maybe', "", "moved during the scan"]
    assert reviews.index.tolist() == [2, 3, 4, 5] and reviews["when"].iloc[0] == NOON


def test_adding_changes_nothing_that_is_there(tmp_path):
    path = tmp_path / "reviews.csv"
    add_review(path, "AB", "a", "stage", 1)
    before = path.read_bytes()
    add_review(path, "AB", "a", "stage", 2)
    assert path.read_bytes().startswith(before) and len(path.read_bytes()) > len(before)


def test_an_open_last_line_is_closed_first(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(HEADER + "2025-03-01T12:00:00+00:00,AB,a,stage,1,")  # saved by an editor without a last line break
    add_review(path, "CD", "b", "stage", 2)
    assert read_reviews(path)["patient_id"].tolist() == ["a", "b"]


def test_two_people_at_once_lose_no_line(tmp_path):
    path = tmp_path / "reviews.csv"
    script = ("import sys; from sos.cohort.reviews import add_review\n"
              "for i in range(60): add_review(sys.argv[1], sys.argv[2], f'{sys.argv[2]}{i}', 'note', note='x' * 500)")
    root = Path(__file__).resolve().parents[1]
    people = [subprocess.Popen([sys.executable, "-c", script, str(path), who], cwd=root) for who in "AB"]
    assert [person.wait(60) for person in people] == [0, 0]
    reviews = read_reviews(path)
    assert sorted(reviews["patient_id"]) == sorted(f"{who}{i}" for who in "AB" for i in range(60))
    assert path.read_text().count("when,who") == 1 and set(reviews["note"].str.len()) == {500}


def test_a_missing_file_holds_no_review(tmp_path):
    reviews = read_reviews(tmp_path / "none.csv")
    assert reviews.empty and tuple(reviews.columns) == COLUMNS
    changed, changes = apply_reviews(table(), reviews, BASSED5)
    pd.testing.assert_frame_equal(changed, table())
    assert changes.empty


@pytest.mark.parametrize("line, message", [
    ("2025-03-01T12:00:00+00:00,AB,a,stage,1", "line 3: 5 fields instead of 7"),
    ("2025-03-01T12:00:00+00:00,AB,a,stage,1,,1.png,", "line 3: 8 fields instead of 7"),
    ("yesterday,AB,a,stage,1,", "line 3: 'yesterday' is no time"),
    ("2025-03-01T12:00:00,AB,a,stage,1,", "line 3: the time '2025-03-01T12:00:00' has no time zone"),
    ("2025-03-01T12:00:00+00:00,,a,stage,1,", "line 3: who and patient_id must not be empty"),
    ("2025-03-01T12:00:00+00:00,AB,a,grade,1,", "line 3: the field 'grade' is unknown; use box, stage, reading, dispute, exclude, note"),
    ("2025-03-01T12:00:00+00:00,AB,a,stage,two,", "line 3: the stage 'two' must be a whole number"),
    ("2025-03-01T12:00:00+00:00,AB,a,reading,,", "line 3: the reading '' must be a whole number"),
    ("2025-03-01T12:00:00+00:00,AB,a,dispute,,", "line 3: dispute must be yes or no, not ''"),
    ("2025-03-01T12:00:00+00:00,AB,a,box,1 2 3,", "line 3: the box '1 2 3' must be four numbers"),
    ("2025-03-01T12:00:00+00:00,AB,a,box,9 2 3 8,", "line 3: the box '9 2 3 8' must be four numbers"),
    ("2025-03-01T12:00:00+00:00,AB,a,box,1 2 inf 8,", "line 3: the box '1 2 inf 8' must be four numbers"),
    ("2025-03-01T12:00:00+00:00,AB,a,exclude,maybe,", "line 3: exclude must be yes or no, not 'maybe'"),
    ("2025-03-01T12:00:00+00:00,AB,a,note,,", "line 3: a note must not be empty"),
    ('2025-03-01T12:00:00+00:00,AB,a,note,,"open', "line 4: not readable as CSV"),
])
def test_malformed_lines_are_named(tmp_path, line, message):
    path = tmp_path / "reviews.csv"
    path.write_text(HEADER + "2025-03-01T12:00:00+00:00,AB,a,stage,1,\n" + line + "\n")
    with pytest.raises(CohortError) as caught:
        read_reviews(path)
    assert f"reviews.csv, {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_another_csv_and_other_bytes_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("patient_id,image\n1,2\n")
    with pytest.raises(CohortError, match="a.csv, line 1: not a file of reviews"):
        read_reviews(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(HEADER.encode() + b"2025-03-01T12:00:00+00:00,A\xff,a,stage,1,\n")
    with pytest.raises(CohortError, match="b.csv, line .: not readable as CSV in UTF-8"):
        read_reviews(tmp_path / "b.csv")


@pytest.mark.parametrize("arguments, message", [
    (("", "a", "stage", 1), "who and patient_id must not be empty"),
    (("AB", "a", "box", (5, 5, 1, 9)), "must be four numbers"),
    (("AB", "a", "stage", 2.5), "must be a whole number"),
    (("AB", "a", "grade", 2), "the field 'grade' is unknown"),
])
def test_a_review_that_could_not_be_read_is_not_written(tmp_path, arguments, message):
    with pytest.raises(CohortError, match=message):
        add_review(tmp_path / "reviews.csv", *arguments)
    assert not (tmp_path / "reviews.csv").exists()


@settings(max_examples=60, deadline=None)
@given(who=st.text(min_size=1), note=st.text(), patient=st.text(min_size=1))
def test_any_text_survives(tmp_path_factory, who, note, patient):
    path = tmp_path_factory.mktemp("any") / "reviews.csv"
    try:
        add_review(path, who, patient, "stage", 1, note)
    except CohortError as error:
        assert "empty" in str(error) or "UTF-8" in str(error)
        return
    read = read_reviews(path).iloc[0]
    assert [read["who"], read["patient_id"], read["note"]] == [" ".join(who.split()), re.sub("[\r\n]", " ", patient.strip()), " ".join(note.split())]


@pytest.mark.parametrize("space", ["  ", "\u202f", "\xa0", " \n "])
def test_names_keep_the_spaces_in_them_and_their_reviews_count(tmp_path, space):
    spaced = table().assign(patient_id=[f"a{space}b", *"bcdd"], image=[f"at{space}8.png", *"2345"])
    path = tmp_path / "r.csv"
    add_review(path, "A  B", f"a{space}b", "stage", 4, "too   tight", image=f"at{space}8.png")
    assert apply_reviews(spaced, read_reviews(path), BASSED5)[0]["stage"][0] == 4
    assert read_reviews(path).loc[2, ["who", "note"]].tolist() == ["A B", "too tight"]
    path.write_text(HEADER + "2025-03-01T12:00:00+00:00,AB,a b,stage,3,,at 8.png\n")  # as names were written once
    assert apply_reviews(spaced, read_reviews(path), BASSED5)[0]["stage"][0] == 3
    two = spaced.assign(patient_id=[f"a{space}b", "a\tb", *"cdd"])
    assert apply_reviews(two, read_reviews(path), BASSED5)[1]["outcome"].tolist() == ["not in the table"]


def test_the_last_word_counts_and_is_recorded(tmp_path):
    path = tmp_path / "reviews.csv"
    for minute, (patient, field, value) in enumerate([
            ("a", "stage", 2), ("a", "box", (0, 0, 50, 50)), ("b", "exclude", "yes"), ("c", "exclude", "yes"), ("a", "stage", 3),
            ("c", "exclude", "no"), ("d", "stage", 5), ("zz", "stage", 1), ("b", "stage", 2)]):
        add_review(path, "AB" if minute % 2 else "CD", patient, field, value, when=NOON + timedelta(minutes=minute))
    add_review(path, "EF", "a", "stage", 5, when=NOON - timedelta(days=1))  # written last, said first
    original, reviews = table(), read_reviews(path)
    changed, changes = apply_reviews(original, reviews, BASSED5)
    pd.testing.assert_frame_equal(original, table())
    assert changed["patient_id"].tolist() == ["a", "c", "d", "d"] and changed.index.tolist() == [0, 2, 3, 4]
    assert changed["stage"].tolist() == [3, 3, 5, 5] and changed["target"].tolist() == [2, 2, 4, 4]
    assert changed.loc[0, ["x0", "y0", "x1", "y1"]].tolist() == [0, 0, 50, 50] and changed.loc[2, "x0"] == 10
    told = changes.set_index(["patient_id", "field"])
    assert told["outcome"].to_dict() == {
        ("a", "box"): "changed", ("a", "stage"): "changed", ("b", "exclude"): "excluded", ("b", "stage"): "unchanged",
        ("c", "exclude"): "unchanged", ("d", "stage"): "changed", ("zz", "stage"): "not in the table"}
    assert told.loc[("a", "box"), ["before", "after", "who"]].tolist() == ["10 20 110 90", "0 0 50 50", "AB"]
    assert told.loc[("a", "stage"), ["before", "after", "when"]].tolist() == ["1", "3", NOON + timedelta(minutes=4)]


def test_whole_number_columns_take_a_box_with_fractions(tmp_path):
    add_review(tmp_path / "r.csv", "AB", "a", "box", (1.5, 2, 50.25, 60))
    whole = table().astype({"x0": int, "y0": int, "x1": int, "y1": int})
    changed, _ = apply_reviews(whole, read_reviews(tmp_path / "r.csv"), BASSED5)
    assert changed.loc[0, ["x0", "y0", "x1", "y1"]].tolist() == [1.5, 2, 50.25, 60]


def test_a_stage_outside_the_scheme_and_a_box_of_two_images_are_named(tmp_path):
    add_review(tmp_path / "r.csv", "AB", "a", "stage", 5)
    with pytest.raises(CohortError, match="r.csv, line 2: stage 5 of patient a is not in the scheme 'franklin4'"):
        apply_reviews(table(), read_reviews(tmp_path / "r.csv"), FRANKLIN4)
    add_review(tmp_path / "r.csv", "AB", "d", "box", (0, 0, 5, 5))
    with pytest.raises(CohortError, match="r.csv, line 3: patient d has 2 images"):
        apply_reviews(table(), read_reviews(tmp_path / "r.csv"), BASSED5)


def test_reviews_of_one_image_leave_the_patients_others_alone(tmp_path):
    path, minute = tmp_path / "r.csv", timedelta(minutes=1)
    add_review(path, "AB", "d", "stage", 2, when=NOON)  # of both images
    add_review(path, "AB", "d", "stage", 5, image="5", when=NOON + minute)
    add_review(path, "AB", "d", "box", (0, 0, 5, 5), image="4", when=NOON)
    add_review(path, "AB", "d", "exclude", "yes", image="6", when=NOON)  # there is none of that name
    changed, changes = apply_reviews(table(), read_reviews(path), BASSED5)
    assert changed.set_index("image")["stage"][["4", "5"]].tolist() == [2, 5] and changed["x1"].tolist() == [110, 110, 110, 5, 110]
    assert changes[["image", "field", "before", "after", "outcome"]].values.tolist() == [
        ["4", "box", "10 20 110 90", "0 0 5 5", "changed"], ["4", "stage", "4", "2", "changed"], ["5", "stage", "4", "5", "changed"],
        ["6", "exclude", "", "yes", "not in the table"]]
    add_review(path, "AB", "d", "stage", 1, when=NOON + 2 * minute)  # the last word, on both
    assert apply_reviews(table(), read_reviews(path), BASSED5)[0]["stage"].tolist() == [1, 2, 3, 1, 1]


def test_readings_disputes_and_notes_change_nothing(tmp_path):
    path = tmp_path / "r.csv"
    for field, value, note in (("reading", 5, ""), ("dispute", "yes", "why 1?"), ("note", None, "dark")):
        add_review(path, "AB", "a", field, value, note)
    changed, changes = apply_reviews(table(), read_reviews(path), BASSED5)
    pd.testing.assert_frame_equal(changed, table())
    assert changes.empty and read_reviews(path)["field"].tolist() == ["reading", "dispute", "note"]


def test_a_file_without_the_column_of_images_is_read_and_gone_on_with(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("when,who,patient_id,field,value,note\n2025-03-01T12:00:00+00:00,AB,a,stage,3,\n")
    add_review(path, "CD", "d", "stage", 1, image="5")
    assert apply_reviews(table(), read_reviews(path), BASSED5)[0]["stage"].tolist() == [3, 2, 3, 4, 1]


def test_the_road_sees_readings_and_corrections_but_no_notes(tmp_path):
    (tmp_path / "m.csv").write_text("patient_id,image\na,1.png\n")
    prints = [manifest_fingerprint(tmp_path / "m.csv")]
    for who, field, value in (("AB", "stage", 2), ("CD", "stage", 3), ("AB", "stage", 2), ("AB", "reading", 2), ("AB", "exclude", "no")):
        add_review(tmp_path / "reviews.csv", who, "a", field, value)  # the third changes back what the second changed
        prints.append(manifest_fingerprint(tmp_path / "m.csv"))
    assert len(set(prints)) == 6
    add_review(tmp_path / "reviews.csv", "AB", "a", "note", note="dark")
    add_review(tmp_path / "reviews.csv", "AB", "a", "dispute", "yes")
    assert manifest_fingerprint(tmp_path / "m.csv") == prints[-1]
    with (tmp_path / "reviews.csv").open("a") as file:
        file.write("yesterday\n")
    with pytest.raises(CohortError, match="reviews.csv, line 9"):
        manifest_fingerprint(tmp_path / "m.csv")


def test_the_file_is_plain_csv_for_others(tmp_path):
    add_review(tmp_path / "r.csv", "AB", "a", "note", note='x, "y"')
    with (tmp_path / "r.csv").open(newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ['x, "y"']
