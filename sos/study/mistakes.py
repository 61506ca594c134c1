"""Mistakes made on purpose, and what each costs: a leak, an accuracy without its frequencies, a test on augmented images, a map of another stage."""

import numpy as np
import pandas as pd
import torch

from ..cohort.views import Views
from .attention import image_rows, look
from .metrics import interval, probability_columns, resamples, staging_metrics
from .runs import Run
from .training import Study, frame_boxes, localise

SHOWN = {"accuracy": "accuracy, %", "macro_f1": "macro F1, %", "kappa": "quadratic weighted kappa"}
DRAWS = 5  # of augmented copies of each held-out image


def leak(study: Study) -> pd.DataFrame:
    """Accuracy of the crop teacher on the held-out images when the training was clean and when these very images were among it too.

    The second network is a run of its own, found or trained as any other. Validation patients are unknown to both, so there it shows what it
    can do.
    """
    clean = study.profile.run("teacher")
    answers = {"clean training": clean, "test images among the training": clean.with_(leak=True)}
    rows = {}
    for name, config in answers.items():
        run = study.obtain(config, keep_weights=False)
        rows[name] = {f"{title} images, accuracy, %": _accuracy(study, run.split(split)) for title, split in (("held-out", "test"), ("validation", "valid"))}
    return pd.DataFrame(rows).T


def _accuracy(study: Study, table: pd.DataFrame) -> str:
    right = (table["decided"] == table["stage"]).to_numpy(float)
    counts = resamples(table["patient_id"], study.profile.bootstrap)
    low, high = interval(counts @ right / counts.sum(1)).values()
    return f"{100 * right.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def imbalance(study: Study, run: Run, share: float = 0.8) -> pd.DataFrame:
    """Metrics of a network on the held-out images, and on a clinic's in which the last stage that is among them makes up `share` of all, by
    weighting the same answers; beside it those of somebody who always names that stage. Held-out images of one stage alone have no such clinic."""
    test = run.test
    target, probabilities = test["target"].to_numpy(int), test[probability_columns(test)].to_numpy(float)
    last = target == target.max()
    always = np.eye(probabilities.shape[1])[np.full(len(target), target.max())]
    mixtures, rows = {"as held out": np.ones(len(test))}, {}
    if not last.all():
        mixtures[f"{share:.0%} of the last stage"] = np.where(last, share / last.mean(), (1 - share) / (1 - last.mean()))
    for name, weights in mixtures.items():
        for who, answer in (("network", probabilities), ("always the last stage", always)):
            values = staging_metrics(target, answer, weights[None])
            rows[f"{name}: {who}"] = {title: f"{(100 if title.endswith('%') else 1) * values[key][0]:.{1 if title.endswith('%') else 2}f}"
                                      for key, title in SHOWN.items()}
    return pd.DataFrame(rows).T


def augmented(study: Study, run: Run) -> pd.DataFrame:
    """Accuracy, %, of a network on the held-out images as they are, and on DRAWS random transforms of each as in its training."""
    rows = study.cohort.subset("test").index.to_numpy()
    target = torch.from_numpy(study.store.targets[rows])
    net = run.load(study.device)
    net.bf16 = run.environment["precision"] == "bf16"
    views = Views(study.store, run.config, training=True, device=study.device)
    views.generator.manual_seed(run.config.seed)
    draws = [np.mean(_right(net, views, rows, target)) for _ in range(DRAWS)]
    still = (run.test["decided"] == run.test["stage"]).mean()
    found = {"as they are": still, "augmented, mean": np.mean(draws), "augmented, lowest draw": min(draws), "augmented, highest draw": max(draws)}
    return (100 * pd.Series(found, name="accuracy, %")).round(1).to_frame()


@torch.no_grad()
def _right(net, views: Views, rows: np.ndarray, target: torch.Tensor) -> np.ndarray:
    """Whether a full-image network or a teacher is right on one transform of each image in `rows`."""
    decided = [net.look(views(part)[0]).logits.argmax(1).cpu() for part in np.array_split(rows, -(-len(rows) // 64))]
    return (torch.cat(decided) == target).numpy()


def other_stages(study: Study, run: Run) -> pd.DataFrame:
    """Where Grad-CAM of a full-image network points on the same held-out images if another stage than the decided one is explained."""
    test, k = run.test, len(study.cohort.scheme)
    rows = image_rows(study.cohort, test["image"])
    order = np.argsort(-test[probability_columns(test)].to_numpy(float), 1)
    decided = order[:, 0]
    asked = {"decided stage": decided, "second likeliest": order[:, 1], "farthest stage": np.where(decided < k / 2, k - 1, 0),
             "readers' stage": test["target"].to_numpy(int)}
    boxes, found = frame_boxes(study.store, rows), {}
    maps = {name: look(study, run, rows, torch.tensor(np.array(stage)))[1] for name, stage in asked.items()}
    for name, cams in maps.items():
        alike = torch.cosine_similarity(cams.flatten(1), maps["decided stage"].flatten(1)).mean().item()
        where = localise(cams, boxes)
        found[name] = {"peak in the box, %": 100 * where["pointing"].mean(), "share of the map in the box, %": 100 * where["energy"].mean(),
                       "empty maps, %": 100 * (cams.amax((1, 2)) <= 0).float().mean().item(), "cosine with the decided stage's": alike}
    return pd.DataFrame(found).T.round(2)
