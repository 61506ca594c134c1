"""What a student is taught by: the loss terms of one patient under other weights, temperatures and distances, and what a few steps on them change.

    from sos.panels.terms import terms
    terms("quick")
"""

import copy
from functools import lru_cache
from typing import NamedTuple

import ipywidgets as w
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from ..cohort.views import Views
from ..config import ATTENTION_DISTANCES, EVIDENCES, RunConfig
from ..errors import SOSError
from ..method.cam import explain, judge_map, map_of, paste, unit_mass
from ..method.distill import distillation_terms
from ..method.models import Look
from ..study.figures import GREY, HEAT, ROLE_COLOURS, draw_box
from ..study.results import ROLE_NAMES, STUDENTS
from ..study.training import CLIP
from .base import told
from .networks import FULL_SIDE, KEPT, Networks, Styled, bare

HATCHES = {"L_cls": "", "L_dist": "//", "L_attn": "..", "L_aim": "xx"}
STEP = 0.01  # of gradient descent, along a gradient whose norm is cut to CLIP as in training: small enough that the total falls at each
SPLITS = {"held out": "test", "in training": "train"}


def terms(study, seed: int | None = None) -> w.DOMWidget:
    """The panel, to stand last in a cell: the loss terms of one patient for the teacher and a student of `study` (a Study, or a profile's name) of
    one seed, both finished.

    Nothing is trained but a copy of the student, which is kept nowhere; what cannot be shown is told in the panel's place, in one line.
    """
    try:
        networks = Networks(study, seed, needed=("teacher",))
        if not set(STUDENTS) & set(networks.runs):
            networks.need(("student",))
        return Terms(networks)
    except (SOSError, OSError) as error:
        return w.HTML(told("error", error))


class Lesson(NamedTuple):
    """A patient seen still, as training sees a batch of one: frame, window (1, 4), target and explained class (1,), the teacher's Look of the
    window and its map there; all on the study's device."""

    frame: torch.Tensor
    window: torch.Tensor
    target: torch.Tensor
    explained: torch.Tensor
    teacher: Look
    teacher_cam: torch.Tensor


class Measured(NamedTuple):
    """Unweighted terms by name, image logits (k,) of student and teacher, and the two maps (h, w) that L_attn compares, as they are."""

    terms: dict[str, float]
    student: torch.Tensor
    teacher: torch.Tensor
    student_map: torch.Tensor
    teacher_map: torch.Tensor


class Terms(Styled):
    """Sliders of T and weights; probabilities at T, terms and the two maps of L_attn, before and after steps on a copy of the student."""

    def __init__(self, networks: Networks):
        self.networks, self.version = networks, 0  # version: counts the states that the copy has had
        self.lesson, self.answer = lru_cache(KEPT)(self._lesson), lru_cache(KEPT)(self._answer)
        students = [model for model in STUDENTS if model in networks.runs]
        own = networks.runs[students[0]].config
        wide = {"style": {"description_width": "116px"}}

        def slider(value, low, high, step, name):
            return w.FloatSlider(value, min=low, max=max(high, value), step=step, description=name, readout_format=".2f", **wide)

        self.model = w.Dropdown(options=[(ROLE_NAMES[model], model) for model in students], description="Student", **wide)
        self.split = w.Dropdown(options=list(SPLITS.items()), description="Patients", **wide)
        self.patient = w.Dropdown(options=networks.patients("test"), description="Patient", **wide)
        self.temperature = slider(own.temperature, 0.5, 10, 0.5, "Temperature T")
        self.weights = {name: slider(getattr(own, f"w_{name}"), 0, 2, 0.05, f"Weight of L_{name}") for name in ("cls", "dist", "attn", "aim")}
        self.distance = w.Dropdown(options=ATTENTION_DISTANCES, value=own.attn_distance, description="Map distance", **wide)
        self.evidence = w.Dropdown(options=EVIDENCES, value=own.evidence, description="Evidence", **wide)
        self.step, self.steps, self.reset = (w.Button(description=name) for name in ("1 step", "10 steps", "Reset"))
        self.step.on_click(lambda _: self.go(1))
        self.steps.on_click(lambda _: self.go(10))
        self.reset.on_click(lambda _: self.go(0))
        self.split.observe(self._list, "value")  # before the panel itself, which draws what these leave
        for control in (self.model, self.patient):
            control.observe(self._forget, "value")
        self._forget()
        super().__init__([self.model, self.split, self.patient, self.temperature, self.distance, self.evidence, *self.weights.values()],
                         [w.Label("Steps on this patient, by a copy of the student:"), self.step, self.steps, self.reset])

    # ---- state -----------------------------------------------------------------------------------------------------

    def _list(self, _) -> None:
        with self.filling():
            self.patient.options = self.networks.patients(self.split.value)

    def _forget(self, *_) -> None:
        """Back to the student as it was trained."""
        self.copy, self.taken = None, 0

    def show(self) -> None:
        looks = self.networks.runs[self.model.value].config.looks
        self.weights["aim"].layout.display = None if looks == 2 else "none"  # a student that looks once has no L_aim
        self.step.disabled = self.steps.disabled = not any(self.weight(name) for name in self.weights)
        self.reset.disabled = not self.taken
        super().show()

    def weight(self, name: str) -> float:
        """The weight of a term, `cls` to `aim`; 0 of one that the student does not have."""
        return 0.0 if name == "aim" and self.networks.runs[self.model.value].config.looks == 1 else self.weights[name].value

    def config(self, attention: bool) -> RunConfig:
        """The student's configuration as the controls have changed it, its weights on or off: terms are weighted here. attention: whether L_attn
        carries gradient."""
        return self.networks.runs[self.model.value].config.with_(
            temperature=self.temperature.value, attn_distance=self.distance.value, evidence=self.evidence.value, w_cls=1.0, w_dist=1.0,
            w_attn=float(attention), w_aim=1.0)

    # ---- computing -------------------------------------------------------------------------------------------------

    def _lesson(self, model: str, row: int) -> Lesson:
        study, runs = self.networks.study, self.networks.runs

        def views(run):
            return Views(study.store, run.config, training=False, device=study.device)(np.array([row]))

        frame, target = views(runs[model])
        config = runs[model].config
        teacher, cam = explain(self.networks.net("teacher"), views(runs["teacher"])[0], None if config.cam_target == "teacher" else target,
                               config.cam_layer)
        explained = teacher.logits.argmax(1) if config.cam_target == "teacher" else target
        return Lesson(frame, self.networks.window(row).to(study.device), target, explained, teacher, cam)

    def _answer(self, model: str, row: int, version: int) -> tuple[Look, torch.Tensor, torch.Tensor | None]:
        """Look and map (1, h, w) of the student (version 0) or of its copy after some steps, and where it is the explained one its previous map."""
        net, lesson, layer = self.copy if version else self.networks.net(model), self.lesson(model, row), self.networks.runs[model].config.cam_layer
        look, cam = explain(net, lesson.frame, lesson.explained, layer)
        with torch.no_grad():
            return look, cam, map_of(net, net.view(lesson.frame)[0], layer) if layer == "previous" else None

    def measure(self, version: int) -> Measured:
        """What the picture shows of the student (version 0) or of its copy; the backbone's answer is kept, whatever T, weights and distances are."""
        model, row = self.model.value, self.patient.value
        net, lesson = self.copy if version else self.networks.net(model), self.lesson(model, row)
        look, cam, lower = self.answer(model, row, version)
        own = net.judge(look.features.detach().requires_grad_())._replace(window=look.window)
        previous = None
        if lower is not None:
            lower = lower.detach().requires_grad_()
            previous = lower, judge_map(net, lower, "previous").logits
        found = distillation_terms(own, lesson.teacher, lesson.teacher_cam, lesson.window, lesson.target, self.config(attention=False), previous)
        placed = paste(lesson.teacher_cam, lesson.window, cam.shape[-1])
        return Measured({name: float(term.detach()) for name, term in found.items()},
                        *(part[0].detach().cpu() for part in (look.logits, lesson.teacher.logits, cam, placed)))

    def measured(self) -> tuple[Measured, Measured]:
        """The student as it was trained, and its copy after the steps, both under the settings of now."""
        before = self.measure(0)
        return before, self.measure(self.version) if self.taken else before

    def go(self, steps: int) -> None:
        """Take steps of gradient descent on the copy with the weights of now, on this patient alone, its norms' statistics fixed; 0: forget them."""
        if steps == 0:
            self._forget()
        elif any(map(self.weight, self.weights)):
            self.copy = self.copy or copy.deepcopy(self.networks.net(self.model.value))
            for _ in range(steps):
                self._descend(torch.optim.SGD(self.copy.parameters(), STEP))
            self.taken, self.version = self.taken + steps, self.version + 1
        self.show()

    def _descend(self, optimiser: torch.optim.Optimizer) -> None:
        lesson, net, config, previous = self.lesson(self.model.value, self.patient.value), self.copy, self.config(self.weight("attn") > 0), None
        if config.cam_layer == "previous":
            lower = map_of(net, net.view(lesson.frame)[0], "previous")
            previous = lower, judge_map(net, lower, "previous").logits
        found = distillation_terms(net.look(lesson.frame), lesson.teacher, lesson.teacher_cam, lesson.window, lesson.target, config, previous)
        optimiser.zero_grad()
        sum(self.weight(name.removeprefix("L_")) * term for name, term in found.items()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()

    # ---- showing ---------------------------------------------------------------------------------------------------

    def parts(self, measured: Measured) -> dict[str, tuple[float, float, float, float]]:
        """By term: unweighted, weight, weighted, share of the total (0 where that is 0)."""
        weighted = {name: self.weight(name.removeprefix("L_")) * value for name, value in measured.terms.items()}
        total = sum(weighted.values())
        return {name: (value, self.weight(name.removeprefix("L_")), weighted[name], weighted[name] / total if total else 0.0)
                for name, value in measured.terms.items()}

    def words(self) -> str:
        before, after = self.measured()
        parts = self.parts(after)
        sum_of = " + ".join(f"{weight:g} × {name} {value:.3f} ({100 * share:.0f} %)" for name, (value, weight, _, share) in parts.items())
        made = (f"For {self.networks.whom(self.patient.value)} at T = {self.temperature.value:g} the {ROLE_NAMES[self.model.value]}'s L_total is "
                f"{sum_of} = {sum(part[2] for part in parts.values()):.3f}")
        if not any(part[1] for part in parts.values()):
            return made + "; all weights are 0, so there is nothing to learn and no step to take."
        if not self.taken:
            return made + "."
        changes = ", ".join(f"{name} {before.terms[name]:.3f} → {after.terms[name]:.3f}" for name in parts)
        return made + f"; {self._steps()} on this patient alone changed {changes}."

    def _steps(self) -> str:
        return f"{self.taken} step{'s' if self.taken > 1 else ''}"

    def figure(self) -> Figure:
        before, after = self.measured()
        fig = Figure(figsize=(8.8, 5.2), layout="none")
        self._probabilities(fig.add_axes((0.065, 0.6, 0.38, 0.335)), before, after)
        self._bars(fig.add_axes((0.53, 0.6, 0.46, 0.335)), after)
        self._maps(fig, before, after)
        self.networks.note(fig, self.patient.value)
        return fig

    def _probabilities(self, ax, before: Measured, after: Measured) -> None:
        stages, colour = self.networks.study.cohort.scheme.stages, ROLE_COLOURS[self.model.value]
        rows = [("teacher", before.teacher, ROLE_COLOURS["teacher"], ""), ("student", before.student, colour, "//")]
        rows += [(f"after {self._steps()}", after.student, "white", "xx")] if self.taken else []
        places, width = np.arange(len(stages)), 0.8 / len(rows)
        for i, (name, logits, face, hatch) in enumerate(rows):
            share = torch.softmax(logits / self.temperature.value, 0).numpy()
            ax.bar(places + (i - (len(rows) - 1) / 2) * width, share, width, label=name, color=face, hatch=hatch,
                   edgecolor=colour if face == "white" else "white")
        target = self.networks.target(self.patient.value)
        ax.set_xticks(places, [f"{stage.label}{'*' if k == target else ''}" for k, stage in enumerate(stages)])
        ax.set(ylim=(0, 1), xlabel="stage (*: reader's label)", ylabel="softmax(logits / T)", title=f"softened at T = {self.temperature.value:g}")
        ax.legend(loc="lower right", bbox_to_anchor=(1.01, 1), ncols=3, columnspacing=0.8, handlelength=1.4, borderaxespad=0.2)

    def _bars(self, ax, after: Measured) -> None:
        parts = self.parts(after)
        top = max(part[2] for part in parts.values()) or 1.0
        for i, (name, (value, weight, weighted, share)) in enumerate(parts.items()):
            ax.barh(i, weighted, color="0.72", hatch=HATCHES[name], edgecolor="0.35", height=0.6)
            ax.text(weighted + 0.02 * top, i, f"{value:.3f} × {weight:g} = {weighted:.3f}  ({100 * share:.0f} %)", va="center")
        ax.set_yticks(range(len(parts)), parts)
        ax.set(xlim=(0, 1.8 * top), ylim=(len(parts) - 0.4, -0.6), xlabel="weighted term (nats; of cosine and mse: no unit)",
               title="unweighted × weight = weighted (share of L_total)")

    def _maps(self, fig: Figure, before: Measured, after: Measured) -> None:
        row, window = self.patient.value, self.networks.window(self.patient.value)[0]
        maps = {"teacher's heat, put\nback into the frame": before.teacher_map, "student's heat": before.student_map}
        maps |= {f"student's heat\nafter {self._steps()}": after.student_map} if self.taken else {}
        mass = {name: unit_mass(cam[None])[0] for name, cam in maps.items()}
        top = max(float(cam.max()) for cam in mass.values())
        axes = [fig.add_axes((0.01 + 0.228 * i, 0.03, 0.215, 0.4)) for i in range(4)]
        axes[0].imshow(self.networks.picture(row), vmin=0, vmax=1, extent=FULL_SIDE)
        bare(axes[0], "image and window")
        for ax, (name, cam) in zip(axes[1:], mass.items(), strict=False):
            shown = ax.imshow(cam.numpy(), cmap=HEAT, vmin=0, vmax=top, interpolation="nearest", extent=FULL_SIDE)
            bare(ax, name)
        for ax in axes[:1 + len(mass)]:
            draw_box(ax, window)
        for ax in axes[1 + len(mass):]:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "after steps:\nnone taken yet", ha="center", va="center", color=GREY, transform=ax.transAxes)
        bar = fig.colorbar(shown, cax=fig.add_axes((0.932, 0.06, 0.012, 0.34)))
        bar.set_label("share of the mass in a cell")
