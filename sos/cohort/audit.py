"""Is a cohort fit to learn from? Every doubt about a manifest and its files as one row of a table, each with what to do about it.

The cells are read as `manifest.read_manifest` reads them, which stops at the first thing it cannot use. Rules about one row stand in
`audit_rows`, what is found out about a file in `audit_files`; here is what only the whole shows.
"""

from collections import defaultdict
from pathlib import Path

import pandas as pd

from ..errors import CohortError
from ..stages import BASSED5, StagingScheme
from .audit_files import FileFacts, inspect_all
from .audit_report import AuditReport, Finding, row_list
from .audit_rows import AGE_AT, PHASE, check_row
from .duplicates import near_duplicates
from .manifest import BOX, REQUIRED, read_cells
from .reviews import REVIEWS, apply_reviews, read_reviews

__all__ = ["AGE_AT", "PHASE", "AuditReport", "Finding", "audit"]

PRIVATE_COLUMNS = ("name", "patientname", "firstname", "lastname", "surname", "birthdate", "dateofbirth", "dob", "address",
                   "phone", "email")


def audit(manifest_path, scheme: StagingScheme = BASSED5, *, workers: int | None = None, progress=None) -> AuditReport:
    """Check a manifest, corrected by the `reviews.csv` beside it where there is one, and every image in it.

    Works on manifests that `read_manifest` refuses, and raises nothing for what a manifest or an image may hold. `progress(done,
    total)` is called after each image. Only names of header fields are told, never their values; files outside the manifest's
    folder are not opened, unless the environment variable SOS_ALLOW_OUTSIDE is 1. """
    path = Path(manifest_path)
    findings = []
    table = _read_table(path, findings)
    if table is None:
        return AuditReport(path.name, findings, _counts(findings, None, {}), False)
    missing = [name for name in REQUIRED if name not in table]
    for name in REQUIRED:
        if name not in table:
            table[name] = ""
    sound = True
    try:
        table = _corrected(table, read_reviews(path.with_name(REVIEWS)), scheme)
    except CohortError as error:  # the cohort cannot be read before this is mended
        sound = False
        findings.append(Finding("error", None, "", REVIEWS, *_spoken(error, path.with_name(REVIEWS)), "reviews"))
    files = inspect_all(path.parent, table["image"], workers, progress)
    for row in table.itertuples():
        told = check_row(row, files.get(row.image), scheme, set(missing))
        findings += [Finding(severity, row.Index, row.patient_id, row.image, what, advice, kind) for kind, severity, what, advice in told]
    _check_across(table, files, findings)
    _check_near(table, files, findings, workers)
    bad = {finding.row for finding in findings if finding.severity == "error"}
    usable = sound and not missing and any(row not in bad for row in table.index)
    return AuditReport(path.name, findings, _counts(findings, table, files), usable, table, files)


def _spoken(error: CohortError, path: Path) -> tuple[str, str]:
    """What an error says is wrong with the file at `path`, and what to do."""
    what, _, advice = str(error).removeprefix(str(path)).lstrip(":, ").rpartition("; ")
    return what or advice, advice


def _read_table(path: Path, findings: list[Finding]) -> pd.DataFrame | None:
    """The cells with each column once; None where there is nothing to go through."""

    def tell(severity, what, advice, kind="manifest"):
        findings.append(Finding(severity, None, "", path.name, what, advice, kind))

    try:
        table = read_cells(path)
    except CohortError as error:
        tell("error", *_spoken(error, path))
        return None
    names = table.columns.tolist()
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        split_by = next((mark for mark in ";\t" if len(names) == 1 and mark in names[0]), None)
        advice = "separate columns by commas" if split_by else f"a manifest needs the columns {', '.join(REQUIRED)}"
        tell("error", f"column missing: {', '.join(missing)}", advice)
    for name in sorted({name for name in names if names.count(name) > 1}):
        tell("error", f"column twice: {name or '(no name)'}", "keep one of them; the first was looked at")
    for name in names:
        if "".join(filter(str.isalpha, name.lower())) in PRIVATE_COLUMNS:
            tell("warning", f"the column '{name}' may identify patients", "take the column out and keep the key elsewhere",
                 "identifying column")
    if table.empty:
        tell("error", "the manifest has no row", "add one row an image")
        return None
    return table.loc[:, ~table.columns.duplicated()]


def _corrected(table: pd.DataFrame, reviews: pd.DataFrame, scheme: StagingScheme) -> pd.DataFrame:
    """The rows with the boxes and stages of the `reviews` beside the manifest, those of excluded images left out."""
    columns = [*BOX, "stage"]
    numbers = table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in columns})
    reviewed, _ = apply_reviews(numbers, reviews, scheme)
    table = table.loc[reviewed.index].copy()
    for name in columns:
        new = reviewed[name].notna() & (reviewed[name] != numbers[name].loc[reviewed.index])
        table.loc[new, name] = [f"{value:g}" for value in reviewed.loc[new, name]]
    return table


def _check_across(table: pd.DataFrame, files: dict[str, FileFacts], findings: list[Finding]) -> None:
    """What only several rows together show: leaks between splits, the same pixels twice, a half-filled column."""

    def tell(kind, severity, rows, what, advice):
        findings.extend(Finding(severity, row, table.at[row, "patient_id"], table.at[row, "image"], what, advice, kind) for row in rows)

    for _, rows in table[table["patient_id"] != ""].groupby("patient_id"):
        splits = sorted(set(rows["split"]) - {""})
        if len(splits) > 1:
            tell("patient in two splits", "error", rows.index, f"the patient is in {' and '.join(splits)}",
                 "keep all images of a patient in one split")
        if len(set(rows["sex"]) & {"F", "M"}) > 1:
            tell("patient of two sexes", "warning", rows.index, "the patient has two sexes", "check the sex and the identifier")
    empty = table.index[table["split"] == ""]
    if 0 < len(empty) < len(table):
        tell("split missing", "error", empty, "split is empty while other rows have one", "fill in all rows or none")
    same = defaultdict(list)
    for row, name in table["image"].items():
        if name in files and files[name].digest:
            same[files[name].digest].append(row)
    for rows in same.values():
        if len(rows) < 2:
            continue
        if table.loc[rows, "patient_id"].nunique() > 1:
            listed = ", ".join(map(str, rows))
            tell("same pixels, several patients", "error", rows, f"the same pixels under several patients (rows {listed})",
                 "find out whose image it is and take the others out")
        else:
            tell("same pixels, one patient", "warning", rows[1:], f"the same pixels as in row {rows[0]}",
                 "take the row out; it counts this patient twice")


def _check_near(table: pd.DataFrame, files: dict[str, FileFacts], findings: list[Finding], workers: int | None) -> None:
    """The same picture under several patients though not the same pixels. Rows of the same pixels stand for one picture."""
    rows_of = defaultdict(list)
    for row, name in table["image"].items():
        if name in files and files[name].digest and table.at[row, "patient_id"]:
            rows_of[files[name].digest].append(row)
    groups = list(rows_of.values())
    patients = [frozenset(table.loc[rows, "patient_id"]) for rows in groups]
    alike = defaultdict(set)
    for pair in near_duplicates([files[table.at[rows[0], "image"]].small for rows in groups], patients, workers):
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            for row in groups[one]:
                alike[row] |= {r for r in groups[other] if table.at[r, "patient_id"] != table.at[row, "patient_id"]}
    for row, others in sorted(alike.items()):
        listed = row_list(sorted(others))
        findings.append(Finding("warning", row, table.at[row, "patient_id"], table.at[row, "image"],
                                f"nearly the same picture as in row{'s' * (len(others) > 1)} {listed}, of another patient",
                                "compare the images; where they are one exposure, find out whose it is and take the others out",
                                "nearly the same picture, several patients"))


def _counts(findings: list[Finding], table: pd.DataFrame | None, files: dict[str, FileFacts]) -> dict:
    severities = [finding.severity for finding in findings]
    return {"rows": 0 if table is None else len(table),
            "patients": 0 if table is None else int(table.loc[table["patient_id"] != "", "patient_id"].nunique()),
            "images": len(files), "images_readable": sum(not file.error for file in files.values()),
            "errors": severities.count("error"), "warnings": severities.count("warning")}
