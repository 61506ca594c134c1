"""Who is in a cohort and what its images are like, as tables: what a reader checks before believing any model."""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from ..cohort.manifest import SPLITS, Cohort
from ..cohort.views import PixelStore
from ..config import RunConfig
from ..images.reader import read_image


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
    return {"age_y mean ± SD": f"{known.mean():.1f} ± {known.std(ddof=0):.1f}", "age_y range": f"{known.min():.1f}–{known.max():.1f}"}


def split_table(cohort: Cohort) -> pd.DataFrame:
    """One row a split: images, patients, patients also in another split (must be 0), share of female patients, mean age, share of each stage in %."""
    rows = []
    for split in SPLITS:
        part = cohort.subset(split)
        elsewhere = set(cohort.table.loc[cohort.table["split"] != split, "patient_id"])
        rows.append({"split": split, "images": len(part), "patients": part["patient_id"].nunique(),
                     "patients also elsewhere": len(set(part["patient_id"]) & elsewhere), "F %": 100 * (part["sex"] == "F").mean(),
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
    table = pd.DataFrame({"width_px": size_px[:, 1], "height_px": size_px[:, 0], "spacing_mm": spacing_mm, "field_mm": spacing_mm * size_px.max(1),
                          "median_grey": [float(np.median(store.pixels[i, :h, :w])) / 255 for i, (h, w) in enumerate(store.sizes)],
                          "box_share": box / store.sizes[:, 1]})
    return table.assign(device=cohort.table["device"]) if "device" in cohort.table else table


def grey_histograms(store: PixelStore, bins: int = 64) -> np.ndarray:
    """(n, bins) share of each image's pixels in equal bins of grey from 0 to 1."""
    counts = [np.bincount(store.pixels[i, :h, :w].ravel(), minlength=256) for i, (h, w) in enumerate(store.sizes)]
    grouped = np.stack(counts).reshape(len(counts), bins, 256 // bins).sum(2)
    return grouped / grouped.sum(1, keepdims=True)


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


def _spoken(column: str) -> str:
    return "consensus" if column == "stage" else column.replace("_", " ")
