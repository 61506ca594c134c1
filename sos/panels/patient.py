"""A virtual patient at sliders, staged by a network at each move.

    from sos.panels.patient import draw_patient
    draw_patient()

In people age and fusion go together, and a network may lean on either. Here one is moved while the other stands still.
"""

import io
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import ipywidgets as w
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.optimize import brentq

from ..errors import ConfigError, SOSError
from ..images.reader import GreyImage, window_of
from ..phantom.anatomy import Section, draw_section
from ..phantom.population import AGE_RANGE_Y, SCAR_LIFE_Y, Person, fuse
from ..phantom.scanner import draw_exposure, expose
from ..predict import Stager, load_stager
from ..stages import BASSED5, StagingScheme
from ..study.figures import BOX_COLOUR, HEAT, SEX_NAMES
from ..study.runs import Run
from .base import DPI, Panel, told

SHAPE = 512, 560  # of the picture, height and width in pixels: as many as the scanners of the phantom give, whatever the field
FIELD_MM = 130, 240  # least and greatest width of the field of view, those of the phantom's scanners
MOST_NOISE, NUMBERS = 3.0, 1000
CLOSE_MM = 40.0  # side of the close-up
WHOLE_PX, CLOSE_PX = [372, 340], [340, 340]  # on the screen, width and height
MARKS = (("network expects", 0.5, {"marker": "D", "color": "#D55E00"}), ("drawn", 0.8, {"marker": "<", "color": "black"}),
         ("usual at the age", 0.2, {"marker": "o", "color": "#0072B2", "markerfacecolor": "white", "markeredgewidth": 1.5}))


@dataclass(frozen=True)
class Wish:
    """What a virtual patient shall be like. Raises ConfigError for what cannot be drawn.

    number: whose head, pose and scanner, from 0. age_y: years. sex: F or M. fusion: state of the joint on the phantom's reading scale, from 1
    (open) to 5 (fused, no scar left); k + 0.5 is the border of the stages k and k + 1. noise: factor on the scanner's noise and rings.
    field_mm: width of the picture.
    """

    number: int
    age_y: float
    sex: str
    fusion: float
    noise: float
    field_mm: float

    def __post_init__(self):
        limits = {"number": (0, NUMBERS - 1), "age_y": AGE_RANGE_Y, "fusion": (1, 5), "noise": (0, MOST_NOISE), "field_mm": FIELD_MM}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} = {getattr(self, name):g}: a virtual patient's lies from {low:g} to {high:g}")
        if self.sex not in SEX_NAMES:
            raise ConfigError(f"sex = {self.sex!r}: virtual patients are F or M")

    @property
    def person(self) -> Person:
        """Who that is: the phantom's own laws give gap, closed length and scar; all readers see the true stage."""
        reached_y = brentq(lambda age_y: fuse(age_y, self.sex, SCAR_LIFE_Y).position - self.fusion, 0, 60)
        fusion = fuse(reached_y + 1e-9, self.sex, SCAR_LIFE_Y)  # a border belongs to the later stage, however the root is rounded
        return Person(self.number, self.age_y, self.sex, reached_y, fusion, (fusion.stage,) * 3, fusion.stage)

    @property
    def usual(self) -> float:
        """The state of the joint that a person of this age and sex without lead or lag is in, on the reading scale."""
        return fuse(self.age_y, self.sex, SCAR_LIFE_Y).position


@lru_cache(maxsize=1)
def draw(wish: Wish) -> tuple[GreyImage, Section]:
    """The picture as read from a file, and the section that it was made of. One number gives one head in one pose and scanner, whatever else is
    asked for."""
    _, what, how = np.random.default_rng([0, wish.number]).spawn(3)
    scan = draw_exposure(how)
    x, y = (at / side * wanted for at, side, wanted in zip(scan.joint_px, scan.shape[::-1], SHAPE[::-1], strict=True))
    scan = replace(scan, shape=SHAPE, voxel_mm=wish.field_mm / SHAPE[1], joint_px=(x, y), mirrored=False, noise=wish.noise)
    section = draw_section(wish.person, what, scan.shape, scan.voxel_mm, scan.pitch_deg, scan.joint_px, scan.off_mm, apart=True)
    values = expose(section.hu, scan, how, section.landmarks).astype(np.float32)
    low, high = window_of(values.ravel())
    return GreyImage(np.clip((values - low) / (high - low), 0, 1), scan.voxel_mm, {"warnings": []}), section


@contextmanager
def one_thread():
    """torch on one thread: so small a network gains nothing from a second, and on a busy machine the two wait for each other a second and more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def coloured(pixels: np.ndarray, part, size: list[int], heat: np.ndarray | None = None) -> np.ndarray:
    """(h, w, 3) uint8: the `part` x0, y0, x1, y1 of grey pixels in [0, 1] at the size (w, h), and over it the map (n, n) of the square frame."""
    grey = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=part))[..., None]
    if heat is None:
        return (255 * np.repeat(grey, 3, 2)).astype(np.uint8)
    rest = (max(pixels.shape) - np.array(pixels.shape)) / 2 / max(pixels.shape) * len(heat)  # rows and columns of the frame beyond the picture
    seen = (rest[1], rest[0], len(heat) - rest[1], len(heat) - rest[0])
    heat = np.asarray(Image.fromarray(heat / max(heat.max(), 1e-12)).resize(size, Image.Resampling.BILINEAR, box=seen)).clip(0, 1)
    alpha = 0.6 * np.sqrt(heat)[..., None]
    return (255 * (grey + alpha * (colormaps[HEAT](heat)[..., :3] - grey))).astype(np.uint8)


class Drawing(NamedTuple):
    """A figure, what of it changes from one patient to the next, and the rest of it, painted."""

    fig: Figure
    whole: AxesImage
    close: AxesImage
    square: Rectangle
    scale: Line2D
    bars: BarContainer
    marks: list[Line2D]
    rest: object

    @property
    def changing(self) -> list:
        return [self.whole, self.square, self.close, self.scale, *self.bars, *self.marks]


def lay_out(scheme: StagingScheme) -> Drawing:
    """The empty figure: the whole picture, its joint enlarged, and the network's probabilities of the stages; on the scale of these, marks for what
    the network expects, and, where the scale is that of the phantom, for what was drawn and for what is usual at the age."""
    across, down = 980, 370
    fig = Figure(figsize=(across / DPI, down / DPI), dpi=DPI)

    def axes(left, top, width, height):  # in pixels
        return fig.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    whole, close, bars = axes(4, 25, *WHOLE_PX), axes(4 + WHOLE_PX[0] + 8, 25, *CLOSE_PX), axes(826, 25, 140, 232)
    pictures = []
    for ax, size, extent in ((whole, WHOLE_PX, (0, SHAPE[1], SHAPE[0], 0)), (close, CLOSE_PX, (0, CLOSE_MM, CLOSE_MM, 0))):
        pictures.append(ax.imshow(np.zeros((*size[::-1], 3), np.uint8), extent=extent, interpolation="nearest", aspect="auto"))
        ax.set_axis_off()
    close.set_title(f"its joint, {CLOSE_MM:g} mm (bar 10 mm)", fontsize=9, loc="left")
    whole.set_title("whole image; in colour: Grad-CAM", fontsize=9, loc="left")
    (scale,) = close.plot((2, 12), (38.5, 38.5), color="white", lw=2, solid_capstyle="butt")
    square = whole.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=BOX_COLOUR, linewidth=0.8))
    grey = bars.barh(scheme.labels, np.zeros(len(scheme)), color="0.75", height=0.8)
    known = MARKS if scheme.labels == BASSED5.labels else MARKS[:1]
    marks = [bars.plot([x], [0], linestyle="", markersize=8, clip_on=False, label=name, **style)[0] for name, x, style in known]
    bars.set(xlim=(0, 1), ylim=(scheme.labels[-1] + 0.6, scheme.labels[0] - 0.6), xticks=(0, 0.5, 1), yticks=scheme.labels)
    bars.set_yticklabels([f"{stage.name} {stage.label}" for stage in scheme.stages])
    bars.tick_params(labelsize=8.5)
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_xlabel("probability", fontsize=9)
    bars.set_title("network", fontsize=9, loc="left")
    bars.legend(fontsize=8.5, frameon=False, loc="upper right", bbox_to_anchor=(1.05, -0.2), borderpad=0)
    canvas = FigureCanvasAgg(fig)
    changing = [*pictures, square, scale, *grey, *marks]
    for artist in changing:
        artist.set_visible(False)
    canvas.draw()
    for artist in changing:
        artist.set_visible(True)
    return Drawing(fig, *pictures, square, scale, grey, marks, canvas.copy_from_bbox(fig.bbox))


def draw_patient(network="released") -> w.DOMWidget:
    """The panel, to stand last in a cell. What cannot be used is told in its place, in one line.

    network: who stages: `released`, the student that ships with the package; a Run or its folder; None, the best student under `runs/`; a Stager.
    """
    try:
        return PatientPanel(network if isinstance(network, Stager) else load_stager(network.path if isinstance(network, Run) else network))
    except SOSError as error:
        return w.HTML(told("error", error))


class PatientPanel(Panel):
    """Sliders of a Wish above the picture that is drawn of it, its joint enlarged, and what the network makes of it."""

    def __init__(self, stager: Stager):
        self.stager, self.drawn, self._answer = stager, lay_out(stager.scheme), None
        wide = {"style": {"description_width": "74px"}, "layout": {"width": "272px"}}
        self.fusion = w.FloatSlider(2.0, min=1, max=5, step=0.05, description="Fusion", readout_format=".2f", tooltip="state of the joint: 1 open, "
                                    "5 fused without a scar; stages meet at 1.5, 2.5, 3.5 and 4.5", **wide)
        self.age = w.FloatSlider(13, min=AGE_RANGE_Y[0], max=AGE_RANGE_Y[1], step=0.25, description="Age, years", readout_format=".2f",
                                 tooltip="head, teeth and sinuses grow with it; the joint stays as it is", **wide)
        self.sex = w.Dropdown(options=[(name, sex) for sex, name in SEX_NAMES.items()], description="Sex", tooltip="whose growth the head follows",
                              style={"description_width": "74px"}, layout={"width": "190px"})
        self.noise = w.FloatSlider(1, min=0, max=MOST_NOISE, step=0.1, description="Noise", readout_format=".1f",
                                   tooltip="factor on the noise and rings of the scanner", **wide)
        self.field = w.IntSlider(170, min=FIELD_MM[0], max=FIELD_MM[1], step=2, description="Field, mm",
                                 tooltip="width of the picture; small fields show the face, large ones the head", **wide)
        self.number = w.IntSlider(7, min=0, max=NUMBERS - 1, description="Person", tooltip="whose head, pose and scanner; arrow keys go to the next",
                                  **wide)
        self.heat = w.Checkbox(True, description="Grad-CAM over the picture", indent=False, tooltip="where the network found what speaks for its "
                               "stage", layout={"width": "230px", "margin": "0 0 0 8px"})
        super().__init__([self.fusion, self.age, self.sex], [self.noise, self.field, self.number], [self.heat])

    @property
    def wish(self) -> Wish:
        """What the sliders ask for."""
        return Wish(self.number.value, self.age.value, self.sex.value, self.fusion.value, self.noise.value, self.field.value)

    @property
    def answer(self) -> dict:
        """What the network says of the picture, see `Stager.look`."""
        if self._answer is None or self._answer[0] != self.wish:
            with one_thread():
                self._answer = self.wish, self.stager.look(draw(self.wish)[0])
        return self._answer[1]

    def words(self) -> str:
        wish, answer, scheme = self.wish, self.answer, self.stager.scheme
        fusion = wish.person.fusion
        drawn, read = BASSED5.stages[BASSED5.index(fusion.stage)], scheme.stages[scheme.index(answer["stage"])]
        joint = f"gap {fusion.gap_mm:.1f} mm, {fusion.closed:.0%} closed" if fusion.closed < 1 else f"scar, {fusion.scar:.0%} of a fresh one"
        return (f"Virtual patient {wish.number}, {SEX_NAMES[wish.sex]}, {wish.age_y:.2f} years: the joint is drawn at {wish.fusion:.2f}, "
                f"stage {drawn.label} ({drawn.name}; {joint}); usual at this age and sex is {wish.usual:.2f}. The network "
                f"({self.stager.source}) reads stage {read.label} ({read.name}), probability {max(answer['probabilities']):.2f}, expected stage "
                f"{answer['expected_stage']:.2f}.")

    def figure(self) -> Figure:
        """The figure of `lay_out` with what has changed: to make it anew would take as long as to draw the patient."""
        (image, section), answer, wish, drawn = draw(self.wish), self.answer, self.wish, self.drawn
        (x, y), half = section.landmarks["joint"] + 0.5, CLOSE_MM / 2 / image.spacing_mm
        heat = answer["cam"] if self.heat.value else None
        drawn.whole.set_data(coloured(image.pixels, (0, 0, *SHAPE[::-1]), WHOLE_PX, heat))
        drawn.close.set_data(coloured(image.pixels, (x - half, y - half, x + half, y + half), CLOSE_PX))
        drawn.square.set_bounds(x - half, y - half, 2 * half, 2 * half)
        for bar, probability in zip(drawn.bars, answer["probabilities"], strict=True):
            bar.set_width(probability)
        for mark, at in zip(drawn.marks, (answer["expected_stage"], wish.fusion, wish.usual), strict=False):  # no more in another scheme
            mark.set_ydata([at])
        return drawn.fig

    def still(self) -> bytes:
        """As in every panel, in a third of the time: only what changes is painted, over the rest as it was, and the file is lightly packed."""
        self.figure()
        canvas, file = self.drawn.fig.canvas, io.BytesIO()
        canvas.restore_region(self.drawn.rest)
        for artist in self.drawn.changing:
            artist.axes.draw_artist(artist)
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(file, "PNG", compress_level=1)
        return file.getvalue()
