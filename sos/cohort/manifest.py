"""The manifest: one CSV that says who is in a cohort, where the images lie, what an expert drew and read, and who is held out."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CohortError
from ..files import ALLOW_OUTSIDE, leads_out
from ..stages import BASSED5, StagingScheme

REQUIRED = ("patient_id", "image", "stage", "age_y", "sex", "x0", "y0", "x1", "y1", "split")
BOX = ["x0", "y0", "x1", "y1"]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Cohort:
    """A checked manifest.

    `table` has one row an image with the columns of the manifest, `split` filled, and `target`: the stage counted from 0.
    `root` is the folder that `image` and `mask` are relative to.
    """

    table: pd.DataFrame
    root: Path
    scheme: StagingScheme
    path: Path

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
        """SHA-256 of the manifest and of each image's name and size."""
        state = hashlib.sha256(self.path.read_bytes())
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
    """Read and check a manifest.

    An empty `split` column is filled by patient, stratified by stage, with `seed`; a filled one is kept. Raises CohortError for a missing
    file or column, an image that is not there, a box without extent, a stage outside the scheme, a patient in two splits; and, unless the
    environment variable SOS_ALLOW_OUTSIDE is 1, for an image that leads out of the manifest's folder by `..`, as an absolute path or by a link.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype={"patient_id": str, "image": str, "sex": str, "split": str})
    except FileNotFoundError:
        raise CohortError(f"{path}: no such manifest; give the path of a cohort's CSV file") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CohortError(f"{path}: not a readable CSV manifest ({str(error).splitlines()[0]})") from None
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise CohortError(f"{path}: column {', '.join(missing)} missing; a manifest needs {', '.join(REQUIRED)}")
    if table.empty:
        raise CohortError(f"{path}: the manifest has no row; add one row an image")
    table = table.reset_index(drop=True)
    for name in ("patient_id", "image", "stage"):
        empty = table.index[table[name].isna()]
        if len(empty):
            raise CohortError(f"{path}, row {empty[0] + 2}: {name} is empty; fill it in or take the row out")
    for name in ("stage", "age_y", *BOX):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table.index[numbers.isna() & table[name].notna()]
        if len(wrong):
            raise CohortError(f"{path}, row {wrong[0] + 2}: {name} = {table[name][wrong[0]]!r} is not a number")
        table[name] = numbers
    outside = table.index[~table["stage"].isin(scheme.labels)]
    if len(outside):
        known = ", ".join(map(str, scheme.labels))
        raise CohortError(f"{path}, row {outside[0] + 2}: stage {table['stage'][outside[0]]:g} is not in the scheme '{scheme.name}' ({known})")
    table["stage"] = table["stage"].astype(int)
    table["target"] = table["stage"].map(scheme.index)
    bad_box = table.index[~((table["x1"] > table["x0"]) & (table["y1"] > table["y0"]))]
    if len(bad_box):
        raise CohortError(f"{path}, row {bad_box[0] + 2}: the box has no extent; x1 must exceed x0 and y1 exceed y0, in pixels of the image")
    for row, name in enumerate(table["image"]):
        if leads_out(path.parent / name, path.parent):
            raise CohortError(f"{path}, row {row + 2}: image {name} leads out of the manifest's folder; move it there, or set the environment "
                              f"variable {ALLOW_OUTSIDE}=1 where you trust this manifest")
        if not (path.parent / name).exists():
            raise CohortError(f"{path}, row {row + 2}: image {name} is not there; paths are relative to the manifest")
    return Cohort(_with_split(table, path, valid_share, test_share, seed), path.parent, scheme, path)


def _with_split(table: pd.DataFrame, path: Path, valid_share: float, test_share: float, seed: int) -> pd.DataFrame:
    filled = table["split"].notna() & (table["split"].fillna("").str.strip() != "")
    if not filled.any():
        return table.assign(split=make_split(table["patient_id"], table["target"], valid_share, test_share, seed))
    if not filled.all():
        raise CohortError(f"{path}: split is filled in for {filled.sum()} of {len(table)} rows; fill in all (train, valid, test) or none")
    unknown = set(table["split"]) - set(SPLITS)
    if unknown:
        raise CohortError(f"{path}: split '{sorted(unknown)[0]}' is unknown; use {', '.join(SPLITS)}")
    splits = table.groupby("patient_id")["split"].nunique()
    if (splits > 1).any():
        raise CohortError(f"{path}: patient {splits.index[splits > 1][0]} is in more than one split; keep all images of a patient together")
    return table


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
