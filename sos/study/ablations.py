"""Tables of what was varied: the three terms, every other group of ablations, seeds, and the page of all open choices."""

from inspect import signature
from statistics import mode

import numpy as np
import pandas as pd

from ..cohort.views import training_rows
from ..choices import CHOICES, GROUPS, Ablation, Group
from ..config import MODELS, Profile, RunConfig
from ..method.cam import unit_mass
from .grid import has_cohort
from .metrics import summarise
from .results import (ATTENTION, METRIC_NAMES, NOT_YET, ROLE_NAMES, SAID, SIGNIFICANT, TESTED, Results, Table, adjust, chance, closed, columns, few,
                      holm, p_value, rows, spread, summary_in, verdict, who, written)
from .runs import Run
from .training import CLIP, WARM_UP

FULL = "L_cls + L_dist + L_attn"  # the row of the terms that is the whole method
COMPARED = ("accuracy", "pointing")  # compared with the reference
OF_THE_LOOKS = ("frame_px", "lr", "batch_size", "rotate_deg", "zoom", "shift", "flip")  # what else may differ between one look and two


def design(profile: Profile) -> Table:
    """Every group, what it asks and varies, and how many rows and runs of it the profile trains."""
    varied, numbers = profile.ablations(), []
    for name, group in GROUPS.items():
        configs = list(varied[name].rows.values()) if name in varied else []
        numbers.append({"group": name, "question": group.question, "varied": ", ".join(group.settings), "in the": ", ".join(group.roles),
                        f"rows in {profile.name}": len(configs), "runs": sum(map(len, configs))})
    data = pd.DataFrame(numbers)
    return Table("design", "What the ablations vary", data, data, ("Main runs are counted in each group whose reference they are.",))


def ablation(results: Results, name: str = "terms") -> Table:
    """The rows of one of GROUPS, each against its reference; p values adjusted by Holm's method within the group.

    Where the group varies the plain network too, a student's row has the gap that it closes between the plain network and the teacher of the
    same settings.
    """
    group, varied = GROUPS[name], results.profile.ablations().get(name)
    called, title = "ablation" if name == "terms" else f"ablation_{name}", f"Ablation of {group.title}"
    if varied is None:
        return Table(called, title, pd.DataFrame({"setting": []}), pd.DataFrame({"setting": [NOT_YET]}), (group.question,))
    groups = {row: results.of(configs) for row, configs in varied.rows.items()}
    numbers = []
    for row, runs in groups.items():
        config, reference = varied.rows[row][0], varied.reference[row]
        known = {"setting": row, "role": config.role, "reference": reference, **_settings(config, group), "seeds": len(runs)}
        if name == "label_share" and has_cohort(results.study):
            known["training_patients"] = _training_patients(results, varied.rows[row])
        for metric in ("accuracy", "kappa", "pointing", "energy"):
            known |= columns(metric, results.summary(runs, metric) if runs and _has(config, metric) else {})
        for metric in COMPARED:
            tested = row != reference and _has(config, metric)
            change = results.contrast(metric, np.subtract, runs, groups[reference]) if tested else {}
            known |= columns(f"{metric}_difference", change, TESTED)
        if "baseline" in group.roles:
            known |= columns("gap", _gap(results, varied, row) if config.role == "student" else {})
        numbers.append(known)
    data = pd.DataFrame(numbers)
    for metric in COMPARED:
        adjust(data, f"{metric}_difference")
    shown = pd.DataFrame([_shown(row, name, results.profile.student, results.profile.ablation_seeds) for row in data.to_dict("records")])
    return Table(called, title, data, shown, _notes(results, name, data))


def _settings(config: RunConfig, group: Group) -> dict:
    return {setting: getattr(config, setting) for setting in group.settings}


def _has(config: RunConfig, metric: str) -> bool:
    """A teacher is shown the place, so it is not asked where it looks."""
    return config.role != "teacher" or metric not in ATTENTION


def _training_patients(results: Results, configs: list[RunConfig]) -> float:
    """How many patients each of these learned from, mean over seeds."""
    cohort = results.study.cohort
    return float(np.mean([cohort.table.loc[training_rows(cohort, config.label_share, config.seed), "patient_id"].nunique() for config in configs]))


def _gap(results: Results, varied: Ablation, row: str) -> dict[str, float]:
    """Gap closed in accuracy by a student's row, between the plain network and the teacher of the same settings."""
    students, plain = varied.rows[row], next(configs for configs in varied.rows.values() if configs[0].role == "baseline"
                                             and _settings(configs[0], varied.group) == _settings(varied.rows[row][0], varied.group))
    teachers = [results.profile.teacher_of(config) for config in students]
    known = results.contrast("accuracy", closed, *map(results.of, (students, plain, teachers)))
    known.pop("p", None)
    return known


def _shown(row: dict, name: str, student: RunConfig, seeds: tuple[int, ...]) -> dict:
    full, reference = name == "terms", row["setting"] == row["reference"]
    other = "the full method" if full else "the reference"

    def text(metric):
        return written(summary_in(row, metric) if row["seeds"] else {}, metric)

    def against(metric):
        return "reference" if reference else verdict(row[f"{metric}_difference_value"], row[f"{metric}_difference_p_holm"])

    setting = row["setting"]
    if reference:
        setting += f", T = {student.temperature:g} (full method)" if full else " (reference)"
    setting += few(row["seeds"], seeds)
    told = {"setting": setting, METRIC_NAMES["accuracy"]: text("accuracy"), f"accuracy against {other}": against("accuracy"),
            METRIC_NAMES["kappa"]: text("kappa")}
    looked = row["role"] != "teacher"
    told |= {METRIC_NAMES["pointing"]: text("pointing") if looked else "", f"pointing against {other}": against("pointing") if looked else ""}
    if "gap_value" in row:
        gap, no_gap = summary_in(row, "gap"), "no gap" if row["seeds"] else NOT_YET
        told["gap closed"] = "" if row["role"] != "student" else written(gap, "gap") if np.isfinite(gap["value"]) else no_gap
    return told


def _notes(results: Results, name: str, data: pd.DataFrame) -> tuple[str, ...]:
    profile, varied = results.profile, results.profile.ablations()[name]
    tests = int(data["accuracy_difference_p"].notna().sum())
    against = f"the full method, {FULL}" if name == "terms" else "the profile's own setting of the same network (reference)"
    notes = [who(results, profile.ablation_seeds) + f" Epochs of training {_epochs({row: configs[0] for row, configs in varied.rows.items()})}.",
             f"Differences are to {against}, in percentage points. p: paired bootstrap, adjusted by Holm's method for the "
             f"comparisons in the column ({tests} of accuracy); not significant where p is not below {SIGNIFICANT}."]
    if name == "terms":
        notes[1] += " The subset without any term would be no training."
    if name == "two_looks" and "one look" in varied.rows:
        one, two = (varied.rows[row][0] for row in ("one look", "two looks"))
        own = [f"{setting} {getattr(one, setting):g} ({getattr(two, setting):g})" for setting in OF_THE_LOOKS
               if getattr(one, setting) != getattr(two, setting)]
        notes.append("One look is the distilled student with its own settings (in brackets those of two looks): " + ", ".join(own) + ".")
    notes += chance(profile.ablation_seeds)
    if "gap_value" in data:
        notes.append("Gap closed = (student − plain) / (teacher − plain), in accuracy, all of the row's own settings; no gap: the "
                     "teacher is not better than the plain network.")
    if name == "label_share":
        notes.append("Patients are drawn anew for each seed, by stage; those of a smaller share are among those of a larger one. Each image is seen "
                     "the more often, so that all rows take as many steps. Validation patients keep their labels.")
    return tuple(notes)


def _epochs(rows: dict[str, RunConfig]) -> str:
    """How long the rows of a group are trained: of all or of each role alike, or of the most, and then of those that differ."""
    of_role = {config.role: config.epochs for config in rows.values()}
    if len(set(of_role.values())) > 1 and all(config.epochs == of_role[config.role] for config in rows.values()):
        return "in every row: " + ", ".join(f"{SAID[role]} {n}" for role, n in of_role.items())
    most = mode(config.epochs for config in rows.values())
    others = [f"{row} {config.epochs}" for row, config in rows.items() if config.epochs != most]
    return f"in every row: {most}" + (f", but {'; '.join(others)}" if others else "")


def ablation_findings(table: Table) -> list[str]:
    """Which rows of an ablation differ from their reference and which do not, a sentence for each metric and kind."""
    said, other = [], "the full method" if table.name == "ablation" else "the reference"
    for metric in COMPARED if "role" in table.data else ():
        tested = table.data[table.data[f"{metric}_difference_p_holm"].notna()]
        sure, better = tested[f"{metric}_difference_p_holm"] < SIGNIFICANT, tested[f"{metric}_difference_value"] > 0
        kinds = {"significantly lower than": tested[sure & ~better], "significantly higher than": tested[sure & better],
                 "not significantly different from": tested[~sure]}
        for kind, found in kinds.items():
            if len(found):
                name = METRIC_NAMES[metric].split(",")[0].capitalize()
                said.append(f"{name} {kind} that of {other}: {'; '.join(found['setting'])}.")
    return said or [f"{table.title}: {NOT_YET}."]


def effects(results: Results) -> Table:
    """What each term adds, averaged over the subsets of the other terms that it can be added to."""
    groups = {frozenset(name.split(" + ")): results.of(configs) for name, configs in results.profile.ablations()["terms"].rows.items()}
    numbers = []
    for term in FULL.split(" + "):
        pairs = [(rest | {term}, rest) for rest in groups if term not in rest]
        if not pairs:  # a term that every row has
            continue
        for metric in ("accuracy", "kappa", "pointing"):
            known = results.contrast(metric, _mean_gain, *(groups[subset] for pair in pairs for subset in pair))
            numbers.append({"term": term, "metric": metric, "comparisons": len(pairs), **known})
    data = pd.DataFrame(numbers)
    if "p" not in data:
        data["p"] = np.nan
    for metric in data["metric"].unique():
        tested = data.loc[data["metric"] == metric, "p"].dropna()
        data.loc[tested.index, "p_holm"] = holm(tested.tolist())
    shown = {term: {} for term in data["term"].unique()}
    for row in data.to_dict("records"):
        known = {key: row[key] for key in ("value", "low", "high", "sd")} | {"p": row["p_holm"]} if pd.notna(row["p"]) else {}
        shown[row["term"]][METRIC_NAMES[row["metric"]]] = written(known, row["metric"], signed=True)
    which = "but the empty one" if results.profile.without_labels else "that hold L_cls"
    notes = (who(results, results.profile.ablation_seeds), "Mean of the differences with and without the term, over all subsets of the other terms "
             f"{which}; p adjusted by Holm's method for {len(shown)} terms.", *chance(results.profile.ablation_seeds))
    return Table("effects", "What each term adds", data, rows(shown, "term"), notes)


def _mean_gain(*values):
    """Mean of the differences of (with, without, with, without, …)."""
    return np.mean([with_it - without for with_it, without in zip(values[::2], values[1::2], strict=True)], 0)


def networks(results: Results) -> Table:
    """The models on other backbones and with progressive training, each against the main network of its role."""
    title, configs = "Other networks under the same protocol", results.profile.networks()
    if not configs:
        return Table("networks", title, pd.DataFrame({"network": []}), pd.DataFrame({"network": [NOT_YET]}))
    groups = {name: results.of(each) for name, each in configs.items()}
    main = {role: name for name, each in reversed(configs.items()) if (role := each[0].role) and each[0] == results.profile.run(role, each[0].seed)}
    numbers = []
    for name, runs in groups.items():
        config = configs[name][0]
        row = {"network": name, "role": config.role, "reference": main[config.role], "seeds": len(runs)}
        for metric in ("accuracy", "kappa", "pointing"):
            row |= columns(metric, results.summary(runs, metric) if runs and _has(config, metric) else {})
        change = results.contrast("accuracy", np.subtract, runs, groups[row["reference"]]) if name != row["reference"] else {}
        numbers.append(row | columns("difference", change, TESTED))
    data = pd.DataFrame(numbers)
    tests = adjust(data, "difference")
    shown = []
    for row in data.to_dict("records"):
        told = {metric: written(summary_in(row, metric) if row["seeds"] else {}, metric) for metric in ("accuracy", "kappa", "pointing")
                if _has(configs[row["network"]][0], metric)}
        against = "reference" if row["network"] == row["reference"] else verdict(row["difference_value"], row["difference_p_holm"])
        shown.append({"network": row["network"] + few(row["seeds"], results.profile.network_seeds), METRIC_NAMES["accuracy"]: told["accuracy"],
                      "accuracy against the main network": against,
                      METRIC_NAMES["kappa"]: told["kappa"], METRIC_NAMES["pointing"]: told.get("pointing", "")})
    notes = (who(results, results.profile.network_seeds), "Differences in percentage points; p: paired bootstrap, adjusted by Holm's method for "
             f"{tests} comparisons.", *chance(results.profile.network_seeds))
    return Table("networks", title, data, pd.DataFrame(shown), notes)


# --- seeds -------------------------------------------------------------------------------------------------------------------
def seeds(results: Results) -> Table:
    """Accuracy of the main runs: the mean over seeds, and what each seed alone would have said, with the paired differences between the models."""
    groups = results.roles()
    asked = {ROLE_NAMES[role]: _each_seed(results, lambda a: a, groups[role]) for role in MODELS}
    for a, b in (("student", "baseline"), ("zoom", "student"), ("zoom", "teacher"), ("teacher", "student")):
        asked[f"{SAID[a]} − {SAID[b]}"] = _each_seed(results, np.subtract, groups[a], groups[b])
    numbers, shown = [], {}
    for name, each in asked.items():
        signed = "−" in name
        if not each:
            numbers.append({"who": name, "seeds": 0})
            shown[name] = dict.fromkeys(("mean over seeds", "SD over seeds", "lowest seed alone", "highest seed alone", "significant alone"), NOT_YET)
            continue
        whole, alone = np.mean(list(each.values()), 0), {seed: summarise(values) for seed, values in each.items()}
        known, sd = summarise(whole), spread([one["value"] for one in alone.values()])["sd"]
        low, high = (pick(alone.values(), key=lambda one: one["value"]) for pick in (min, max))
        sure = sum(p_value(values) < SIGNIFICANT for values in each.values())
        numbers.append({"who": name, "seeds": len(each), **known, "sd": sd, **{f"lowest_{key}": value for key, value in low.items()},
                        **{f"highest_{key}": value for key, value in high.items()}, **({"significant": sure} if signed else {})})
        shown[name + few(len(each), results.profile.seeds)] = {
            "mean over seeds": written(known, "accuracy", signed), "SD over seeds": f"{100 * sd:.1f}" if len(each) > 1 else "one seed",
            "lowest seed alone": written(low, "accuracy", signed), "highest seed alone": written(high, "accuracy", signed),
            "significant alone": f"{sure} of {len(each)}" if signed else ""}
    notes = (who(results), "Accuracy, %; differences in percentage points, paired, of networks of the same seed. SD over seeds is what training by "
             "chance adds; the interval is what the choice of patients adds, with the networks as they are. Significant alone: seeds whose own "
             f"difference has a p below {SIGNIFICANT}.")
    return Table("seeds", "What a single seed would have said", pd.DataFrame(numbers), rows(shown, "accuracy, %"), notes)


def _each_seed(results: Results, function, *groups: dict[int, Run]) -> dict[int, np.ndarray]:
    """seed → (1 + bootstrap,) of a function of the accuracies of the runs of that seed; only seeds that all groups have."""
    return {seed: function(*(results.sampled(group[seed])["accuracy"] for group in groups)) for seed in groups[0]
            if all(seed in group for group in groups)}


# --- open choices ------------------------------------------------------------------------------------------------------------
def choices(results: Results) -> Table:
    """Every choice that the paper's public record leaves open: our value, the reason, and what the ablation that varies it said."""
    tables = {name: ablation(results, name) for name in {name for choice in CHOICES.values() for name in choice.groups}}
    numbers = []
    for setting, choice in CHOICES.items():
        said = "; ".join(f"{GROUPS[name].title}: {finding(tables[name])}" for name in choice.groups) or f"not varied: {choice.fixed}"
        numbers.append({"setting": setting, "value": _value(results.profile, setting), "whose": choice.whose, "reason": choice.reason,
                        "groups": " ".join(choice.groups), "accuracy when varied": said})
    data = pd.DataFrame(numbers)
    notes = (who(results, results.profile.ablation_seeds, sd=False), "A row that an ablation varies says how many of the other settings differ (of the "
             "student, where other networks are varied too) significantly in accuracy, and the largest difference, in percentage points, p adjusted by "
             "Holm's method within the ablation.",
             *chance(results.profile.ablation_seeds))
    return Table("choices", "What the paper's public record leaves open", data, data.drop(columns="groups"), notes)


def finding(table: Table) -> str:
    """What an ablation says of the student's accuracy: how many of its settings differ from the reference, and the largest difference."""
    if "role" not in table.data:
        return NOT_YET
    tested = table.data[table.data["accuracy_difference_p_holm"].notna()]
    if len(GROUPS.get(table.name.removeprefix("ablation_"), GROUPS["terms"]).roles) > 1:  # where it varies other networks too
        tested = tested[tested["role"] == "student"]
    if tested.empty:
        return NOT_YET
    sure = tested["accuracy_difference_p_holm"] < SIGNIFICANT
    largest = tested.loc[(tested[sure] if sure.any() else tested)["accuracy_difference_value"].abs().idxmax()]
    known = {key: largest[f"accuracy_difference_{key}"] for key in ("value", "low", "high")} | {"p": largest["accuracy_difference_p_holm"]}
    how_many = f"{sure.sum()} of {len(tested)} significant" if sure.any() else "not significant"
    return f"{how_many}; {largest['setting']}: {written(known, 'accuracy', signed=True)}"


def _value(profile: Profile, setting: str) -> str:
    """A setting's value in a profile: the student's, and where they differ those of the networks that use it."""
    beyond = {"looks": f"{profile.student.looks}; zoom {profile.zoom.looks}", "role": ", ".join(MODELS), "seed": ", ".join(map(str, profile.seeds)), 
              "optimiser": f"AdamW, one cycle, {100 * WARM_UP:g} % warm-up, gradients clipped at {CLIP:g}",
              "cam_score": "the logit less the mean of all", "map_floor": f"{signature(unit_mass).parameters['floor'].default:g} of a map's mean",
              "parts_of_l_dist": "KL of spatial logits and of image logits, with equal weight"}
    if setting in beyond and (setting in ("role", "seed", "looks") or not hasattr(profile.student, setting)):
        return beyond[setting]
    if not hasattr(profile.student, setting):
        return str(getattr(profile, setting))
    values = {role: getattr(profile, role).resolved().get(setting) for role in ("student", "baseline", "teacher", "zoom", "detector")}
    values = {role: f"{value:g}" if isinstance(value, float) else str(value) or "the profile's" for role, value in values.items()
              if value is not None}
    first = next(iter(values.values()), "not used by the main runs")
    return "; ".join([first, *(f"{role} {value}" for role, value in values.items() if value != first)])
