"""Runs on disk: names, weights there and back again, what is missing or broken told plainly."""

import json
import os
import pickle
import platform
import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sos.config import RunConfig
from sos.errors import RunError
from sos.method.models import build
from sos.stages import BASSED5
from sos.study import runs
from sos.study.runs import Run, find_runs, load_network, machine_record, round_weights, run_name, save_weights, training_code

CONFIG = RunConfig(role="baseline", backbone="resnet18_half", frame_px=64)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(2)
    net = build(CONFIG, 5)
    net(torch.randn(4, 1, 64, 64))  # moves the statistics of the norms
    return net.eval()


@pytest.fixture
def folder(tmp_path, net):
    """A finished run with weights."""
    return finish(tmp_path / "models" / "baseline-0123456789ab", net)


def finish(path, net=None, config=CONFIG, teacher=None):
    path.mkdir(parents=True)
    record = {"config": config.resolved(), "scheme": "bassed5", "virtual": True, "patients": 3, "data": "d", "code": "c",
              "teacher": teacher}
    (path / "config.json").write_text(json.dumps(record))
    (path / "metrics.json").write_text(json.dumps({"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}))
    (path / "environment.json").write_text(json.dumps({"seconds": 1.0}))
    (path / "history.csv").write_text("epoch,train_loss\n1,1.5\n2,1.25\n")
    pd.DataFrame({"patient_id": ["001", "002", "002"], "image": ["010", "020", "021"], "split": ["valid", "test", "test"],
                  "stage": [1, 2, 2], "p1": [0.5, 0.25, 0.1]}).to_csv(path / "predictions.csv", index=False)
    if net is not None:
        save_weights(round_weights(net.state_dict()), path / "weights.safetensors")
    return path


# ---- a run's folder ------------------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(folder):
    run = Run(folder)
    assert run.name == "baseline-0123456789ab" and run.scheme is BASSED5
    assert run.config.resolved() == CONFIG.resolved()
    assert run.metrics["accuracy"]["high"] == 0.6 and run.environment == {"seconds": 1.0}
    assert run.history["train_loss"].tolist() == [1.5, 1.25]
    assert run.predictions["patient_id"].tolist() == ["001", "002", "002"]  # names, not numbers
    assert list(run.test.index) == [0, 1] and set(run.test["split"]) == {"test"}


def test_images_whose_names_are_numbers_stay_names(folder):
    assert Run(folder).test["image"].tolist() == ["020", "021"]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(RunError, match="no run here.*config.json is missing"):
        Run(tmp_path)


def test_finished_runs_are_found_by_role_newest_last(tmp_path):
    models = tmp_path / "models"
    paths = [finish(models / name) for name in ("student-b", "teacher-a", "student-a")]
    for age, path in enumerate(paths):
        os.utime(path / "config.json", (1000 + age, 1000 + age))
    (models / "student-unfinished").mkdir()
    assert [run.name for run in find_runs(models, "student")] == ["student-b", "student-a"]
    assert [run.name for run in find_runs(models)] == ["student-b", "teacher-a", "student-a"]
    assert find_runs(tmp_path / "absent") == []


def test_a_run_that_was_killed_before_its_renaming_is_not_found(tmp_path):
    finish(tmp_path / ".student-abc.partial")
    assert find_runs(tmp_path) == [] and find_runs(tmp_path, "student") == []


# ---- names ---------------------------------------------------------------------------------------------------------


def test_the_name_depends_on_all_that_the_result_depends_on_and_no_more():
    name = run_name(CONFIG, "data", "bassed5")
    role, _, key = name.partition("-")
    assert role == "baseline" and len(key) == 12 and int(key, 16) >= 0
    assert run_name(CONFIG.with_(temperature=9.0, window_px=1), "data", "bassed5") == name  # a baseline knows neither
    others = {run_name(CONFIG.with_(lr=0.5), "data", "bassed5"), run_name(CONFIG.with_(seed=1), "data", "bassed5"),
              run_name(CONFIG, "other", "bassed5"), run_name(CONFIG, "data", "franklin4"), run_name(CONFIG, "data", "bassed5", "teacher-x")}
    assert len(others | {name}) == 6


def test_the_name_follows_the_code_that_trains(monkeypatch):
    name = run_name(CONFIG, "data", "bassed5")
    assert len(training_code()) == 64
    monkeypatch.setattr("sos.study.runs.training_code", lambda: "changed")
    assert run_name(CONFIG, "data", "bassed5") != name


# ---- weights -------------------------------------------------------------------------------------------------------


def test_matrices_are_rounded_to_float16_and_all_else_is_kept(net):
    state, rounded = net.state_dict(), round_weights(net.state_dict())
    assert list(rounded) == list(state)
    for name, tensor in state.items():
        if tensor.ndim >= 2:
            assert rounded[name].dtype == torch.float16
            assert torch.allclose(rounded[name].float(), tensor, rtol=2**-11, atol=2**-24)
        else:
            assert rounded[name].dtype == tensor.dtype and torch.equal(rounded[name], tensor)
        assert rounded[name].is_contiguous()
    assert state["body.0.weight"].dtype == torch.float32  # the network itself is left alone


def test_weights_come_back_bit_for_bit_and_the_answer_with_them(tmp_path, net):
    rounded = round_weights(net.state_dict())
    save_weights(rounded, tmp_path / "w.safetensors", {"licence": "MIT"})
    for name, tensor in load_file(tmp_path / "w.safetensors").items():
        assert tensor.dtype == rounded[name].dtype and torch.equal(tensor, rounded[name])
    again = load_network(tmp_path / "w.safetensors", CONFIG, 5)
    assert not again.training
    assert torch.equal(again.head.classifier.weight, rounded["head.classifier.weight"].float())
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(again(x), net(x), atol=0.02) and again(x).std() > 0
    second = round_weights(again.state_dict())  # rounding twice changes nothing
    assert all(torch.equal(second[name], rounded[name]) for name in rounded)


def test_a_run_loads_its_own_network(folder, net):
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(Run(folder).load()(x), net(x), atol=0.02)


def test_a_run_that_kept_no_weights_says_so(tmp_path):
    with pytest.raises(RunError, match="weights of this run were not kept; train it again with `sos train baseline`"):
        Run(finish(tmp_path / "baseline-a")).load()


def test_broken_weights_are_told(folder):
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:1000])
    with pytest.raises(RunError, match="not readable as safetensors"):
        Run(folder).load()


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_named_safetensors_is_refused_and_runs_nothing(folder, tmp_path):
    for write in (pickle.dump, torch.save):
        with open(folder / "weights.safetensors", "wb") as file:
            write({"weights": Evil(tmp_path / "ran")}, file)
        with pytest.raises(RunError, match="not readable as safetensors"):
            Run(folder).load()
        assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran"))).close()  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"config": 1, "scheme": "bassed5"}', '{"config": {}}', "\0"])
def test_a_record_that_is_none_is_told(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(RunError, match="config.json is not the record of a run"):
        Run(folder).load()


@pytest.mark.parametrize(("config", "stages"), [(CONFIG, 4), (CONFIG.with_(backbone="resnet18"), 5),
                                                  (CONFIG.with_(backbone="efficientnet_b0"), 5)])
def test_weights_of_another_network_are_told_in_one_line(folder, config, stages):
    with pytest.raises(RunError, match=f"weights do not fit {config.backbone}") as caught:
        load_network(folder / "weights.safetensors", config, stages)
    assert "\n" not in str(caught.value)


def test_machine_record_names_no_host_and_no_person():
    record = machine_record("cpu")
    assert record["torch"] == torch.__version__.partition("+")[0] and record["cores"] >= 1 and record["device"] == "cpu"
    text = json.dumps(record).lower()
    assert platform.node().lower() not in text and str(os.path.expanduser("~")).lower() not in text


def test_every_field_of_a_config_survives_its_file(tmp_path):
    config = RunConfig(role="student", lr=0.123, attn_distance="cosine", w_dist=0.75, epochs=3, flip=0.0, precision="fp32")
    read = Run(finish(tmp_path / "student-a", config=config, teacher="teacher-a"))
    saved = {name: value for name, value in asdict(read.config).items() if name in config.resolved()}
    assert saved == config.resolved() and read.record["teacher"] == "teacher-a"


def test_run_of_another_version_is_told_in_one_line(tmp_path):
    path = finish(tmp_path / "student-a", config=RunConfig(role="student"))
    record = json.loads((path / "config.json").read_text())
    record["config"]["label_smoothing"] = 0.0
    (path / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="made by another version of this software .*'label_smoothing'.*train it again"):
        Run(path).config


def test_the_hash_of_the_code_covers_every_room_of_the_cohort_that_training_reads():
    """But the manifest: what it says is in the hash of the data."""
    package = Path(runs.__file__).resolve().parents[1]
    files = [package / part for part in runs._TRAINING_CODE if part.endswith(".py")]
    named = {name for file in files for name in re.findall(r"^from (?:\.\.cohort)?\.(\w+) import", file.read_text(), re.M)}
    read = {f"cohort/{name}.py" for name in named - {"manifest"} if (package / "cohort" / f"{name}.py").is_file()}
    assert read == {part for part in runs._TRAINING_CODE if part.startswith("cohort/")}
