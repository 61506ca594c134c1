"""Images in a folder that somebody else filled: found by a name, by the patient's identifier in names, or in headers; slices put together.

The header's patient identifier is compared in memory and goes nowhere else.
"""

import os
import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CohortError, ImageError
from ..files import leads_out
from ..images.dicom import damage_of, looks_like_dicom, read_header
from ..images.reader import MAGIC
from .words import Unmapped

MAX_FILES = 500_000
ENDINGS = {".dcm", ".dicom", ".ima", ".img", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif"}
SCAN = ["SeriesInstanceUID", "Modality", "ImageType", "Rows", "NumberOfFrames"]
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class _Kind:
    """What one image file is; `series`: what it shares with the other slices of its volume; `rank` as in `read_series`, localisers last."""

    suffix: str
    series: tuple
    frames: int = 1
    rank: tuple[bool, bool] = (False, True)
    patient: str = field(default="", repr=False)


class Folder:
    """The files below a folder, without hidden ones, `skip` and links that lead out. `left_out` counts files that were passed over.

    read_patients: also read the patient identifier of each header, for `by_header`.
    """

    def __init__(self, root, skip=(), read_patients: bool = False):
        self.root, self.tags = Path(root), SCAN + ["PatientID"] * read_patients
        if not self.root.is_dir():
            raise CohortError(f"{root}: no such folder; give the folder that the images lie in")
        self.root = self.root.resolve()
        skip = {Path(path).resolve() for path in skip}
        self.kinds: dict[Path, _Kind | None] = {}
        self.left_out = self.linked_out = 0
        self.files = []
        for folder, folders, names in os.walk(self.root):
            self.linked_out += sum(Path(folder, name).is_symlink() for name in folders)  # never followed
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(folder, name) for name in names if not name.startswith(".")):
                if path.is_symlink() and leads_out(path, self.root):
                    self.linked_out += 1
                elif path.is_file() and path.resolve() not in skip:
                    self.files.append(path)
            if len(self.files) > MAX_FILES:
                raise CohortError(f"{root}: more than {MAX_FILES} files; give a smaller folder")
        self.files.sort(key=str)
        self._texts = [str(path) for path in self.files]
        self._looks = self._index()
        self._taken: dict[Path, tuple[list[Path], bool]] = {}

    def _index(self) -> tuple[dict, ...]:
        """By small letters, accents composed: path, path without its ending, name, name without its ending; folders by path and name."""
        looks = tuple(defaultdict(list) for _ in range(4))
        for path in [*self.files, *sorted({parent for path in self.files for parent in path.parents if parent != self.root
                                           and parent.is_relative_to(self.root)})]:
            whole = path.relative_to(self.root).as_posix()
            for look, key in zip(looks, (whole, _bare(whole), path.name, _bare(path.name)), strict=True):
                look[_small(key)].append(path)
        return looks

    def named(self, text: str) -> Path:
        """The file or folder that a cell names: by its path from the root, or by its name alone where only one has it; with or without
        ending. Raises Unmapped."""
        wanted = _composed(posixpath.normpath(text.replace("\\", "/"))).removeprefix(_composed(f"{self.root.as_posix()}/"))
        for look, key in zip(self._looks, (wanted, wanted, posixpath.basename(wanted), posixpath.basename(wanted)), strict=True):
            found = look.get(_small(key), [])
            exact = [path for path in found if _bare(_composed(path.name)) == _bare(posixpath.basename(wanted))]
            found = exact if len(exact) == 1 else found
            if len(found) > 1:
                raise Unmapped(f"{len(found)} files have the image's name; give its path from the folder")
            if found:
                return found[0]
        raise Unmapped("no file has the image's name")

    def below(self, folder: Path) -> list[Path]:
        """All files in `folder` and in folders in it."""
        start = bisect_left(self._texts, f"{folder}{os.sep}")
        end = bisect_left(self._texts, f"{folder}{chr(ord(os.sep) + 1)}")
        return self.files[start:end]

    def by_name(self, patients: set[str]) -> tuple[dict[str, list[Path]], set[str]]:
        """The files of each patient: those below a folder named by the identifier (the uppermost such folder counts), or with the
        identifier as a whole word in their name; and the patients who share a word of a name with another."""
        known = defaultdict(set)
        for patient in patients:
            known[_small(patient)].add(patient)
        longest = max((len(WORD.findall(_composed(patient))) for patient in patients), default=0)
        files, doubtful = defaultdict(list), set()
        for path in self.files:
            folders = path.relative_to(self.root).parts[:-1]
            owners = next((known[_small(name)] for name in folders if _small(name) in known), None)
            owners = owners or set().union(*(known[part] for part in _parts(_small(path.name), longest) if part in known))
            if len(owners) == 1:
                files[next(iter(owners))].append(path)
            doubtful |= owners if len(owners) > 1 else set()
        return files, doubtful

    def by_header(self, patients: set[str]) -> tuple[dict[str, list[Path]], set[str]]:
        """The files of each patient by the identifier in their headers, which must equal that of the table."""
        files = defaultdict(list)
        for path in self.files:
            if (kind := self.kind(path)) and kind.patient in patients:
                files[kind.patient].append(path)
        return files, set()

    def kind(self, path: Path) -> _Kind | None:
        """What the file is, None where it is no image."""
        if path not in self.kinds:
            try:
                self.kinds[path] = self._kind(path)
            except ImageError:
                self.kinds[path] = None
        return self.kinds[path]

    def _kind(self, path: Path) -> _Kind | None:
        with damage_of(path, "opening it"), path.open("rb") as file:
            head = file.read(132)
        picture = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
        if picture and not looks_like_dicom(head):
            return _Kind(SUFFIXES[picture], (path,))
        header = read_header(path, tags=self.tags)
        with damage_of(path, "reading its header"):
            frames, modality = int(header.get("NumberOfFrames") or 1), str(header.get("Modality", ""))
            real = "LOCALIZER" not in (header.get("ImageType") or [])
            series = (path,) if frames > 1 else (str(header.get("SeriesInstanceUID", path.parent)), real)
            patient = str(header.get("PatientID", "")).strip()
            return _Kind(".dcm", series, frames, (modality == "CT" and real, real), patient) if int(header.get("Rows") or 0) else None

    def images(self, files: list[Path]) -> list[list[Path]]:
        """Files put together to images: the slices of a series are one. Where there are volumes, single files are passed over, and
        localisers where there is anything else."""
        groups = self._grouped(files)
        ranks = {series: self.kinds[group[0]].rank for series, group in groups.items()}
        volumes = [series for series in groups if self._frames(groups[series]) > 1]
        best = max((ranks[series] for series in volumes), default=None)
        real = any(rank[1] for rank in ranks.values())
        kept = [series for series in volumes if ranks[series] == best] or [series for series in groups if ranks[series][1] or not real]
        self.left_out += len(files) - sum(len(groups[series]) for series in kept)
        return [groups[series] for series in kept]

    def _grouped(self, files: list[Path]) -> dict[tuple, list[Path]]:
        groups = defaultdict(list)
        for path in files:
            if kind := self.kind(path):
                groups[kind.series].append(path)
        return groups

    def _frames(self, group: list[Path]) -> int:
        return sum(self.kinds[path].frames for path in group)

    def _rank(self, group: list[Path]) -> tuple:
        """What `read_series` chooses by."""
        return self.kinds[group[0]].rank, self._frames(group)

    def place(self, image: list[Path]) -> Path:
        """The one path that stands for an image: its file, or the folder of its slices. Raises Unmapped where `read_image` would take
        another series of that folder."""
        if len(image) == 1:
            return image[0]
        folder = Path(os.path.commonpath([path.parent for path in image]))
        if folder not in self._taken:
            ranked = sorted(self._grouped(self.below(folder)).values(), key=self._rank, reverse=True)
            self._taken[folder] = ranked[0], len(ranked) > 1 and self._rank(ranked[0]) == self._rank(ranked[1])
        taken, doubtful = self._taken[folder]
        if image != taken or doubtful:
            raise Unmapped(f"its {len(image)} slices lie among those of others; --into DIR writes each series to a folder of its own")
        return folder


def _composed(name: str) -> str:
    """`name` with accents on their letters; macOS writes them behind."""
    return unicodedata.normalize("NFC", name)


def _small(name: str) -> str:
    return _composed(name.casefold())


def _bare(name: str) -> str:
    stem, ending = posixpath.splitext(name)
    return stem if ending.casefold() in ENDINGS else name


def _parts(name: str, longest: int) -> set[str]:
    """Pieces of a name from the beginning of a word to the end of one at most `longest` words on."""
    words = [match.span() for match in WORD.finditer(name)]
    return {name[start:words[j][1]] for i, (start, _) in enumerate(words) for j in range(i, min(i + longest, len(words)))}
