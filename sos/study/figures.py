"""Figures of training, decisions and attention, and the look of all: functions that take a cohort, tables or runs and return a matplotlib
Figure in the look of a journal.

Widths are those of a printed page (COLUMN, PAGE, in inches), so that type is 7 to 9 pt where it is read. Each figure states its n and, where
the cohort is virtual, that its patients are virtual. A figure is closed before it is returned: a notebook shows it once, as a cell's value.
"""

import os
from functools import wraps
from pathlib import Path
from textwrap import fill

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..cohort.cameras import MEAN, STD
from ..cohort.manifest import Cohort
from ..cohort.views import Views
from ..config import RunConfig
from ..files import note_result
from ..method.cam import enlarge
from ..stages import StagingScheme
from .attention import CONTROLS, image_rows, look, pictures, still_pictures, windows
from .metrics import probability_columns
from .results import ROLE_NAMES
from .runs import Run
from .training import Study, frame_boxes

COLUMN, PAGE = 3.5, 7.2  # inches, one and two columns of a printed page
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.title_fontsize": 7, "legend.frameon": False, "figure.titlesize": 8, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "lines.linewidth": 1.2, "lines.markersize": 3.5, "patch.linewidth": 0.5, "figure.dpi": 120, "figure.constrained_layout.use": True,
    "image.cmap": "gray", "image.interpolation": "bilinear", "figure.facecolor": "white", "pdf.fonttype": 42, "svg.fonttype": "none",
}
# Okabe and Ito's colours, told apart with any colour vision
SEX_COLOURS = {"F": "#E69F00", "M": "#0072B2"}
SEX_NAMES = {"F": "female", "M": "male"}
ROLE_COLOURS = {"teacher": "#0072B2", "baseline": "#D55E00", "student": "#009E73", "zoom": "#AA4499"}
ROLE_MARKERS = {"teacher": "o", "baseline": "s", "student": "^", "zoom": "D"}  # for eyes and printers that see no colours
CONTROL_COLOUR, BOX_COLOUR, GREY = "#BBBBBB", "#56B4E9", "0.45"
HEAT = "inferno"  # of heat maps
THIN = {"linewidth": 0.7}


def journal(draw):
    """Draw in STYLE whatever the caller has set, and close the figure before it is returned."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made in drawing, from the settings of that moment
        plt.close(figure)
        return figure

    return drawn


def save_figure(fig: Figure, path) -> Figure:
    """Write `fig` as PNG at 200 dpi, the same bytes for the same figure, and return it. Written to a temporary name, renamed when whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with plt.style.context(["default", STYLE]):
        fig.savefig(temporary, format="png", dpi=200, metadata={"Software": "sos"})
    note_result(path)
    os.replace(temporary, path)
    return fig


def stage_colours(scheme: StagingScheme) -> list:
    """One colour a stage, from light (open) to dark (fused): ordered, and even in lightness for any colour vision and in print."""
    return [matplotlib.colors.to_hex(c) for c in plt.get_cmap("viridis_r")(np.linspace(0.04, 0.96, len(scheme)))]


def people(virtual: bool, n: int) -> str:
    """`1200 virtual patients`, `96 patients`."""
    return f"{n} {'virtual patients' if virtual else 'patients'}"


def caption(fig: Figure, text: str) -> None:
    text = text.replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    fig.suptitle(fill(text, int(16.5 * fig.get_figwidth())), x=0.005, ha="left")


def tight(fig: Figure, pad: float = 0.02) -> None:
    fig.get_layout_engine().set(w_pad=pad, h_pad=pad, wspace=0, hspace=0)


def letters(axes) -> None:
    for letter, ax in zip("abcdefghij", axes):
        ax.set_title(f"$\\bf{{{letter}}}$  {ax.get_title(loc='left')}", loc="left")


def _of(run: Run) -> str:
    table = run.test
    return f"n = {people(run.record['virtual'], table['patient_id'].nunique())} held out"


def example_rows(cohort: Cohort, label: int, n: int, split: str = "") -> list[int]:
    """Row numbers of `n` images of a stage, evenly spread over its ages (over the manifest where ages are unknown), in `split` or in all."""
    part = cohort.table[cohort.table["stage"] == label]
    part = (part[part["split"] == split] if split else part).sort_values("age_y", kind="stable")
    places = np.unique(((np.arange(n) + 0.5) / n * len(part)).astype(int)) if len(part) else []
    return [int(row) for row in part.index[places]]


def draw_box(ax, box, **style) -> None:
    """The outline of a box x0, y0, x1, y1 on `ax`."""
    x0, y0, x1, y1 = (float(v) for v in box)
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **{"fill": False, "edgecolor": BOX_COLOUR, "linewidth": 1.0, **style}))


def scale_bar(ax, side_mm: float, bar_mm: float = 10.0) -> None:
    """A white bar of `bar_mm` in the lower left of a square picture with sides from 0 to 1 that spans `side_mm`; none where that is nan."""
    if side_mm == side_mm:
        ax.plot([0.05, 0.05 + bar_mm / side_mm], [0.95, 0.95], color="white", lw=1.6, solid_capstyle="butt")


# --- training and decisions ----------------------------------------------------------------------------------------------------------------
@journal
def training_views(study: Study, config: RunConfig, pictures_each: int = 6) -> Figure:
    """What a network of `config` is trained on: one training image a stage as it is, then under random transforms of the first epochs."""
    cohort = study.cohort
    rows = np.array([row for label in cohort.scheme.labels for row in example_rows(cohort, label, 1, "train")])
    fig, axes = plt.subplots(len(rows), pictures_each, figsize=(PAGE, PAGE / pictures_each * len(rows) + 0.5), squeeze=False)
    tight(fig)
    views = Views(study.store, config, training=True)
    views.generator.manual_seed(config.seed)
    columns = [Views(study.store, config, training=False)(rows)[0], *(views(rows)[0] for _ in range(pictures_each - 1))]
    for j, views in enumerate(columns):
        for i, view in enumerate(views):
            axes[i, j].imshow((view[0] * STD + MEAN).clamp(0, 1).numpy(), vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
        axes[0, j].set_title("as it is" if j == 0 else f"random {j}", loc="center")
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(f"stage {cohort.table.loc[row, 'stage']}")
    caption(fig, f"Training pictures of the {ROLE_NAMES[config.role]}; n = {people(cohort.virtual, len(rows))}")
    return fig


@journal
def learning_curves(runs: dict[str, Run | list[Run]]) -> Figure:
    """Loss and accuracy by epoch, one column a name; several runs of one name (seeds) as their mean and range."""
    fig, axes = plt.subplots(2, len(runs), figsize=(COLUMN if len(runs) == 1 else PAGE, 3.6), sharex="col", sharey="row", squeeze=False)
    for column, (name, group) in enumerate(runs.items()):
        group = group if isinstance(group, list) else [group]
        colour = ROLE_COLOURS.get(group[0].config.role, GREY)
        histories = pd.concat([run.history for run in group])
        for ax, series in ((axes[0, column], (("train_loss", "training", "--"), ("valid_loss", "validation", "-"))),
                           (axes[1, column], (("valid_accuracy", "validation", "-"),))):
            for key, label, line in series:
                by_epoch = histories.groupby("epoch")[key]
                ax.plot(by_epoch.mean(), line, color=colour, label=label, marker="o" if len(by_epoch) <= 15 else None)
                if len(group) > 1:
                    ax.fill_between(by_epoch.min().index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.2, lw=0)
        valid = group[0].predictions.query("split == 'valid'")
        axes[1, column].axhline(valid["target"].value_counts(normalize=True).max(), color=GREY, lw=0.8, ls=":", label="always the commonest stage")
        axes[0, column].set_title(f"{name}, {len(group)} {'seed' if len(group) == 1 else 'seeds'}")
        axes[1, column].set(xlabel="epoch", ylim=(0, 1))
        axes[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1, column].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("accuracy")
    for ax in axes[:, -1]:
        ax.legend(loc="best")
    some = next(iter(runs.values()))
    some = some[0] if isinstance(some, list) else some
    counts = some.predictions["split"].value_counts()
    caption(fig, f"Learning curves; validation on {people(some.record['virtual'], counts.get('valid', 0))}")
    return fig


@journal
def confusion_matrix(runs: dict[str, Run]) -> Figure:
    """Held-out patients by the experts' stage (rows) and the network's decision (columns): counts, and % of the row as shade and number."""
    fig, axes = plt.subplots(1, len(runs), figsize=(min(PAGE, 3.3 * len(runs)), 3.3 if len(runs) < 3 else 2.5), squeeze=False)
    for ax, (name, run) in zip(axes[0], runs.items(), strict=True):
        scheme, table = run.scheme, run.test
        counts = pd.crosstab(table["stage"], table["decided"]).reindex(index=scheme.labels, columns=scheme.labels, fill_value=0).to_numpy()
        percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        for (i, j), count in np.ndenumerate(counts):
            colour = GREY if not count else "white" if percent[i, j] > 62 else "black"
            ax.text(j, i, f"{count}\n{percent[i, j]:.0f}" if count else "0", ha="center", va="center", fontsize=7, color=colour)
        ticks = range(len(scheme))
        ax.set_xticks(ticks, scheme.labels)
        rows = [f"{label} {stage}\nn = {n}" for label, stage, n in zip(scheme.labels, scheme.names, counts.sum(1), strict=True)]
        ax.set_yticks(ticks, rows if ax is axes[0, 0] or len(runs) < 4 else [])
        ax.set(xlabel="network's stage", title=f"{name}\n{np.trace(counts)} of {counts.sum()} right")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("experts' stage")
    caption(fig, f"Counts, below them % of the row; {_of(next(iter(runs.values())))}")
    return fig


@journal
def error_gallery(study: Study, run: Run, n: int = 8) -> Figure:
    """What the network saw of the held-out images it staged worst, with its probabilities; the most distant stage first, then the surest.

    Where it made no error: its least certain right decisions.
    """
    scheme, table = run.scheme, run.test
    shown, wrong = worst_decisions(run, n)
    columns = 4
    lines = -(-len(shown) // columns)
    fig = plt.figure(figsize=(PAGE, 2.75 * lines + 0.4))
    grid = fig.add_gridspec(2 * lines, columns, height_ratios=[3, 1] * lines)
    rows = image_rows(study.cohort, shown["image"])
    seen = pictures(study.store, rows, run.config)[:, 0].numpy()
    colours = stage_colours(scheme)
    for i, (_, case) in enumerate(shown.iterrows()):
        ax = fig.add_subplot(grid[2 * (i // columns), i % columns])
        ax.imshow(seen[i], vmin=0, vmax=1)
        ax.set_axis_off()
        ax.set_title(f"experts {case['stage']}, network {case['decided']}", loc="center")
        bars = fig.add_subplot(grid[2 * (i // columns) + 1, i % columns])
        p = case[probability_columns(table)].to_numpy(float)
        drawn = bars.bar(range(len(p)), p, color=colours, width=0.8)
        drawn[int(case["target"])].set(edgecolor="black", linewidth=1.2)
        bars.plot(int(case["target"]), p[int(case["target"])] + 0.12, "v", color="black", ms=3, clip_on=False)
        bars.set_xticks(range(len(p)), scheme.labels)
        bars.set(ylim=(0, 1), yticks=(0, 0.5, 1), xlabel="stage" if i // columns == lines - 1 else "")
        if i % columns == 0:
            bars.set_ylabel("probability")
        else:
            bars.tick_params(labelleft=False)
    what = f"{len(shown)} of {wrong} errors" if wrong else f"No error; the {len(shown)} least certain decisions"
    caption(fig, f"{what} on held-out images, triangle: experts' stage; {_of(run)}")
    return fig


def worst_decisions(run: Run, n: int) -> tuple[pd.DataFrame, int]:
    """At most `n` rows of the test predictions, and the number of errors: the most distant stage first, then the surest; without any error the
    least certain decisions."""
    table = run.test
    distance = (table[probability_columns(table)].to_numpy().argmax(1) - table["target"]).abs()
    table = table.assign(distance=distance, confidence=table[probability_columns(table)].max(axis=1))
    wrong = int((distance > 0).sum())
    if wrong:
        return table[distance > 0].sort_values(["distance", "confidence"], ascending=False, kind="stable").head(n), wrong
    return table.sort_values("confidence", kind="stable").head(n), 0


# --- attention -----------------------------------------------------------------------------------------------------------------------------
@journal
def cam_steps(picture, features, alpha, cam, n: int = 4) -> Figure:
    """Grad-CAM taken apart for one image: the picture (s, s), the `n` channels (h, w) of `features` that push the score up most, and the map.

    alpha: (c,) weights of the channels; features: (c, h, w); cam: (h, w).
    """
    gain = (alpha[:, None, None] * features).sum((1, 2))
    top = gain.argsort(descending=True)[:n].tolist()
    fig, axes = plt.subplots(1, n + 2, figsize=(PAGE, PAGE / (n + 2) + 0.75))
    picture, features = picture.numpy(), features.numpy()
    axes[0].imshow(picture, vmin=0, vmax=1)
    axes[0].set_title("input", loc="center")
    for ax, channel in zip(axes[1:], top):
        ax.imshow(features[channel], cmap=HEAT, interpolation="nearest")
        ax.set_title(f"channel {channel}\n$\\alpha$ = {float(alpha[channel]):.1e}", loc="center", fontsize=7)
    axes[-1].imshow(picture, vmin=0, vmax=1)
    overlay(axes[-1], cam, picture.shape[-1])
    axes[-1].set_title("Grad-CAM", loc="center")
    for ax in axes:
        ax.set_axis_off()
    caption(fig, f"The {n} of {len(alpha)} channels that raise the explained score most, each on a scale of its own, and the sum of all; n = 1")
    return fig


def overlay(ax, cam, size_px: int, extent=None) -> None:
    """A heat map (h, w) over the picture on `ax`, as a share of its maximum, more opaque where it is larger; a white line at half of it."""
    heat = enlarge(cam[None], size_px)[0]
    heat = heat / heat.max().clamp_min(1e-12)
    extent = extent or (-0.5, size_px - 0.5, size_px - 0.5, -0.5)
    ax.imshow(heat.numpy(), cmap=HEAT, vmin=0, vmax=1, alpha=(0.75 * heat).numpy(), extent=extent)
    if heat.min() < 0.5 < heat.max():
        ax.contour(heat.numpy(), [0.5], colors="white", linewidths=0.6, extent=extent, origin="upper")


@journal
def cam_panels(study: Study, teacher: Run, full_image: dict[str, Run], split: str = "test", size_px: int = 320) -> Figure:
    """Grad-CAM of the decided stage on one held-out, un-augmented image a stage: full-image networks on the frame, the teacher on its window.

    Each map is shown as a share of its own maximum, which stands below it on the raw scale.
    """
    cohort, store = study.cohort, study.store
    rows = np.array([row for label in cohort.scheme.labels for row in example_rows(cohort, label, 1, split)])
    names = ["full image", *full_image, "crop", ROLE_NAMES["teacher"]]
    spots, boxes = windows(store, rows, teacher.config.window_scale), frame_boxes(store, rows)
    frames, crops = still_pictures(store, rows, size_px).numpy(), still_pictures(store, rows, size_px, spots).numpy()
    seen = {name: look(study, run, rows) for name, run in {**full_image, names[-1]: teacher}.items()}
    fig, axes = plt.subplots(len(rows), len(names), figsize=(PAGE, (PAGE / len(names) + 0.13) * len(rows) + 0.9), squeeze=False)
    tight(fig)
    for i, row in enumerate(rows):
        for j, name in enumerate(names):
            ax, on_crop = axes[i, j], name in ("crop", ROLE_NAMES["teacher"])
            ax.imshow((crops if on_crop else frames)[i], vmin=0, vmax=1, extent=(0, 1, 1, 0))
            if not on_crop:
                draw_box(ax, boxes[i])
            if name in seen:
                decision, cam = seen[name]
                overlay(ax, cam[i], size_px, (0, 1, 1, 0))
                decided = cohort.scheme.labels[int(decision.logits[i].argmax())]
                ax.set_xlabel(f"stage {decided}, max {float(cam[i].max()):.2g}", fontsize=7, labelpad=2)
            if i == 0:
                ax.set_title(name.replace(" network", "\nnetwork"), loc="center")
            ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
            ax.spines[:].set_visible(False)
        axes[i, 0].set_ylabel(f"stage {cohort.table.loc[row, 'stage']}")
    bar = fig.colorbar(matplotlib.cm.ScalarMappable(cmap=HEAT), ax=axes, orientation="horizontal", shrink=0.35, aspect=30, pad=0.01)
    bar.set_label("Grad-CAM over its maximum (white line: half of it)")
    caption(fig, f"Held-out images, not augmented; below each map the decision and the map's raw maximum; n = {people(cohort.virtual, len(rows))}")
    return fig


@journal
def localisation_bars(table: pd.DataFrame, virtual: bool) -> Figure:
    """Means with 95 % intervals of pointing, energy and IoU, a bar a source: networks, then controls. table: `attention.summary`."""
    titles = {"pointing": "peak inside the box", "energy": "share of the map in the box", "iou": "IoU of box and map"}
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 0.33 * table["source"].nunique() + 1.25), sharey=True)
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        part = table[table["metric"] == metric]
        ax.barh(part["source"], part["value"], color=[source_colour(s) for s in part["source"]], height=0.65)
        ax.errorbar(part["value"], part["source"], xerr=[part["value"] - part["low"], part["high"] - part["value"]], fmt="none", ecolor="black",
                    elinewidth=0.8, capsize=2)
        for _, row in part.iterrows():
            ax.text(row["high"] + 0.03, row["source"], f"{row['value']:.2f}", va="center", fontsize=7)
        ax.set(title=title, xlim=(0, 1.15), xticks=np.linspace(0, 1, 5), xlabel="share" if metric != "iou" else "intersection over union")
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", length=0)
    letters(axes)
    caption(fig, f"Maps of full-image networks and of controls against the expert's box, mean and 95 % interval; "
                  f"n = {people(virtual, int(table['n'].iloc[0]))} held out")
    return fig


@journal
def joint_distances(table: pd.DataFrame, virtual: bool) -> Figure:
    """Cumulated share of held-out images by the distance from the map's peak to the centre of the joint. table: `attention.joint_distances`."""
    fig, ax = plt.subplots(figsize=(PAGE, 2.6))
    lines = dict(zip(CONTROLS, ((0, (8, 2)), (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1))), strict=True))
    for source, part in table.groupby("source", sort=False):
        mm = np.sort(part["joint_mm"].dropna())
        if len(mm):
            look = {"color": GREY, "ls": lines[source], "lw": 1.1} if source in CONTROLS else {
                "color": source_colour(source), "lw": 1.6, "marker": source_marker(source), "ms": 4, "markevery": (1, max(1, len(mm) // 6))}
            shares, name = np.arange(len(mm) + 1) / len(mm), f"{source} (median {np.median(mm):.0f} mm)"
            ax.step(np.concatenate([[0], mm]), shares, where="post", label=name, **look)
    ax.set(xlabel="distance from the peak to the centre of the joint (mm)", ylabel="held-out images", ylim=(0, 1.01), xlim=(0, None))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    if ax.lines:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        ax.text(0.5, 0.5, "joint or spacing unknown", ha="center", va="center", transform=ax.transAxes, color=GREY)
    known = table.loc[table["joint_mm"].notna(), "patient_id"].nunique()
    which = "" if known == table["patient_id"].nunique() else " whose images have a known spacing"
    caption(fig, f"How far from the joint attention peaks; n = {people(virtual, known)} held out{which}")
    return fig


def source_marker(name: str) -> str:
    """The marker of a network's line."""
    return next((ROLE_MARKERS[role] for role, spoken in ROLE_NAMES.items() if spoken == name), "x")


def source_colour(name: str) -> str:
    """The colour of a network's or a control's bar and line."""
    return next((ROLE_COLOURS[role] for role, spoken in ROLE_NAMES.items() if spoken == name), CONTROL_COLOUR)
