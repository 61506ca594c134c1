"""Writes what two published libraries make of our inputs; `tests/test_references.py` holds our own functions against it.

    pip install --target PEERS --no-deps grad-cam==1.5.7 torchdistill==1.1.4 ttach==0.0.3 opencv-python-headless==5.0.0.93
    PYTHONPATH=PEERS:. python tests/references/make_references.py

in an environment made from requirements.lock, from the top of the checkout. The two libraries are no dependency of this project: they stand
in a folder of their own, and the tests read the two JSON files beside this script.

grad_cam.json, from pytorch-grad-cam (Gildenblat et al.): Grad-CAM of the backbone's last layer, as that library has it before it scales each map
to [0, 1] and resizes it to the image. Two scores: `logit`, the library's own ClassifierOutputTarget, and `margin`, the logit above the mean of all
logits, which is what we explain.

torchdistill.json, from torchdistill (Matsubara 2021): its KDLoss, whose two branches scale differently. `kl` is the branch without labels: the KL
divergence summed over classes and positions and divided by the number of images, *without* T². `kd` is the branch with labels,
alpha · cross-entropy + (1 - alpha) · T² · kl. Ours has T² always, and for spatial logits the mean over positions.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cases import ALPHA, NETWORKS, TARGETS, TEMPERATURES, digest, digest_of_network, logits, network, picture
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchdistill.losses.mid_level import KDLoss

HERE = Path(__file__).resolve().parent


class KeepingGradCAM(GradCAM):
    """The library's GradCAM, which keeps its map as it was before scaling and resizing."""

    def get_cam_image(self, *args, **kwargs):
        self.map = super().get_cam_image(*args, **kwargs)
        return self.map


class Margin:
    """A target of the library: the logit of `category` above the mean of all logits of the image."""

    def __init__(self, category: int):
        self.category = category

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return output[self.category] - output.mean()


def rounded(values: np.ndarray) -> list:
    """Nested lists with nine significant digits, more than float32 holds."""
    return np.vectorize(lambda value: float(f"{value:.9g}"))(values).tolist()


def grad_cam_maps(name: str) -> dict:
    """Maps (3, 6, 8) of one network for both scores. Raises ValueError for an empty map, which would compare nothing."""
    net, x, target = network(name), picture(name), TARGETS.tolist()
    maps = {}
    for score, kind in (("logit", ClassifierOutputTarget), ("margin", Margin)):
        with KeepingGradCAM(net, [net.body]) as cam:
            cam(x, [kind(category) for category in target])
        maps[score] = np.maximum(cam.map, 0)
        if not (maps[score].max((1, 2)) > 0).all():
            raise ValueError(f"{name}, {score}: an empty map; choose other targets in cases.py")
    return {"inputs": digest_of_network(name)} | {score: rounded(values) for score, values in maps.items()}


def kd_losses(kind: str) -> dict:
    """KDLoss of `kind` logits by temperature: `kl`, and for image logits `kd`."""
    student, teacher, label = logits(kind)
    student_out, teacher_out = ({"head": {"output": values}} for values in (student, teacher))
    found = {"inputs": digest(student, teacher, label), "kl": {}, "kd": {}}
    for temperature in TEMPERATURES:
        bare, whole = (KDLoss("head", "output", "head", "output", temperature=temperature, alpha=alpha) for alpha in (0, ALPHA))
        found["kl"][str(temperature)] = bare(student_out, teacher_out).item()
        if kind == "image":
            found["kd"][str(temperature)] = whole(student_out, teacher_out, label).item()
    return found


def write(name: str, made_with: tuple[str, ...], values: dict) -> None:
    """`name`.json beside this script, the versions of all that took part first; a map's row on one line."""
    record = {"made_with": {package: version(package) for package in made_with}} | values
    text = re.sub(r"\[[^\[\]]+\]", lambda row: " ".join(row[0].split()), json.dumps(record, indent=1))
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    write("grad_cam", ("grad-cam", "torch", "numpy"), {name: grad_cam_maps(name) for name in NETWORKS})
    write("torchdistill", ("torchdistill", "torch", "numpy"), {"alpha": ALPHA} | {kind: kd_losses(kind) for kind in ("image", "spatial")})
