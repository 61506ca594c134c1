"""The competitor, detector then teacher: what it finds, what a miss costs, how it is trained, and how long each way to a stage takes."""

import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_tables import predictions, write_run
from test_training import assert_same_result, tiny

from sos.cohort.batches import ViewLoader
from sos.cohort.cameras import camera, normalise, still_scene
from sos.config import CROP_TEACHER, DISTILLED, LOGIT_ONLY, PIPELINE, PLAIN, PLAIN_LONGER, PROFILES, TWICE, RunConfig, get_profile
from sos.errors import ConfigError, OutOfTime, RunError
from sos.method.models import build
from sos.predict import load_stager
from sos.study import grid, latency, tables
from sos.study.detector import Detector, Found, agreement, no_answer, stage_found
from sos.study.fitting import fit
from sos.study.metrics import measure, probability_columns
from sos.study.results import NOT_YET, Results
from sos.study.runs import machine_record, run_name
from sos.study.training import Study, evaluate, frame_boxes

P = [f"p{k}" for k in range(1, 6)]


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_with_detector():
    return tiny(detector=get_profile("smoke").detector.with_(frame_px=64, epochs=3, batch_size=4, precision="fp32"),
                teacher=tiny().teacher.with_(epochs=1, window_scale=1.3), latency_images=7)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def study(home, tiny_cohort, monkeypatch):
    """A tiny study whose runs the tests of this file share."""
    monkeypatch.setenv("SOS_HOME", str(home))
    monkeypatch.delenv("SOS_DEADLINE", raising=False)
    return Study(tiny_with_detector(), tiny_cohort, device="cpu")


@pytest.fixture
def written(tiny_cohort, tmp_path, monkeypatch):
    """The tiny study with main runs and a detector's that were never trained: held-out accuracies are known, weights are random."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    study = Study(tiny_with_detector(), tiny_cohort, device="cpu")
    for role, wrong in (("teacher", 0), ("baseline", 4), ("zoom", 2)):
        write_run(study, study.profile.run(role), predictions(study.cohort, wrong, None if role == "teacher" else 0.5), weights=True)
    table = predictions(study.cohort, 1, 0.5)
    first = table.index[table["split"] == "test"][0]
    write_run(study, study.profile.run("detector"), table.assign(found=(table.index != first).astype(int), score=0.9), weights=True)
    return study


class Told:
    """A detector that is told what to find: boxes (n, 4) of the images in their order, nan for a miss."""

    def __init__(self, boxes):
        self.boxes, self.bf16 = boxes, False

    def find(self, frames):
        here, self.boxes = self.boxes[:len(frames)], self.boxes[len(frames):]
        return Found(here, torch.where(here.isfinite().all(1), 0.9, 0.0))


def pipeline(study, boxes, rows, mirrored=False, teacher=None):
    config = study.profile.run("teacher")
    return stage_found(Told(boxes), teacher or some_teacher(study), config, study.store, study.cohort, rows, study.profile.run("detector"),
                       mirrored=mirrored)


def some_teacher(study):
    """An untrained teacher whose answers differ from image to image."""
    torch.manual_seed(5)
    config = study.profile.run("teacher")
    net = build(config, 5).eval()
    net.head.classifier.weight.data *= 20
    with torch.no_grad():
        crops, _ = ViewLoader(study.store, range(8), config, training=False).views(np.arange(8))
        net.head.classifier.bias -= net(crops).mean(0)
    return net


# ---- what is staged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
def test_behind_a_perfect_detector_stand_the_teachers_own_predictions(study, mirrored):
    rows = np.arange(20)
    teacher = some_teacher(study)
    own = evaluate(teacher, study.store, study.cohort, rows, study.profile.run("teacher"), mirrored=mirrored)
    assert own["decided"].nunique() > 1
    boxes = frame_boxes(study.store, rows, mirrored)
    table = pipeline(study, boxes, rows, mirrored, teacher)
    pd.testing.assert_frame_equal(table[own.columns], own, rtol=1e-4, atol=1e-6)
    assert (table[["pointing", "found"]] == 1).all(axis=None) and table["score"].to_numpy() == pytest.approx(0.9)
    assert table[["energy", "iou"]].to_numpy() == pytest.approx(1, abs=1e-4)
    assert table[["box_x0", "box_y0", "box_x1", "box_y1"]].to_numpy() == pytest.approx(boxes.numpy(), abs=1e-6)
    assert table[["peak_x", "peak_y"]].to_numpy() == pytest.approx(((boxes[:, :2] + boxes[:, 2:]) / 2).numpy(), abs=1e-6)


def test_a_box_elsewhere_gives_other_predictions(study):
    rows = np.arange(20)
    right = pipeline(study, frame_boxes(study.store, rows), rows)
    beside = pipeline(study, frame_boxes(study.store, rows) + 0.15, rows)
    assert np.abs(right[P].to_numpy() - beside[P].to_numpy()).max() > 0.01
    assert (beside["iou"] < 0.6).all()


def test_a_miss_is_a_wrong_answer_and_counted(study):
    rows = study.cohort.table.index[study.cohort.table["split"] == "test"].to_numpy()
    boxes, missed = frame_boxes(study.store, rows), np.arange(len(rows)) % 2 == 0
    whole = pipeline(study, boxes.clone(), rows)
    boxes[missed] = torch.nan
    table = pipeline(study, boxes, rows)
    assert (table["found"] == ~missed).all() and len(table) == len(rows)
    assert (table["decided"] != table["stage"])[missed].all()
    assert (table.loc[missed, ["pointing", "energy", "iou", "score"]] == 0).all(axis=None)
    assert table.loc[missed, ["peak_x", "peak_y", "box_x0", "box_y1"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(table[~missed], whole[~missed], rtol=1e-4, atol=1e-6)
    known = measure(table, 20)
    assert known["missed"]["value"] == pytest.approx(missed.mean())
    assert known["accuracy"]["value"] == pytest.approx(((whole["decided"] == whole["stage"]) & ~missed).mean())
    assert "missed" not in measure(whole.drop(columns="found"), 20)


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
def test_no_answer_is_never_right_and_as_near_to_the_middle_as_it_can_be(stages):
    p = no_answer(np.arange(stages), stages)
    assert p.sum(1) == pytest.approx(1) and (np.diag(p) == 0).all() and (p >= 0).all()
    decided, middle = p.argmax(1), (stages - 1) / 2
    for target in range(stages):
        wrong = [k for k in range(stages) if k != target]
        assert abs(decided[target] - middle) == min(abs(k - middle) for k in wrong)
        assert (p[target] == p[target].max()).sum() == 1


# ---- what a detector sees and says ---------------------------------------------------------------------------------


def test_the_box_of_a_training_picture_lies_where_the_joint_is(study):
    """A picture that is bright inside the expert's box and black outside: under shift, zoom and mirror the returned box is the bright part."""
    store, box = study.store, np.array([30, 40, 60, 62], np.float32)
    pixels = np.zeros((1, *store.sizes[0]), np.uint8)
    pixels[0, 40:62, 30:60] = 255
    painted = replace(store, pixels=pixels.repeat(8, 0), sizes=store.sizes[:1].repeat(8, 0), boxes=box[None].repeat(8, 0))
    config = study.profile.run("detector").with_(rotate_deg=0.0, zoom=0.1, shift=0.1, flip=0.5, noise=0.0, batch_size=8)
    ((frames, boxes),) = list(ViewLoader(painted, range(8), config, training=True))
    assert boxes.std(0).min() > 0.01
    for frame, found in zip(frames[:, 0], boxes * config.frame_px, strict=True):
        y, x = torch.nonzero(frame > (frame.max() + frame.min()) / 2, as_tuple=True)
        assert torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float().numpy() == pytest.approx(found.numpy(), abs=1.01)


def test_the_best_box_is_that_of_the_surest_cell(study):
    net = Detector(study.profile.run("detector").with_(min_score=0.3)).eval()
    cells = net(torch.zeros(2, 1, 64, 64))
    cells = {key: torch.full_like(value, -9.0) if "anchors" not in key else value for key, value in cells.items()}
    anchor = cells["anchors"][6]  # second row, third column of four: its centre in pixels
    assert ((anchor[:2] + anchor[2:]) / 2).tolist() == [32, 16]
    for cell, sure in ((6, 2.0), (9, 1.0)):  # of the first image; the second image has none
        cells["cls_logits"][0, cell] = cells["bbox_ctrness"][0, cell] = sure
        cells["bbox_regression"][0, cell] = torch.tensor([1.0, 0.5, 1.5, 0.75])  # left, top, right, bottom, in cells of 16 pixels
    found = net.best(cells)
    assert (found.boxes[0] * 64).tolist() == pytest.approx([16, 8, 56, 28])
    assert found.scores.tolist() == pytest.approx([torch.sigmoid(torch.tensor(2.0)).item(), 0])
    assert found.boxes[1].isnan().all() and found.there.tolist() == [True, False]


def test_loss_falls_to_its_least_where_cells_say_the_truth(study):
    net = Detector(study.profile.run("detector"))
    box = torch.tensor([[0.25, 0.125, 0.75, 0.5]])  # 16, 8, 48, 32 in pixels
    cells = net(torch.randn(1, 1, 64, 64))
    before = net.loss(cells, box)
    truth = dict(cells)
    x, y = ((cells["anchors"][:, :2] + cells["anchors"][:, 2:]) / 2).T
    truth["bbox_regression"] = (torch.stack([x - 16, y - 8, 48 - x, 32 - y], 1) / 16)[None]
    inside = (x > 16) & (x < 48) & (y > 8) & (y < 32)
    truth["cls_logits"] = torch.where(inside, 12.0, -12.0)[None, :, None]
    centred = 0.5**0.5  # of the one cell inside, at (32, 16): as far from left as from right, twice as far from bottom as from top
    truth["bbox_ctrness"] = torch.full_like(cells["bbox_ctrness"], np.log(centred / (1 - centred)))
    assert int(inside.sum()) == 1
    least = -centred * np.log(centred) - (1 - centred) * np.log(1 - centred)  # the entropy of that, all else being right
    assert net.loss(truth, box).item() == pytest.approx(least, abs=1e-3) and before > 2 * least
    assert net.loss(truth, box + 0.05) > least + 0.2
    assert net.iou(truth, box) == pytest.approx(1, abs=1e-5)


def test_agreement_of_boxes_on_worked_examples():
    expert = torch.tensor([[0.2, 0.2, 0.6, 0.6]]).repeat(4, 1)
    found = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.4, 0.2, 0.8, 0.6], [0.7, 0.7, 0.9, 0.9], [torch.nan] * 4])
    values = agreement(found, expert)
    assert values["iou"].tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert values["energy"].tolist() == pytest.approx([1, 0.5, 0, 0])
    assert values["pointing"].tolist() == [1, 0, 0, 0]  # the second one's centre lies on the right edge, which is outside


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_lowers_the_loss_and_found_boxes_beat_a_fixed_one_and_move_with_the_image(tmp_path, monkeypatch, tiny_cohort):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    study = Study(tiny_with_detector(), tiny_cohort, device="cpu")
    config = study.profile.run("detector").with_(frame_px=96, epochs=40, lr=2e-3, shift=0.15, zoom=0.15)
    net, history, _ = fit(config, study.store, study.cohort, tmp_path / "c.pt", None, "cpu")
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["valid_iou"].iloc[-1] > history["valid_iou"].iloc[0]

    rows = study.cohort.table.index[study.cohort.table["split"] != "train"].to_numpy()
    train = study.cohort.subset("train").index.to_numpy()
    fixed = frame_boxes(study.store, train).mean(0).repeat(len(rows), 1)
    native = torch.from_numpy(study.store.native(rows))[:, None].float()
    still, expert = still_scene(torch.from_numpy(study.store.sizes[rows])), frame_boxes(study.store, rows)
    moved = {"still": still, "moved": replace(still, centre=still.centre - still.matrix.diagonal(dim1=1, dim2=2) * torch.tensor([0.1, -0.1]))}
    by = torch.tensor([0.1, -0.1, 0.1, -0.1])  # right and up, of the frame's side
    found = {}
    with torch.no_grad():
        for name, scene in moved.items():
            found[name] = net.find(normalise(camera(native, scene, 96) / 255)).boxes
    assert torch.allclose(moved["moved"].box_to_frame(torch.from_numpy(study.store.boxes[rows])), expert + by, atol=1e-5)
    beyond = {name: agreement(boxes, expert + (by if name == "moved" else 0))["iou"].mean() for name, boxes in found.items()}
    assert beyond["still"] > agreement(fixed, expert)["iou"].mean()
    assert beyond["moved"] > agreement(fixed, expert + by)["iou"].mean() + 0.1
    assert (found["moved"] - found["still"]).nanmedian(0).values.numpy() == pytest.approx(by.numpy(), abs=0.08)  # twelve images to learn from


def test_a_detectors_run_is_made_after_its_teachers_and_read_like_any_other(study):
    run, teacher = study.obtain(study.profile.run("detector")), study.teacher()
    assert run.record["teacher"] == teacher.name and run.name.startswith("detector-")
    assert set(run.predictions) == set(teacher.predictions) | {"peak_x", "peak_y", "pointing", "energy", "iou", "found", "score",
                                                               "box_x0", "box_y0", "box_x1", "box_y1"}
    held_out = study.cohort.table[study.cohort.table["split"] != "train"]
    assert run.predictions["image"].tolist() == run.predictions_mirrored["image"].tolist() == held_out["image"].tolist()
    assert list(run.history) == ["epoch", "train_loss", "valid_loss", "valid_iou"] and len(run.history) == 3
    valid = run.split("valid")
    assert run.history["valid_iou"].iloc[-1] == pytest.approx(valid["iou"].mean(), abs=0.01)  # the saved weights are rounded
    rows = held_out.index.to_numpy()
    again = stage_found(run.load(), teacher.load(), teacher.config, study.store, study.cohort, rows, run.config)
    for column in (*P, "iou", "score"):
        assert again[column].to_numpy(float) == pytest.approx(run.predictions[column].to_numpy(float), abs=1e-4), column
    assert set(run.predictions_both) == {"patient_id", "image", "split", "stage", "target", *probability_columns(run.predictions)}
    assert grid.find(study, [run.config])[0].path == run.path
    with pytest.raises(RunError, match="give the folder of a student or baseline"):
        load_stager(run.path)


def test_another_teacher_makes_another_run_of_the_detector(study):
    config = study.profile.run("detector")
    assert len({run_name(config, "data", "bassed5", teacher) for teacher in ("teacher-a", "teacher-b")}) == 2


def test_stopped_after_an_epoch_and_resumed_is_as_if_never_stopped(study, tmp_path, monkeypatch):
    config = study.profile.run("detector")
    whole = study.obtain(config)
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    other = Study(study.profile, study.manifest, device="cpu")
    shutil.copytree(study.teacher().path, other.folder / "models" / study.teacher().name)
    for done in (1, 2):
        monkeypatch.setenv("SOS_DEADLINE", str(time.time() - 1))
        with pytest.raises(OutOfTime, match=f"after epoch {done} of 3 of the detector"):
            other.obtain(config)
        torch.rand(7)
    monkeypatch.delenv("SOS_DEADLINE")
    resumed = other.obtain(config)
    assert resumed.name == whole.name
    assert_same_result(resumed, whole)


# ---- configuration -------------------------------------------------------------------------------------------------


def test_settings_of_a_detector_are_checked():
    with pytest.raises(ConfigError, match="min_score = 2.0 must be a probability from 0 to 1"):
        RunConfig(role="detector", min_score=2)
    with pytest.raises(ConfigError, match="role = 'detectr' is not one of teacher, baseline, student, detector"):
        RunConfig(role="detectr")
    with pytest.raises(ConfigError, match="no competitor 'oracle'; known: plain full-image network"):
        replace(get_profile("quick"), competitors_trained=("oracle",))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_competitors_hold_the_main_runs_and_each_trained_one_is_planned_with_its_weights(profile):
    rows = profile.competitors()
    for name, role in ((PLAIN, "baseline"), (CROP_TEACHER, "teacher"), (DISTILLED, "student"), (TWICE, "zoom"), (PIPELINE, "detector")):
        assert rows[name] == [profile.run(role, seed) for seed in profile.seeds]
    hinton = rows[LOGIT_ONLY][0]
    assert (hinton.evidence, hinton.w_attn) == ("none", 0)
    assert hinton.with_(evidence=profile.student.evidence, w_attn=profile.student.w_attn) == rows[DISTILLED][0]
    jobs = {job.config: job for job in grid.plan(profile)}
    longer = rows[PLAIN_LONGER][0]
    assert longer.with_(epochs=profile.baseline.epochs) == rows[PLAIN][0]
    assert grid.work(longer) > grid.work(rows[CROP_TEACHER][0]) + grid.work(rows[DISTILLED][0])
    assert PIPELINE in profile.competitors_trained
    for name in profile.competitors_trained:
        assert all(jobs[config].keep_weights for config in rows[name])


# ---- time and table ------------------------------------------------------------------------------------------------


def test_each_way_to_a_stage_decides_as_its_predictions_say(study):
    """What is timed is what was evaluated: the stages of the timed ways are those of the predictions."""
    rows = study.cohort.table.index[study.cohort.table["split"] != "train"].to_numpy()
    labels = study.cohort.scheme.labels
    detector, teacher, baseline = study.obtain(study.profile.run("detector").with_(epochs=3)), study.teacher(), study.baseline()
    for run in (detector, teacher, baseline):
        way, said = latency.way_of(run, teacher, "cpu"), run.predictions
        with torch.no_grad():
            stages = [way(study.store.native([row])[0].copy(), study.store.boxes[row]) for row in rows]
        found = said["found"] == 1 if "found" in said else np.ones(len(said), bool)
        assert [labels[stage] for stage, there in zip(stages, found, strict=True) if there] == said["decided"][found].tolist()
        assert {stage for stage, there in zip(stages, found, strict=True) if not there} <= {-1}


def test_nothing_found_ends_the_way_without_the_teacher(study):
    told = Told(torch.full((1, 4), torch.nan))
    way = latency.found_box(told, study.profile.run("detector"), None, study.profile.run("teacher"), "cpu")
    assert way(study.store.native([0])[0].copy(), study.store.boxes[0]) == -1


def test_models_take_turns_on_each_image_and_their_own_time_is_counted(study):
    order = []

    def way(name, seconds):
        def stage(native, box):
            order.append((name, native.sum(), tuple(box)))
            time.sleep(seconds)
            return 0
        return stage

    took = latency.time_turns({"quick": way("quick", 0), "slow": way("slow", 0.02)}, study.store, np.array([3, 5, 3]))
    assert took.shape == (3, 2) and (took[:, 1] >= 20).all() and took[:, 0].min() < 20
    timed = order[2 * latency.WARM_UP:]
    assert [{name for name, *_ in timed[i:i + 2]} for i in (0, 2, 4)] == [{"quick", "slow"}] * 3
    assert [timed[i][0] for i in (0, 2)] == ["quick", "slow"]  # each image begins with another one
    assert [timed[i][1:] for i in (0, 2, 4)] == [timed[i + 1][1:] for i in (0, 2, 4)]
    assert timed[0][2] == tuple(study.store.boxes[3]) and timed[2][2] == tuple(study.store.boxes[5])


def test_latency_is_written_and_the_table_reads_it_back(written):
    table = tables.competitors(Results(written))
    assert table.data[["median_ms", "low_ms", "high_ms"]].isna().all(axis=None)
    assert (table.shown["time an image, ms"] == NOT_YET).all()
    times = latency.measure_latency(written)
    assert times["model"].tolist() == [PLAIN, CROP_TEACHER, PIPELINE, TWICE] and (times["images"] == 7).all()
    assert times["model"][times["person"]].tolist() == [CROP_TEACHER]
    assert (times["low_ms"] <= times["median_ms"]).all() and (times["median_ms"] <= times["high_ms"]).all() and (times["low_ms"] > 0).all()
    assert times["precision"].eq("fp32").all() and times["threads"].eq(1).all()
    file = written.folder / "latency.csv"
    file.write_text(file.read_text().replace(f"{times['median_ms'][3]:.4g}", "1234.5"))  # the table has what the file says
    table = tables.competitors(Results(written))
    data = table.data.set_index("model")
    assert data.loc[TWICE, "median_ms"] == 1234.5
    assert data.loc[PIPELINE, "median_ms"] == pytest.approx(times["median_ms"][2], rel=1e-3)
    shown = table.shown.set_index("model")["time an image, ms"]
    assert shown[TWICE].startswith("1234.5 (") and shown[CROP_TEACHER].endswith(") and a person")
    assert "7 images" in table.notes[-1] and "1 thread." in table.notes[-1]
    written.profile = replace(written.profile, zoom=written.profile.zoom.with_(lr=0.5))  # times of another run are not this one's
    write_run(written, written.profile.run("zoom"), predictions(written.cohort, 2, 0.5))
    assert tables.competitors(Results(written)).shown.set_index("model")["time an image, ms"][TWICE] == NOT_YET


def test_times_are_measured_once_for_the_same_runs_on_the_same_machine(written, monkeypatch):
    first = latency.obtain(written)
    monkeypatch.setattr(latency, "measure_latency", lambda study: pytest.fail("measured again"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)  # as in the kernel of a notebook, which shares the cores
    assert latency.obtain(written).equals(first)
    measured = []
    monkeypatch.setattr(latency, "measure_latency", measured.append)
    file = written.folder / "latency.csv"
    file.write_text(file.read_text().replace(machine_record("cpu")["processor"], "Abacus"))
    latency.obtain(written)
    file.unlink()
    latency.obtain(written)
    assert measured == [written, written]


def test_without_a_run_there_is_no_time(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    with pytest.raises(RunError, match="train the models first"):
        latency.measure_latency(Study(tiny_with_detector(), tiny_cohort, device="cpu"))
    assert not (tmp_path / "runs" / "tiny" / "latency.csv").exists()


def test_table_of_competitors_without_a_gap_or_without_a_teacher_says_so(written):
    write_run(written, written.profile.run("baseline"), predictions(written.cohort, 0, 0.5))
    assert tables.competitors(Results(written)).shown.set_index("model")["gap closed"][[PIPELINE, TWICE]].tolist() == ["no gap"] * 2
    shutil.rmtree(Results(written).role("baseline")[0].path)
    shown = tables.competitors(Results(written)).shown.set_index("model")
    assert shown["gap closed"][[PIPELINE, TWICE, PLAIN]].tolist() == [NOT_YET] * 3 and (shown.loc[PLAIN] == NOT_YET).all()


def test_a_competitor_without_some_seeds_says_how_many_it_has(written):
    written.profile = replace(written.profile, seeds=(0, 1))
    write_run(written, written.profile.run("teacher", 1), predictions(written.cohort, 1))
    rows = tables.competitors(Results(written)).shown["model"].tolist()
    assert CROP_TEACHER in rows and f"{PLAIN} (1 of 2 seeds)" in rows and LOGIT_ONLY in rows


def test_table_of_competitors_has_the_numbers_of_the_runs(written):
    table = tables.competitors(Results(written))
    data, n = table.data.set_index("model"), int((written.cohort.table["split"] == "test").sum())
    wrong = {PLAIN: 4, CROP_TEACHER: 0, PIPELINE: 1, TWICE: 2}
    for name, count in wrong.items():
        assert data.loc[name, "accuracy_value"] == pytest.approx(1 - count / n)
        if name != TWICE:
            assert data.loc[name, "difference_value"] == pytest.approx((2 - count) / n)
    assert data.loc[[PIPELINE, TWICE], "gap_value"].tolist() == pytest.approx([3 / 4, 2 / 4])
    assert data.loc[PIPELINE, "missed_value"] == pytest.approx(1 / n) and data["missed_value"].notna().sum() == 1
    tested = data["difference_p"].dropna()
    assert set(tested.index) == set(wrong) - {TWICE} and (data["difference_p_holm"].dropna() >= tested).all()
    shown = table.shown.set_index("model")
    assert shown.loc[TWICE, "accuracy against the two-look student"] == "reference"
    assert shown.loc[CROP_TEACHER, ["gap closed", "pointing game, %", "missed, %"]].tolist() == ["–"] * 3
    assert (shown.loc[LOGIT_ONLY] == NOT_YET).all()
    assert shown.loc[[PIPELINE, TWICE], "gap closed"].str.startswith(("0.75 (", "0.50 (")).all()
    assert tables.competitors in tables.TABLES
    assert PIPELINE in tables.machine(Results(written)).data["model"].tolist()
