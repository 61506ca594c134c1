"""The three losses of the paper as pure functions of tensors. The paper states their kinds; where it is silent a named choice is made here."""

import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from ..errors import ConfigError
from .cam import unit_mass


def distillation_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """L = T² · mean KL(softmax(teacher / T) ‖ softmax(student / T)) (Hinton et al. 2015).

    student, teacher: logits (b, k) or spatial logits (b, k, h, w) of equal shape; the mean runs over images and positions. A high T makes
    the unlikely stages count; T² keeps the gradient's size independent of T.
    """
    log_p = F.log_softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def align(spatial: torch.Tensor, window: torch.Tensor, grid: int | tuple[int, int]) -> torch.Tensor:
    """Spatial logits (b, k, h, w) of a frame sampled inside `window` (b, 4, frame coordinates in [0, 1]) on the teacher's grid: (b, k, *grid).

    RoIAlign (He et al. 2017) with half-pixel alignment, so that positions of both networks show the same place of the scene.
    """
    height, width = spatial.shape[2:]
    boxes = torch.stack([window[:, 0] * width, window[:, 1] * height, window[:, 2] * width, window[:, 3] * height], 1)
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    return roi_align(spatial, torch.cat([index, boxes], 1), grid, sampling_ratio=2, aligned=True)


def within(window: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """`window` (b, 4) in coordinates of `frame` (b, 4), where frame's corners are (0, 0) and (1, 1)."""
    corner, side = frame[:, :2], frame[:, 2:] - frame[:, :2]
    return torch.cat([(window[:, :2] - corner) / side, (window[:, 2:] - corner) / side], 1)


def spatial_distillation(student, teacher, window: torch.Tensor, temperature: float, evidence: str = "share") -> torch.Tensor:
    """L_dist: the KL of spatial logits inside the expert's window, and the KL of image logits, with equal weight.

    student, teacher: Look of the frame and of the window; window: (b, 4) in frame coordinates. The student's image logits are the mean over
    the *whole* frame, of which the window is a small share s. evidence: `share` compares the teacher's spatial logits with s times the
    student's, what these positions add to the student's image logits: a student that repeats the teacher inside the window and is silent
    outside then agrees with it on the image too. `plain` compares them as they are, which asks for both of two things that exclude each other.
    A student that chose its own window has little outside of the teacher's: its spatial logits are compared as they are. `none` leaves spatial
    logits out: distillation as Hinton et al. 2015 have it.
    """
    if evidence not in ("share", "plain", "none"):
        raise ConfigError(f"no evidence '{evidence}'; known: share, plain, none")
    if evidence == "none":
        return distillation_kl(student.logits, teacher.logits, temperature)
    place = window if student.window is None else within(window, student.window.detach())
    inside = align(student.spatial, place, teacher.spatial.shape[2:])
    if evidence == "share" and student.window is None:
        seen = window.clamp(0, 1)
        inside = inside * ((seen[:, 2] - seen[:, 0]) * (seen[:, 3] - seen[:, 1]))[:, None, None, None]
    return distillation_kl(inside, teacher.spatial, temperature) + distillation_kl(student.logits, teacher.logits, temperature)


def attention_distance(student: torch.Tensor, teacher: torch.Tensor, distance: str = "kl") -> torch.Tensor:
    """L_attn: how far the student's heat map (b, h, w) is from the teacher's, each normalised to unit mass; 0 for equal maps.

    distance: `kl`, KL(teacher ‖ student), which is large where the teacher looks and the student does not; `cosine`, 1 - cosine; `mse`,
    the squared error times the number of positions, so that it does not fade as the grid grows.
    """
    p, q = unit_mass(teacher), unit_mass(student)
    if distance == "kl":
        return (p * (p.log() - q.log())).sum((1, 2)).mean()
    if distance == "cosine":
        return (1 - F.cosine_similarity(p.flatten(1), q.flatten(1))).mean()
    if distance == "mse":
        return ((p - q) ** 2).sum((1, 2)).mean() * p[0].numel()
    raise ConfigError(f"no attention distance '{distance}'; known: kl, cosine, mse")
