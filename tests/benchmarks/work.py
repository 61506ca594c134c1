"""What a step has to do: the operations and bytes that it cannot do without, and the training step of any run, whatever its role.

*Operations* are those that torch's own counter knows, convolutions and matrix products, a multiplication and an addition counted as two; but for
one of its formulas, which counts the gradient of a depthwise convolution as if it were dense, see `_backward`.
*Bytes*: each of these calls reads its tensors once and writes its results once; norms, activations and sums cost no bytes, as they could be done
while the numbers are at hand. A step's own inputs and results, each once, come on top. Less is not possible, more is what happens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry

from sos.cohort.batches import ViewLoader
from sos.config import RunConfig
from sos.method.cam import explain
from sos.method.distill import Distillation
from sos.method.models import fold_norms
from sos.study.fitting import adamw, decayed_and_not, network
from sos.study.training import CLIP

STAGES = 5
ADAMW_BYTES = 7 * 4  # a float32 parameter: itself, gradient and two moments read, all but the gradient written


@dataclass(frozen=True)
class Shape:
    """A tensor of a call without its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Shape":
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))

    def drawn(self) -> torch.Tensor:
        """A tensor of this shape, of small random numbers."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device).normal_(std=0.1)


@dataclass
class Call:
    """One kind of call of a counted operator, and how often a step makes it."""

    function: Callable
    leaves: tuple  # arguments, a Shape for each tensor
    layout: object
    operations: int
    bytes: int
    times: int = 1

    def again(self) -> Callable[[], None]:
        """The bare call on tensors of the same shapes, without anything around it."""
        args, kwargs = tree_unflatten([leaf.drawn() if isinstance(leaf, Shape) else leaf for leaf in self.leaves], self.layout)
        return lambda: self.function(*args, **kwargs)


@dataclass
class Work:
    """What a step does: operations, bytes, the calls that do them, and how many calls torch makes in all."""

    operations: int = 0
    bytes: int = 0
    calls: dict = field(default_factory=dict)
    launches: int = 0


class _Notes(TorchDispatchMode):
    """Notes every call of an operator that torch's counter knows. FlopCounterMode itself, which has the same table, cannot follow the gradient
    inside of a step that Grad-CAM takes."""

    def __init__(self):
        super().__init__()
        self.calls, self.launches = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.launches += 1
        count = _COUNTS.get(function._overloadpacket)
        if count:
            leaves, layout = tree_flatten((args, kwargs or {}))
            leaves = tuple(Shape.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
            key = str(function), leaves, str(layout)
            if key in self.calls:
                self.calls[key].times += 1
            else:
                moved = tensor_bytes([args, result])
                self.calls[key] = Call(function, leaves, layout, count(*args, **(kwargs or {}), out_val=result), moved)
        return result


def _backward(grad, x, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask, out_val=None) -> int:
    """Operations of the gradients of a convolution: of its input as many as the convolution itself, of its weights as many again, of each that is
    asked for. torch's own formula for the weights leaves out that each channel of a group meets that group's alone."""
    numbers = x if transposed else grad  # each of them met one filter
    return 2 * numbers.numel() * weight[0].numel() * sum(mask[:2])


_COUNTS = flop_registry | {torch.ops.aten.convolution_backward: _backward}


def work_of(step: Callable[[], object], extra_bytes: int = 0) -> Work:
    """Do `step` once and count. extra_bytes: of its own inputs and results."""
    with _Notes() as notes:
        step()
    calls = notes.calls.values()
    return Work(sum(call.operations * call.times for call in calls), sum(call.bytes * call.times for call in calls) + extra_bytes, notes.calls,
                notes.launches)


def tensor_bytes(value) -> int:
    """Bytes of all tensors and arrays in nested lists, tuples and dicts."""
    leaves, _ = tree_flatten(value)
    return sum(leaf.nbytes if isinstance(leaf, np.ndarray) else leaf.numel() * leaf.element_size() for leaf in leaves
               if isinstance(leaf, (np.ndarray, torch.Tensor)))


class TrainingStep:
    """The training step of a run of `config`, taught by a new teacher of `teacher` where its role is student: the code of training itself, without
    the loop round it. `batch`: as a ViewLoader makes it."""

    def __init__(self, config: RunConfig, teacher: RunConfig | None = None, device: str = "cpu"):
        self.config, self.net = config, network(config, STAGES, device).train()
        self.teacher = None
        if config.role == "student":
            self.teacher = fold_norms(network(teacher, STAGES, "cpu").eval()).to(device)  # a device of shapes alone cannot say what folding asks
            self.teacher.bf16 = self.net.bf16
        groups = decayed_and_not(self.net)
        self.opt = adamw([{"params": groups[0], "weight_decay": config.weight_decay}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-4)
        self.parameters = sum(parameter.numel() for parameter in self.net.parameters())

    def loss(self, batch) -> torch.Tensor:
        *seen, target = batch
        if self.config.role == "detector":
            return self.net.loss(self.net(*seen), target)
        if self.teacher is None:
            return nn.functional.cross_entropy(self.net(*seen), target)
        with Distillation(self.net, self.teacher, self.config) as distillation:
            learn = distillation.learn = SimpleNamespace(xb=seen, yb=(target,))
            distillation.before_epoch()
            distillation.before_batch()
            learn.pred = self.net(*learn.xb)
            distillation.after_loss()
        return learn.loss_grad

    def backward(self, batch) -> None:
        self.opt.zero_grad()
        self.loss(batch).backward()

    def __call__(self, batch) -> None:
        self.backward(batch)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.opt.step()

    def predict(self, picture: torch.Tensor):
        """What evaluation asks of the network: its Look and Grad-CAM."""
        return explain(self.net, picture, layer=self.config.cam_layer)


def synthetic_batch(config: RunConfig, window_px: int, images: int, device: str = "cpu") -> tuple:
    """A training batch of noise in the shapes that a ViewLoader gives a run of `config`."""
    frame = torch.randn(images, 1, config.frame_px, config.frame_px, device=device)
    crop = torch.randn(images, 1, window_px, window_px, device=device)
    window = torch.tensor([[0.4, 0.4, 0.6, 0.6]], device=device).repeat(images, 1)
    target = torch.arange(images, device=device) % STAGES
    return {"teacher": (crop, target), "baseline": (frame, target), "student": (frame, crop, window, target),
            "detector": (frame, window)}[config.role]


def real_batch(config: RunConfig, teacher: RunConfig, store, device: str = "cpu") -> tuple:
    """The first training batch of a run of `config` on a store, whose rows are repeated where they are too few."""
    return loader_of(config, teacher, store, device).views(np.resize(np.arange(len(store.targets)), config.batch_size))


def loader_of(config: RunConfig, teacher: RunConfig, store, device: str = "cpu") -> ViewLoader:
    """The loader of the training of `config` over all rows of a store."""
    loader = ViewLoader(store, np.arange(len(store.targets)), config, training=True, device=device,
                        window_px=teacher.window_px, window_scale=teacher.window_scale)
    loader.get_idxs()  # seeds the draws
    return loader


def on_device(function: Callable, device: str) -> Callable:
    """`function`, not over before a GPU has done what it was asked."""
    if not device.startswith("cuda"):
        return function

    def waited(*args):
        function(*args)
        torch.cuda.synchronize(device)
    return waited
