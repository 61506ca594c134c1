"""Which images to look at again first: those whose label or box a network that never saw them does not believe.

Each image is staged, in the window of its own box, by a crop teacher that was trained without its patient (k-fold cross-validation), and a
full-image student says how much of its attention lies in the box. Three signs come of it:

- disagreement: how far the mean stage under the out-of-fold probabilities lies from the label, in stages;
- loss: the cross-entropy of the label, −log p, as in confident learning (Northcutt, Jiang & Chuang 2021);
- attention: 1 − the share of the student's Grad-CAM that lies in the box.

Each sign becomes q, the share of images with one as strong or stronger, and −ln q its weight, as in Fisher's way of combining. The first two say
much the same, so their mean counts once, and the third is added to it: a fault of the box alone is then not hidden by a healthy stage. Attention
that lies in the box for the most part is no sign at all, and its weight is 0.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ..cohort.manifest import Cohort
from ..cohort.views import open_store
from ..config import RunConfig
from ..errors import CohortError
from ..method.models import StagingNet
from ..stages import get_scheme
from .attention import look_with
from .metrics import probability_columns
from .runs import RELEASED, config_of, find_runs, load_network
from .training import Study, frame_boxes, localise

FOLDS = 4
COLUMNS = ("patient_id", "image", "stage", "predicted", "probability", "loss", "attention", "score", "reasons")
VALID_EVERY = 4  # of the patients left out of a training one in so many is called its validation split, the others its test split
STRONG = 0.10  # a sign is a reason where it is among this share of the strongest, and
FAR = 1.0  # stages of disagreement, or
MOST = 0.5  # share of the attention in the box, do not speak against it
STEPS = 600  # of the optimiser that a teacher takes at least, however small the cohort; fewer, and it knows too little to doubt a label


def suspects(study: Study, folds: int = FOLDS, progress: Callable[[int, int], None] | None = None, steps: int = STEPS) -> pd.DataFrame:
    """All images of a study's cohort, the most suspicious first.

    Trains a crop teacher of the profile for each of `folds`, longer where its epochs would hold fewer than `steps` batches, or finds it on disk, in
    the study's folder `suspects`. `progress(done, folds)` is called after each. Columns: patient_id, image, stage, predicted (the label decided out
    of fold), probability (of the own stage), loss, attention (share of the student's Grad-CAM in the box), score, reasons (in words, separated by
    '; '). Raises CohortError for a cohort too small to fold.
    """
    parts = enumerate(folded(study.cohort, folds), 1)
    table = pd.concat([out_of_fold(study, cohort, steps, partial(progress or _quiet, k, folds)) for k, cohort in parts])
    table = table.set_index("row").sort_index()
    return judged(table.assign(attention=attention_in_box(study))).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def folded(cohort: Cohort, folds: int) -> list[Cohort]:
    """The cohort once for each fold, its patients in `valid` and `test`, all others in `train`.

    Patients are dealt out in turns, sorted by their most fused stage and, within it, by chance with a fixed seed; all images of one stay
    together. Nothing is chosen by the validation split, so both held-out splits are as good as unseen.
    """
    stage_of = cohort.table.groupby("patient_id")["target"].max().sample(frac=1, random_state=0).sort_values(kind="stable")
    if folds < 2 or len(stage_of) < 2 * folds:
        raise CohortError(f"{cohort.path}: {len(stage_of)} patients cannot be folded {folds} times; it takes 2 folds and 2 patients in each")
    number = pd.Series(np.arange(len(stage_of)), stage_of.index)
    turn = cohort.table["patient_id"].map(number)
    held_out = np.where(turn // folds % VALID_EVERY == 0, "valid", "test")
    return [replace(cohort, table=cohort.table.assign(split=np.where(turn % folds == k, held_out, "train"))) for k in range(folds)]


def out_of_fold(study: Study, cohort: Cohort, steps: int, done: Callable[[], None]) -> pd.DataFrame:
    """Predictions for the held-out images of a fold, with their `row` in the cohort."""
    fold = Study(study.profile, study.manifest or "", study.device)
    fold.folder = study.folder / "suspects"  # its runs are none of the study's results
    fold.cohort, fold.store = cohort, open_store(cohort, study.folder / "cache", study.profile.native_px)
    config = study.profile.run("teacher")
    batches = max(1, (cohort.table["split"] == "train").sum() // config.batch_size)
    predictions = fold.obtain(config.with_(epochs=max(config.epochs, math.ceil(steps / batches))), keep_weights=False).predictions
    done()
    return predictions.assign(row=cohort.table.index[cohort.table["split"] != "train"])


def _quiet(done: int, folds: int) -> None:
    pass


def attention_in_box(study: Study) -> np.ndarray:
    """(n,) share of a student's Grad-CAM of the decided stage that lies in the expert's box, for each image of the cohort."""
    net, config = student_of(study)
    rows = study.cohort.table.index.to_numpy()
    return localise(look_with(study, net, config, rows)[1], frame_boxes(study.store, rows))["energy"]


def student_of(study: Study) -> tuple[StagingNet, RunConfig]:
    """The student that the study has trained on this very cohort, else the one that ships with the package: the profile's that looks twice, else the
    profile's that looks once, else the newest."""
    own = [run for run in find_runs(study.folder / "models", "student") if run.record["data"] == study.store.digest and run.weights.is_file()]
    first = [study.profile.run(model, seed).resolved() for model in ("zoom", "student") for seed in study.profile.seeds]
    if own:
        best = min(reversed(own), key=lambda run: [*first, run.config.resolved()].index(run.config.resolved()))
        return best.load(study.device), best.config
    record = json.loads((RELEASED / "student.json").read_text())
    config = config_of(record, RELEASED)
    return load_network(RELEASED / "student.safetensors", config, len(get_scheme(record["scheme"])), study.device), config


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Score and reasons from a table with stage, target, decided, p1, p2, … and attention, one row an image."""
    probabilities = table[probability_columns(table)].to_numpy(float)  # (n, k)
    target = table["target"].to_numpy(int)
    own = probabilities[np.arange(len(table)), target]
    distance = np.abs(probabilities @ np.arange(probabilities.shape[1]) - target)
    loss, attention = -np.log(own.clip(1e-6)), table["attention"].to_numpy(float)
    rare = np.stack([share_as_strong(sign) for sign in (distance, loss, -attention.clip(max=MOST))])  # (3, n)
    weight = -np.log(rare)
    decided, stage = table["decided"].to_numpy(), table["stage"].to_numpy()
    signs = [((rare[0] <= STRONG) & (distance >= FAR), lambda i: f"read as stage {decided[i]}, labelled {stage[i]}"),
             ((rare[1] <= STRONG) & (decided != stage), lambda i: f"its own stage has a probability of {own[i]:.2f}"),
             ((rare[2] <= STRONG) & (attention < MOST), lambda i: f"{100 * attention[i]:.0f} % of the attention in the box")]
    words = [[say(i) for strong, say in signs if strong[i]] for i in range(len(table))]
    return table.assign(predicted=table["decided"], probability=own, loss=loss, score=weight[:2].mean(0) + weight[2],
                        reasons=["; ".join(reasons) for reasons in words])[list(COLUMNS)]


def share_as_strong(sign: np.ndarray) -> np.ndarray:
    """(n,) the share of values as large as each, or larger: 1/n for the largest, 1 for all that share the smallest."""
    return rankdata(-sign, method="max") / len(sign)
