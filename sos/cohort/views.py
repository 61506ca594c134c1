"""Pixels and the two cameras. A cohort is decoded once into one array; after that, a batch is a handful of tensor operations.

One scene, two cameras: a random geometric transform is drawn for each patient; the *frame* camera shows the whole transformed image, the
*window* camera the expert's box of the same transformed scene. Each samples the native pixels once.

Coordinates: *native* pixels of the decoded image, (x, y) with the centre of the first pixel at (0.5, 0.5); *frame* coordinates in [0, 1]²,
the square picture that a full-image network sees, the whole native image centred in it with its longer side filling it.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.data.load import DataLoader

from ..config import RunConfig, digest
from ..errors import CohortError, SOSError
from ..images.reader import read_image
from .manifest import BOX, Cohort

MEAN, STD = 0.35, 0.25  # of grey values in a frame, roughly: networks see (grey - MEAN) / STD
FINE = 2  # samples a picture pixel along each side; a frame pixel spans 2 to 4 native ones


# --- decoded pixels ------------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PixelStore:
    """All images of a cohort, decoded, as one array.

    pixels: (n, H, W) uint8, grey 0..255, each image in the upper left corner, zeros beyond. 8 bits are finer than the noise of any CBCT.
    sizes: (n, 2) int64 height and width of each image as stored. scale: (n,) stored pixels over decoded pixels (1 unless reduced to
    `native_px`). boxes: (n, 4) float32 in stored pixels. targets: (n,) int64. digest: SHA-256 of everything a network can learn from.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    scale: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray
    spacing_mm: np.ndarray
    digest: str

    def native(self, rows) -> np.ndarray:
        """The (H, W) uint8 images in `rows`, cut to the largest of them: (b, H, W)."""
        height, width = self.sizes[rows].max(0)
        return self.pixels[rows, :height, :width]


def open_store(cohort: Cohort, cache: Path, native_px: int) -> PixelStore:
    """The cohort's decoded pixels, from `cache` where its manifest and files are unchanged, else decoded now with all cores."""
    stamps = [[name, (stat := (cohort.root / name).stat()).st_size, stat.st_mtime_ns] for name in cohort.table["image"]]
    folder = Path(cache) / digest([stamps, native_px])[:16]
    if not (folder / "record.json").is_file():
        _decode(cohort, folder, native_px)
    record = json.loads((folder / "record.json").read_text())
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    scale = np.array(record["scale"], np.float32)
    boxes = cohort.table[BOX].to_numpy(np.float32) * scale[:, None]
    targets = cohort.table["target"].to_numpy(np.int64)
    known = digest([record["pixels_sha256"], cohort.table["patient_id"].tolist(), boxes.round(3).tolist(), targets.tolist(),
                    cohort.table["split"].tolist()])
    return PixelStore(pixels, np.array(record["sizes"]), scale, boxes, targets, np.array(record["spacing_mm"], np.float32), known)


def _decode(cohort: Cohort, folder: Path, native_px: int) -> None:
    def decode(row):
        path = cohort.image_path(row)
        try:
            return reduce_to(read_image(path), native_px)
        except SOSError as error:
            raise CohortError(f"row {row + 2} of {cohort.path}: {error}; mend the file or take the row out") from error

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        images = list(pool.map(decode, range(len(cohort.table))))
    sizes = np.array([grey.shape for grey, _, _ in images])
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(temporary / "pixels.npy", "w+", np.uint8, (len(images), *sizes.max(0).tolist()))
    state = hashlib.sha256()
    for i, (grey, _, _) in enumerate(images):
        pixels[i, :grey.shape[0], :grey.shape[1]] = grey
        state.update(repr(grey.shape).encode())
        state.update(np.ascontiguousarray(grey))
    pixels.flush()
    record = {"sizes": sizes.tolist(), "scale": [s for _, s, _ in images], "spacing_mm": [mm for _, _, mm in images],
              "pixels_sha256": state.hexdigest()}
    (temporary / "record.json").write_text(json.dumps(record))
    if folder.exists():
        shutil.rmtree(temporary)  # another process was quicker
    else:
        temporary.rename(folder)


def reduce_to(image, native_px: int) -> tuple[np.ndarray, float, float]:
    """A GreyImage as (h, w) uint8 with its longer side at most `native_px`; with it, stored over decoded pixels, and mm a stored pixel (nan
    where unknown)."""
    grey = torch.from_numpy(np.ascontiguousarray(image.pixels))[None, None]
    scale = min(1.0, native_px / max(grey.shape[2:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in grey.shape[2:]]
        grey = F.interpolate(grey, size=size, mode="bilinear", antialias=True, align_corners=False)
    spacing = float("nan") if image.spacing_mm is None else image.spacing_mm / scale
    return (grey[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy(), scale, spacing


# --- scenes and cameras --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scene:
    """Where each frame of a batch lies on its native image: native = centre + matrix · (frame - 0.5).

    matrix: (b, 2, 2), native pixels a frame; centre: (b, 2) native (x, y) of the frame's middle.
    """

    matrix: torch.Tensor
    centre: torch.Tensor

    def to_native(self, points: torch.Tensor) -> torch.Tensor:
        """(b, n, 2) frame points to native pixels."""
        return torch.einsum("bij,bnj->bni", self.matrix, points - 0.5) + self.centre[:, None]

    def to_frame(self, points: torch.Tensor) -> torch.Tensor:
        """(b, n, 2) native points to frame coordinates."""
        return torch.einsum("bij,bnj->bni", torch.linalg.inv(self.matrix), points - self.centre[:, None]) + 0.5

    def box_to_frame(self, boxes: torch.Tensor) -> torch.Tensor:
        """(b, 4) native boxes x0, y0, x1, y1 to frame coordinates: centre moved, sides scaled. The box stays upright under rotation and
        keeps its size, as an expert would draw it again in the turned image."""
        centre = self.to_frame(((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None])[:, 0]
        zoom = torch.linalg.det(self.matrix).abs().sqrt()  # native pixels along one frame side
        half = (boxes[:, 2:] - boxes[:, :2]) / 2 / zoom[:, None]
        return torch.cat([centre - half, centre + half], 1)


def still_scene(sizes: torch.Tensor) -> Scene:
    """The whole image (b, 2: height, width), upright and centred: what is seen in validation and in use."""
    sizes = sizes.float()
    side = sizes.amax(1)
    return Scene(torch.eye(2, device=sizes.device) * side[:, None, None], sizes.flip(1) / 2)


def random_scene(sizes: torch.Tensor, config: RunConfig, generator: torch.Generator) -> Scene:
    """One random rotation, zoom, shift and mirror for each image, in the ranges of `config`."""
    still = still_scene(sizes)
    b, device = len(sizes), sizes.device
    uniform = torch.rand(b, 5, generator=generator, device=device) * 2 - 1
    angle = torch.deg2rad(config.rotate_deg * uniform[:, 0])
    zoom = torch.exp(config.zoom * uniform[:, 1])
    mirror = torch.where(uniform[:, 4] < 2 * config.flip - 1, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], 1).view(b, 2, 2) / zoom[:, None, None]
    matrix = still.matrix @ turn
    shift = config.shift * uniform[:, 2:4]
    return Scene(matrix, still.centre + torch.einsum("bij,bj->bi", matrix, shift))


def square_window(boxes: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """(b, 4) boxes to upright squares of the same centre whose side is `scale` times the longer side."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) * scale / 2
    return torch.cat([centre - half, centre + half], 1)


def camera(native: torch.Tensor, scene: Scene, size_px: int, window: torch.Tensor | None = None) -> torch.Tensor:
    """Sample native pixels (b, 1, H, W) once into square pictures (b, 1, size_px, size_px): the frame, or the `window` (b, 4) of the frame.

    Anti-aliased: FINE × FINE samples a picture pixel, averaged. Black outside the native image.
    """
    b, _, height, width = native.shape
    span = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=native.device).expand(b, 4) if window is None else window
    side = size_px * FINE
    steps = (torch.arange(side, device=native.device) + 0.5) / side
    u = span[:, None, 0] + (span[:, 2] - span[:, 0])[:, None] * steps  # (b, side) frame x
    v = span[:, None, 1] + (span[:, 3] - span[:, 1])[:, None] * steps
    m = scene.matrix
    du, dv = u - 0.5, v - 0.5
    x = m[:, 0, 0, None, None] * du[:, None, :] + m[:, 0, 1, None, None] * dv[:, :, None] + scene.centre[:, 0, None, None]
    y = m[:, 1, 0, None, None] * du[:, None, :] + m[:, 1, 1, None, None] * dv[:, :, None] + scene.centre[:, 1, None, None]
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)  # (b, side, side, 2), -1..1 over the edges of the native array
    picture = F.grid_sample(native, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(picture, FINE)


@dataclass(frozen=True)
class Light:
    """How bright, contrasty and noisy a scene is: the same for both cameras."""

    gain: torch.Tensor  # (b, 1, 1, 1), and so the others
    offset: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def random(cls, b: int, config: RunConfig, generator: torch.Generator, device) -> "Light":
        uniform = torch.rand(4, b, 1, 1, 1, generator=generator, device=device) * 2 - 1
        return cls(torch.exp(config.gain * uniform[0]), config.offset * uniform[1], torch.exp(config.gamma * uniform[2]),
                   config.noise * (uniform[3] + 1) / 2)

    def shine(self, picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Grey values in [0, 1] under this light, in [0, 1] again."""
        noise = torch.randn(picture.shape, generator=generator, device=picture.device)
        lit = picture.clamp_min(1e-4) ** self.gamma
        return ((lit - 0.5) * self.gain + 0.5 + self.offset + self.noise * noise).clamp(0, 1)


def normalise(picture: torch.Tensor) -> torch.Tensor:
    """Grey values in [0, 1] to what networks see."""
    return (picture - MEAN) / STD


# --- batches -------------------------------------------------------------------------------------------------------------------------------
class ViewLoader(DataLoader):
    """fastai loader of views; `role` decides what is in a batch.

    teacher: (window picture, target). baseline: (frame, target). student in training: (frame, window picture, window, target) with both
    pictures of one scene and `window` (b, 4) in frame coordinates; student in validation: (frame, target).
    The order and the transforms of epoch e depend on (seed, e) alone, so that training goes on after a stop exactly as it would have.
    """

    def __init__(self, store: PixelStore, rows, config: RunConfig, *, training: bool, device="cpu", window_px: int = 0, window_scale: float = 1.0):
        super().__init__(dataset=list(rows), bs=config.batch_size if training else 2 * config.batch_size, shuffle=training, drop_last=training
                         and len(rows) >= config.batch_size, num_workers=0, device=torch.device(device))
        self.store, self.config, self.training, self.epoch = store, config, training, 0
        self.window_px, self.window_scale = window_px or config.window_px, window_scale
        self.rows = np.asarray(rows)
        self.generator = torch.Generator(device=self.device)

    def get_idxs(self):
        if not self.training:
            return list(range(self.n))
        self.generator.manual_seed(int.from_bytes(hashlib.sha256(f"{self.config.seed} {self.epoch}".encode()).digest()[:7], "big"))
        return torch.randperm(self.n, generator=self.generator, device=self.device).tolist()

    def create_batch(self, items):
        return self.views(np.asarray(items))

    def views(self, rows: np.ndarray):
        """The batch of the images in `rows`."""
        store, config = self.store, self.config
        native = torch.from_numpy(np.ascontiguousarray(store.native(rows))).to(self.device)[:, None].float() / 255
        sizes = torch.from_numpy(store.sizes[rows]).to(self.device)
        target = torch.from_numpy(store.targets[rows]).to(self.device)
        boxes = torch.from_numpy(store.boxes[rows]).to(self.device)
        if self.training:
            scene = random_scene(sizes, config, self.generator)
            light = Light.random(len(rows), config, self.generator, self.device)
            finish = lambda picture: normalise(light.shine(picture, self.generator))  # noqa: E731
        else:
            scene, finish = still_scene(sizes), normalise
        window = square_window(scene.box_to_frame(boxes), self.window_scale)
        if config.role == "teacher":
            return finish(camera(native, scene, self.window_px, window)), target
        frame = finish(camera(native, scene, config.frame_px))
        if config.role == "student" and self.training:
            return frame, finish(camera(native, scene, self.window_px, window)), window, target
        return frame, target
