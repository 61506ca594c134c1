"""Pictures of an answer: the heat map over the image, its peak and the box looked at, and the probabilities. Each says that it is for research only.

`answer` is what `Stager.look` returns, `cam` the heat map (n, n) over the square frame, `stager` who answered.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from . import __version__
from .images.reader import GreyImage

CAPTURE_PX, PANEL_PX, LEAST_PX = 900, 480, 640  # of a capture: longer side of the image, width of the panel beside it, least height
DPI = 100
WARNING = "RESEARCH USE ONLY\nnot for clinical decisions"


def overlay(ax, image: GreyImage, cam: np.ndarray, answer: dict) -> None:
    """Draw the image, the heat map over it, the box and the peak, in pixels of the image."""
    height, width = image.pixels.shape
    x0, y0, x1, y1 = image.record.get("content") or (0, 0, width, height)
    side = max(x1 - x0, y1 - y0)
    frame = ((x0 + x1 - side) / 2, (x0 + x1 + side) / 2, (y0 + y1 + side) / 2, (y0 + y1 - side) / 2)  # the square frame in pixels of the image
    ax.imshow(image.pixels, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    heat = np.clip(cam / max(cam.max(), 1e-12), 0, 1)
    ax.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * heat**0.5, extent=frame, interpolation="bilinear")
    if answer["box"]:
        x0, y0, x1, y1 = answer["box"]
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="cyan", linewidth=1.2))
        ax.plot(*answer["peak"], "+", color="cyan", markersize=8)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def save_picture(path: Path, image: GreyImage, cam: np.ndarray, answer: dict, stager) -> None:
    """The image beside its heat map, peak and box looked at, and the probabilities of the stages, as PNG."""
    height, width = image.pixels.shape
    fig = Figure(figsize=(8.4, 3.4), layout="constrained")
    plain, seen, bars = fig.subplots(1, 3, width_ratios=(3, 3, 2))
    plain.imshow(image.pixels, cmap="gray", vmin=0, vmax=1)
    plain.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    overlay(seen, image, cam, answer)
    plain.set_title(f"stage {answer['stage']}  (expected {answer['expected_stage']:.2f})", fontsize=9)
    seen.set_title("Grad-CAM, its peak, and the box looked at", fontsize=9)
    labels = [str(label) for label in stager.scheme.labels]
    bars.barh(labels, answer["probabilities"], color="0.45")
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="probability", ylabel="stage")
    bars.tick_params(labelsize=8)
    fig.supxlabel(f"{stager.source}; research use only", fontsize=7, color="0.4")
    fig.savefig(path, dpi=150, metadata={"Software": None})


def capture(image: GreyImage, cam: np.ndarray, answer: dict, stager) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3) uint8 for a picture archive: the image at its top left with heat map, box and peak, the answer in words beside it; and
    how many of its pixels one pixel of the image is long. Nothing from a header is written on it."""
    height, width = image.pixels.shape
    scale = CAPTURE_PX / max(height, width)
    across, down = max(round(width * scale), 1), max(round(height * scale), 1)
    size = across + PANEL_PX, max(down, LEAST_PX)
    fig = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="black")
    canvas = FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 1 - down / size[1], across / size[0], down / size[1]))
    overlay(ax, image, cam, answer)
    ax.set_aspect("auto")  # as `across` and `down` are whole numbers
    ax.axis("off")
    _panel(fig, across, size, answer, stager)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy(), scale


def _panel(fig, left: int, size: tuple[int, int], answer: dict, stager) -> None:
    """The column of words right of `left` pixels in a figure of `size` pixels: what was answered, by whom, and what it is not for."""
    width, height = size

    def write(x, y, text, size_pt, color="white", **options):  # pixels from the panel's top left
        fig.text((left + x) / width, 1 - y / height, text, fontsize=size_pt, color=color, va="top", **options)

    stage = stager.scheme.stages[stager.scheme.index(answer["stage"])]
    write(24, 20, WARNING, 18, "#ff6a5a", weight="bold", linespacing=1.3)
    write(24, 104, f"SOS fusion stage {stage.label}: {stage.name}", 20, weight="bold")
    write(24, 144, f"scheme: {stager.scheme.source.partition(';')[0]}", 11, "0.75")
    bars = fig.add_axes(((left + 150) / width, 1 - 380 / height, (PANEL_PX - 240) / width, 190 / height), facecolor="0.12")
    names = [f"{known.label}  {known.name}" for known in stager.scheme.stages]
    bars.barh(names, answer["probabilities"], color=["#f9b641" if known == stage else "0.55" for known in stager.scheme.stages])
    for row, p in enumerate(answer["probabilities"]):
        bars.text(1.04, row, f"{p:.3f}", color="white", fontsize=12, va="center")
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xticks=[])
    bars.tick_params(colors="white", labelsize=12, length=0)
    write(24, 168, "probability", 11, "0.75")
    write(24, 396, f"expected stage {answer['expected_stage']:.2f}     uncertainty {answer['uncertainty']:.2f}", 13)
    legend = ("cyan box: region that the network looked at\ncyan cross: peak of the heat map (Grad-CAM)" if answer["box"] else
              "the network looked nowhere in particular;\ndo not trust this stage")
    write(24, 432, legend, 12, linespacing=1.4)
    trained = "trained on virtual patients only" if stager.virtual else "trained on the cohort of one group"
    write(24, 500, f"sos {__version__}\n{stager.source}\n{trained}\nno regulatory approval; computed without a reader", 11, "0.75", linespacing=1.4)
