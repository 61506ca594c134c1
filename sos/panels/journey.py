"""One patient's way through both networks: from the expert's box to the teacher's answer, and from the whole image to the student's, step by step.

    from sos.panels.journey import journey
    journey("quick")
"""

from functools import lru_cache
from typing import NamedTuple

import ipywidgets as w
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from ..errors import SOSError
from ..method.cam import peak
from ..method.losses import align
from ..study.attention import pictures
from ..study.figures import BOX_COLOUR, ROLE_COLOURS, STYLE, draw_box, overlay
from ..study.training import localise
from .base import as_png, told
from .networks import FULL_SIDE, HEAT_PX, KEPT, Networks, Styled, bare

BOTH = ("teacher", "student")
OUTCOMES = {(True, True): "both right", (True, False): "only the teacher right", (False, True): "only the student right",
            (False, False): "both wrong"}
STEPS = ("the image", "what each is given", "scores by place", "the same places", "heat", "probabilities")


def journey(study, seed: int | None = None) -> w.DOMWidget:
    """The panel, to stand last in a cell: held-out patients of `study` (a Study, or a profile's name) and its teacher and student of one seed, both
    finished.

    Nothing is trained; what cannot be shown is told in the panel's place, in one line.
    """
    try:
        return Journey(Networks(study, seed, needed=BOTH))
    except (SOSError, OSError) as error:
        return w.HTML(told("error", error))


class Way(NamedTuple):
    """What one network makes of a patient on the way: the picture given (s, s), its spatial logits (k, h, w), its map (h, w) and the same over the
    whole image (1, g, g), and its probabilities (k,)."""

    given: torch.Tensor
    spatial: torch.Tensor
    cam: torch.Tensor
    heat: torch.Tensor
    probabilities: torch.Tensor

    @property
    def decided(self) -> int:
        return int(self.probabilities.argmax())


class Journey(Styled):
    """A patient chosen by outcome, and a slider that reveals the steps of the way one by one, each explained in plain words."""

    def __init__(self, networks: Networks):
        self.networks = networks
        self.way = lru_cache(KEPT)(self._way)
        right = {model: run.test.set_index("image").eval("decided == stage") for model, run in networks.runs.items() if model in BOTH}
        self.outcomes = {name: [image for image, hit in right["teacher"].items() if (hit, right["student"][image]) == key]
                         for key, name in OUTCOMES.items()}
        known = [(f"{name} ({len(images)})", name) for name, images in self.outcomes.items() if images]
        self.outcome = w.Dropdown(options=known, description="Outcome")
        self.patient = w.Dropdown(options=networks.patients("test", self.outcomes[self.outcome.value]), description="Patient")
        self.step = w.IntSlider(1, min=1, max=len(STEPS), description="Step")
        self.back, self.next = w.Button(description="Back"), w.Button(description="Next")
        self.back.on_click(lambda _: setattr(self.step, "value", self.step.value - 1))  # the slider holds it within its ends
        self.next.on_click(lambda _: setattr(self.step, "value", self.step.value + 1))
        self.outcome.observe(self._list, "value")  # before the panel itself, which draws what this leaves
        super().__init__([self.outcome, self.patient], [self.step, self.back, self.next])

    def _list(self, _) -> None:
        with self.filling():
            self.patient.options = self.networks.patients("test", self.outcomes[self.outcome.value])

    def show(self) -> None:
        self.back.disabled, self.next.disabled = self.step.value == 1, self.step.value == len(STEPS)
        super().show()

    # ---- computing -------------------------------------------------------------------------------------------------

    def _way(self, model: str, row: int) -> Way:
        networks = self.networks
        look, cam = networks.look(model, row)
        given = pictures(networks.study.store, [row], networks.runs[model].config)[0, 0]
        return Way(given, look.spatial[0], cam[0], networks.in_frame(model, row, cam), look.logits[0].softmax(0))

    def inside(self, row: int) -> torch.Tensor:
        """(k, h, w) the student's spatial logits inside the window, at the places of the teacher's grid, before L_dist scales them."""
        return align(self.way("student", row).spatial[None], self.networks.window(row), self.way("teacher", row).spatial.shape[1:])[0]

    # ---- showing ---------------------------------------------------------------------------------------------------

    def words(self) -> str:
        return f"Step {self.step.value} of {len(STEPS)}. {getattr(self, f'_step_{self.step.value}')(self.patient.value)}"

    def kept(self) -> bytes:
        """The whole way."""
        with plt.style.context(["default", STYLE]):
            return as_png(self.figure(len(STEPS)))

    def _step_1(self, row: int) -> str:
        networks = self.networks
        return (f"On the image of {networks.whom(row)}, labelled {networks.named(networks.target(row))}, an expert has drawn a box round the joint "
                "(dashed). The teacher may look only into the square window round that box (solid line). The student gets the whole image, and "
                "nobody tells it where the joint is.")

    def _step_2(self, row: int) -> str:
        sizes = {model: self.way(model, row).given.shape[0] for model in BOTH}
        across = float(self.networks.window(row)[0, 2] - self.networks.window(row)[0, 0]) * sizes["student"]
        return (f"The teacher is given the window alone, at {sizes['teacher']} × {sizes['teacher']} pixels. The student is given the whole image at "
                f"{sizes['student']} × {sizes['student']} pixels, of which the same window is only about {across:.0f} pixels wide.")

    def _step_3(self, row: int) -> str:
        teacher, student = (self.way(model, row) for model in BOTH)
        grids = {name: " × ".join(map(str, way.spatial.shape[1:])) for name, way in (("teacher", teacher), ("student", student))}
        return (f"Each network divides its picture into places, {grids['teacher']} for the teacher and {grids['student']} for the student, and gives "
                f"each place a score for each stage. Shown are the scores for the stage that it will decide for, "
                f"{self.networks.named(teacher.decided)} for the teacher and {self.networks.named(student.decided)} "
                "for the student: the darker, the more a place speaks for it.")

    def _step_4(self, row: int) -> str:
        return ("Now both are asked about the same places: the student's scores are read off inside the window, on the teacher's grid, each map on "
                f"a scale of its own, both for {self.networks.named(self.way('teacher', row).decided)}. In training the student learned to give "
                "scores like the teacher's here. This is how it gets to know what the teacher sees in the joint.")

    def _step_5(self, row: int) -> str:
        found = {model: localise(self.way(model, row).heat, self.networks.box(row)) for model in BOTH}
        said = {model: "is empty: no place stands out" if not self.way(model, row).heat.max() > 0 else
                f"is hottest {'inside' if values['pointing'][0] else 'outside'} the expert's box, which holds {100 * values['energy'][0]:.0f} % of "
                "the heat"
                for model, values in found.items()}
        return (f"A heat map (Grad-CAM) shows which places carried the decision. The teacher's {said['teacher']}. "
                f"The student's {said['student']}; it was never shown the box of this patient.")

    def _step_6(self, row: int) -> str:
        networks, ways = self.networks, [self.way(model, row) for model in BOTH]
        answers = [f"{networks.named(way.decided)} with a probability of {way.probabilities[way.decided]:.2f}" for way in ways]
        outcome = OUTCOMES[tuple(way.decided == networks.target(row) for way in ways)]
        return ("The mean of the scores over all places becomes a probability for each stage. "
                f"The teacher answers {answers[0]}, the student {answers[1]}. "
                f"The reader's label is {networks.named(networks.target(row))}: {outcome}.")

    def figure(self, shown: int = 0) -> Figure:
        """The way up to step `shown`; 0: the one that the slider says."""
        row, shown = self.patient.value, shown or self.step.value
        fig = Figure(figsize=(9, 4.0), layout="none")
        for j, title in enumerate(STEPS[:shown]):
            fig.text(0.108 + 0.163 * j, 0.955, f"{j + 1}  {title}", ha="center", va="center", weight="bold" if j + 1 == shown else "normal")
            for i, model in enumerate(BOTH):
                ax = fig.add_axes((0.033 + 0.163 * j, 0.55 - 0.455 * i, 0.15, 0.37))
                ax.set_xlabel(getattr(self, f"_draw_{j + 1}")(ax, model, row), fontsize=7, labelpad=3)
                if j == 0:
                    ax.set_ylabel(model, weight="bold", color=ROLE_COLOURS[model])
        self.networks.note(fig, row)
        return fig

    def _draw_1(self, ax, model: str, row: int) -> str:
        ax.imshow(self.networks.picture(row), vmin=0, vmax=1, extent=FULL_SIDE)
        bare(ax)
        if model == "student":
            return "whole image"
        draw_box(ax, self.networks.window(row)[0], edgecolor="white")
        draw_box(ax, self.networks.box(row)[0], linestyle="--")
        return "box (dashed) and window"

    def _draw_2(self, ax, model: str, row: int) -> str:
        given = self.way(model, row).given
        ax.imshow(given.numpy(), vmin=0, vmax=1, extent=FULL_SIDE, interpolation="nearest")
        bare(ax)
        return f"{given.shape[1]} × {given.shape[0]} pixels"

    def _draw_3(self, ax, model: str, row: int) -> str:
        way = self.way(model, row)
        words = self._scores(ax, way.spatial[way.decided], way.decided)
        if model == "student":
            draw_box(ax, self.networks.window(row)[0], edgecolor="black", linewidth=1.4)
        return words

    def _draw_4(self, ax, model: str, row: int) -> str:
        decided = self.way("teacher", row).decided
        scores = self.way("teacher", row).spatial if model == "teacher" else self.inside(row)
        return self._scores(ax, scores[decided], decided)

    def _scores(self, ax, scores: torch.Tensor, target: int) -> str:
        ax.imshow(scores.numpy(), cmap="Blues", interpolation="nearest", extent=FULL_SIDE)
        bare(ax)
        ax.spines[:].set(visible=True, color="black")
        label = self.networks.study.cohort.scheme.labels[target]
        return f"stage {label}: {float(scores.min()):.1f} to {float(scores.max()):.1f}".replace("-", "−")

    def _draw_5(self, ax, model: str, row: int) -> str:
        way, box, window = self.way(model, row), self.networks.box(row)[0], self.networks.window(row)[0]
        ax.imshow(way.given.numpy() if model == "teacher" else self.networks.picture(row), vmin=0, vmax=1, extent=FULL_SIDE)
        overlay(ax, way.cam, HEAT_PX, FULL_SIDE)
        bare(ax)
        if model == "teacher":  # the box in coordinates of its window
            corner, side = window[:2].repeat(2), (window[2:] - window[:2]).repeat(2)
            box = (box - corner) / side
        draw_box(ax, box, linestyle="--")
        if way.cam.max() > 0:
            ax.plot(*peak(way.cam[None])[0].tolist(), "+", color=BOX_COLOUR, markersize=9, markeredgewidth=1.6)
        return f"for stage {self.networks.study.cohort.scheme.labels[way.decided]}"

    def _draw_6(self, ax, model: str, row: int) -> str:
        way, stages = self.way(model, row), self.networks.study.cohort.scheme.stages
        drawn = ax.bar(range(len(stages)), way.probabilities.numpy(), color=ROLE_COLOURS[model], width=0.75)
        drawn[self.networks.target(row)].set(edgecolor="black", linewidth=1.6)
        for k, p in enumerate(way.probabilities.tolist()):
            ax.text(k, p + 0.02, f"{p:.2f}", ha="center", va="bottom", fontsize=7)
        ax.set_xticks(range(len(stages)), [stage.label for stage in stages])
        ax.set(ylim=(0, 1.12), yticks=[])
        ax.set_box_aspect(1)
        ax.tick_params(length=0, pad=2)
        ax.spines["left"].set_visible(False)
        return "stage (outlined: label)"
