"""Losses and Grad-CAM against other people's: pytorch-grad-cam and torchdistill, by the values that `references/make_references.py` wrote."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from references.cases import ALPHA, NETWORKS, TARGETS, TEMPERATURES, digest, digest_of_network, logits, network, picture

from sos.method.cam import class_score, explain, grad_cam
from sos.method.losses import distillation_kl


def reference(name: str) -> dict:
    return json.loads((Path(__file__).parent / "references" / f"{name}.json").read_text(encoding="utf-8"))


GRAD_CAM, TORCHDISTILL = reference("grad_cam"), reference("torchdistill")


def test_references_tell_who_made_them():
    assert GRAD_CAM["made_with"]["grad-cam"] == "1.5.7" and TORCHDISTILL["made_with"]["torchdistill"] == "1.1.4"
    assert all({"torch", "numpy"} < set(made["made_with"]) for made in (GRAD_CAM, TORCHDISTILL))


def test_inputs_are_those_of_the_references_to_the_last_bit():
    for name in NETWORKS:
        assert digest_of_network(name) == GRAD_CAM[name]["inputs"], name
    for kind in ("image", "spatial"):
        assert digest(*logits(kind)) == TORCHDISTILL[kind]["inputs"], kind


# ---- torchdistill --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_equals_torchdistills_times_t_squared(temperature):
    """torchdistill leaves T² out where it has no labels."""
    student, teacher, _ = logits("image")
    theirs = TORCHDISTILL["image"]["kl"][str(temperature)]
    assert distillation_kl(student, teacher, temperature).item() == pytest.approx(temperature**2 * theirs, rel=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_and_cross_entropy_equal_torchdistills_loss_with_labels(temperature):
    student, teacher, label = logits("image")
    ours = ALPHA * F.cross_entropy(student, label) + (1 - ALPHA) * distillation_kl(student, teacher, temperature)
    assert TORCHDISTILL["alpha"] == ALPHA
    assert ours.item() == pytest.approx(TORCHDISTILL["image"]["kd"][str(temperature)], rel=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_of_spatial_logits_equals_torchdistills_by_position(temperature):
    """torchdistill sums over positions, and we take their mean."""
    student, teacher, _ = logits("spatial")
    theirs = TORCHDISTILL["spatial"]["kl"][str(temperature)] / student[0, 0].numel()
    assert distillation_kl(student, teacher, temperature).item() == pytest.approx(temperature**2 * theirs, rel=1e-9)


# ---- pytorch-grad-cam ----------------------------------------------------------------------------------------------


def error(cam: torch.Tensor, theirs: list) -> float:
    """Largest difference of two sets of maps (b, h, w), each map's by its own maximum."""
    theirs = torch.tensor(theirs)
    assert cam.shape == theirs.shape == (3, 6, 8)
    top = theirs.amax((1, 2))
    assert (top > 0).all()
    return float(((cam.detach() - theirs).abs().amax((1, 2)) / top).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_explain_equals_grad_cam_of_the_margin(name):
    _, cam = explain(network(name), picture(name), TARGETS)
    assert error(cam, GRAD_CAM[name]["margin"]) < 1e-5
    assert error(cam, GRAD_CAM[name]["logit"]) > 0.01  # the two scores have different maps


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("score", ["logit", "margin"])
def test_grad_cam_equals_theirs_for_either_score(name, score):
    look, target = network(name).look(picture(name)), TARGETS
    asked = class_score(look.logits, target) if score == "margin" else look.logits.gather(1, target[:, None])[:, 0]
    assert error(grad_cam(look.features, asked), GRAD_CAM[name][score]) < 1e-5
