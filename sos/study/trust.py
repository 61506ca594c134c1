"""May one trust a single answer? Probabilities that say how often they are right (temperature scaling), which images to refer to a person
(rejection), and whether the expected stage follows age. All is computed from predictions tables; what is fitted, on the validation split.

An array of shape (1 + bootstrap,) holds a value on the held-out images, then its value in each resample of the patients. Temperature and
thresholds are fixed before: an interval tells the chance of the test split, not that of the validation split.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from .metrics import calibration_error, interval, probability_columns, resamples

FEWEST = 40  # validation images below which T is not fitted but 1: so few say nothing sure about it
BOUNDS = (0.1, 10.0)  # of T; reached where the validation split is staged without an error, or no better than by chance
TARGETS = (0.9, 0.8)  # accuracies asked of the answers that no person looks at; each gives a threshold
LEAST_KEPT = 20  # validation images that a threshold must keep: a smaller number reaches any target by luck
BINS, BIN_IMAGES = 10, 15  # of a reliability diagram: at most so many bins, with at least so many images in each
TINY = 1e-30  # stands for a probability of 0, which has no logarithm


def answers(table: pd.DataFrame, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """probabilities (n, k) at a temperature, target (n,), and whether the decided stage is right (n,), of a predictions table."""
    p, target = scaled(table[probability_columns(table)].to_numpy(float), temperature), table["target"].to_numpy(int)
    return p, target, p.argmax(1) == target


def calibrated(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """A predictions table with its probabilities at a temperature."""
    columns = probability_columns(table)
    return table.assign(**dict(zip(columns, scaled(table[columns].to_numpy(float), temperature).T, strict=True)))


# --- calibration -------------------------------------------------------------------------------------------------------------
def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T) of probabilities (n, k), whose logarithms are logits up to a constant. The order of stages, and so the decision, is
    the same at any T; above 1 probabilities come closer to each other."""
    return softmax(np.log(np.maximum(probabilities, TINY)) / temperature, axis=1)


def log_loss(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n,) negative log-likelihood: -log of the probability (n, k) that was given to the target (n,)."""
    return -np.log(np.maximum(probabilities[np.arange(len(target)), target], TINY))


def brier_score(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n,) squared distance of the probabilities (n, k) from those of one who knows the target (n,); from 0 to 2 (Brier 1950)."""
    return ((probabilities - np.eye(probabilities.shape[1])[target]) ** 2).sum(1)


def fit_temperature(valid: pd.DataFrame, fewest: int = FEWEST) -> float:
    """The one number T within BOUNDS that makes the targets of a predictions table most likely under softmax(logits / T) (Guo et al. 2017).

    Networks that are too sure have T above 1. With fewer than `fewest` images T is 1: probabilities stay as they are.
    """
    if len(valid) < fewest:
        return 1.0
    found = minimize_scalar(lambda log_t: log_loss(*answers(valid, np.exp(log_t))[:2]).mean(), bounds=np.log(BOUNDS), method="bounded")
    return float(np.exp(found.x))


def reliability(table: pd.DataFrame, bootstrap: int) -> pd.DataFrame:
    """A reliability diagram's points, one row a bin of equally many images, from the least to the most confident: n, the mean confidence
    (largest probability) and the accuracy with its 95 % interval over patients (low, high)."""
    p, _, right = answers(table)
    confidence = p.max(1)
    bins = np.array_split(np.argsort(confidence, kind="stable"), max(1, min(BINS, len(table) // BIN_IMAGES)))
    counts = resamples(table["patient_id"], bootstrap)
    return pd.DataFrame([{"n": len(rows), "confidence": confidence[rows].mean(), "accuracy": right[rows].mean(),
                          **interval(_ratio(counts[:, rows] @ right[rows], counts[:, rows].sum(1)))} for rows in bins])


# --- rejection ---------------------------------------------------------------------------------------------------------------
def sureness(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """How sure probabilities (n, k) are, in three ways, larger is surer; (n,) each: the largest of them, their entropy, and the distance of the
    expected stage from a whole number, the two last with a minus."""
    stage = probabilities @ np.arange(probabilities.shape[1])
    entropy = -(probabilities * np.log(np.maximum(probabilities, TINY))).sum(1)
    return {"confidence": probabilities.max(1), "entropy": -entropy, "whole": -np.abs(stage - stage.round())}


def choose_threshold(score: np.ndarray, right: np.ndarray, target: float) -> float:
    """The lowest score (n,) such that of the images with it or a higher one, at least LEAST_KEPT, the share `target` is right (n,).

    Infinity, which refers every image to a person, where there is no such score.
    """
    order = np.argsort(-score, kind="stable")
    score, kept = score[order], np.arange(1, len(score) + 1)
    last_of_equals = np.append(np.diff(score) != 0, True)
    good = np.flatnonzero(last_of_equals & (kept >= LEAST_KEPT) & (right[order].cumsum() / kept >= target))
    return float(score[good[-1]]) if len(good) else np.inf


def risk_coverage(score: np.ndarray, right: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong answers among the surest, for each number of answers kept, and the mean of that over all numbers: AURC (Geifman & El-Yaniv
    2017), 0 at best.

    score: (n,), larger is surer; equal ones are in random order. right: (n,). counts: (r, n), how often each image is in each resample.
    Returns the risks (r, n) in order of falling score, and AURC (r,).
    """
    order = np.argsort(-score, kind="stable")
    score, counts = score[order], counts[:, order].astype(float)
    starts = np.flatnonzero(np.append(True, np.diff(score) != 0))
    of_equals = _ratio(*(np.add.reduceat(values, starts, axis=1) for values in (counts * ~right[order], counts)))
    wrong = counts * np.repeat(np.nan_to_num(of_equals), np.diff(np.append(starts, len(score))), axis=1)
    risk = wrong.cumsum(1) / np.maximum(counts.cumsum(1), 1)
    return risk, (risk * counts).sum(1) / counts.sum(1)


def surest_first(table: pd.DataFrame, temperature: float, order: str = "confidence") -> np.ndarray:
    """(n,) share of wrong answers among the 1, 2, … n first of a predictions table. order: a way of `sureness`, or for comparison `ideal` (all
    right answers first) or `random`."""
    p, _, right = answers(table, temperature)
    score = {"ideal": right.astype(float), "random": np.zeros(len(right))} | sureness(p)
    return risk_coverage(score[order], right, np.ones((1, len(right))))[0][0]


# --- the stage and age -------------------------------------------------------------------------------------------------------
def spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r,) Spearman's correlation of x (n,) and y (n,) in each resample of counts (r, n); nan where one of them does not vary."""
    counts = counts.astype(float)
    total = counts.sum(1, keepdims=True)

    def centred_ranks(values):
        _, which = np.unique(values, return_inverse=True)
        of_value = counts @ np.eye(which.max() + 1)[which]  # (r, different values)
        return (of_value.cumsum(1) - of_value / 2)[:, which] - total / 2

    a, b = centred_ranks(x), centred_ranks(y)
    return _ratio((counts * a * b).sum(1), np.sqrt((counts * a**2).sum(1) * (counts * b**2).sum(1)))


def expected_stage(table: pd.DataFrame, labels: tuple[int, ...], temperature: float = 1.0) -> np.ndarray:
    """(n,) mean label under the probabilities of a predictions table; rounded, so that equal answers stay a tie however a processor sums."""
    return (answers(table, temperature)[0] @ np.array(labels, float)).round(9)


# --- all of it for one network -----------------------------------------------------------------------------------------------
def sample(valid: pd.DataFrame, test: pd.DataFrame, labels: tuple[int, ...], ages: pd.DataFrame | None, bootstrap: int,
           seed: int = 0) -> dict[str, np.ndarray]:
    """name → (1 + bootstrap,) of a network's predictions tables, temperature and thresholds from `valid`, all else on `test`.

    ages: age_y and sex by image, None where unknown. Names: temperature; ece, nll, brier and the same with `_scaled`; for each of
    TARGETS, in per cent, threshold_90, coverage_90 and kept_90 (share and accuracy of the images whose confidence reaches the threshold) and
    referred_90 (accuracy of the others); aurc_<score> for each way of `sureness`, aurc_ideal (all right answers first), aurc_random; age_F and
    age_M, Spearman's correlation of the expected stage with age, and label_F and label_M, that of the label.
    """
    test = test.sort_values("image", ignore_index=True)
    counts = np.concatenate([np.ones((1, len(test))), resamples(test["patient_id"], bootstrap, seed)])
    total, temperature = counts.sum(1), fit_temperature(valid)
    values = {"temperature": np.full(len(counts), temperature)}
    for end, at in (("", 1.0), ("_scaled", temperature)):
        p, target, _ = answers(test, at)
        values[f"ece{end}"] = calibration_error(target, p, counts)
        values[f"nll{end}"], values[f"brier{end}"] = (counts @ score(p, target) / total for score in (log_loss, brier_score))
    p, _, right = answers(test, temperature)
    p_valid, _, right_valid = answers(valid, temperature)
    for aim in TARGETS:
        threshold = choose_threshold(p_valid.max(1), right_valid, aim)
        kept, end = p.max(1) >= threshold, f"_{100 * aim:.0f}"
        values[f"threshold{end}"], values[f"coverage{end}"] = np.full(len(counts), threshold), counts @ kept / total
        values[f"kept{end}"], values[f"referred{end}"] = (_ratio(counts @ (who & right), counts @ who) for who in (kept, ~kept))
    values |= {f"aurc_{name}": risk_coverage(score, right, counts)[1] for name, score in sureness(p).items()}
    values["aurc_ideal"], values["aurc_random"] = risk_coverage(right.astype(float), right, counts)[1], counts @ ~right / total
    stage = expected_stage(test, labels, temperature)
    for sex in ("F", "M") if ages is not None else ():
        who = ages.loc[test["image"]].reset_index(drop=True)
        rows = np.flatnonzero(who["age_y"].notna() & (who["sex"] == sex))
        for name, x in (("age", stage), ("label", test["stage"].to_numpy())):
            values[f"{name}_{sex}"] = spearman(x[rows], who["age_y"].to_numpy()[rows], counts[:, rows]) if len(rows) else np.full(len(counts), np.nan)
    return values


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, nan where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
