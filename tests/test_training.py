"""Training a tiny study: runs are made once, found again, stopped in time and resumed to the same numbers."""

import json
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import AvgSmoothLoss

from sos.cohort.batches import ViewLoader
from sos.cohort.manifest import BOX, read_manifest
from sos.cohort.views import Views
from sos.config import CAM_LAYERS, get_profile
from sos.errors import ConfigError, OutOfTime
from sos.method.cam import box_mask, explain, peak
from sos.method.models import build
from sos.study import fitting, training
from sos.study.fitting import fit
from sos.study.grid import find
from sos.study.metrics import measure
from sos.study.runs import Run
from sos.study.training import Study, evaluate, frame_boxes, localise, train, use_bf16


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes):
    """A profile of seconds: 64 pixels, three epochs."""
    base = get_profile("smoke")
    small = dict(frame_px=64, window_px=32, epochs=3, batch_size=4, backbone="resnet18_half", output_stride=16, precision="fp32",
                 dropout=0.1, student_init="scratch", w_cls=1.0, w_dist=0.5, w_attn=1.0)
    roles = {role: getattr(base, role).with_(**small) for role in ("teacher", "baseline", "student")}
    return replace(base, **{"name": "tiny", "patients": 24, "valid_share": 0.25, "test_share": 0.25, "native_px": 128, "bootstrap": 50,
                            "seeds": (0,)} | roles | changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def study(home, tiny_cohort, monkeypatch):
    """The tiny profile on the tests' cohort; its runs are shared by the tests of this file."""
    monkeypatch.setenv("SOS_HOME", str(home))
    monkeypatch.delenv("SOS_DEADLINE", raising=False)
    return Study(tiny(), tiny_cohort, device="cpu")


def assert_same_result(a: Run, b: Run):
    pd.testing.assert_frame_equal(a.predictions, b.predictions)
    pd.testing.assert_frame_equal(a.history, b.history)
    assert a.metrics == b.metrics
    assert a.weights.read_bytes() == b.weights.read_bytes()


# ---- one run -------------------------------------------------------------------------------------------------------


def test_a_student_is_trained_after_its_teacher_and_tells_its_terms(study):
    run = study.student()
    assert run.config.resolved() == study.profile.run("student").resolved()
    assert run.record["teacher"] == study.teacher().name and run.record["virtual"] and run.record["data"] == study.store.digest
    history = run.history
    assert history["epoch"].tolist() == [1, 2, 3]
    assert (history[["train_loss", "valid_loss", "L_cls", "L_dist", "L_attn"]] > 0).all(axis=None)
    weights = run.config
    total = weights.w_cls * history["L_cls"] + weights.w_dist * history["L_dist"] + weights.w_attn * history["L_attn"]
    assert history["train_loss"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-4)
    assert not {"L_cls", "L_dist", "L_attn"} & set(study.teacher().history)
    assert not list(study.folder.rglob("*.partial")) and not list(study.folder.rglob("checkpoint*"))


def test_validation_loss_is_plain_cross_entropy_of_the_validation_images(study):
    for run in (study.student(), study.teacher()):
        valid = run.predictions[run.predictions["split"] == "valid"]
        p = valid[["p1", "p2", "p3", "p4", "p5"]].to_numpy()
        expected = -np.log(p[np.arange(len(p)), valid["target"]]).mean()
        assert run.history["valid_loss"].iloc[-1] == pytest.approx(expected, rel=0.02)  # the saved weights are rounded
        accuracy = (valid["decided"] == valid["stage"]).mean()
        assert run.history["valid_accuracy"].iloc[-1] == pytest.approx(accuracy, abs=1.01 / len(valid))


def test_predictions_are_of_every_held_out_image_and_of_no_other(study):
    table = study.cohort.table
    for run in (study.student(), study.teacher()):
        held_out = table[table["split"] != "train"]
        assert run.predictions["image"].tolist() == held_out["image"].tolist()
        assert run.predictions["stage"].tolist() == held_out["stage"].tolist()
        p = run.predictions[["p1", "p2", "p3", "p4", "p5"]].to_numpy()
        assert p.sum(1) == pytest.approx(1, abs=1e-4)
        assert (run.predictions["decided"] == p.argmax(1) + 1).all()
        assert run.metrics.keys() == measure(run.test, 5).keys()
        assert run.metrics["accuracy"]["value"] == pytest.approx((run.test["decided"] == run.test["stage"]).mean())
    assert {"pointing", "energy", "iou", "peak_x"} <= set(study.student().predictions) and "pointing" not in study.teacher().predictions


def test_saved_predictions_are_those_of_the_saved_weights(study):
    for run in (study.student(), study.teacher()):
        rows = study.cohort.table.index[study.cohort.table["split"] != "train"].to_numpy()
        again = evaluate(run.load(), study.store, study.cohort, rows, run.config)
        for column in [c for c in again if c[0] == "p" and c[1:].isdigit() or c in ("energy", "iou", "pointing")]:
            assert again[column].to_numpy(float) == pytest.approx(run.predictions[column].to_numpy(float), abs=1e-4), column


def test_a_finished_run_is_found_and_not_trained_again(study, monkeypatch):
    run = study.student()
    written = (run.path / "config.json").stat().st_mtime_ns
    monkeypatch.setattr("sos.study.fitting.fit", lambda *_, **__: pytest.fail("trained again"))
    again = Study(study.profile, study.manifest, device="cpu")
    assert again.student().path == run.path and again.teacher().path == study.teacher().path
    assert (run.path / "config.json").stat().st_mtime_ns == written


def test_a_changed_setting_is_another_run_and_an_idle_one_is_not(study, monkeypatch):
    asked = []

    def note(self, config, teacher, path, keep_weights):
        asked.append(path.name)
        raise KeyError

    monkeypatch.setattr(Study, "_train", note)
    baseline = study.profile.run("baseline")
    for config in (baseline, baseline.with_(w_attn=9.0, window_px=7), baseline.with_(lr=0.5)):
        with pytest.raises(KeyError):
            study.obtain(config)
    assert asked[0] == asked[1] != asked[2]


def test_weight_decay_shrinks_kernels_and_leaves_biases_and_norms(study, tmp_path):
    """At a learning rate near 0 nothing is learned, but lr · decay shrinks what decays: here by a tenth in all."""
    config = study.profile.run("baseline").with_(epochs=1, lr=1e-9, weight_decay=0.0)
    still, _, _ = fit(config, study.store, study.cohort, tmp_path / "a.pt", None, "cpu")
    shrunk, _, _ = fit(config.with_(weight_decay=1e8), study.store, study.cohort, tmp_path / "b.pt", None, "cpu")
    for (name, before), after in zip(still.named_parameters(), shrunk.parameters(), strict=True):
        ratio = float(after.detach().norm() / before.detach().norm().clamp_min(1e-12))
        assert ratio < 0.95 if before.ndim > 1 else torch.allclose(after, before, atol=1e-6), name


def test_a_run_without_weights_is_trained_again_only_where_they_are_wanted(study):
    config = study.profile.run("baseline").with_(epochs=1)
    bare = study.obtain(config, keep_weights=False)
    assert not bare.weights.exists()
    stamp = (bare.path / "config.json").stat().st_mtime_ns
    assert (study.obtain(config, keep_weights=False).path / "config.json").stat().st_mtime_ns == stamp
    kept = study.obtain(config)
    assert kept.path == bare.path and kept.weights.is_file()
    pd.testing.assert_frame_equal(kept.predictions, bare.predictions)
    assert study.obtain(config, keep_weights=False).weights.is_file()


def test_the_saved_record_names_no_path_of_this_machine(study):
    for run in (study.student(), study.teacher()):
        for file in ("config.json", "metrics.json", "environment.json", "history.csv", "predictions.csv"):
            assert str(study.folder.parent) not in (run.path / file).read_text()
        assert run.environment["precision"] == "fp32" and run.environment["seconds"] > 0


# ---- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "changes"), [("student", {}), ("baseline", {}), ("student", {"progressive": 0.6, "cam_layer": "previous"}),
                                              ("teacher", {"progressive": 0.6})])
def test_stopped_after_the_first_epoch_and_resumed_is_as_if_never_stopped(study, role, changes, tmp_path, monkeypatch):
    config = study.profile.run(role).with_(**changes)
    whole = study.obtain(config)
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    other = Study(study.profile, study.manifest, device="cpu")
    if role == "student":
        shutil.copytree(study.teacher().path, other.folder / "models" / study.teacher().name)
    for done in (1, 2):  # stopped twice
        monkeypatch.setenv("SOS_DEADLINE", str(time.time() - 1))
        with pytest.raises(OutOfTime, match=f"after epoch {done} of 3 of the {role}; the next call goes on"):
            other.obtain(config)
        (partial,) = (other.folder / "models").glob(f".{role}-*.partial")
        assert len(torch.load(partial / "checkpoint.pt", weights_only=True)["history"]) == done
        assert not list((other.folder / "models").glob(f"{role}-*"))
        torch.rand(7)  # other people's draws in between
    monkeypatch.delenv("SOS_DEADLINE")
    resumed = other.obtain(config)
    assert resumed.name == whole.name
    assert_same_result(resumed, whole)
    assert not list((other.folder / "models").glob(".*"))


@pytest.mark.parametrize(("apart_s", "times"), [(0.0, 2), (3600.0, 1)])
def test_short_epochs_are_not_each_kept(study, apart_s, times, tmp_path, monkeypatch):
    """The first is, then what ends so much later, and never the last, after which the run is whole."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    kept, keep = [], fitting.Checkpoints._keep
    monkeypatch.setattr(fitting.Checkpoints, "_keep", lambda self: kept.append(self.epoch) or keep(self))
    monkeypatch.setattr(fitting, "KEEP_S", apart_s)
    run = Study(study.profile, study.manifest, device="cpu").obtain(study.profile.run("baseline").with_(epochs=3))
    assert kept == list(range(times)) and len(run.history) == 3


def test_the_loss_kept_on_its_device_is_smoothed_as_fastai_does():
    ours, theirs = fitting.LossThere(), AvgSmoothLoss()
    for loss in torch.rand(5, generator=torch.Generator().manual_seed(1)):
        for metric in (ours, theirs):
            metric.accumulate(SimpleNamespace(loss=loss))
        assert torch.equal(ours.value, theirs.value) and ours.count == theirs.count


def test_a_deadline_far_away_stops_nothing(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    monkeypatch.setenv("SOS_DEADLINE", str(time.time() + 3600))
    assert len(Study(study.profile, study.manifest, device="cpu").obtain(study.profile.run("baseline").with_(epochs=2)).history) == 2


def test_a_fault_in_training_leaves_no_finished_run(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    other = Study(study.profile, study.manifest, device="cpu")
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyError("disk gone")))
    config = study.profile.run("baseline").with_(epochs=1)
    with pytest.raises(KeyError, match="disk gone"):
        other.obtain(config)
    assert not list((other.folder / "models").glob("baseline-*"))
    monkeypatch.undo()
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    assert other.obtain(config).metrics["accuracy"]["value"] >= 0


# ---- how a student begins and what it sees -------------------------------------------------------------------------


def test_a_student_may_begin_from_its_teachers_weights(study, tmp_path):
    config = study.profile.run("student").with_(student_init="teacher", epochs=1, lr=1e-12, weight_decay=0.0)
    net, *_ = fit(config, study.store, study.cohort, tmp_path / "c.pt", study.teacher(), "cpu")
    teacher = study.teacher().load()
    for name, weight in net.named_parameters():
        assert torch.allclose(weight, teacher.get_parameter(name), atol=1e-6), name


def test_another_backbone_cannot_begin_from_the_teachers_weights(study, tmp_path):
    config = study.profile.run("student").with_(student_init="teacher", backbone="resnet18")
    with pytest.raises(ConfigError, match="needs the teacher's backbone resnet18_half, not resnet18; use 'scratch'"):
        fit(config, study.store, study.cohort, tmp_path / "c.pt", study.teacher(), "cpu")


def test_a_student_of_another_backbone_learns_from_the_same_teacher(study, tmp_path):
    config = study.profile.run("student").with_(backbone="efficientnet_b0", output_stride=32, epochs=1, batch_size=8)
    net, history, seconds = fit(config, study.store, study.cohort, tmp_path / "c.pt", study.teacher(), "cpu")
    assert len(history) == 1 and seconds > 0 and not net.training
    assert history.loc[0, ["L_cls", "L_dist", "L_attn"]].gt(0).all()


def test_a_student_may_name_the_backbone_of_its_teacher(study):
    config = study.profile.run("student").with_(teacher_backbone="resnet16_half", epochs=1)
    run = study.obtain(config, keep_weights=False)
    teacher = study.obtain(study.profile.teacher_of(config))
    assert teacher.config.backbone == "resnet16_half" and run.record["teacher"] == teacher.name != study.teacher().name
    assert [found.name for found in find(study, [config])] == [run.name]


def test_the_students_window_is_the_teachers(study, tmp_path, monkeypatch):
    seen = []
    views = Views.__call__

    def spy(self, rows):
        batch = views(self, rows)
        seen.append([tuple(part.shape[1:]) for part in batch])
        return batch

    monkeypatch.setattr(Views, "__call__", spy)
    fit(study.profile.run("student").with_(epochs=1, window_px=200), study.store, study.cohort, tmp_path / "c.pt", study.teacher(), "cpu")
    assert [(1, 64, 64), (1, 32, 32), (4,), ()] in seen and [(1, 64, 64), ()] in seen
    assert all(shape != (1, 200, 200) for batch in seen for shape in batch)


def test_overrides_reach_the_run(study, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "get_profile", lambda name: study.profile)
    monkeypatch.setattr(Study, "obtain", lambda self, config: asked.append(config))
    train("baseline", "tiny", str(study.manifest), seed=4, overrides={"lr": 0.25})
    assert asked == [study.profile.run("baseline", 4).with_(lr=0.25)]
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        train("baseline", "tiny", str(study.manifest), overrides={"lrr": 0.25})


def test_the_virtual_cohort_is_drawn_where_no_manifest_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    study = Study(tiny(patients=5), device="cpu")
    assert study.cohort.path == tmp_path / "runs" / "tiny" / "cohort" / "manifest.csv"
    assert study.cohort.virtual and len(study.cohort.table) == 5
    assert study.store.sizes.max() <= 128 and (study.folder / "cache").is_dir()


# ---- where a network looks -----------------------------------------------------------------------------------------


def test_frame_boxes_are_the_experts_boxes_in_the_still_frame(study):
    rows = np.array([0, 3, 11])
    longer = study.store.sizes[rows].max(1)
    boxes = study.cohort.table.loc[rows, BOX].to_numpy() * study.store.scale[rows, None]
    margin = (longer[:, None] - study.store.sizes[rows][:, ::-1]) / 2
    expected = (boxes + np.tile(margin, 2)) / longer[:, None]
    assert frame_boxes(study.store, rows).numpy() == pytest.approx(expected, abs=1e-5)


def test_maps_that_are_the_box_agree_with_it_and_maps_elsewhere_do_not():
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.75]] * 4)
    inside = box_mask(boxes[:1], 96)
    outside = box_mask(torch.tensor([[0.625, 0.125, 0.875, 0.375]]), 96)
    values = localise(torch.cat([inside, outside, torch.zeros(1, 96, 96), inside + outside]), boxes)
    assert values["pointing"][:3].tolist() == [1, 0, 0]
    assert values["energy"][:3] == pytest.approx([1, 0, 0], abs=1e-6) and values["iou"][:3] == pytest.approx([1, 0, 0], abs=1e-6)
    assert values["energy"][3] == pytest.approx(0.5) and values["iou"][3] == pytest.approx(0.5)
    assert all(v.dtype == float and v.shape == (4,) for v in values.values())


def test_evaluation_looks_where_the_asked_layer_does(study):
    torch.manual_seed(0)
    config, rows = study.profile.run("baseline").with_(output_stride=32), np.arange(5)
    net = build(config, 5).eval()
    frames = ViewLoader(study.store, rows, config, training=False).views(rows)[0]
    tables = {layer: evaluate(net, study.store, study.cohort, rows, config.with_(cam_layer=layer)) for layer in CAM_LAYERS}
    for layer, side in (("last", 2), ("previous", 4)):
        cams = explain(net, frames, layer=layer)[1]
        assert cams.shape == (5, side, side)
        assert tables[layer][["peak_x", "peak_y"]].to_numpy() == pytest.approx(peak(cams).numpy(), abs=1e-6)
    assert not tables["last"]["energy"].equals(tables["previous"]["energy"]) and tables["last"]["p1"].equals(tables["previous"]["p1"])


def test_evaluation_leaves_the_network_as_it_was(study):
    torch.manual_seed(0)
    config = study.profile.run("baseline")
    net = build(config, 5).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    table = evaluate(net, study.store, study.cohort, np.arange(5), config)
    assert len(table) == 5 and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    with torch.no_grad():
        x, target = ViewLoader(study.store, np.arange(5), config, training=False).views(np.arange(5))
        loss = F.cross_entropy(net(x), target).item()
    p = table[["p1", "p2", "p3", "p4", "p5"]].to_numpy()
    assert -np.log(p[np.arange(5), table["target"]]).mean() == pytest.approx(loss, rel=1e-4)


def test_precision_is_what_was_asked_for(monkeypatch):
    assert use_bf16("bf16", "cpu") and not use_bf16("fp32", "cuda") and use_bf16("auto", "cuda:0")
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        assert use_bf16("auto", "cpu") is able


def test_the_split_given_to_a_study_follows_its_profile(study):
    expected = read_manifest(study.manifest, valid_share=0.25, test_share=0.25, seed=study.profile.cohort_seed).table["split"]
    assert study.cohort.table["split"].equals(expected)
    assert json.loads((study.student().path / "config.json").read_text())["patients"] == len(expected)
