"""How far readers agree: with each other and with the manifest, from the stages and readings in `reviews.csv`."""

from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from ..cohort.reviews import about, matched
from ..errors import CohortError
from ..stages import StagingScheme
from .metrics import interval, resamples

MANIFEST = "manifest"  # what its own stages are called among the readers
COLUMNS = ("one", "other", "images", "agreement", "kappa", "low", "high")


def readings(table: pd.DataFrame, reviews: pd.DataFrame, scheme: StagingScheme) -> pd.DataFrame:
    """The last stage that each reader gave, one row an image (index as in `table`), one column a reader, NaN where they gave none.

    table: a manifest's rows as written. A review 'stage' or 'reading' is a reading; readings win over stages of the same reader, which may have
    been given after a look at the label. The manifest's own stages are the column `manifest`. Raises CohortError for a reader of that name, and
    for a stage that counts and is not in the scheme.
    """
    known = ", ".join(map(str, scheme.labels))
    for row, stage in table["stage"].dropna().items():
        if stage not in scheme.labels:
            raise CohortError(f"the manifest's stage {stage:g} of {table.at[row, 'image']} is not in the scheme '{scheme.name}' ({known}); "
                              "correct it, or choose another scheme")
    if (reviews["who"] == MANIFEST).any():
        raise CohortError(f"a reader is called '{MANIFEST}', as the stages of the manifest are; give the reader another name in reviews.csv")
    spoken = matched(reviews[reviews["field"].isin(["stage", "reading"])], table)
    found = {}
    for who, own in spoken.groupby("who", sort=True):
        blind = own[own["field"] == "reading"]
        column = pd.Series(np.nan, table.index)
        for row, patient, image in table[["patient_id", "image"]].itertuples():
            said = about(blind, patient, image)
            said = said if len(said) else about(own, patient, image)
            if len(said):
                column[row] = stage = int(said["value"].iloc[-1])
                if stage not in scheme.labels:
                    raise CohortError(f"{reviews.attrs.get('path', 'reviews')}, line {said.index[-1]}: {who}'s stage {stage} is not in the scheme "
                                      f"'{scheme.name}' ({known}); correct it with another review, or choose another scheme")
        found[who] = column
    return pd.DataFrame(found | {MANIFEST: table["stage"]}, index=table.index)


def agreement(table: pd.DataFrame, reviews: pd.DataFrame, scheme: StagingScheme, bootstrap: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Agreement of each pair of readers, and of each with the manifest, on the images that both have read.

    Columns: one, other, images, agreement (share of the same stage), kappa (Cohen's, quadratic weights), low, high (its 95 % bootstrap interval over
    patients). NaN where a pair shares no image, or where kappa is not defined, both having given one and the same stage throughout.
    """
    read = readings(table, reviews, scheme)
    rows = []
    for one, other in combinations(read, 2):
        both = read[[one, other]].dropna().astype(int)
        a, b = both.to_numpy().T
        counts = resamples(table.loc[both.index, "patient_id"], bootstrap, seed) if len(both) else np.empty((0, 0))
        kappa = _kappa(a, b, scheme) if len(both) else np.nan
        spread = interval(weighted_kappas(a, b, counts, scheme)) if len(both) else {"low": np.nan, "high": np.nan}
        rows.append([one, other, len(both), (a == b).mean() if len(both) else np.nan, kappa, spread["low"], spread["high"]])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _kappa(a: np.ndarray, b: np.ndarray, scheme: StagingScheme) -> float:
    if len(set(a) | set(b)) < 2:
        return float("nan")  # no disagreement could be by chance
    return float(cohen_kappa_score(a, b, labels=list(scheme.labels), weights="quadratic"))


def weighted_kappas(a: np.ndarray, b: np.ndarray, counts: np.ndarray, scheme: StagingScheme) -> np.ndarray:
    """(r,) quadratic weighted kappa of the labels a and b (n,) in each resample; counts: (r, n), how often each image is in it. NaN: undefined."""
    i, j = (np.searchsorted(scheme.labels, labels).astype(float) for labels in (a, b))
    n = counts.sum(1)
    mean_i, mean_j = counts @ i / n, counts @ j / n
    expected = counts @ i**2 / n + counts @ j**2 / n - 2 * mean_i * mean_j  # of (i - j)², were the readers independent
    observed = counts @ (i - j) ** 2 / n
    return np.where(expected > 1e-12, 1 - observed / np.where(expected > 1e-12, expected, 1), np.nan)


def fleiss_kappa(table: pd.DataFrame, reviews: pd.DataFrame, scheme: StagingScheme) -> dict[str, float]:
    """Fleiss' kappa (1971) of all readers, the manifest not among them, on the images that every one of them has read.

    Returns readers, images and kappa, which is NaN with fewer than three readers, without such an image, or where only one stage was given.
    """
    read = readings(table, reviews, scheme).drop(columns=MANIFEST)
    whole = read.dropna()
    result = {"readers": read.shape[1], "images": len(whole), "kappa": float("nan")}
    if read.shape[1] >= 3 and len(whole):
        votes = np.stack([(whole == label).sum(1) for label in scheme.labels], 1)  # (n, k)
        m = read.shape[1]
        seen = ((votes**2).sum(1) - m).mean() / (m * (m - 1))
        chance = ((votes.sum(0) / votes.sum()) ** 2).sum()
        if chance < 1:
            result["kappa"] = float((seen - chance) / (1 - chance))
    return result
