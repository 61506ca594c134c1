"""Is a cohort fit to learn from? Every doubt about a manifest and its files as one row of a table, each with what to do about it.

The manifest is read here and not by `manifest.read_manifest`, which stops at the first thing it cannot use.
"""

import hashlib
import json
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import ImageError
from ..files import leads_out
from ..images.dicom import damage_of, looks_like_dicom, read_header
from ..images.reader import read_image
from ..stages import BASSED5, StagingScheme
from .manifest import BOX, REQUIRED, SPLITS

SMALLEST_PX, COARSEST_MM = 512, 0.6
BOX_SHARE = (0.05, 0.60)  # of the image's width; 12 to 27 % is usual
CLIPPED_SHARE = {"bright": 0.03, "dark": 0.85}  # of pixels at the end of the grey scale
AGES_Y = (2.0, 90.0)
# Mean age in years (male, female) at four stages in 741 orthodontic patients (PMC5565182), and the larger standard deviation of
# transition ages of Hisham et al. 2018. A stage "contradicts" an age that lies more than four of those away; open joints have no
# lower end, fused no upper.
AGE_AT = {"open": (11.07, 9.75), "partial": (12.95, 11.67), "mostly": (14.44, 13.25), "fused": (16.41, 15.25)}
AGE_SD_Y, AGE_SDS = 1.72, 4
PHASE = {"open": "open", "endocranial": "partial", "fusing": "partial", "mostly": "mostly", "scar": "fused", "fused": "fused"}

# Attributes that the Basic Application Level Confidentiality Profile (PS3.15, Table E.1-1) removes outright, and those that it
# lets stand with a dummy value, which are told only where the file does not say that it was de-identified. Age, sex and size of
# the patient are left alone (Retain Patient Characteristics Option): staging needs them.
REMOVED = ("PatientAddress", "PatientTelephoneNumbers", "PatientMotherBirthName", "PatientBirthName", "PatientBirthTime",
           "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "MilitaryRank", "CountryOfResidence",
           "RegionOfResidence", "PatientReligiousPreference", "Occupation", "EthnicGroup", "MedicalRecordLocator",
           "PatientInsurancePlanCodeSequence", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers",
           "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "PersonName", "IssuerOfPatientID", "AdmissionID",
           "CurrentPatientLocation", "PatientInstitutionResidence", "PatientComments", "AdditionalPatientHistory",
           "InstitutionAddress", "InstitutionalDepartmentName", "ImageComments")
DUMMY = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName",
         "OperatorsName", "RequestingPhysician", "InstitutionName", "StationName", "DeviceSerialNumber", "StudyID", "StudyDate",
         "SeriesDate", "AcquisitionDate", "ContentDate")
PRIVATE_COLUMNS = ("name", "patientname", "firstname", "lastname", "surname", "birthdate", "dateofbirth", "dob", "address",
                   "phone", "email")


@dataclass(frozen=True)
class Finding:
    """One doubt. `severity` is 'error' (this row cannot be used as it is) or 'warning'; `row` counts as a spreadsheet does
    (header = 1)."""

    severity: str
    row: int | None
    patient_id: str
    file: str
    what: str
    advice: str


@dataclass(frozen=True)
class AuditReport:
    """Findings on one manifest. `usable` is False where not one row could be used; `counts` sums up."""

    manifest: str
    findings: list[Finding]
    counts: dict
    usable: bool

    @property
    def exit_code(self) -> int:
        """0 clean, 1 with findings, 2 unusable."""
        return 2 if not self.usable else 1 if self.findings else 0

    def to_frame(self) -> pd.DataFrame:
        """One row a finding: severity, row, patient_id, file, what, advice; errors first, then by row."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings], columns=list(Finding.__dataclass_fields__))
        frame["row"] = frame["row"].astype("Int64")
        return frame.sort_values(["severity", "row"], kind="stable", na_position="first", ignore_index=True)

    def to_json(self) -> str:
        """The same as JSON: manifest (its name), usable, counts, findings."""
        findings = [finding | {"row": None if pd.isna(finding["row"]) else int(finding["row"])}
                    for finding in self.to_frame().to_dict("records")]
        return json.dumps({"manifest": self.manifest, "usable": self.usable, "counts": self.counts, "findings": findings},
                          indent=2, ensure_ascii=False)


@dataclass
class _File:
    """What was found out about one image; nothing of it identifies anyone."""

    error: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    spacing_mm: float | None = None
    warnings: list[str] = field(default_factory=list)
    digest: str = ""
    dark: float = 0.0
    bright: float = 0.0
    identifying: list[str] = field(default_factory=list)
    unmarked: bool = False
    burned_in: bool = False


def audit(manifest_path, scheme: StagingScheme = BASSED5, *, workers: int | None = None, progress=None) -> AuditReport:
    """Check a manifest and every image in it.

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
    files = _inspect_all(path.parent, table["image"], workers, progress)
    for row in table.itertuples():
        told = _check_row(row, files.get(row.image), scheme, set(missing))
        findings += [Finding(severity, row.Index, row.patient_id, row.image, what, advice) for severity, what, advice in told]
    _check_across(table, files, findings)
    bad = {finding.row for finding in findings if finding.severity == "error"}
    usable = not missing and any(row not in bad for row in table.index)
    return AuditReport(path.name, findings, _counts(findings, table, files), usable)


def _read_table(path: Path, findings: list[Finding]) -> pd.DataFrame | None:
    """All cells as stripped text, the index the row of a spreadsheet; None where there is nothing to go through."""

    def tell(severity, what, advice):
        findings.append(Finding(severity, None, "", path.name, what, advice))

    try:
        raw = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except FileNotFoundError:
        tell("error", "no such manifest", "give the path of a cohort's CSV file")
        return None
    except (OSError, UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        spoken = isinstance(error, (pd.errors.ParserError, pd.errors.EmptyDataError))
        reason = str(error).splitlines()[0] if spoken else type(error).__name__
        tell("error", f"not a readable CSV file ({reason})", "save it as comma-separated UTF-8 with one header line")
        return None
    raw = raw.fillna("").map(str.strip)  # a short line lacks its last cells
    names = raw.iloc[0].tolist()
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        split_by = next((mark for mark in ";\t" if len(names) == 1 and mark in names[0]), None)
        advice = "separate columns by commas" if split_by else f"a manifest needs the columns {', '.join(REQUIRED)}"
        tell("error", f"column missing: {', '.join(missing)}", advice)
    for name in sorted({name for name in names if names.count(name) > 1}):
        tell("error", f"column twice: {name or '(no name)'}", "keep one of them; the first was looked at")
    for name in names:
        if "".join(filter(str.isalpha, name.lower())) in PRIVATE_COLUMNS:
            tell("warning", f"the column '{name}' may identify patients", "take the column out and keep the key elsewhere")
    table = raw.iloc[1:].loc[:, [names.index(name) == i for i, name in enumerate(names)]]
    table.columns = list(dict.fromkeys(names))
    table.index += 1
    table = table[(table != "").any(axis=1)]
    if table.empty:
        tell("error", "the manifest has no row", "add one row an image")
        return None
    return table


def _inspect_all(root: Path, images: pd.Series, workers: int | None, progress) -> dict[str, _File]:
    names = [name for name in dict.fromkeys(images) if name]
    files = {}
    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:  # decoders and numpy let go of the interpreter's lock
        for done, (name, found) in enumerate(zip(names, pool.map(lambda name: _inspect(root, name), names), strict=True), 1):
            files[name] = found
            if progress:
                progress(done, len(names))
    return files


def _inspect(root: Path, name: str) -> _File:
    path = root / name
    if leads_out(path, root):
        return _File(error="lies outside the manifest's folder and was not opened")
    try:
        image = read_image(path)
        found = _File(size=image.pixels.shape[::-1], spacing_mm=image.spacing_mm, warnings=list(image.record["warnings"]))
        words = (image.pixels * 65535).round().astype("<u2")
        found.digest = hashlib.blake2b(words.tobytes() + repr(words.shape).encode()).hexdigest()
        found.dark, found.bright = float((image.pixels <= 0).mean()), float((image.pixels >= 1).mean())
        if image.record["format"].startswith("DICOM"):
            try:
                _inspect_headers(path, found)
            except ImageError:
                found.warnings.append("the header is damaged in part and could not be checked for identifying fields")
        return found
    except ImageError as error:
        return _File(error=str(error).removeprefix(f"{path.name}: "))


def _inspect_headers(path: Path, found: _File) -> None:
    """Which identifying fields the header, or any header of a series, holds at any depth; and what it says of itself."""
    told = {}
    for item in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with damage_of(item, "reading its header"):
            if not item.is_file():
                continue
            with item.open("rb") as file:
                if not looks_like_dicom(file.read(132)):
                    continue
            header = read_header(item)
            held = {element.keyword if not element.tag.is_private else "private elements" for element in header.iterall()
                    if element.value}
            marked = str(header.get("PatientIdentityRemoved", "")).strip() == "YES"
            found.burned_in |= str(header.get("BurnedInAnnotation", "")).strip() == "YES"
        found.unmarked |= not marked
        told |= dict.fromkeys(keyword for keyword in (REMOVED if marked else REMOVED + DUMMY + ("private elements",))
                              if keyword in held)
    found.identifying = list(told)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _check_row(row, file: _File | None, scheme: StagingScheme, absent: set[str]):
    """Yield (severity, what, advice) on one row and its file."""
    for name in ("patient_id", "image"):
        if not getattr(row, name) and name not in absent:
            yield "error", f"{name} is empty", "fill it in or take the row out"
    stage = _number(row.stage)
    known = stage is not None and stage in scheme.labels
    if not known and "stage" not in absent:
        labels = ", ".join(map(str, scheme.labels))
        yield ("error", f"stage '{row.stage}' is not in the scheme '{scheme.name}'",
               f"use one of {labels}, or choose another scheme")
    age_y = _number(row.age_y)
    if age_y is None and row.age_y:
        yield "error", f"age_y '{row.age_y}' is not a number", "give the age in years, or leave it empty"
    elif age_y is None and "age_y" not in absent:
        yield "warning", "age_y is empty", "fill in the age in years; tables and plots by age leave this patient out"
    elif age_y is not None and not AGES_Y[0] <= age_y <= AGES_Y[1]:
        yield "warning", f"an age of {age_y:g} years is implausible", "check the age; it is counted in years"
    elif age_y is not None and known and (doubt := _contradiction(age_y, row.sex, scheme.stages[scheme.index(stage)])):
        yield "warning", doubt, "look at the image again and check age and stage"
    if row.sex not in ("F", "M") and "sex" not in absent:
        yield "warning", f"sex '{row.sex}' is neither F nor M", "use F or M"
    if row.split and row.split not in SPLITS:
        yield "error", f"split '{row.split}' is unknown", f"use {', '.join(SPLITS)}, or leave the column empty"
    yield from _check_box([getattr(row, name) for name in BOX], file, absent)
    if file is not None:
        yield from _check_file(file, _number(getattr(row, "spacing_mm", "")))


def _contradiction(age_y: float, sex: str, stage) -> str:
    """Why `age_y` is out of reach for `stage`, or an empty text."""
    phase = PHASE.get(stage.name)
    if phase is None:
        return ""
    means = [AGE_AT[phase][i] for i, name in enumerate("MF") if sex == name or sex not in ("M", "F")]
    low = -np.inf if phase == "open" else min(means) - AGE_SDS * AGE_SD_Y
    high = np.inf if phase == "fused" else max(means) + AGE_SDS * AGE_SD_Y
    return "" if low <= age_y <= high else f"an age of {age_y:g} years contradicts stage {stage.label} ({stage.name})"


def _check_box(texts: list[str], file: _File | None, absent: set[str]):
    if absent & set(BOX):
        return
    numbers = [_number(text) for text in texts]
    if None in numbers:
        yield ("error", f"the box ({', '.join(texts)}) is incomplete or no number",
               "draw it: x0, y0, x1, y1 in pixels of the image")
        return
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        yield "error", "the box has no extent", "x1 must exceed x0 and y1 exceed y0, in pixels of the image"
    elif file is not None and not file.error:
        width, height = file.size
        if min(x0, y0) < -0.5 or x1 > width + 0.5 or y1 > height + 0.5:
            yield ("error", f"the box reaches outside the image ({width}×{height} px)",
                   "draw it again in pixels of the image as decoded")
        elif not BOX_SHARE[0] <= (x1 - x0) / width <= BOX_SHARE[1]:
            yield ("warning", f"the box covers {100 * (x1 - x0) / width:.0f} % of the image's width (12 to 27 % is usual)",
                   "look at the box again")


def _check_file(file: _File, stated_mm: float | None):
    if file.error:
        yield "error", f"unreadable: {file.error}", "mend or export the file again, or take the row out"
        return
    if min(file.size) < SMALLEST_PX:
        yield ("warning", f"{file.size[0]}×{file.size[1]} px are few to see the joint in",
               f"export at {SMALLEST_PX}×{SMALLEST_PX} px or more")
    if file.spacing_mm is not None and file.spacing_mm > COARSEST_MM:
        yield ("warning", f"pixels of {file.spacing_mm:.2g} mm are too coarse to see the joint",
               f"export at {COARSEST_MM} mm or finer")
    if file.spacing_mm is not None and stated_mm is not None and abs(stated_mm - file.spacing_mm) > 0.05 * file.spacing_mm:
        yield "warning", f"spacing_mm says {stated_mm:g}, the file {file.spacing_mm:.3g}", "correct the manifest or the file"
    for end in CLIPPED_SHARE:
        if (share := getattr(file, end)) > CLIPPED_SHARE[end]:
            yield ("warning", f"{100 * share:.0f} % of the pixels are clipped at the {end} end",
                   "export with a wider grey-value window")
    for warning in file.warnings:
        yield "warning", warning, "look at the image, or export it again"
    if file.identifying:
        yield ("warning", f"identifying header fields: {', '.join(file.identifying)}",
               "de-identify the file (DICOM PS3.15, basic profile)")
    if file.unmarked:
        yield ("warning", "the header does not say that it was de-identified",
               "de-identify it and set PatientIdentityRemoved to YES")
    if file.burned_in:
        yield ("warning", "the header says that text is burned into the pixels",
               "look for names in the image and export it without")


def _check_across(table: pd.DataFrame, files: dict[str, _File], findings: list[Finding]) -> None:
    """What only several rows together show: leaks between splits, the same pixels twice, a half-filled column."""

    def tell(severity, rows, what, advice):
        findings.extend(Finding(severity, row, table.at[row, "patient_id"], table.at[row, "image"], what, advice) for row in rows)

    for _, rows in table[table["patient_id"] != ""].groupby("patient_id"):
        splits = sorted(set(rows["split"]) - {""})
        if len(splits) > 1:
            tell("error", rows.index, f"the patient is in {' and '.join(splits)}", "keep all images of a patient in one split")
        if len(set(rows["sex"]) & {"F", "M"}) > 1:
            tell("warning", rows.index, "the patient has two sexes", "check the sex and the identifier")
    empty = table.index[table["split"] == ""]
    if 0 < len(empty) < len(table):
        tell("error", empty, "split is empty while other rows have one", "fill in all rows or none")
    same = defaultdict(list)
    for row, name in table["image"].items():
        if name in files and files[name].digest:
            same[files[name].digest].append(row)
    for rows in same.values():
        if len(rows) < 2:
            continue
        if table.loc[rows, "patient_id"].nunique() > 1:
            listed = ", ".join(map(str, rows))
            tell("error", rows, f"the same pixels under several patients (rows {listed})",
                 "find out whose image it is and take the others out")
        else:
            tell("warning", rows[1:], f"the same pixels as in row {rows[0]}", "take the row out; it counts this patient twice")


def _counts(findings: list[Finding], table: pd.DataFrame | None, files: dict[str, _File]) -> dict:
    severities = [finding.severity for finding in findings]
    return {"rows": 0 if table is None else len(table),
            "patients": 0 if table is None else int(table.loc[table["patient_id"] != "", "patient_id"].nunique()),
            "images": len(files), "images_readable": sum(not file.error for file in files.values()),
            "errors": severities.count("error"), "warnings": severities.count("warning")}
