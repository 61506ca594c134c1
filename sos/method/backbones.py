"""Backbones: torchvision's networks without their classifiers, for one grey channel, and what this study adds to them.

Each is a `Sequential` from a picture to the last feature map. Its `last_stage` is the place of the child with which the last downsampling
stage begins: the children before make the map that Grad-CAM explains where `cam_layer` is `previous`.

torchvision takes a second or two to import, so that waits until one of its networks is asked for; the small ones are our own.
"""

import torch
from torch import nn

from ..errors import ConfigError, RunError

OPEN = 0.5  # about the mean of a new stem's maxima of 3 × 3 places, in standard deviations of the places of its filter; on crops and whole images alike


def make_body(name: str, output_stride: int, pretrained: bool = False) -> tuple[nn.Sequential, int]:
    """The backbone `name` for (b, 1, h, w), and the channels of its last map.

    output_stride: 32 as published, or 16: the last downsampling step is left out, so that the map has twice as many cells a side.
    pretrained: torchvision's ImageNet weights, the stem's three colours summed into one; RunError where they cannot be fetched.
    """
    try:
        body, channels = _BODIES[name](pretrained)
    except OSError as error:  # urllib's URLError is one
        raise RunError(f"ImageNet weights of {name} cannot be fetched ({error}); go online once, or set pretrained=false") from None
    _grey_stem(body)
    body.last_stage = max(place for place, child in enumerate(body) if _strided(child))
    if output_stride == 16:
        _keep_last_stride(body)
    return body, channels


def residual_blocks(body: nn.Module) -> list[nn.Module]:
    """Blocks x + f(x) whose shortcut changes neither size nor channels, from shallow to deep: without f each of them is the identity.

    A ResNet block puts a ReLU behind the sum; its input comes from another ReLU, so that nothing is cut off.
    """
    from torchvision.models.convnext import CNBlock
    from torchvision.models.efficientnet import MBConv
    from torchvision.models.resnet import BasicBlock, Bottleneck

    return [block for block in body.modules() if isinstance(block, CNBlock)
            or isinstance(block, (Block, BasicBlock, Bottleneck)) and block.downsample is None
            or isinstance(block, MBConv) and block.use_res_connect]


class Block(nn.Module):
    """ReLU(x + f(x)), f two 3×3 convolutions, x by way of a 1×1 one where `stride` or channels change (He et al. 2016). Its parts have the names
    that torchvision gives them."""

    def __init__(self, before: int, channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride > 1 or before != channels:
            self.downsample = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ConvAttention(nn.Module):
    """Convolutional block attention module, CBAM (Woo et al. 2018): features (b, c, h, w) times a gate for each channel, then for each place.

    Channel gate (b, c, 1, 1) = σ(MLP(mean over places) + MLP(maximum over places)), the MLP's hidden layer `reduction` times narrower.
    Place gate (b, 1, h, w) = σ(7×7 convolution of the mean and the maximum over channels of the features gated so far).

    The paper on crops that has "ConvNeXt + Conv Attention" as its best network does not tell its module in public. This one is what the name
    usually stands for, follows the backbone's last stage, and is the whole of our `convnext_tiny_attention` beside ConvNeXt.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7):  # both as published
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1))
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def channel_gate(self, features: torch.Tensor) -> torch.Tensor:
        """(b, c, 1, 1) in (0, 1)."""
        return torch.sigmoid(self.mlp(features.mean((2, 3), keepdim=True)) + self.mlp(features.amax((2, 3), keepdim=True)))

    def place_gate(self, features: torch.Tensor) -> torch.Tensor:
        """(b, 1, h, w) in (0, 1)."""
        return torch.sigmoid(self.conv(torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.channel_gate(features) * features
        return self.place_gate(features) * features


def _half_resnet(*blocks: int, pool_first: bool = False):
    """ResNet of basic blocks with half of ResNet-18's channels, stem included: its maps are the largest, and so the dearest in a small network.

    The stem's ReLU stands behind its pool, which is the same function with the same gradients on a quarter of the places.
    blocks: in each of the four stages. (2, 2, 2, 2) is ResNet-18. At output stride 16 its last stage alone takes more than half of all
    operations; (2, 2, 2, 1), sixteen layers, leaves out its second block and with it three tenths of them.
    pool_first: the stem's pool comes before its norm and ReLU, which then have a quarter of the places to see. These two move many bytes and compute
    little, the more the larger the picture; `bench_speed.py --large` measures what it saves. Both only rise with their input while the norm's weights
    are positive, and a maximum may be taken before or after what rises: evaluated, it is the same function in either order. In training the norm's
    mean and variance are those of the maxima; it begins with a bias of OPEN, so that as many of them pass the ReLU as where the pool comes last.
    """
    def body(pretrained):
        if pretrained:
            raise ConfigError("half ResNets have no ImageNet weights; choose resnet18, or pretrained=false")
        layers, channels = [nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)], 32
        layers.insert(1 if pool_first else 2, nn.MaxPool2d(3, 2, 1))
        if pool_first:
            nn.init.constant_(layers[2].bias, OPEN)
        for wide, count in zip((32, 64, 128, 256), blocks, strict=True):
            first = Block(channels, wide, wide // channels)  # whose stride is the factor by which channels grow
            layers.append(nn.Sequential(first, *(Block(wide, wide, 1) for _ in range(count - 1))))
            channels = wide
        nn.Conv2d(3, 64, 7, bias=False), nn.Linear(512, 1000)  # a whole ResNet draws these too: a seed gives the same weights as it would there
        net = nn.Sequential(*layers)
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return net, channels
    return body


def _resnet(name):
    def body(pretrained):
        net = _torchvision(name, pretrained)
        # ReLU behind the pool, as in a half ResNet
        layers = [net.conv1, net.bn1, net.maxpool, net.relu, net.layer1, net.layer2, net.layer3, net.layer4]
        return nn.Sequential(*layers), net.inplanes  # channels of the last stage
    return body


def _features(name):
    def body(pretrained):
        net = _torchvision(name, pretrained)
        return net.features, [m for m in net.classifier if isinstance(m, nn.Linear)][-1].in_features
    return body


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)


def _attentive(make):
    def body(pretrained):
        features, channels = make(pretrained)  # ImageNet's weights are of these; the attention has to be learned
        return nn.Sequential(*features, ConvAttention(channels)), channels
    return body


_BODIES = {
    "resnet16_half": _half_resnet(2, 2, 2, 1),
    "resnet16_pool_first": _half_resnet(2, 2, 2, 1, pool_first=True),
    "resnet18_half": _half_resnet(2, 2, 2, 2),
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "efficientnet_b0": _features("efficientnet_b0"),
    "convnext_tiny": _features("convnext_tiny"),
    "convnext_tiny_attention": _attentive(_features("convnext_tiny")),
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


def _strided(body: nn.Module) -> list[nn.Conv2d]:
    return [m for m in body.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]


def _keep_last_stride(body: nn.Module) -> None:
    """Set the stride of the last downsampling stage to 1: its strided 3×3 (or ConvNeXt's 2×2) convolution and its shortcut."""
    strided = _strided(body)
    last = strided[-1]
    for conv in strided[-2:] if last.kernel_size == (1, 1) else [last]:  # a ResNet stage strides in its block and in its 1×1 shortcut
        conv.stride = (1, 1)
        if conv.kernel_size == (2, 2):
            conv.padding = "same"  # an even kernel would shrink the map by one cell
