"""Backbones: published sizes, one grey channel in place of three colours, ImageNet weights without a network, attention by hand, where the last
stage begins, and which blocks can be left out."""

import math
import urllib.error

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from sos.config import BACKBONES, RunConfig
from sos.errors import ConfigError, RunError
from sos.method.backbones import _BODIES, OPEN, ConvAttention, make_body, residual_blocks
from sos.method.models import build

TORCHVISIONS = ("resnet18", "resnet50", "efficientnet_b0", "convnext_tiny")
PREVIOUS = {"resnet16_half": 128, "resnet16_pool_first": 128, "resnet18_half": 128, "resnet18": 256, "resnet50": 1024, "efficientnet_b0": 112,
            "convnext_tiny": 384, "convnext_tiny_attention": 384}  # channels of the map before the last stage


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(backbone, output_stride=32, stages=5, seed=0, **rest):
    torch.manual_seed(seed)
    return build(RunConfig(backbone=backbone, output_stride=output_stride), stages, **rest).eval()


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def original(backbone):
    """(features of RGB, network) of an untrained torchvision net, drawn with the same seed as `network`."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, backbone)(weights=None).eval()
    return (nn.Sequential(*list(net.children())[:-2]) if backbone.startswith("resnet") else net.features), net


# ---- torchvision's networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", TORCHVISIONS)
def test_weights_are_as_many_as_published_less_the_classifier_and_two_colours(backbone):
    published = torchvision.models.get_model_weights(backbone).DEFAULT.meta["num_params"]
    torch.manual_seed(0)
    net = torchvision.models.get_model(backbone)
    stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    classifier = size(net.fc if backbone.startswith("resnet") else net.classifier)
    for output_stride in (16, 32):
        body, channels = make_body(backbone, output_stride)
        assert size(body) == published - classifier - 2 * stem.weight.numel() // 3
        assert classifier in (1000 * channels + 1000, 1000 * channels + 1000 + 2 * channels)  # ConvNeXt's holds a norm


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "convnext_tiny"])
def test_a_grey_image_is_answered_as_the_rgb_network_did(backbone):
    features, _ = original(backbone)
    x = noise(2, 1, 64, 64)
    with torch.no_grad():
        expected = features(x.expand(-1, 3, -1, -1))
        given = network(backbone).features(x)
    assert torch.allclose(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert given.std() > 0


def test_half_resnet18_has_half_the_channels_and_about_a_quarter_of_the_weights():
    count = {name: sum(weight.numel() for weight in network(name).parameters()) for name in ("resnet18_half", "resnet18")}
    assert 0.24 < count["resnet18_half"] / count["resnet18"] < 0.26


class HalfResNet(torchvision.models.ResNet):
    """torchvision's network, of half the channels."""

    def __init__(self, *blocks):
        super().__init__(torchvision.models.resnet.BasicBlock, list(blocks))

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # the stem has just been made
            self.inplanes, self.conv1, self.bn1 = 32, nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32)
        return super()._make_layer(block, planes // 2, blocks, stride, dilate)


@pytest.mark.parametrize(("backbone", "blocks"), [("resnet16_half", (2, 2, 2, 1)), ("resnet18_half", (2, 2, 2, 2))])
def test_half_networks_are_torchvisions_of_half_the_channels_with_the_weights_of_the_same_seed(backbone, blocks):
    torch.manual_seed(3)
    whole = HalfResNet(*blocks).train()
    theirs = nn.Sequential(*list(whole.children())[:-2])
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    ours, channels = _BODIES[backbone](False)
    assert torch.equal(torch.get_rng_state(), expected) and channels == 256
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    x = noise(2, 3, 64, 64)
    seen = ours(x), theirs(x)
    assert torch.equal(*seen)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    for features in seen:  # their ReLU comes before the pool, ours behind it
        features.square().sum().backward()
    assert all(torch.equal(mine.grad, yours.grad) for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_pool_may_come_first_in_a_stem_whose_norm_rises():
    """Evaluated, the same function with the same weights; trained, the norm sees the maxima."""
    torch.manual_seed(3)
    theirs, _ = _BODIES["resnet16_half"](False)
    torch.manual_seed(3)
    ours, channels = _BODIES["resnet16_pool_first"](False)
    assert channels == 256 and [type(part).__name__ for part in ours[:4]] == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert (ours[2].bias == OPEN).all()
    conv, norm, pool, relu, *stages = theirs
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    ours[2].load_state_dict(norm.state_dict())
    x = noise(2, 3, 64, 64)
    assert torch.equal(ours(x), nn.Sequential(conv, pool, norm, relu, *stages)(x))
    maxima = pool(conv(x))
    assert torch.allclose(ours[2].running_mean, 0.1 * maxima.mean((0, 2, 3)), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


def test_resnet16_half_is_resnet18_half_without_its_last_block():
    short, long = network("resnet16_half", 16), network("resnet18_half", 16, seed=1)
    names = set(long.state_dict()) - set(short.state_dict())
    assert names == {name for name in long.state_dict() if name.startswith("body.7.1.")}
    short.load_state_dict({name: value for name, value in long.state_dict().items() if name not in names})
    long.body[7] = long.body[7][:1]
    x = noise(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(short(x), long(x))


@pytest.mark.parametrize("output_stride", [16, 32])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_last_stage_is_given_a_map_of_stride_16_and_makes_the_last_map_of_it(backbone, output_stride):
    net = network(backbone, output_stride)
    x = noise(1, 1, 64, 96)
    with torch.no_grad():
        previous = net.body[:net.body.last_stage](x)
        last = net.body[net.body.last_stage:](previous)
        assert torch.equal(last, net.body(x))
    assert previous.shape == (1, PREVIOUS[backbone], 4, 6) and last.shape[2:] == (64 // output_stride, 96 // output_stride)


# ---- ImageNet weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [*TORCHVISIONS, "convnext_tiny_attention"])
def test_pretrained_weights_are_taken_with_the_stem_summed_over_colours(backbone, monkeypatch):
    features, net = original(backbone.removesuffix("_attention"))
    asked = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **_: asked.append(url) or net.state_dict())
    built = network(backbone, seed=99, pretrained=True)
    assert len(asked) == 1 and backbone.removesuffix("_attention") in asked[0]
    theirs, ours = features.state_dict(), built.body.state_dict()
    stem = next(iter(theirs))
    assert torch.allclose(ours[stem], theirs[stem].sum(1, keepdim=True), atol=1e-6) and ours[stem].shape[1] == 1
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items() if name != stem)
    new = {name for name in ours if name not in theirs}
    assert new == ({f"8.{name}" for name in ConvAttention(768).state_dict()} if backbone.endswith("attention") else set())


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "convnext_tiny_attention"])
def test_pretrained_weights_that_cannot_be_fetched_are_a_clear_error(backbone, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(RunError, match=f"ImageNet weights of {backbone} cannot be fetched.*go online once, or set pretrained=false"):
        network(backbone, pretrained=True)


def test_the_half_network_has_no_pretrained_weights():
    with pytest.raises(ConfigError, match="choose resnet18"):
        network("resnet18_half", pretrained=True)


# ---- attention -----------------------------------------------------------------------------------------------------


def test_attention_is_a_gate_for_each_channel_and_then_for_each_place():
    """One number at a time, as the paper writes it."""
    torch.manual_seed(0)
    module = ConvAttention(4, reduction=2, kernel=3).double().requires_grad_(False)
    features = noise(2, 4, 3, 5).double()
    first, second = module.mlp[0], module.mlp[2]

    def mlp(v):  # four numbers to four
        hidden = [max(0.0, sum(float(first.weight[h, c]) * v[c] for c in range(4)) + float(first.bias[h])) for h in range(2)]
        return [sum(float(second.weight[c, h]) * hidden[h] for h in range(2)) + float(second.bias[c]) for c in range(4)]

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    expected = features.clone()
    for image in expected:
        means, tops = [float(c.mean()) for c in image], [float(c.max()) for c in image]
        gates = [sigmoid(a + b) for a, b in zip(mlp(means), mlp(tops), strict=True)]
        for c, gate in enumerate(gates):
            image[c] *= gate
        maps = F.pad(torch.stack([image.mean(0), image.max(0).values]), (1, 1, 1, 1))
        for y in range(3):
            for x in range(5):
                image[:, y, x] *= sigmoid(float((module.conv.weight[0] * maps[:, y:y + 3, x:x + 3]).sum() + module.conv.bias[0]))
    assert torch.allclose(module(features), expected, atol=1e-12)


def test_gates_are_between_0_and_1_one_for_a_channel_and_one_for_a_place():
    torch.manual_seed(1)
    module, features = ConvAttention(32), 3 * noise(2, 32, 5, 6)
    for gate, shape in ((module.channel_gate(features), (2, 32, 1, 1)), (module.place_gate(features), (2, 1, 5, 6))):
        assert gate.shape == shape and (gate > 0).all() and (gate < 1).all() and gate.std() > 0
    given = module(features)
    assert (given.abs() <= features.abs()).all() and (given.sign() == features.sign()).all()


def test_a_channels_gate_listens_to_its_mean_and_to_its_maximum():
    torch.manual_seed(2)
    module, features = ConvAttention(32), noise(1, 32, 4, 4).abs()
    peaked = torch.zeros_like(features)
    peaked[:, :, 1, 2] = features.sum((2, 3))  # the same means, other maxima
    assert torch.allclose(peaked.mean((2, 3)), features.mean((2, 3)), atol=1e-6)
    assert not torch.allclose(module.channel_gate(peaked), module.channel_gate(features), atol=1e-3)
    assert torch.allclose(module.channel_gate(features.flip(3)), module.channel_gate(features), atol=1e-6)  # places do not matter


@pytest.mark.parametrize("output_stride", [16, 32])
def test_attention_follows_convnexts_last_stage_and_takes_its_weights(output_stride):
    plain, attentive = network("convnext_tiny", output_stride), network("convnext_tiny_attention", output_stride, seed=1)
    missing = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and {key.split(".")[1] for key in missing.missing_keys} == {"8"}
    with torch.no_grad():
        features = plain.features(noise(2, 1, 64, 64))
        assert torch.equal(attentive.features(noise(2, 1, 64, 64)), attentive.body[8](features))
    hidden = 768 // 16
    assert size(attentive) - size(plain) == (768 * hidden + hidden) + (hidden * 768 + 768) + (2 * 7 * 7 + 1)


# ---- blocks that can be left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "expected"), [("resnet16_pool_first", 4), ("resnet16_half", 4), ("resnet18_half", 5), ("resnet18", 5),
                                                    ("resnet50", 12), ("efficientnet_b0", 9), ("convnext_tiny", 18), ("convnext_tiny_attention", 18)])
def test_residual_blocks_are_all_but_those_that_change_size_or_channels(backbone, expected):
    """ResNet-18 has 8 blocks, of which 3 begin a stage; ResNet-50 16, of which 4 widen; EfficientNet-B0 16 in 7 stages; ConvNeXt-T 3 + 3 + 9 + 3."""
    body = network(backbone).body
    blocks, seen = residual_blocks(body), []
    assert len(blocks) == expected
    handles = [block.register_forward_hook(lambda module, given, made: seen.append((module, given[0].shape == made.shape))) for block in blocks]
    with torch.no_grad():
        body(noise(1, 1, 64, 64))
    for handle in handles:
        handle.remove()
    assert [module for module, _ in seen] == blocks and all(same for _, same in seen)  # in the order of depth
