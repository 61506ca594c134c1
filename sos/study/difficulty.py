"""The trained networks on easier and harder patients: fresh virtual people, the same at each difficulty, on whom nothing was trained.

Images lie in `runs/<profile>/difficulty-<d>/`, drawn once, and beside them the predictions of each run. A file's name holds all that it
depends on, so that what another version of the phantom drew is never read. Only for networks that learned from the profile's own virtual
cohort: how hard the patients of a manifest are is not known.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort.manifest import Cohort, read_manifest
from ..cohort.views import PixelStore, open_store
from ..config import digest
from ..errors import OutOfTime
from ..phantom.write import holds, recipe, write_cohort
from ..stages import get_scheme
from .results import Results
from .runs import Run
from .training import Study, evaluate

SEED_STEP = 1000  # from the seed of the profile's cohort to that of the fresh people


def applies(study: Study) -> bool:
    """Whether the study's networks were trained on its own virtual cohort, of difficulty 1, and the profile asks for others."""
    return study.manifest is None and bool(study.profile.difficulties)


def stage_all(results: Results) -> None:
    """Predictions of every finished main run at each of the profile's difficulties; what is on disk is not done again.

    Raises OutOfTime after a difficulty where the deadline of `--stop-after` has passed; the next call goes on from there.
    """
    study = results.study
    runs = [run for group in results.roles().values() for run in group.values()]
    for difficulty in study.profile.difficulties if applies(study) else ():
        missing = [run for run in runs if not _path(study, run, difficulty).is_file()]
        if not missing:
            continue
        cohort, store = draw(study, difficulty)
        for run in missing:
            net = run.load(study.device)
            net.bf16 = run.environment["precision"] == "bf16"  # as when its saved metrics were measured
            table = evaluate(net, store, cohort, np.arange(len(cohort.table)), run.config, study.device)
            path = _path(study, run, difficulty)
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}")
            table.to_csv(part, index=False, float_format="%.6g")
            os.replace(part, path)
        if time.time() > float(os.environ.get("SOS_DEADLINE", "inf")):
            raise OutOfTime(f"stopped in time after patients of difficulty {difficulty:g}, whose predictions are saved; the next call goes on")


def draw(study: Study, difficulty: float) -> tuple[Cohort, PixelStore]:
    """The fresh people at a difficulty, drawn where they are not on disk: their cohort, whole as the split `test`, and its pixels."""
    folder = _folder(study, difficulty)
    write_cohort(folder, study.profile.difficulty_patients, _seed(study), difficulty=difficulty)
    cohort = _read(study, difficulty)
    return cohort, open_store(cohort, folder / "cache", study.profile.native_px)


def drawn(study: Study, difficulty: float) -> Cohort | None:
    """The fresh people at a difficulty where they are on disk, without drawing or decoding anything."""
    return _read(study, difficulty) if holds(_folder(study, difficulty), _recipe(study, difficulty)) else None


def predictions(study: Study, run: Run, difficulty: float) -> pd.DataFrame | None:
    """A run's predictions at a difficulty, from disk; None where it has not been tested there."""
    path = _path(study, run, difficulty)
    return pd.read_csv(path, dtype={"patient_id": str, "image": str}) if path.is_file() else None


def _folder(study: Study, difficulty: float) -> Path:
    return study.folder / f"difficulty-{difficulty:g}"


def _seed(study: Study) -> int:
    return study.profile.cohort_seed + SEED_STEP


def _recipe(study: Study, difficulty: float) -> dict:
    return recipe(study.profile.difficulty_patients, _seed(study), difficulty)


def _read(study: Study, difficulty: float) -> Cohort:
    return read_manifest(_folder(study, difficulty) / "manifest.csv", get_scheme(study.profile.scheme), valid_share=0, test_share=1)


def _path(study: Study, run: Run, difficulty: float) -> Path:
    images = digest([_recipe(study, difficulty), study.profile.native_px])[:8]
    return _folder(study, difficulty) / "predictions" / f"{run.name}-{images}.csv"
