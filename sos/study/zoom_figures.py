"""Figures of the student that looks twice: what it saw at each look, and how well it aims."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torchvision.ops import box_iou

from ..method.cam import class_score, grad_cam
from ..method.zoom import gaze
from . import attention
from .attention import image_rows, windows
from .figures import GREY, PAGE, ROLE_COLOURS, caption, draw_box, example_rows, journal, overlay, people
from .runs import Run
from .training import Study

WINDOW = ["window_x0", "window_y0", "window_x1", "window_y1"]
GOOD = 0.5  # IoU from which detectors call a box found


@journal
def two_looks(study: Study, run: Run, most: int = 4) -> Figure:
    """Held-out patients of median age in their stage: the glance with the window that the network chose, the gaze, and Grad-CAM on it."""
    cohort = study.cohort
    labels = [cohort.scheme.labels[i] for i in np.unique(np.linspace(0, len(cohort.scheme) - 1, most).round().astype(int))]
    rows = np.array([row for label in labels for row in example_rows(cohort, label, 1, "test")])
    net, config = run.load(study.device), run.config
    frames = attention.pictures(study.store, rows, config).to(study.device)  # (n, 1, s, s) grey
    seen, _ = attention.look(study, run, rows)
    glances = F.interpolate(frames, size=(config.glance_px,) * 2, mode="area")[:, 0].cpu()
    gazes = gaze(frames, seen.window.to(study.device), config.window_px)[:, 0].cpu()
    close = net.judge(seen.features.to(study.device).requires_grad_())
    cams = grad_cam(close.features, class_score(close.logits, close.logits.argmax(1))).detach().cpu()
    boxes, experts = attention.frame_boxes(study.store, rows), windows(study.store, rows)
    fig, axes = plt.subplots(3, len(rows), figsize=(PAGE, 3 * PAGE / len(rows) * 0.97 + 0.5), squeeze=False)
    for j, row in enumerate(rows):
        decided, true = cohort.scheme.labels[int(seen.logits[j].argmax())], cohort.table.loc[row, "stage"]
        for i, picture in enumerate((glances[j], gazes[j], gazes[j])):
            axes[i, j].imshow(picture, vmin=0, vmax=1, extent=(0, 1, 1, 0))
            axes[i, j].set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
            axes[i, j].spines[:].set_visible(False)
        draw_box(axes[0, j], boxes[j])
        draw_box(axes[0, j], seen.window[j], edgecolor=ROLE_COLOURS["zoom"], linewidth=1.8, linestyle=(0, (3, 1.2)))
        overlay(axes[2, j], cams[j], config.window_px, (0, 1, 1, 0))
        overlap = float(box_iou(seen.window[j:j + 1], experts[j:j + 1]))
        axes[0, j].set_title(f"stage {true}; IoU {overlap:.2f}", loc="center")
        axes[2, j].set_xlabel(f"network: stage {decided}", fontsize=7)
    for ax, name in zip(axes[:, 0], (f"glance, {config.glance_px} px", f"gaze, {config.window_px} px", "Grad-CAM on the gaze"), strict=True):
        ax.set_ylabel(name)
    caption(fig, f"Held-out images; blue: expert's box, purple, dashed: the window that the network chose; IoU: with the teacher's window; "
                 f"n = {people(cohort.virtual, len(rows))}")
    return fig


@journal
def aiming(study: Study, runs: list[Run]) -> Figure:
    """How well the network aims on held-out images: IoU of its window with the teacher's, and the accuracy by that IoU."""
    cohort = study.cohort
    table = aim_table(study, runs)
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    left.hist(table["iou"], np.linspace(0, 1, 41), color=ROLE_COLOURS["zoom"])
    left.axvline(GOOD, color=GREY, lw=0.8, ls=":")
    left.set(xlabel="IoU of own and teacher's window", ylabel="images", title=f"{100 * (table['iou'] >= GOOD).mean():.1f} % at {GOOD:g} or above")
    ordered = table.sort_values("iou", ignore_index=True)
    parts = np.array_split(np.arange(len(ordered)), max(1, min(5, len(ordered) // 20)))
    shown = [(ordered.loc[part, "iou"].mean(), ordered.loc[part, "right"].mean(), len(part)) for part in parts]
    right.plot(*np.array(shown).T[:2], marker="o", color=ROLE_COLOURS["zoom"])
    which = "the images" if len(parts) == 1 else f"each of {len(parts)} equal parts of the images"
    right.set(xlabel=f"mean IoU of {which}", ylabel="share staged right", xlim=(0, 1), ylim=(0, 1), title="does a poor aim cost accuracy?")
    n = people(cohort.virtual, table["patient_id"].nunique())
    caption(fig, f"Held-out images, {len(runs)} {'seed' if len(runs) == 1 else 'seeds'}; n = {n}")
    return fig


def aim_table(study: Study, runs: list[Run]) -> pd.DataFrame:
    """One row a held-out image and run: patient_id, iou (of own and teacher's window), right (whether its stage is)."""
    rows = []
    for run in runs:
        test = run.test
        experts = windows(study.store, image_rows(study.cohort, test["image"]))
        own = torch.from_numpy(test[WINDOW].to_numpy(np.float32))
        iou = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(own, experts, strict=True)]).numpy()
        rows.append(pd.DataFrame({"patient_id": test["patient_id"], "iou": iou, "right": test["decided"] == test["stage"]}))
    return pd.concat(rows, ignore_index=True)
