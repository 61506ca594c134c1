"""Figures of the method and its results: shared scene, three terms, models, the main figure; and all figures by name."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..cohort.cameras import MEAN, STD
from ..cohort.views import Views
from ..method.cam import unit_mass
from ..method.distill import TERMS
from . import attention, cohort_figures, difficulty, drawings, figures, trust, zoom_figures
from .ablation_figures import ablation_figures
from .ablations import ablation
from .attention import look, still_pictures, windows
from .figures import (COLUMN, CONTROL_COLOUR, GREY, HEAT, PAGE, ROLE_COLOURS, ROLE_MARKERS, SEX_COLOURS, SEX_NAMES, caption, draw_box,
                      example_rows, journal, letters, overlay, people, tight)
from .metrics import summarise
from .results import METRIC_NAMES, NOT_YET, ROLE_NAMES, STUDENTS, Results, Table, closed, few, over_seeds, written
from .runs import Run
from .tables import by_difficulty, controls
from .training import Study, frame_boxes

MODELS = ("baseline", "student", "zoom", "teacher")  # in the order of what they are given
SHORT = {"baseline": "plain", "student": "student", "zoom": "two-\nlook", "teacher": "teacher"}
FULL_SIDE = (0, 1, 1, 0)  # extent of a square picture in frame coordinates
WRONG = "#F5C06B"  # amber, behind a wrong decision


# --- the method --------------------------------------------------------------------------------------------------------------
@journal
def shared_scene(study: Study, teacher: Run, seed: int = 0) -> Figure:
    """One scene, two cameras: a training image of each stage as stored, then what the student and the teacher see of it under one
    random transform. The window (blue) is the same place in both."""
    cohort, store = study.cohort, study.store
    rows = np.array([row for label in cohort.scheme.labels for row in example_rows(cohort, label, 1, "train")])
    window = dict(window_px=teacher.config.window_px, window_scale=teacher.config.window_scale)
    views = Views(store, study.profile.student, training=True, **window)
    views.generator.manual_seed(seed)
    frame, crop, window, _ = views(rows)
    stored, boxes = still_pictures(store, rows, 320).numpy(), frame_boxes(store, rows)
    fig, axes = plt.subplots(3, len(rows), figsize=(PAGE, 3 * PAGE / len(rows) + 0.55), squeeze=False)
    tight(fig)
    for i, row in enumerate(rows):
        axes[0, i].imshow(stored[i], vmin=0, vmax=1, extent=FULL_SIDE)
        draw_box(axes[0, i], boxes[i])
        axes[1, i].imshow(_grey(frame[i, 0]), vmin=0, vmax=1, extent=FULL_SIDE)
        draw_box(axes[1, i], window[i], clip_on=True)
        axes[2, i].imshow(_grey(crop[i, 0]), vmin=0, vmax=1, extent=FULL_SIDE)
        axes[0, i].set_title(f"stage {cohort.table.loc[row, 'stage']}", loc="center")
        for ax in axes[:, i]:
            _bare(ax)
    for ax, text in zip(axes[:, 0], ("as stored, expert's box", "student's camera", "teacher's camera"), strict=True):
        ax.set_ylabel(text)
    caption(fig, f"One random scene for each patient, seen by two cameras; n = {people(cohort.virtual, len(rows))} in training")
    return fig


@journal
def softened(logits: torch.Tensor, temperatures: list[float]) -> Figure:
    """softmax(logits / T) of one image's logits (k,), a panel each temperature."""
    fig, axes = plt.subplots(1, len(temperatures), figsize=(PAGE, 1.7), sharey=True)
    for ax, temperature in zip(axes, temperatures, strict=True):
        share = torch.softmax(logits / temperature, 0).numpy()
        ax.bar(range(1, len(share) + 1), share, color=ROLE_COLOURS["teacher"], width=0.75)
        ax.set(title=f"T = {temperature:g}", xlabel="stage", xticks=range(1, len(share) + 1), ylim=(0, 1))
    axes[0].set_ylabel("probability")
    return fig


@journal
def aligned_window(plane: torch.Tensor, window: torch.Tensor, inside: torch.Tensor) -> Figure:
    """A map (h, w) of the frame with a window (4,) in [0, 1], and the values (g, g) sampled inside it, on one scale of colours."""
    fig, axes = plt.subplots(1, 2, figsize=(COLUMN * 1.4, COLUMN * 0.75))
    height, width = plane.shape
    scale = dict(vmin=float(plane.min()), vmax=float(plane.max()), cmap="Blues", interpolation="nearest")
    axes[0].imshow(plane.numpy(), extent=(0, width, height, 0), **scale)
    draw_box(axes[0], window * window.new_tensor([width, height, width, height]), edgecolor="black", linewidth=1.4)
    axes[0].set(title="map of the frame, and the window", xticks=[0, width], yticks=[0, height])
    axes[1].imshow(inside.numpy(), **scale)
    for (i, j), value in np.ndenumerate(inside.numpy()):
        axes[1].text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes[1].set(title="sampled inside the window", xticks=[], yticks=[])
    return fig


@journal
def attention_target(study: Study, row: int, window: torch.Tensor, teacher_cam: torch.Tensor, placed: torch.Tensor,
                     maps: dict[str, torch.Tensor]) -> Figure:
    """What L_attn compares for one image: the teacher's map in its window (h, w), the same put back into the frame, and other maps of
    the frame, all (h, w); each in the frame as a share of unit mass on one common scale."""
    cohort, picture = study.cohort, still_pictures(study.store, [row], 320)[0].numpy()
    fig, axes = plt.subplots(1, 3 + len(maps), figsize=(PAGE, PAGE / (3 + len(maps)) + 0.75))
    tight(fig)
    axes[0].imshow(picture, vmin=0, vmax=1, extent=FULL_SIDE)
    axes[1].imshow(still_pictures(study.store, [row], 320, window)[0].numpy(), vmin=0, vmax=1, extent=FULL_SIDE)
    overlay(axes[1], teacher_cam, 320, FULL_SIDE)
    mass = {"teacher's map,\nput back": placed, **maps}
    mass = {name: unit_mass(cam[None])[0].numpy() for name, cam in mass.items()}
    top = max(float(cam.max()) for cam in mass.values())
    for ax, cam in zip(axes[2:], mass.values(), strict=True):
        shown = ax.imshow(cam, cmap=HEAT, vmin=0, vmax=top, interpolation="nearest", extent=FULL_SIDE)
    for ax, name in zip(axes, ("image and window", "teacher's map\nin the window", *mass), strict=True):
        ax.set_title(name, loc="center")
        _bare(ax)
        if ax is not axes[1]:
            draw_box(ax, window[0])
    bar = fig.colorbar(shown, ax=axes[2:], orientation="horizontal", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("share of the map's mass in a cell")
    caption(fig, f"A held-out {'virtual patient' if cohort.virtual else 'patient'} of stage {cohort.table.loc[row, 'stage']}; n = 1")
    return fig


@journal
def loss_terms(runs: list[Run]) -> Figure:
    """The student's terms by epoch, each unweighted and on its own scale; several runs (seeds) as their mean and range."""
    histories, config = pd.concat([run.history for run in runs]), runs[0].config
    distance = {"kl": "KL"}.get(config.attn_distance, config.attn_distance)
    titles = {"L_cls": "cross-entropy", "L_attn": f"{distance} of Grad-CAM", "L_dist": f"KL of logits, T = {config.temperature:g}",
              "L_aim": "own window"}
    terms, colour = [*TERMS, *(["L_aim"] if config.looks == 2 else [])], ROLE_COLOURS["zoom" if config.looks == 2 else "student"]
    fig, axes = plt.subplots(1, len(terms), figsize=(PAGE, 2.2))
    for ax, name in zip(axes, terms, strict=True):
        by_epoch = histories.groupby("epoch")[name]
        ax.plot(by_epoch.mean(), color=colour, marker="o" if len(by_epoch) <= 15 else None)
        if len(runs) > 1:
            ax.fill_between(by_epoch.min().index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.2, lw=0)
        ax.set(title=f"{name}: {titles[name]}", xlabel="epoch", ylim=(0, 1.08 * max(by_epoch.max().max(), 1e-6)))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("mean over training images (nats)")
    letters(axes)
    caption(fig, f"The terms in training, unweighted, {len(runs)} {'seed' if len(runs) == 1 else 'seeds'}; weights "
                 + ", ".join(f"{getattr(config, name.replace('L', 'w')):g}" for name in terms))
    return fig


# --- results -----------------------------------------------------------------------------------------------------------------
@journal
def model_bars(results: Results, metrics: tuple[str, ...] = ("accuracy", "macro_f1", "kappa")) -> Figure:
    """The three models in some metrics, with 95 % intervals and a dot a seed, and the gap closed."""
    fig, axes = plt.subplots(1, len(metrics) + 1, figsize=(PAGE, 2.3), width_ratios=[*[1] * len(metrics), 1.15])
    for ax, metric in zip(axes, metrics, strict=False):
        _bars(ax, results, metric)
    _gap(axes[-1], results)
    letters(axes)
    caption(fig, f"Held-out images, 95 % intervals; {_tested(results)}")
    return fig


@journal
def difficulty_curve(study: Study, table: Table, labels: tuple[int, ...] = (2, 4), size_px: int = 320) -> Figure:
    """Accuracy of the three models and of the readers by difficulty, with 95 % intervals; below, the same patients' crops at each. table:
    `tables.by_difficulty`; labels: stages of the patients shown, each of median age in its stage, not chosen by result."""
    levels, data = study.profile.difficulties, table.data
    crops_high = len(labels) * PAGE / (len(levels) + 0.4)
    fig = plt.figure(figsize=(PAGE, 2.9 + crops_high))
    above, below = fig.subfigures(2, 1, height_ratios=[2.5, crops_high + 0.2])
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axis = above.subplots()
    for role in MODELS:
        rows = data[data["who"] == ROLE_NAMES[role]].reindex(columns=["difficulty", "value", "low", "high"]).dropna()
        value, low, high = (100 * rows[key] for key in ("value", "low", "high"))
        place = rows["difficulty"] + 0.012 * np.ptp(levels) * (MODELS.index(role) - 1.5)  # intervals beside each other
        axis.errorbar(place, value, [(value - low).clip(lower=0), (high - value).clip(lower=0)], fmt=f"{ROLE_MARKERS[role]}-",
                      color=ROLE_COLOURS[role], capsize=2.5, elinewidth=0.9,
                      label=ROLE_NAMES[role] if len(rows) else f"{ROLE_NAMES[role]}: not yet run")
    for who, style, name in (("true state", "--", "true state against the label"), ("one reader", ":", "one reader against the other two")):
        rows = data[data["who"] == who].reindex(columns=["difficulty", "value"]).dropna()
        axis.plot(rows["difficulty"], 100 * rows["value"], style, color="black", lw=1, label=name)
    half = 0.5 * np.ptp(levels) / max(1, len(levels) - 1)
    axis.set(xlabel="difficulty (1: as in training)", ylabel="accuracy (%)", ylim=(0, 103), xlim=(min(levels) - half, max(levels) + half))
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    pictures = below.subplots(len(labels), len(levels), squeeze=False)
    rows = None
    for column, level in enumerate(levels):
        cohort, store = difficulty.draw(study, level)
        rows = rows or [row for label in labels for row in example_rows(cohort, label, 1)]
        crops = still_pictures(store, rows, size_px, windows(store, rows)).numpy()
        for ax, crop in zip(pictures[:, column], crops, strict=True):
            ax.imshow(crop, vmin=0, vmax=1, extent=FULL_SIDE)
            _bare(ax)
        pictures[0, column].set_title(f"difficulty {level:g}", loc="center")
    for ax, row in zip(pictures[:, 0], rows, strict=True):
        ax.set_ylabel(f"true stage {cohort.table.loc[row, 'stage_true']}")
    letters([axis, pictures[0, 0]])
    caption(fig, f"Networks trained at difficulty 1, tested on n = {people(True, study.profile.difficulty_patients)} whom they have never "
                  "seen, the same people at each difficulty; 95 % intervals")
    return fig


@journal
def trust_panels(results: Results) -> Figure:
    """May one trust a single answer? The two-look student's confidence against its accuracy, before and after temperature scaling; how often the
    models are wrong among the answers that they are surest of, with the chosen thresholds; and its expected stage by age."""
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 3.3))
    students = list(results.role("zoom").values())
    _reliability(axes[0], students, results.profile.bootstrap)
    _risk_coverage(axes[1], results)
    _stage_by_age(axes[2], students, results.ages())
    for ax in axes if not students else ():
        ax.text(0.5, 0.5, NOT_YET, ha="center", va="center", color=GREY, transform=ax.transAxes)
    letters(axes)
    aims = " and ".join(f"{100 * aim:g} % ({mark})" for aim, mark in zip(trust.TARGETS, ("filled", "open"), strict=True))
    caption(fig, f"Held-out images, 95 % intervals; temperature, and thresholds (with bars) for {aims} right answers, from the validation split; "
                 f"{_tested(results)}")
    return fig


def _reliability(ax, runs: list[Run], bootstrap: int) -> None:
    """Accuracy by confidence of `runs` (seeds, all answers together) as they are and at their temperatures."""
    ax.plot([0, 1], [0, 1], ":", color=GREY, lw=0.8)
    scales = [f"{scale:.2f}" for scale in sorted(run.image_temperature for run in runs)]
    scale = " to ".join(dict.fromkeys(scales[:1] + scales[-1:]))
    for colour, marker, name in ((CONTROL_COLOUR, "o", "two-look student, as it is"), (ROLE_COLOURS["zoom"], "D", f"two-look student, scaled, T = {scale}")):
        told = [run.test if colour == CONTROL_COLOUR else trust.calibrated(run.test, run.image_temperature) for run in runs]
        if told:
            points = trust.reliability(pd.concat(told, ignore_index=True), bootstrap)
            away = points["accuracy"] - points["low"], points["high"] - points["accuracy"]
            ax.errorbar(points["confidence"], points["accuracy"], away, fmt=marker, color=colour, elinewidth=0.9, capsize=2, label=name)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (largest probability)", ylabel="right answers", title="is it as sure as it is right?")
    _percent(ax)
    _legend_below(ax)


def _risk_coverage(ax, results: Results, first: int = 10) -> None:
    """Wrong answers among the surest by the share kept (from `first` images on; mean over seeds), and each model at its threshold."""
    for role in MODELS:
        runs = results.role(role)
        first = min([first, *(len(run.test) for run in runs.values())])
        for order, style in (("confidence", "-"), ("ideal", "--"), ("random", ":")) if runs else ():
            risks = [trust.surest_first(run.test, run.image_temperature, order) for run in runs.values()]
            if order == "confidence" or role == "zoom":
                kept = np.arange(1, len(risks[0]) + 1) / len(risks[0])
                ax.plot(kept[first - 1:], np.mean(risks, 0)[first - 1:], style, color=ROLE_COLOURS[role], lw=1.3 if order == "confidence" else 0.8,
                        marker=ROLE_MARKERS[role] if order == "confidence" else None, ms=3.5, markevery=0.17,
                        label=ROLE_NAMES[role] if order == "confidence" else f"two-look student, {order} order")
        known = {name: over_seeds(values) for name, values in results.trusted(runs).items()}
        for aim, fill in zip(trust.TARGETS, (ROLE_COLOURS[role], "white"), strict=True):
            if not known or not np.isfinite(known[f"kept_{100 * aim:.0f}"][0]):
                continue
            coverage, right = summarise(known[f"coverage_{100 * aim:.0f}"]), summarise(known[f"kept_{100 * aim:.0f}"])
            ax.errorbar(coverage["value"], 1 - right["value"], [[right["high"] - right["value"]], [right["value"] - right["low"]]],
                        [[coverage["value"] - coverage["low"]], [coverage["high"] - coverage["value"]]], fmt=ROLE_MARKERS[role],
                        color=ROLE_COLOURS[role], ms=5, mfc=fill, mew=0.9, elinewidth=0.8, zorder=4)
    for aim, style in zip(trust.TARGETS, ("-", "--"), strict=True):
        ax.axhline(1 - aim, color="black", lw=0.6, ls=style)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="answers kept, the surest first", ylabel="wrong among those kept", title="does it know when it errs?")
    _percent(ax)
    _legend_below(ax)


def _stage_by_age(ax, runs: list[Run], ages: pd.DataFrame | None) -> None:
    """Expected stage (mean over seeds) of each held-out image by age and sex, and the label's mean by year of age as a line."""
    ax.set(xlabel="age (years)", ylabel="stage", title="does its stage follow age?")
    if not runs or ages is None:
        return
    table, labels = runs[0].test, runs[0].scheme.labels
    stage = np.mean([pd.Series(trust.expected_stage(run.test, labels, run.image_temperature), run.test["image"])[table["image"]]
                     for run in runs], 0)
    table = table.assign(expected=stage).join(ages, on="image").dropna(subset=["age_y", "sex"])
    for (sex, colour), marker, line in zip(SEX_COLOURS.items(), "o^", ("-", "--"), strict=True):
        part = table[table["sex"] == sex]
        ax.plot(part["age_y"], part["expected"], marker, color=colour, ms=3, mew=0, alpha=0.6, label=f"{SEX_NAMES[sex]}, n = {len(part)}")
        by_year = part.groupby(part["age_y"] // 1)["stage"].agg(["mean", "size"])
        by_year = by_year["mean"].where(by_year["size"] >= 3).dropna()
        ax.plot(by_year.index + 0.5, by_year, line, color=colour, lw=1.4)
    ax.plot([], [], color=GREY, lw=1.4, label="label's mean")
    ax.set(ylim=(labels[0] - 0.15, labels[-1] + 0.15), yticks=labels)
    _legend_below(ax)


def _legend_below(ax) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(-0.15, -0.27), borderaxespad=0, handlelength=1.8)


def _percent(ax) -> None:
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


@journal
def main_result(study: Study, results: Results, size_px: int = 320) -> Figure:
    """The result in one figure: held-out patients of four stages with what the teacher, the plain network and the student look at, and
    how the three do.

    The patients are those of median age in their stage, not chosen by their result; networks are of the first seed.
    """
    cohort, store = study.cohort, study.store
    labels = [cohort.scheme.labels[i] for i in np.unique(np.linspace(0, len(cohort.scheme) - 1, 4).round().astype(int))]
    rows = np.array([row for label in labels for row in example_rows(cohort, label, 1, "test")])
    runs = {role: next(iter(group.values())) for role, group in results.roles().items()}
    spots, boxes = windows(store, rows, runs["teacher"].config.window_scale), frame_boxes(store, rows)
    frames, crops = still_pictures(store, rows, size_px).numpy(), still_pictures(store, rows, size_px, spots).numpy()
    seen = {role: look(study, run, rows) for role, run in runs.items()}
    fig = plt.figure(figsize=(PAGE, 0.94 * len(rows) + 0.85))
    left, right = fig.subfigures(1, 2, width_ratios=[5.05, 2.15])
    columns = {None: "expert's box", "teacher": "crop teacher", "baseline": "plain network", "student": "distilled student",
               "zoom": "two-look student"}
    axes = left.subplots(len(rows), len(columns), squeeze=False)
    for j, (role, title) in enumerate(columns.items()):
        axes[0, j].set_title(title, loc="center", color=ROLE_COLOURS.get(role, "black"))
        for i, ax in enumerate(axes[:, j]):
            ax.imshow((crops if role == "teacher" else frames)[i], vmin=0, vmax=1, extent=FULL_SIDE)
            if role is not None:
                decision, cam = seen[role]
                overlay(ax, cam[i], size_px, FULL_SIDE)
                decided = cohort.scheme.labels[int(decision.logits[i].argmax())]
                shade = "white" if decided == cohort.table.loc[rows[i], "stage"] else WRONG
                ax.text(0.97, 0.03, f"{decided}", ha="right", va="top", fontsize=8, weight="bold",
                        bbox=dict(boxstyle="square,pad=0.15", fc=shade, ec="none"))
            if role != "teacher":
                draw_box(ax, boxes[i])
            _bare(ax)
    for i, row in enumerate(rows):
        axes[i, 0].set_ylabel(f"stage {cohort.table.loc[row, 'stage']}")
    axes[0, 0].set_title(f"$\\bf{{a}}$  {columns[None]}", loc="center")
    bars, pointing, gap = right.subplots(3, 1, height_ratios=[2, 2, 1])
    _bars(bars, results, "accuracy")
    _bars(pointing, results, "pointing", ("baseline", *STUDENTS), control="mean position")
    _gap(gap, results)
    titles = ("accuracy", "Grad-CAM's peak in the box", "gap closed by the students")
    for letter, ax, title in zip("bcd", (bars, pointing, gap), titles, strict=True):
        ax.set_title(f"$\\bf{{{letter}}}$  {title}")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    caption(fig, f"Grad-CAM (white line: half of its maximum) and decision (amber: wrong) on held-out images; bars with 95 % intervals; {_tested(results)}")
    return fig


def catalogue(study: Study, results: Results) -> dict[str, Callable[[], Figure]]:
    """Every published figure by the name of its file, as the function that draws it again from finished runs."""
    cohort, store = study.cohort, study.store
    groups = results.roles()
    first = {ROLE_NAMES[role]: next(iter(runs.values())) for role, runs in groups.items() if runs}
    teacher, plain = (first.get(ROLE_NAMES[role]) for role in ("teacher", "baseline"))
    plain_only = {ROLE_NAMES["baseline"]: plain}
    both = plain_only | {ROLE_NAMES[model]: first.get(ROLE_NAMES[model]) for model in STUDENTS}

    def located(runs):
        table = attention.localisation(study, runs)
        return figures.localisation_bars(attention.summary(table, study.profile.bootstrap), cohort.virtual)

    def distances():
        table = attention.localisation(study, plain_only)
        return figures.joint_distances(attention.joint_distances(study, teacher, table), cohort.virtual)

    drawn = {
        "fig1_ages": lambda: cohort_figures.ages(cohort),
        "fig2_images": lambda: cohort_figures.image_properties(cohort, store),
        "fig3_examples": lambda: cohort_figures.image_grid(cohort, store),
        "fig4_teacher_curves": lambda: figures.learning_curves({ROLE_NAMES["teacher"]: teacher}),
        "fig5_teacher_confusion": lambda: figures.confusion_matrix({ROLE_NAMES["teacher"]: teacher}),
        "fig6_teacher_errors": lambda: figures.error_gallery(study, teacher),
        "fig7_gradcam_panels": lambda: figures.cam_panels(study, teacher, plain_only),
        "fig8_localisation": lambda: located(plain_only),
        "fig9_joint_distance": distances,
        "fig10_shared_scene": lambda: shared_scene(study, teacher),
        "fig11_loss_terms": lambda: loss_terms(list(groups["student"].values())),
        "fig12_models": lambda: model_bars(results),
        "fig13_confusion": lambda: figures.confusion_matrix({ROLE_NAMES[role]: first[ROLE_NAMES[role]] for role in MODELS}),
        "fig14_student_gradcam": lambda: figures.cam_panels(study, teacher, both),
        "fig15_student_localisation": lambda: located(both),
        "fig21_two_looks": lambda: zoom_figures.two_looks(study, next(iter(groups["zoom"].values()))),
        "fig22_aiming": lambda: zoom_figures.aiming(study, list(groups["zoom"].values())),
        "fig20_trust": lambda: trust_panels(results),
        "fig23_drawing": drawings.anatomy,
        "fig24_method": drawings.method,
        "fig_main": lambda: main_result(study, results),
    }
    if cohort.virtual:
        drawn["fig19_anatomy"] = lambda: cohort_figures.anatomy_plate(cohort)
    for name in study.profile.ablations():
        drawn |= ablation_figures(name, lambda name=name: ablation(results, name))
    if difficulty.applies(study):

        def harder():
            difficulty.stage_all(results)  # found on disk after notebook 5
            return difficulty_curve(study, by_difficulty(results))

        drawn["fig18_difficulty"] = harder
    return drawn


def _bars(ax, results: Results, metric: str, roles: tuple[str, ...] = MODELS, control: str = "") -> None:
    """One bar a model with its interval, the value above it and a dot a seed; last, in grey, a control of the localisation."""
    percent, lowest = METRIC_NAMES[metric].endswith("%"), 0.0
    groups = {role: results.role(role) for role in roles}
    bars = [(SHORT[role], ROLE_COLOURS[role], results.summary(runs, metric) if runs else {}, runs) for role, runs in groups.items()]
    if control:
        known = controls(results)
        bars.append((control.replace(" ", "\n"), CONTROL_COLOUR, summarise(known[control][metric]) if known else {}, {}))
    for place, (_, colour, known, runs) in enumerate(bars):
        if not known:
            ax.text(place, 0.02, "not yet run", rotation=90, ha="center", fontsize=7, color=GREY)
            continue
        value, low, high = (known[key] for key in ("value", "low", "high"))
        lowest = min(lowest, low)
        ax.bar(place, value, 0.65, color=colour)
        ax.errorbar(place, value, [[max(0, value - low)], [max(0, high - value)]], color="black", lw=0.9, capsize=2.5)
        if len(runs) > 1:
            each = [run.metrics[metric]["value"] for run in runs.values()]
            ax.scatter(place + np.linspace(-0.2, 0.2, len(each)), each, s=5, color="white", edgecolor="black", lw=0.4, zorder=3)
        text = f"{100 * value:.1f}" if percent else f"{value:.2f}".replace("-", "−")
        ax.text(place, max(high, 0) + 0.02, text, ha="center", va="bottom", fontsize=7)
    ax.axhline(0, color="black", lw=0.6)
    ax.set_xticks(range(len(bars)), [name for name, *_ in bars])
    ax.tick_params(axis="x", length=0)
    ax.set(ylim=(1.1 * lowest, 1.12), title=METRIC_NAMES[metric].split(",")[0].replace("quadratic ", ""))
    ax.set_yticks([tick for tick in (-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1) if tick >= 1.1 * lowest])
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _gap(ax, results: Results) -> None:
    """Gap closed in accuracy by each student with its interval, on an axis from the plain network (0) to the teacher (1)."""
    ax.set(xlim=(-0.25, 1.25), ylim=(-1, 1), yticks=[], xticks=[0, 0.5, 1], title="gap closed")
    ax.set_xticklabels(["0: plain\nnetwork", "0.5\n", "1: crop\nteacher"])
    ax.spines["left"].set_visible(False)
    for edge, role in ((0, "baseline"), (1, "teacher")):
        ax.axvline(edge, color=ROLE_COLOURS[role], lw=1.2)
    for height, model in zip((0.1, -0.75), STUDENTS, strict=True):
        known = results.contrast("accuracy", closed, *(results.role(role) for role in (model, "baseline", "teacher")))
        if known and np.isnan(known["value"]):
            ax.text(0.5, 0, "no gap: the teacher\nis not better", ha="center", va="center", color=GREY, fontsize=7)
            break
        if not known:
            ax.text(0.5, height, "not yet run", ha="center", va="center", color=GREY, fontsize=7)
            continue
        known.pop("p")
        ax.plot(np.clip([known["low"], known["high"]], -0.25, 1.25), [height, height], color="black", lw=1.4, clip_on=True)
        ax.plot(np.clip(known["value"], -0.25, 1.25), height, ROLE_MARKERS[model], color=ROLE_COLOURS[model], ms=6, clip_on=False)
        text = written(known, "gap").split(", SD")[0]
        ax.text(0.5, height + 0.4, text, ha="center", va="center", fontsize=7, bbox=dict(fc="white", ec="none", pad=1))


def _tested(results: Results) -> str:
    groups, seeds = [runs for runs in results.roles().values() if runs], results.profile.seeds
    if not groups:
        return NOT_YET
    run, fewest = next(iter(groups[0].values())), min(map(len, groups))
    n = people(run.record["virtual"], run.test["patient_id"].nunique())
    return f"n = {n}, {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}" + few(fewest, seeds).replace("(", "(at least ")


def _grey(view: torch.Tensor) -> torch.Tensor:
    return (view * STD + MEAN).clamp(0, 1).numpy()


def _bare(ax) -> None:
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.spines[:].set_visible(False)
