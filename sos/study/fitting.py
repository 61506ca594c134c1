"""One run's training: fastai's loop over a profile's batches, which stops and resumes at any epoch with the same result."""

import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # the module patches fit_one_cycle into Learner
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import AvgSmoothLoss
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn

from ..cohort.batches import ViewLoader
from ..cohort.manifest import Cohort
from ..cohort.views import PixelStore, training_rows
from ..config import RunConfig
from ..errors import CohortError, ConfigError, OutOfTime
from ..method.distill import Distillation
from ..method.models import StagingNet, build, fold_norms
from ..method.progressive import Progressive
from .detector import Detector
from .runs import Run, load_network, round_weights
from .training import CLIP, WARM_UP, use_bf16

KEEP_S = 10.0  # between two checkpoints at least: on a GPU an epoch is shorter than writing one


def fit(config: RunConfig, store: PixelStore, cohort: Cohort, checkpoint: Path, teacher: Run | None, device: str,
        share: tuple[int, int] = (0, 1)):
    """Train a network. Returns it in eval mode with rounded weights, its history (one row an epoch) and the seconds it took.

    Finished epochs are kept in `checkpoint`, and training goes on from there. Raises OutOfTime where the next epoch would not end before
    the deadline in $SOS_DEADLINE (Unix time). A detector learns nothing from `teacher`, which stages what it finds later. share: (i, n) in the
    i-th of n processes that do this together, see the room `devices`.
    """
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
    learn.recorder.smooth_loss = LossThere()
    keeper = Checkpoints(checkpoint, config, share)
    if share[1] > 1:
        from .devices import OneOfMany

        learn.add_cb(OneOfMany(sync_bn=device.startswith("cuda")))
    with learn.no_bar(), learn.no_logging(), Progressive(net, config.progressive) as growth, learn.added_cbs(growth):
        if not taught:
            keeper.fit(learn)
        else:
            mentor = fold_norms(teacher.load(device))
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


class LossThere(AvgSmoothLoss):
    """fastai's smoothed loss, kept on its device: as it comes, each step copies its loss to the CPU and waits for a GPU to have it."""

    def accumulate(self, learn: Learner):
        self.count += 1
        loss = learn.loss.detach().mean()
        self.val = torch.lerp(loss, self.val.to(loss.device), self.beta)


class Checkpoints(Callback):
    """Seeds each epoch, keeps it on disk when it is over (of short ones one in KEEP_S seconds), and stops in time. Runs after the recorder, whose
    numbers it keeps."""

    order = 60

    def __init__(self, path: Path, config: RunConfig, share: tuple[int, int] = (0, 1)):
        super().__init__()
        self.path, self.config, self.share = path, config, share
        self.history, self.seconds, self.start, self.distillation = [], 0.0, 0, None
        self.kept = -math.inf  # when the checkpoint was written, on the monotonic clock
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
        if self.share[0] == 0 and (late or time.monotonic() - self.kept >= KEEP_S):
            self._keep()
            self.kept = time.monotonic()
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


def start_from(net: StagingNet, teacher: Run, config: RunConfig) -> None:
    """Copy the teacher's weights into a student of the same architecture. Raises ConfigError for another one."""
    if teacher.config.backbone != config.backbone:
        raise ConfigError(f"student_init = 'teacher' needs the teacher's backbone {teacher.config.backbone}, not {config.backbone}; use 'scratch'")
    mentor = load_network(teacher.weights, teacher.config, net.head.classifier.out_channels)
    net.body.load_state_dict(mentor.body.state_dict())
    net.head.load_state_dict(mentor.head.state_dict())
