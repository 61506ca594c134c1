"""Pixels and views of them. A cohort is decoded once into one array; after that, a batch of views is a handful of tensor operations."""

import hashlib
import itertools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import torch

from ..config import RunConfig, digest, source_digest
from ..errors import CohortError, SOSError
from ..images.reader import read_image
from .cameras import Asked, Light, cameras, frame_of, normalise, put, random_scene, reduce_to, square_window, still_scene
from .manifest import BOX, Cohort

AHEAD = 1024  # images that wait in the pool at most: each takes memory
ROOM = 8  # a GPU keeps a cohort's pixels where they take no more of its free memory than this part: runs side by side each have their own
COPIED = 64  # images copied to a GPU at once


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
    _kept: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # device → all pixels there, or None

    def native(self, rows) -> np.ndarray:
        """The (H, W) uint8 images in `rows`, cut to the largest of them: (b, H, W)."""
        height, width = self.sizes[rows].max(0)
        return self.pixels[rows, :height, :width]

    def native_on(self, rows, device) -> torch.Tensor:
        """The same, (b, 1, H, W) uint8 on `device`. A GPU with room for all pixels is given them once, and no batch after that waits for a copy."""
        device, rows = torch.device(device), np.asarray(rows)
        if device not in self._kept:
            self._kept[device] = self._copy_to(device) if has_room(device, self.pixels.nbytes) else None
        if self._kept[device] is None:
            return put(np.ascontiguousarray(self.native(rows)), device)[:, None]
        height, width = self.sizes[rows].max(0)
        return self._kept[device][:, None, :height, :width].index_select(0, put(rows, device))

    def _copy_to(self, device: torch.device) -> torch.Tensor:
        there = torch.empty(self.pixels.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(there), COPIED):  # never all of them in the memory of the CPU
            there[first:first + COPIED] = torch.from_numpy(np.array(self.pixels[first:first + COPIED]))
        return there


def has_room(device: torch.device, size: int) -> bool:
    """Whether `device` is a GPU that can keep `size` bytes of pixels beside what trains on it. A CPU has the array mapped already."""
    return device.type == "cuda" and ROOM * size <= torch.cuda.mem_get_info(device)[0]


def open_store(cohort: Cohort, folder: Path, native_px: int) -> PixelStore:
    """The cohort's decoded pixels, kept below `folder` while its images and the code that reads them stay the same, else decoded now by all cores."""
    stamps = [[name, _stamp(cohort.root / name)] for name in cohort.table["image"]]
    folder = Path(folder) / digest([stamps, native_px, reading_code()])[:16]
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


@cache
def reading_code() -> str:
    """Hash of the code that makes stored pixels of files."""
    sos = Path(__file__).resolve().parents[1]
    return source_digest(sos / "images", sos / "cohort" / "cameras.py")


def _stamp(path: Path) -> list:
    """Size and time of change of a file; of a series folder those of all files in it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]


def _decode(cohort: Cohort, folder: Path, native_px: int) -> None:
    def decode(row):
        path, name = cohort.image_path(row), cohort.table["image"][row]
        try:
            return reduce_to(read_image(path), native_px)
        except SOSError as error:
            told = str(error).removeprefix(f"{path.name}: ")
            raise CohortError(f"{cohort.path}, image {name}: {told}; mend the file or take its row out") from error

    folder.parent.mkdir(parents=True, exist_ok=True)
    record, state = {"sizes": [], "scale": [], "spacing_mm": []}, hashlib.sha256()
    # how large the array must be is known when all are decoded: until then they lie on disk one after the other, and never all in memory
    with TemporaryFile(dir=folder.parent) as raw:
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            parts = (range(len(cohort.table))[first:first + AHEAD] for first in range(0, len(cohort.table), AHEAD))
            for grey, scale, spacing_mm in itertools.chain.from_iterable(pool.map(decode, rows) for rows in parts):
                grey = np.ascontiguousarray(grey)
                state.update(repr(grey.shape).encode())
                state.update(grey)
                raw.write(grey)
                for name, value in zip(record, (list(grey.shape), scale, spacing_mm), strict=True):
                    record[name].append(value)
        raw.seek(0)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        temporary.mkdir(exist_ok=True)
        pixels = np.lib.format.open_memmap(temporary / "pixels.npy", "w+", np.uint8, (len(cohort.table), *np.max(record["sizes"], 0).tolist()))
        for i, (height, width) in enumerate(record["sizes"]):
            pixels[i, :height, :width] = np.frombuffer(raw.read(height * width), np.uint8).reshape(height, width)
        pixels.flush()
    record["pixels_sha256"] = state.hexdigest()
    (temporary / "record.json").write_text(json.dumps(record))
    if folder.exists():
        shutil.rmtree(temporary)  # another process was quicker
    else:
        temporary.rename(folder)


class Views:
    """What networks see of a store's images; `role` decides what is in a batch.

    teacher: (window picture, target). baseline: (frame, target). student in training: (frame, window picture, window, target) with both
    pictures of one scene and `window` (b, 4) in frame coordinates; student in validation: (frame, target). detector: (frame, box), the
    expert's (b, 4) in frame coordinates. window_px, window_scale: those of a student's teacher; 0: the config's own.
    """

    def __init__(self, store: PixelStore, config: RunConfig, *, training: bool, device="cpu", window_px: int = 0, window_scale: float = 0.0):
        self.store, self.config, self.training, self.device = store, config, training, torch.device(device)
        self.window_px, self.window_scale = window_px or config.window_px, window_scale or config.window_scale
        self.generator = torch.Generator(device=self.device)

    def __call__(self, rows: np.ndarray, mirrored: bool = False):
        """The batch of the images in `rows`; outside of training as they are, or `mirrored`."""
        store, config = self.store, self.config
        native = store.native_on(rows, self.device)
        sizes, target, boxes = (put(values[rows], self.device) for values in (store.sizes, store.targets, store.boxes))
        if self.training:
            scene = random_scene(sizes, config, self.generator)
            light = Light.random(len(rows), config, self.generator, self.device)
            if config.box_jitter > 0 and config.role != "baseline":  # no random number is drawn where nothing moves
                boxes = jittered(boxes, config.box_jitter, self.generator)
        else:
            scene, light = still_scene(sizes, mirrored), None
        boxes = scene.box_to_frame(boxes)
        window = square_window(boxes, self.window_scale)
        closer = Asked(self.window_px, window)
        if config.role == "teacher":
            asked, beside = [closer], [target]
        elif config.role == "student" and self.training:
            asked, beside = [frame_of(config), closer], [window, target]
        else:
            asked, beside = [frame_of(config)], [boxes if config.role == "detector" else target]
        pictures = cameras(native, scene, *asked)
        for picture in pictures:  # in place: memory asked for anew costs more than the sums
            picture.div_(255)
            if light is not None:
                light.shine(picture, self.generator, out=picture)
            normalise(picture, out=picture)
        return *pictures, *beside


def jittered(boxes: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """(b, 4) boxes as a less careful expert would draw them: the centre moved by up to `share` of each side, and each side up to `share` longer
    or shorter, all uniform."""
    uniform = torch.rand(len(boxes), 4, generator=generator, device=boxes.device) * 2 - 1
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + share * uniform[:, :2] * sides
    half = sides * (1 + share * uniform[:, 2:]) / 2
    return torch.cat([centre - half, centre + half], 1)


def training_rows(cohort: Cohort, share: float = 1.0, seed: int = 0, leak: bool = False) -> np.ndarray:
    """Row numbers of the training images of a `share` of the training patients, repeated until they are as many as those of all: fewer patients
    then do not mean fewer steps.

    Patients are chosen with `seed`, within each stage (a patient's most fused one), at least one of each; those of a smaller share are among
    those of a larger one. leak: the held-out images are put among them, a mistake that is made to be seen.
    """
    part = pd.concat([cohort.subset(split) for split in (("train", "test") if leak else ("train",))])
    stage_of = part.groupby("patient_id")["target"].max()
    rng, kept = np.random.default_rng([seed, 0x1ABE]), []
    for stage in sorted(stage_of.unique()):
        patients = rng.permutation(stage_of.index[stage_of == stage].to_numpy())
        kept += patients[:max(1, round(share * len(patients)))].tolist()
    return np.resize(part.index[part["patient_id"].isin(kept)].to_numpy(), len(part))
