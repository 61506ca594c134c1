"""Grad-CAM as tensor functions (Selvaraju et al. 2017), able to carry gradient, and what can be asked of a heat map."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn


PICTURE = 32  # cells a side of the map of a picture of which a network chose to see a window


def grad_cam(features: torch.Tensor, score: torch.Tensor, *, create_graph: bool = False) -> torch.Tensor:
    """Grad-CAM = ReLU(Σ_c α_c A_c), α_c = mean over positions of ∂score/∂A_c.

    features: A (b, c, h, w), which `score` was computed from. score: (b,), one explained number an image, the logit of a class usually; an
    image's score must depend on its own features only. create_graph: keep the graph, for a loss on the map. Returns (b, h, w), at least 0.
    """
    (gradient,) = torch.autograd.grad(score.sum(), features, create_graph=create_graph, retain_graph=True)
    return weighted(gradient.mean((2, 3), keepdim=True), features)


def weighted(alpha: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """ReLU(Σ_c α_c A_c), (b, h, w), of channel weights (b, c, 1, 1) and a feature map (b, c, h, w)."""
    return F.relu(torch.einsum("bc,bchw->bhw", alpha.flatten(1), features))  # a product of matrices: no weighted copy of the features


def alpha_of_head(head, target: torch.Tensor, places: int) -> torch.Tensor:
    """(b, c, 1, 1) the α of `class_score` at a last map of so many places, without a backward pass: the head is linear and its answer a mean over
    places, so that the gradient is the same everywhere (and Grad-CAM the class activation map of Zhou et al. 2016). Not with active dropout."""
    weight = head.classifier.weight[:, :, 0, 0]  # (k, c)
    return ((weight[target] - weight.mean(0)) / places)[:, :, None, None]


def class_score(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(b,) what Grad-CAM explains: the logit of each image's `target` (b,) above the mean of its logits (b, k).

    Softmax does not change when all logits move together, so a network may decide for a stage whose bare logit has only evidence against
    it: its map is empty, and a loss on it has no gradient left. Measured against the mean of all stages, a decision has positive evidence.
    """
    return logits.gather(1, target[:, None])[:, 0] - logits.mean(1)


def explain(net, x: torch.Tensor, target: torch.Tensor | Callable | None = None, layer: str = "last"):
    """Look and Grad-CAM of a batch, only what follows the explained map differentiated: at the `last` layer the head, whose gradient is known, so
    that a forward pass is all.

    target: (b,) class to explain, or what chooses it, a function of the logits (b, k); the decided one where None. layer: see `map_of`. Returns
    (Look, (b, h, w)), both detached, the map over the whole of x; the net's mode is left as it is.
    """
    with torch.no_grad():
        picture, window = net.view(x)
        features = map_of(net, picture, layer)
    known = layer == "last" and not (net.head.training and net.head.dropout.p)
    with torch.set_grad_enabled(not known):
        look = judge_map(net, features.requires_grad_(not known), layer)
        if callable(target):
            target = target(look.logits.detach())
        target = look.logits.argmax(1) if target is None else target
        if known:
            cam = weighted(alpha_of_head(net.head, target, features[0, 0].numel()), features)
        else:
            cam = grad_cam(features, class_score(look.logits, target)).detach()
    seen = (look.features.detach(), look.spatial.detach(), look.logits.detach())
    return type(look)(*seen, window), over_picture(cam, window)


def map_of(net, x: torch.Tensor, layer: str = "last") -> torch.Tensor:
    """(b, c, h, w) float32, the feature map that Grad-CAM explains: the `last`, which the head judges, or the `previous`, which the last
    downsampling stage of the backbone is given: of stride 16, less deep, and twice as fine as the last where output_stride is 32."""
    if layer == "last":
        return net.features(x)
    return net.of(net.body[:net.body.last_stage], x)


def judge_map(net, features: torch.Tensor, layer: str = "last"):
    """Look of a batch from its `map_of`. From the `previous` map the last stage and the head answer as in evaluation, whatever the mode: norms
    over a batch would take out of the gradient just that mean over places that Grad-CAM weights a channel with, and tie images together."""
    if layer == "last":
        return net.judge(features)
    stage = net.body[net.body.last_stage:]
    with _evaluating(stage, net.head):
        return net.judge(net.of(stage, features))


@contextmanager
def _evaluating(*modules: nn.Module):
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def unit_mass(cam: torch.Tensor, floor: float = 0.05) -> torch.Tensor:
    """(b, h, w) maps divided by their sums, so that each is a distribution over positions.

    A floor of `floor` times the map's mean is added first: it bounds the logarithms and gradients of a loss on the maps, and a map of zeros
    becomes uniform.
    """
    cam = cam + floor * cam.mean((1, 2), keepdim=True) + 1e-8
    return cam / cam.sum((1, 2), keepdim=True)


def enlarge(cam: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """(b, h, w) maps to `size` by bilinear interpolation."""
    return F.interpolate(cam[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def peak(cam: torch.Tensor, fine: int = 8) -> torch.Tensor:
    """(b, 2) x, y in [0, 1] of each map's largest value, located on a grid `fine` times finer."""
    cam = enlarge(cam, (cam.shape[1] * fine, cam.shape[2] * fine))
    height, width = cam.shape[1:]
    index = cam.flatten(1).argmax(1)
    return torch.stack([(index % width + 0.5) / width, (index // width + 0.5) / height], 1)


def over_picture(cam: torch.Tensor, window: torch.Tensor | None) -> torch.Tensor:
    """Maps of the `window` that a network chose itself (b, 4; None: the picture) as maps of the whole picture, PICTURE cells a side."""
    return cam if window is None else paste(cam, window, PICTURE)


def box_mask(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """(b, 4) boxes in [0, 1] as (b, size, size): the share of each cell that the box covers."""
    edges = torch.arange(size + 1, device=boxes.device) / size

    def cover(low, high):  # (b, size)
        return (torch.minimum(edges[1:], high[:, None]) - torch.maximum(edges[:-1], low[:, None])).clamp_min(0) * size

    return cover(boxes[:, 1], boxes[:, 3])[:, :, None] * cover(boxes[:, 0], boxes[:, 2])[:, None, :]


def paste(cam: torch.Tensor, window: torch.Tensor, size: int, fine: int = 8) -> torch.Tensor:
    """Put maps of a window back to their place in the frame.

    cam: (b, h, w) of the window; window: (b, 4) in frame coordinates; returns (b, size, size), zero outside the window. Sampled bilinearly, `fine`
    times finer than the frame's grid, and averaged, so that mass lands in the cells it belongs to. Windows are upright: rows and columns are
    sampled one after the other, each a product of matrices.
    """
    steps = (torch.arange(size * fine, device=cam.device) + 0.5) / (size * fine)

    def shares(low, high, cells):  # (b, size, cells) of each cell of the map, in each of the frame
        place = (steps - low) / (high - low)  # (b, size·fine) 0..1 over the window
        centre = (place * cells - 0.5).clamp(0, cells - 1)  # beyond the outer cells' centres the map goes on
        weight = (1 - (centre[:, :, None] - torch.arange(cells, device=cam.device)).abs()).clamp_min(0)
        return (weight * ((place >= 0) & (place <= 1))[:, :, None]).unflatten(1, (size, fine)).mean(2)

    rows, columns = shares(window[:, 1:2], window[:, 3:], cam.shape[1]), shares(window[:, :1], window[:, 2:3], cam.shape[2])
    return rows @ cam @ columns.transpose(1, 2)
