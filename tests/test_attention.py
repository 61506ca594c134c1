"""Controls and distances of attention: their values on pictures whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import sobel

from sos.cohort.cameras import still_scene
from sos.cohort.manifest import read_manifest
from sos.cohort.views import open_store
from sos.config import RunConfig
from sos.method.cam import box_mask, peak
from sos.study.attention import (edge_maps, joint_distance_mm, mean_position, random_maps, still_pictures, summary, summary_text, untrained,
                                 windows)
from sos.study.training import frame_boxes


@pytest.fixture(scope="module")
def cohort(tiny_cohort):
    return read_manifest(tiny_cohort)


@pytest.fixture(scope="module")
def store(cohort, tmp_path_factory):
    return open_store(cohort, tmp_path_factory.mktemp("cache"), 256)  # smaller than the images, so that scales matter


def test_edge_map_of_an_even_picture_is_zero():
    assert edge_maps(torch.full((2, 1, 32, 32), 0.7), 4).abs().max() < 1e-6


def test_edge_map_peaks_at_the_only_edge_and_equals_scipys_sobel():
    grey = torch.zeros(1, 1, 64, 64)
    grey[..., 40:, :] = 0.6  # an edge between rows 39 and 40
    assert abs(peak(edge_maps(grey, 64))[0, 1] - 40 / 64) < 1 / 64
    grey = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    image = grey[0, 0].double().numpy()
    expected = np.hypot(*(sobel(image, axis=axis, mode="nearest") / 8 for axis in (0, 1)))
    assert np.allclose(edge_maps(grey, 48)[0].numpy(), expected, atol=1e-5)
    assert np.allclose(edge_maps(grey, 6)[0].numpy(), expected.reshape(6, 8, 6, 8).mean((1, 3)), atol=1e-5)


def test_random_maps_depend_on_their_seed_alone_and_leave_torchs_generator_be():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = random_maps(3, 8, seed=2), random_maps(3, 8, seed=2), random_maps(3, 8, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])
    assert first.amin((1, 2)).abs().max() == 0 and first.shape == (3, 8, 8)


def test_random_maps_favour_no_place():
    x, y = peak(random_maps(4000, 12)).T
    hit = ((x > 0.25) & (x < 0.75) & (y > 0.25) & (y < 0.75)).float().mean()
    assert hit == pytest.approx(0.25, abs=0.03)


def test_mean_position_is_the_average_of_box_masks(cohort, store):
    rows = cohort.subset("train").index.to_numpy()
    boxes = frame_boxes(store, rows)
    prior = mean_position(store, rows, 16)
    assert torch.allclose(prior, box_mask(boxes, 16).mean(0))
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean()
    assert prior.sum() / 16**2 == pytest.approx(float(area), rel=1e-4)


def test_distance_is_zero_at_the_joint_and_counts_millimetres(cohort, store):
    rows = np.flatnonzero(~np.isnan(store.spacing_mm))[[0, 5, 11]]
    table = cohort.table.loc[rows]
    assert (store.scale[rows] < 1).all()
    decoded = torch.tensor(table[["joint_x", "joint_y"]].to_numpy(np.float32)) + 0.5  # from the middle of the first pixel to its edge
    x, y = still_scene(torch.from_numpy(store.sizes[rows])).to_frame(decoded[:, None] * torch.from_numpy(store.scale[rows])[:, None, None])[:, 0].T
    assert joint_distance_mm(cohort, store, rows, x.numpy(), y.numpy()) == pytest.approx(0, abs=1e-3)
    longer_mm = store.sizes[rows].max(1) * store.spacing_mm[rows]
    moved = joint_distance_mm(cohort, store, rows, x.numpy() + 10 / longer_mm, y.numpy())
    assert moved == pytest.approx(10, abs=0.01)


def test_distance_is_unknown_in_a_screenshot(cohort, store):
    rows = cohort.table.index[cohort.table["export"].isin(["png", "jpeg"])].to_numpy()
    assert len(rows) and np.isnan(joint_distance_mm(cohort, store, rows, np.full(len(rows), 0.5), np.full(len(rows), 0.5))).all()


def test_distance_is_unknown_without_the_truth(cohort, store):
    blind = type(cohort)(cohort.table.drop(columns="joint_x"), cohort.root, cohort.scheme, cohort.path)
    assert joint_distance_mm(blind, store, [0], np.array([0.5]), np.array([0.5])) is None


def test_windows_hold_the_expert_box_and_show_it_enlarged(cohort, store):
    rows = np.arange(4)
    spots, boxes = windows(store, rows), frame_boxes(store, rows)
    assert (spots[:, :2] <= boxes[:, :2] + 1e-6).all() and (spots[:, 2:] >= boxes[:, 2:] - 1e-6).all()
    sides = spots[:, 2:] - spots[:, :2]
    assert torch.allclose(sides[:, 0], sides[:, 1], atol=1e-6)
    whole, crop = still_pictures(store, rows, 128), still_pictures(store, rows, 64, spots)
    for i in range(4):
        x0, y0, x1, y1 = (spots[i] * 128).round().int().tolist()
        cut = torch.nn.functional.interpolate(whole[i:i + 1, None, y0:y1, x0:x1], size=64, mode="bilinear", antialias=True)[0, 0]
        assert torch.corrcoef(torch.stack([cut.flatten(), crop[i].flatten()]))[0, 1] > 0.8


def test_summary_is_the_mean_with_an_interval_around_it():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"source": ["net"] * 60 + ["control"] * 60, "patient_id": [f"p{i % 60}" for i in range(120)],
                          "pointing": rng.integers(0, 2, 120).astype(float), "energy": rng.random(120), "iou": rng.random(120)})
    result = summary(table, 400)
    assert list(result["source"].unique()) == ["net", "control"] and (result["n"] == 60).all()
    for row in result.itertuples():
        values = table.loc[table["source"] == row.source, row.metric]
        assert row.value == pytest.approx(values.mean())
        half = 1.96 * values.std(ddof=0) / np.sqrt(60)
        assert row.low == pytest.approx(row.value - half, abs=0.03) and row.high == pytest.approx(row.value + half, abs=0.03)
    text = summary_text(result)
    assert text.loc["net", "pointing"].startswith(f"{table['pointing'][:60].mean():.2f} (")
    assert list(text.index) == ["net", "control"]


def test_untrained_network_is_repeatable_and_leaves_torchs_generator_be():
    before = torch.get_rng_state()
    nets = [untrained(RunConfig(), 5, "cpu", seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before) and not nets[0].training
    first, again, other = (torch.cat([weight.flatten() for weight in net.parameters()]) for net in nets)
    assert torch.equal(first, again) and not torch.equal(first, other)
