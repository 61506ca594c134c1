"""Grad-CAM against a closed form and against hooks and `backward` on a real network; heat maps put in their place, mass and all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from sos.config import CAM_LAYERS, RunConfig
from sos.method.cam import alpha_of_head, box_mask, class_score, enlarge, explain, grad_cam, judge_map, map_of, paste, peak, unit_mass, weighted
from sos.method.models import Head, build


@pytest.fixture
def net():
    torch.manual_seed(4)
    return build(RunConfig(backbone="resnet18_half", output_stride=16, dropout=0.5), 5).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blob(x, y, size, width=0.08, b=1):
    """(b, size, size) Gaussian with its middle at (x, y) in [0, 1]."""
    at = (torch.arange(size) + 0.5) / size
    return torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * width**2)).expand(b, -1, -1)


# ---- Grad-CAM ------------------------------------------------------------------------------------------------------


def test_grad_cam_of_a_linear_head_has_a_closed_form():
    head = Head(7, 5).eval()
    features = noise(3, 7, 4, 6).requires_grad_()
    target = torch.tensor([4, 0, 2])
    cam = grad_cam(features, class_score(head(features).mean((2, 3)), target))
    weight = head.classifier.weight[:, :, 0, 0]  # (k, c)
    alpha = (weight[target] - weight.mean(0)) / (4 * 6)  # the mean of 24 spatial logits: each position has the gradient w / 24
    assert torch.allclose(cam, torch.relu(torch.einsum("bc,bchw->bhw", alpha, features)), atol=1e-7)
    assert (cam >= 0).all() and (cam > 0).any()


def test_weights_of_grad_cam_are_means_over_positions_where_the_gradient_differs_between_them():
    """Under our head it is the same everywhere, so that Grad-CAM and HiResCAM (gradient times feature, cell by cell) have one map."""
    features, gradient = noise(2, 4, 3, 5).requires_grad_(), noise(2, 4, 3, 5, seed=1)
    cam = grad_cam(features, (gradient * features).sum((1, 2, 3)))
    expected = torch.relu(torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), features))
    assert torch.allclose(cam, expected, atol=1e-6) and expected.max() > 0
    assert not torch.allclose(cam, torch.relu((gradient * features).sum(1)), atol=0.1)


@pytest.mark.parametrize("target", [None, torch.tensor([3, 3])])
def test_explain_equals_grad_cam_made_with_hooks_and_backward(net, target):
    x = noise(2, 1, 64, 64, seed=1)
    look, cam = explain(net, x, target)
    kept = {}

    def keep(module, inputs, output):
        kept["a"] = output.detach()
        output.register_hook(lambda gradient: kept.update(g=gradient))

    handle = net.body.register_forward_hook(keep)
    logits = net(x)
    handle.remove()
    asked = logits.argmax(1) if target is None else target
    for i in range(2):
        (logits[i, asked[i]] - logits[i].mean()).backward(retain_graph=True)
        expected = torch.relu((kept["g"][i].mean((1, 2))[:, None, None] * kept["a"][i]).sum(0))
        assert torch.allclose(cam[i], expected, rtol=1e-3, atol=1e-6 * float(expected.max()) + 1e-9)
        assert expected.max() > 0
    assert torch.allclose(look.logits, logits, atol=1e-5)


def test_the_known_gradient_of_the_head_is_the_one_that_a_backward_pass_finds(net):
    target, features = torch.tensor([3, 0, 3]), noise(3, 256, 4, 6, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(class_score(net.judge(features).logits, target).sum(), features)
    alpha = alpha_of_head(net.head, target, 24)
    assert torch.allclose(gradient, alpha.expand_as(gradient), rtol=1e-5, atol=1e-6 * float(alpha.detach().abs().max()))
    assert torch.equal(alpha[0], alpha[2]) and not torch.allclose(alpha[0], alpha[1])


def test_what_dropout_hides_while_the_network_trains_is_not_explained(net):
    for module in net.modules():
        module.training = False
    net.head.train()
    x, target = noise(2, 1, 64, 64, seed=1), torch.tensor([3, 1])
    torch.manual_seed(5)
    look, cam = explain(net, x, target)
    torch.manual_seed(5)
    kept = net.head.dropout(torch.ones_like(look.features))
    expected = weighted(alpha_of_head(net.head, target, 16) * kept[:, :, :1, :1], look.features)
    assert 0.3 < float((kept == 0).float().mean()) < 0.7
    assert torch.allclose(cam, expected, rtol=1e-4, atol=1e-5 * float(cam.max()))
    assert not torch.allclose(cam, explain(net.eval(), x, target)[1], rtol=0.1)


@pytest.mark.parametrize(("backbone", "output_stride", "place"), [("resnet18_half", 16, 6), ("resnet18_half", 32, 6), ("efficientnet_b0", 16, 5),
                                                                  ("convnext_tiny_attention", 32, 5)])
def test_the_map_before_the_last_stage_is_explained_as_hooks_and_backward_through_the_whole_network_do(backbone, output_stride, place):
    torch.manual_seed(4)
    net = build(RunConfig(backbone=backbone, output_stride=output_stride, dropout=0.5), 5).eval()
    x, target, kept = noise(2, 1, 64, 96, seed=1), torch.tensor([3, 1]), {}
    look, cam = explain(net, x, target, "previous")
    assert cam.shape == (2, 4, 6)  # stride 16, whatever that of the last map is

    def keep(module, inputs, output):
        kept["a"] = output.detach()
        output.register_hook(lambda gradient: kept.update(g=gradient))

    handle = net.body[place].register_forward_hook(keep)
    logits = net(x)
    handle.remove()
    for i in range(2):
        (logits[i, target[i]] - logits[i].mean()).backward(retain_graph=True)
        expected = torch.relu((kept["g"][i].mean((1, 2))[:, None, None] * kept["a"][i]).sum(0))
        assert expected.max() > 0 and torch.allclose(cam[i], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert torch.allclose(look.logits, logits, atol=1e-4) and torch.allclose(look.features, net.features(x), atol=1e-4)


def test_the_map_before_the_last_stage_is_another_than_the_last(net):
    x = noise(2, 1, 64, 64, seed=1)
    (_, last), (_, previous) = explain(net, x), explain(net, x, layer="previous")
    assert last.shape == previous.shape and not torch.allclose(unit_mass(last), unit_mass(previous), atol=0.01)


def test_from_the_map_before_the_last_stage_each_image_is_explained_alone_also_while_the_network_trains(net):
    """Norms over the batch would tie the images together, and leave no mean gradient to weight channels with."""
    features, target, maps = map_of(net, noise(3, 1, 64, 64, seed=2), "previous").detach(), torch.tensor([2, 2, 2]), []
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for training, part in ((False, slice(3)), (True, slice(3)), (True, slice(1, 2))):
        given = features[part].clone().requires_grad_()
        net.train(training)
        net.body[7][0].bn1.training = False  # somebody else's choice, which has to stay
        maps.append(grad_cam(given, class_score(judge_map(net, given, "previous").logits, target[part])))
        assert [module.training for module in net.body[7][0].children()][1] is False and net.head.training is net.body[7][1].training is training
    assert maps[0].amax((1, 2)).min() > 0 and torch.equal(maps[1], maps[0])
    assert torch.allclose(maps[2], maps[0][1:2], atol=1e-5 * float(maps[0].detach().max()))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_bfloat16_explains_the_map_before_the_last_stage_nearly_alike(net):
    x = noise(2, 1, 64, 64, seed=1)
    _, full = explain(net, x, torch.tensor([0, 1]), "previous")
    net.bf16 = True
    look, half = explain(net, x, torch.tensor([0, 1]), "previous")
    assert half.dtype == torch.float32 and {part.dtype for part in look[:3]} == {torch.float32}
    assert not torch.equal(half, full) and (half - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("layer", CAM_LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_explain_leaves_no_trace(net, training, layer):
    net.train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items() if "running" not in name and "batches" not in name}
    with torch.no_grad():  # also where the caller forbids gradients
        look, cam = explain(net, noise(2, 1, 32, 32), layer=layer)
    assert {module.training for module in net.modules()} == {training}
    assert not cam.requires_grad and not any(part.requires_grad for part in look if part is not None)
    assert all(weight.grad is None for weight in net.parameters())
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert not net.body._forward_hooks and not net.head._forward_hooks


@pytest.mark.parametrize("layer", CAM_LAYERS)
def test_what_is_explained_may_be_chosen_from_the_logits(net, layer):
    x, asked = noise(3, 1, 64, 64, seed=2), []

    def second(logits):
        asked.append(logits)
        return logits.topk(2).indices[:, 1]

    look, cam = explain(net, x, second, layer)
    assert len(asked) == 1 and torch.equal(asked[0], look.logits) and not asked[0].requires_grad
    assert torch.equal(cam, explain(net, x, look.logits.topk(2).indices[:, 1], layer)[1])
    assert not torch.allclose(cam, explain(net, x, None, layer)[1], rtol=0.1)


def test_an_image_is_explained_alike_alone_and_in_a_batch(net):
    x = noise(3, 1, 64, 64, seed=2)
    _, together = explain(net, x)
    _, alone = explain(net, x[1:2])
    assert torch.allclose(together[1:2], alone, rtol=1e-3, atol=1e-8)


def test_class_score_is_a_margin_that_does_not_change_when_all_logits_move_together():
    assert class_score(torch.tensor([[1.0, 2.0, 6.0], [0.0, -3.0, 6.0]]), torch.tensor([2, 1])).tolist() == [3.0, -4.0]
    logits, target = noise(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    assert torch.allclose(class_score(logits + noise(6, 1, seed=1) * 10, target), class_score(logits, target), atol=1e-5)


def test_the_score_of_the_decided_class_is_above_zero_even_where_all_logits_are_below():
    logits = -10 - noise(20, 5).abs()
    assert (class_score(logits, logits.argmax(1)) > 0).all()


def test_a_decision_that_only_the_others_weights_speak_for_has_a_map():
    """The bare logit of the decided stage has only evidence against it here: its map would be empty."""
    head = Head(3, 2).eval()
    with torch.no_grad():
        head.classifier.weight[:] = torch.tensor([[-1.0, -1.0, -1.0], [-5.0, -5.0, -5.0]])[:, :, None, None]
        head.classifier.bias.zero_()
    features = noise(1, 3, 4, 4).abs().requires_grad_()
    logits = head(features).mean((2, 3))
    assert logits.argmax(1).item() == 0
    assert grad_cam(features, logits[:, 0]).max() == 0
    assert (grad_cam(features, class_score(logits, torch.tensor([0]))) > 0).all()


def test_the_map_does_not_change_when_all_logits_move_together(net):
    x = noise(2, 1, 64, 64, seed=3)
    look, cam = explain(net, x)
    with torch.no_grad():
        net.head.classifier.bias.add_(-100)
        net.head.classifier.weight.add_(noise(1, 256, 1, 1))
    moved, again = explain(net, x)
    assert not torch.allclose(moved.logits, look.logits, atol=1)
    assert torch.allclose(moved.logits.softmax(1), look.logits.softmax(1), atol=1e-4)
    assert torch.allclose(again, cam, atol=1e-3 * float(cam.max()))


def test_gradient_passes_through_grad_cam_only_where_asked():
    head, features = Head(4, 3), noise(2, 4, 3, 3).requires_grad_()
    target = torch.tensor([0, 1])
    plain = grad_cam(features, class_score(head(features).mean((2, 3)), target))
    assert not torch.autograd.grad(plain.sum(), head.classifier.weight, allow_unused=True)[0]
    kept = grad_cam(features, class_score(head(features).mean((2, 3)), target), create_graph=True)
    assert torch.autograd.grad(kept.sum(), head.classifier.weight)[0].abs().max() > 0


# ---- what is asked of a heat map -----------------------------------------------------------------------------------


def test_unit_mass_sums_to_one_and_mixes_in_a_share_of_the_even_map():
    cam = noise(3, 5, 6).abs() * torch.tensor([1.0, 1e3, 1e-2])[:, None, None]
    own = cam / cam.sum((1, 2), keepdim=True)
    for floor in (1e-6, 0.05, 1.0):
        mass = unit_mass(cam, floor)
        assert torch.allclose(mass.sum((1, 2)), torch.ones(3))
        assert torch.allclose(mass, (own + floor / 30) / (1 + floor), rtol=1e-3)


def test_unit_mass_of_nothing_is_uniform_and_has_a_finite_gradient():
    cam = torch.zeros(1, 4, 4, requires_grad=True)
    mass = unit_mass(cam)
    assert torch.allclose(mass, torch.full((1, 4, 4), 1 / 16))
    (mass * noise(1, 4, 4)).sum().backward()
    assert torch.isfinite(cam.grad).all()


def test_enlarge_keeps_a_constant_and_the_place_of_a_blob():
    assert torch.allclose(enlarge(torch.full((2, 3, 3), 0.4), 20), torch.full((2, 20, 20), 0.4))
    assert enlarge(blob(0.3, 0.6, 12), (24, 36)).shape == (1, 24, 36)
    assert torch.allclose(peak(enlarge(blob(0.3, 0.6, 12), 48), fine=1), torch.tensor([[0.3, 0.6]]), atol=1 / 12)


@pytest.mark.parametrize(("x", "y"), [(0.2, 0.7), (0.5, 0.5), (0.81, 0.13)])
def test_peak_finds_the_middle_of_a_blob(x, y):
    found = peak(torch.cat([blob(x, y, 24), blob(y, x, 24)]))
    assert torch.allclose(found, torch.tensor([[x, y], [y, x]]), atol=0.5 / 24)


def test_peak_knows_x_from_y_in_maps_that_are_not_square():
    cam = torch.zeros(1, 4, 10)
    cam[0, 3, 2] = 1
    assert torch.allclose(peak(cam), torch.tensor([[0.25, 0.875]]), atol=0.5 / 8)


side = st.floats(-0.3, 1.3)


@settings(max_examples=60, deadline=None)
@given(side, side, side, side, st.sampled_from([1, 3, 8, 31]))
def test_area_of_a_box_mask_is_that_of_the_box_inside_the_frame(xa, xb, ya, yb, size):
    x0, x1, y0, y1 = min(xa, xb), max(xa, xb), min(ya, yb), max(ya, yb)
    mask = box_mask(torch.tensor([[x0, y0, x1, y1]]), size)[0]
    inside = [min(max(v, 0.0), 1.0) for v in (x0, y0, x1, y1)]
    assert float(mask.sum()) / size**2 == pytest.approx((inside[2] - inside[0]) * (inside[3] - inside[1]), abs=1e-5)
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-5


def test_box_mask_tells_rows_from_columns():
    mask = box_mask(torch.tensor([[0.25, 0.5, 0.625, 1.0]]), 4)[0]
    assert torch.equal(mask, torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0.5, 0], [0, 1, 0.5, 0]]))


# ---- back to the frame ---------------------------------------------------------------------------------------------


WINDOW = torch.tensor([[0.30, 0.55, 0.62, 0.87]])


@pytest.mark.parametrize("window", [WINDOW, torch.tensor([[0.25, 0.5, 0.5, 0.75]]), torch.tensor([[0.1, 0.2, 0.9, 0.6]])])
def test_paste_keeps_mass_and_place(window):
    cam = blob(0.7, 0.4, 12, 0.15)
    placed = paste(cam, window, 24)
    x0, y0, x1, y1 = window[0].tolist()
    area = (x1 - x0) * (y1 - y0)
    assert float(placed.sum()) / 24**2 == pytest.approx(float(cam.mean()) * area, rel=0.01)
    at = (torch.arange(24) + 0.5) / 24
    near = (torch.arange(12) + 0.5) / 12
    for axis, low, high in ((1, x0, x1), (2, y0, y1)):
        moved = (placed.sum(axis) * at).sum() / placed.sum()
        middle = (cam.sum(axis) * near).sum() / cam.sum()
        assert float(moved) == pytest.approx(low + float(middle) * (high - low), abs=0.005)
    assert torch.allclose(peak(placed), torch.tensor([[x0 + 0.7 * (x1 - x0), y0 + 0.4 * (y1 - y0)]]), atol=0.03)


def test_paste_is_zero_outside_the_window_and_each_map_goes_to_its_own():
    windows = torch.cat([WINDOW, torch.tensor([[0.0, 0.0, 0.5, 0.25]])])
    placed = paste(torch.ones(2, 6, 6), windows, 20)
    assert torch.allclose(placed, box_mask(windows, 20), atol=0.06)  # the edges of cells are cut on a grid 8 times finer
    assert (placed[box_mask(windows, 20) == 0] == 0).all()


def test_paste_cuts_what_lies_beyond_the_frame():
    placed = paste(torch.ones(1, 4, 4), torch.tensor([[-0.25, 0.5, 0.25, 1.5]]), 8)
    assert torch.equal(placed[0], box_mask(torch.tensor([[0.0, 0.5, 0.25, 1.0]]), 8)[0])


def test_paste_of_the_whole_frame_on_its_own_grid_keeps_a_ramp():
    at = torch.arange(16.0)
    ramp = (2 * at[None, :] + at[:, None])[None]
    placed = paste(ramp, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 16)
    assert torch.allclose(placed[:, 1:-1, 1:-1], ramp[:, 1:-1, 1:-1], atol=1e-4)
    assert (placed - ramp).abs().max() < 0.5  # there is nothing to interpolate with beyond the frame


@pytest.mark.parametrize("window", [(0.31, 0.52, 0.61, 0.93), (-0.2, 0.4, 0.55, 0.7), (0.6, -0.1, 1.3, 1.2)])
def test_paste_equals_scipys_bilinear_interpolation_on_the_finer_grid(window):
    cam = noise(1, 5, 7).abs().double()
    x0, y0, x1, y1 = window
    at = (np.arange(12 * 8) + 0.5) / (12 * 8)
    u, v = (at - x0) / (x1 - x0), (at - y0) / (y1 - y0)
    cells = np.meshgrid(v * 5 - 0.5, u * 7 - 0.5, indexing="ij")
    inside = np.outer((v >= 0) & (v <= 1), (u >= 0) & (u <= 1))
    expected = (map_coordinates(cam[0].numpy(), cells, order=1, mode="nearest") * inside).reshape(12, 8, 12, 8).mean((1, 3))
    placed = paste(cam, torch.tensor([window]).double(), 12)
    assert torch.allclose(placed[0], torch.from_numpy(expected), atol=1e-5)  # steps of the grid are float32
