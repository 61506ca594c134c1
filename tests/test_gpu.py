"""What can be known of a GPU without one, and one step of each kind where there is one.

Without one torch's *meta* device stands in: its tensors have shapes and no numbers, refuse to meet those of a CPU, and cannot say what they hold.
What runs there makes all that it needs on its device, and never waits for an answer from it."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.learner import AvgSmoothLoss
from test_views import small_store
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # where they find each other

from benchmarks import work  # noqa: E402

from sos.cohort.views import Views  # noqa: E402
from sos.config import get_profile  # noqa: E402
from sos.method.cam import explain  # noqa: E402
from sos.study.fitting import LossThere  # noqa: E402
from sos.study.grid import plan  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

META = "meta"
KIND = ("role", "backbone", "output_stride", "looks", "aim_gradient", "cam_layer", "evidence", "attn_distance", "cam_target")


def kinds():
    """One run of each kind that `paper` and `networks` train, with its teacher's configuration."""
    found = {}
    for profile in map(get_profile, ("paper", "networks")):
        for job in plan(profile):
            config, teacher = job.config, profile.teacher_of(job.config) if job.needs else profile.run("teacher")
            terms = (config.w_cls > 0, config.w_dist > 0, config.w_attn > 0, config.progressive > 0)
            found.setdefault((*(getattr(config, name) for name in KIND), *terms), (config, teacher))
    return list(found.values())


def small(config, precision="fp32"):
    """`config` with small pictures; fp32 is the one precision that the meta device knows."""
    return config.with_(precision=precision, batch_size=4, window_px=64, frame_px=128 if config.looks == 2 else 96, glance_px=64)


def said(pair):
    config, _ = pair
    return f"{config.backbone} {config.role} {config.looks}"


@pytest.fixture
def stand_in(monkeypatch):
    """The meta device has neither autocast nor a generator of random numbers of its own."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    store = small_store()
    monkeypatch.setattr(torch, "Generator", lambda device=None: None)
    return store


class NoWaiting(TorchDispatchMode):
    """Refuses a copy from the CPU to the meta device that its caller would wait for; `copies`, how many there were that nobody waits for."""

    copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and kwargs["device"].type == META:
            assert kwargs.get("non_blocking"), "a copy to the device that is waited for"
            self.copies += 1
        return function(*args, **kwargs)


@pytest.mark.parametrize("pair", kinds(), ids=said)
def test_a_training_step_needs_nothing_from_the_cpu_and_waits_for_nothing(pair, stand_in):
    config, teacher = map(small, pair)
    views = Views(stand_in, config, training=True, device=META, window_px=teacher.window_px, window_scale=teacher.window_scale)
    with NoWaiting() as copied:
        seen = views(np.arange(4))
    assert 0 < copied.copies <= 9  # pixels or their rows, three columns of the store, and constants of the cameras
    assert all(part.device.type == META for part in seen)
    step = work.TrainingStep(config, teacher, device=META)
    if config.role == "detector":  # torchvision's loss asks how many places see a joint
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
            step.backward(seen)
        return
    with NoWaiting() as copied:
        step.backward(seen)
    assert not copied.copies
    LossThere().accumulate(SimpleNamespace(loss=step.loss(seen)))
    with pytest.raises(NotImplementedError, match="out of meta tensor"):  # what would be waited for without it
        AvgSmoothLoss().accumulate(SimpleNamespace(loss=step.loss(seen)))
    gradients = [parameter.grad for parameter in step.net.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.device.type == META for gradient in gradients)
    assert nn.utils.clip_grad_norm_(step.net.parameters(), 1.0).device.type == META
    step.net.eval()
    look, cam = explain(step.net, seen[0], layer=config.cam_layer)
    assert look.logits.device.type == cam.device.type == META


@pytest.mark.parametrize("pair", kinds() if torch.cuda.is_available() else [], ids=said)
def test_two_training_steps_and_a_look_on_the_gpu(pair):
    """In the precision of the profile, by the kernels that training takes there."""
    two_steps(*(small(config, config.precision) for config in pair), "cuda")


def test_two_training_steps_and_a_look_are_what_a_gpu_is_asked_for():
    """The same on a CPU, so that what a GPU is asked for first is known to be right."""
    for config, teacher in kinds():
        if config.role == "detector" or config.looks == 2 and config.backbone == "resnet16_pool_first":
            two_steps(small(config), small(teacher), "cpu")


def two_steps(config, teacher, device):
    seen = Views(small_store(), config, training=True, device=device, window_px=teacher.window_px, window_scale=teacher.window_scale)(np.arange(4))
    step = work.TrainingStep(config, teacher, device=device)
    step(seen)
    step(seen)
    assert torch.isfinite(step.loss(seen)) and all(torch.isfinite(parameter).all() for parameter in step.net.parameters())
    step.net.eval()
    if config.role == "detector":
        assert step.net.find(seen[0]).scores.shape == (4,)
    else:
        look, cam = explain(step.net, seen[0], layer=config.cam_layer)
        assert torch.isfinite(look.logits).all() and torch.isfinite(cam).all()


def one_of_each_backbone():
    found = {}
    for config, teacher in kinds():
        found.setdefault((config.backbone, config.looks), (config, teacher))
    return list(found.values())


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("pair", one_of_each_backbone(), ids=said)
def test_a_step_of_the_fused_optimiser_is_that_of_the_plain_one(pair, device):
    """On cores the fused one takes each gradient, without a look, to lie in memory as its weights do."""
    config, teacher = map(small, pair)
    step = work.TrainingStep(config, teacher, device)
    views = Views(small_store(), config, training=True, device=device, window_px=teacher.window_px, window_scale=teacher.window_scale)
    step.backward(views(np.arange(4)))
    groups = [group | {"params": [nn.Parameter(p.detach().clone()) for p in group["params"]]} for group in step.opt.param_groups]
    for group, plain in zip(step.opt.param_groups, groups, strict=True):
        for moved, copy in zip(group["params"], plain["params"], strict=True):
            copy.grad = None if moved.grad is None else moved.grad.clone()
    known = {"betas": (0.9, 0.99), "eps": 1e-5, "fused": False, "foreach": False}
    torch.optim.AdamW([{"params": g["params"], "weight_decay": g["weight_decay"]} for g in groups], 1e-4, **known).step()
    step.opt.step()
    for group, plain in zip(step.opt.param_groups, groups, strict=True):
        for moved, copy in zip(group["params"], plain["params"], strict=True):
            torch.testing.assert_close(moved, copy, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("role", ["teacher", "baseline", "student", "detector"])
def test_still_batches_need_nothing_from_the_cpu_but_pixels(role, room, stand_in, monkeypatch):
    monkeypatch.setattr("sos.cohort.views.has_room", lambda device, size: room)
    config = small(get_profile("paper").run(role))
    batch = Views(stand_in, config, training=False, device=META)(np.arange(4))
    assert all(part.device.type == META and len(part) == 4 for part in batch)


def test_the_stand_in_refuses_what_a_gpu_would_refuse_or_wait_for():
    there = torch.zeros(3, device=META)
    with pytest.raises(RuntimeError, match="not on the expected device"):
        there + torch.zeros(3)
    with pytest.raises(RuntimeError, match="cannot be called on meta"):
        there.sum().item()
