"""Page through the patients of a cohort: the image in any window of grey values, what the expert drew, and the crop that the teacher is given.

    from sos.panels.browse import browse
    browse(study)
"""

import ipywidgets as w
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..cohort.cameras import square_window
from ..cohort.manifest import SPLITS
from ..errors import CohortError, SOSError
from ..files import leads_out
from ..study.attention import pictures
from ..study.figures import SEX_NAMES, draw_box
from ..study.training import Study
from .base import Panel, told

EXPERT, TEACHER, JOINT = "#56B4E9", "#E69F00", "#F0E442"  # of Okabe and Ito; their lines differ too
BAR_MM = 20.0
ANY = "any"


def browse(study: Study) -> w.DOMWidget:
    """The panel, to stand last in a cell. What cannot be used is told in its place, in one line."""
    try:
        return BrowsePanel(study)
    except (SOSError, OSError) as error:
        return w.HTML(told("error", error))


class BrowsePanel(Panel):
    """Filters, a patient, a window of grey values and an overlay, above the image and the teacher's crop."""

    def __init__(self, study: Study):
        self.study = study
        self.cohort, self.store, self.teacher = study.cohort, study.store, study.profile.run("teacher")
        table, scheme, narrow = self.cohort.table, self.cohort.scheme, {"description_width": "52px"}
        held = [split for split in SPLITS if (table["split"] == split).any()]
        sexes = sorted(table["sex"].dropna().unique()) if "sex" in table else []

        def choice(name: str, px: int, options) -> w.Dropdown:
            return w.Dropdown(options=[(ANY, ANY), *options], description=name, tooltip=f"show this {name.lower()} only", style=narrow,
                              layout={"width": f"{px}px"})

        self.split = choice("Split", 150, [(split, split) for split in held])
        self.stage = choice("Stage", 185, [(f"{stage.label} {stage.name}", stage.label) for stage in scheme.stages])
        self.sex = choice("Sex", 160, [(SEX_NAMES.get(sex, sex), sex) for sex in sexes])
        self.patient = w.Dropdown(options=self._names(), description="Patient", style=narrow, layout={"width": "330px"})
        self.previous = self._button("Previous", "arrow-left", -1)
        self.next = self._button("Next", "arrow-right", 1)
        sliding = {"step": 0.01, "readout_format": ".2f", "style": narrow, "layout": {"width": "300px"}}
        self.level = w.FloatSlider(0.5, min=0, max=1, description="Level", tooltip="middle of the grey values shown", **sliding)
        self.width = w.FloatSlider(1.0, min=0.05, max=1.5, description="Width", tooltip="from black to white; less, more contrast", **sliding)
        self.overlay = w.Checkbox(True, description="Boxes, joint and scale", indent=False, layout={"width": "200px", "margin": "0 0 0 8px"},
                                  tooltip="the expert's box, the teacher's window, the joint of virtual patients, a scale where the spacing is known")
        for chosen in (self.split, self.stage, self.sex):
            chosen.observe(lambda _: self._fill(), "value")
        super().__init__([self.split, self.stage, *([self.sex] if sexes else [])], [self.patient, self.previous, self.next],
                         [self.level, self.width, self.overlay])

    # ---- who is shown ----------------------------------------------------------------------------------------------

    def _names(self) -> list[tuple[str, int]]:
        """Names and row numbers of the images that the filters leave; of a patient with several images the file's name too."""
        table = self.cohort.table
        for column, chosen in (("split", self.split), ("stage", self.stage), ("sex", self.sex)):
            if chosen.value != ANY:
                table = table[table[column] == chosen.value]
        twice = self.cohort.table["patient_id"].duplicated(keep=False)
        return [(f"{name}, {image}" if twice[row] else name, row) for row, name, image in zip(table.index.tolist(), table["patient_id"],
                                                                                              table["image"], strict=True)]

    def _fill(self) -> None:
        """Offer whom the filters leave, and stay with the one shown where they leave them. The change of the filter redraws the panel."""
        names, row = self._names(), self.patient.value
        rows = [other for _, other in names]
        with self.filling():
            self.patient.options = names
            self.patient.value = row if row in rows else next(iter(rows), None)

    def _button(self, name: str, icon: str, step: int) -> w.Button:
        button = w.Button(description=name, icon=icon, tooltip=f"{name.lower()} patient; after the last comes the first", layout={"width": "110px"})
        button.on_click(lambda _: self.move(step))
        return button

    def move(self, step: int) -> None:
        """Go `step` patients on among those that the filters leave, round and round."""
        rows = [row for _, row in self.patient.options]
        if rows:
            self.patient.value = rows[(rows.index(self.patient.value) + step) % len(rows)]

    @property
    def row(self) -> int:
        """Row number of the image shown. Raises CohortError where the filters leave none."""
        if self.patient.value is None:
            raise CohortError("no image is of this split, stage and sex; set one of them to any")
        return self.patient.value

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def words(self) -> str:
        row, scheme = self.row, self.cohort.scheme
        about = self.cohort.table.loc[row]
        rows = [other for _, other in self.patient.options]
        stage = scheme.stages[scheme.index(about["stage"])]
        sex, age, device = about.get("sex"), about["age_y"], about.get("device")
        who = [SEX_NAMES.get(sex, sex) if isinstance(sex, str) else "sex unknown", f"{age:.1f} years" if age == age else "age unknown"]
        who += [f"device {device}"] if pd.notna(device) else []
        (height, width), mm = np.rint(self.store.sizes[row] / self.store.scale[row]).astype(int), self.decoded_mm
        size = f"{width} × {height} pixels" + (f" of {mm:.3g} mm" if mm > 0 else ", spacing unknown")
        kind = "Virtual patient" if self.cohort.virtual else "Patient"
        return (f"{kind} {about['patient_id']} ({rows.index(row) + 1} of {len(rows)}): stage {stage.label} ({stage.name}), {', '.join(who)}; {size}; "
                f"split {about['split']}.")

    @property
    def decoded_mm(self) -> float:
        """Millimetres a pixel of the image as decoded: as the file says, else as the manifest says, else nan."""
        mm = float(self.store.spacing_mm[self.row] * self.store.scale[self.row])
        return mm if mm == mm else _number(self.cohort.table.loc[self.row].get("spacing_mm"))

    def figure(self) -> Figure:
        row, store, teacher = self.row, self.store, self.teacher
        height, width = store.sizes[row]
        fig = Figure(figsize=(9.8, 4.6))
        whole, crop = (fig.add_axes(place) for place in ((0.004, 0.01, 0.55, 0.93), (0.566, 0.01, 0.43, 0.93)))
        grey = {"cmap": "gray", "vmin": self.level.value - self.width.value / 2, "vmax": self.level.value + self.width.value / 2}
        whole.imshow(store.pixels[row, :height, :width] / 255, extent=(0, width, height, 0), **grey)
        whole.set_title("the image", fontsize=9, loc="left")
        crop.imshow(pictures(store, [row], teacher)[0, 0].numpy(), extent=(0, 1, 1, 0), interpolation="nearest", **grey)
        crop.set_title(f"what the teacher is given: {teacher.window_px} × {teacher.window_px} pixels", fontsize=9, loc="left")
        for ax in (whole, crop):
            ax.set(xticks=[], yticks=[], anchor="NW")
        if self.overlay.value:
            self._overlay(whole)
        whole.set(xlim=(0, width), ylim=(height, 0))
        return fig

    def _overlay(self, ax) -> None:
        """Boxes, the joint where the truth is known, and the scale, in stored pixels."""
        row, store = self.row, self.store
        box = store.boxes[row]
        draw_box(ax, box, edgecolor=EXPERT, linewidth=2.4, label="expert's box")
        draw_box(ax, square_window(torch.from_numpy(box[None]), self.teacher.window_scale)[0], edgecolor=TEACHER, linewidth=1.4, linestyle="--",
                 label="teacher's window")
        height, width = store.sizes[row]
        if (mask := self._mask()) is not None:
            ax.contour(mask, [0.5], colors=JOINT, linewidths=0.9, extent=(0, width, 0, height))
            ax.plot([], [], color=JOINT, linewidth=0.9, label="joint as drawn")
        about = self.cohort.table.loc[row]
        x, y = ((_number(about.get(name)) + 0.5) * store.scale[row] for name in ("joint_x", "joint_y"))  # whole numbers are the middle of a pixel
        if x == x and y == y:
            ax.plot(x, y, "+", color=JOINT, markersize=9, label="its centre")
        if (mm := self.decoded_mm) > 0:
            long = BAR_MM / mm * store.scale[row]
            ax.plot([0.03 * width, 0.03 * width + long], [0.97 * height] * 2, color="white", linewidth=2.5, solid_capstyle="butt")
            ax.text(0.03 * width, 0.955 * height, f"{BAR_MM:g} mm", color="white", fontsize=8.5, va="bottom",
                    bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0})
        ax.legend(loc="upper left", fontsize=8, framealpha=0.75, facecolor="black", labelcolor="white", edgecolor="none")

    def _mask(self) -> np.ndarray | None:
        """The joint's mask (h, w) bool beside a virtual cohort, None where there is none."""
        name = self.cohort.table.loc[self.row].get("mask")
        path = self.cohort.root / name if isinstance(name, str) else None
        if path is None or not path.is_file() or leads_out(path, self.cohort.root):
            return None
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
        return mask if min(mask.shape) > 1 and 0 < mask.mean() < 1 else None  # of an empty one there is no outline


def _number(value) -> float:
    """A number of a column that may be missing or hold words: then nan."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
