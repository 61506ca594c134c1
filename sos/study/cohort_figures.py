"""Figures of the cohort: ages, properties of the images, examples, and a labelled plate of the anatomy."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..cohort.manifest import Cohort
from ..cohort.views import PixelStore
from ..phantom.difficulty import Difficulty
from ..phantom.write import draw_patient
from .attention import still_pictures, windows
from .describe import grey_histograms, image_table, phases, published_mean_age, source_windows
from .figures import (BOX_COLOUR, CONTROL_COLOUR, GREY, PAGE, ROLE_COLOURS, SEX_COLOURS, SEX_NAMES, THIN, caption, draw_box, example_rows,
                      journal, letters, people, scale_bar, stage_colours, tight)
from .training import frame_boxes

SCREENSHOTS = ("PNG", "JPEG", "TIFF")  # formats, as the reader names them, that keep no scanner's grey values

@journal
def ages(cohort: Cohort) -> Figure:
    """Age by stage and sex, beside published means where the scheme's stages have them (PMC5565182; stages with and without a scar are one
    phase there), and the share of each stage by age for each sex."""
    scheme, table = cohort.scheme, cohort.table.dropna(subset=["age_y"])
    table = table[table["sex"].isin(SEX_COLOURS)].drop_duplicates(["patient_id", "stage"])
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 2.7), width_ratios=[1.5, 1, 1])
    ax = axes[0]
    rng = np.random.default_rng(0)
    for sex, shift in zip(SEX_COLOURS, (-0.2, 0.2), strict=True):
        values = [table.loc[(table["stage"] == label) & (table["sex"] == sex), "age_y"].to_numpy() for label in scheme.labels]
        at = np.arange(len(scheme)) + shift
        boxes = ax.boxplot(values, positions=at, widths=0.34, showfliers=False, patch_artist=True, medianprops={"color": "black"},
                           boxprops={"facecolor": SEX_COLOURS[sex], "alpha": 0.35, "linewidth": 0.6}, whiskerprops=THIN, capprops=THIN)
        for x, y in zip(at, values, strict=True):
            ax.plot(x + rng.uniform(-0.11, 0.11, len(y)), y, ".", color=SEX_COLOURS[sex], ms=2.5 if len(table) < 400 else 1.5, mew=0, alpha=0.7, zorder=1)
        boxes["boxes"][0].set_label(SEX_NAMES[sex])
        of_phase = pd.Series(range(len(scheme)), index=scheme.labels).groupby(phases(scheme)).mean()  # between its stages where it has two
        inward = np.where(of_phase % 1 > 0, 0.25, 1) * shift
        ax.plot(of_phase + inward, [published_mean_age(phase, sex) for phase in of_phase.index], "D", color=SEX_COLOURS[sex], mec="black", mew=0.7,
                ms=4, zorder=4, ls="none", label=None if shift < 0 or of_phase.empty else "published mean")
    counts = table.groupby(["stage", "sex"]).size()
    ticks = [[f"{label}", *(f"{sex} {counts.get((label, sex), 0)}" for sex in SEX_COLOURS)] for label in scheme.labels]
    ax.set_xticks(range(len(scheme)), map("\n".join, ticks))
    ax.set(xlabel="stage, and n", ylabel="age (years)", title="age by stage")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper left", borderaxespad=0, handlelength=1.4)
    first, last = (int(np.floor(table["age_y"].min())), int(np.ceil(table["age_y"].max()))) if len(table) else (0, 1)
    step = max(1, round((last - first) / 12))
    edges = np.arange(first, last + step + 1e-9, step)
    for ax, (sex, word) in zip(axes[1:], SEX_NAMES.items(), strict=True):
        part = table[table["sex"] == sex]
        share = np.stack([np.histogram(part.loc[part["stage"] == label, "age_y"], edges)[0] for label in scheme.labels]).astype(float)
        share = np.divide(share, share.sum(0), out=np.zeros_like(share), where=share.sum(0) > 0)
        base = np.zeros(len(edges) - 1)
        for row, label, colour in zip(share, scheme.labels, stage_colours(scheme), strict=True):
            ax.bar(edges[:-1], row, step, base, align="edge", color=colour, edgecolor="white", linewidth=0.4, label=f"{label}")
            base += row
        ax.set(xlabel="age (years)", ylim=(0, 1), xlim=(edges[0], edges[-1]))
        ax.set_title(f"{word}, n = {len(part)}")
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes[1].set_ylabel(f"share of stages by {step}-year age group" if step > 1 else "share of stages by year of age")
    axes[2].tick_params(labelleft=False)
    axes[2].legend(title="stage", loc="center left", bbox_to_anchor=(1, 0.5), reverse=True, handlelength=1)
    letters(axes)
    caption(fig, f"Ages by stage and sex: {people(cohort.virtual, table['patient_id'].nunique())} of known age and sex")
    return fig


@journal
def image_properties(cohort: Cohort, store: PixelStore) -> Figure:
    """Sizes, spacings, fields of view and grey values of the images, as decoded."""
    table = image_table(cohort, store)
    fig = plt.figure(figsize=(PAGE, 4.8))
    above, below = fig.subfigures(2, 1)
    axes = [*above.subplots(1, 3), *below.subplots(1, 3)]
    sizes = table.groupby(["width_px", "height_px"]).size().reset_index(name="images")
    axes[0].scatter(sizes["width_px"], sizes["height_px"], s=8 + 250 * sizes["images"] / len(table), color=ROLE_COLOURS["teacher"], alpha=0.5, lw=0)
    axes[0].set(xlabel="width (px)", ylabel="height (px)", title="image size (area: images)")
    axes[0].margins(0.15)
    for ax, name, label, title, bins in ((axes[1], "spacing_mm", "pixel spacing (mm)", "spacing", 15),
                                         (axes[2], "field_mm", "longer side (mm)", "field of view", 20)):
        known = table[name].dropna()
        if known.empty:
            ax.text(0.5, 0.5, "unknown for all images", ha="center", va="center", transform=ax.transAxes, color=GREY)
        else:
            sns.histplot(x=known, bins=bins, color=ROLE_COLOURS["teacher"], alpha=1, edgecolor="white", ax=ax)
        ax.set(xlabel=label, ylabel="images", title=f"{title}, n = {len(known)}")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    share = 100 * grey_histograms(store)
    centres = (np.arange(share.shape[1]) + 0.5) / share.shape[1]
    low, middle, high = np.percentile(share, [5, 50, 95], axis=0)
    axes[3].fill_between(centres, low, high, color=ROLE_COLOURS["teacher"], alpha=0.25, lw=0, label="5th to 95th percentile")
    axes[3].plot(centres, middle, color=ROLE_COLOURS["teacher"], label="median over images")
    axes[3].set(xlabel="grey value after mapping", ylabel="pixels (%)", yscale="log", title="intensity", xlim=(0, 1))
    axes[3].set_ylim(top=20 * high.max())
    axes[3].legend(loc="upper right")
    group = table["device"] if "device" in table else table["spacing_mm"].map(lambda mm: f"{mm:.2f} mm" if mm == mm else "unknown")
    order = sorted(group.unique())
    axes[4].boxplot([table.loc[group == key, "median_grey"] for key in order], positions=range(len(order)), tick_labels=order,
                    orientation="horizontal", widths=0.7, patch_artist=True, boxprops={"facecolor": CONTROL_COLOUR, "linewidth": 0.6},
                    medianprops={"color": "black"}, whiskerprops=THIN, capprops=THIN, flierprops={"markersize": 1.5})
    axes[4].set_ylim(len(order) - 0.5, -0.5)
    axes[4].set(xlabel="median grey value after mapping", ylabel="", title="intensity by device" if "device" in table else "intensity by spacing")
    source = source_windows(cohort)
    keys = source["device"] if "device" in source else source["format"]
    order = order if "device" in source else sorted(keys.unique())
    for i, key in enumerate(order):
        for screenshot, colour in ((False, ROLE_COLOURS["baseline"]), (True, ROLE_COLOURS["teacher"])):
            part = source[(keys == key) & (source["format"].isin(SCREENSHOTS) == screenshot)]
            place = [i + 0.25 * screenshot] * len(part)
            axes[5].hlines(place, part["low"], part["high"], color=colour, alpha=0.35, lw=1.5)
            axes[5].plot(part["low"], place, "|k", part["high"], place, "|k", ms=5, mew=0.6)
    axes[5].set_yticks(range(len(order)), order)
    told = source["format"].isin(SCREENSHOTS).sum()
    axes[5].set(xlabel="source grey value" + (f"\n(blue: {told} screenshots)" if told else ""), title=f"black to white, n = {len(source)}")
    axes[5].set_ylim(len(order) - 0.5, -0.5)
    axes[5].tick_params(labelleft="device" not in source, left=False)
    letters(axes)
    caption(fig, f"Images of {people(cohort.virtual, cohort.table['patient_id'].nunique())}, n = {len(table)} images")
    return fig


@journal
def image_grid(cohort: Cohort, store: PixelStore, pairs: int = 2, size_px: int = 320) -> Figure:
    """Whole images with the expert's box, and below each the window that a teacher sees, in columns by stage."""
    scheme = cohort.scheme
    fig, axes = plt.subplots(2 * pairs, len(scheme), figsize=(PAGE, PAGE / len(scheme) * 2 * pairs + 0.5), squeeze=False)
    tight(fig)
    for column, (label, name) in enumerate(zip(scheme.labels, scheme.names, strict=True)):
        rows = example_rows(cohort, label, pairs)
        for ax in axes[:, column]:
            ax.set_axis_off()
        axes[0, column].set_title(f"stage {label}: {name}", loc="center")
        for i, row in enumerate(rows):
            spot = windows(store, [row])
            frame, crop = still_pictures(store, [row], size_px)[0].numpy(), still_pictures(store, [row], size_px, spot)[0].numpy()
            top, below = axes[2 * i, column], axes[2 * i + 1, column]
            top.imshow(frame, vmin=0, vmax=1, extent=(0, 1, 1, 0))
            draw_box(top, frame_boxes(store, np.array([row]))[0])
            below.imshow(crop, vmin=0, vmax=1, extent=(0, 1, 1, 0))
            who = cohort.table.loc[row]
            top.text(0.03, 0.03, " ".join(filter(None, [_text(who["sex"]), f"{who['age_y']:.1f} y" if who["age_y"] == who["age_y"] else ""])),
                     color="white", fontsize=7, va="top", path_effects=[withStroke(linewidth=1.5, foreground="black")])
            side_px = max(store.sizes[row]) * float(spot[0, 2] - spot[0, 0])
            scale_bar(below, side_px * store.spacing_mm[row])
    n = len({row for label in scheme.labels for row in example_rows(cohort, label, pairs)})
    caption(fig, f"Whole images with the expert's box (blue), and below each its square window; bar 10 mm where the spacing is known; "
                  f"n = {people(cohort.virtual, n)}")
    return fig


def _text(value) -> str:
    return value if isinstance(value, str) else ""


#: What the plate labels, by landmark of the phantom, in the left and in the right margin.
PLATE_LABELS = (
    {"sella": "sella\nturcica", "dorsum": "dorsum\nsellae", "joint": "SOS", "clivus": "clivus", "basion": "basion", "atlas": "atlas (C1)",
     "dens": "dens (C2)", "occiput": "occiput"},
    {"sinus": "sphenoid\nsinus", "pharynx": "naso-\npharynx", "palate": "hard\npalate", "uvula": "soft\npalate", "upper": "incisors",
     "symphysis": "mandible"})


@journal
def anatomy_plate(cohort: Cohort, side_mm: float = 38.0) -> Figure:
    """Labelled plate of a virtual cohort: a slice of a large and of a small field, and the joint in its stages, `side_mm` wide.

    Patients are chosen by rule from the manifest, see `typical`: the slices near the midline, head level, joint open; the joints in
    small fields near the midline, where three raters agreed. Sections are drawn again from the seed, which gives their landmarks.
    """
    table, scheme = cohort.table, cohort.scheme
    shown = set()
    fig = plt.figure(figsize=(PAGE, 4.55))
    above, below = fig.subfigures(2, 1, height_ratios=[2.5, 1.75])
    level, middle = table["pitch_deg"].abs() < 4, table["off_mm"].abs() < 0.7
    wide = table["device"].str.startswith("large")
    for letter, ax, field, name in zip("ab", above.subplots(1, 2), (wide, ~wide), ("large", "small"), strict=True):
        patient = redrawn(table.loc[typical(table, field, table["stage"] == scheme.labels[0], middle, level), "patient_id"])
        shown.add(patient.patient_id)
        ax.imshow(_upright(patient), vmin=-1000, vmax=np.percentile(patient.pixels, 99.7))
        leaders(ax, patient.section.landmarks, patient.pixels.shape)
        ax.set_title(f"$\\bf{{{letter}}}$  {name} field of view, {_who(patient)}", loc="center")
        ax.set_axis_off()
        ax.set_anchor("N")
    agreed = table[["rater_1", "rater_2", "rater_3"]].nunique(axis=1) == 1
    axes = below.subplots(1, len(scheme))
    for letter, ax, label, stage in zip("cdefghij", axes, scheme.labels, scheme.names, strict=False):
        patient = redrawn(table.loc[typical(table, table["stage"] == label, ~table["patient_id"].isin(shown), ~wide, middle, agreed), "patient_id"])
        shown.add(patient.patient_id)
        joint, half = patient.section.landmarks["joint"], 0.5 * side_mm / patient.exposure.voxel_mm
        picture, (x, y) = _upright(patient), joint
        soft = np.median(picture[int(max(0, y - half)):int(y + half), int(max(0, x - half)):int(x + half)])
        ax.imshow(picture, vmin=soft - 500, vmax=soft + 1000)
        ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
        ax.plot(x - half * np.array([0.88, 0.88 - 20 / side_mm]), [y + 0.88 * half] * 2, color="white", lw=1.6, solid_capstyle="butt")
        ax.set_title(f"$\\bf{{{letter}}}$  {label}: {stage}\n{_who(patient)}", loc="center")
        ax.set_axis_off()
    tight(fig)
    caption(fig, f"Mid-sagittal anatomy and the spheno-occipital synchondrosis (SOS) in its {len(scheme)} stages (bar 10 mm). Drawn, not scanned: "
                  f"n = {people(cohort.virtual, len(shown))}")
    return fig


def typical(table: pd.DataFrame, *wishes) -> int:
    """Row of median age among the rows that meet the most of `wishes` (boolean columns, an earlier one counts more than all later ones)."""
    met = sum(wish.to_numpy().astype(int) << k for k, wish in enumerate(reversed(wishes)))
    best = table[met == met.max()].sort_values("age_y", kind="stable")
    return int(best.index[len(best) // 2])


def redrawn(patient_id: str):
    """The virtual patient of this identifier, with section and landmarks."""
    seed, index, *mark = patient_id[1:].split("-")
    return draw_patient(int(seed), int(index), *(Difficulty(float(value[1:])) for value in mark))


def leaders(ax, landmarks: dict, shape, line: float = 0.062) -> None:
    """Labels in the margins of a picture of `shape` (h, w), thin lines to the landmarks that lie in it; a line of type is `line` high."""
    h, w = shape
    for labels, edge, align in ((PLATE_LABELS[0], -0.04, "right"), (PLATE_LABELS[1], 1.04, "left")):
        spots = {name: landmarks[name] / (w, h) for name in labels if name in landmarks}
        order = sorted((name for name, spot in spots.items() if 0.01 < spot.min() and spot.max() < 0.99), key=lambda name: spots[name][1])
        at = label_places(order, labels, spots, edge, line)
        for name, y in zip(order, at, strict=True):
            ax.annotate(labels[name], spots[name] * (w, h), (edge * w, y * h), ha=align, va="center", fontsize=7, annotation_clip=False,
                        weight="bold" if name == "joint" else "normal", linespacing=1.15,
                        arrowprops=dict(arrowstyle="-", color=BOX_COLOUR, lw=0.7, shrinkA=1, shrinkB=0, relpos=(float(edge < 0), 0.5)))
            ax.plot(*(spots[name] * (w, h)), "o", ms=2, color=BOX_COLOUR, mew=0)


def label_places(order: list, labels: dict, spots: dict, edge: float, line: float) -> np.ndarray:
    """Heights of labels in a margin at `edge`, from 0 (top) to 1, near their spots and apart; `order` is sorted so that lines do not cross."""
    def places():
        sizes = line * np.array([1.35 + labels[name].count("\n") for name in order])
        at, apart = np.array([spots[name][1] for name in order]), 0.5 * (sizes[1:] + sizes[:-1])
        for _ in range(150):
            push = np.clip(apart - np.diff(at), 0, None) / 2
            at[1:] += push
            at[:-1] -= push
            at = np.clip(at, 0.5 * sizes, 1 - 0.5 * sizes)
        return at, sum(np.hypot(edge - spots[name][0], y - spots[name][1]) for name, y in zip(order, at, strict=True))

    for _ in range(3):  # of two lines that cross, swapping the labels makes both together shorter
        for k in range(len(order) - 1):
            before = places()[1]
            order[k:k + 2] = order[k:k + 2][::-1]
            if places()[1] >= before:
                order[k:k + 2] = order[k:k + 2][::-1]
    return places()[0]


def _upright(patient) -> np.ndarray:
    """Pixels of a virtual patient with the head facing right, as its section is drawn."""
    return patient.pixels[:, ::-1] if patient.exposure.mirrored else patient.pixels


def _who(patient) -> str:
    return f"{SEX_NAMES[patient.person.sex]}, {patient.person.age_y:.1f} y"
