"""Networks: a torchvision backbone and a head that judges every position of its last feature map."""

from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from ..config import RunConfig
from ..errors import ConfigError, RunError


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
        return self.judge(self.features(x))

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


class HalfResNet(ResNet):
    """ResNet of basic blocks with half of ResNet-18's channels, stem included: its maps are the largest, and so the dearest in a small network.

    blocks: in each of the four stages. (2, 2, 2, 2) is ResNet-18. At output stride 16 its last stage alone takes more than half of all
    operations; (2, 2, 2, 1), sixteen layers, leaves out its second block and with it three tenths of them.
    """

    def __init__(self, *blocks: int):
        super().__init__(BasicBlock, list(blocks))

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # the first stage: the stem has just been made
            self.inplanes = 32
            self.conv1 = nn.Conv2d(3, 32, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(32)
        return super()._make_layer(block, planes // 2, blocks, stride, dilate)


def build(config: RunConfig, stages: int, *, pretrained: bool = False, bf16: bool = False) -> StagingNet:
    """A StagingNet as `config` says (backbone, output_stride, dropout), for one grey channel.

    output_stride: 32 as published, or 16: the last downsampling step is left out, so that the map has twice as many cells a side.
    pretrained: torchvision's ImageNet weights, the stem's three colours summed into one; RunError where they cannot be fetched.
    """
    body, channels = _body(config, pretrained)
    head = Head(channels, stages, config.dropout)
    if config.looks == 1:
        net = StagingNet(body, head, bf16)
    else:
        from .zoom import Aim, ZoomNet

        net = ZoomNet(_body(config, pretrained)[0], Aim(channels), body, head, config.glance_px, config.window_px,
                      config.aim_gradient, bf16)
    return net.to(memory_format=torch.channels_last)


def _body(config, pretrained: bool) -> tuple[nn.Module, int]:
    """The backbone of `config` for grey pictures, and its number of channels."""
    try:
        body, channels = _BODIES[config.backbone](pretrained)
    except OSError as error:  # urllib's URLError is one
        raise RunError(f"ImageNet weights of {config.backbone} cannot be fetched ({error}); go online once, or set pretrained=false") from None
    _grey_stem(body)
    if config.output_stride == 16:
        _keep_last_stride(body)
    return body, channels


def _resnet(make):
    def body(pretrained):
        net = make("DEFAULT" if pretrained else None)
        layers = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4]
        return nn.Sequential(*layers), net.inplanes  # channels of the last stage
    return body


def _half_resnet(*blocks):
    def make(weights):
        if weights:
            raise ConfigError("resnet16_half and resnet18_half have no ImageNet weights; choose resnet18, or pretrained=false")
        return HalfResNet(*blocks)
    return _resnet(make)




def _features(make):
    def body(pretrained):
        net = make(weights="DEFAULT" if pretrained else None)
        return net.features, [m for m in net.classifier if isinstance(m, nn.Linear)][-1].in_features
    return body


_BODIES = {
    "resnet16_half": _half_resnet(2, 2, 2, 1),
    "resnet18_half": _half_resnet(2, 2, 2, 2),
    "resnet18": _resnet(lambda weights: torchvision.models.resnet18(weights=weights)),
    "resnet50": _resnet(lambda weights: torchvision.models.resnet50(weights=weights)),
    "efficientnet_b0": _features(torchvision.models.efficientnet_b0),
    "convnext_tiny": _features(torchvision.models.convnext_tiny),
}


def _grey_stem(body: nn.Module) -> None:
    """Make the first convolution take one channel; its weights over the colours are summed, so that a grey image gives what RGB gave."""
    owner, name, stem = next((owner, name, child) for owner in body.modules() for name, child in owner.named_children()
                             if isinstance(child, nn.Conv2d))
    grey = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=stem.bias is not None)
    with torch.no_grad():
        grey.weight.copy_(stem.weight.sum(1, keepdim=True))
        if stem.bias is not None:
            grey.bias.copy_(stem.bias)
    setattr(owner, name, grey)


def _keep_last_stride(body: nn.Module) -> None:
    """Set the stride of the last downsampling stage to 1: its strided 3×3 (or ConvNeXt's 2×2) convolution and its shortcut."""
    strided = [m for m in body.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    last = strided[-1]
    for conv in strided[-2:] if last.kernel_size == (1, 1) else [last]:  # a ResNet stage strides in its block and in its 1×1 shortcut
        conv.stride = (1, 1)
        if conv.kernel_size == (2, 2):
            conv.padding = "same"  # an even kernel would shrink the map by one cell
