"""Metrics of staging and of attention, each with a 95 % bootstrap interval over patients. Everything is computed from a predictions table.

Many resamples are handled at once: a resample is a vector of counts over patients, and each metric a function of such counts.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

ECE_BINS = 10
INFLATED = ("ece", "ece_scaled")  # metrics that chance makes larger, in each resample once more: see `interval`
AT_ONCE = 2**21  # counts, 16 MiB: so many resamples of a large cohort are drawn and measured together
KEPT = 2**23  # counts, 64 MiB: resamples of a cohort that has no more are kept for the next table


def staging_metrics(target: np.ndarray, probabilities: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each resample.

    target: (n,) stages counted from 0. probabilities: (n, k). counts: (r, n), how often each image is in each resample (ones: as it is).
    Returns name → (r,). Precision, recall and F1 are weighted by support, as the paper reports them; a stage never decided has precision 0.
    """
    n, k = probabilities.shape
    counts = counts.astype(np.float64, copy=False)
    decided = probabilities.argmax(1)
    pair = np.zeros((n, k * k))
    pair[np.arange(n), target * k + decided] = 1
    confusion = (counts @ pair).reshape(-1, k, k)  # (r, true, decided)
    total = confusion.sum((1, 2))
    support, named = confusion.sum(2), confusion.sum(1)
    hits = np.einsum("rii->ri", confusion)
    precision, recall = _ratio(hits, named), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + named)
    share = support / total[:, None]
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    chance = np.einsum("ri,rj->rij", support, named) / total[:, None, None]
    disagreement, expected = (confusion * distance**2).sum((1, 2)), (chance * distance**2).sum((1, 2))
    present = support > 0
    return {
        "accuracy": hits.sum(1) / total,
        "precision": (precision * share).sum(1),
        "recall": (recall * share).sum(1),
        "f1": (f1 * share).sum(1),
        "macro_f1": (f1 * present).sum(1) / present.sum(1),
        "kappa": 1 - _ratio(disagreement, expected),
        "stage_error": (confusion * distance).sum((1, 2)) / total,
        "within_one": (confusion * (distance <= 1)).sum((1, 2)) / total,
        "auroc": np.concatenate([_auroc(target, probabilities, part) for part in np.array_split(counts, 1 + counts.size // AT_ONCE)]),
        "ece": calibration_error(target, probabilities, counts),
    }


def calibration_error(target: np.ndarray, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r,) expected calibration error of the decided stage in each resample, ECE_BINS bins of equal width; shapes as for `staging_metrics`."""
    confidence, right = probabilities.max(1), (probabilities.argmax(1) == target).astype(float)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.eye(ECE_BINS)[bins]  # (n, bins)
    return np.abs(counts @ (member * (right - confidence)[:, None])).sum(1) / counts.sum(1)


def attention_metrics(table: pd.DataFrame, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Means of the columns pointing (peak inside the box), energy (share of the map inside) and iou over each resample, and of a detector
    `missed`, the share of images in which it found nothing; (r,) each."""
    total = counts.sum(1)
    values = {name: counts @ table[name].to_numpy(float) / total for name in ("pointing", "energy", "iou") if name in table}
    return values | ({"missed": 1 - counts @ table["found"].to_numpy(float) / total} if "found" in table else {})


def resamples(patients: pd.Series, n: int, seed: int = 0) -> np.ndarray:
    """(n, images) counts of n bootstrap resamples over patients: all images of a drawn patient are in, as often as it is drawn. Read only: all runs
    of a study are judged by the same, which are drawn once."""
    codes = pd.factorize(patients)[0].astype(np.int64)
    draw = _drawn if n * len(codes) <= KEPT else _drawn.__wrapped__
    return draw(codes.tobytes(), n, seed)


@lru_cache(maxsize=2)
def _drawn(codes: bytes, n: int, seed: int) -> np.ndarray:
    counts = np.concatenate(list(_blocks(np.frombuffer(codes, np.int64), n, seed)))
    counts.flags.writeable = False
    return counts


def measure(table: pd.DataFrame, bootstrap: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """All metrics of a predictions table: name → value, low, high (95 % interval over `bootstrap` resamples of patients)."""
    point, (spread,) = _all(table, np.ones((1, len(table)))), _resampled([table], bootstrap, seed)
    return {name: summarise(np.append(point[name], spread[name]), name) for name in point}


def difference(a: pd.DataFrame, b: pd.DataFrame, metric: str, bootstrap: int, seed: int = 0) -> dict[str, float]:
    """Paired bootstrap of metric(a) - metric(b) on the same held-out images: value, low, high, and p (two-sided)."""
    a, b = paired(a, b)
    return contrast([a, b], lambda x, y: x - y, metric, bootstrap, seed)


def gap_closed(student: pd.DataFrame, baseline: pd.DataFrame, teacher: pd.DataFrame, bootstrap: int, metric: str = "accuracy",
               seed: int = 0) -> dict[str, float]:
    """The headline: (student - baseline) / (teacher - baseline) on the same held-out images, with its paired bootstrap interval.

    value is nan where the teacher is not better than the baseline: there is no gap to close then.
    """
    student, baseline = paired(student, baseline)
    teacher, _ = paired(teacher, baseline)
    result = contrast([student, baseline, teacher], lambda s, b, t: np.where(t > b, (s - b) / np.where(t > b, t - b, 1), np.nan), metric,
                      bootstrap, seed)
    result.pop("p")
    return result


def contrast(tables: list[pd.DataFrame], function: Callable, metric: str, bootstrap: int, seed: int = 0) -> dict[str, float]:
    """A function of one metric of several paired tables: value, low, high, and p: twice the smaller share of resamples on one side of 0."""
    value = function(*(_all(table, np.ones((1, len(table))))[metric] for table in tables))[0]
    spread = function(*(values[metric] for values in _resampled(tables, bootstrap, seed)))
    below, above = (spread <= 0).mean(), (spread >= 0).mean()
    return {"value": float(value), **interval(spread), "p": float(min(1.0, 2 * min(below, above)))}


def paired(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in the same order of images. Raises ValueError where they are not about the same images."""
    if set(a["image"]) != set(b["image"]):
        raise ValueError("the two prediction tables are about different images; compare runs on the same held-out patients")
    return a.sort_values("image", ignore_index=True), b.sort_values("image", ignore_index=True)


def summarise(values: np.ndarray, metric: str = "") -> dict[str, float]:
    """value, low, high of an array whose first number is the value of `metric` and the others its resamples."""
    value = float(values[0])
    return {"value": value, **interval(values[1:], value if metric in INFLATED else None)}


def interval(values: np.ndarray, inflated: float | None = None) -> dict[str, float]:
    """Percentile interval of 95 %, resamples without a value left out.

    inflated: the value itself of a metric of INFLATED. A calibration error adds up sizes of differences, to which chance adds, and a resample has
    the chance of its images and its own: percentiles lie too high. The interval is then the basic one (resamples reflected at the value; Davison
    and Hinkley 1997), at least as wide as to hold the value, and not below 0.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return {"low": float("nan"), "high": float("nan")}
    low, high = map(float, np.percentile(values, [2.5, 97.5]))
    if inflated is not None:
        low, high = min(inflated, max(0.0, 2 * inflated - high)), max(inflated, 2 * inflated - low)
    return {"low": low, "high": high}


def probability_columns(table: pd.DataFrame) -> list[str]:
    """The columns p1, p2, … in order of the stages."""
    return sorted((c for c in table if c[0] == "p" and c[1:].isdigit()), key=lambda c: int(c[1:]))


def _all(table, counts):
    probabilities = table[probability_columns(table)].to_numpy(float)
    return {**staging_metrics(table["target"].to_numpy(int), probabilities, counts), **attention_metrics(table, counts)}


def _resampled(tables: list[pd.DataFrame], bootstrap: int, seed: int) -> list[dict[str, np.ndarray]]:
    """All metrics of each of several paired tables on the same resamples, of which there are never more than AT_ONCE counts in memory."""
    parts = zip(*([_all(table, counts) for table in tables] for counts in _blocks(tables[0]["patient_id"], bootstrap, seed)), strict=True)
    return [{name: np.concatenate([part[name] for part in of_table]) for name in of_table[0]} for of_table in parts]


def _blocks(patients: pd.Series | np.ndarray, n: int, seed: int) -> Iterator[np.ndarray]:
    """`resamples` in parts of at most AT_ONCE counts; one part at least."""
    codes, unique = pd.factorize(patients)
    rng = np.random.default_rng([seed, 0xB007])
    together = max(1, AT_ONCE // len(codes))
    for done in range(0, max(n, 1), together):
        yield rng.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=min(together, n - done))[:, codes]


def _ratio(a, b):
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def _auroc(target, probabilities, counts):
    """Mean over stages of one-against-rest AUROC, stages absent from a resample left out; nan where that leaves none. Ties count half.

    A share of pairs that are in order (Mann and Whitney), counted by sorting: below each image of the stage lie the others that come before it."""
    values = []
    for stage in range(probabilities.shape[1]):
        images, others = np.flatnonzero(target == stage), np.flatnonzero(target != stage)
        if not len(images) or not len(others):
            continue
        p, q = probabilities[images, stage], probabilities[others, stage]
        order = np.argsort(q)
        below = np.zeros((len(counts), len(q) + 1))
        np.cumsum(counts[:, others[order]], 1, out=below[:, 1:])
        first, last = (np.searchsorted(q, p, side, sorter=order) for side in ("left", "right"))
        a = counts[:, images]
        wins = np.einsum("rp,rp->r", a, below[:, first] + below[:, last]) / 2
        pairs = a.sum(1) * below[:, -1]
        values.append(np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan))
    if not values:
        return np.full(len(counts), np.nan)
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    return np.divide(np.where(there, stacked, 0).sum(0), there.sum(0), out=np.full(len(counts), np.nan), where=there.any(0))
