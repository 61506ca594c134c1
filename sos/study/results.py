"""Numbers of finished runs under one common set of resamples of the held-out patients, and how they are written in tables.

An array of shape (1 + bootstrap,) holds a metric's value on the held-out images, then its value in each resample. Sums, differences
and ratios of such arrays are those of paired models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import MODELS, RunConfig
from ..files import note_result
from . import trust
from .grid import find, has_cohort
from .metrics import attention_metrics, probability_columns, resamples, staging_metrics, summarise
from .runs import Run
from .training import Study

NOT_YET = "not yet run"
SIGNIFICANT = 0.05
ROLE_NAMES = {"teacher": "crop teacher", "baseline": "plain full-image network", "student": "distilled student",
              "zoom": "two-look student"}
SAID = {"baseline": "plain", "student": "student", "zoom": "two-look student", "teacher": "teacher"}  # in differences
STUDENTS = ("student", "zoom")  # the paper's, and the one that looks twice
STAGING = {
    "accuracy": "accuracy, %", "precision": "precision, %", "recall": "recall, %", "f1": "F1, %", "macro_f1": "macro F1, %",
    "kappa": "quadratic weighted kappa", "stage_error": "mean absolute stage error", "within_one": "within one stage, %",
    "auroc": "AUROC", "ece": "expected calibration error"}
ATTENTION = {"pointing": "pointing game, %", "energy": "energy in the box, %", "iou": "IoU"}
TRUST = {
    "temperature": "temperature T",
    **{f"{name}{end}": f"{title}{said}" for name, title in (("ece", STAGING["ece"]), ("nll", "negative log-likelihood"), ("brier", "Brier score"))
       for end, said in (("", ""), ("_scaled", ", scaled"))},
    **{f"{name}_{100 * aim:.0f}": f"target {100 * aim:.0f} %: {said}" for aim in trust.TARGETS for name, said in
       (("threshold", "threshold of confidence"), ("coverage", "images kept, %"), ("kept", "accuracy of those kept, %"),
        ("referred", "accuracy of those referred, %"))},
    "aurc_confidence": "AURC, by confidence", "aurc_entropy": "AURC, by entropy", "aurc_whole": "AURC, by distance from a whole stage",
    "aurc_ideal": "AURC, ideal order", "aurc_random": "AURC, random order",
    **{f"{name}_{sex}": f"Spearman of {said} and age, {who}" for name, said in (("age", "expected stage"), ("label", "label"))
       for sex, who in (("F", "female"), ("M", "male"))}}
METRIC_NAMES = STAGING | ATTENTION | TRUST | {"missed": "missed, %"}


class Results:
    """The finished runs of a study, and their metrics under one common set of resamples of the held-out patients."""

    def __init__(self, study: Study):
        self.study, self.profile = study, study.profile
        self._runs: dict[RunConfig, list[Run]] = {}
        self._sampled: dict[tuple[Path, str], dict[str, np.ndarray]] = {}
        self._trusted: dict[tuple[Path, str], dict[str, np.ndarray]] = {}
        self._accuracies: dict[tuple[Path, float], np.ndarray] = {}

    def of(self, configs: list[RunConfig]) -> dict[int, Run]:
        """seed → finished run, of `configs` that differ in their seed alone."""
        for config in configs:
            if config not in self._runs:
                self._runs[config] = find(self.study, [config])
        return {config.seed: self._runs[config][0] for config in configs if self._runs[config]}

    def roles(self) -> dict[str, dict[int, Run]]:
        """model → seed → finished main run."""
        return {model: self.role(model) for model in MODELS}

    def role(self, role: str) -> dict[int, Run]:
        """seed → finished main run of the model `role`."""
        return self.of([self.profile.run(role, seed) for seed in self.profile.seeds])

    def sampled(self, run: Run, seen: str = "as_is") -> dict[str, np.ndarray]:
        """metric → (1 + bootstrap,): the value on the held-out images, then that of each resample. seen: the images `as_is`, `mirrored`, or `both`
        averaged."""
        if (run.path, seen) not in self._sampled:
            self._sampled[run.path, seen] = sample(run.split("test", seen), self.profile.bootstrap)
        return self._sampled[run.path, seen]

    def mean(self, runs: dict[int, Run], metric: str, seen: str = "as_is") -> np.ndarray:
        """(1 + bootstrap,) of a metric's mean over seeds."""
        return np.mean([self.sampled(run, seen)[metric] for run in runs.values()], 0)

    def summary(self, runs: dict[int, Run], metric: str) -> dict[str, float]:
        """value, low, high, the standard deviation over seeds (nan with one), and how many seeds."""
        return summarise(self.mean(runs, metric), metric) | spread([self.sampled(run)[metric][0] for run in runs.values()])

    def paired(self, function: Callable, metric: str, *groups: dict[int, Run]) -> np.ndarray | None:
        """(1 + bootstrap,) of a function of the seed means of groups of runs, over the seeds that all have; None without one."""
        seeds = shared_seeds(groups)
        if not seeds:
            return None
        return function(*(self.mean({seed: group[seed] for seed in seeds}, metric) for group in groups))

    def contrast(self, metric: str, function: Callable, *groups: dict[int, Run]) -> dict[str, float]:
        """Summary and p of such a function, `np.subtract` for a difference; empty where no seed is shared."""
        values = self.paired(function, metric, *groups)
        if values is None:
            return {}
        each = [float(function(*(self.sampled(group[seed])[metric] for group in groups))[0]) for seed in shared_seeds(groups)]
        return summarise(values) | {"p": p_value(values)} | spread(each)

    def accuracy_at(self, level: float, run: Run, table: pd.DataFrame) -> np.ndarray:
        """(1 + bootstrap,) accuracy of a run at a difficulty, whose predictions are `table`."""
        if (run.path, level) not in self._accuracies:
            self._accuracies[run.path, level] = sample_accuracy(table, self.profile.bootstrap)
        return self._accuracies[run.path, level]

    def trusted(self, runs: dict[int, Run], seen: str = "as_is") -> dict[str, np.ndarray]:
        """name → (seeds, 1 + bootstrap) of `trust.sample`; empty without runs. seen: `as_is`, or `both` for the mean of an image's answer and its
        mirror image's."""
        for run in runs.values():
            if (run.path, seen) not in self._trusted:
                tables = run.split("valid", seen), run.split("test", seen)
                self._trusted[run.path, seen] = trust.sample(*tables, run.scheme.labels, self.ages(), self.profile.bootstrap)
        each = [self._trusted[run.path, seen] for run in runs.values()]
        return {name: np.stack([values[name] for values in each]) for name in each[0]} if each else {}

    def ages(self) -> pd.DataFrame | None:
        """age_y and sex by image; None where the cohort is not there."""
        if not has_cohort(self.study):
            return None
        return self.study.cohort.table.drop_duplicates("image").set_index("image")[["age_y", "sex"]]


def over_seeds(values: np.ndarray) -> np.ndarray:
    """(1 + bootstrap,) mean of (seeds, 1 + bootstrap) over the seeds that have a finite value; nan where none has."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)


def shared_seeds(groups) -> list[int]:
    """Seeds of the runs that all groups (seed → run) have."""
    return [seed for seed in groups[0] if all(seed in group for group in groups)]


def sample(table: pd.DataFrame, bootstrap: int, seed: int = 0) -> dict[str, np.ndarray]:
    """metric → (1 + bootstrap,) of a predictions table: first as it is, then `bootstrap` resamples over patients.

    A patient is drawn alike in all tables of the same images, whatever the order of their rows.
    """
    table = table.sort_values("image", ignore_index=True)
    counts = np.concatenate([np.ones((1, len(table))), resamples(table["patient_id"], bootstrap, seed)])
    values = attention_metrics(table, counts)
    columns = probability_columns(table)
    if columns:
        values |= staging_metrics(table["target"].to_numpy(int), table[columns].to_numpy(float), counts)
    return values


def sample_accuracy(table: pd.DataFrame, bootstrap: int, seed: int = 0) -> np.ndarray:
    """(1 + bootstrap,) what `sample` says of accuracy, in a part of its time."""
    table = table.sort_values("image", ignore_index=True)
    counts = np.concatenate([np.ones((1, len(table))), resamples(table["patient_id"], bootstrap, seed)])
    right = table[probability_columns(table)].to_numpy(float).argmax(1) == table["target"].to_numpy(int)
    return counts @ right / counts.sum(1)


def p_value(values: np.ndarray) -> float:
    """Two-sided bootstrap p of a difference from 0: twice the smaller share of resamples on one side, one more counted with them, so that
    it never is 0."""
    spread = values[1:][np.isfinite(values[1:])]
    return float(min(1.0, 2 * (min((spread <= 0).sum(), (spread >= 0).sum()) + 1) / (len(spread) + 1)))


def holm(p: list[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down method."""
    order, adjusted, highest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


SUMMARY, TESTED = ("value", "low", "high", "sd"), ("value", "low", "high", "p")


def columns(name: str, known: dict, keys: tuple[str, ...] = SUMMARY) -> dict[str, float]:
    """`keys` of a summary as columns of a table of numbers, `<name>_<key>`; nan where there is none."""
    return {f"{name}_{key}": known.get(key, np.nan) for key in keys}


def summary_in(row: dict, name: str, keys: tuple[str, ...] = SUMMARY) -> dict:
    """The summary that `columns` laid flat in a row."""
    return {key: row[f"{name}_{key}"] for key in keys}


def adjust(data: pd.DataFrame, name: str) -> int:
    """Add the column `<name>_p_holm` to `data`: `<name>_p` where there is one, adjusted by Holm's method. Returns how many were tested."""
    tested = data[f"{name}_p"].dropna()
    data[f"{name}_p_holm"] = pd.Series(holm(tested.tolist()), index=tested.index, dtype=float)
    return len(tested)


def closed(student: np.ndarray, baseline: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Gap closed, (student - baseline) / (teacher - baseline); nan where the teacher is not better than the baseline."""
    gap = teacher - baseline
    return np.where(gap > 0, (student - baseline) / np.where(gap > 0, gap, 1), np.nan)


def spread(values: list[float]) -> dict[str, float]:
    """Standard deviation of one value a seed (nan with one), and how many seeds."""
    return {"sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"), "seeds": len(values)}


# --- as text -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Table:
    """`data`: the numbers, one row each; `shown`: the same as text, for reading; `notes` stand below."""

    name: str
    title: str
    data: pd.DataFrame
    shown: pd.DataFrame
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Title, table and notes as Markdown."""
        rows = [list(self.shown.columns), ["---"] * len(self.shown.columns), *self.shown.astype(str).to_numpy().tolist()]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        return f"**{self.title}**\n\n{body}\n" + "".join(f"\n{note}\n" for note in self.notes)

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def save(self, folder: Path) -> list[Path]:
        """Write `<name>.csv` and `<name>.md` into `folder` and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        csv, text = folder / f"{self.name}.csv", folder / f"{self.name}.md"
        for path in (csv, text):
            note_result(path)
        self.data.to_csv(csv, index=False, float_format="%.6g")
        text.write_text(self.markdown(), encoding="utf-8")
        return [csv, text]


def written(known: dict, metric: str, signed: bool = False) -> str:
    """A summary as text: value, interval, SD over seeds and p where there are some; in per cent where the metric's name says so."""
    if not known:
        return NOT_YET
    percent = METRIC_NAMES.get(metric, "").endswith("%")
    digits = 1 if percent else 2 if metric == "gap" else 3
    value, low, high, sd = ((100 if percent else 1) * known.get(key, np.nan) for key in ("value", "low", "high", "sd"))
    sign = "+" if signed else ""
    text = f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
    text += f", SD {sd:.{digits}f}" if np.isfinite(sd) else ""
    return (text + (f", {p_written(known['p'])}" if "p" in known else "")).replace("-", "−")


def verdict(difference: float, p: float) -> str:
    """A difference of shares in percentage points, its p, and whether it is higher, lower or not significant."""
    if np.isnan(difference):
        return NOT_YET
    said = "not significant" if p >= SIGNIFICANT else "higher" if difference > 0 else "lower"
    return f"{100 * difference:+.1f}, {p_written(p)}: {said}".replace("-", "−")


def p_written(p: float) -> str:
    """`p = 0.032`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def rows(shown: dict[str, dict[str, str]], index: str) -> pd.DataFrame:
    """name → column → text as a table whose first column `index` holds the names."""
    return pd.DataFrame([{index: name, **row} for name, row in shown.items()])


def chance(seeds: tuple[int, ...]) -> list[str]:
    """The note that a table of differences needs where its rows have one seed alone."""
    said = ("Intervals and p tell what the choice of patients adds; with one seed, what chance in training adds is in neither, and it can be as large "
            "as many a difference here.")
    return [said] if len(seeds) == 1 else []


def machine_said(record) -> str:
    """The part of a `machine_record` that did the work: its GPU, or else its processor and how many threads."""
    if isinstance(record.get("gpu"), str):
        return record["gpu"]
    return f"{record['processor']}, {record['threads']} thread{'' if record['threads'] == 1 else 's'}"


def few(found: int, seeds: tuple[int, ...]) -> str:
    """What a table adds to the name of a mean that lacks some of its seeds, ` (2 of 3 seeds)`; nothing where all or none are there."""
    return f" ({found} of {len(seeds)} seeds)" if 0 < found < len(seeds) else ""


def who(results: Results, seeds: tuple[int, ...] | None = None, sd: bool = True) -> str:
    """On how many held-out patients the main runs were tested, and what a cell of a table holds. seeds: its rows', the main runs' where None; sd:
    whether it holds a standard deviation where there are several."""
    runs = [run for group in results.roles().values() for run in group.values()]
    if not runs:
        return "No finished runs yet."
    people = f"{runs[0].test['patient_id'].nunique()} held-out {'virtual patients' if runs[0].record['virtual'] else 'patients'}."
    count = len(results.profile.seeds if seeds is None else seeds)
    over = f"mean of {count} seeds{'; SD over seeds' if sd else ''}" if count > 1 else "one seed"
    return f"{people} Value (95 % bootstrap interval over patients, {results.profile.bootstrap:,} resamples), {over}."
