"""Two cameras on one scene: a random geometric transform is drawn for each patient; the *frame* camera shows the whole transformed image, the
*window* camera the expert's box of the same transformed scene. Each samples the native pixels once.

Coordinates: *native* pixels, (x, y) with the centre of the first pixel at (0.5, 0.5); *frame* coordinates in [0, 1]², the square picture
that a full-image network sees, the whole native image centred in it with its longer side filling it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..config import RunConfig

MEAN, STD = 0.35, 0.25  # of grey values in a frame, roughly: networks see (grey - MEAN) / STD
FINE = 2  # samples a picture pixel along each side; a frame pixel spans 2 to 4 native ones
PART = 2  # images that a core samples at once: of more, neither pixels nor samples stay in its cache


def reduce_to(image, native_px: int) -> tuple[np.ndarray, float, float]:
    """A GreyImage as (h, w) uint8 with its longer side at most `native_px`; with it, stored over decoded pixels, and mm a stored pixel (nan
    where unknown)."""
    grey = torch.from_numpy(np.ascontiguousarray(image.pixels))[None, None]
    scale = min(1.0, native_px / max(grey.shape[2:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in grey.shape[2:]]
        grey = F.interpolate(grey, size=size, mode="bilinear", antialias=True, align_corners=False).clamp_(0, 1)
    spacing = float("nan") if image.spacing_mm is None else image.spacing_mm / scale
    return (grey[0, 0] * 255).round_().to(torch.uint8).numpy(), scale, spacing


def put(values, device: torch.device | str) -> torch.Tensor:
    """Numbers as a tensor on `device`. A GPU finishes first what it was told before; its caller does not wait for that."""
    return torch.as_tensor(values).to(device, non_blocking=True)


@dataclass(frozen=True)
class Scene:
    """Where each frame of a batch lies on its native image: native = centre + matrix · (frame - 0.5).

    matrix: (b, 2, 2), native pixels a frame; centre: (b, 2) native (x, y) of the frame's middle.
    """

    matrix: torch.Tensor
    centre: torch.Tensor

    def to_native(self, points: torch.Tensor) -> torch.Tensor:
        """(b, n, 2) frame points to native pixels."""
        return torch.einsum("bij,bnj->bni", self.matrix, points - 0.5) + self.centre[:, None]

    def to_frame(self, points: torch.Tensor) -> torch.Tensor:
        """(b, n, 2) native points to frame coordinates."""
        return torch.einsum("bij,bnj->bni", torch.linalg.inv_ex(self.matrix).inverse, points - self.centre[:, None]) + 0.5

    def box_to_frame(self, boxes: torch.Tensor) -> torch.Tensor:
        """(b, 4) native boxes x0, y0, x1, y1 to frame coordinates: centre moved, sides scaled. The box stays upright under rotation and
        keeps its size, as an expert would draw it again in the turned image."""
        centre = self.to_frame(((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None])[:, 0]
        zoom = torch.linalg.det(self.matrix).abs().sqrt()  # native pixels along one frame side
        half = (boxes[:, 2:] - boxes[:, :2]) / 2 / zoom[:, None]
        return torch.cat([centre - half, centre + half], 1)


def still_scene(sizes: torch.Tensor, mirrored: bool = False) -> Scene:
    """The whole image (b, 2: height, width), upright and centred: what is seen in validation and in use. mirrored: left and right exchanged."""
    sizes = sizes.float()
    axes = torch.diag(put([-1.0 if mirrored else 1.0, 1.0], sizes.device))
    return Scene(axes * sizes.amax(1)[:, None, None], sizes.flip(1) / 2)


def random_scene(sizes: torch.Tensor, config: RunConfig, generator: torch.Generator) -> Scene:
    """One random rotation, zoom, shift and mirror for each image, in the ranges of `config`."""
    still = still_scene(sizes)
    b, device = len(sizes), sizes.device
    uniform = torch.rand(b, 5, generator=generator, device=device) * 2 - 1
    angle = torch.deg2rad(config.rotate_deg * uniform[:, 0])
    zoom = torch.exp(config.zoom * uniform[:, 1])
    mirror = torch.where(uniform[:, 4] < 2 * config.flip - 1, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], 1).view(b, 2, 2) / zoom[:, None, None]
    matrix = still.matrix @ turn
    shift = config.shift * uniform[:, 2:4]
    return Scene(matrix, still.centre + torch.einsum("bij,bj->bi", matrix, shift))


def square_window(boxes: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """(b, 4) boxes to upright squares of the same centre whose side is `scale` times the longer side."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) * scale / 2
    return torch.cat([centre - half, centre + half], 1)


class Asked(NamedTuple):
    """A picture asked of a scene: square, of `size_px`, of the `window` (b, 4) of the frame (None: the frame), the mean of fine × fine samples a
    pixel."""

    size_px: int
    window: torch.Tensor | None = None
    fine: int = FINE


def frame_of(config: RunConfig) -> Asked:
    """The frames that a network of `config` sees. Those of one that looks twice are so large that a pixel spans two native ones or less, and one
    sample, itself the mean of its four neighbours, does."""
    return Asked(config.frame_px, fine=1 if config.looks == 2 else FINE)


def cameras(native: torch.Tensor, scene: Scene, *asked: Asked) -> list[torch.Tensor]:
    """Sample native pixels (b, 1, H, W), of any kind of number, once into each of the pictures `asked`, (b, 1, size_px, size_px) float32 and new.

    Anti-aliased by the mean of their samples. Black outside the native image.
    """
    b, _, height, width = native.shape
    rays = [_rays(scene, height, width, *one) for one in asked]
    at_once = b if native.is_cuda else PART * torch.get_num_threads()
    pictures = [[] for _ in asked]
    for part in (slice(first, first + at_once) for first in range(0, b, at_once)):
        pixels = native[part].float()
        for (across, down), done in zip(rays, pictures, strict=True):
            done.append(_sample(pixels, across[part], down[part]))
    return [torch.cat(done) if len(done) > 1 else done[0] for done in pictures]


def camera(native: torch.Tensor, scene: Scene, size_px: int, window: torch.Tensor | None = None, fine: int = FINE) -> torch.Tensor:
    """One picture, see `cameras`."""
    return cameras(native, scene, Asked(size_px, window, fine))[0]


def frame_camera(native: torch.Tensor, scene: Scene, config: RunConfig) -> torch.Tensor:
    """The frames (b, 1, frame_px, frame_px) that a network of `config` sees."""
    return cameras(native, scene, frame_of(config))[0]


def _rays(scene: Scene, height: int, width: int, size_px: int, window: torch.Tensor | None, fine: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a picture's samples lie, -1..1 over the edges of native arrays: across + down, (b, 2, 1, 1, fine, size) and (b, 2, size, fine, 1, 1).

    x and y are in planes of their own, and phases apart within a row, so that all that follows runs along memory.
    """
    device = scene.matrix.device
    if window is None:
        window = put([[0.0, 0.0, 1.0, 1.0]], device).expand(len(scene.matrix), 4)
    half, middle = (window[:, 2:] - window[:, :2]) / 2, (window[:, 2:] + window[:, :2]) / 2  # (b, 2) in the frame
    unit = 2 / put([width, height], device)  # a native pixel
    matrix = unit[:, None] * scene.matrix * half[:, None, :]
    offset = unit * scene.to_native(middle[:, None])[:, 0] - 1
    steps = (torch.arange(size_px * fine, device=device) + 0.5) * (2 / (size_px * fine)) - 1  # -1..1 over the picture
    steps = steps.view(size_px, fine)
    across = matrix[:, :, :1, None] * steps.T.contiguous()  # (b, 2, fine, size)
    down = matrix[:, :, 1:, None] * steps + offset[:, :, None, None]  # (b, 2, size, fine)
    return across[:, :, None, None], down[..., None, None]


def _sample(native: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """One picture (b, 1, size, size) of a few images, of float32 pixels, along its rays."""
    fine, size_px = across.shape[-2:]
    grid = (across + down).view(len(native), 2, -1, size_px).permute(0, 2, 3, 1)
    samples = F.grid_sample(native, grid, mode="bilinear", padding_mode="zeros", align_corners=False).view(-1, 1, size_px, fine**2, size_px)
    first, *others = samples.unbind(3)
    return sum(others, first).div_(fine**2) if others else first


@dataclass(frozen=True)
class Light:
    """How bright, contrasty and noisy a scene is: the same for both cameras."""

    gain: torch.Tensor  # (b, 1, 1, 1), and so the others
    offset: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def random(cls, b: int, config: RunConfig, generator: torch.Generator, device) -> "Light":
        uniform = torch.rand(4, b, 1, 1, 1, generator=generator, device=device) * 2 - 1
        return cls(torch.exp(config.gain * uniform[0]), config.offset * uniform[1], torch.exp(config.gamma * uniform[2]),
                   config.noise * (uniform[3] + 1) / 2)

    def shine(self, picture: torch.Tensor, generator: torch.Generator, out: torch.Tensor | None = None) -> torch.Tensor:
        """Grey values in [0, 1] under this light, in [0, 1] again; written to `out`, which may be the picture."""
        noise = torch.randn(picture.shape, generator=generator, device=picture.device)
        lit = torch.clamp_min(picture, 1e-4, out=out).log_().mul_(self.gamma).exp_().sub_(0.5).mul_(self.gain).add_(0.5 + self.offset)
        return lit.addcmul_(noise, self.noise).clamp_(0, 1)


def normalise(picture: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Grey values in [0, 1] to what networks see; written to `out`, which may be the picture."""
    return torch.sub(picture, MEAN, out=out).div_(STD)
