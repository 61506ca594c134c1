"""Whose image was read: the headers of a DICOM input, for objects derived from it that an archive must file under the same patient and study.

Only `report` uses this, and only for the two DICOM objects that it writes: nothing from here may reach a name of a file, a table, a log or an
error.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom._standard_utils import get_sop_class_iod_map
from pydicom.dataset import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from .errors import ImageError
from .images.dicom import damage_of, read_header
from .images.reader import GreyImage

# Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): what must be there, empty where unknown; and what is carried over where it is
REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
            "AccessionNumber")
CARRIED = ("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientAge",
           "StudyDescription")
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PLACED = ("Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "ImageOrientationPatient", "PatientOrientation", "BurnedInAnnotation",
          "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True)
class Origin:
    """headers: of the files that an image was read from, decoded, without pixels. cut: whether the image was cut from a volume, so that its pixels
    are those of no file."""

    headers: list[Dataset]
    cut: bool

    @property
    def first(self) -> Dataset:
        return self.headers[0]

    @property
    def referable(self) -> bool:
        """Whether the files can be referred to: all four UIDs that it takes are there and legal, and highdicom knows the class."""
        known = get_sop_class_iod_map()
        return all(str(header.get("SOPClassUID", "")) in known and all(header.get(name) and UID(str(header[name].value)).is_valid for name in UIDS)
                   for header in self.headers)

    def file_under(self, dataset: Dataset) -> None:
        """Give a derived object the patient and study of its source. The study's UID must be there already. Texts become UTF-8."""
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for name in REQUIRED + CARRIED:
            value = self.first.get(name)
            if value is None and name in CARRIED:
                continue
            dataset.__setattr__(name, "" if value is None else str(value) if name.endswith("Name") else value)

    @property
    def orientation(self) -> list[str]:
        """Where rows and columns of the image run, as in PatientOrientation; empty where unknown."""
        if self.cut:
            return ["A", "F"]  # see images.midsagittal
        try:
            cosines = np.array(self.first.ImageOrientationPatient, float).reshape(2, 3)
        except (AttributeError, TypeError, ValueError):
            known = self.first.get("PatientOrientation") or []
            return list(known) if len(known) == 2 else []
        axes = abs(cosines).argmax(1)
        return [("RL", "AP", "FH")[axis][int(row[axis] > 0)] for axis, row in zip(axes, cosines, strict=True)]


def find_origin(path, image: GreyImage) -> Origin:
    """The headers of the DICOM files that `image` was read from, at `path`. Raises ImageError where they cannot be told."""
    path = Path(path)
    if path.is_file():
        header = read_header(path)
        with damage_of(path, "reading its header"):
            header.decode()
            listed = str(header.file_meta.get("MediaStorageSOPClassUID", "")) == MediaStorageDirectoryStorage
        if not listed:
            return Origin([header], "slice" in image.record)
        path = path.parent
    return Origin(_series(path, image), "slice" in image.record)


def _series(folder: Path, image: GreyImage) -> list[Dataset]:
    """Headers of the series in a folder that fits what was read of it in size and number; CT first, localisers last, as the reader does."""
    record = image.record
    size = tuple(record["volume"]["shape"][1:]) if "volume" in record else image.pixels.shape
    groups = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        try:
            header = read_header(path, tags=["SpecificCharacterSet", *REQUIRED, *CARRIED, *UIDS, *PLACED])
            with damage_of(path, "reading its header"):
                header.decode()
                frames = int(header.get("NumberOfFrames") or 1)
                facing = tuple(np.round(np.array(header.get("ImageOrientationPatient") or [], float), 2) + 0.0)
                shape = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
                uid, scan = str(header.get("SeriesInstanceUID", path.parent)), str(header.get("Modality", "")) == "CT"
                plain = "LOCALIZER" not in (header.get("ImageType") or [])
        except ImageError:
            continue  # the reader has left it out too, and said so
        key = (uid, shape, facing, path if frames > 1 else None)
        groups.setdefault(key, ((scan and plain, plain), frames, []))[2].append(header)
    fitting = [(rank, found) for (_, shape, _, _), (rank, frames, found) in groups.items()
               if shape == size and (frames if frames > 1 else len(found)) == record["frames"]]
    fitting = [found for rank, found in fitting if rank == max(fitting, key=lambda pair: pair[0])[0]]
    if len(fitting) != 1:
        raise ImageError(f"{folder.name}: {len(fitting)} series fit what was read; give the folder of one series")
    return fitting[0]
