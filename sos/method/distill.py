"""Distillation: the three terms of one batch, and the one fastai callback that adds them to a student's training."""

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.hook import Hook

from ..config import RunConfig
from .cam import class_score, explain, grad_cam, judge_map, over_picture, paste
from .losses import attention_distance, spatial_distillation
from .models import Look, StagingNet
from .zoom import ZoomNet, aim_distance

TERMS = ("L_cls", "L_dist", "L_attn")  # of the paper; a student that looks twice has L_aim too


def distillation_terms(student: Look, teacher: Look, teacher_cam: torch.Tensor, window: torch.Tensor, target: torch.Tensor,
                       config: RunConfig, previous: tuple[torch.Tensor, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """L_cls, L_dist, L_attn and, of a student that looks twice, L_aim of a batch, unweighted; a term whose weight is 0 is computed without
    gradient, for the log alone.

    student: Look of the frames, its graph alive. teacher: Look of the windows. teacher_cam: (b, h, w) Grad-CAM in the window. window:
    (b, 4) in frame coordinates. target: (b,) stages counted from 0. previous: where cam_layer is `previous`, the student's map of that layer
    and the logits that `judge_map` makes of it, graph alive.
    """
    features, logits = (student.features, student.logits) if previous is None else previous
    explained = teacher.logits.argmax(1) if config.cam_target == "teacher" else target

    def attention():
        cam = grad_cam(features, class_score(logits, explained), create_graph=config.w_attn > 0)
        cam = over_picture(cam, student.window if student.window is None else student.window.detach())
        return attention_distance(cam, paste(teacher_cam, window, cam.shape[-1]), config.attn_distance)

    terms = {
        "L_cls": (config.w_cls, lambda: F.cross_entropy(student.logits, target)),
        "L_dist": (config.w_dist, lambda: spatial_distillation(student, teacher, window, config.temperature, config.evidence)),
        "L_attn": (config.w_attn, attention),
    }
    if student.window is not None:
        terms["L_aim"] = config.w_aim, lambda: aim_distance(student.window, window)
    return {name: term() if weight > 0 else term().detach() for name, (weight, term) in terms.items()}


def weighted_sum(terms: dict[str, torch.Tensor], config: RunConfig) -> torch.Tensor:
    """L_total: the terms of `distillation_terms`, each times its weight in `config` (that of L_cls is w_cls, and so on)."""
    return sum(getattr(config, name.replace("L_", "w_")) * term for name, term in terms.items())


class Distillation(Callback):
    """Teach a student: in each training batch, replaces the loss by w_cls·L_cls + w_dist·L_dist + w_attn·L_attn (+ w_aim·L_aim).

    Expects training batches (frame, window picture, window, target) and leaves validation alone, whose loss is plain cross-entropy.
    `history` gets one row an epoch: the mean of every term. Use as

        with Distillation(student, teacher, config) as distillation:
            Learner(dls, student, ..., cbs=distillation).fit(...)

    so that the teacher is frozen inside, and its mode and the student's hooks are as before afterwards, whatever happens. The student's
    `cam_layer` is that of both networks' maps, which would not be alike otherwise.
    """

    run_valid = False

    def __init__(self, student: StagingNet, teacher: StagingNet, config: RunConfig):
        super().__init__()
        self.student, self.teacher, self.config, self.history = student, teacher, config, []

    def __enter__(self):
        self.teacher_mode = self.teacher.training
        self.teacher.eval()
        self.hook = Hook(self.student.head, lambda module, features, spatial: (features[0], spatial), detach=False)
        self.aimed = Hook(self.student.aim, lambda module, features, window: window, detach=False) if isinstance(self.student, ZoomNet) else None
        self.lower = None
        if self.config.cam_layer == "previous":
            self.lower = Hook(self.student.body[self.student.body.last_stage - 1], lambda module, inputs, output: output, detach=False)
        return self

    def __exit__(self, *_):
        self.hook.remove()
        if self.aimed:
            self.aimed.remove()
        if self.lower is not None:
            self.lower.remove()
        self.teacher.train(self.teacher_mode)

    def before_epoch(self):
        self.sums, self.images = {}, 0

    def before_batch(self):
        frame, self.window_picture, self.window = self.xb
        self.learn.xb = (frame,)

    def after_loss(self):
        features, spatial = self.hook.stored
        own = self.aimed.stored if self.aimed else None
        (target,) = self.yb
        explained = None if self.config.cam_target == "teacher" else target
        teacher, teacher_cam = explain(self.teacher, self.window_picture, explained, self.config.cam_layer)
        previous = None
        if self.lower is not None:
            lower = self.lower.stored.float()
            previous = lower, judge_map(self.student, lower, "previous").logits
        look = Look(features, spatial, self.pred, own)
        terms = distillation_terms(look, teacher, teacher_cam, self.window, target, self.config, previous)
        self.learn.loss_grad = weighted_sum(terms, self.config)
        self.learn.loss = self.learn.loss_grad.detach().clone()
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach() * len(target)
        self.images += len(target)

    def after_epoch(self):
        if self.images:
            self.history.append({name: float(total) / self.images for name, total in self.sums.items()})
