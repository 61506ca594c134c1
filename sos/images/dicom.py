"""DICOM files and series to grey values in the scanner's units, bright = dense, with their geometry: the door to the rooms beside it.

`header` opens files, `pixels` holds what they claim against what they hold, `decode` makes grey values (`apart` where a decoder may crash),
`volume` stacks, `series` chooses among files.
"""

from pathlib import Path

from .header import damage_of, looks_like_dicom, read_header
from .series import read_directory, read_series
from .volume import DicomImage, Volume, read_file

__all__ = ["DicomImage", "Volume", "damage_of", "looks_like_dicom", "read_dicom", "read_header", "read_series"]

DICOMDIR = "1.2.840.10008.1.3.10"


def read_dicom(path) -> DicomImage | Volume:
    """Read one DICOM file: an image, or a volume where it holds several frames; a DICOMDIR stands for the files it lists.

    Raises ImageError for anything that is not a readable image. Memory: the file, and its voxels once as float32.
    """
    path = Path(path)
    dataset = read_header(path, pixels=True)
    with damage_of(path, "reading its header"):
        directory = str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == DICOMDIR
    return read_directory(dataset, path) if directory else read_file(dataset, path)
