"""Who is in a cohort and what its images are like, as tables: what a reader checks before believing any model."""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from PIL import Image

from ..cohort.audit import AGE_AT, PHASE
from ..cohort.manifest import SPLITS, Cohort
from ..cohort.views import PixelStore
from ..config import RunConfig
from ..images.reader import read_image
from ..stages import StagingScheme
from .metrics import interval, resamples

PHASE_NAMES = {"open": "open", "partial": "partially fused", "mostly": "mostly fused", "fused": "completely fused"}
AGE_STAGE_SPEARMAN = {"F": 0.783, "M": 0.911}  # Hasani et al. 2022, 240 CBCT, 6 to 25 years


def stage_table(cohort: Cohort) -> pd.DataFrame:
    """One row a stage: the reader's criterion, images in each split and in all, female, male, age as mean ± standard deviation and as range."""
    table = cohort.table
    rows = []
    for stage in cohort.scheme.stages:
        part = table[table["stage"] == stage.label]
        rows.append({"stage": f"{stage.label} {stage.name}", "criterion": stage.criterion, **{s: int((part["split"] == s).sum()) for s in SPLITS},
                     "all": len(part), "F": int((part["sex"] == "F").sum()), "M": int((part["sex"] == "M").sum()), **_ages(part["age_y"])})
    rows.append({"stage": "all", "criterion": "", **{s: int((table["split"] == s).sum()) for s in SPLITS}, "all": len(table),
                 "F": int((table["sex"] == "F").sum()), "M": int((table["sex"] == "M").sum()), **_ages(table["age_y"])})
    return pd.DataFrame(rows).set_index("stage")


def _ages(age_y: pd.Series) -> dict[str, str]:
    known = age_y.dropna()
    if known.empty:
        return {"age_y mean ± SD": "unknown", "age_y range": ""}
    sd = f" ± {known.std():.1f}" if len(known) > 1 else ""
    return {"age_y mean ± SD": f"{known.mean():.1f}{sd}", "age_y range": f"{known.min():.1f}–{known.max():.1f}"}


def split_table(cohort: Cohort) -> pd.DataFrame:
    """One row a split: images, patients, patients also in another split (must be 0), share of female patients among those of known sex, mean age,
    share of each stage in %."""
    rows = []
    for split in SPLITS:
        part = cohort.subset(split)
        sex = part.loc[part["sex"].isin(["F", "M"]), "sex"]
        elsewhere = set(cohort.table.loc[cohort.table["split"] != split, "patient_id"])
        rows.append({"split": split, "images": len(part), "patients": part["patient_id"].nunique(),
                     "patients also elsewhere": len(set(part["patient_id"]) & elsewhere), "F %": 100 * (sex == "F").mean(),
                     "mean age_y": part["age_y"].mean(),
                     **{f"stage {label} %": 100 * (part["stage"] == label).mean() for label in cohort.scheme.labels}})
    return pd.DataFrame(rows).set_index("split").round(1)


def image_table(cohort: Cohort, store: PixelStore) -> pd.DataFrame:
    """One row an image, as decoded: width_px, height_px, spacing_mm, field_mm (longer side; both nan where unknown), median_grey of the mapped
    pixels in [0, 1], box_share (longer side of the expert's box over the image's width), and `device` where the manifest has it.

    Computed from the stored pixels: of an image that was reduced for them, the shorter side is known to about a pixel.
    """
    size_px = (store.sizes / store.scale[:, None]).round().astype(int)
    spacing_mm = store.spacing_mm * store.scale
    box = (store.boxes[:, 2:] - store.boxes[:, :2]).max(1)
    below = _grey_counts(store).cumsum(1)
    median = (below * 2 < below[:, -1:]).sum(1) / 255  # the smallest grey value that half of the pixels do not exceed
    table = pd.DataFrame({"width_px": size_px[:, 1], "height_px": size_px[:, 0], "spacing_mm": spacing_mm, "field_mm": spacing_mm * size_px.max(1),
                          "median_grey": median,
                          "box_share": box / store.sizes[:, 1]})
    return table.assign(device=cohort.table["device"]) if "device" in cohort.table else table


def grey_histograms(store: PixelStore, bins: int = 64) -> np.ndarray:
    """(n, bins) share of each image's pixels in equal bins of grey from 0 to 1."""
    grouped = _grey_counts(store).reshape(-1, bins, 256 // bins).sum(2)
    return grouped / grouped.sum(1, keepdims=True)


def _grey_counts(store: PixelStore) -> np.ndarray:
    """(n, 256) how many pixels of each image have each grey value."""
    return np.array([Image.fromarray(np.ascontiguousarray(store.pixels[i, :h, :w])).histogram() for i, (h, w) in enumerate(store.sizes)])


def source_windows(cohort: Cohort, most: int = 60) -> pd.DataFrame:
    """Source values that became black and white (`low`, `high`) in at most `most` images spread evenly over the manifest, their `format`, and
    `device` where known."""
    rows = np.unique(np.linspace(0, len(cohort.table) - 1, min(most, len(cohort.table))).round().astype(int))
    records = [read_image(cohort.image_path(row)).record for row in rows]
    table = pd.DataFrame([record["window"] for record in records], columns=["low", "high"]).assign(format=[r["format"] for r in records])
    return table.assign(device=cohort.table["device"].iloc[rows].to_numpy()) if "device" in cohort.table else table


def sampling_table(cohort: Cohort, store: PixelStore, configs: dict[str, RunConfig], joint_mm: float = 14.0) -> pd.DataFrame:
    """One row a picture size: its side in px, mm a pixel (median over images of known spacing; 5th and 95th percentile), and how many pixels long a
    joint of `joint_mm` is then (10 to 18 mm is usual); nan where no spacing is known. configs: name → RunConfig of a teacher or of a
    full-image network."""
    frame_mm = store.sizes.max(1) * store.spacing_mm
    box_mm = (store.boxes[:, 2:] - store.boxes[:, :2]).max(1) * store.spacing_mm
    rows = {}
    for name, config in configs.items():
        on_window = config.role == "teacher"
        side_px = config.window_px if on_window else config.frame_px
        mm = (box_mm * config.window_scale if on_window else frame_mm) / side_px
        known = mm[~np.isnan(mm)]
        low, middle, high = np.percentile(known, [5, 50, 95]) if len(known) else [np.nan] * 3
        rows[name] = {"side px": side_px, "mm a pixel": round(middle, 2), "5 %": round(low, 2), "95 %": round(high, 2),
                      f"px along {joint_mm:g} mm": np.round(joint_mm / middle)}
    return pd.DataFrame(rows).T


def transition_ages(cohort: Cohort) -> pd.DataFrame:
    """One row a step from stage to stage: the age in years at which half have taken it, by sex, from a logistic regression on age."""
    from sklearn.linear_model import LogisticRegression

    table = cohort.table.dropna(subset=["age_y"])
    labels, rows = cohort.scheme.labels, {}
    for before, after in pairwise(labels):
        rows[f"{before} to {after}"] = row = {}
        for sex in ("F", "M"):
            part = table[table["sex"] == sex]
            passed = (part["stage"] >= after).astype(int)
            if passed.nunique() == 2:
                fit = LogisticRegression(C=1e3, max_iter=1000).fit(part[["age_y"]].to_numpy(), passed)
                row[sex] = round(float(-fit.intercept_[0] / fit.coef_[0, 0]), 2)
    return pd.DataFrame(rows).T


def published_mean_age(phase: str, sex: str) -> float:
    """Mean age in years at a phase of fusion (a key of PHASE_NAMES) in 741 US CBCT, 6 to 20 years (PMC5565182)."""
    return AGE_AT[phase][("M", "F").index(sex)]


def phases(scheme: StagingScheme) -> dict[int, str]:
    """Label of a stage → its phase of fusion, a key of PHASE_NAMES; empty for a scheme whose stages have no such phases."""
    known = {stage.label: PHASE.get(stage.name) for stage in scheme.stages}
    return {} if None in known.values() else known


def ages_beside_published(cohort: Cohort) -> pd.DataFrame:
    """One row a sex and phase of fusion (open, partially, mostly, completely fused; the last holds the stages with and without a scar): n,
    mean age in years, the published mean (PMC5565182) and the difference. Empty where the scheme's stages have no such phase."""
    phase_of = phases(cohort.scheme)
    if not phase_of:
        return pd.DataFrame()
    table = cohort.table.assign(phase=cohort.table["stage"].map(phase_of)).drop_duplicates(["patient_id", "phase"]).dropna(subset=["age_y"])
    rows = []
    for sex in ("F", "M"):
        for phase, name in PHASE_NAMES.items():
            age_y, theirs = table.loc[(table["sex"] == sex) & (table["phase"] == phase), "age_y"], published_mean_age(phase, sex)
            rows.append({"sex": sex, "phase": name, "n": len(age_y), "mean age_y": round(age_y.mean(), 2), "published mean": theirs,
                         "difference": round(age_y.mean() - theirs, 2)})
    return pd.DataFrame(rows).set_index(["sex", "phase"])


def age_stage_correlation(cohort: Cohort) -> pd.DataFrame:
    """One row a sex: n, Spearman's correlation of age and stage (nan where one of them does not vary), and the published one (Hasani et al.
    2022)."""
    table, rows = cohort.table.drop_duplicates(["patient_id", "stage"]).dropna(subset=["age_y"]), {}
    for sex, theirs in AGE_STAGE_SPEARMAN.items():
        part = table[table["sex"] == sex]
        ours = part["age_y"].rank().corr(part["stage"].rank()) if part["stage"].nunique() > 1 and part["age_y"].nunique() > 1 else np.nan
        rows[sex] = {"n": len(part), "Spearman": round(ours, 3), "published (Hasani et al. 2022)": theirs}
    return pd.DataFrame(rows).T.astype({"n": int}).rename_axis("sex")


def accuracy_by_agreement(cohort: Cohort, predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in % of a predictions table where all readers named one stage and where they did not, with n; empty where the manifest names
    fewer than two readers."""
    readers = rater_columns(cohort)
    if len(readers) < 2:
        return pd.DataFrame()
    agreed = (cohort.table[readers].nunique(axis=1) == 1).set_axis(cohort.table["image"])
    right = predictions["decided"] == predictions["stage"]
    groups = agreed.loc[predictions["image"]].map({True: "readers agree", False: "readers differ"}).to_numpy()
    table = right.groupby(groups).agg(["size", "mean"]).rename(columns={"size": "n", "mean": "accuracy %"})
    return table.assign(**{"accuracy %": (100 * table["accuracy %"]).round(1)})


def rater_columns(cohort: Cohort) -> list[str]:
    """The columns rater_1, rater_2, … of the manifest, in order."""
    return sorted((c for c in cohort.table if c.startswith("rater_") and c[6:].isdigit()), key=lambda c: int(c[6:]))


def rater_agreement(cohort: Cohort) -> pd.DataFrame:
    """One row a pair of readers, and each reader against the consensus `stage`: n, agreement in %, within one stage in %, Cohen's kappa and
    quadratic weighted kappa. Empty where the manifest names fewer than two readers; images that one of a pair did not read are left out."""
    from sklearn.metrics import cohen_kappa_score

    readers = rater_columns(cohort)
    if len(readers) < 2:
        return pd.DataFrame()
    rows = []
    for a, b in [*combinations(readers, 2), *((reader, "stage") for reader in readers)]:
        both = cohort.table[[a, b]].dropna().astype(int)
        labels = list(cohort.scheme.labels)
        rows.append({"pair": f"{_spoken(a)} – {_spoken(b)}", "n": len(both), "agreement %": round(100 * (both[a] == both[b]).mean(), 1),
                     "within one stage %": round(100 * ((both[a] - both[b]).abs() <= 1).mean(), 1),
                     "kappa": round(cohen_kappa_score(both[a], both[b], labels=labels), 3),
                     "weighted kappa": round(cohen_kappa_score(both[a], both[b], labels=labels, weights="quadratic"), 3)})
    return pd.DataFrame(rows).set_index("pair")


def ceiling(cohort: Cohort, bootstrap: int = 2000) -> pd.DataFrame:
    """How well the label can be known at all: one row a reading, with n and accuracy, kappa (quadratic weighted) and within_one, each with
    its 95 % bootstrap interval over patients (`_low`, `_high`).

    `true state`: the drawn state of the joint, read without noise, against the label. No model that sees the picture can be expected to
    do better. `rater k`: one reader against the other two where these name one stage, so that no reader is part of his own reference;
    images on which the two differ, the harder ones, are left out there. Only rows whose columns (stage_true; three readers) the manifest has.
    """
    table, readers = cohort.table, rater_columns(cohort)
    readings = {}
    if "stage_true" in table:
        readings["true state against the label"] = table["patient_id"], table["stage_true"], table["stage"]
    for reader in readers if len(readers) == 3 else ():
        a, b = (table[other] for other in readers if other != reader)
        agreed = table[reader].notna() & (a == b)
        readings[f"{_spoken(reader)} against the other two"] = tuple(column[agreed] for column in (table["patient_id"], table[reader], a))
    rows = {}
    for name, (patients, reading, reference) in readings.items():
        row = rows[name] = {"n": len(patients)}
        if len(patients):
            counts = np.concatenate([np.ones((1, len(patients))), resamples(patients, bootstrap)])
            for metric, values in _agreement(reading.to_numpy(float), reference.to_numpy(float), counts).items():
                row |= {metric: float(values[0])} | {f"{metric}_{end}": value for end, value in interval(values[1:]).items()}
    return pd.DataFrame(rows).T.astype({"n": int}) if rows else pd.DataFrame()


def ceiling_text(table: pd.DataFrame) -> pd.DataFrame:
    """A ceiling as `value (low to high)`, one row a reading."""
    shown = pd.DataFrame({"n": table["n"]}) if len(table) else pd.DataFrame()
    for metric, title, scale, digits in (("accuracy", "accuracy %", 100, 1), ("kappa", "weighted kappa", 1, 3),
                                         ("within_one", "within one stage %", 100, 1)):
        if metric in table:
            ends = (scale * table[[metric, f"{metric}_low", f"{metric}_high"]]).to_numpy()
            shown[title] = [f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})" for value, low, high in ends]
    return shown


def _agreement(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, quadratic weighted kappa and within-one-stage of two readings (n,) in each resample of counts (r, n); (r,) each.

    Kappa with quadratic weights needs no table: 1 - mean of (a - b)² over what it is expected to be for independent readings.
    """

    def mean(values):
        return counts @ values / counts.sum(1)

    observed, expected = mean((a - b) ** 2), mean(a**2) + mean(b**2) - 2 * mean(a) * mean(b)
    disagreement = np.divide(observed, expected, out=np.zeros_like(observed), where=expected > 1e-12)
    return {"accuracy": mean((a == b).astype(float)), "kappa": 1 - disagreement, "within_one": mean((np.abs(a - b) <= 1).astype(float))}


def _spoken(column: str) -> str:
    return "consensus" if column == "stage" else column.replace("_", " ")
