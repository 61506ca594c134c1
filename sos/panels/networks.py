"""What the panels on trained networks share: the finished main networks of a study, each loaded once, and what was asked of them before."""

from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from ..config import MODELS
from ..errors import CohortError, RunError
from ..method.cam import over_picture
from ..method.models import Look
from ..study.attention import look_with, still_pictures, windows
from ..study.figures import GREY, STYLE
from ..study.grid import find, has_cohort
from ..study.results import ROLE_NAMES
from ..study.training import Study, frame_boxes
from .base import Panel

PICTURE_PX, HEAT_PX = 320, 160  # sides of the pictures that panels show, and of the heat that lies over them
FULL_SIDE = (0, 1, 1, 0)  # extent of a square picture in frame coordinates
KEPT = 64  # answers and pictures that are kept


class Networks:
    """The main networks of a study that are finished on disk, of one seed. Trains nothing, draws no cohort, and writes nothing into a run.

    study: a Study, or the name of a profile. seed: the profile's first where None. needed: models (of MODELS) without which there is nothing to
    show; one of any kind where empty. Raises ConfigError for an unknown profile, CohortError where its cohort is not there, RunError where a needed
    network is not.
    """

    def __init__(self, study, seed: int | None = None, needed: tuple[str, ...] = ()):
        self.study = study if isinstance(study, Study) else Study(study)
        profile = self.study.profile
        if not has_cohort(self.study):
            raise CohortError(f"the cohort of the profile '{profile.name}' is not drawn yet; run notebook 01 first")
        found = {model: find(self.study, [profile.run(model, seed)]) for model in MODELS}
        self.runs = {model: runs[0] for model, runs in found.items() if runs and runs[0].weights.is_file()}
        self.need(needed if needed or self.runs else MODELS)
        self.net, self.look, self.picture = lru_cache(self._net), lru_cache(KEPT)(self._look), lru_cache(KEPT)(self._picture)

    def need(self, models) -> None:
        """Raises RunError where one of `models` is not trained."""
        lacking = [model for model in models if model not in self.runs]
        if lacking:
            raise RunError(f"not trained yet in {self.study.folder}: {_named(lacking)}; run the notebooks 02 to 04 first, or `sos train`")

    @property
    def missing(self) -> str:
        """The main networks that are not trained yet, in words; empty where all are."""
        lacking = [model for model in MODELS if model not in self.runs]
        return f"not trained yet: {_named(lacking)}" if lacking else ""

    def _net(self, model: str) -> nn.Module:
        """The network in eval mode, in the precision in which it was evaluated."""
        net = self.runs[model].load(self.study.device)
        net.bf16 = self.runs[model].environment["precision"] == "bf16"
        return net

    def _look(self, model: str, row: int, target: int | None = None, layer: str = "") -> tuple[Look, torch.Tensor]:
        """`attention.look` at one image with the map of a `layer`, of CAM_LAYERS; the run's own where empty."""
        config = self.runs[model].config
        config = config.with_(cam_layer=layer) if layer else config
        return look_with(self.study, self.net(model), config, [row], None if target is None else torch.tensor([target]))

    def _picture(self, row: int, window: tuple[float, ...] | None = None) -> np.ndarray:
        """(PICTURE_PX, PICTURE_PX) grey values of an image, or of its window (x0, y0, x1, y1) in frame coordinates."""
        return still_pictures(self.study.store, [row], PICTURE_PX, None if window is None else torch.tensor([window]))[0].numpy()

    def box(self, row: int) -> torch.Tensor:
        """(1, 4) the expert's box in frame coordinates."""
        return frame_boxes(self.study.store, [row])

    def window(self, row: int) -> torch.Tensor:
        """(1, 4) the window that the teacher of these networks sees, in frame coordinates."""
        run = self.runs.get("teacher")
        return windows(self.study.store, [row], run.config.window_scale if run else self.study.profile.teacher.window_scale)

    def in_frame(self, model: str, row: int, cam: torch.Tensor) -> torch.Tensor:
        """A model's maps (1, h, w) as maps of the whole picture: a teacher's are those of its window."""
        return over_picture(cam, self.window(row) if model == "teacher" else None)

    def patients(self, split: str, images=None) -> list[tuple[str, int]]:
        """(what to call it, row) of each image of a `split`, or of those of its `images`. Raises CohortError where there is none."""
        cohort = self.study.cohort
        part = cohort.subset(split)
        part = part if images is None else part[part["image"].isin(images)]
        if not len(part):
            raise CohortError(f"{cohort.path}: no patient in the split '{split}'; give more patients, or fill in the split column")
        twice = part["patient_id"].duplicated(keep=False)
        return [(f"{patient}{f' ({image})' if several else ''}, stage {stage}", int(row)) for row, patient, image, stage, several in
                zip(part.index, part["patient_id"], part["image"], part["stage"], twice, strict=True)]

    def whom(self, row: int) -> str:
        """`virtual patient V0001-00003`."""
        cohort = self.study.cohort
        return f"{'virtual ' if cohort.virtual else ''}patient {cohort.table.at[row, 'patient_id']}"

    def note(self, fig: Figure, row: int) -> None:
        """Whom a picture shows, small, in its lower right corner."""
        fig.text(0.995, 0.012, f"{self.whom(row)}, labelled {self.named(self.target(row))}; n = 1", ha="right", va="bottom", fontsize=7, color=GREY)

    def target(self, row: int) -> int:
        """The reader's label of an image, counted from 0."""
        return int(self.study.store.targets[row])

    def named(self, target: int) -> str:
        """`stage 2 (endocranial)` of a class counted from 0."""
        stage = self.study.cohort.scheme.stages[target]
        return f"stage {stage.label} ({stage.name})"


def _named(models) -> str:
    return ", ".join(ROLE_NAMES[model] for model in models)


class Styled(Panel):
    """A panel whose picture is drawn in the style of the figures, whatever the notebook has set."""

    def still(self) -> bytes:
        with plt.style.context(["default", STYLE]):
            return super().still()


def bare(ax, title: str = "") -> None:
    """An axis of a picture in frame coordinates: no ticks, no spines, cut to the frame."""
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="center")
