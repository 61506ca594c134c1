"""The three losses: zero for equal inputs, T² at work, and agreement with torch, scipy and numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import cosine
from scipy.special import softmax
from scipy.stats import entropy

from sos.config import ATTENTION_DISTANCES
from sos.errors import ConfigError
from sos.method.cam import unit_mass
from sos.method.losses import align, attention_distance, distillation_kl, spatial_distillation
from sos.method.models import Look

TEMPERATURES = (0.5, 1.0, 3.0, 20.0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def look(spatial):
    return Look(spatial, spatial, spatial.mean((2, 3)))


# ---- L_dist between logits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3, 4)])
def test_kl_of_equal_logits_is_zero_and_so_is_its_gradient(temperature, shape):
    logits = noise(*shape).requires_grad_()
    loss = distillation_kl(logits, logits.detach(), temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-5 and logits.grad.abs().max() < 1e-6
    assert distillation_kl(logits + 7, logits, temperature).abs() < 1e-4  # softmax knows no common shift


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_equals_torchs_and_scipys(temperature):
    student, teacher = 2 * noise(6, 5, seed=1), 2 * noise(6, 5, seed=2)
    loss = distillation_kl(student, teacher, temperature).item()
    torchs = F.kl_div(F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean") * temperature**2
    p, q = (softmax(logits.double().numpy() / temperature, axis=1) for logits in (teacher, student))
    assert loss == pytest.approx(torchs.item(), rel=1e-4)
    assert loss == pytest.approx(temperature**2 * entropy(p, q, axis=1).mean(), rel=1e-3)
    assert loss > 0 and loss != pytest.approx(distillation_kl(teacher, student, temperature).item(), rel=1e-3)  # teacher first


def test_kl_of_spatial_logits_is_the_mean_over_images_and_positions():
    student, teacher = noise(2, 5, 3, 4, seed=1), noise(2, 5, 3, 4, seed=2)
    flat = [logits.permute(0, 2, 3, 1).reshape(-1, 5) for logits in (student, teacher)]
    assert distillation_kl(student, teacher, 3.0).item() == pytest.approx(distillation_kl(*flat, 3.0).item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 3, 3)])
def test_t_squared_keeps_the_gradient_of_small_logits_the_same_at_any_temperature(shape):
    sizes = []
    for temperature in (1.0, 3.0, 10.0, 30.0):
        student = (0.05 * noise(*shape, seed=1)).requires_grad_()
        distillation_kl(student, 0.05 * noise(*shape, seed=2), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes == pytest.approx([sizes[0]] * 4, rel=0.05)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
def test_kl_at_high_temperature_is_half_the_mean_square_of_the_difference_of_centred_logits(shape):
    """T² KL → Σ_c (s_c - t_c)² / 2k for logits less their mean over the k stages, and its gradient → (s_c - t_c) / k; both miss it by O(1/T)."""
    student, teacher = noise(*shape, seed=1).double().requires_grad_(), noise(*shape, seed=2).double()
    difference = (student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)).detach()
    limit, limit_of_gradient = (difference**2).mean() / 2, difference / difference.numel()
    misses = []
    for temperature in (1e2, 1e3, 1e4):
        loss = distillation_kl(student, teacher, temperature)
        (gradient,) = torch.autograd.grad(loss, student)
        misses.append([abs(loss.item() / limit.item() - 1), float((gradient - limit_of_gradient).norm() / limit_of_gradient.norm())])
    assert np.max(misses[-1]) < 1e-3
    assert np.divide(misses[:-1], misses[1:]) == pytest.approx(np.full((2, 2), 10), rel=0.1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_kl_is_t_times_the_difference_of_softened_probabilities(temperature):
    student, teacher = noise(3, 5, seed=3).requires_grad_(), noise(3, 5, seed=4)
    distillation_kl(student, teacher, temperature).backward()
    expected = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / 3
    assert torch.allclose(student.grad, expected, atol=1e-6)


# ---- align ---------------------------------------------------------------------------------------------------------


def ramp(height, width, x_slope, y_slope):
    """(1, 1, h, w) whose value at frame coordinates (x, y) is x_slope·x + y_slope·y."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return (x_slope * x[None, :] + y_slope * y[:, None])[None, None]


@pytest.mark.parametrize("window", [(0.25, 0.25, 0.75, 0.75), (0.31, 0.12, 0.58, 0.39), (0.1, 0.55, 0.9, 0.8)])
@pytest.mark.parametrize("grid", [(3, 3), (4, 6)])
def test_align_reads_a_linear_ramp_exactly_wherever_the_window_stands(window, grid):
    x0, y0, x1, y1 = window
    seen = align(ramp(16, 12, 2.0, -5.0), torch.tensor([window]), grid)
    x = x0 + (x1 - x0) * (torch.arange(grid[1]) + 0.5) / grid[1]
    y = y0 + (y1 - y0) * (torch.arange(grid[0]) + 0.5) / grid[0]
    assert seen.shape == (1, 1, *grid)
    assert torch.allclose(seen[0, 0], 2 * x[None, :] - 5 * y[:, None], atol=1e-5)


def ramp_at(window, grid):
    """The ramp 2x - 5y in the middle of each cell of a window's `grid`."""
    x0, y0, x1, y1 = window
    x, y = (low + (high - low) * (torch.arange(n).double() + 0.5) / n for low, high, n in ((x0, x1, grid[1]), (y0, y1, grid[0])))
    return 2 * x[None, :] - 5 * y[:, None]


def samples(low, high, cells, size):
    """Where RoIAlign looks along one axis, in cells of the map from the middle of the first: two points in each of `cells` bins."""
    return (low + (high - low) * (np.arange(2 * cells) + 0.5) / (2 * cells)) * size - 0.5


BEYOND = [(-0.2, 0.3, 0.45, 0.7), (0.6, -0.35, 1.15, 0.4), (0.5, 0.7, 0.8, 1.4), (-0.3, -0.1, 1.2, 1.25)]  # windows over each edge


@pytest.mark.parametrize("window", BEYOND)
def test_align_reads_a_ramp_exactly_also_in_windows_that_reach_beyond_the_frame(window):
    """Exactly between the middles of the map's outermost cells; their value then goes on to half a cell beyond the frame, and zero from there."""
    x, y = samples(window[0], window[2], 6, 12), samples(window[1], window[3], 4, 16)
    here = np.outer((y >= -1) & (y <= 16), (x >= -1) & (x <= 12))
    values = 2 * ((x.clip(0, 11) + 0.5) / 12)[None] - 5 * ((y.clip(0, 15) + 0.5) / 16)[:, None]
    expected = torch.from_numpy((values * here).reshape(4, 2, 6, 2).mean((1, 3)))
    seen = align(ramp(16, 12, 2.0, -5.0).double(), torch.tensor([window]).double(), (4, 6))[0, 0]
    assert torch.allclose(seen, expected, atol=1e-6)
    assert not here.all() and here.any()
    cells = np.outer(*(((at >= 0) & (at <= size - 1)).reshape(-1, 2).all(1) for at, size in ((y, 16), (x, 12))))
    plain = ramp_at(window, (4, 6))
    assert cells.any() and torch.allclose(seen[cells], plain[cells], atol=1e-6)


@pytest.mark.parametrize("window", [(0.1, 0.2, 0.85, 0.6), (0.0, 0.0, 1.0, 1.0), *BEYOND])
def test_align_equals_the_mean_of_scipys_bilinear_samples_on_any_map(window):
    spatial = noise(1, 2, 7, 9).double()
    at = np.meshgrid(samples(window[1], window[3], 3, 7), samples(window[0], window[2], 5, 9), indexing="ij")
    here = (at[0] >= -1) & (at[0] <= 7) & (at[1] >= -1) & (at[1] <= 9)
    expected = [(map_coordinates(channel, at, order=1, mode="nearest") * here).reshape(3, 2, 5, 2).mean((1, 3)) for channel in spatial[0].numpy()]
    seen = align(spatial, torch.tensor([window]).double(), (3, 5))
    assert torch.allclose(seen[0], torch.from_numpy(np.stack(expected)), atol=1e-6)


def test_align_of_a_moved_picture_in_a_moved_window_is_the_same():
    spatial = noise(1, 3, 16, 16)
    window = torch.tensor([[0.25, 0.3, 0.5, 0.6]])
    moved = torch.roll(spatial, (3, -2), (2, 3))
    shift = torch.tensor([[-2, 3, -2, 3]]) / 16
    assert torch.allclose(align(moved, window + shift, 4), align(spatial, window, 4), atol=1e-5)


def test_each_image_is_aligned_to_its_own_window():
    spatial = noise(2, 3, 8, 8)
    windows = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.4, 0.3, 0.9, 0.8]])
    both = align(spatial, windows, 3)
    for i in range(2):
        assert torch.allclose(both[i:i + 1], align(spatial[i:i + 1], windows[i:i + 1], 3), atol=1e-6)


# ---- L_dist between looks ------------------------------------------------------------------------------------------


def echo(teacher_spatial, share):
    """A student's Look of a frame of 64 × 64 cells that repeats the teacher in the window (16 of 64 a side) and is silent outside."""
    spatial = torch.zeros(len(teacher_spatial), teacher_spatial.shape[1], 64, 64)
    spatial[:, :, 8:24, 32:48] = F.interpolate(teacher_spatial, scale_factor=4, mode="nearest") / share
    return look(spatial)


ECHO_WINDOW = torch.tensor([[32, 8, 48, 24]]).expand(3, 4) / 64


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_repeats_the_teacher_in_the_window_and_is_silent_outside_has_no_loss(temperature):
    teacher = look(noise(3, 5, 4, 4))
    student = echo(teacher.spatial, 1 / 16)
    assert distillation_kl(student.logits, teacher.logits, temperature).abs() < 1e-5
    assert spatial_distillation(student, teacher, ECHO_WINDOW, temperature, "share").abs() < 1e-5
    assert spatial_distillation(student, teacher, ECHO_WINDOW, temperature, "plain") > 1


def test_plain_evidence_asks_for_the_teachers_logits_themselves():
    teacher = look(noise(3, 5, 4, 4))
    student = echo(teacher.spatial, 1.0)  # right in the window, sixteen times too quiet on the image
    on_image = distillation_kl(student.logits, teacher.logits, 3.0)
    assert torch.allclose(spatial_distillation(student, teacher, ECHO_WINDOW, 3.0, "plain"), on_image, atol=1e-5) and on_image > 1e-3


def test_share_counts_only_the_window_inside_the_frame():
    teacher, student = look(noise(1, 5, 4, 4)), look(noise(1, 5, 16, 16, seed=1))
    window = torch.tensor([[0.75, 0.5, 1.25, 1.0]])
    inside = align(student.spatial, window, 4) * 0.125  # a quarter by a half
    expected = distillation_kl(inside, teacher.spatial, 3.0) + distillation_kl(student.logits, teacher.logits, 3.0)
    assert torch.allclose(spatial_distillation(student, teacher, window, 3.0, "share"), expected)


@pytest.mark.parametrize("evidence", ["share", "plain"])
def test_spatial_distillation_teaches_the_student_only(evidence):
    student, teacher = noise(2, 5, 8, 8).requires_grad_(), noise(2, 5, 4, 4)
    before = teacher.clone()
    spatial_distillation(look(student), look(teacher), torch.tensor([[0.2, 0.2, 0.6, 0.6]] * 2), 3.0, evidence).backward()
    assert student.grad.abs().max() > 0 and torch.equal(teacher, before)


def test_without_evidence_only_image_logits_are_distilled():
    student, teacher = noise(2, 5, 8, 8).requires_grad_(), noise(2, 5, 4, 4, seed=1)
    loss = spatial_distillation(look(student), look(teacher), torch.tensor([[0.2, 0.2, 0.6, 0.6]] * 2), 3.0, "none")
    assert loss == distillation_kl(look(student).logits, look(teacher).logits, 3.0)
    loss.backward()
    assert torch.allclose(student.grad, student.grad[:, :, :1, :1].expand_as(student), atol=1e-7)  # every place alike: nothing says where to look


def test_unknown_evidence_names_the_known():
    with pytest.raises(ConfigError, match="share, plain, none"):
        spatial_distillation(look(noise(1, 5, 8, 8)), look(noise(1, 5, 4, 4)), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 3.0, "all")


# ---- L_attn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ATTENTION_DISTANCES)
class TestAttentionDistance:
    def test_of_equal_maps_is_zero_whatever_their_size(self, distance):
        cam = noise(3, 6, 6).abs()
        assert attention_distance(cam, cam, distance).abs() < 1e-5
        assert attention_distance(50 * cam, cam, distance).abs() < 1e-4

    def test_of_equal_maps_has_no_gradient(self, distance):
        cam = noise(3, 6, 6).abs().double().requires_grad_()
        attention_distance(cam, cam.detach(), distance).backward()
        assert cam.grad.abs().max() < 1e-9
        attention_distance(cam, cam.detach().flip(1), distance).backward()
        assert cam.grad.abs().max() > 1e-4

    def test_grows_as_the_student_looks_away(self, distance):
        at = torch.arange(16).float()
        maps = [torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - 8) ** 2) / 8)[None] for x in (4, 5, 7, 12)]
        values = [attention_distance(cam, maps[0], distance).item() for cam in maps]
        assert values == sorted(values) and values[1] > 1e-3

    def test_an_empty_map_has_a_finite_loss_and_gradient(self, distance):
        student = torch.zeros(1, 5, 5, requires_grad=True)
        loss = attention_distance(student, noise(1, 5, 5).abs(), distance)
        loss.backward()
        assert torch.isfinite(loss) and loss > 0 and torch.isfinite(student.grad).all()
        assert torch.isfinite(attention_distance(noise(1, 5, 5).abs(), torch.zeros(1, 5, 5), distance))

    def test_is_the_mean_over_images(self, distance):
        a, b = noise(3, 4, 4, seed=1).abs(), noise(3, 4, 4, seed=2).abs()
        each = [attention_distance(a[i:i + 1], b[i:i + 1], distance).item() for i in range(3)]
        assert attention_distance(a, b, distance).item() == pytest.approx(np.mean(each), rel=1e-4)


def test_attention_distances_equal_scipys_and_numpys():
    student, teacher = noise(1, 6, 5, seed=1).abs() + 0.1, noise(1, 6, 5, seed=2).abs() + 0.1
    p, q = (unit_mass(cam).double().numpy().ravel() for cam in (teacher, student))
    assert attention_distance(student, teacher, "kl").item() == pytest.approx(entropy(p, q), rel=1e-3)
    assert attention_distance(student, teacher, "cosine").item() == pytest.approx(cosine(p, q), rel=1e-3)
    assert attention_distance(student, teacher, "mse").item() == pytest.approx(((p - q) ** 2).sum() * 30, rel=1e-3)


def test_squared_error_does_not_fade_as_the_grid_grows():
    a, b = noise(1, 6, 6, seed=1).abs(), noise(1, 6, 6, seed=2).abs()
    fine = [F.interpolate(cam[:, None], scale_factor=4, mode="nearest")[:, 0] for cam in (a, b)]
    assert attention_distance(*fine, "mse").item() == pytest.approx(attention_distance(a, b, "mse").item(), rel=1e-3)


def test_kl_punishes_blindness_where_the_teacher_looks_more_than_idle_looks_elsewhere():
    teacher = torch.zeros(1, 4, 4)
    teacher[0, 1, 1] = 1
    wide = torch.ones(1, 4, 4)
    blind = torch.ones(1, 4, 4)
    blind[0, 1, 1] = 0
    p = unit_mass(teacher).double().numpy().ravel()
    assert attention_distance(wide, teacher, "kl").item() == pytest.approx(np.log(16) - entropy(p), rel=1e-3)
    assert attention_distance(blind, teacher, "kl") > 1.5 * attention_distance(wide, teacher, "kl")


def test_unknown_attention_distance_names_the_known():
    with pytest.raises(ConfigError, match="kl, cosine, mse"):
        attention_distance(torch.ones(1, 2, 2), torch.ones(1, 2, 2), "l1")
