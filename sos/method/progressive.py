"""Progressive training: the blocks of a backbone join one after the other while it is trained, and at the end it is the ordinary network.

After Milani et al. 2026 (arXiv:2604.10945): deeper blocks are activated over time, architecture and loss stay. Their schedule is not public
here; ours is argued at `Progressive`.
"""

import torch
from fastai.callback.core import Callback

from ..errors import ConfigError
from .backbones import residual_blocks
from .models import StagingNet


def awake(blocks: int, share: float, done: float) -> int:
    """How many of `blocks` are awake when the share `done` of training is over: the i-th from `share` · i / blocks on, all from `share` on."""
    return sum(done * blocks >= share * i for i in range(1, blocks + 1))


class Progressive(Callback):
    """Residual blocks that change neither size nor channels sleep at first, and wake from shallow to deep over the first `share` of the epochs.

    A block asleep is left out: its output is its input, exactly, so that it costs nothing, gets no gradient (and no weight decay) and gathers
    no statistics. To freeze a block instead would leave a random map in the way of those before it. What changes sizes is always awake, so
    every epoch trains a network of the same output. Blocks wake at once, not by a ramp, which would be another architecture meanwhile; and
    between epochs, so that the state depends on the number of the epoch alone, and validation sees no block that has just woken. With a share
    of 0 nothing sleeps. Use as

        with Progressive(net, config.progressive) as progressive:
            Learner(dls, net, ..., cbs=progressive).fit(...)

    so that all blocks are awake afterwards, whatever happens. Raises ConfigError for a share above 0 and a backbone without such blocks.
    """

    def __init__(self, net: StagingNet, share: float):
        super().__init__()
        self.residual, self.share = residual_blocks(net.body), share
        if share > 0 and not self.residual:
            raise ConfigError("progressive training needs a backbone with residual blocks that keep the size; set progressive=0")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wake(len(self.residual))

    def before_epoch(self):
        self.wake(awake(len(self.residual), self.share, self.epoch / self.n_epoch))

    def wake(self, number: int) -> None:
        """Let the first `number` blocks be awake and the others asleep."""
        for place, block in enumerate(self.residual):
            block.__dict__.pop("forward", None)
            if place >= number:
                block.forward = _pass_on  # of the object, found before its class's; the state dict and the mode do not know of it


def _pass_on(x: torch.Tensor) -> torch.Tensor:
    return x
