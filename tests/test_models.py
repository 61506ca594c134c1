"""Networks: sizes of maps, the mean of spatial logits, the head, bfloat16. What is special to a backbone is in test_backbones."""

import pytest
import torch
from torch import nn

from sos.config import BACKBONES, RunConfig
from sos.method.models import Head, build, fold_norms

CHANNELS = {"resnet16_half": 256, "resnet16_pool_first": 256, "resnet18_half": 256, "resnet18": 512, "resnet50": 2048, "efficientnet_b0": 1280,
            "convnext_tiny": 768, "convnext_tiny_attention": 768}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(backbone, output_stride=32, stages=5, seed=0, **rest):
    torch.manual_seed(seed)
    return build(RunConfig(backbone=backbone, output_stride=output_stride), stages, **rest).eval()


@pytest.mark.parametrize("output_stride", [16, 32])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_maps_have_the_asked_grid_and_their_mean_is_the_answer(backbone, output_stride):
    net = network(backbone, output_stride)
    x = noise(2, 1, 64, 96)
    with torch.no_grad():
        look, logits = net.look(x), net(x)
    assert look.features.shape == (2, CHANNELS[backbone], 64 // output_stride, 96 // output_stride)
    assert look.spatial.shape == (2, 5, 64 // output_stride, 96 // output_stride)
    assert torch.allclose(look.logits, look.spatial.mean((2, 3)), atol=1e-6) and torch.equal(look.logits, logits)
    pooled = net.head.classifier(look.features.mean((2, 3), keepdim=True))[:, :, 0, 0]  # global average pooling, then a linear classifier
    assert torch.allclose(pooled, logits, atol=1e-5 * float(logits.abs().max()))


def test_a_finer_grid_costs_no_parameter_and_takes_the_same_weights():
    coarse, fine = network("resnet18_half", 32), network("resnet18_half", 16, seed=1)
    fine.load_state_dict(coarse.state_dict())
    x = noise(1, 1, 64, 64)
    with torch.no_grad():
        # the first convolution of the last stage skips every other place in the coarse network only
        before = coarse.body[:7](x)
        assert torch.allclose(fine.body[:7](x), before)
        assert torch.allclose(coarse.body[7][0].conv1(before), fine.body[7][0].conv1(before)[..., ::2, ::2], atol=1e-5)
        assert not torch.allclose(coarse(x), fine(x))


@pytest.mark.parametrize("stages", [4, 5])
def test_number_of_stages_is_that_of_the_scheme(stages):
    assert network("resnet18_half", stages=stages)(noise(1, 1, 32, 32)).shape == (1, stages)


def test_dropout_drops_whole_channels_in_training_only():
    head = Head(64, 3, dropout=0.5)
    nn.init.ones_(head.classifier.weight)
    nn.init.zeros_(head.classifier.bias)
    features = torch.rand(1, 64, 4, 4, generator=torch.Generator().manual_seed(0)) * 0 + 1
    assert torch.equal(head.eval()(features), torch.full((1, 3, 4, 4), 64.0))
    torch.manual_seed(0)
    dropped = head.train()(features)
    assert dropped.std() == 0 and dropped.unique() != 64  # the same channels everywhere in the map


def test_bfloat16_runs_the_backbone_only_and_answers_nearly_the_same():
    plain, half = network("resnet18_half", 16), network("resnet18_half", 16, bf16=True)
    x = noise(2, 1, 64, 64)
    with torch.no_grad():
        a, b = plain.look(x), half.look(x)
    assert {part.dtype for part in b[:3]} == {torch.float32}
    assert not torch.equal(a.features, b.features)
    assert (a.features - b.features).norm() < 0.05 * a.features.norm()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folded_norms_leave_the_function_and_no_norm_of_a_batch(backbone):
    torch.manual_seed(0)
    net = build(RunConfig(backbone=backbone), 5).eval()
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        for numbers, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1), (norm.running_var, 0.5, 2)):
            nn.init.uniform_(numbers, low, high)
    picture = torch.randn(2, 1, 96, 96)
    with torch.no_grad():
        before = net.look(picture)
        after = fold_norms(net).look(picture)
    for a, b in zip(before[:3], after[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in net.modules())


def test_a_norm_behind_a_maximum_is_folded_only_where_it_rises():
    net, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.BatchNorm2d(3)).eval(), noise(2, 1, 12, 12)
    nn.init.constant_(net[2].weight, -1.0)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(fold_norms(net)(x), expected) and isinstance(net[2], nn.BatchNorm2d)


def test_folding_norms_reaches_both_looks():
    net = fold_norms(build(RunConfig(looks=2), 5).eval())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
