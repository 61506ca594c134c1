"""What experts say about a cohort after they looked: an append-only `reviews.csv` that two people can write to side by side.

It lies beside the manifest, and whoever reads the manifest gets it as corrected. Nothing in it is ever changed: a later review of
the same field of the same image stands in for an earlier one; the history stays. """

import csv
import fcntl
import io
import os
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CohortError
from ..stages import StagingScheme

REVIEWS, SUSPECTS = "reviews.csv", "suspects.csv"  # their names beside a manifest; the second says what to look at first
BOX = ["x0", "y0", "x1", "y1"]  # a manifest's columns of the expert's box
COLUMNS = ("when", "who", "patient_id", "field", "value", "note", "image")
FIELDS = ("box", "stage", "reading", "dispute", "exclude", "note")
ACTING = ("box", "stage", "exclude")  # those that change what is trained on
YES_NO = ("dispute", "exclude")
CHANGES = ("patient_id", "image", "field", "before", "after", "who", "when", "outcome")


def add_review(path, who: str, patient_id: str, field: str, value=None, note: str = "", when: datetime | None = None, image: str = "") -> None:
    """Append one review to `path`, which is made where there is none.

    `field` and `value`: 'box' with (x0, y0, x1, y1) in pixels of the decoded image; 'stage' with a label of the scheme, the same as
    before to confirm it; 'reading' with a label too, which counts for the agreement of readers and changes nothing; 'dispute' with
    'yes' where a stage is doubtful, or 'no'; 'exclude' with 'yes' or 'no'; 'note' with nothing. `image` names the one that is meant
    as the manifest does; without it, all of the patient's are. `when` is now unless given; both in UTC. One line is written in one go
    while the file is locked, so that people on one file system do not cut into each other's lines. Raises CohortError for a review
    that `read_reviews` would refuse. """
    when = when or datetime.now(timezone.utc)
    if when.tzinfo is None:
        raise CohortError("a review needs a time with its time zone; leave `when` out for now")
    stamp = when.astimezone(timezone.utc).isoformat(timespec="microseconds")
    if field == "box" and value is not None and not isinstance(value, str):
        value = " ".join(f"{float(edge):g}" if float(edge) == round(float(edge), 2) else f"{float(edge):.2f}" for edge in value)
    patient_id, image = (str("" if name is None else name).strip().translate({10: " ", 13: " "}) for name in (patient_id, image))
    who, field, value, note = (_single("" if text is None else text) for text in (who, field, value, note))
    line = [stamp, who, patient_id, field, value, note, image]
    if reason := _fault(line):
        raise CohortError(f"review of patient '{line[2]}': {reason}")
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise CohortError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the handle closes
        size = os.fstat(handle).st_size
        text = io.StringIO()
        if size and os.pread(handle, 1, size - 1) != b"\n":  # an editor left the last line open
            text.write("\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, line] if not size else [line])
        data = text.getvalue().encode("utf-8", "replace")  # half a surrogate pair has no bytes
        if os.write(handle, data) != len(data):
            raise CohortError(f"{path}: the disk is full; the review was cut off, take its last line out")
        os.fsync(handle)
    finally:
        os.close(handle)


def read_reviews(path) -> pd.DataFrame:
    """All reviews in `path`, oldest first: `when` (UTC time), who, patient_id, field, value, note, image ('': all of the patient's);
    the index is the line in the file.

    A missing file holds no review. A file without the last column is read as one that leaves it empty. Raises CohortError naming file and line
    for a line that is no review.
    """
    path = Path(path)
    records, lines = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if reader.line_num == 1 and tuple(fields) not in (COLUMNS, COLUMNS[:-1]):
                    raise CohortError(f"{path}, line 1: not a file of reviews; its columns are {', '.join(COLUMNS)}")
                if reader.line_num == 1 or not fields:
                    continue
                fields += [""] * (len(fields) == len(COLUMNS) - 1)
                if reason := _fault(fields):
                    raise CohortError(f"{path}, line {reader.line_num}: {reason}")
                records.append([datetime.fromisoformat(fields[0]).astimezone(timezone.utc), *fields[1:]])
                lines.append(reader.line_num)
    except FileNotFoundError:
        pass  # nobody has reviewed anything yet
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        reason = f"not readable as CSV in UTF-8 ({type(error).__name__})"
        raise CohortError(f"{path}, line {reader.line_num + 1}: {reason}; mend this line") from None
    reviews = pd.DataFrame(records, columns=list(COLUMNS), index=pd.Index(lines, name="line", dtype=int), dtype=object)
    reviews["when"] = pd.to_datetime(reviews["when"], utc=True)
    reviews.attrs["path"] = str(path)
    return reviews.sort_values("when", kind="stable")


def _single(text) -> str:
    """`text` with each stretch of white space as one space."""
    return " ".join(str(text).split())


def _fault(fields: list[str]) -> str:
    """What is wrong with the fields of one line and how to mend it, or an empty text."""
    if len(fields) != len(COLUMNS):
        return f"{len(fields)} fields instead of {len(COLUMNS)} ({', '.join(COLUMNS)})"
    when, who, patient_id, field, value, note, _ = fields
    try:
        if datetime.fromisoformat(when).tzinfo is None:
            return f"the time '{when}' has no time zone; write it as 2025-01-31T12:00:00+00:00"
    except ValueError:
        return f"'{when}' is no time; write it as 2025-01-31T12:00:00+00:00"
    if not who or not patient_id:
        return "who and patient_id must not be empty; say who reviewed whom"
    if field not in FIELDS:
        return f"the field '{field}' is unknown; use {', '.join(FIELDS)}"
    if field == "box" and _box(value) is None:
        return f"the box '{value}' must be four numbers x0 y0 x1 y1 with x1 > x0 and y1 > y0"
    if field in ("stage", "reading") and not value.removeprefix("-").isdecimal():
        return f"the {field} '{value}' must be a whole number, a label of the scheme"
    if field in YES_NO and value not in ("yes", "no"):
        return f"{field} must be yes or no, not '{value}'"
    if field == "note" and not note:
        return "a note must not be empty"
    return ""


def _box(text: str) -> tuple[float, ...] | None:
    try:
        edges = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        return None
    if len(edges) != 4 or not np.isfinite(edges).all() or edges[2] <= edges[0] or edges[3] <= edges[1]:
        return None
    return edges


def last_words(reviews: pd.DataFrame, fields=ACTING) -> pd.DataFrame:
    """Of the reviews of `fields` the last one for each patient, image and field."""
    acting = reviews[reviews["field"].isin(fields)].sort_values("when", kind="stable")
    return acting.drop_duplicates(["patient_id", "image", "field"], keep="last")


def matched(reviews: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`reviews` with patients and images as `table` has them: a name that it lacks stands for the only one that differs by white space alone,
    as names did that were written with single spaces once."""
    reviews = reviews.copy()
    for column in ("patient_id", "image"):
        known = defaultdict(list)
        for name in table[column].astype(str).unique():
            known[_single(name)].append(name)
        alike = [[name] if name in known[_single(name)] else known[_single(name)] for name in reviews[column]]
        reviews[column] = [names[0] if len(names) == 1 else name for name, names in zip(reviews[column], alike, strict=True)]
    return reviews


def about(reviews: pd.DataFrame, patient_id: str, image: str) -> pd.DataFrame:
    """The reviews of an image: those that name it, and those of its patient that name none."""
    return reviews[(reviews["patient_id"] == patient_id) & reviews["image"].isin(["", image])]


def apply_reviews(table: pd.DataFrame, reviews: pd.DataFrame, scheme: StagingScheme) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as the experts want it, and what was changed.

    For each image the last box and the last stage count, and the last word on exclusion; neither argument is changed. Returns
    the table without the rows of excluded images (a `target` column, the stage counted from 0, follows the stage), and the
    changes, one row an image and field: patient_id, image, field, before, after, who, when, outcome ('changed', 'unchanged',
    'excluded' or 'not in the table'). Raises CohortError for a stage outside the scheme and for a box of a patient with several
    images that does not name one of them; both with file and line. """
    table = table.copy()
    columns = [name for name in (*BOX, "stage") if name in table]
    table[columns] = table[columns].astype({name: float if name in BOX else table[name].dtype for name in columns})
    source = reviews.attrs.get("path", "reviews")
    rows_of = table.groupby(table["patient_id"].astype(str)).groups
    words, absent = {}, []  # (row, field) → line of the last word
    for line, review in last_words(matched(reviews, table)).iterrows():
        patient, field = review["patient_id"], review["field"]
        rows = rows_of.get(patient, [])
        if field == "stage" and int(review["value"]) not in scheme.labels:
            known = ", ".join(map(str, scheme.labels))
            raise CohortError(f"{source}, line {line}: stage {review['value']} of patient {patient} is not in the scheme '{scheme.name}' "
                              f"({known}); correct it with another review")
        if field == "box" and len(rows) > 1 and not review["image"]:
            raise CohortError(f"{source}, line {line}: patient {patient} has {len(rows)} images, so it is unclear whose box this is; "
                              f"name the image in the last column")
        meant = [row for row in rows if review["image"] in ("", table.at[row, "image"])]
        words |= {(row, field): review for row in meant}  # a later word, be it on one image or on all, stands in for an earlier one
        if not meant:
            absent.append([patient, review["image"], field, "", review["value"], review["who"], review["when"], "not in the table"])
    changes, excluded = [], []
    for (row, field), review in words.items():
        before, after = _spoken(table, row, field), review["value"]
        if field == "box":
            table.loc[row, BOX] = _box(after)
            after = _spoken(table, row, field)
        elif field == "stage":
            table.loc[row, "stage"] = int(after)
            after = str(int(after))
            if "target" in table:
                table.loc[row, "target"] = scheme.index(after)
        elif after == "yes":
            excluded.append(row)
        changed = before != after if field != "exclude" else after == "yes"
        outcome = ("excluded" if field == "exclude" else "changed") if changed else "unchanged"
        changes.append([table.at[row, "patient_id"], table.at[row, "image"], field, before, after, review["who"], review["when"], outcome])
    told = pd.DataFrame(sorted(changes, key=lambda c: c[:3]) + absent, columns=list(CHANGES))
    return table.drop(index=excluded), told


def _spoken(table: pd.DataFrame, row, field: str) -> str:
    """Box or stage in a row as text; empty where the manifest leaves it so."""
    values = table.loc[row, BOX if field == "box" else ["stage"] if field == "stage" else []]
    return " ".join(f"{value:g}" for value in pd.to_numeric(values) if pd.notna(value))
