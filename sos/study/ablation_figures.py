"""Figures of the ablations: each as a forest plot, those over numbers as curves too."""

import re
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..choices import GROUPS
from .figures import CONTROL_COLOUR, GREY, PAGE, ROLE_COLOURS, ROLE_MARKERS, caption, journal, letters
from .results import METRIC_NAMES, NOT_YET, ROLE_NAMES, SIGNIFICANT, Table, p_written

TITLES = {"accuracy": "accuracy", "pointing": "Grad-CAM's peak inside the box"}
GAP = (-0.25, 1.25)  # ends of the axis of the gap closed: with few patients its interval may reach far beyond
LEVELS = (("#56B4E9", "o"), ("#0072B2", "D"), ("#000000", "s"), ("#E69F00", "^"))  # Okabe and Ito's; markers as well, for print


@journal
def forest(table: Table) -> Figure:
    """An ablation as a forest plot: accuracy and pointing game of each row with 95 % intervals, each reference's value as a line down its rows, and
    what the paired test says. table: `ablations.ablation`."""
    data = table.data
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.27 * len(data) + 1.3), sharey=True)
    places = np.arange(len(data))
    for ax, metric in zip(axes, TITLES, strict=True):
        for reference, part in data.groupby("reference"):
            value = 100 * data.loc[data["setting"] == reference, f"{metric}_value"].iloc[0]
            ax.plot([value, value], [part.index[0] - 0.5, part.index[-1] + 0.5], ":", color=GREY, lw=0.8)
        for place, row in zip(places, data.to_dict("records"), strict=True):
            _forest_row(ax, place, row, metric)
        ax.set(xlabel=METRIC_NAMES[metric].replace(", %", " (%)"), xlim=(-2, 102), ylim=(len(data) - 0.5, -0.5), title=TITLES[metric])
        ax.tick_params(axis="y", length=0)
    full = "full method" if table.name == "ablation" else "reference"
    named = [f"{name}, {full}" if name == reference else name for name, reference in zip(data["setting"], data["reference"], strict=True)]
    axes[0].set_yticks(places, named)
    letters(axes)
    caption(fig, f"{table.title}, 95 % intervals; p of the paired difference from the {full} (Holm); n.s., grey: not significant. {_n(table)}")
    return fig


def _forest_row(ax, place: int, row: dict, metric: str) -> None:
    if metric == "pointing" and row["role"] == "teacher":
        return
    if not np.isfinite(row[f"{metric}_value"]):
        ax.text(0, place, NOT_YET, va="center", color=GREY, fontsize=7)
        return
    value, low, high = (100 * row[f"{metric}_{key}"] for key in ("value", "low", "high"))
    p, reference = row[f"{metric}_difference_p_holm"], row["setting"] == row["reference"]
    colour = "black" if reference else ROLE_COLOURS["baseline"] if p < SIGNIFICANT else CONTROL_COLOUR
    ax.plot([low, high], [place, place], color=colour, lw=1.4)
    ax.plot(value, place, "D" if reference else "o", color=colour, ms=5)
    if reference:
        said = "reference"
    elif np.isfinite(p):
        said = f"{p_written(p)}{'' if p < SIGNIFICANT else ', n.s.'}"
    else:
        said = "reference not yet run"
    ax.text(1.02, place, said, transform=ax.get_yaxis_transform(), va="center", fontsize=7)


@journal
def curve(table: Table) -> Figure:
    """An ablation over numbers: accuracy and pointing game with 95 % intervals along the last of its settings, a line for each network or for each
    value of the other setting; where the plain network is among them, the gap closed as well. table: `ablations.ablation`."""
    data, group = table.data, GROUPS[table.name.removeprefix("ablation_")]
    x, other = group.settings[-1], group.settings[0] if len(group.settings) > 1 else None
    gap = "gap_value" in data and data["gap_value"].notna().any()
    fig, axes = plt.subplots(1, 3 if gap else 2, figsize=(PAGE * (1 if gap or other else 0.8), 2.6))
    lines = _lines(data, x, other)
    for ax, metric in zip(axes, TITLES, strict=False):
        for i, (name, colour, marker, part) in enumerate(lines):
            part = part[np.isfinite(part[f"{metric}_value"])]
            values = (100 * part[f"{metric}_{key}"] for key in ("value", "low", "high"))
            if len(part):
                _line(ax, _moved(part[x], data[x], 0.012 * (i - (len(lines) - 1) / 2)), *values, colour, marker, name)
        ax.set(ylabel=METRIC_NAMES[metric].replace(", %", " (%)"), ylim=(-3, 105))
        if not ax.lines:
            ax.text(0.5, 0.5, NOT_YET, transform=ax.transAxes, ha="center", color=GREY)
    if gap:
        part = data[data["gap_value"].notna()]
        closed = (part[f"gap_{key}"].clip(*GAP) for key in ("value", "low", "high"))
        _line(axes[-1], part[x], *closed, ROLE_COLOURS["student"], ROLE_MARKERS["student"])
        axes[-1].set(ylabel="gap closed by the student", ylim=GAP, yticks=[0, 0.5, 1], yticklabels=["plain 0", "0.5", "teacher 1"])
        for level, role in ((0, "baseline"), (1, "teacher")):
            axes[-1].axhline(level, color=ROLE_COLOURS[role], lw=0.8, ls=":")
    scale = "log" if (data[x] > 0).all() else "linear"
    for ax in axes:
        ax.set_xscale(scale)
        ax.set(xlabel=group.axis, xlim=[_moved(data[x].agg(end), data[x], way) for end, way in (("min", -0.1), ("max", 0.1))])
        ax.set_xticks(*_ticks(data, x))
        ax.minorticks_off()
    handles = axes[0].get_legend_handles_labels()
    if len(lines) > 1 and handles[0]:
        fig.legend(*handles, loc="outside lower center", ncols=len(lines))
    letters(axes)
    cut = gap and (data["gap_high"].max() > GAP[1] or data["gap_low"].min() < GAP[0])
    caption(fig, f"{table.title}, 95 % intervals; {_n(table)}" + ("; gap closed is cut at the ends of its axis" if cut else ""))
    return fig


def _lines(data: pd.DataFrame, x: str, other: str | None) -> list[tuple[str, str, str, pd.DataFrame]]:
    """name, colour, marker and rows, in order of x, of each line of a curve."""
    ordered = data.sort_values(x)
    if other is None:
        parts = {role: ordered[ordered["role"] == role] for role in data["role"].unique()}
        return [(ROLE_NAMES[role], ROLE_COLOURS[role], ROLE_MARKERS[role], part) for role, part in parts.items()]
    return [(f"{other} = {level:g}", *LEVELS[i % len(LEVELS)], part) for i, (level, part) in enumerate(ordered.groupby(other))]


def _moved(values, every: pd.Series, step: float):
    """Places on the axis of `every` value moved by a share of its length, as intervals beside each other are, so that none hides another."""
    low, high = every.min(), every.max()
    return values * (high / low) ** step if low > 0 else values + step * (high - low)


def _line(ax, x, value, low, high, colour: str, marker: str, name: str | None = None) -> None:
    ax.errorbar(x, value, [(value - low).clip(lower=0), (high - value).clip(lower=0)], fmt=f"{marker}-", color=colour, capsize=2.5, elinewidth=0.9,
                label=name)


def _ticks(data: pd.DataFrame, x: str) -> tuple[list[float], list[str]]:
    """Places and labels: each value that was trained; of patients how many there are, too."""
    places = sorted(data[x].unique())
    if "training_patients" in data:
        count = data.drop_duplicates(x).set_index(x)["training_patients"]
        return places, [f"{100 * place:g} %\n{count[place]:.0f}" for place in places]
    return places, [f"{place:g}" for place in places]


def _n(table: Table) -> str:
    """`449 held-out virtual patients, mean of 5 seeds`."""
    first = table.notes[0]
    return ", ".join([first.split(".")[0], *re.findall(r"mean of \d+ seeds|one seed", first)])


def ablation_figures(name: str, make: Callable[[], Table]) -> dict[str, Callable[[], Figure]]:
    """The published figures of one of GROUPS by the names of their files; `make` gives its table."""
    numbered = {"terms": "fig16_ablation", "temperature": "fig17_temperature"}
    drawn = {numbered["terms"] if name == "terms" else f"fig_ablation_{name}": lambda: forest(make())}
    if GROUPS[name].axis:
        drawn[numbered.get(name, f"fig_curve_{name}")] = lambda: curve(make())
    return drawn
