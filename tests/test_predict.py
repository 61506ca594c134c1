"""From an image to a stage: places in pixels of the image, either direction of the head, and heat maps against the batch's own."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sos import cli, predict
from sos.cohort.cameras import camera, normalise, reduce_to, still_scene
from sos.config import RunConfig, get_profile
from sos.errors import RunError
from sos.images.reader import GreyImage, read_image
from sos.method.cam import explain
from sos.method.models import build
from sos.pictures import save_picture
from sos.predict import TINY, TOGETHER, Stager, best_student, load_stager, predict_paths, region
from sos.stages import BASSED5
from sos.study import trust
from sos.study.trust import scaled


@pytest.fixture(scope="module")
def stager():
    torch.manual_seed(3)
    config = RunConfig(frame_px=96)
    return Stager(build(config, 5).eval(), config, BASSED5, "untrained")


@pytest.fixture(scope="module")
def image(tiny_cohort):
    return read_image(sorted((tiny_cohort.parent / "images").glob("*.dcm"))[0])


def turned(image):
    return GreyImage(np.ascontiguousarray(image.pixels[:, ::-1]), image.spacing_mm, image.record)


def test_a_head_may_face_either_way(stager, image):
    """The mirror image gets the same answer, at the mirrored place."""
    one, other = stager.look(image), stager.look(turned(image))
    width = image.pixels.shape[1]
    assert one["stage"] == other["stage"] and one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert one["peak"] == pytest.approx([width - other["peak"][0], other["peak"][1]], abs=0.5)
    x0, y0, x1, y1 = other["box"]
    assert one["box"] == pytest.approx([width - x1, y0, width - x0, y1], abs=0.5)
    np.testing.assert_allclose(one["cam"], other["cam"][:, ::-1], atol=1e-4 * one["cam"].max())


def test_the_heat_map_is_of_the_layer_that_the_network_was_judged_by(stager, image):
    """The mean of both directions' maps, made one by one."""
    frame = normalise(camera(*_native(image), 96) / 255)
    for layer, side in (("last", 3), ("previous", 6)):
        net = build(stager.config.with_(output_stride=32), 5).eval()
        answer = Stager(net, stager.config.with_(output_stride=32, cam_layer=layer), BASSED5, "untrained").look(image)
        target = torch.tensor([answer["stage"] - 1])
        one, other = (explain(net, seen, target, layer)[1] for seen in (frame, frame.flip(3)))
        assert answer["cam"].shape == (side, side)
        np.testing.assert_allclose(answer["cam"], (one + other.flip(2))[0].numpy(), atol=1e-4 * answer["cam"].max())


def _native(image):
    native = reduce_to(image, 1024)[0]
    return torch.from_numpy(native)[None, None].float(), still_scene(torch.tensor([native.shape]))


def test_probabilities_are_the_mean_of_both_directions(stager, image):
    single = []
    for seen in (image, turned(image)):
        frame = camera(*_native(seen), 96) / 255
        with torch.no_grad():
            single.append(stager.net(normalise(frame))[0].double().softmax(0).numpy())
    answer = stager.look(image)
    assert answer["probabilities"] == pytest.approx(np.mean(single, 0), abs=1e-5)
    assert answer["expected_stage"] == pytest.approx(np.mean(single, 0) @ [1, 2, 3, 4, 5], abs=1e-4)
    assert not any(parameter.grad is not None for parameter in stager.net.parameters())


def test_places_lie_within_the_image_whatever_its_shape(stager):
    """Peak and box of a square image, and of the same with bars left and right; the peak lies in the box."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0.2, 0.4, (600, 600)).astype(np.float32)
    answer = stager.look(GreyImage(small, None, {"warnings": []}))
    padded = np.zeros((600, 900), np.float32)  # wide: bars left and right
    padded[:, 150:750] = small
    wide = stager.look(GreyImage(padded, None, {"warnings": []}))
    for seen, width in ((answer, 600), (wide, 900)):
        x0, y0, x1, y1 = seen["box"]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= 600
        assert x0 <= seen["peak"][0] <= x1 and y0 <= seen["peak"][1] <= y1


def test_the_region_holds_the_peak_and_ends_at_half_of_it():
    cam = np.zeros((10, 10))
    cam[2:5, 3:6], cam[3, 4], cam[8, 8] = 0.6, 1.0, 0.9  # the second spot is not connected
    assert region(cam) == [[0.3, 0.2], [0.6, 0.5]]


def test_a_map_of_nothing_is_no_place(stager, image, monkeypatch):
    monkeypatch.setattr("sos.predict.explain", lambda net, x, *rest: (explain(net, x, *rest)[0], torch.zeros(len(x), 6, 6)))
    answer = stager.look(image)
    assert answer["peak"] is None and answer["box"] is None and answer["stage"] in BASSED5.labels and not answer["cam"].any()
    assert region(np.zeros((4, 8))) == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("temperature", [0.4, 1.7])
def test_probabilities_are_calibrated_as_those_of_the_study(stager, image, temperature):
    plain, calibrated = stager.look(image), replace(stager, temperature=temperature).look(image)
    assert calibrated["probabilities"] == pytest.approx(scaled(np.array([plain["probabilities"]]), temperature)[0], abs=1e-12)
    assert TINY == trust.TINY


def test_rows_come_in_order_and_a_bad_file_stops_nothing(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.dcm"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 300), np.uint8)).save(good)
    bad.write_text("no image")
    rows = list(predict_paths([bad, good, tmp_path / "missing.png"]))
    assert [bool(row["error"]) for row in rows] == [True, False, True] and [row["path"] for row in rows][1] == str(good)
    assert sum(rows[1]["probabilities"]) == pytest.approx(1) and rows[1]["stage"] in BASSED5.labels and rows[0]["stage"] is None


def test_images_staged_together_have_the_answers_they_have_alone(stager, image):
    screenshot = GreyImage(np.pad(image.pixels, ((30, 10), (0, 50))), None, {"warnings": [], "content": (0, 30, image.pixels.shape[1],
                                                                                                        30 + image.pixels.shape[0])})
    images = [image, turned(image), screenshot, GreyImage(image.pixels[40:, :400], None, {"warnings": []})]
    for one, alone in zip(stager.look_at(images), map(stager.look, images), strict=True):
        assert one["stage"] == alone["stage"] and one["box"] == pytest.approx(alone["box"])
        for key in ("probabilities", "expected_stage", "uncertainty", "peak"):
            assert one[key] == pytest.approx(alone[key], abs=1e-5)
        assert np.allclose(one["cam"], alone["cam"], atol=1e-5) and one["cam"].max() > 0


def test_rows_come_while_later_files_are_not_read_yet(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    good, taken = tmp_path / "good.png", []
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200), np.uint8)).save(good)

    def endless():
        while True:
            taken.append(good if len(taken) % 3 else tmp_path / "missing.png")
            yield taken[-1]

    rows = predict_paths(endless(), "released")
    assert next(rows)["error"] and len(taken) <= 1 + TOGETHER
    assert not any(next(rows)["error"] for _ in range(2)) and next(rows)["error"]
    assert len(taken) <= 1 + 3 * TOGETHER  # a batch for each of two cores, and the one that waits for the core that ends first
    rows.close()


def test_the_callers_threads_are_as_many_as_before(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(predict_paths([tmp_path / "missing.png"] * 20, "released"))
        with ThreadPoolExecutor(1) as pool:
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        load_stager(tmp_path)


def test_places_are_those_of_the_whole_screenshot_where_its_wide_borders_were_left_out(stager, tmp_path):
    """The same answer as without the borders, moved by them; borders of as much as the picture changed the stage of half the patients."""
    pixels = np.random.default_rng(4).integers(60, 230, (300, 340), np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255  # the same greys with and without the border
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(np.pad(pixels, [(100, 220), (150, 30)])).save(tmp_path / "bordered.png")
    plain, bordered = read_image(tmp_path / "plain.png"), read_image(tmp_path / "bordered.png")
    assert plain.record["content"] is None and bordered.record["content"] == (150, 100, 490, 400)
    same = GreyImage(np.pad(plain.pixels, [(100, 220), (150, 30)]), None, bordered.record)
    one, other = stager.look(plain), stager.look(same)
    assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)
    assert other["peak"] == pytest.approx(np.add(one["peak"], (150, 100))) and other["box"] == pytest.approx(np.add(one["box"], (150, 100) * 2))
    save_picture(tmp_path / "seen.png", same, other.pop("cam"), other, stager)
    assert Image.open(tmp_path / "seen.png").size == (1260, 510)


def test_images_are_reduced_as_those_that_the_network_learned_from_were(tmp_path, monkeypatch):
    """Two stagers that differ in nothing else see another picture of a large image, and the same one of a small image."""
    rng, config = np.random.default_rng(0), RunConfig(frame_px=96)
    torch.manual_seed(0)
    fine = Stager(build(config, 5).eval(), config, BASSED5, "untrained", native_px=1024)
    coarse, large = replace(fine, native_px=200), GreyImage(rng.random((600, 800), np.float32), None, {"warnings": []})
    small = GreyImage(large.pixels[:150, :200], None, large.record)
    assert coarse.look(small)["probabilities"] == fine.look(small)["probabilities"]
    assert coarse.look(large)["probabilities"] != fine.look(large)["probabilities"]
    told = coarse.look(large)
    x0, y0, x1, y1 = told["box"]
    assert 0 <= x0 < x1 <= 800 and 0 <= y0 < y1 <= 600 and max(x1, y1) > 200  # in pixels of the image, however reduced
    record = predict.released_record()
    assert load_stager("released").native_px == record["native_px"] == get_profile(record["profile"]).native_px
    monkeypatch.setattr(predict, "released_record", lambda: {key: value for key, value in record.items() if key != "native_px"})
    assert load_stager("released").native_px == predict.NATIVE_PX  # of a version that did not record it


def test_the_best_student_of_the_largest_study_that_was_run_is_preferred_to_the_released_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    assert best_student() is None
    students = [("quick", "one", 0.9), ("quick5", "one", 0.6), ("quick5", "two", 0.8), ("quick5", "three", 0.7), ("paper", "no-weights", 0.95)]
    for profile, name, accuracy in students:
        folder = tmp_path / "runs" / profile / "models" / f"student-{name}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        right, n = round(20 * accuracy), 20
        table = pd.DataFrame({"patient_id": [f"P{k}" for k in range(2 * n)], "image": "", "split": ["valid"] * n + ["test"] * n, "stage": 1,
                              "decided": [1] * right + [2] * n + [1] * (n - right)})  # the worse on test images the better on validation images
        table.to_csv(folder / "predictions.csv", index=False)
        if name != "no-weights":
            (folder / "weights.safetensors").touch()
    best = best_student()
    assert (best.path.parts[-3], best.name) == ("quick5", "student-two")


@pytest.mark.parametrize("out, told", [("folder", "this is a folder"), ("none/stages.csv", "its folder is not there")])
@pytest.mark.parametrize("command, work, option", [("predict", "sos.predict.predict_paths", "--out"), ("audit", "sos.cohort.audit.audit", "--html"),
                                                   ("suspects", "sos.study.suspects.suspects", "--out")])
def test_where_the_result_goes_is_looked_at_before_the_work(command, work, option, out, told, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work began"))
    assert cli.main([command, "given", option, str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sos: {option} {tmp_path / out}: {told}") and ".part" not in error and error.count("\n") == 1
