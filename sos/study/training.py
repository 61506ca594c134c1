"""From a cohort and a RunConfig to a finished run: found on disk, or trained and evaluated. The training itself is the room `fitting`, which is
loaded, and fastai with it, only where something is trained."""

import json
import os
import shutil
import time
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..cohort.cameras import still_scene
from ..cohort.manifest import Cohort, read_manifest
from ..cohort.views import PixelStore, Views, open_store
from ..config import MODELS, TAUGHT_ROLES, Profile, RunConfig, get_profile, runs_dir
from ..cores import keep_freed_memory
from ..errors import ConfigError, OutOfTime
from ..files import alone, note_result
from ..method.cam import box_mask, enlarge, explain, peak
from ..method.models import StagingNet
from ..phantom.write import write_cohort
from ..stages import get_scheme
from .metrics import measure
from .runs import Run, machine_record, round_weights, run_name, save_weights, training_code

CLIP = 1.0  # largest norm of a step's gradient: most steps meet it, and the spikes of a gradient through a heat map cannot end a training
WARM_UP = 0.1  # share of the steps in which the learning rate rises; fastai's 0.25 wastes epochs where there are few
CAM_PX = 96  # side of the grid on which heat maps are compared with boxes


class Study:
    """A profile on a cohort: finds each run on disk or makes it. Without a manifest the cohort is the profile's virtual one, drawn on first use."""

    def __init__(self, profile: str | Profile, cohort: str | os.PathLike = "", device: str | None = None, devices: int = 1):
        self.profile = profile if isinstance(profile, Profile) else get_profile(profile)
        self.manifest = Path(cohort) if cohort else None
        self.folder = runs_dir(self.profile.name, cohort)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.devices = devices  # that train a run together
        keep_freed_memory()

    @cached_property
    def cohort(self) -> Cohort:
        """The checked manifest, drawn first where it is the virtual cohort and not there yet."""
        profile = self.profile
        manifest = self.manifest or write_cohort(self.folder / "cohort", profile.patients, profile.cohort_seed)
        return read_manifest(manifest, get_scheme(profile.scheme), valid_share=profile.valid_share, test_share=profile.test_share, seed=profile.cohort_seed)

    @cached_property
    def store(self) -> PixelStore:
        """Decoded pixels of the cohort."""
        return open_store(self.cohort, self.folder / "cache", self.profile.native_px)

    def teacher(self, seed: int | None = None) -> Run:
        """The crop teacher's run."""
        return self.obtain(self.profile.run("teacher", seed))

    def baseline(self, seed: int | None = None) -> Run:
        """The run of the plain full-image network."""
        return self.obtain(self.profile.run("baseline", seed))

    def student(self, seed: int | None = None) -> Run:
        """The run of the distilled full-image network."""
        return self.obtain(self.profile.run("student", seed))

    def zoom(self, seed: int | None = None) -> Run:
        """The run of the distilled network that looks twice."""
        return self.obtain(self.profile.run("zoom", seed))

    def obtain(self, config: RunConfig, keep_weights: bool = True) -> Run:
        """The run of `config`: from disk where it is finished, else trained now (its teacher first), going on from its last checkpoint.

        keep_weights: False where only metrics and predictions are asked for; the profile's own main runs keep theirs always.
        """
        keep_weights = keep_weights or config in [self.profile.run(model, seed) for model in MODELS for seed in self.profile.seeds]
        teacher = self.obtain(self.profile.teacher_of(config)) if config.role in TAUGHT_ROLES else None
        path = self.folder / "models" / run_name(config, self.store.digest, self.profile.scheme, teacher and teacher.name)
        wanted = [path / "config.json"] + [path / "weights.safetensors"] * keep_weights
        if not all(file.is_file() for file in wanted):
            deadline = float(os.environ.get("SOS_DEADLINE", "inf"))
            with alone(path.with_name(f".{path.name}.lock"), deadline):
                if all(file.is_file() for file in wanted):  # made by another process while we waited
                    return Run(path)
                self._train(config, teacher, path, keep_weights)
            if time.time() > deadline:
                raise OutOfTime(f"stopped in time after training the {config.role}, which is saved; the next call goes on")
        return Run(path)

    def _train(self, config: RunConfig, teacher: Run | None, path: Path, keep_weights: bool) -> None:
        from .detector import stage_found
        from .fitting import fit

        work = path.with_name(f".{path.name}.partial")
        work.mkdir(parents=True, exist_ok=True)
        if self.devices == 1:
            net, history, seconds = fit(config, self.store, self.cohort, work / "checkpoint.pt", teacher, self.device)
        else:
            from .devices import fit_on_devices

            net, history, seconds = fit_on_devices(self, config, work / "checkpoint.pt", teacher)
        held_out = self.cohort.table.index[self.cohort.table["split"] != "train"].to_numpy()
        answers = partial(evaluate, net)
        if config.role == "detector":
            mentor = teacher.load(self.device)
            mentor.bf16 = net.bf16
            answers = partial(stage_found, net, mentor, teacher.config)
        predictions = answers(self.store, self.cohort, held_out, config, self.device)
        test = predictions[predictions["split"] == "test"]
        mirrored = answers(self.store, self.cohort, held_out, config, self.device, mirrored=True)
        record = {"config": config.resolved(), "scheme": self.profile.scheme, "virtual": self.cohort.virtual, "patients": len(self.cohort.table),
                  "native_px": self.profile.native_px, "data": self.store.digest, "code": training_code(), "teacher": teacher and teacher.name}
        environment = machine_record(self.device) | {"precision": "bf16" if net.bf16 else "fp32", "seconds": round(seconds, 1)}
        if self.devices > 1:  # of them each trained with its share of batch_size
            environment |= {"devices": self.devices, "images_a_device": config.batch_size // self.devices}
        for name, table in (("predictions", predictions), ("mirrored", mirrored), ("history", history)):
            table.to_csv(work / f"{name}.csv", index=False, float_format="%.6g")
        for name, value in (("metrics", measure(test, self.profile.bootstrap)), ("environment", environment), ("config", record)):
            (work / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
        if keep_weights:
            save_weights(round_weights(net.state_dict()), work / "weights.safetensors")
        (work / "checkpoint.pt").unlink(missing_ok=True)
        old = work.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():  # finished before without its weights
            path.rename(old)
        note_result(path)
        work.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def train(role: str, profile: str = "quick", cohort: str = "", seed: int | None = None, overrides: dict | None = None, devices: int = 1) -> Run:
    """Train one run of a profile, with changed settings where `overrides` says so; found on disk where it is finished already.

    devices: GPUs (CPU processes where there is none) that share each batch of it.
    """
    if devices != 1 and not find_spec("accelerate"):
        raise ConfigError("--devices needs accelerate; install it with `pip install accelerate`")
    study = Study(profile, cohort, devices=devices)
    return study.obtain(study.profile.run(role, seed).with_(**(overrides or {})))


@torch.no_grad()
def evaluate(net: StagingNet, store: PixelStore, cohort: Cohort, rows: np.ndarray, config: RunConfig, device: str = "cpu",
             mirrored: bool = False) -> pd.DataFrame:
    """Predictions for the images in `rows`, seen still and whole, or `mirrored`: one row an image.

    Columns: patient_id, image, split, stage, target, p1…pk, decided (a stage's label); for full-image networks also peak_x, peak_y (of the
    Grad-CAM of the decided stage, in [0, 1] of the frame), pointing (peak inside the expert's box), energy (share of the map inside it) and
    iou (of the box and the region above half of the peak); for those that look twice window_x0 to window_y1, where in the frame they looked closer.
    """
    views, size = Views(store, config, training=False, device=device), 2 * config.batch_size
    looks, located, chosen = [], [], []
    for i in range(0, len(rows), size):
        look, cam = explain(net, views(np.asarray(rows[i:i + size]), mirrored)[0], layer=config.cam_layer)
        looks.append(look.logits.cpu())
        if config.role != "teacher":
            located.append(localise(cam.cpu(), frame_boxes(store, rows[i:i + size], mirrored)))  # here, so that maps of all are never held
        chosen += [] if look.window is None else [look.window.cpu()]
    table = cohort.table.loc[rows, ["patient_id", "image", "split", "stage", "target"]].reset_index(drop=True)
    probabilities = torch.cat(looks).softmax(1).numpy().astype(float)
    for k in range(probabilities.shape[1]):
        table[f"p{k + 1}"] = probabilities[:, k]
    table["decided"] = np.array(cohort.scheme.labels)[probabilities.argmax(1)]
    if config.role == "teacher":
        return table
    if chosen:
        table[["window_x0", "window_y0", "window_x1", "window_y1"]] = torch.cat(chosen).numpy()
    return table.assign(**{name: np.concatenate([part[name] for part in located]) for name in located[0]})


def frame_boxes(store: PixelStore, rows: np.ndarray, mirrored: bool = False) -> torch.Tensor:
    """(n, 4) expert boxes of still frames, in [0, 1]."""
    return still_scene(torch.from_numpy(store.sizes[rows]), mirrored).box_to_frame(torch.from_numpy(store.boxes[rows]))


def localise(cams: torch.Tensor, boxes: torch.Tensor) -> dict[str, np.ndarray]:
    """How well heat maps (n, h, w) of frames agree with boxes (n, 4) in [0, 1]: peak_x, peak_y, pointing, energy, iou, each (n,)."""
    x, y = peak(cams).T
    maps = enlarge(cams, CAM_PX)
    inside = box_mask(boxes, CAM_PX)
    mass = maps.sum((1, 2))
    energy = torch.where(mass > 0, (maps * inside).sum((1, 2)) / mass.clamp_min(1e-12), 0.0)
    region = (maps > 0.5 * maps.amax((1, 2), keepdim=True)).float()
    overlap = (region * inside).sum((1, 2))
    pointing = (x >= boxes[:, 0]) & (x < boxes[:, 2]) & (y >= boxes[:, 1]) & (y < boxes[:, 3]) & (mass > 0)
    values = {"peak_x": x, "peak_y": y, "pointing": pointing, "energy": energy,
              "iou": overlap / (region.sum((1, 2)) + inside.sum((1, 2)) - overlap).clamp_min(1e-12)}
    return {name: value.numpy().astype(float) for name, value in values.items()}


def use_bf16(precision: str, device: str) -> bool:
    """Whether the backbone runs in bfloat16: asked for, or `auto` on CUDA and on processors with bfloat16 instructions."""
    if precision != "auto":
        return precision == "bf16"
    return device.startswith("cuda") or bool(torch.cpu.get_capabilities().get("avx512_bf16"))

