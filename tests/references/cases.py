"""Inputs and networks that the reference values belong to, the same bit for bit wherever they are made.

All numbers come from the uniform stream of `numpy.random.RandomState`, which numpy has frozen and which is integer arithmetic: no release and
no mathematical library changes them. `digest` of the inputs stands in each reference file, so that a test can tell if this fails.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from sos.config import RunConfig
from sos.method.models import Head, StagingNet, build

STAGES = 5
TEMPERATURES = (0.5, 1.0, 3.0, 20.0)
ALPHA = 0.3  # share of the label's cross-entropy where a reference has both terms
SPATIAL = (3, STAGES, 4, 6)
NETWORKS = ("three_convolutions", "resnet16_half")
TARGETS = torch.tensor([0, 2, 4])  # the stage to explain in each image of a batch


def uniform(seed: int, *shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """float64 of `shape`, uniform in [low, high)."""
    return low + (high - low) * np.random.RandomState(seed).random_sample(shape)


class Logits(NamedTuple):
    """Logits (b, k) or spatial logits (b, k, h, w) of both networks, float64, and the labels (b,) of the former."""

    student: torch.Tensor
    teacher: torch.Tensor
    label: torch.Tensor


def logits(kind: str) -> Logits:
    """`image` or `spatial` logits. The teacher is the surer of the two."""
    shape = {"image": (7, STAGES), "spatial": SPATIAL}[kind]
    student, teacher = (torch.from_numpy(scale * uniform(seed, *shape)) for seed, scale in ((1, 3.0), (2, 5.0)))
    return Logits(student, teacher, torch.arange(shape[0]) * 3 % STAGES)


def network(name: str) -> StagingNet:
    """A staging network in eval mode, each of its weights from the frozen stream.

    three_convolutions: stride 4, 8 channels. resnet16_half: a backbone of the profiles at output stride 16, in float64, because the rounding of
    float32 grows over sixteen layers of random weights; its features are float32 as ever.
    """
    if name == "three_convolutions":
        body = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        net = StagingNet(body, Head(8, STAGES))
    else:
        net = build(RunConfig(backbone=name, output_stride=16), STAGES)
        net.body.double()
    with torch.no_grad():
        for seed, (key, tensor) in enumerate(net.state_dict().items(), 100):
            if key.endswith("num_batches_tracked"):
                continue
            values = uniform(seed, *tensor.shape)
            if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
                values = 1 + 0.5 * values  # variances and gains of the norms stay above 0
            elif tensor.ndim > 1:
                values *= np.sqrt(6 / np.prod(tensor.shape[1:]))  # He et al. 2015: the size of activations survives the layers
            else:
                values *= 0.2
            tensor.copy_(torch.from_numpy(values))
    return net.eval()


def picture(name: str) -> torch.Tensor:
    """(3, 1, h, w) batch for `network(name)`, of its dtype; the maps of both networks are 6 × 8."""
    shape, dtype = ((24, 32), torch.float32) if name == "three_convolutions" else ((96, 128), torch.float64)
    return torch.from_numpy(uniform(7, 3, 1, *shape)).to(dtype)


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the tensors' numbers, in order, as little-endian float64."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(np.ascontiguousarray(tensor.detach().numpy(), "<f8").tobytes())
    return sha.hexdigest()


def digest_of_network(name: str) -> str:
    """`digest` of all weights and of the batch."""
    return digest(*network(name).state_dict().values(), picture(name), TARGETS)
