"""Progressive training: who is awake when, that a sleeping block is not there at all, and that the network is the ordinary one in the end."""

from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import Learner  # the module patches no_bar into Learner
from fastai.data.core import DataLoaders
from fastai.optimizer import OptimWrapper
from torch import nn

from sos.cohort.batches import ViewLoader
from sos.cohort.views import PixelStore
from sos.config import RunConfig
from sos.errors import ConfigError
from sos.method.backbones import residual_blocks
from sos.method.distill import Distillation
from sos.method.models import Head, StagingNet, build
from sos.method.progressive import Progressive, awake
from sos.study.fitting import adamw, decayed_and_not

CONFIG = RunConfig(role="student", backbone="resnet18_half", output_stride=16, frame_px=64, batch_size=4, precision="fp32", w_attn=1.0)


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return build(CONFIG.with_(**changes), 5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the schedule --------------------------------------------------------------------------------------------------


def test_blocks_wake_evenly_over_the_first_share():
    assert [awake(4, 0.5, epoch / 10) for epoch in range(10)] == [0, 0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert [awake(5, 0.5, epoch / 12) for epoch in range(12)] == [0, 0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_without_a_share_all_are_awake_from_the_start():
    assert [awake(5, 0.0, done) for done in (0.0, 0.5, 0.99)] == [5, 5, 5] and awake(0, 0.5, 0.0) == 0


def test_all_are_awake_in_the_last_epoch_with_the_largest_share_that_is_allowed():
    for epochs in range(2, 200):
        share = (epochs - 1) / epochs
        assert all(awake(blocks, share, (epochs - 1) / epochs) == blocks for blocks in (1, 4, 5, 9, 12, 18))
        assert awake(18, share, 0.0) == 0


# ---- blocks asleep -------------------------------------------------------------------------------------------------


def silent(net, number):
    """The network whose blocks after the first `number` add nothing: the last layer of their branch is set to 0."""
    for block in residual_blocks(net.body)[number:]:
        if hasattr(block, "layer_scale"):  # ConvNeXt
            nn.init.zeros_(block.layer_scale)
        else:
            last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return net


@pytest.mark.parametrize("backbone", ["resnet16_pool_first", "resnet18_half", "resnet50", "efficientnet_b0", "convnext_tiny_attention"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_network_with_blocks_asleep_is_one_whose_blocks_add_nothing(backbone, number):
    net, x = network(backbone=backbone), noise(2, 1, 64, 64)
    for module in net.modules():  # so that it can be seen whether a block is there
        if hasattr(module, "layer_scale"):
            nn.init.ones_(module.layer_scale)  # torchvision begins with a millionth
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the next batch
    net(x)
    net.eval()
    names = list(net.state_dict())
    with torch.no_grad():
        ordinary = net(x)
        with Progressive(net, 0.5) as progressive:
            progressive.wake(number)
            given = net(x)
            assert list(net.state_dict()) == names
        assert torch.equal(net(x), ordinary) and not torch.allclose(given, ordinary, rtol=1e-3)
        assert torch.allclose(given, silent(net, number)(x), rtol=1e-4, atol=1e-6)


def test_a_sleeping_block_gives_back_its_input_itself():
    net = network()
    block = residual_blocks(net.body)[2]
    x = noise(1, 64, 8, 8)  # with negative numbers, which the block's own ReLU would cut
    with Progressive(net, 0.5) as progressive:
        progressive.wake(2)
        assert block(x) is x
        progressive.wake(3)
        assert block(x) is not x


def test_a_sleeping_block_gets_no_gradient_and_gathers_no_statistics_and_those_awake_do():
    net = network().train()
    blocks = residual_blocks(net.body)
    with Progressive(net, 0.5) as progressive:
        progressive.wake(3)
        net(noise(4, 1, 64, 64)).square().sum().backward()
    for place, block in enumerate(blocks):
        assert all((weight.grad is None) == (place >= 3) for weight in block.parameters())
        assert block.bn1.num_batches_tracked == (place < 3)
    asleep = {weight for block in blocks[3:] for weight in block.parameters()}
    assert all(weight.grad.abs().max() > 0 for weight in net.parameters() if weight not in asleep)


def test_a_network_without_such_blocks_cannot_be_trained_progressively():
    net = StagingNet(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), Head(4, 5))
    with pytest.raises(ConfigError, match="needs a backbone with residual blocks"):
        Progressive(net, 0.5)
    with Progressive(net, 0.0) as progressive:
        progressive.wake(0)


# ---- in training ---------------------------------------------------------------------------------------------------


def views(training, n=8):
    rng = np.random.default_rng(0)
    store = PixelStore(rng.integers(0, 256, (n, 40, 40), dtype=np.uint8), np.full((n, 2), 40), np.ones(n, np.float32),
                       np.tile(np.float32([10, 12, 26, 30]), (n, 1)), np.arange(n) % 5, np.full(n, 0.3, np.float32), "")
    return ViewLoader(store, range(n), CONFIG, training=training, window_px=32)


class Diary(Callback):
    """After each epoch and before its validation: the places of the blocks awake, and all weights."""

    def before_fit(self):
        self.learn.awake, self.learn.weights, self.learn.validated = [], [], []

    def after_train(self):
        blocks = residual_blocks(self.model.body)
        self.learn.awake.append([place for place, block in enumerate(blocks) if "forward" not in vars(block)])
        self.learn.weights.append([[weight.detach().clone() for weight in block.parameters()] for block in blocks])

    def before_validate(self):
        self.learn.validated.append(sum("forward" not in vars(block) for block in residual_blocks(self.model.body)))


class Failing(Callback):
    def after_backward(self):
        raise KeyError("a fault of somebody else")


def taught(share, epochs, *cbs):
    """A student taught for some epochs, with its learner."""
    net = network()
    learn = Learner(DataLoaders(views(True), views(False), device="cpu"), net, loss_func=nn.CrossEntropyLoss(), path=".", cbs=cbs,
                    opt_func=partial(OptimWrapper, opt=adamw), splitter=decayed_and_not, wd=[0.5, 0.0])
    torch.manual_seed(3)
    with Distillation(net, network(1), CONFIG) as distillation, Progressive(net, share) as progressive, learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-3, cbs=[distillation, progressive])
    return net, learn


def test_blocks_wake_from_shallow_to_deep_and_one_asleep_keeps_every_weight():
    start = [[weight.detach().clone() for weight in block.parameters()] for block in residual_blocks(network().body)]
    net, learn = taught(0.5, 4, Diary())
    assert learn.awake == [[], [0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] and learn.validated == [0, 2, 5, 5]
    for places, weights in zip(learn.awake, learn.weights, strict=True):
        for place, (before, after) in enumerate(zip(start, weights, strict=True)):
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # weight decay would have shrunk them too
            assert same == (place not in places)


def test_in_the_end_it_is_the_ordinary_network():
    net, _ = taught(0.5, 2)
    plain = network(seed=9)
    plain.load_state_dict(net.state_dict())
    x = noise(2, 1, 64, 64)
    for training in (False, True):
        assert torch.equal(net.train(training)(x), plain.train(training)(x))
    assert not any("forward" in vars(module) for module in net.modules())


def test_without_a_share_training_is_as_without_the_callback():
    ours, _ = taught(0.0, 2)
    net = network()
    learn = Learner(DataLoaders(views(True), views(False), device="cpu"), net, loss_func=nn.CrossEntropyLoss(), path=".",
                    opt_func=partial(OptimWrapper, opt=adamw), splitter=decayed_and_not, wd=[0.5, 0.0])
    torch.manual_seed(3)
    with Distillation(net, network(1), CONFIG) as distillation, learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=distillation)
    assert all(torch.allclose(tensor, ours.state_dict()[name], atol=1e-6) for name, tensor in net.state_dict().items())
    grown, _ = taught(0.5, 2)
    assert not torch.allclose(grown.body[0].weight, net.body[0].weight, atol=1e-6)


def test_all_blocks_are_awake_after_a_fault():
    net = network()
    learn = Learner(DataLoaders(views(True), views(False), device="cpu"), net, loss_func=nn.CrossEntropyLoss(), path=".", cbs=Failing())
    with pytest.raises(KeyError, match="somebody else"), Distillation(net, network(1), CONFIG) as distillation, \
            Progressive(net, 0.5) as progressive, learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=[distillation, progressive])
    assert not any("forward" in vars(module) for module in net.modules())
