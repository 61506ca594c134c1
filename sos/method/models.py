"""Networks: a backbone and a head that judges every position of its last feature map."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..config import RunConfig
from .backbones import make_body


class Look(NamedTuple):
    """What a network makes of a batch: features (b, c, h, w), spatial logits (b, k, h, w), image logits (b, k) = mean of the spatial ones, and
    the window (b, 4) of the frame in which the features lie; None: the whole picture."""

    features: torch.Tensor
    spatial: torch.Tensor
    logits: torch.Tensor
    window: torch.Tensor | None = None


class Head(nn.Module):
    """One linear classifier shared by all positions: features (b, c, h, w) to spatial logits (b, k, h, w).

    Since it is linear, the mean of the spatial logits is its answer to the mean feature, as in a network with global average pooling.
    """

    def __init__(self, channels: int, stages: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, stages, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(features))


class StagingNet(nn.Module):
    """Backbone and head. Input (b, 1, h, w) grey, normalised; `forward` returns image logits (b, stages).

    `bf16` runs the backbone in bfloat16 autocast, on the CPU too; the head and all that follows stay float32.
    """

    def __init__(self, body: nn.Module, head: Head, bf16: bool = False):
        super().__init__()
        self.body, self.head, self.bf16 = body, head, bf16

    def look(self, x: torch.Tensor) -> Look:
        """Features, spatial logits and image logits of a batch."""
        picture, window = self.view(x)
        return self.judge(self.features(picture))._replace(window=window)

    def view(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What of x the backbone is given, and the window (b, 4) of x in which that lies; None: all of it, as it is."""
        return x, None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map (b, c, h, w), float32."""
        return self.of(self.body, x)

    def of(self, body: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A backbone's last feature map, float32, whatever precision it computes in."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            features = body(x)
        return features.float()

    def judge(self, features: torch.Tensor) -> Look:
        """The head's view of a feature map."""
        spatial = self.head(features)
        return Look(features, spatial, spatial.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.look(x).logits


def fold_norms(net: nn.Module) -> nn.Module:
    """`net`, in eval mode and never to be trained again, with each batch norm that follows a convolution made part of that: the same function of
    the picture, in fewer steps. A maximum between the two may as well be taken behind the norm where that rises in every channel."""
    for module in net.modules():
        parts = list(module.named_children())
        for place, (name, norm) in enumerate(parts):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            before = parts[:place]
            if before and isinstance(before[-1][1], nn.MaxPool2d) and (norm.weight >= 0).all():
                before = before[:-1]
            if before and isinstance(before[-1][1], nn.Conv2d):
                setattr(module, before[-1][0], fuse_conv_bn_eval(before[-1][1], norm))
                setattr(module, name, nn.Identity())
    return net


def build(config: RunConfig, stages: int, *, pretrained: bool = False, bf16: bool = False) -> StagingNet:
    """A StagingNet as `config` says (backbone, output_stride, dropout), for one grey channel.

    output_stride: 32 as published, or 16: the last downsampling step is left out, so that the map has twice as many cells a side.
    pretrained: torchvision's ImageNet weights, the stem's three colours summed into one; RunError where they cannot be fetched.
    """
    body, channels = make_body(config.backbone, config.output_stride, pretrained)
    head = Head(channels, stages, config.dropout)
    if config.looks == 1:
        net = StagingNet(body, head, bf16)
    else:
        from .zoom import Aim, ZoomNet  # which is made of what is above

        glance, _ = make_body(config.backbone, config.output_stride, pretrained)
        net = ZoomNet(glance, Aim(channels), body, head, config.glance_px, config.window_px, config.aim_gradient, bf16)
    return net.to(memory_format=torch.channels_last)
