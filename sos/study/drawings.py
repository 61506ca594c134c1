"""Two drawings for teaching: the anatomy round the joint, and how teacher and student are trained. Schematics: no patient, no result.

The anatomy is the phantom's own: outlines of one person of its making, head level, so that proportions are those of every virtual image. What
the drawing calls bone, soft tissue and air are ranges of that section's Hounsfield units; the cranial base is drawn from its curves.
"""

from dataclasses import dataclass, replace
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from scipy.ndimage import binary_dilation, gaussian_filter, gaussian_filter1d, label

from ..phantom.canvas import Canvas, band
from ..phantom.cranial_base import Base, draw_base
from ..phantom.head import draw_middle
from ..phantom.population import Fusion, Person, draw_person
from ..stages import BASSED5
from .figures import GREY, PAGE, ROLE_COLOURS, caption, journal, tight

SEED, INDEX, AGE_Y = 7, 4, 13.0  # of the drawn person: one with an even profile and a sinus of middle size
AIR_HU, BONE_HU, TOOTH_HU = -450, 170, 1300  # borders of what is drawn as air, soft tissue, bone and tooth
SKIN, BONE, EDGE, JOINT = "#F6E3D8", "#EFD9A7", "#5B4520", "#0072B2"
#: States of the joint that stand for the five stages: closed share, gap in mm, strength of the scar, place on the reading scale.
STATES = (Fusion(0.0, 2.6, 0.0, 1.0), Fusion(0.4, 2.2, 0.0, 2.2), Fusion(0.8, 1.9, 0.0, 3.2), Fusion(1.0, 1.7, 1.0, 4.0), Fusion(1.0, 1.7, 0.0, 5.0))


@dataclass(frozen=True)
class Drawn:
    """One drawn person: the section `hu` (h, w), the curves of the cranial base, the sinus (h, w) bool, landmarks, and the `frame` that
    carries both to mm from the joint's centre, x forward, y down."""

    hu: np.ndarray
    sinus: np.ndarray
    base: Base
    landmarks: dict
    frame: Canvas

    def mm(self, points) -> np.ndarray:
        """Points (n, 2) of the phantom's plan, as they come to lie in this person."""
        return (self.frame.to_px(points) - self.frame.anchor_px) * self.frame.voxel_mm

    @property
    def grid(self):
        """Places of the section's columns and rows in mm."""
        return [(np.arange(n) - at) * self.frame.voxel_mm for n, at in zip(self.hu.shape[::-1], self.frame.anchor_px, strict=True)]


def drawn_person(fusion: Fusion = STATES[0], voxel_mm: float = 0.4) -> Drawn:
    """The person of the drawing with the joint in the state `fusion`; all else stays the same."""
    who, what, again = *np.random.default_rng([SEED, INDEX]).spawn(2), np.random.default_rng([SEED, INDEX]).spawn(2)[1]
    person: Person = replace(draw_person(SEED, INDEX, who), age_y=AGE_Y, sex="F", fusion=fusion)
    middle = draw_middle(person, what, voxel_mm)
    section, base = middle.section, draw_base(again, person, 0.0)
    landmarks = {name: (at - middle.frame.anchor_px) * voxel_mm for name, at in section.landmarks.items() if np.ndim(at) == 1}
    return Drawn(section.hu, section.sinus, base, landmarks, middle.frame)


# --- the anatomy ---------------------------------------------------------------------------------------------------------------------------
def areas(ax, person: Drawn, image, low: float, colour: str, width: float, order: float = 1) -> None:
    """Fill where `image` (h, w) is above `low`, and outline it."""
    ax.contourf(*person.grid, image, [low, 1e5], colors=[colour], zorder=order)
    ax.contour(*person.grid, image, [low], colors=EDGE, linewidths=width, linestyles="solid", zorder=order)


def paint_head(ax, person: Drawn, width: float = 0.6) -> None:
    """Skin, air, bones and teeth as areas with an outline, all but the cranial base."""
    mm = person.frame.voxel_mm
    hu = gaussian_filter(person.hu, 0.7 / mm)
    bone = (hu > BONE_HU) & ~binary_dilation(person.frame.mask(person.base.outline), iterations=round(1.4 / mm))
    parts, n = label(bone)
    bone[np.isin(parts, np.flatnonzero(np.bincount(parts.ravel(), minlength=n + 1) * mm**2 < 25))] = False  # crumbs of the nose's thin walls
    areas(ax, person, hu, AIR_HU, SKIN, width)
    areas(ax, person, gaussian_filter(bone.astype(float), 0.5 / mm), 0.5, BONE, width)
    areas(ax, person, hu, TOOTH_HU, "white", width)


def paint_base(ax, person: Drawn, fusion: Fusion, fine: float = 1.0, sinus: bool = True) -> None:
    """The cranial base with the joint in the state `fusion`: cartilage where it is open, a dashed line for a scar; lines `fine` times as wide."""
    ax.add_patch(Polygon(person.mm(person.base.outline), facecolor=BONE, edgecolor=EDGE, linewidth=1.3 * fine, joinstyle="round", zorder=3))
    if sinus:
        areas(ax, person, gaussian_filter(person.sinus.astype(float), 0.6 / person.frame.voxel_mm), 0.5, "white", 0.7 * fine, 4)
    u = np.linspace(-0.08, 1.08, len(person.base.joint))
    path = gaussian_filter1d(person.base.joint, 7, axis=0, mode="nearest")  # its small waves left out
    if fusion.closed < 1:
        part = path[(u > (fusion.closed or -0.1)) & (u < 1.1)]
        ax.add_patch(Polygon(person.mm(band(part, fusion.gap_mm)), facecolor=JOINT, edgecolor=EDGE, linewidth=0.4 * fine, zorder=5))
    elif fusion.scar:
        ax.plot(*person.mm(path[(u > 0.08) & (u < 0.92)]).T, color=EDGE, lw=1.1 * fine, ls=(0, (3, 1.5)), zorder=5)


def point_out(ax, labels: dict, spots: dict) -> None:
    """Labels, name → (text, x, y), each with a thin line to its spot; to the left of the spot they end at x, to its right they begin there."""
    for name, (text, x, y) in labels.items():
        left = x < spots[name][0]
        ax.annotate(text, spots[name], (x, y), ha="right" if left else "left", va="center", fontsize=7, linespacing=1.2, zorder=9,
                    annotation_clip=False, weight="bold" if name == "joint" else "normal",
                    arrowprops=dict(arrowstyle="-", lw=0.6, color="black", shrinkA=1, shrinkB=0, relpos=(float(left), 0.5)))
        ax.plot(*spots[name], "o", ms=2, color="black", mew=0, zorder=9)


def bar(ax, x: float, y: float, mm: float = 10) -> None:
    """A scale bar that ends at (x, y)."""
    ax.plot([x - mm, x], [y, y], color="black", lw=1.5, solid_capstyle="butt", zorder=9)
    ax.text(x - mm / 2, y - 1, f"{mm:g} mm", ha="center", va="bottom", fontsize=7, zorder=9)


HEAD_LABELS = {"dorsum": ("dorsum sellae", -74, -40), "joint": ("SOS", -74, -22), "clivus": ("clivus", -74, -8), "basion": ("basion", -74, 6),
               "magnum": ("foramen\nmagnum", -74, 20), "dens": ("dens of the\naxis (C2)", -74, 36), "atlas": ("atlas (C1)", -74, 50),
               "frontal": ("frontal bone", 112, -48), "nasion": ("nasion", 112, -33), "sella": ("sella turcica", 112, -18),
               "sinus": ("sphenoid\nsinus", 112, -3), "nose": ("nasal cavity", 112, 11), "palate": ("hard palate", 112, 25),
               "upper": ("upper incisor", 112, 43), "pharynx": ("pharynx", 112, 61)}
BASE_LABELS = {"dorsum": ("dorsum sellae", -15, -24), "sella": ("sella\nturcica", 9, -25), "sinus": ("sphenoid\nsinus", 22, 10),
               "endo": ("endocranial\nborder: here\nfusion begins", -18, -12), "ecto": ("ectocranial border:\nhere it ends", 4, 24),
               "basion": ("basion", -24, 14), "clivus": ("clivus", -20, 3)}


@journal
def anatomy() -> Figure:
    """The skull's base in profile, labelled: the middle of a head, the clivus enlarged, and the joint in the five stages of Bassed et al."""
    person, scheme = drawn_person(), BASSED5
    fig = plt.figure(figsize=(PAGE, 5.3))
    above, below = fig.subfigures(2, 1, height_ratios=[3.0, 2.1])
    head, near = above.subplots(1, 2, width_ratios=[1.5, 1])
    places = {"nasion": (91.5, -37.5), "magnum": (-17, 4), "frontal": (86, -62), "nose": (66, -14), "pharynx": (13, 52)}
    spots = person.landmarks | {name: person.mm([at])[0] for name, at in places.items()}
    spots |= {name: person.mm([person.base.joint[k]])[0] for name, k in (("endo", 5), ("ecto", -6))}
    paint_head(head, person)
    paint_base(head, person, STATES[0], 0.8)
    point_out(head, HEAD_LABELS, spots)
    bar(head, 108, 76)
    head.text(-20, -45, "brain", fontsize=7, style="italic", ha="center")
    head.set(xlim=(-72, 110), ylim=(78, -66))
    paint_base(near, person, STATES[0], 1.4)
    point_out(near, BASE_LABELS, spots)
    bar(near, 33, 34)
    near.set(xlim=(-40, 35), ylim=(36, -28))
    for ax, letter, title in ((head, "a", "the middle of the head, facing right"), (near, "b", "the clivus enlarged, joint open")):
        ax.set(aspect="equal", title=f"$\\bf{{{letter}}}$  {title}", anchor="N")
        ax.set_axis_off()
    for ax, letter, stage, fusion in zip(below.subplots(1, len(scheme)), "cdefg", scheme.stages, STATES, strict=True):
        paint_base(ax, drawn_person(fusion), fusion, 1.2, sinus=False)
        ax.set(aspect="equal", xlim=(-13, 13), ylim=(11, -13), xticks=[], yticks=[], title=f"$\\bf{{{letter}}}$  stage {stage.label}: {stage.name}")
        ax.set_xlabel(fill(stage.criterion, 24), fontsize=7)
        ax.spines[:].set_visible(False)
    tight(fig)
    caption(fig, "The spheno-occipital synchondrosis (SOS, blue: cartilage) and its neighbours, drawn after one virtual patient (n = 1)")
    return fig


# --- the method ----------------------------------------------------------------------------------------------------------------------------
LOSS_COLOUR = "#A33B00"
FRAME_MM = 176.0  # side of the whole image
WINDOW = (0.28, 0.24, 0.58, 0.54)  # of the expert, in shares of the image: x0, y0, x1, y1


def grid_map(ax, x: float, y: float, size: float, n: int, spot, spread: float, colour: str) -> None:
    """A map of n by n cells with its upper left at (x, y): darker near `spot` (shares of its sides)."""
    at = (np.arange(n) + 0.5) / n
    weight = np.exp(-((at[None] - spot[0]) ** 2 + (at[:, None] - spot[1]) ** 2) / (2 * spread**2))
    cell = size / n
    for i, j in np.ndindex(n, n):
        ax.add_patch(Rectangle((x + j * cell, y + i * cell), cell, cell, facecolor=colour, alpha=0.06 + 0.9 * weight[i, j], edgecolor="none"))
        ax.add_patch(Rectangle((x + j * cell, y + i * cell), cell, cell, fill=False, edgecolor="white", linewidth=0.3))
    ax.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor="black", linewidth=0.7))


def arrow(ax, start, end, style: str = "-|>", colour: str = "black", width: float = 0.9) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=8, color=colour, linewidth=width, shrinkA=0, shrinkB=0, zorder=8))


def note(ax, x: float, y: float, text: str, **style) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 7, "linespacing": 1.2, **style})


def loss(ax, x: float, y: float, text: str, lines: str) -> None:
    """The name of a loss in a box, and what it compares below it."""
    note(ax, x, y, text, weight="bold", fontsize=8, color="white", zorder=9,
         bbox=dict(boxstyle="round,pad=0.3", facecolor=LOSS_COLOUR, edgecolor="none"))
    note(ax, x + 7, y, lines, ha="left", color="black")


def bars(ax, x: float, y: float, values, colour: str, hatch: str = "") -> None:
    """Five small bars that stand on y: an opinion on the five stages."""
    for k, value in enumerate(values):
        ax.add_patch(Rectangle((x + 3 * k, y), 2.4, -12 * value, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.3))
        note(ax, x + 3 * k + 1.2, y + 2.2, f"{k + 1}")
    ax.plot([x - 0.6, x + 15], [y, y], color="black", lw=0.7)


def picture(ax, person: Drawn, place, side: float, part) -> None:
    """The drawn head in a square of `side` whose upper left is at `place`: the `part` x0, y0, x1, y1 (shares) of a square round the head."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = (place[0] - left) / (right - left), (bottom - place[1] - side) / (bottom - top)
    inner = ax.inset_axes([x, y, side / (right - left), side / (bottom - top)])
    paint_head(inner, person, 0.4)
    paint_base(inner, person, STATES[0], 0.6)
    x0, y0, x1, y1 = np.array(part) * FRAME_MM + np.array([-70, -72, -70, -72])
    inner.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[])
    inner.spines[:].set_visible(True)


@journal
def method() -> Figure:
    """Teacher and student: what each sees, and between which of their maps the three losses act. Maps and bars are invented, not results."""
    person, side = drawn_person(), 22.0
    x0, y0, x1, y1 = WINDOW
    fig, ax = plt.subplots(figsize=(PAGE, 4.3))
    ax.set(xlim=(0, 144), ylim=(81, -3), aspect="equal")
    ax.set_axis_off()
    for role, y, part in (("teacher", 6, WINDOW), ("student", 48, (0, 0, 1, 1))):
        colour, taught = ROLE_COLOURS[role], role == "student"
        n, spot, spread = (12, ((x0 + x1) / 2, (y0 + y1) / 2), 0.2 * (x1 - x0)) if taught else (5, (0.5, 0.5), 0.2)
        picture(ax, person, (1, y), side, part)
        ax.add_patch(Polygon([(31, y), (45, y + 5), (45, y + side - 5), (31, y + side)], facecolor=colour, edgecolor="black", linewidth=0.7))
        note(ax, 37.8, y + side / 2, role if taught else f"{role},\nfrozen", color="white", weight="bold")
        for x, wider in ((53, 1.4), (109, 1.0)):
            grid_map(ax, x, y, side, n, spot, spread * wider, colour)
        for start, end in ((23.5, 30.5), (45.5, 52.5), (75.5, 82.5), (100, 108)):
            arrow(ax, (start, y + side / 2), (end, y + side / 2))
        bars(ax, 84, y + side / 2 + 7, (0.45, 0.7, 0.4, 0.15, 0.1) if taught else (0.25, 0.95, 0.45, 0.08, 0.03), colour, "////" * taught)
    for x in (1, 53, 109):  # the window in the student's frame and maps
        ax.add_patch(Rectangle((x + side * x0, 48 + side * y0), side * (x1 - x0), side * (y1 - y0), fill=False, edgecolor="black", linewidth=1.1,
                               linestyle=(0, (2, 1)), zorder=8))
    for x, text in ((12, "image"), (38, "network"), (64, "spatial logits: an opinion\nat each place"),
                    (91, "logits, their mean:\nan opinion on stages"),
                    (120, "Grad-CAM, a gradient:\nwhere evidence lies")):
        note(ax, x, 1.5, text)
    note(ax, 12, 30.5, "the expert's window")
    note(ax, 12, 73, "the whole image:\nall that is needed in use")
    arrow(ax, (12, 47.5), (12, 33), colour=GREY)
    note(ax, 13.5, 40, "cut out, in\ntraining only", ha="left")
    for x, name, what in ((64, "L_dist", "KL at each\nplace of\nthe window"), (91, "L_dist", "KL of the\nsoftened\nanswers"),
                          (120, "L_attn", "KL of the maps,\nthe teacher's put\ninto its place")):
        arrow(ax, (x, 29 + (x == 91)), (x, 47 + 4 * (x == 91)), "<|-|>", LOSS_COLOUR, 1.3)
        loss(ax, x, 38, name, what)
    arrow(ax, (91, 79.5), (91, 69.5), "-|>", LOSS_COLOUR, 1.3)
    loss(ax, 91, 77, "L_cls", "cross-entropy\nwith the label")
    tight(fig)
    caption(fig, "How a crop teacher teaches a full-image student by three losses (L). A scheme: its maps and bars are invented")
    return fig
