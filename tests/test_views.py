"""The two cameras see one scene, frames keep the whole image, batches depend on seed and epoch alone, and decoded pixels are kept."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sos.cohort import views
from sos.cohort.batches import ViewLoader
from sos.cohort.cameras import Asked, Light, Scene, camera, cameras, normalise, random_scene, reduce_to, square_window, still_scene
from sos.cohort.manifest import BOX, read_manifest
from sos.cohort.views import PixelStore, has_room, open_store
from sos.config import RunConfig
from sos.errors import CohortError
from sos.images.reader import GreyImage, read_image

WILD = RunConfig(rotate_deg=25.0, zoom=0.3, shift=0.15, flip=0.5)
STILL = dict(rotate_deg=0.0, zoom=0.0, shift=0.0, flip=0.0)
DARK = dict(gain=0.0, offset=0.0, gamma=0.0, noise=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(b, height, width, seed=0):
    """(b, 1, height, width) grey pictures in [0, 1] without detail finer than about 12 pixels."""
    coarse = torch.rand(b, 1, -(-height // 12), -(-width // 12), generator=generator(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def small_store(n=10, seed=0, height=80, width=100):
    """A PixelStore of smooth pictures of several sizes, made without files."""
    rng = np.random.default_rng(seed)
    pixels = (smooth(n, height, width, seed)[:, 0] * 255).round().to(torch.uint8).numpy()
    sizes = np.stack([rng.integers(height // 2, height + 1, n), rng.integers(width // 2, width + 1, n)], 1)
    for i, (h, w) in enumerate(sizes):
        pixels[i, h:], pixels[i, :, w:] = 0, 0
    low = sizes[:, ::-1] * 0.3
    boxes = np.concatenate([low, low + sizes[:, ::-1] * (0.3, 0.2)], 1).astype(np.float32)
    return PixelStore(pixels, sizes, np.ones(n, np.float32), boxes, np.arange(n) % 5, np.full(n, 0.3, np.float32), "digest")


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


# ---- scenes --------------------------------------------------------------------------------------------------------


def test_a_still_scene_letterboxes_portrait_and_landscape():
    scene = still_scene(torch.tensor([[100, 200], [200, 100], [50, 50]]))
    corners = scene.to_frame(torch.tensor([[0.0, 0.0], [200.0, 100.0]]).expand(3, 2, 2))
    assert torch.allclose(corners[0], torch.tensor([[0.0, 0.25], [1.0, 0.75]]))
    corners = scene.to_frame(torch.tensor([[0.0, 0.0], [100.0, 200.0]]).expand(3, 2, 2))
    assert torch.allclose(corners[1], torch.tensor([[0.25, 0.0], [0.75, 1.0]]))
    picture = camera(torch.ones(1, 1, 100, 200), still_scene(torch.tensor([[100, 200]])), 40)[0, 0]
    assert (picture[:10] == 0).all() and (picture[30:] == 0).all() and torch.allclose(picture[10:30], torch.ones(20, 40), atol=1e-5)
    picture = camera(torch.ones(1, 1, 200, 100), still_scene(torch.tensor([[200, 100]])), 40)[0, 0]
    assert (picture[:, :10] == 0).all() and (picture[:, 30:] == 0).all()
    assert torch.allclose(picture[:, 10:30], torch.ones(40, 20), atol=1e-5)


def test_a_still_frame_of_a_square_image_is_its_area_average():
    native = torch.rand(1, 1, 64, 64, generator=generator())
    assert torch.allclose(camera(native, still_scene(torch.tensor([[64, 64]])), 32), F.avg_pool2d(native, 2), atol=1e-6)


def test_a_box_in_a_still_frame_is_divided_by_the_longer_side_and_centred():
    scene = still_scene(torch.tensor([[100, 200], [200, 100]]))
    found = scene.box_to_frame(torch.tensor([[20.0, 10.0, 60.0, 90.0], [20.0, 10.0, 60.0, 90.0]]))
    assert torch.allclose(found, torch.tensor([[0.1, 0.3, 0.3, 0.7], [0.35, 0.05, 0.55, 0.45]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 900), st.integers(20, 900))
def test_frame_and_native_coordinates_are_inverse(seed, height, width):
    scene = random_scene(torch.tensor([[height, width]] * 3), WILD, generator(seed))
    points = torch.rand(3, 5, 2, generator=generator(seed))
    assert torch.allclose(scene.to_frame(scene.to_native(points)), points, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_a_box_moves_with_its_centre_and_keeps_its_size(seed):
    sizes = torch.tensor([[300, 400], [500, 250]])
    boxes = torch.tensor([[100.0, 80.0, 180.0, 130.0], [60.0, 200.0, 120.0, 320.0]])
    scene = random_scene(sizes, WILD, generator(seed))
    found = scene.box_to_frame(boxes)
    centre = scene.to_native(((found[:, :2] + found[:, 2:]) / 2)[:, None])[:, 0]
    assert torch.allclose(centre, (boxes[:, :2] + boxes[:, 2:]) / 2, atol=0.05)
    sides, native_sides = found[:, 2:] - found[:, :2], boxes[:, 2:] - boxes[:, :2]
    scale = sides / native_sides
    assert torch.allclose(scale[:, 0], scale[:, 1], rtol=1e-4)  # nothing is squeezed
    zoom = scale[:, 0] * sizes.amax(1)
    assert (zoom <= np.exp(0.3) * 1.001).all() and (zoom >= np.exp(-0.3) * 0.999).all()


def test_random_scenes_keep_to_the_ranges_of_the_config_and_fill_them():
    config = RunConfig(rotate_deg=10.0, zoom=0.2, shift=0.1, flip=0.3)
    scene = random_scene(torch.full((4000, 2), 100), config, generator())
    turn = scene.matrix / 100
    zoom = -torch.log(torch.linalg.det(turn).abs()) / 2
    angle = torch.rad2deg(torch.atan2(-turn[:, 0, 1], turn[:, 1, 1]))
    shift = torch.linalg.solve(scene.matrix, scene.centre - 50)
    for values, most in ((zoom, 0.2), (angle, 10.0), (shift[:, 0], 0.1), (shift[:, 1], 0.1)):
        assert values.abs().max() <= most * 1.001 and values.min() < -0.95 * most and values.max() > 0.95 * most
        assert abs(float(values.mean())) < 0.05 * most
    assert float((torch.linalg.det(turn) < 0).float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_mirror_turns_the_frame_left_to_right_and_the_box_with_it(flip):
    sizes, native = torch.tensor([[60, 90]] * 4), smooth(4, 60, 90)
    boxes = torch.tensor([[10.0, 20.0, 40.0, 50.0]] * 4)
    plain, scene = still_scene(sizes), random_scene(sizes, RunConfig(**STILL | {"flip": flip}), generator())
    frame, box = camera(native, plain, 30), plain.box_to_frame(boxes)
    if flip:
        frame, box = frame.flip(3), torch.stack([1 - box[:, 2], box[:, 1], 1 - box[:, 0], box[:, 3]], 1)
    assert torch.allclose(camera(native, scene, 30), frame, atol=1e-5)
    assert torch.allclose(scene.box_to_frame(boxes), box, atol=1e-6)


def test_a_still_mirrored_scene_is_the_still_picture_read_from_right_to_left():
    native, sizes = torch.rand(1, 1, 60, 100, generator=generator()), torch.tensor([[60, 100]])
    plain, turned = still_scene(sizes), still_scene(sizes, mirrored=True)
    assert torch.allclose(camera(native, turned, 50), camera(native, plain, 50).flip(3), atol=1e-5)
    box, other = plain.box_to_frame(torch.tensor([[10.0, 20, 40, 50]])), turned.box_to_frame(torch.tensor([[10.0, 20, 40, 50]]))
    assert torch.allclose(other, torch.stack([1 - box[:, 2], box[:, 1], 1 - box[:, 0], box[:, 3]], 1))


def test_square_window_keeps_the_centre_and_takes_the_longer_side():
    found = square_window(torch.tensor([[0.2, 0.3, 0.6, 0.5], [0.1, 0.1, 0.2, 0.5]]), 1.5)
    assert torch.allclose(found, torch.tensor([[0.1, 0.1, 0.7, 0.7], [-0.15, 0.0, 0.45, 0.6]]), atol=1e-6)


# ---- cameras -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_window_shows_what_the_frame_shows_there(seed):
    sizes, native = torch.tensor([[150, 210], [150, 210]]), smooth(2, 150, 210, seed)
    scene = random_scene(sizes, WILD, generator(seed))
    frame = camera(native, scene, 256)
    window = torch.tensor([[0.25, 0.375, 0.5, 0.625], [0.375, 0.25, 0.625, 0.5]])  # whole pixels of the frame: exact
    seen = camera(native, scene, 64, window)
    for i in range(2):
        x, y = (window[i, :2] * 256).int().tolist()
        assert torch.allclose(seen[i, 0], frame[i, 0, y:y + 64, x:x + 64], atol=1e-4)
    window = torch.tensor([[0.311, 0.402, 0.564, 0.655], [0.4, 0.3, 0.55, 0.45]])  # anywhere: within interpolation
    at = (torch.arange(48) + 0.5) / 48
    grid = torch.stack([(window[:, 0:1] + at * (window[:, 2:3] - window[:, 0:1]))[:, None].expand(2, 48, 48),
                        (window[:, 1:2] + at * (window[:, 3:] - window[:, 1:2]))[:, :, None].expand(2, 48, 48)], -1)
    expected = F.grid_sample(frame, grid * 2 - 1, mode="bilinear", align_corners=False)
    assert (camera(native, scene, 48, window) - expected).abs().mean() < 0.003  # more at the black edge alone
    assert expected.std() > 0.05


def test_moving_image_and_box_together_changes_nothing():
    native = F.pad(smooth(1, 60, 60), (20, 60, 30, 50))  # (1, 1, 140, 140)
    box = torch.tensor([[35.0, 45.0, 65.0, 70.0]])
    turn = random_scene(torch.tensor([[140, 140]]), WILD, generator(3))
    right, down = 17, -9
    moved = torch.roll(native, (down, right), (2, 3))
    shift = torch.tensor([[right, down]]).float()
    scenes = [turn, Scene(turn.matrix, turn.centre + shift)]
    boxes = [box, box + torch.cat([shift, shift], 1)]
    windows = [square_window(scene.box_to_frame(b)) for scene, b in zip(scenes, boxes)]
    assert torch.allclose(*windows, atol=1e-6)
    for size, crop in ((50, windows), (32, [None, None])):
        first, second = (camera(pixels, scene, size, window) for pixels, scene, window in zip((native, moved), scenes, crop))
        assert torch.allclose(first, second, atol=1e-3) and first.std() > 0.05


def test_the_window_holds_the_box_whatever_the_scene():
    native = torch.zeros(1, 1, 120, 160)
    native[0, 0, 60:66, 90:96] = 1  # a spot in the middle of the box
    box = torch.tensor([[78.0, 50.0, 108.0, 76.0]])
    for seed in range(6):
        scene = random_scene(torch.tensor([[120, 160]]), WILD, generator(seed))
        seen = camera(native, scene, 30, square_window(scene.box_to_frame(box)))[0, 0]
        at = torch.arange(30) + 0.5
        assert float((seen.sum(0) * at).sum() / seen.sum()) == pytest.approx(15, abs=0.2)
        assert float((seen.sum(1) * at).sum() / seen.sum()) == pytest.approx(15, abs=0.2)
        assert float(seen.mean()) == pytest.approx(36 / 30**2, rel=0.05)  # as large as the expert's crop shows it


def test_beyond_the_image_is_black():
    native = torch.ones(1, 1, 50, 80)
    scene = still_scene(torch.tensor([[50, 80]]))
    assert (camera(native, scene, 20, torch.tensor([[-0.5, -0.5, -0.1, -0.1]])) == 0).all()
    half = camera(native, scene, 20, torch.tensor([[-0.25, 0.25, 0.25, 0.75]]))[0, 0]
    assert (half[:, :9] == 0).all() and torch.allclose(half[:, 11:], torch.ones(20, 9), atol=1e-5)


def test_larger_neighbours_in_a_batch_change_nothing():
    small, large = smooth(1, 40, 56), smooth(1, 90, 100, seed=1)
    both = torch.cat([F.pad(small, (0, 44, 0, 50)), large])
    sizes = torch.tensor([[40, 56], [90, 100]])
    alone = camera(small, still_scene(sizes[:1]), 32)
    assert torch.allclose(camera(both, still_scene(sizes), 32)[:1], alone, atol=1e-4)


def test_pictures_of_a_batch_sampled_in_parts_are_those_of_each_image():
    pixels, sizes = (255 * smooth(11, 40, 60)).to(torch.uint8), torch.tensor([[40, 60]]).expand(11, 2)
    scene, window = random_scene(sizes, WILD, generator(3)), torch.rand(11, 4, generator=generator(4)).sort(1).values
    for threads in (1, 2):  # parts of two and of four
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        together = camera(pixels, scene, 24, window)
        torch.set_num_threads(before)
        alone = [camera(pixels[i:i + 1].float(), Scene(scene.matrix[i:i + 1], scene.centre[i:i + 1]), 24, window[i:i + 1]) for i in range(11)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(("size", "window", "fine"), [(24, None, 2), (31, (0.4, 0.3, 0.7, 0.6), 2), (48, None, 1), (12, (-0.2, 0.5, 0.3, 1.0), 3)])
def test_the_camera_gives_bit_for_bit_the_mean_of_a_finer_picture_sampled_in_one_go(size, window, fine):
    """Trained runs stay what they are when the camera is made faster."""
    native, config = smooth(3, 70, 90, seed=4) * 255, RunConfig(rotate_deg=20.0, zoom=0.2, shift=0.1, flip=0.5)
    scene = random_scene(torch.tensor([[70, 90], [64, 90], [70, 50]]), config, generator(2))
    window = None if window is None else torch.tensor([window]).expand(3, 4)
    span = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4) if window is None else window
    half, middle, unit = (span[:, 2:] - span[:, :2]) / 2, (span[:, 2:] + span[:, :2]) / 2, 2 / torch.tensor([90, 70])
    matrix, offset = unit[:, None] * scene.matrix * half[:, None, :], unit * scene.to_native(middle[:, None])[:, 0] - 1
    steps = (torch.arange(size * fine) + 0.5) * (2 / (size * fine)) - 1
    across, down = (matrix[:, None, :, axis] * steps[None, :, None] for axis in (0, 1))
    grid = across[:, None] + (down + offset[:, None])[:, :, None]
    expected = F.avg_pool2d(F.grid_sample(native, grid, align_corners=False), fine)
    assert torch.equal(camera(native, scene, size, window, fine), expected) and expected.std() > 1


def test_pictures_asked_for_together_are_those_asked_for_alone():
    pixels, sizes = (255 * smooth(5, 40, 60)).to(torch.uint8), torch.tensor([[40, 60]]).expand(5, 2)
    scene, window = random_scene(sizes, WILD, generator(3)), torch.rand(5, 4, generator=generator(4)).sort(1).values
    frame, crop = cameras(pixels, scene, Asked(24), Asked(16, window, fine=1))
    assert torch.equal(frame, camera(pixels, scene, 24)) and torch.equal(crop, camera(pixels, scene, 16, window, fine=1))
    assert not torch.equal(crop, camera(pixels, scene, 16, window))


# ---- light ---------------------------------------------------------------------------------------------------------


def test_no_light_to_speak_of_leaves_the_picture_as_it_is():
    picture = smooth(3, 16, 16)
    light = Light.random(3, RunConfig(**DARK), generator(), "cpu")
    assert torch.allclose(light.shine(picture, generator()), picture, atol=1e-3)


def test_light_is_gamma_then_gain_and_offset_about_the_middle():
    picture, config = smooth(4, 16, 16), RunConfig(gain=0.3, offset=0.1, gamma=0.4, noise=0.0)
    light = Light.random(4, config, generator(), "cpu")
    expected = ((picture.double().clamp_min(1e-4) ** light.gamma.double() - 0.5) * light.gain + 0.5 + light.offset).clamp(0, 1)
    lit = light.shine(picture, generator())
    assert torch.allclose(lit.double(), expected, atol=1e-6) and not torch.allclose(lit, picture, atol=1e-2)


def test_light_and_norm_may_be_written_over_the_picture():
    picture = smooth(3, 16, 16)
    light = Light.random(3, RunConfig(noise=0.1), generator(), "cpu")
    lit, before = light.shine(picture, generator(1)), picture.clone()
    seen = normalise(lit)
    assert torch.equal(picture, before) and not torch.equal(seen, lit)
    assert torch.equal(light.shine(picture, generator(1), out=picture), lit) and torch.equal(picture, lit)
    assert torch.equal(normalise(picture, out=picture), seen) and torch.equal(picture, seen)


def test_light_keeps_to_its_ranges_and_to_grey_values():
    config = RunConfig(gain=0.3, offset=0.1, gamma=0.2, noise=0.05)
    light = Light.random(3000, config, generator(), "cpu")
    for values, most in ((light.gain.log(), 0.3), (light.offset, 0.1), (light.gamma.log(), 0.2)):
        assert values.abs().max() <= most * 1.001 and values.max() > 0.9 * most and values.min() < -0.9 * most
    assert light.noise.min() >= 0 and 0.045 < light.noise.max() <= 0.05
    lit = light.shine(torch.rand(3000, 1, 4, 4), generator())
    assert lit.min() >= 0 and lit.max() <= 1


def test_both_cameras_have_the_same_light():
    config = RunConfig(role="student", **STILL | {"gain": 0.4, "offset": 0.2, "gamma": 0.4, "noise": 0.0}, frame_px=32)
    store = small_store()
    store.pixels[:] = 120  # one grey everywhere: light is all that differs
    loader = ViewLoader(store, range(10), config, training=True, window_px=16)
    loader.views.generator.manual_seed(1)
    frame, crop, window, _ = loader.views(np.arange(10))
    middle = frame[:, 0, 16, 16]
    assert torch.allclose(crop[:, 0, 8, 8], middle, atol=1e-3) and middle.std() > 0.1


def test_normalised_grey_is_centred():
    assert normalise(torch.tensor(0.35)) == 0 and normalise(torch.tensor(0.6)).item() == pytest.approx(1.0)


# ---- batches -------------------------------------------------------------------------------------------------------


def loaded(role="student", seed=0, epoch=0, training=True, noise_first=0, store=None, **rest):
    """All batches of one epoch."""
    config = RunConfig(role=role, seed=seed, batch_size=4, frame_px=32, window_px=24)
    loader = ViewLoader(store or small_store(), range(10), config, training=training, **rest)
    for _ in range(noise_first):  # epochs gone by, and other people's draws
        list(loader)
        torch.rand(3)
    loader.epoch = epoch
    return list(loader)


@pytest.mark.parametrize("role", ["teacher", "baseline", "student", "detector"])
def test_order_and_pictures_depend_on_seed_and_epoch_only(role):
    first = loaded(role, epoch=2)
    again = loaded(role, epoch=2, noise_first=3)
    assert len(first) == 2 and all(same(a, b) for a, b in zip(first, again))
    for other in (loaded(role, epoch=3), loaded(role, seed=1, epoch=2)):
        assert not same(first[0], other[0])
        assert not torch.equal(torch.cat([batch[-1] for batch in first]), torch.cat([batch[-1] for batch in other]))


def test_what_is_in_a_batch_depends_on_the_role():
    crop, target = loaded("teacher")[0]
    assert crop.shape == (4, 1, 24, 24) and target.shape == (4,)
    frame, target = loaded("baseline")[0]
    assert frame.shape == (4, 1, 32, 32)
    frame, crop, window, target = loaded("student")[0]
    assert frame.shape == (4, 1, 32, 32) and crop.shape == (4, 1, 24, 24) and window.shape == (4, 4) and target.dtype == torch.int64
    assert torch.allclose(window[:, 2] - window[:, 0], window[:, 3] - window[:, 1])
    assert [len(batch) for batch in loaded("student", training=False)] == [2, 2]
    frame, box = loaded("detector")[0]
    assert frame.shape == (4, 1, 32, 32) and box.shape == (4, 4)
    centre, middle = (box[:, :2] + box[:, 2:]) / 2, (window[:, :2] + window[:, 2:]) / 2
    assert torch.allclose(centre, middle) and torch.allclose((box[:, 2:] - box[:, :2]).amax(1), window[:, 2] - window[:, 0])


def test_an_epoch_shows_each_image_at_most_once():
    store = small_store()
    store.targets[:] = np.arange(10)
    seen = torch.cat([batch[-1] for batch in loaded(store=store)]).tolist()
    assert len(seen) == 8 == len(set(seen))  # two whole batches; which two images wait changes with the epoch
    left = {frozenset(range(10)) - frozenset(torch.cat([batch[-1] for batch in loaded(store=store, epoch=e)]).tolist()) for e in range(6)}
    assert len(left) > 1


def test_a_training_set_smaller_than_a_batch_is_one_batch():
    loader = ViewLoader(small_store(), range(3), RunConfig(role="baseline", batch_size=8, frame_px=32), training=True)
    assert [len(batch[-1]) for batch in loader] == [3]


def test_validation_is_still_whole_and_in_order():
    store = small_store()
    first, again = loaded("baseline", training=False, store=store), loaded("baseline", training=False, seed=5, epoch=4, store=store)
    assert [len(batch[-1]) for batch in first] == [8, 2] and all(same(a, b) for a, b in zip(first, again))
    assert torch.cat([batch[-1] for batch in first]).tolist() == store.targets.tolist()
    native = torch.from_numpy(store.native(np.arange(8)))[:, None].float()
    expected = normalise(camera(native, still_scene(torch.from_numpy(store.sizes[:8])), 32) / 255)
    assert torch.equal(first[0][0], expected)


def test_both_pictures_of_a_student_show_one_scene():
    config = RunConfig(role="student", batch_size=4, frame_px=240, **DARK)
    loader = ViewLoader(small_store(), range(10), config, training=True, window_px=48, window_scale=1.2)
    frame, crop, window, _ = next(iter(loader))
    at = (torch.arange(48) + 0.5) / 48
    for i in range(4):
        x, y = (window[i, k] + at * (window[i, k + 2] - window[i, k]) for k in (0, 1))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None] * 2 - 1
        inside = (grid.abs() < 0.98).all(-1)[0]
        expected = F.grid_sample(frame[i:i + 1], grid, mode="bilinear", align_corners=False)[0, 0]
        assert (crop[i, 0] - expected)[inside].abs().mean() < 0.05 and expected[inside].std() > 0.1


def test_a_teacher_sees_the_window_of_its_own_scale():
    store, config = small_store(), RunConfig(role="teacher", batch_size=4, window_px=24, window_scale=1.5)
    crop, _ = next(iter(ViewLoader(store, range(8), config, training=False)))
    scene = still_scene(torch.from_numpy(store.sizes[:8]))
    window = square_window(scene.box_to_frame(torch.from_numpy(store.boxes[:8])), 1.5)
    expected = camera(torch.from_numpy(store.native(np.arange(8)))[:, None].float(), scene, 24, window)
    assert torch.equal(crop, normalise(expected / 255))


def test_a_student_sees_the_window_of_its_teacher():
    scale = {}
    for given_ in (1.0, 2.0):
        _, crop, window, _ = loaded(window_px=40, window_scale=given_)[0]
        assert crop.shape[-1] == 40
        scale[given_] = window[:, 2] - window[:, 0]
    assert torch.allclose(scale[2.0], 2 * scale[1.0], rtol=1e-4)


# ---- decoded pixels ------------------------------------------------------------------------------------------------


def test_reduced_pixels_keep_their_mean_and_tell_their_scale():
    image = GreyImage(smooth(1, 120, 200)[0, 0].numpy(), 0.25, {})
    whole, one, mm = reduce_to(image, 200)
    assert one == 1 and mm == 0.25 and np.abs(whole / 255 - image.pixels).max() <= 0.5 / 255 + 1e-6
    small, scale, mm = reduce_to(image, 100)
    assert small.shape == (60, 100) and scale == 0.5 and mm == 0.5 and small.dtype == np.uint8
    assert small.mean() / 255 == pytest.approx(image.pixels.mean(), abs=0.005)
    assert np.isnan(reduce_to(GreyImage(image.pixels, None, {}), 100)[2])


@pytest.fixture(scope="module")
def png_cohort(tmp_path_factory):
    """Manifest of six PNG files of different sizes."""
    folder = tmp_path_factory.mktemp("png")
    rows = []
    for i, picture in enumerate(smooth(6, 120, 160, seed=3)[:, 0]):
        height, width = 70 + 10 * i, 160 - 12 * i
        Image.fromarray((picture[:height, :width] * 255).to(torch.uint8).numpy()).save(folder / f"{i}.png")
        rows.append((f"p{i}", f"{i}.png", i % 5 + 1, 9.0, "F", 20, 10, 60, 40, "train"))
    pd.DataFrame(rows, columns=["patient_id", "image", "stage", "age_y", "sex", *BOX, "split"]).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


@pytest.mark.parametrize("ahead", [1024, 4])
def test_a_store_holds_the_images_as_read(ahead, png_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("sos.cohort.views.AHEAD", ahead)
    cohort = read_manifest(png_cohort)
    store = open_store(cohort, tmp_path, 90)
    for i in (0, 5):
        grey, scale, _ = reduce_to(read_image(cohort.image_path(i)), 90)
        h, w = store.sizes[i]
        assert (h, w) == grey.shape and max(h, w) == 90 and np.array_equal(store.pixels[i, :h, :w], grey)
        assert not store.pixels[i, h:].any() and not store.pixels[i, :, w:].any()
        assert store.boxes[i] == pytest.approx(np.array([20, 10, 60, 40]) * scale) and store.scale[i] == pytest.approx(scale)
    assert store.targets.tolist() == [0, 1, 2, 3, 4, 0] and np.isnan(store.spacing_mm).all()
    assert store.native(np.array([0])).shape[1:] == tuple(store.sizes[0])


@pytest.mark.parametrize("role", ["teacher", "baseline", "student", "detector"])
def test_batches_of_pixels_kept_on_a_device_are_those_of_the_mapped_array(role, monkeypatch):
    monkeypatch.setattr("sos.cohort.views.COPIED", 3)
    for training in (True, False):
        mapped, asked = loaded(role, training=training, store=small_store()), []
        with monkeypatch.context() as patch:  # the CPU stands in for a GPU
            patch.setattr("sos.cohort.views.has_room", lambda device, size: asked.append((device.type, size)) or True)
            kept = small_store()
            first = loaded(role, training=training, store=kept)
            kept.pixels[:] = 0  # from now on nothing is read from there
            again = loaded(role, training=training, store=kept)
        assert asked == [("cpu", kept.pixels.nbytes)]
        assert len(mapped) == len(first) == len(again) and all(same(a, b) and same(a, c) for a, b, c in zip(mapped, first, again))


def test_a_gpu_keeps_the_pixels_of_a_cohort_that_takes_a_small_part_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 10**9))
    gpu = torch.device("cuda")
    assert has_room(gpu, 100) and not has_room(gpu, 101) and not has_room(torch.device("cpu"), 1)


def test_a_store_is_decoded_once_and_again_where_a_file_or_the_reader_has_changed(png_cohort, tmp_path, monkeypatch):
    folder = tmp_path / "cohort"
    shutil.copytree(png_cohort.parent, folder)
    cohort = read_manifest(folder / "m.csv")
    read = []
    monkeypatch.setattr("sos.cohort.views.read_image", lambda path: read.append(path.name) or read_image(path))
    first = open_store(cohort, tmp_path / "cache", 90)
    again = open_store(cohort, tmp_path / "cache", 90)
    assert sorted(read) == [f"{i}.png" for i in range(6)] and again.digest == first.digest
    picture = np.asarray(Image.open(folder / "2.png")).copy()
    picture[:9] = 255
    Image.fromarray(picture).save(folder / "2.png")
    changed = open_store(cohort, tmp_path / "cache", 90)
    assert len(read) == 12 and changed.digest != first.digest
    assert open_store(cohort, tmp_path / "cache", 80).digest != changed.digest
    monkeypatch.setattr(views, "reading_code", lambda: "of a reader that may read otherwise")
    assert open_store(cohort, tmp_path / "cache", 90).digest == changed.digest and len(read) == 24
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.endswith(".tmp")]


def test_a_series_folder_rewritten_inside_is_decoded_again(png_cohort, tmp_path, monkeypatch):
    cohort = read_manifest(png_cohort)
    root = tmp_path / "cohort"
    for name in cohort.table["image"]:
        (root / name).mkdir(parents=True)
        shutil.copyfile(cohort.root / name, root / name / "slice.png")
    read = []
    monkeypatch.setattr("sos.cohort.views.read_image", lambda path: read.append(path.name) or read_image(path / "slice.png"))
    series = type(cohort)(cohort.table, root, cohort.scheme, cohort.path)
    first = open_store(series, tmp_path / "cache", 90)
    assert open_store(series, tmp_path / "cache", 90).digest == first.digest and len(read) == 6
    shutil.copyfile(root / "1.png" / "slice.png", root / "2.png" / "slice.png")
    assert open_store(series, tmp_path / "cache", 90).digest != first.digest and len(read) == 12


def test_the_digest_knows_boxes_stages_and_splits_but_not_ages(png_cohort, tmp_path):
    cohort = read_manifest(png_cohort)

    def digest_of(**columns):
        return open_store(type(cohort)(cohort.table.assign(**columns), cohort.root, cohort.scheme, cohort.path), tmp_path, 90).digest

    plain = digest_of()
    assert digest_of(age_y=30.0, sex="M") == plain
    others = {digest_of(x1=61.0), digest_of(target=1), digest_of(split="test"), digest_of(patient_id="p0")}
    assert len(others | {plain}) == 5


def test_an_image_that_cannot_be_read_is_told_by_its_name(png_cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(png_cohort.parent, folder)
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(CohortError, match=r"m\.csv, image 3\.png: [^/]*take its row out$") as caught:
        open_store(read_manifest(folder / "m.csv"), tmp_path / "cache", 90)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "cache").glob("*/record.json"))
