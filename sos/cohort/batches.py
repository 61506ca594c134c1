"""Batches of views for fastai, in an order that depends on the seed and the epoch alone."""

import hashlib

import numpy as np
import torch
from fastai.data.load import DataLoader

from ..config import RunConfig
from ..errors import ConfigError
from .views import PixelStore, Views


class ViewLoader(DataLoader):
    """fastai loader of the `views` of images in `rows`, which see; in training shuffled and transformed at random.

    The order and the transforms of epoch e depend on (seed, e) alone, so that training goes on after a stop exactly as it would have.
    window_px, window_scale: see Views. share: (i, n), this is the i-th (from 0) of n processes that train together and each batch's every n-th
    view is its; raises ConfigError where a batch cannot be shared.
    """

    def __init__(self, store: PixelStore, rows, config: RunConfig, *, training: bool, device="cpu", window_px: int = 0, window_scale: float = 0.0,
                 share: tuple[int, int] = (0, 1)):
        if share[1] > 1 and (config.batch_size % share[1] or len(rows) < config.batch_size):
            raise ConfigError(f"a batch of {config.batch_size} of {len(rows)} images cannot be shared by {share[1]} devices; change batch_size")
        super().__init__(dataset=list(rows), bs=config.batch_size if training else 2 * config.batch_size, shuffle=training, drop_last=training
                         and len(rows) >= config.batch_size, num_workers=0, device=torch.device(device))
        self.views = Views(store, config, training=training, device=device, window_px=window_px, window_scale=window_scale)
        self.epoch, self.share = 0, share

    def get_idxs(self):
        if not self.views.training:
            return list(range(self.n))
        seed, generator = self.views.config.seed, self.views.generator
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {self.epoch}".encode()).digest()[:7], "big"))
        return torch.randperm(self.n, generator=generator, device=self.device).tolist()

    def create_batch(self, items):
        batch = self.views(np.asarray(items))
        if self.share == (0, 1):
            return batch
        return tuple(part[self.share[0]::self.share[1]] for part in batch)  # drawn whole, so that the draws are those of one process
