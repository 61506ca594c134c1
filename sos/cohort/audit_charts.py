"""Small charts of a cohort for the audit's page, as SVG that takes its colour of text from the page."""

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .audit_files import FileFacts
from .audit_rows import AGES_Y, COARSEST_MM, number

INK = "#123456"  # stands for the page's own colour until the SVG is finished
SEX_COLOURS = {"F": "#E69F00", "M": "#0072B2", "?": "#999999"}  # Okabe and Ito's
BAR = "#56B4E9"
MOST_DEVICES = 8
STYLE = {"font.family": ["DejaVu Sans", "sans-serif"], "font.size": 8, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
         "axes.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 7, "svg.fonttype": "none", "figure.constrained_layout.use": True,
         "text.parse_math": False}


def charts(table: pd.DataFrame, files: dict[str, FileFacts]) -> list[tuple[str, str]]:
    """(what it shows in words, SVG) of stages by sex, ages by stage, formats, pixel spacings, and devices where the manifest names them.

    table: the manifest's cells as text; rows that a chart cannot show are left out and counted in its words.
    """
    drawn = [_drawn("stages", _stages, table), _drawn("ages", _ages, table)]
    if files:
        drawn += [_drawn("formats", _formats, files), _drawn("spacings", _spacings, table, files)]
    if "device" in table and (table["device"] != "").any():
        drawn.append(_drawn("devices", _devices, table))
    return drawn


def _drawn(name: str, draw: Callable[..., str], *what) -> tuple[str, str]:
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **STYLE, "svg.hashsalt": name}):
        fig = Figure(figsize=(2.9, 2.0))
        words = draw(fig.subplots(), *what)
        out = io.StringIO()
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg"):].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return words, re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids of several charts meet on one page


def _sexes(table: pd.DataFrame) -> pd.Series:
    return table["sex"].where(table["sex"].isin(["F", "M"]), "?")


def _stages(ax: Axes, table: pd.DataFrame) -> str:
    counts = pd.crosstab(table["stage"].where(table["stage"] != "", "none").str.slice(0, 8), _sexes(table)).head(12)
    base = np.zeros(len(counts))
    for sex in counts:
        ax.bar(range(len(counts)), counts[sex], 0.75, base, color=SEX_COLOURS[sex], label=f"{sex} ({counts[sex].sum()})")
        base += counts[sex].to_numpy()
    ax.set_xticks(range(len(counts)), counts.index)
    ax.set(title="stages by sex", xlabel="stage", ylabel="rows", ylim=(0, 1.3 * max(1, base.max())))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.legend(ncols=3, loc="upper left", handlelength=1, columnspacing=1)
    return "rows of each stage by sex: " + "; ".join(
        f"stage {stage} " + ", ".join(f"{sex} {n}" for sex, n in row.items()) for stage, row in counts.iterrows())


def _ages(ax: Axes, table: pd.DataFrame) -> str:
    ages = pd.Series([number(text) for text in table["age_y"]], index=table.index, dtype=float)
    known = ages[ages.between(*AGES_Y)]
    left = len(table) - len(known)
    ax.set(title=f"ages, n = {len(known)}", xlabel="years", ylabel="rows")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if known.empty:
        return "no age is known"
    sexes = _sexes(table)[known.index]
    edges = np.arange(np.floor(known.min()), np.ceil(known.max()) + 1.5, max(1, round(np.ptp(known) / 20)))
    shown = [sex for sex in SEX_COLOURS if (sexes == sex).any()]
    ax.hist([known[sexes == sex] for sex in shown], edges, stacked=True, color=[SEX_COLOURS[sex] for sex in shown])
    return f"ages: {known.min():.1f} to {known.max():.1f} years, median {known.median():.1f}; {left} rows without a plausible age left out"


def _formats(ax: Axes, files: dict[str, FileFacts]) -> str:
    counts = pd.Series([file.format or "unreadable" for file in files.values()]).value_counts()
    _across(ax, counts, "formats of files")
    return "formats: " + ", ".join(f"{name} {n}" for name, n in counts.items())


def _spacings(ax: Axes, table: pd.DataFrame, files: dict[str, FileFacts]) -> str:
    stated = dict(zip(table["image"], table["spacing_mm"], strict=True)) if "spacing_mm" in table else {}
    found = [file.spacing_mm or number(stated.get(name, "")) for name, file in files.items() if not file.error]
    known = [mm for mm in found if mm and mm < 5]
    ax.set(title=f"pixel size, n = {len(known)}", xlabel="mm", ylabel="images")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if not known:
        return "no pixel size is known"
    ax.hist(known, 20, color=BAR)
    if max(known) > 0.8 * COARSEST_MM:
        ax.axvline(COARSEST_MM, color="#D55E00", lw=1, ls="--")
    return f"pixel sizes: {min(known):.2f} to {max(known):.2f} mm; unknown for {len(found) - len(known)} readable images"


def _devices(ax: Axes, table: pd.DataFrame) -> str:
    counts = table["device"].replace("", "not named").value_counts()
    shown, others = counts.head(MOST_DEVICES), len(counts) - MOST_DEVICES
    _across(ax, shown, "devices" + (f", {MOST_DEVICES} of {len(counts)}" if others > 0 else ""))
    return "devices: " + ", ".join(f"{name} {n}" for name, n in shown.items()) + (f", and {others} others" if others > 0 else "")


def _across(ax: Axes, counts: pd.Series, title: str) -> None:
    ax.barh(range(len(counts)), counts, 0.75, color=BAR)
    ax.set_yticks(range(len(counts)), [name[:18] for name in counts.index])
    ax.invert_yaxis()
    for y, n in enumerate(counts):
        ax.annotate(f"{n}", (n, y), (2, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(title=title, xlim=(0, 1.25 * counts.max()))
    ax.tick_params(left=False)
    ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
