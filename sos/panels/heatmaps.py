"""Where networks look, patient by patient: Grad-CAM of the main networks of a study, by network, explained stage and layer.

    from sos.panels.heatmaps import heatmaps
    heatmaps("quick")
"""

from typing import NamedTuple

import ipywidgets as w
import torch
from matplotlib.figure import Figure

from ..config import CAM_LAYERS
from ..errors import SOSError
from ..study.attention import windows
from ..study.figures import BOX_COLOUR, ROLE_COLOURS, draw_box, overlay
from ..study.results import ROLE_NAMES
from ..study.training import localise
from .base import told
from .networks import FULL_SIDE, HEAT_PX, Networks, Styled, bare

DECIDED, LABEL = "decided", "label"
AROUND = 2.2  # side of the enlarged part over the longer side of the expert's box


def heatmaps(study, seed: int | None = None) -> w.DOMWidget:
    """The panel, to stand last in a cell: heat maps of the networks of `study` (a Study, or a profile's name) that are finished, of one seed.

    Nothing is trained; what cannot be shown is told in the panel's place, in one line.
    """
    try:
        return HeatMaps(Networks(study, seed))
    except (SOSError, OSError) as error:
        return w.HTML(told("error", error))


class Seen(NamedTuple):
    """What a network makes of an image: probabilities (k,), the explained class, the map (1, h, w) over the frame, and what `localise` says of it."""

    probabilities: torch.Tensor
    explained: int
    cam: torch.Tensor
    found: dict[str, float]

    @property
    def decided(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def empty(self) -> bool:
        return not bool(self.cam.max() > 0)


class HeatMaps(Styled):
    """A held-out patient, what a network decided, and where the heat of one stage lies, beside the expert's box."""

    def __init__(self, networks: Networks):
        self.networks = networks
        scheme = networks.study.cohort.scheme
        self.model = w.Dropdown(options=[(ROLE_NAMES[model], model) for model in networks.runs], description="Network",
                                value="student" if "student" in networks.runs else next(iter(networks.runs)))
        self.patient = w.Dropdown(options=networks.patients("test"), description="Patient")
        self.stage = w.Dropdown(options=[("decided stage", DECIDED), ("reader's label", LABEL),
                                         *((networks.named(k), k) for k in range(len(scheme)))], description="Explain")
        self.layer = w.Dropdown(options=[(f"{layer} layer", layer) for layer in CAM_LAYERS], description="Layer")
        self.opacity = w.FloatSlider(1.0, min=0, max=1, step=0.05, description="Opacity", readout_format=".2f")
        rows = [[self.model, self.patient], [self.stage, self.layer, self.opacity]]
        super().__init__(*rows, *([[w.HTML(told("plain", networks.missing))]] if networks.missing else []))

    def seen(self) -> Seen:
        """What the chosen network makes of the chosen patient."""
        networks, model, row = self.networks, self.model.value, self.patient.value
        target = {DECIDED: None, LABEL: networks.target(row)}.get(self.stage.value, self.stage.value)
        look, cam = networks.look(model, row, target, self.layer.value)
        cam = networks.in_frame(model, row, cam)
        found = {name: float(value[0]) for name, value in localise(cam, networks.box(row)).items()}
        return Seen(look.logits[0].softmax(0), int(look.logits[0].argmax()) if target is None else target, cam, found)

    def words(self) -> str:
        seen, networks, row = self.seen(), self.networks, self.patient.value
        where = "of the crop round the expert's box " if self.model.value == "teacher" else ""
        decided = (f"On {networks.whom(row)} the {ROLE_NAMES[self.model.value]} decides for {networks.named(seen.decided)} with a probability of "
                   f"{seen.probabilities[seen.decided]:.2f}; the reader's label is {networks.named(networks.target(row))}. "
                   f"Its heat map {where}for {networks.named(seen.explained)}")
        if seen.empty:
            return f"{decided} is zero everywhere: on this layer nothing speaks for that stage."
        side = "inside" if seen.found["pointing"] else "outside"
        return f"{decided} peaks {side} the expert's box, and {100 * seen.found['energy']:.0f} % of the heat lies in the box."

    def figure(self) -> Figure:
        networks, row, seen = self.networks, self.patient.value, self.seen()
        near = windows(networks.study.store, [row], AROUND)
        x0, y0, x1, y1 = near[0].tolist()
        fig = Figure(figsize=(8.8, 3.75), layout="none")
        whole, close, bars = (fig.add_axes(place) for place in ((0.01, 0.07, 0.355, 0.84), (0.375, 0.07, 0.355, 0.84), (0.835, 0.18, 0.15, 0.73)))
        title = "zero everywhere" if seen.empty else f"largest value {float(seen.cam.max()):.2g}"
        for ax, place, name in ((whole, None, f"whole image; heat: {title}"), (close, (x0, y0, x1, y1), "round the expert's box (dashed)")):
            ax.imshow(networks.picture(row, place), vmin=0, vmax=1, extent=FULL_SIDE if place is None else (x0, x1, y1, y0))
            overlay(ax, seen.cam[0], HEAT_PX, FULL_SIDE)
            heat = ax.images[-1]
            heat.set_alpha(self.opacity.value * heat.get_alpha())
            bare(ax, name)
            draw_box(ax, networks.box(row)[0], linestyle="--")
            if not seen.empty:
                ax.plot(seen.found["peak_x"], seen.found["peak_y"], "+", color=BOX_COLOUR, markersize=11, markeredgewidth=1.8)
        close.set(xlim=(x0, x1), ylim=(y1, y0))
        scheme, target = networks.study.cohort.scheme, networks.target(row)
        drawn = bars.barh(range(len(scheme)), seen.probabilities.numpy(), color=ROLE_COLOURS[self.model.value], height=0.7)
        drawn[target].set(edgecolor="black", linewidth=1.6)
        bars.set_yticks(range(len(scheme)), [f"{stage.label} {stage.name}" for stage in scheme.stages])
        bars.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="probability")
        bars.set_title("stage (outlined: label)", loc="right")
        bars.invert_yaxis()
        networks.note(fig, row)
        return fig
