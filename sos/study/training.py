"""Training: from a cohort and a RunConfig to a finished run, stopping and resuming at any epoch with the same result."""

import ctypes
import json
import os
import shutil
import sys
import time
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.callback.schedule import Learner  # the module patches fit_one_cycle into Learner
from fastai.data.core import DataLoaders
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn

from ..cohort.cameras import still_scene
from ..cohort.manifest import Cohort, read_manifest
from ..cohort.views import PixelStore, ViewLoader, open_store, training_rows
from ..config import MODELS, TAUGHT_ROLES, Profile, RunConfig, get_profile, runs_dir
from ..errors import CohortError, ConfigError, OutOfTime
from ..files import alone
from ..method.cam import box_mask, enlarge, explain, peak
from ..method.distill import Distillation
from ..method.models import StagingNet, build
from ..method.progressive import Progressive
from ..phantom.write import write_cohort
from ..stages import get_scheme
from .detector import Detector, stage_found
from .metrics import measure
from .runs import Run, load_network, machine_record, round_weights, run_name, save_weights, training_code

CLIP = 1.0  # largest norm of a step's gradient: the gradient through a heat map has rare spikes that would end training
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
                  "data": self.store.digest, "code": training_code(), "teacher": teacher and teacher.name}
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


def fit(config: RunConfig, store: PixelStore, cohort: Cohort, checkpoint: Path, teacher: Run | None, device: str,
        share: tuple[int, int] = (0, 1)):
    """Train a network. Returns it in eval mode with rounded weights, its history (one row an epoch) and the seconds it took.

    Each finished epoch is kept in `checkpoint`, and training goes on from there. Raises OutOfTime where the next epoch would not end before
    the deadline in $SOS_DEADLINE (Unix time). A detector learns nothing from `teacher`, which stages what it finds later. share: (i, n) in the
    i-th of n processes that do this together, see the room `devices`.
    """
    keep_freed_memory()
    torch.manual_seed(config.seed)
    net = network(config, len(cohort.scheme), device, pretrained=config.pretrained)
    taught = teacher is not None and config.role == "student"
    loss, metric = (net.loss, net.iou) if config.role == "detector" else (nn.CrossEntropyLoss(), accuracy)
    window = {}
    if taught:
        window = dict(window_px=teacher.config.window_px, window_scale=teacher.config.window_scale)
        if config.student_init == "teacher":
            start_from(net, teacher, config)
    rows = {"train": training_rows(cohort, config.label_share, config.seed, config.leak), "valid": cohort.subset("valid").index.to_numpy()}
    for split in rows:
        if not len(rows[split]):
            raise CohortError(f"{cohort.path}: no patient in the split '{split}'; give more patients, or fill in the split column")
    loaders = [ViewLoader(store, rows["train"], config, training=True, device=device, share=share, **window),
               ViewLoader(store, rows["valid"], config, training=False, device=device, **window)]
    learn = Learner(DataLoaders(*loaders, device=device), net, loss_func=loss, opt_func=partial(OptimWrapper, opt=adamw),
                    splitter=decayed_and_not, wd=[config.weight_decay, 0.0], metrics=metric, path=checkpoint.parent)
    keeper = Checkpoints(checkpoint, config, share)
    if share[1] > 1:
        from .devices import OneOfMany

        learn.add_cb(OneOfMany(sync_bn=device.startswith("cuda")))
    with learn.no_bar(), learn.no_logging(), Progressive(net, config.progressive) as growth, learn.added_cbs(growth):
        if not taught:
            keeper.fit(learn)
        else:
            mentor = teacher.load(device)
            mentor.bf16 = net.bf16
            with Distillation(net, mentor, config) as distillation:
                keeper.distillation = distillation
                keeper.fit(learn)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in round_weights(net.state_dict()).items()})
    return net.eval(), pd.DataFrame(keeper.history), keeper.seconds


def network(config: RunConfig, stages: int, device: str, pretrained: bool = False) -> nn.Module:
    """The network of a run before training, on `device` and in the precision that `config` asks for there."""
    make = partial(Detector, config) if config.role == "detector" else partial(build, config, stages)
    return make(pretrained=pretrained, bf16=use_bf16(config.precision, device)).to(device)


def adamw(params, lr: float, **hypers) -> torch.optim.AdamW:
    """AdamW with fastai's constants, all weights updated in one call: fastai's own takes a dozen calls for each of them."""
    return torch.optim.AdamW(params, lr, betas=(0.9, 0.99), eps=1e-5, fused=True, **hypers)


def decayed_and_not(net: nn.Module) -> list[list[nn.Parameter]]:
    """Two groups of parameters: matrices and kernels, which weight decay shrinks; biases and norms, which it leaves alone."""
    groups = [], []
    for parameter in net.parameters():
        groups[parameter.ndim < 2].append(parameter)
    return list(groups)


class Checkpoints(Callback):
    """Seeds each epoch, keeps it on disk when it is over, and stops in time. Runs after the recorder, whose numbers it keeps."""

    order = 60

    def __init__(self, path: Path, config: RunConfig, share: tuple[int, int] = (0, 1)):
        super().__init__()
        self.path, self.config, self.share = path, config, share
        self.history, self.seconds, self.start, self.distillation = [], 0.0, 0, None
        self.deadline = float(os.environ.get("SOS_DEADLINE", "inf"))

    def fit(self, learn: Learner) -> None:
        """Fit by the one-cycle schedule, from the checkpoint where there is one."""
        learn.create_opt()
        if self.path.is_file():
            state = torch.load(self.path, map_location=next(learn.model.parameters()).device, weights_only=True)
            learn.model.load_state_dict(state["net"])
            learn.opt.load_state_dict(state["opt"])
            self.history, self.seconds, self.start = state["history"], state["seconds"], len(state["history"])
        cbs = [self, GradientClip(CLIP)] if self.distillation is None else [self, GradientClip(CLIP), self.distillation]
        learn.fit_one_cycle(self.config.epochs, self.config.lr, pct_start=WARM_UP, cbs=cbs, start_epoch=self.start)

    def before_epoch(self):
        if self.epoch < self.start:
            return
        self.began = time.monotonic()
        self.dls.train.epoch = self.epoch
        torch.manual_seed(1_000_003 * (self.config.seed + 1) + self.epoch + 1_000 * self.share[0])

    def before_train(self):
        self.loss_sum, self.images = 0.0, 0

    def after_batch(self):
        if self.training:
            self.loss_sum += self.loss.detach() * len(self.yb[0])
            self.images += len(self.yb[0])

    def after_epoch(self):
        if self.epoch < self.start:
            return
        _, valid_loss, valid_metric = self.recorder.values[-1]
        train_loss = self.loss_sum / self.images  # the recorder's is smoothed over epochs gone by, which a resumed training does not know
        row = {"epoch": self.epoch + 1, "train_loss": float(train_loss), "valid_loss": float(valid_loss),
               f"valid_{self.recorder.metrics[0].name}": float(valid_metric)}
        if self.distillation is not None:
            row |= self.distillation.history[-1]
        took = time.monotonic() - self.began
        late = time.time() + took > self.deadline
        if self.share[1] > 1:  # one history and one decision, whatever the share
            *means, late = self._mean([*row.values(), late])
            row = dict(zip(row, means, strict=True)) | {"epoch": row["epoch"]}
        self.history.append(row)
        self.seconds += took
        if self.epoch + 1 == self.n_epoch:
            return
        if self.share[0] == 0:
            self._keep()
        if late:
            raise OutOfTime(f"stopped in time after epoch {self.epoch + 1} of {self.n_epoch} of the {self.config.role}; the next call goes on")

    def _mean(self, values: list[float]) -> list[float]:
        values = torch.tensor(values, dtype=torch.float64, device=self.dls.device)
        torch.distributed.all_reduce(values)
        return (values / self.share[1]).tolist()

    def _keep(self):
        opt = self.opt.state_dict()
        groups = [{name: _plain(value) for name, value in group.items()} for group in opt["param_groups"]]
        net = getattr(self.model, "module", self.model)  # without what wraps it on several devices
        state = {"net": net.state_dict(), "opt": {"state": opt["state"], "param_groups": groups}, "history": self.history,
                 "seconds": self.seconds}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)


def _plain(value):
    """numpy's numbers as Python's, which a checkpoint may hold."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value


@torch.no_grad()
def evaluate(net: StagingNet, store: PixelStore, cohort: Cohort, rows: np.ndarray, config: RunConfig, device: str = "cpu",
             mirrored: bool = False) -> pd.DataFrame:
    """Predictions for the images in `rows`, seen still and whole, or `mirrored`: one row an image.

    Columns: patient_id, image, split, stage, target, p1…pk, decided (a stage's label); for full-image networks also peak_x, peak_y (of the
    Grad-CAM of the decided stage, in [0, 1] of the frame), pointing (peak inside the expert's box), energy (share of the map inside it) and
    iou (of the box and the region above half of the peak); for those that look twice window_x0 to window_y1, where in the frame they looked closer.
    """
    loader = ViewLoader(store, rows, config, training=False, device=device)
    looks, cams, chosen = [], [], []
    for i in range(0, len(rows), loader.bs):
        look, cam = explain(net, loader.views(np.asarray(rows[i:i + loader.bs]), mirrored)[0], layer=config.cam_layer)
        looks.append(look.logits.cpu())
        cams.append(cam.cpu())
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
    return table.assign(**localise(torch.cat(cams), frame_boxes(store, rows, mirrored)))


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


def start_from(net: StagingNet, teacher: Run, config: RunConfig) -> None:
    """Copy the teacher's weights into a student of the same architecture. Raises ConfigError for another one."""
    if teacher.config.backbone != config.backbone:
        raise ConfigError(f"student_init = 'teacher' needs the teacher's backbone {teacher.config.backbone}, not {config.backbone}; use 'scratch'")
    mentor = load_network(teacher.weights, teacher.config, net.head.classifier.out_channels)
    net.body.load_state_dict(mentor.body.state_dict())
    net.head.load_state_dict(mentor.head.state_dict())


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks for this process instead of giving them back; elsewhere do nothing.

    Each batch frees and asks again for the same blocks; pages that come anew from the system nearly double the time of a step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: the largest it takes
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def use_bf16(precision: str, device: str) -> bool:
    """Whether the backbone runs in bfloat16: asked for, or `auto` on CUDA and on processors with bfloat16 instructions."""
    if precision != "auto":
        return precision == "bf16"
    return device.startswith("cuda") or bool(torch.cpu.get_capabilities().get("avx512_bf16"))

