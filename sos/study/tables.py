"""Tables of the study, made from finished runs on disk and never from memory: numbers as CSV, the same readable as Markdown.

Every interval is a 95 % bootstrap interval over held-out patients. With several seeds a value is the mean over seeds, its interval
that of the mean, and the standard deviation over seeds stands beside it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import CROP_TEACHER, PLAIN, PUBLISHED, TAUGHT_ROLES, TWICE, get_profile, home, runs_dir
from ..errors import ConfigError, RunError
from ..files import note_result, show_in_readme
from . import attention, difficulty
from .ablations import ablation, choices, effects, networks, seeds
from .describe import ceiling
from .grid import has_cohort
from .latency import read_latency
from .metrics import summarise
from .results import (ATTENTION, METRIC_NAMES, NOT_YET, ROLE_NAMES, SAID, SIGNIFICANT, STAGING, STUDENTS, TESTED, TRUST, Results, Table, adjust, closed,
                      columns, few, machine_said, over_seeds, p_value, p_written, sample, shared_seeds, spread, summary_in, verdict, written)
from .results import rows as _rows
from .results import who as _who
from .runs import Run, training_code
from .training import Study
from .trust import FEWEST, LEAST_KEPT

SEEN = {"as_is": "as they are", "mirrored": "mirrored", "both": "both"}
PAPER_STUDENT = {"accuracy": 0.8375, "precision": 0.8401, "recall": 0.8375, "f1": 0.8329}  # Milani et al. 2025, arXiv:2505.21561
INFLATION = ("Chance makes a calibration error larger, the more so the fewer images: a small one cannot be told from 0. Its interval is a basic bootstrap "
             "interval, which allows for that.")
PAPER_COLUMN = "published student (real patients; not comparable)"


def headline(results: Results) -> Table:
    """The main models in every staging metric, and the published student in a column of its own."""
    numbers, shown = [], {}
    for name, title in STAGING.items():
        row = shown[title] = {}
        for role, runs in results.roles().items():
            known = results.summary(runs, name) if runs else {}
            numbers.append({"metric": name, "model": role, **known})
            row[ROLE_NAMES[role] + few(len(runs), results.profile.seeds)] = written(known, name)
        row[PAPER_COLUMN] = f"{100 * PAPER_STUDENT[name]:.2f}" if name in PAPER_STUDENT else "not published"
    published = "published student, real patients"
    numbers += [{"metric": name, "model": published, "value": value} for name, value in PAPER_STUDENT.items()]
    notes = (_who(results) + " Precision, recall and F1 are weighted by the stages' frequencies, as in the paper.",
             "The published student (Milani et al. 2025) was tested on images of real patients, other images of another difficulty: its "
             "column says what the paper reports, not how well it is reproduced here.", INFLATION, *_ceiling_note(results))
    return Table("headline", "Staging on held-out images", pd.DataFrame(numbers), _rows(shown, "metric"), notes)


def _ceiling_note(results: Results) -> list[str]:
    """What the true state of the joint reaches against the labels of the held-out images; nothing where it is not known."""
    if not has_cohort(results.study):
        return []
    cohort = results.study.cohort
    held_out = cohort.subset("test")
    if not cohort.virtual or "stage_true" not in held_out or held_out.empty:
        return []
    top = ceiling(replace(cohort, table=held_out), results.profile.bootstrap).iloc[0]
    known = {key: top[f"accuracy{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return [f"Ceiling: the readers' noise is in the labels. The true state of each joint, read without noise, agrees with them in "
            f"{written(known, 'accuracy')} % of the held-out images; no model can be expected above that."]


def comparisons(results: Results) -> Table:
    """Paired differences between the models, and how much of the gap between baseline and teacher each student closes."""
    groups = results.roles()
    numbers, shown = [], {}
    for name in ("accuracy", "macro_f1", "kappa", "stage_error"):
        row = shown[METRIC_NAMES[name]] = {}
        for a, b in (("student", "baseline"), ("zoom", "baseline"), ("zoom", "student"), ("teacher", "student"), ("teacher", "zoom"),
                     ("teacher", "baseline")):
            known = results.contrast(name, np.subtract, groups[a], groups[b])
            numbers.append({"metric": name, "quantity": f"{a} - {b}", **known})
            row[f"{SAID[a]} − {SAID[b]}{few(known.get('seeds', 0), results.profile.seeds)}"] = written(known, name, signed=True)
        for model in STUDENTS if name != "stage_error" else ():
            gap = results.contrast(name, closed, *(groups[role] for role in (model, "baseline", "teacher")))
            gap.pop("p", None)  # a test of the ratio against 0 would say no more than that of the difference
            numbers.append({"metric": name, "quantity": f"gap closed by {model}", **gap})
            title = f"gap closed by {SAID[model]}{few(gap.get('seeds', 0), results.profile.seeds)}"
            row[title] = "no gap" if gap and np.isnan(gap["value"]) else written(gap, "gap")
    notes = [_who(results) + " Differences are paired: the same resamples of the same patients for both models.",
             "Gap closed = (student − plain) / (teacher − plain); no gap: the teacher is not better than the plain network."]
    notes += _undefined(results, ("accuracy", "macro_f1", "kappa"))
    return Table("comparisons", "Differences between the models", pd.DataFrame(numbers), _turned(shown), tuple(notes))


def _undefined(results: Results, metrics: tuple[str, ...]) -> list[str]:
    """The note on resamples in which there is no gap to close, by metric; none where there are none."""
    shares = {metric: np.mean(lost <= 0) for metric in metrics
              if (lost := results.paired(np.subtract, metric, results.role("teacher"), results.role("baseline"))) is not None}
    said = ", ".join(f"{100 * share:.1f} % ({METRIC_NAMES[metric].split(',')[0]})" for metric, share in shares.items() if share)
    return [f"In {said} of the resamples the teacher is not better than the plain network; the interval of the gap closed leaves them out and is too "
            "narrow by that."] if said else []


def competitors(results: Results) -> Table:
    """Every way from a whole image to a stage: how often it is right, how often it has no answer, where it looks, how long it takes."""
    configs = results.profile.competitors()
    groups = {name: results.of(asked) for name, asked in configs.items()}
    times, student = read_latency(results.study), groups[TWICE]
    numbers, gaps = [], {}
    for name, runs in groups.items():
        row = {"model": name, "person": configs[name][0].role == "teacher", "seeds": len(runs), "reference": bool(runs) and configs[name] == configs[TWICE]}
        known = {metric: results.summary(runs, metric) for metric in ("accuracy", "kappa", "pointing", "missed") if _has(results, runs, metric)}
        gaps[name] = "–"
        if name not in (PLAIN, CROP_TEACHER):  # 0 and 1 by definition
            known["gap"] = gap = results.contrast("accuracy", closed, runs, groups[PLAIN], groups[CROP_TEACHER])
            gap.pop("p", None)  # see comparisons
            gaps[name] = "no gap" if gap and np.isnan(gap["value"]) else written(gap, "gap")
        for metric in ("accuracy", "kappa", "gap", "pointing", "missed"):
            row |= columns(metric, known.get(metric, {}))
        row |= columns("difference", {} if row["reference"] else results.contrast("accuracy", np.subtract, runs, student), TESTED)
        timed = next((times.loc[run.name] for run in runs.values() if run.name in times.index), {})
        numbers.append(row | {key: timed.get(key, np.nan) for key in ("median_ms", "low_ms", "high_ms")})
    data = pd.DataFrame(numbers)
    tests = adjust(data, "difference")
    shown = pd.DataFrame([_competitor_row(row, gaps[row["model"]], results.profile.seeds) for row in data.to_dict("records")])
    notes = (_who(results) + " Gap closed: in accuracy. Pointing game: of a network its Grad-CAM's peak, of a detector the centre of the found "
             "box, inside the expert's.",
             f"Missed: no box with a score above {results.profile.detector.min_score:g}; the image stays in, as a wrong answer.",
             f"Differences are to the {TWICE}, in percentage points. p: paired bootstrap, adjusted by Holm's method for the {tests} "
             f"comparisons; not significant where p is not below {SIGNIFICANT}.", _latency_note(times))
    return Table("competitors", "Ways from an image to a stage", data, shown, notes)


def _has(results: Results, runs: dict[int, Run], metric: str) -> bool:
    return bool(runs) and metric in results.sampled(next(iter(runs.values())))


def _competitor_row(row: dict, gap: str, seeds: tuple[int, ...]) -> dict:
    def text(metric):
        return NOT_YET if not row["seeds"] else "–" if np.isnan(row[f"{metric}_value"]) else written(summary_in(row, metric), metric)

    took = "{median_ms:.1f} ({low_ms:.1f} to {high_ms:.1f})".format(**row) if np.isfinite(row["median_ms"]) else NOT_YET
    person = " and a person" if row["person"] and took != NOT_YET else ""
    return {"model": row["model"] + few(row["seeds"], seeds), METRIC_NAMES["accuracy"]: text("accuracy"),
            f"accuracy against the {TWICE}": "reference" if row["reference"] else verdict(row["difference_value"], row["difference_p_holm"]),
            METRIC_NAMES["kappa"]: text("kappa"), "gap closed": gap if row["seeds"] else NOT_YET, METRIC_NAMES["pointing"]: text("pointing"),
            METRIC_NAMES["missed"]: text("missed"), "time an image, ms": took + person}


def _latency_note(times: pd.DataFrame) -> str:
    """What the times are of, and on which machine."""
    said = ("Time from an image's native pixels in memory to its stage, cameras included: median (quartiles), one image at a time, the models taking "
            "turns")
    if times.empty:
        return f"{said}: {NOT_YET}."
    one = times.iloc[0]
    return (f"{said}; {one['images']} images, {one['precision']}, {machine_said(one)}. A crop teacher's time is that of the network alone: before it, a "
            "person finds the joint and draws the box.")


def localisation(results: Results) -> Table:
    """Where Grad-CAM of the full-image networks looks, beside controls that no training has shaped."""
    groups = {role: runs for role, runs in results.roles().items() if role != "teacher"}
    known = {ROLE_NAMES[role]: {metric: results.summary(runs, metric) if runs else {} for metric in ATTENTION}
             for role, runs in groups.items()}
    still = controls(results)
    known |= {name: {metric: summarise(values[metric]) for metric in ATTENTION} for name, values in still.items()}
    for model in STUDENTS:
        known[f"{SAID[model]} − plain"] = {metric: results.contrast(metric, np.subtract, groups[model], groups["baseline"]) for metric in ATTENTION}
        if still and groups[model]:
            beyond = {metric: results.mean(groups[model], metric) - still["mean position"][metric] for metric in ATTENTION}
            known[f"{SAID[model]} − mean position"] = {metric: summarise(values) | {"p": p_value(values)} for metric, values in beyond.items()}
    numbers = [{"map": name, "metric": metric, **values} for name, row in known.items() for metric, values in row.items()]
    shown = {name + few(row["pointing"].get("seeds", 0), results.profile.seeds):
             {METRIC_NAMES[metric]: written(values, metric, signed="−" in name) for metric, values in row.items()} for name, row in known.items()}
    notes = (_who(results) + " Grad-CAM explains the decided stage, on images seen still and whole; the box is the expert's.",
             "The map of the two-look student covers the window that it chose itself, and nothing outside. Controls: a network that has not been trained; mean position, one map for all images, the share of training boxes that "
             "cover each place; an edge filter of the image itself; smoothed noise.")
    return Table("localisation", "Where the networks look", pd.DataFrame(numbers), _rows(shown, "map"), notes)


def controls(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Localisation of the control maps on held-out images: name → metric → (1 + bootstrap,); empty without a student's run."""
    students = results.role("student")
    if not students or not has_cohort(results.study):
        return {}
    maps = attention.localisation(results.study, {"student": next(iter(students.values()))})
    return {name: sample(maps[maps["source"] == name], results.profile.bootstrap) for name in attention.CONTROLS}


def mirror(results: Results) -> Table:
    """Each model on the held-out images, on their mirror images, and with both averaged: whether it matters which way a head faces."""
    numbers, shown = [], {}
    asked = [(metric, seen) for metric in ("accuracy", "kappa") for seen in SEEN] + [("pointing", "mirrored")]
    for role, runs in results.roles().items():
        row = shown[ROLE_NAMES[role] + few(len(runs), results.profile.seeds)] = {}
        for metric, seen in asked:
            title = f"{METRIC_NAMES[metric]}, {SEEN[seen]}"
            if metric == "pointing" and role == "teacher":
                row[title] = ""
                continue
            values = results.mean(runs, metric, seen) if runs else None
            known = summarise(values) if runs else {}
            change = values - results.mean(runs, metric) if runs and seen != "as_is" else None
            known |= {} if change is None else {f"change_{key}": value for key, value in (summarise(change) | {"p": p_value(change)}).items()}
            numbers.append({"model": role, "metric": metric, "seen": seen, **known})
            row[title] = written(known, metric) + ("" if change is None else f"; {p_written(known['change_p'])}")
    flips = ", ".join(f"{name} {getattr(results.profile, role).flip:g}" for role, name in ROLE_NAMES.items())
    notes = (_who(results, sd=False) + f" Probability that training mirrored an image: {flips}. p: against the images as they are, paired.", "Both: probabilities for an image and for its mirror image averaged, which is how `sos predict` reads an image.")
    return Table("mirror", "Mirror images of the held-out images", pd.DataFrame(numbers), _rows(shown, "model"), notes)


def trust(results: Results) -> Table:
    """May one trust a single answer? Calibration before and after scaling by one temperature, answers kept at a threshold, stage against age."""
    groups = results.roles()
    asked = {ROLE_NAMES[role]: (runs, "as_is") for role, runs in groups.items()}
    asked |= {f"{ROLE_NAMES[model]}, both": (groups[model], "both") for model in STUDENTS}
    columns = {name: results.trusted(runs, seen) for name, (runs, seen) in asked.items()}
    seeds = shared_seeds([groups["student"], groups["baseline"]])
    pair = [results.trusted({seed: groups[role][seed] for seed in seeds}) for role in ("student", "baseline")]
    numbers, shown = [], {}
    for metric, title in TRUST.items():
        row = shown[title] = {}
        for name, values in columns.items():
            known = _over_finite(values[metric], metric) if metric in values else {}
            numbers.append({"model": name, "metric": metric, **known})
            row[name] = _trusted(known, metric, results.profile.seeds) if known or not values else "–"
        name = "student − plain network"
        row[name] = "" if seeds else NOT_YET
        if metric in pair[0] and not metric.startswith(("temperature", "threshold", "label")):
            change = pair[0][metric] - pair[1][metric]
            known = _over_finite(change) | {"p": p_value(over_seeds(change))}
            known.pop("sd")
            numbers.append({"model": name, "metric": metric, **known})
            row[name] = _trusted(known, metric, results.profile.seeds, signed=True)
    notes = (_who(results) + f" Temperature T (1 with fewer than {FEWEST} images) and thresholds come from the validation split. Threshold: the "
             f"lowest confidence from which on the target is met there by at least {LEAST_KEPT} images; without one all are referred to a person. "
             "–: no image kept or referred, or age unknown.",
             "AURC: share of wrong answers among the surest, mean over all numbers of answers kept. Rows below Brier score: scaled probabilities. "
             "Student − plain network: paired, of the seeds that have both values. Both: probabilities for an image and for its mirror image averaged, as "
             "`sos predict` has it.", INFLATION)
    return Table("trust", "May one trust a single answer?", pd.DataFrame(numbers), _rows(shown, "metric"), notes)


def _over_finite(values: np.ndarray, metric: str = "") -> dict[str, float]:
    """Summary of (seeds, 1 + bootstrap) over the seeds that have a finite value, and how many have."""
    each = values[:, 0]
    return summarise(over_seeds(values), metric) | spread(each[np.isfinite(each)].tolist())


def _trusted(known: dict, metric: str, seeds: tuple[int, ...], signed: bool = False) -> str:
    if known and not np.isfinite(known["value"]):
        return "all referred" if metric.startswith("threshold") else "–"
    if known and metric.startswith(("temperature", "threshold")):  # fitted on other images: the interval of the held-out ones is none of theirs
        return f"{known['value']:.2f}" + (f", SD {known['sd']:.2f}" if np.isfinite(known["sd"]) else "") + few(known["seeds"], seeds)
    return written(known, metric, signed) + few(known.get("seeds", 0), seeds)


def by_difficulty(results: Results) -> Table:
    """Accuracy of the three models on fresh virtual patients, the same people at each difficulty, beside what the label lets anyone reach."""
    title, study = "Easier and harder patients", results.study
    if not difficulty.applies(study):
        why = "only for networks that learned from the profile's own virtual cohort, not for a cohort given by its manifest"
        return Table("difficulty", title, pd.DataFrame({"difficulty": []}), pd.DataFrame({"difficulty": [why]}))
    sampled = {role: {level: _tested(results, role, level) for level in study.profile.difficulties} for role in results.roles()}
    numbers, shown = [], {}
    for level in study.profile.difficulties:
        row = shown[f"{level:g}"] = {}
        for role, by_level in sampled.items():
            values, standard = by_level[level], by_level.get(1.0)
            known = summarise(values) if values is not None else {}
            row[ROLE_NAMES[role]] = written(known, "accuracy")
            change = {} if values is None or standard is None or level == 1 else summarise(values - standard) | {"p": p_value(values - standard)}
            numbers.append({"difficulty": level, "who": ROLE_NAMES[role], **known, **{f"against_1_{key}": value for key, value in change.items()}})
        people = difficulty.drawn(study, level)
        top = ceiling(people, results.profile.bootstrap) if people else pd.DataFrame()
        for name, rows in (("true state", top[:1]), ("one reader", top[1:])):  # rows: the truth, then each reader
            known = {key: rows[f"accuracy{end}"].mean() for key, end in (("value", ""), ("low", "_low"), ("high", "_high")) if len(rows)}
            row[name] = written(known, "accuracy")
            numbers.append({"difficulty": level, "who": name, **known})
    notes = (f"Accuracy, % (95 % bootstrap interval over patients, {results.profile.bootstrap:,} resamples) of the networks trained at "
             f"difficulty 1, on {study.profile.difficulty_patients} fresh virtual patients, the same people at each difficulty; mean over seeds "
             "where there are several.",
             "Difficulty scales the noise of readers and scanner and takes contrast from the joint. True state: the joint's state read without "
             "noise, against the label. One reader: against the other two where these agree, mean over the readers and of the ends of their "
             "intervals.")
    return Table("difficulty", title, pd.DataFrame(numbers), _rows(shown, "difficulty"), notes)


def _tested(results: Results, role: str, level: float) -> np.ndarray | None:
    """(1 + bootstrap,) accuracy at a difficulty, mean over the finished seeds; None where there is none or one was not tested there."""
    tables = [(run, difficulty.predictions(results.study, run, level)) for run in results.role(role).values()]
    if not tables or any(table is None for _, table in tables):
        return None
    return np.mean([results.accuracy_at(level, run, table) for run, table in tables], 0)


def difficulty_findings(table: Table) -> list[str]:
    """What becomes of each model's accuracy at the easiest and the hardest difficulty, paired with difficulty 1, a sentence each."""
    said = []
    tested = table.data.dropna(subset=["against_1_p"]) if "against_1_p" in table.data else pd.DataFrame()
    for row in tested[tested["difficulty"].isin(tested["difficulty"].agg(["min", "max"]))].to_dict("records") if len(tested) else ():
        known = {key: row[f"against_1_{key}"] for key in ("value", "low", "high", "p")}
        said.append(f"Accuracy of the {row['who']} at difficulty {row['difficulty']:g} against 1: {written(known, 'accuracy', signed=True)}, in "
                    "percentage points.")
    return said or ["Easier and harder patients: " + (NOT_YET if len(table.data) else table.shown["difficulty"].iloc[0]) + "."]


def cohort(results: Results) -> Table:
    """Who is in the cohort, stage by stage."""
    title = "The cohort"
    if not has_cohort(results.study):
        return Table("cohort", title, pd.DataFrame({"stage": []}), pd.DataFrame({"stage": [NOT_YET]}))
    known = results.study.cohort
    parts = {f"{stage.label} {stage.name}": known.table[known.table["stage"] == stage.label] for stage in known.scheme.stages}
    parts["all"] = known.table
    numbers = []
    for name, part in parts.items():
        people, age_y = part.drop_duplicates("patient_id"), part["age_y"]
        numbers.append({"stage": name, "images": len(part), "patients": len(people), "female": int((people["sex"] == "F").sum()),
                        "male": int((people["sex"] == "M").sum()), "age_mean_y": age_y.mean(), "age_sd_y": age_y.std(),
                        "age_min_y": age_y.min(), "age_max_y": age_y.max(),
                        **{split: int((part["split"] == split).sum()) for split in ("train", "valid", "test")}})
    shown = pd.DataFrame([{"stage": row["stage"], "images": row["images"], "patients": row["patients"],
                           "female : male": f"{row['female']} : {row['male']}",
                           "age, years: mean ± SD": _known(f"{row['age_mean_y']:.1f} ± {row['age_sd_y']:.1f}"),
                           "age, range": _known(f"{row['age_min_y']:.1f} to {row['age_max_y']:.1f}"),
                           "training : validation : held out": f"{row['train']} : {row['valid']} : {row['test']}"} for row in numbers])
    note = f"{known.table['patient_id'].nunique()} {known.label}; splits by patient."
    return Table("cohort", title, pd.DataFrame(numbers), shown, (note,))


def _known(text: str) -> str:
    """Numbers as text, of which one that is not known is a dash, as of a stage that nobody or one person has."""
    return "–" if text.startswith("nan") else text.replace(" ± nan", "")


def machine(results: Results) -> Table:
    """Each finished run of the profile's plan, once, with its training time and the machine that it ran on."""
    profile = results.profile
    named = {ROLE_NAMES[role]: runs for role, runs in results.roles().items()}
    named |= {name: results.of(configs) for name, configs in profile.competitors().items()}
    varied = {f"{kind}: {name}": configs for kind, each in profile.ablations().items() for name, configs in each.rows.items()}
    for name, configs in (varied | {f"network: {name}": configs for name, configs in profile.networks().items()}).items():
        taught = [profile.teacher_of(config) for config in configs if config.role in TAUGHT_ROLES]
        named |= {name: results.of(configs), f"{name}, its teacher": results.of(taught)}
    named["leaking teacher"] = results.of([profile.run("teacher").with_(leak=True)])
    rows = {}
    for model, runs in named.items():
        for seed, run in runs.items():
            known = {"model": model, "seed": seed, "backbone": run.config.backbone, "epochs": run.config.epochs, **run.environment}
            rows.setdefault(run.name, {"run": run.name, **known})  # some competitors and rows of the ablations are main runs
    numbers = list(rows.values())
    title = "Training time and machine of each run"
    if not numbers:
        return Table("machine", title, pd.DataFrame({"run": []}), pd.DataFrame({"run": [NOT_YET]}))
    shown = pd.DataFrame([{"model": row["model"], "seed": row["seed"], "backbone": row["backbone"], "epochs": row["epochs"],
                           "training, s": f"{row['seconds']:.0f}", "precision": row["precision"],
                           "machine": machine_said(row), "run": row["run"]}
                          for row in numbers])
    return Table("machine", title, pd.DataFrame(numbers), shown, ("Versions of the software stand in the CSV file.",))


TABLES = (headline, comparisons, competitors, localisation, mirror, trust, ablation, effects, networks, seeds, choices, by_difficulty, cohort, machine)


def findings(results: Results) -> list[str]:
    """What the main runs say and do not say, from paired differences, a sentence each; that nothing was run where that is so."""
    groups, said = results.roles(), []
    asked = (("accuracy", "student", "baseline"), ("accuracy", "student", "teacher"), ("accuracy", "zoom", "student"), ("accuracy", "zoom", "teacher"),
             ("pointing", "student", "baseline"), ("pointing", "zoom", "student"))
    for metric, a, b in asked:
        known = results.contrast(metric, np.subtract, groups[a], groups[b])
        if known:
            way = "higher than" if known["value"] > 0 else "lower than"
            way = way if known["p"] < SIGNIFICANT else "not significantly different from"
            name = METRIC_NAMES[metric].split(",")[0].capitalize()
            said.append(f"{name} of the {ROLE_NAMES[a]} is {way} that of the {ROLE_NAMES[b]}: {written(known, metric, signed=True)}, "
                        "in percentage points.")
    gaps = {model: results.contrast("accuracy", closed, groups[model], groups["baseline"], groups["teacher"]) for model in STUDENTS}
    for model, gap in gaps.items():
        gap.pop("p", None)
        if gap and not np.isnan(gap["value"]):
            said.append(f"Gap closed in accuracy by the {ROLE_NAMES[model]}: {written(gap, 'gap')}.")
    if any(gap and np.isnan(gap["value"]) for gap in gaps.values()):
        said.append("There is no gap to close: the teacher is not more accurate than the plain network.")
    return said or [f"The models are {NOT_YET}."]


def write_tables(results: Results) -> list[Path]:
    """Write every table of a study into `runs/<profile>/tables/`, those of the ablations that the profile trains among them; cells without a
    run say "not yet run". Returns the paths."""
    made = [make(results) for make in TABLES] + [ablation(results, name) for name in results.profile.ablations() if name != "terms"]
    return [path for table in made for path in table.save(results.study.folder / "tables")]


def publish(profile: str) -> list[Path]:
    """Copy figures (png), tables (csv, md) and a record of the machines from `runs/<profile>/` to `figures/<profile>/`, and show in the README those
    tables that it has a place for: `<!-- profile/table -->`.

    What was published there before goes. Returns the new paths. Raises ConfigError for a profile whose results are not published,
    RunError where there is nothing to publish.
    """
    if profile not in PUBLISHED:
        raise ConfigError(f"results of '{get_profile(profile).name}' are not published; only those of {', '.join(PUBLISHED)}")
    source, target = runs_dir(profile), home() / "figures" / profile
    files = sorted([*(source / "figures").glob("*.png"), *(source / "tables").glob("*.csv"), *(source / "tables").glob("*.md")])
    if not files:
        raise RunError(f"{source}: no figures or tables to publish; run ./run_all.sh --profile {profile} first")
    part = target.with_name(f".part.{profile}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, part / file.name)
    (part / "machine.json").write_text(json.dumps(machine_summary(Results(Study(profile))), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    note_result(target)
    part.rename(target)
    for table in target.glob("*.md"):
        show_in_readme(f"{profile}/{table.stem}", table.read_text(encoding="utf-8"))
    show_in_readme("trainings", trainings().markdown())
    return sorted(target.iterdir())


def trainings() -> Table:
    """What training the published profiles took, a row each, from the record of the machines beside its results."""
    rows = []
    for profile in PUBLISHED:
        path = home() / "figures" / profile / "machine.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        where = dict.fromkeys(f"{machine_said(one)}, {one['precision']}" for one in known.get("machines", ()))
        rows.append({"profile": profile, "runs": known.get("runs"), "seconds": known.get("training_seconds"), "machine": "; ".join(where)})
    shown = pd.DataFrame([{"profile": f"`{row['profile']}`", "runs": row["runs"] or NOT_YET,
                           "minutes": f"{row['seconds'] / 60:.0f}" if row["runs"] else NOT_YET, "on": row["machine"] or NOT_YET} for row in rows])
    note = "Minutes: all runs, one after the other. Two cores train two at once."
    return Table("trainings", "Training of the profiles", pd.DataFrame(rows), shown, (note,))


def machine_summary(results: Results) -> dict:
    """What results were made with: the profile, code and data by their hashes, each machine, number and training time of the runs."""
    names = dict.fromkeys(machine(results).data["run"])
    runs = [Run(results.study.folder / "models" / name) for name in names]
    machines = [{key: value for key, value in run.environment.items() if key != "seconds"} for run in runs]
    return {"profile": results.profile.resolved(), "code": training_code(), "data": runs[0].record["data"] if runs else None,
            "machines": [known for i, known in enumerate(machines) if known not in machines[:i]], "runs": len(runs),
            "training_seconds": round(sum(run.environment["seconds"] for run in runs), 1)}


def _turned(shown: dict[str, dict[str, str]]) -> pd.DataFrame:
    """One column a metric, one row a comparison: there are more of these than a page is wide."""
    return pd.DataFrame(shown).fillna("").rename_axis("comparison").reset_index()
