"""The manifest: one CSV that says who is in a cohort, where the images lie, what an expert drew and read, and who is held out.

Experts' reviews that lie beside it are part of it: it is read as they corrected it.
"""

import csv
import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CohortError
from ..files import ALLOW_OUTSIDE, leads_out
from ..stages import BASSED5, StagingScheme
from .reviews import BOX, CHANGES, REVIEWS, apply_reviews, read_reviews

REQUIRED = ("patient_id", "image", "stage", "age_y", "sex", "x0", "y0", "x1", "y1", "split")
UNKNOWN = ("NA", "NaN", "nan")  # what R and pandas write where they know nothing
TEXTS = ("patient_id", "image", "sex", "split")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Cohort:
    """A checked manifest.

    `table` has one row an image with the columns of the manifest, as corrected by reviews, `split` filled, and `target`: the stage
    counted from 0. `root` is the folder that `image` and `mask` are relative to. `changes` says what reviews did, one row an image and
    field, see `reviews.apply_reviews`.
    """

    table: pd.DataFrame
    root: Path
    scheme: StagingScheme
    path: Path
    changes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CHANGES)))

    @property
    def corrections(self) -> pd.DataFrame:
        """The changes that did something: boxes and stages that are others now, and images taken out."""
        return self.changes[self.changes["outcome"].isin(["changed", "excluded"])]

    @property
    def virtual(self) -> bool:
        """True where every row says `cohort_kind = virtual`: no figure may be read as clinical then."""
        return "cohort_kind" in self.table and bool((self.table["cohort_kind"] == "virtual").all())

    @property
    def label(self) -> str:
        """What figures and tables call these people."""
        return "virtual patients" if self.virtual else "patients"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, of the corrections to it, and of each image's name and size."""
        state = hashlib.sha256(self.path.read_bytes())
        for change in self.corrections[["patient_id", "image", "field", "after"]].itertuples(index=False):
            state.update(f"{tuple(change)}\n".encode())
        for name in self.table["image"]:
            state.update(f"{name} {(self.root / name).stat().st_size}\n".encode())
        return state.hexdigest()

    def subset(self, split: str) -> pd.DataFrame:
        """Rows of `split`, their index the row number in `table`."""
        return self.table[self.table["split"] == split]

    def image_path(self, row: int) -> Path:
        """Path of the image in row `row`."""
        return self.root / self.table["image"].iloc[row]


def read_manifest(path, scheme: StagingScheme = BASSED5, *, valid_share: float = 0.1, test_share: float = 0.25, seed: int = 0) -> Cohort:
    """Read and check a manifest, corrected by the `reviews.csv` beside it where there is one.

    A stage or a box that the manifest leaves empty may come from a review. An empty `split` column is filled by patient, stratified by stage,
    with `seed`; a filled one is kept. Where the manifest has a stage, the split is made from that one and from all patients, so that no review
    moves anyone into the training images or out of them. Raises CohortError for a missing file or column, a stage or a box that nobody gave,
    an image that is not there, a box without extent, a stage outside the scheme, a patient in two splits, a line that is no review; and, unless
    the environment variable SOS_ALLOW_OUTSIDE is 1, for an image that leads out of the manifest's folder by `..`, as an absolute path or by a link.
    """
    path = Path(path)
    written = _numbered(path)
    table, changes = apply_reviews(written, read_reviews(path.with_name(REVIEWS)), scheme)
    if table.empty:
        raise CohortError(f"{path.with_name(REVIEWS)}: all images are excluded; take one in again with another review")
    for name, columns, act in (("stage", ["stage"], "read them"), ("box", BOX, "draw them")):
        empty = table.index[table[columns].isna().all(axis=1)]
        if len(empty):
            others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise CohortError(f"{path}, row {empty[0]}{others}: {name} is empty; {act} with `sos.panels.review`, or take the row out")
    outside = table.index[~table["stage"].isin(scheme.labels)]
    if len(outside):
        known = ", ".join(map(str, scheme.labels))
        raise CohortError(f"{path}, row {outside[0]}: stage {table['stage'][outside[0]]:g} is not in the scheme '{scheme.name}' ({known})")
    table["stage"] = table["stage"].astype(int)
    table["target"] = table["stage"].map(scheme.index)
    bad_box = table.index[~((table["x1"] > table["x0"]) & (table["y1"] > table["y0"]))]
    if len(bad_box):
        raise CohortError(f"{path}, row {bad_box[0]}: the box has no extent; x1 must exceed x0 and y1 exceed y0, in pixels of the image")
    for row, name in table["image"].items():
        if leads_out(path.parent / name, path.parent):
            raise CohortError(f"{path}, row {row}: image {name} leads out of the manifest's folder; move it there, or set the environment "
                              f"variable {ALLOW_OUTSIDE}=1 where you trust this manifest")
        if not (path.parent / name).exists():
            raise CohortError(f"{path}, row {row}: image {name} is not there; paths are relative to the manifest")
    stage = written["stage"].where(written["stage"].isin(scheme.labels)).fillna(table["stage"])
    splits = _splits(written.assign(target=stage.dropna().map(scheme.index)), path, valid_share, test_share, seed)
    table = table.assign(split=splits.loc[table.index]).reset_index(drop=True)
    return Cohort(table, path.parent, scheme, path, changes)


def read_cells(path: Path) -> pd.DataFrame:
    """All cells of a manifest as stripped text, the index the row of a spreadsheet; empty rows and columns are left out. Required cells that say
    UNKNOWN are empty, but for names: NA is one like any other.

    A column may be missing or there twice. Raises CohortError for a file that is missing or no CSV.
    """
    try:
        raw = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except FileNotFoundError:
        raise CohortError(f"{path}: no such manifest; give the path of a cohort's CSV file") from None
    except (OSError, UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        spoken = isinstance(error, (pd.errors.ParserError, pd.errors.EmptyDataError))
        reason = str(error).splitlines()[0] if spoken else type(error).__name__
        raise CohortError(f"{path}: not a readable CSV file ({reason}); save it as comma-separated UTF-8 with one header line") from None
    raw = raw.fillna("").map(str.strip)  # a short line lacks its last cells
    raw = raw.loc[:, (raw != "").any()]
    table = raw.iloc[1:].set_axis(raw.iloc[0].tolist(), axis=1)
    table.index += 1
    may_lack = table.columns.isin(REQUIRED) & ~table.columns.isin(["patient_id", "image"])
    table = table.mask(table.isin(UNKNOWN) & may_lack, "")
    return table[(table != "").any(axis=1)]


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a manifest as written, numbers as numbers, whatever they mean; stages, boxes and ages may be empty.

    Raises CohortError for a missing file or column, a column that is there twice, an empty patient_id or image, and a word in place of a number.
    """
    return _numbered(path).reset_index(drop=True)


def _numbered(path: Path) -> pd.DataFrame:
    """What `read_rows` returns, the index the row of a spreadsheet."""
    cells = read_cells(path)
    missing = [name for name in REQUIRED if name not in cells]
    if missing:
        raise CohortError(f"{path}: column {', '.join(missing)} missing; a manifest needs {', '.join(REQUIRED)}")
    if twice := list(cells.columns[cells.columns.duplicated()]):
        raise CohortError(f"{path}: column {twice[0] or 'without a name'} is there twice; keep one of them")
    if cells.empty:
        raise CohortError(f"{path}: the manifest has no row; add one row an image")
    for name in ("patient_id", "image"):
        empty = cells.index[cells[name] == ""]
        if len(empty):
            raise CohortError(f"{path}, row {empty[0]}: {name} is empty; fill it in or take the row out")
    clean = io.StringIO(cells.to_csv(index=False, quoting=csv.QUOTE_ALL))  # from which pandas tells numbers from words, by column
    table = pd.read_csv(clean, dtype=dict.fromkeys(TEXTS, str)).set_index(cells.index)
    for name in TEXTS:
        table[name] = cells[name].where(cells[name] != "")
    for name in ("stage", "age_y", *BOX):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table.index[~np.isfinite(numbers) & (cells[name] != "")]
        if len(wrong):
            raise CohortError(f"{path}, row {wrong[0]}: {name} = {cells.at[wrong[0], name]!r} is not a number")
        table[name] = numbers
    return table


def _splits(table: pd.DataFrame, path: Path, valid_share: float, test_share: float, seed: int) -> pd.Series:
    """The split of each row that has a target; as the manifest says where it says so, else made."""
    table = table[table["target"].notna()]
    filled = table["split"].notna()
    if not filled.any():
        return pd.Series(make_split(table["patient_id"], table["target"].astype(int), valid_share, test_share, seed), table.index)
    if not filled.all():
        raise CohortError(f"{path}: split is filled in for {filled.sum()} of {len(table)} rows; fill in all (train, valid, test) or none")
    unknown = set(table["split"]) - set(SPLITS)
    if unknown:
        raise CohortError(f"{path}: split '{sorted(unknown)[0]}' is unknown; use {', '.join(SPLITS)}")
    splits = table.groupby("patient_id")["split"].nunique()
    if (splits > 1).any():
        raise CohortError(f"{path}: patient {splits.index[splits > 1][0]} is in more than one split; keep all images of a patient together")
    return table["split"]


def make_split(patient_id: pd.Series, target: pd.Series, valid_share: float, test_share: float, seed: int) -> np.ndarray:
    """Assign each image to train, valid or test.

    By patient, so that two images of one patient stay together; stratified by the patient's most fused stage: within each stage, patients
    are shuffled with `seed` and shared out in proportion. Returns an array of split names in the order of `patient_id`.
    """
    stage_of = target.groupby(patient_id.to_numpy()).max().sort_index()
    rng = np.random.default_rng([seed, 0x5917])
    split_of = {}
    for stage in sorted(stage_of.unique()):
        patients = rng.permutation(stage_of.index[stage_of == stage].to_numpy())
        test = round(test_share * len(patients))
        valid = round(valid_share * len(patients))
        for i, patient in enumerate(patients):
            split_of[patient] = "test" if i < test else "valid" if i < test + valid else "train"
    return patient_id.map(split_of).to_numpy()
