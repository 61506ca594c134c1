"""A student that looks twice in one forward pass: a glance at the whole frame, reduced, aims a window; a gaze at that window stages it.

Beyond the paper. In a frame small enough to be cheap the joint is a dozen pixels long; most of them are spent on the rest of the head. Here
the network itself decides where the pixels go. Nothing is cropped for it: the frame goes in, the stage comes out, and one backward pass
trains both looks.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .models import Head, StagingNet

TYPICAL_SIDE = 0.4  # of the frame: side of the window before any training
REACH = 0.25  # of the frame, in each direction: how far the fine correction can move the centre of the window


class Aim(nn.Module):
    """From the features of a glance (b, c, h, w) to a square window (b, 4) in frame coordinates.

    The centre is the mean position under an attention map, a softmax over places, plus a small correction; the correction and the side are
    linear in the features under attention.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.attention, self.fine = nn.Conv2d(channels, 1, 1), nn.Linear(channels, 3)
        nn.init.zeros_(self.fine.weight)
        nn.init.zeros_(self.fine.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[2:]
        attention = self.attention(features).flatten(1).softmax(1)  # (b, h·w)
        places = torch.cartesian_prod((torch.arange(height, device=features.device) + 0.5) / height,
                                      (torch.arange(width, device=features.device) + 0.5) / width).flip(1)  # (h·w, 2) x, y
        fine = self.fine(torch.einsum("bcn,bn->bc", features.flatten(2), attention))  # (b, 3)
        centre = attention @ places + REACH * torch.tanh(fine[:, :2])
        half = 0.5 * TYPICAL_SIDE * torch.exp(fine[:, 2:].clamp(-2, 1))
        return torch.cat([centre - half, centre + half], 1)


class ZoomNet(StagingNet):
    """Two backbones: `glance` sees the frame reduced to `glance_px`, `aim` makes a window of what it found, `body` and `head` see that window at
    `gaze_px`, sampled from the frame. Input (b, 1, h, w) as for any StagingNet; the features of its Look lie in the Look's window."""

    def __init__(self, glance: nn.Module, aim: Aim, body: nn.Module, head: Head, glance_px: int, gaze_px: int,
                 aim_gradient: bool = False, bf16: bool = False):
        super().__init__(body, head, bf16)
        self.glance, self.aim, self.glance_px, self.gaze_px, self.aim_gradient = glance, aim, glance_px, gaze_px, aim_gradient

    def where(self, x: torch.Tensor) -> torch.Tensor:
        """(b, 4) where the network looks closer, in frame coordinates."""
        factor, rest = divmod(x.shape[3], self.glance_px)
        whole = not rest and x.shape[2] == x.shape[3]  # the same means, in two thirds of the time
        small = F.avg_pool2d(x, factor) if whole else F.interpolate(x, size=(self.glance_px, self.glance_px), mode="area")
        return self.aim(self.of(self.glance, small))

    def view(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.where(x)
        return gaze(x, window if self.aim_gradient else window.detach(), self.gaze_px), window


def gaze(x: torch.Tensor, window: torch.Tensor, size_px: int) -> torch.Tensor:
    """The `window` (b, 4) of frames (b, c, h, w), sampled bilinearly to (b, c, size_px, size_px); differentiable in both. Beyond the frame its
    edge goes on."""
    half, middle = (window[:, 2:] - window[:, :2]), (window[:, 2:] + window[:, :2]) - 1  # in -1..1 over the frame
    steps = (torch.arange(size_px, device=x.device) + 0.5) * (2 / size_px) - 1
    across, down = (middle[:, None] + half[:, None] * steps[None, :, None]).unbind(2)  # (b, size) each
    grid = torch.stack([across[:, None, :].expand(-1, size_px, -1), down[:, :, None].expand(-1, -1, size_px)], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def aim_distance(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """L_aim: how far windows (b, 4) are from others: of the centres in sides of the other, of the sides in logarithms; Huber, linear from 0.1."""

    def parts(window):
        return (window[:, :2] + window[:, 2:]) / 2, window[:, 2:3] - window[:, :1]

    (centre, side), (centre_o, side_o) = parts(own), parts(other)
    error = torch.cat([(centre - centre_o) / side_o, (side / side_o).clamp_min(1e-3).log()], 1)
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)
