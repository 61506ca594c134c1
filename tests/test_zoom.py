"""The student that looks twice: what its second look samples, how it aims, who gets gradient, and that it finds what it was told to find."""

import pytest
import torch
import torch.nn.functional as F

from sos.cohort.cameras import camera, still_scene
from sos.config import RunConfig
from sos.errors import ConfigError
from sos.method.cam import PICTURE, box_mask, explain, grad_cam, class_score, paste
from sos.method.distill import distillation_terms
from sos.method.losses import align, distillation_kl, spatial_distillation, within
from sos.method.models import Look, build
from sos.method.zoom import TYPICAL_SIDE, Aim, ZoomNet, aim_distance, gaze

CONFIG = RunConfig(role="student", looks=2, frame_px=96, glance_px=48, window_px=32, precision="fp32")
WINDOW = torch.tensor([[0.25, 0.30, 0.75, 0.80], [0.10, 0.20, 0.50, 0.60]])
TARGET = torch.tensor([1, 4])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    return build(config, 5).eval()


# ---- the second look -----------------------------------------------------------------------------------------------


def test_a_gaze_samples_the_places_of_its_window():
    side, grid = 40, 8
    places = (torch.arange(side) + 0.5) / side
    ramp = torch.stack([places.expand(side, side), places[:, None].expand(side, side)])[None].expand(2, -1, -1, -1)  # x, then y
    seen = gaze(ramp, WINDOW, grid)
    cells = (torch.arange(grid) + 0.5) / grid
    for i, (x0, y0, x1, y1) in enumerate(WINDOW.tolist()):
        assert torch.allclose(seen[i, 0], (x0 + cells * (x1 - x0)).expand(grid, grid), atol=1e-5)
        assert torch.allclose(seen[i, 1], (y0 + cells * (y1 - y0))[:, None].expand(grid, grid), atol=1e-5)


def test_a_gaze_at_everything_is_the_frame_itself():
    frame = noise(2, 1, 24, 24)
    assert torch.allclose(gaze(frame, torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4), 24), frame, atol=1e-5)


def test_a_gaze_shows_what_the_teachers_camera_shows():
    """On a smooth picture: the camera samples native pixels, the gaze those of the frame."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    native = (128 + 60 * torch.sin(x / 9) + 50 * torch.cos(y / 7))[None, None]
    scene = still_scene(torch.tensor([[96, 96]]))
    frame = camera(native, scene, 96)
    shown = camera(native, scene, 32, WINDOW[:1])
    assert (gaze(frame, WINDOW[:1], 32) - shown).abs().max() < 3.0  # of a contrast of 220


# ---- the aim -------------------------------------------------------------------------------------------------------


def test_an_aim_at_one_cell_has_its_centre_there():
    aim = Aim(3)
    with torch.no_grad():
        aim.attention.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
        aim.attention.bias.zero_()
    features = torch.zeros(1, 3, 4, 8)
    features[0, 0, 2, 5] = 60.0  # row 2 of 4, column 5 of 8
    half = TYPICAL_SIDE / 2
    assert torch.allclose(aim(features), torch.tensor([[5.5 / 8 - half, 2.5 / 4 - half, 5.5 / 8 + half, 2.5 / 4 + half]]), atol=1e-5)


def test_the_aim_is_the_mean_place_under_attention():
    aim = Aim(2)
    features = noise(3, 2, 5, 6, seed=2)
    with torch.no_grad():
        weights = aim.attention(features).flatten(1).softmax(1).view(3, 5, 6)
    x = (weights.sum(1) * (torch.arange(6) + 0.5) / 6).sum(1)
    y = (weights.sum(2) * (torch.arange(5) + 0.5) / 5).sum(1)
    window = aim(features).detach()
    assert torch.allclose((window[:, :2] + window[:, 2:]) / 2, torch.stack([x, y], 1), atol=1e-5)
    assert torch.allclose(window[:, 2:] - window[:, :2], torch.tensor(TYPICAL_SIDE), atol=1e-5)


def test_aim_distance_by_hand():
    assert aim_distance(WINDOW, WINDOW) == 0
    other = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    own = torch.tensor([[0.1, 0.0, 0.6, 0.5]])  # a fifth of a side to the right
    assert aim_distance(own, other).item() == pytest.approx((0.2 - 0.05) / 3, rel=1e-5)
    own = torch.tensor([[-0.25, -0.25, 0.75, 0.75]])  # twice as large
    assert aim_distance(own, other).item() == pytest.approx((torch.log(torch.tensor(2.0)).item() - 0.05) / 3, rel=1e-5)
    moved = own + 0.35 * torch.tensor([1.0, 0.0, 1.0, 0.0])  # that one's sides count, not its own
    assert aim_distance(moved, other).item() == pytest.approx((0.7 - 0.05 + torch.log(torch.tensor(2.0)).item() - 0.05) / 3, rel=1e-5)
    assert aim_distance(3 * own, 3 * other).item() == pytest.approx(aim_distance(own, other).item(), rel=1e-5)  # in sides, not in frames


def test_an_aim_learns_to_find_a_disc():
    torch.manual_seed(0)
    net = build(CONFIG.with_(glance_px=64, frame_px=64), 5)
    steps = (torch.arange(64) + 0.5) / 64

    def scenes(n, seed):
        made = torch.Generator().manual_seed(seed)
        centre, radius = 0.25 + 0.5 * torch.rand(n, 2, generator=made), 0.08 + 0.06 * torch.rand(n, 1, generator=made)
        away = (steps[None, None, :] - centre[:, 0, None, None]) ** 2 + (steps[None, :, None] - centre[:, 1, None, None]) ** 2
        disc = (away < radius[:, :, None] ** 2).float()[:, None] + 0.3 * torch.randn(n, 1, 64, 64, generator=made)
        return disc, torch.cat([centre - 1.5 * radius, centre + 1.5 * radius], 1)

    optimiser = torch.optim.Adam([*net.glance.parameters(), *net.aim.parameters()], 2e-3)
    for step in range(60):
        pictures, windows = scenes(16, step)
        optimiser.zero_grad()
        aim_distance(net.where(pictures), windows).backward()
        optimiser.step()
    net.eval()
    pictures, windows = scenes(64, 1000)
    with torch.no_grad():
        learned, blind = aim_distance(net.where(pictures), windows), aim_distance(windows.mean(0).expand(64, 4), windows)
    assert learned < 0.4 * blind


# ---- the network ---------------------------------------------------------------------------------------------------


def test_its_stage_is_that_of_the_window_it_chose():
    net, x = network(), noise(2, 1, 96, 96)
    look = net.look(x)
    assert torch.equal(look.window, net.where(x))
    alone = net.judge(net.features(gaze(x, look.window, 32)))
    assert torch.allclose(look.logits, alone.logits) and torch.allclose(net(x), look.logits)
    assert torch.allclose(look.spatial.mean((2, 3)), look.logits, atol=1e-6)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_stage_moves_the_window_only_where_asked(gradient):
    net = network(CONFIG.with_(aim_gradient=gradient))
    F.cross_entropy(net(noise(2, 1, 96, 96)), TARGET).backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in [*net.aim.attention.parameters()][:1] + [*net.glance.parameters()][:1]]
    assert reached == [gradient, gradient]
    assert all(p.grad is not None for p in net.body.parameters())


def test_l_aim_teaches_the_glance_and_nothing_else():
    net = network()
    aim_distance(net.look(noise(2, 1, 96, 96)).window, WINDOW).backward()
    assert all(p.grad is not None for p in net.aim.parameters()) and any(p.grad.abs().sum() > 0 for p in net.glance.parameters())
    assert all(p.grad is None for p in [*net.body.parameters(), *net.head.parameters()])


def test_its_heat_map_lies_in_its_window():
    net, x = network(), noise(2, 1, 96, 96)
    look, cam = explain(net, x)
    assert cam.shape == (2, PICTURE, PICTURE)
    inside = box_mask(look.window, PICTURE) > 0
    assert cam.sum() > 0 and (cam * ~inside).sum() == 0
    close = net.judge(look.features.requires_grad_())
    expected = paste(grad_cam(close.features, class_score(close.logits, close.logits.argmax(1))).detach(), look.window, PICTURE)
    assert torch.allclose(cam, expected)


# ---- distillation --------------------------------------------------------------------------------------------------


def test_a_window_within_another_by_hand():
    assert torch.allclose(within(torch.tensor([[0.3, 0.4, 0.5, 0.6]]), torch.tensor([[0.2, 0.2, 0.6, 0.6]])),
                          torch.tensor([[0.25, 0.5, 0.75, 1.0]]), atol=1e-6)


def test_places_are_compared_where_both_look():
    """A student whose window is twice as wide, with the same field of logits, agrees with the teacher at every place."""
    steps = (torch.arange(8) + 0.5) / 8
    teachers = 0.3 + 0.2 * steps  # x in the frame of the teacher's window [0.3, 0.5]
    wide = (torch.arange(16) + 0.5) / 16
    own = 0.2 + 0.4 * wide  # of the student's window [0.2, 0.6]

    def field(x):
        return torch.stack([3 * x, 1 - 5 * x, 2 * x]).unsqueeze(1).expand(3, len(x), len(x))[None]

    teacher = Look(None, field(teachers), field(teachers).mean((2, 3)))
    student = Look(None, field(own), teacher.logits, torch.tensor([[0.2, 0.2, 0.6, 0.6]]))
    window = torch.tensor([[0.3, 0.3, 0.5, 0.5]])
    assert spatial_distillation(student, teacher, window, 3.0).item() == pytest.approx(0, abs=1e-6)
    shifted = student._replace(window=torch.tensor([[0.25, 0.2, 0.65, 0.6]]))
    expected = distillation_kl(align(student.spatial, within(window, shifted.window), 8), teacher.spatial, 3.0)
    assert spatial_distillation(shifted, teacher, window, 3.0).item() == pytest.approx(expected.item(), rel=1e-5) and expected > 1e-4


def test_terms_of_a_student_that_looks_twice():
    student, teacher = network(), network(RunConfig(role="teacher", window_px=32), seed=1)
    seen, cam = explain(teacher, noise(2, 1, 32, 32, seed=3), TARGET)
    look = student.look(noise(2, 1, 96, 96, seed=4))
    terms = distillation_terms(look, seen, cam, WINDOW, TARGET, CONFIG)
    assert list(terms) == ["L_cls", "L_dist", "L_attn", "L_aim"]
    assert terms["L_aim"].item() == pytest.approx(aim_distance(look.window, WINDOW).item())
    (terms["L_dist"] + terms["L_attn"]).backward()
    assert all(p.grad is None for p in [*student.glance.parameters(), *student.aim.parameters()])  # where to look is L_aim's business
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.body.parameters())
    assert all(p.grad is None for p in teacher.parameters())


# ---- configuration -------------------------------------------------------------------------------------------------


def test_what_cannot_learn_where_to_look_is_refused():
    with pytest.raises(ConfigError, match="nothing would teach where to look"):
        CONFIG.with_(w_aim=0.0)
    with pytest.raises(ConfigError, match="nothing would teach where to look"):
        RunConfig(role="baseline", looks=2)
    with pytest.raises(ConfigError, match="only baseline and student"):
        RunConfig(role="teacher", looks=2)
    assert RunConfig(role="baseline", looks=2, aim_gradient=True).resolved()["window_px"] == 96


def test_settings_of_the_second_look_leave_other_runs_alone():
    once = CONFIG.with_(looks=1)
    assert once.resolved() == once.with_(glance_px=77, aim_gradient=True, w_aim=9.0).resolved()
    assert CONFIG.resolved() != CONFIG.with_(glance_px=77).resolved()
    assert {"looks", "glance_px", "window_px", "w_aim", "aim_gradient"} <= set(CONFIG.resolved())


def test_it_is_a_zoom_net_of_two_backbones():
    net = network()
    assert isinstance(net, ZoomNet)
    assert [p.shape for p in net.glance.parameters()] == [p.shape for p in net.body.parameters()]
    assert not any(a is b for a, b in zip(net.glance.parameters(), net.body.parameters(), strict=True))
