"""Where networks look: Grad-CAM of saved runs on held-out images seen still and whole, and the controls that every heat map has to beat.

Frame coordinates are those of `cohort.cameras`: [0, 1]², the whole image centred in the square that a full-image network sees.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..cohort.cameras import MEAN, STD, camera, square_window, still_scene
from ..cohort.manifest import Cohort
from ..cohort.views import PixelStore, Views
from ..config import RunConfig
from ..method.cam import box_mask, explain, peak
from ..method.models import Look, StagingNet, build
from .metrics import attention_metrics, interval, resamples
from .runs import Run
from .training import Study, frame_boxes, localise, use_bf16

CONTROLS = ("untrained network", "mean position", "edge filter", "random map")


def pictures(store: PixelStore, rows, config: RunConfig) -> torch.Tensor:
    """(n, 1, s, s) grey values in [0, 1] of what a network of `config` sees of the images in `rows`, un-augmented: window or frame."""
    return (Views(store, config, training=False)(np.asarray(rows))[0] * STD + MEAN).clamp(0, 1)


def still_pictures(store: PixelStore, rows, size_px: int, window: torch.Tensor | None = None) -> torch.Tensor:
    """(n, size_px, size_px) grey values in [0, 1] of the whole images in `rows`, or of their `window` (n, 4), sampled once from the stored pixels."""
    rows = np.asarray(rows)
    native = store.native_on(rows, "cpu").float() / 255
    return camera(native, still_scene(torch.from_numpy(store.sizes[rows])), size_px, window)[:, 0]


def windows(store: PixelStore, rows, scale: float = 1.0) -> torch.Tensor:
    """(n, 4) the square windows that a teacher sees of the images in `rows`, in frame coordinates."""
    return square_window(frame_boxes(store, np.asarray(rows)), scale)


def look(study: Study, run: Run, rows, target: torch.Tensor | None = None) -> tuple[Look, torch.Tensor]:
    """What a run's network makes of the images in `rows`: its Look and Grad-CAM (n, h, w), on the CPU.

    target: (n,) class to explain, counted from 0; the decided one where None. A teacher's map lies in its window, others in the frame.
    """
    net = run.load(study.device)
    net.bf16 = run.environment["precision"] == "bf16"  # as when its saved metrics were measured
    return look_with(study, net, run.config, rows, target)


def look_with(study: Study, net: StagingNet, config: RunConfig, rows, target: torch.Tensor | None = None) -> tuple[Look, torch.Tensor]:
    """The same for a network in eval mode on the study's device that sees pictures as `config` says."""
    rows = np.asarray(rows)
    views, size = Views(study.store, config, training=False, device=study.device), 2 * config.batch_size
    looks, cams = [], []
    for i in range(0, len(rows), size):
        chosen = None if target is None else target[i:i + size].to(study.device)
        seen, cam = explain(net, views(rows[i:i + size])[0], chosen, config.cam_layer)
        looks.append([part if part is None else part.cpu() for part in seen])
        cams.append(cam.cpu())
    return Look(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*looks, strict=True))), torch.cat(cams)


def untrained(config: RunConfig, stages: int, device: str, seed: int = 0) -> StagingNet:
    """A network as `config` says that has learned nothing: its Grad-CAM shows what the architecture alone does (Adebayo et al. 2018)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config, stages, bf16=use_bf16(config.precision, device))
    return net.to(device).eval()


def random_maps(n: int, grid: int, seed: int = 0) -> torch.Tensor:
    """(n, grid, grid) heat maps of someone who has not looked: white Gaussian noise, smoothed by one cell, its minimum moved to 0.

    Smoothed round the edges to the other side, so that no place is likelier than another.
    """
    noise = torch.randn(n, grid, grid, generator=torch.Generator().manual_seed(seed))
    steps = (torch.arange(grid) - torch.arange(grid)[:, None]).abs()
    bell = torch.softmax(-torch.minimum(steps, grid - steps) ** 2 / 2, 1)  # (grid, grid), each row a Gaussian round its cell
    smooth = bell @ noise @ bell.T
    return smooth - smooth.amin((1, 2), keepdim=True)


def edge_maps(grey: torch.Tensor, grid: int) -> torch.Tensor:
    """(n, grid, grid) heat maps of an edge filter: Sobel gradient of pictures (n, 1, s, s), its magnitude averaged over each cell.

    What a map shows that depends on the picture but on no training (Adebayo et al. 2018).
    """
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    gradient = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])  # (n, 2, s, s)
    size = gradient.square().sum(1, keepdim=True).sqrt()  # Tensor.norm over a short dimension is several times slower on a CPU
    return F.adaptive_avg_pool2d(size, grid)[:, 0]


def mean_position(store: PixelStore, rows, grid: int) -> torch.Tensor:
    """(grid, grid) the share of the images in `rows` whose expert's box covers each cell: where the joint usually lies, known without looking."""
    return box_mask(frame_boxes(store, np.asarray(rows)), grid).mean(0)


def localisation(study: Study, runs: dict[str, Run], split: str = "test", seed: int = 0) -> pd.DataFrame:
    """Full-image networks and the controls on the images of `split`: one row an image and `source`.

    Columns: source, patient_id, image, peak_x, peak_y (frame coordinates), pointing, energy, iou; and `joint_mm`, the distance from the peak
    to the centre of the joint, where the manifest has `joint_x` and `joint_y` and the image a spacing. runs: name → run of a full-image network.
    """
    cohort, store = study.cohort, study.store
    rows = cohort.subset(split).index.to_numpy()
    boxes = frame_boxes(store, rows)
    maps = {name: _maps(study, run, split) for name, run in runs.items()} | _control_maps(study, _unlearned(next(iter(runs.values())).config), split, seed)
    names = cohort.table.loc[rows, ["patient_id", "image"]].reset_index(drop=True)
    tables = [names.assign(source=name, **localise(cam, boxes)) for name, cam in maps.items()]
    for table in tables:
        distance = joint_distance_mm(cohort, store, rows, table["peak_x"].to_numpy(), table["peak_y"].to_numpy())
        if distance is not None:
            table["joint_mm"] = distance
    return pd.concat(tables, ignore_index=True)


@lru_cache(maxsize=32)  # several tables and figures ask for the same maps
def _maps(study: Study, run: Run, split: str) -> torch.Tensor:
    return look(study, run, study.cohort.subset(split).index.to_numpy())[1]


def _unlearned(config: RunConfig) -> RunConfig:
    """What the controls depend on: runs that differ in their training alone share them."""
    names = ("backbone", "output_stride", "cam_layer", "frame_px", "batch_size", "precision")
    return RunConfig(role="baseline", **{name: getattr(config, name) for name in names})


@lru_cache(maxsize=32)
def _control_maps(study: Study, config: RunConfig, split: str, seed: int) -> dict[str, torch.Tensor]:
    cohort, store = study.cohort, study.store
    rows = cohort.subset(split).index.to_numpy()
    blank = look_with(study, untrained(config, len(cohort.scheme), study.device, seed), config, rows)[1]
    grid = blank.shape[-1]
    prior = mean_position(store, cohort.subset("train").index.to_numpy(), grid)
    edges = torch.cat([edge_maps(pictures(store, part, config), grid) for part in np.array_split(rows, -(-len(rows) // 64))])
    return dict(zip(CONTROLS, (blank, prior.expand(len(rows), -1, -1), edges, random_maps(len(rows), grid, seed)), strict=True))


def joint_distance_mm(cohort: Cohort, store: PixelStore, rows, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """(n,) mm from the frame points x, y to the centre of the joint in the images `rows`; nan without a spacing, None without the truth."""
    if not {"joint_x", "joint_y"} <= set(cohort.table):
        return None
    rows = np.asarray(rows)
    scene = still_scene(torch.from_numpy(store.sizes[rows]))
    point = scene.to_native(torch.from_numpy(np.stack([x, y], 1)).float()[:, None])[:, 0].numpy()  # (n, 2) stored pixels
    middle = cohort.table.loc[rows, ["joint_x", "joint_y"]].to_numpy(float) + 0.5  # whole numbers are the middle of a pixel, scenes count edges
    joint = middle * store.scale[rows, None]
    return np.linalg.norm(point - joint, axis=1) * store.spacing_mm[rows]


def joint_distances(study: Study, teacher: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The distances of a localisation table, and before them those of a teacher's Grad-CAM put back to its place in the frame.

    Columns: source, patient_id, image, joint_mm. Empty where the manifest has no joint_x and joint_y.
    """
    columns = ["source", "patient_id", "image", "joint_mm"]
    if "joint_mm" not in table:
        return pd.DataFrame(columns=columns).astype({"joint_mm": float})
    rows = image_rows(study.cohort, table["image"].unique())
    spot = windows(study.store, rows, teacher.config.window_scale)  # (n, 4)
    x, y = (spot[:, :2] + peak(look(study, teacher, rows)[1]) * (spot[:, 2:] - spot[:, :2])).numpy().T
    names = study.cohort.table.loc[rows, ["patient_id", "image"]]
    mine = names.assign(source="crop teacher", joint_mm=joint_distance_mm(study.cohort, study.store, rows, x, y))
    return pd.concat([mine, table])[columns].reset_index(drop=True)


def image_rows(cohort: Cohort, images) -> np.ndarray:
    """Row numbers in the manifest of the images of those names."""
    return pd.Series(cohort.table.index, index=cohort.table["image"]).loc[list(images)].to_numpy()


def summary(table: pd.DataFrame, bootstrap: int, seed: int = 0) -> pd.DataFrame:
    """Means of a localisation table with 95 % bootstrap intervals over patients: one row a source and metric (value, low, high, n)."""
    rows = []
    for source, part in table.groupby("source", sort=False):
        point = attention_metrics(part, np.ones((1, len(part))))
        spread = attention_metrics(part, resamples(part["patient_id"], bootstrap, seed))
        rows += [{"source": source, "metric": name, "value": float(point[name][0]), **interval(spread[name]), "n": len(part)} for name in point]
    return pd.DataFrame(rows)


def summary_text(table: pd.DataFrame) -> pd.DataFrame:
    """A summary as `value (low–high)`, one row a source, one column a metric."""
    text = [f"{row.value:.2f} ({row.low:.2f}–{row.high:.2f})" for row in table.itertuples()]
    wide = table.assign(text=text).pivot(index="source", columns="metric", values="text")
    return wide.loc[table["source"].unique(), table["metric"].unique()].rename_axis(columns=None)
