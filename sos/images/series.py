"""A folder of DICOM files, or those that a DICOMDIR lists, to one image or volume."""

from itertools import islice
from pathlib import Path

from ..errors import ImageError
from .header import damage_of, directions_of, numbers, read_header, slice_distance, spacing_of, whole
from .pixels import describe
from .volume import DicomImage, Slice, Volume, facing, read_file, stack

MAX_FILES = 20_000  # of one folder
SCAN = ["SeriesInstanceUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "ImageOrientationPatient", "PatientID",
        "ImagePositionPatient", "InstanceNumber", "SpacingBetweenSlices", "SliceThickness", "PixelSpacing", "ImagerPixelSpacing",
        "PixelAspectRatio"]


def read_series(folder) -> DicomImage | Volume:
    """Read a folder, and folders in it, as one series: of several, the CT one with most frames, localisers last; the rest is told.

    A series of one file gives what `read_dicom` gives of it. `record["series"]` counts the files read, and the series and patients there
    were. Raises ImageError where no file is a DICOM image.
    """
    folder = Path(folder)
    return _read_files(_files_in(folder), folder, [])


def read_directory(dataset, path: Path) -> DicomImage | Volume:
    """What a DICOMDIR lists, as one series, see `read_series`; where nothing that it lists is there, the folder it lies in.

    Files outside that folder are not opened, whatever it says. Raises ImageError.
    """
    folder, listed, outside, missing = path.parent, [], 0, 0
    with damage_of(path, "reading its list of files"):
        root = folder.resolve()
        for item in dataset.get("DirectoryRecordSequence") or []:
            parts = item.get("ReferencedFileID")
            if parts:
                file = folder.joinpath(*([parts] if isinstance(parts, str) else map(str, parts)))
                inside = file.resolve().is_relative_to(root)
                outside, missing = outside + (not inside), missing + (inside and not file.is_file())
                listed += [file] if inside and file.is_file() else []
    notes = [f"{count} files that the DICOMDIR lists {what}" for count, what in (
        (outside, "lie outside its folder and were not read"), (missing, "are missing")) if count]
    if not listed:
        return _read_files(_files_in(folder), folder, notes)
    return _read_files(sorted(set(listed)), folder, notes)


def _files_in(folder: Path) -> list[Path]:
    files = sorted(islice((item for item in folder.rglob("*") if item.is_file()), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise ImageError(f"{folder.name}: more than {MAX_FILES} files; give the folder of one patient's series")
    return files


def _read_files(files: list[Path], folder: Path, told: list[str]) -> DicomImage | Volume:
    groups, patients, unreadable = {}, set(), 0
    for path in files:
        try:
            header = read_header(path, tags=SCAN)
            with damage_of(path, "reading its header"):
                size = whole(header, "Rows", 0), whole(header, "Columns", 0)
                number, frames = numbers(header, "InstanceNumber", 1), whole(header, "NumberOfFrames", 1)
                localiser = "LOCALIZER" in (header.get("ImageType") or [])
                modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID", path.parent))
                patient, face = str(header.get("PatientID") or ""), facing(directions_of(header))
        except ImageError:
            unreadable += 1
            continue
        if min(size) > 0:
            key = (uid, size, face, path if frames > 1 else None)
            rank = (modality == "CT" and not localiser, not localiser)
            groups.setdefault(key, (rank, []))[1].append((path, header, 0.0 if number is None else float(number[0]), frames))
            patients.add(patient)
    if not groups:
        raise ImageError(f"{folder.name}: no DICOM image in this folder; give a folder with one CT series, or an image file")
    chosen = max(groups, key=lambda key: (groups[key][0], sum(file[3] for file in groups[key][1])))
    files = groups[chosen][1]
    path, header, _, frames = files[0]
    people, others = len(patients - {""}), len({key[0] for key in groups} - {chosen[0]})
    strays = sum(len(group[1]) for key, group in groups.items() if key != chosen and key[0] == chosen[0])
    notes = told + [f"the folder holds images of {people} patients; the largest series was read"] * (people > 1)
    notes += [f"{count} {what} left out" for count, what in (
        (others, "other series were" if others > 1 else "other series was"),
        (strays, "files of the series with another size or orientation were"),
        (unreadable, "files that are no readable DICOM were")) if count]
    series = {"files": len(files), "series": others + 1, "patients": people}
    if len(files) == 1:
        result = read_file(read_header(path, pixels=True), path)
        result.record["warnings"][:0] = notes
        result.record["series"] = series
        return result
    first = read_header(path, pixels=True)
    with damage_of(path, "reading its header"):
        record = describe(first, path)
        record |= {"format": "DICOM series", "frames": len(files), "series": series, "warnings": notes + record["warnings"]}
        slices = [Slice(name, 0, numbers(head, "ImagePositionPatient", 3), number) for name, head, number, _ in files]
        directions, spacing = directions_of(header), spacing_of(header, 0, record["warnings"]) or (1.0, 1.0)
        thick = slice_distance(header)
    return stack(slices, directions, (thick, *spacing), record, folder)
