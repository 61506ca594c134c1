"""A manifest from somebody else's folder and table: the columns mapped, the words understood, the images found, and all of it told."""

import csv
import io
import os
import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import CohortError
from ..files import ALLOW_OUTSIDE, outside_allowed, write_whole
from ..stages import BASSED5, StagingScheme
from .columns import choose_columns, find_column, identifying
from .locate import Folder
from .manifest import REQUIRED
from .sheet import Sheet, read_sheet
from .words import BOXES, EMPTY, Reading, Rows, Unmapped, check_values, spoken

MATCHES = ("name", "dicom-patient-id")
FORMULA = "=+-@\t\r"  # a spreadsheet program computes what begins with one of these


@dataclass(frozen=True)
class Collected:
    """manifest: its path. rows, patients: how many. without_box: rows whose box must still be drawn. rejected: (row number in the sheet,
    reason) of each row that was kept out, also in the file `rejects`. mapping: lines on the columns. notes: what else to know."""

    manifest: Path
    rows: int
    patients: int
    without_box: int
    rejected: list[tuple[int, str]]
    rejects: Path | None
    mapping: list[str]
    notes: list[str]


@dataclass
class _Image:
    """One row to be: where it comes from, what it says, the files of its image."""

    number: int
    row: dict[str, str]
    files: list[Path]
    kept: list[str]


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` texts as a dictionary. Raises CohortError for others and for a name given twice."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name.strip() in found:
            raise CohortError(f"{option} {text}: " + ("is given twice" if equals else "write NAME=VALUE, in quotes where there are spaces"))
        found[name.strip()] = value.strip()
    return found


def value_maps(texts: list[str]) -> dict[str, dict[str, str]]:
    """`COLUMN:OLD=NEW,OLD=NEW` texts as column → {old: new}. Raises CohortError for others and for two meanings of a word."""
    maps = {}
    for text in texts:
        target, colon, words = text.partition(":")
        if not colon:
            raise CohortError(f"--values {text}: write COLUMN:OLD=NEW,OLD=NEW, for instance sex:1=M,2=F")
        known = maps.setdefault(target.strip(), {})
        for old, new in pairs(words.split(","), f"--values {target}:").items():
            if known.setdefault(old, new) != new:
                raise CohortError(f"--values {target}:{old}={new}: is given twice, before as {old}={known[old]}; leave one of them out")
    return maps


def collect(folder, table, out=None, *, columns: dict[str, str] | None = None, values: dict[str, dict[str, str]] | None = None, sheet: str = "",
            header: int = 0, months: bool = False, dates: str = "", box: str = "xyxy", keep: tuple[str, ...] = (), match: str = "name",
            into=None, pseudonyms: bool = False, key=None, force: bool = False, scheme: StagingScheme = BASSED5, progress=None) -> Collected:
    """Write the manifest of the images in `folder` that the spreadsheet `table` describes.

    columns: column of the manifest, or birth_date and exam_date, → name in the sheet; others are found by well-known names. values: what
    words mean (`sex`, `stage`, `split`). sheet, header: see `read_sheet`; months, dates, box: see `Reading`. keep: further columns of the
    sheet to carry over. Images are found by the column `image`, else by the patient's identifier in names of folders and files, or with
    match='dicom-patient-id' in headers. into: a new folder for hard links to the images, or copies on another disk, under neutral names.
    pseudonyms: p0001… in place of the identifiers. key: a new file, readable by its owner alone, that says what is what.
    out: default `manifest.csv` in `into`, else in `folder`; written over with `force` only. progress(done, total): after each row.

    A row that cannot be mapped is kept out and told, also in `<manifest>.rejected.csv`. Raises CohortError where no row is left or where
    something makes all rows doubtful, and then writes no manifest.
    """
    if match not in MATCHES or box not in BOXES or dates not in ("", "dmy", "mdy"):
        raise CohortError(f"match is one of {', '.join(MATCHES)}, box of {', '.join(BOXES)}, dates dmy or mdy")
    target = Path(out or Path(into or folder) / "manifest.csv")
    rejects = target.with_name(f"{target.stem}.rejected.csv")
    _check_places(folder, table, target, into, force)
    if key:
        _check_key(Path(key), (table, target, rejects), into)
    check_values(values or {}, scheme)
    source = read_sheet(table, sheet, header)
    chosen, mapping = choose_columns(source, columns or {})
    extra = _extra(source, keep)
    rows = Rows(source, chosen, Reading(scheme, values or {}, months, dates, box))
    files = Folder(folder, (table, target, rejects), read_patients=match == "dicom-patient-id")
    rejected: dict[int, str] = {}
    images = _found(source, rows, files, extra, "image" in chosen, match, rejected, progress)
    images = _told_apart(images, rejected)
    paths = _paths(images, files, target, into, rejected)
    images = [image for image in images if image.number not in rejected]
    if not images:
        first = {reason: number for number, reason in sorted(rejected.items(), reverse=True)}
        told = "; ".join(f"row {number}: {reason}" for reason, number in sorted(first.items(), key=lambda item: item[1])[:3])
        raise CohortError(f"{table}: none of its {spoken(len(source.rows))} can be used ({', '.join(mapping)}). {told}")
    names = {patient: f"p{i:04d}" for i, patient in enumerate(dict.fromkeys(image.row["patient_id"] for image in images), 1)}
    if into:
        part = Path(into).with_name(f".part.{Path(into).name}")
        paths = _copy(images, files, names, part, Path(into), target)
    if key:  # before anything that cannot be understood without it
        _write_key(Path(key), images, paths, names, pseudonyms, files.root)
    if into:
        part.replace(into)
    _write_rejected(rejects, rejected)
    _write_manifest(target, images, paths, names if pseudonyms else {}, keep)
    notes = source.notes + [f"{what}: {spoken(count)}" for what, count in sorted(rows.told.items()) if count]
    notes += _doubts(source, files, chosen, extra, images, pseudonyms, into)
    if key and Path(key).resolve().is_relative_to(target.parent.resolve()):
        notes.append(f"{key} lies in the manifest's folder; keep it elsewhere")
    return Collected(target, len(images), len(names), sum(not image.row["x0"] for image in images), sorted(rejected.items()),
                     rejects if rejected else None, mapping, notes)


def _check_places(folder, table, target: Path, into, force: bool) -> None:
    """Nothing that is there is written over, and the images will lie where the manifest may read them."""
    if target.resolve() == Path(table).resolve():
        raise CohortError(f"{target}: is the table that is read; give another --out")
    if target.exists() and not (force and target.is_file()):
        raise CohortError(f"{target}: is there already; give another --out" + ("" if force else ", or --force to write it anew"))
    if into and Path(into).exists() and (not Path(into).is_dir() or any(Path(into).iterdir())):
        raise CohortError(f"{into}: is there already and not empty; give --into a new folder")
    if into and Path(into).resolve().is_relative_to(Path(folder).resolve()):
        raise CohortError(f"{into}: lies inside {folder}; give --into a folder elsewhere, or the next call would find its images twice")
    if not target.parent.is_dir() and not (into and target.parent == Path(into)):
        raise CohortError(f"{target.parent}: no such folder; make it first, or give another --out")
    if not outside_allowed() and not Path(into or folder).resolve().is_relative_to(target.parent.resolve()):
        raise CohortError(f"{target}: its images would lie outside its folder; write it to {into or folder} or a folder above, copy the images with "
                          f"--into, or set the environment variable {ALLOW_OUTSIDE}=1")


def _check_key(key: Path, others: tuple, into) -> None:
    """The key can be written, to a file of its own."""
    if key.resolve() in [Path(other).resolve() for other in others]:
        raise CohortError(f"{key}: is the table, the manifest or the list of rejected rows; give --key a file of its own")
    if key.exists():
        raise CohortError(f"{key}: is there already; give --key a new file, so that no key is lost")
    if into and key.resolve().is_relative_to(Path(into).resolve()):
        raise CohortError(f"{key}: lies in {into}, among what it is the key to; keep it elsewhere")
    if not key.parent.is_dir():
        raise CohortError(f"{key.parent}: no such folder; make it first, or give another --key")


def _extra(source: Sheet, keep: tuple[str, ...]) -> list[int]:
    if taken := [name for name in keep if name in REQUIRED or keep.count(name) > 1]:
        raise CohortError(f"--keep {taken[0]}: the manifest has this column already; rename it in the sheet, or map it by --columns")
    return [find_column(source, name) for name in keep]


def _found(source: Sheet, rows: Rows, files: Folder, extra: list[int], by_cell: bool, match: str, rejected: dict, progress) -> list[_Image]:
    """The images of each row that is understood; reasons of the others go to `rejected`."""
    read = {}
    for number, cells in source.rows:
        try:
            read[number] = rows.read(number, cells)
        except Unmapped as reason:
            rejected[number] = str(reason)
    counts = Counter(row["patient_id"] for row in read.values())
    owned, doubtful = ({}, set()) if by_cell else (files.by_name if match == "name" else files.by_header)(set(counts))
    images, kept = [], dict(source.rows)
    for done, (number, row) in enumerate(read.items(), 1):
        try:
            groups = _of_cell(files, row["image"]) if by_cell else _of_patient(files, row, owned, doubtful, counts, match)
            images += [_Image(number, row, group, [_harmless(kept[number][place]) for place in extra]) for group in groups]
        except Unmapped as reason:
            rejected[number] = str(reason)
        if progress:
            progress(done, len(read))
    return images


def _of_cell(files: Folder, name: str) -> list[list[Path]]:
    path = files.named(name)
    groups = files.images(files.below(path) if path.is_dir() else [path])
    if len(groups) != 1:
        raise Unmapped(f"its folder holds {len(groups)} images; name one of them" if path.is_dir() else "its file is no image")
    return groups


def _of_patient(files: Folder, row: dict, owned: dict, doubtful: set, counts: Counter, match: str) -> list[list[Path]]:
    patient = row["patient_id"]
    if counts[patient] > 1:
        raise Unmapped(f"the patient has {counts[patient]} rows; name the image of each in a column, and map it by --columns image=NAME")
    groups = files.images(owned.get(patient, []))
    if not groups:
        raise Unmapped("the names of its files also hold the identifier of another patient; name its image in a column" if patient in doubtful
                       else "its files are no images" if owned.get(patient)
                       else "no image found; no header has this patient_id" if match != "name"
                       else "no image found; neither a folder nor a word of a file's name is the patient_id")
    if len(groups) > 1 and row["x0"]:
        raise Unmapped(f"{len(groups)} images were found but the row has one box; name the image in a column")
    return groups


def _told_apart(images: list[_Image], rejected: dict) -> list[_Image]:
    """Each image once; the same image under several patients is nobody's."""
    users = defaultdict(list)
    for image in images:
        users[image.files[0]].append(image)
    for same in users.values():
        if len({image.row["patient_id"] for image in same}) > 1:
            listed = ", ".join(str(image.number) for image in same)
            rejected |= {image.number: f"the same image is named for several patients (rows {listed})" for image in same}
        else:
            rejected |= {image.number: f"the same image as in row {same[0].number}" for image in same[1:]}
    return [image for image in images if image.number not in rejected]


def _paths(images: list[_Image], files: Folder, target: Path, into, rejected: dict) -> list[str]:
    """The images where they lie, from the manifest's folder, of the rows that stay; with `into` they will lie elsewhere."""
    paths, base = [], target.parent.resolve()
    for image in [] if into else images:
        try:
            path = Path(os.path.relpath(files.place(image.files), base)).as_posix()
            path.encode()
            if path[-1].isspace():  # spaces round a cell are not read
                raise Unmapped("the name of its file ends with a space; rename it, or use --into")
        except Unmapped as reason:
            rejected[image.number] = str(reason)
        except UnicodeEncodeError:
            rejected[image.number] = "the name of its file is not in UTF-8; rename it, or use --into"
        else:
            paths.append((image.number, f"./{path}" if path[0] in FORMULA or path[0].isspace() or path.casefold() in EMPTY else path))
    return [path for number, path in paths if number not in rejected]


def _copy(images: list[_Image], files: Folder, names: dict[str, str], part: Path, into: Path, target: Path) -> list[str]:
    """Hard links or copies of the images under neutral names in `part`, which is to become `into`; their paths from the manifest's folder then."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    paths, count = [], Counter()
    for image in images:
        name = names[image.row["patient_id"]]
        count[name] += 1
        name += f"-{count[name]}" if count[name] > 1 else ""
        if len(image.files) == 1:
            paths.append(name + files.kind(image.files[0]).suffix)
            _link(image.files[0], part / paths[-1])
        else:
            paths.append(name)
            (part / name).mkdir()
            for i, path in enumerate(image.files, 1):
                _link(path, part / name / f"{i:04d}.dcm")
    return [Path(os.path.relpath(into.resolve() / path, target.parent.resolve())).as_posix() for path in paths]


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source.resolve(), place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, place)


def _write_manifest(target: Path, images: list[_Image], paths: list[str], names: dict[str, str], keep: tuple[str, ...]) -> None:
    rows = [{**image.row, "image": path, "patient_id": names.get(image.row["patient_id"], image.row["patient_id"])}
            for image, path in zip(images, paths, strict=True)]
    write_whole(target, _csv([(*REQUIRED, *keep)] + [[*(row[name] for name in REQUIRED), *image.kept]
                                                      for row, image in zip(rows, images, strict=True)]))


def _write_rejected(path: Path, rejected: dict[int, str]) -> None:
    if rejected:
        write_whole(path, _csv([("row", "reason"), *sorted(rejected.items())]))
    else:
        path.unlink(missing_ok=True)  # of an earlier call


def _write_key(path: Path, images: list[_Image], paths: list[str], names: dict[str, str], pseudonyms: bool, root: Path) -> None:
    lines = [("patient_id", "image", "patient_id_in_sheet", "file")]
    for image, place in zip(images, paths, strict=True):
        patient = image.row["patient_id"]
        lines += [(names[patient] if pseudonyms else patient, place, patient, file.relative_to(root).as_posix()) for file in image.files]
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(_csv(lines))
    except OSError:
        path.unlink()  # half a key
        raise


def _csv(lines) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _harmless(text: str) -> str:
    """A cell that no spreadsheet program computes when the manifest is opened in it."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text[:1] and text[0] in FORMULA else text
    return text


def _doubts(source: Sheet, files: Folder, chosen: dict, extra: list[int], images: list[_Image], pseudonyms: bool, into) -> list[str]:
    """What the user should know beyond the rows that were kept out."""
    used = {path for image in images for path in image.files}
    unused = len(files.files) - len(used)
    notes = [f"not carried over (--keep does): {', '.join(unread)}"] if (unread := [
        name for i, name in enumerate(source.columns) if name and i not in {*chosen.values(), *extra}]) else []
    notes += [f"{unused} of {len(files.files)} files belong to no row of the manifest"] if unused else []
    notes += [f"{files.linked_out} links to folders or out of the folder were not followed"] if files.linked_out else []
    notes += [f"the kept column '{source.columns[place]}' may identify people" for place in extra if identifying(source.columns[place])]
    lacking = Counter(column for _, column in source.faults)
    notes += [f"the kept column '{source.columns[place]}' is empty in {spoken(lacking[place])}, whose formula has no stored value or an error"
              for place in extra if lacking[place]]
    notes += _alike(images)
    notes += [f"no {what} in the sheet; the manifest's column is empty"
              for what, target in (("age", "age_y"), ("sex", "sex")) if not {target, "birth_date" if target == "age_y" else target} & set(chosen)]
    notes += ["paths of images still hold the names that the files came with; --into DIR gives neutral ones"] if pseudonyms and not into else []
    notes += ["headers of the images are as they were; `sos audit` says which still identify people"] if into or pseudonyms else []
    return notes


def _alike(images: list[_Image]) -> list[str]:
    """A note on identifiers that may be one person's; by their rows, for nobody's is told where there are pseudonyms."""
    looks = defaultdict(dict)
    for image in images:
        patient = image.row["patient_id"]
        looks[re.sub(r"(?<!\d)0+(?=\d)", "", "".join(patient.split()).casefold())].setdefault(patient, image.number)
    rows = [" and ".join(map(str, patients.values())) for patients in looks.values() if len(patients) > 1]
    told = "; ".join(rows[:5]) + (f"; and {len(rows) - 5} more" if len(rows) > 5 else "")
    note = f"patients whose identifiers differ only in case, spaces or leading zeros (rows {told}); where they are one, write them alike"
    return [note] if rows else []
