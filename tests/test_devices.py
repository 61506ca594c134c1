"""One run on two devices, here processes on the CPU: both shares count, both processes agree, and the run is whole."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import frozen_norm
from test_grid import tiny
from torch import nn

from sos import cli, config
from sos.cohort.batches import ViewLoader
from sos.errors import ConfigError, OutOfTime, RunError
from sos.study.fitting import fit
from sos.study.training import Study, evaluate

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory):
    """One thread a process, and results in a folder of these tests' own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.delenv("SOS_DEADLINE", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes started here
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setitem(config.PROFILES, "tiny", profile())
        yield
    torch.set_num_threads(threads)


def profile():
    return tiny(student=tiny().student.with_(batch_size=4, dropout=0.0, w_attn=1.0))


@pytest.fixture(scope="module")
def study(tiny_cohort, _environment):
    study = Study(profile(), tiny_cohort, device="cpu")
    assert study.teacher().weights.is_file()
    return study


@pytest.fixture(scope="module")
def two(study, tmp_path_factory):
    """What each of two processes that train the student together ends with, batch norms as usual and frozen."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "order").write_bytes(pickle.dumps((Study(study.profile, study.manifest, "cpu"), study.profile.run("student"), study.teacher())))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(REPOSITORY / "tests" / "ranks.py")]
    subprocess.run([*command, str(folder / "order")], check=True, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    return {(name, rank): torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for name in ("usual", "frozen") for rank in (0, 1)}


@pytest.mark.parametrize("role", config.ROLES)
def test_shares_of_a_batch_are_the_batch_dealt_out(study, role):
    settings, rows = study.profile.run(role).with_(batch_size=4), study.cohort.subset("train").index.to_numpy()[:8]
    whole, even, odd = (list(ViewLoader(study.store, rows, settings, training=True, share=share)) for share in ((0, 1), (0, 2), (1, 2)))
    assert len(whole) == len(even) == len(odd) == 2
    for batch, first, second in zip(whole, even, odd, strict=True):
        for part, mine, others in zip(batch, first, second, strict=True):
            assert len(mine) == len(others) == 2
            assert torch.equal(torch.stack([mine, others], 1).flatten(0, 1), part)


@pytest.mark.parametrize(("size", "rows"), [(5, 12), (8, 6)])
def test_a_batch_that_cannot_be_shared_is_an_error(study, size, rows):
    with pytest.raises(ConfigError, match=f"a batch of {size} of {rows} images cannot be shared by 2 devices"):
        ViewLoader(study.store, range(rows), study.profile.run("student").with_(batch_size=size), training=True, share=(0, 2))


def test_what_cannot_be_had_is_one_line(study, capfd, monkeypatch):
    for args, words in (["--devices", "0"], "--devices 0"), (["--devices", "3"], "a batch of 8 of 10 images cannot be shared by 3 devices"):
        assert cli.main(["train", "baseline", "--profile", "tiny", "--cohort", str(study.manifest), *args]) == 2
        assert words in (said := capfd.readouterr().err) and said.startswith("sos: ") and said.count("\n") == 1
    for args, words in (["--set", "progressive=0.5"], "blocks asleep"), (["--set", "w_cls=0", "--set", "w_dist=0"], "without L_cls and L_dist"):
        role = "baseline" if "progressive" in args[1] else "student"
        assert cli.main(["train", role, "--profile", "tiny", "--cohort", str(study.manifest), "--devices", "2", *args]) == 2
        assert words in (said := capfd.readouterr().err) and said.endswith("train it on one device\n") and said.count("\n") == 1
    monkeypatch.setattr("sos.study.training.find_spec", lambda name: None)
    assert cli.main(["train", "baseline", "--profile", "tiny", "--cohort", str(study.manifest), "--devices", "2"]) == 2
    assert capfd.readouterr().err == "sos: --devices needs accelerate; install it with `pip install accelerate`\n"


@pytest.mark.slow
def test_a_users_error_in_the_processes_is_one_line_here(study):
    settings = study.profile.run("student").with_(backbone="resnet18_half", student_init="teacher")
    with pytest.raises(RunError, match="^student_init = 'teacher' needs the teacher's backbone resnet16_half, not resnet18_half; use 'scratch'$"):
        Study(study.profile, study.manifest, "cpu", devices=2).obtain(settings)


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(two):
    for name in ("usual", "frozen"):
        for key, weight in two[name, 0]["net"].items():
            statistic = name == "usual" and ("running" in key)
            assert statistic or torch.equal(weight, two[name, 1]["net"][key]), key
        assert two[name, 0]["history"] == two[name, 1]["history"]


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_whole_batch(study, two, monkeypatch, tmp_path):
    """Where batch norms look at no batch. Half the batch alone, the control, is far off."""
    monkeypatch.setattr(nn.BatchNorm2d, "forward", frozen_norm)
    settings, rows = study.profile.run("student"), np.arange(24)
    net, history, _ = fit(settings, study.store, study.cohort, tmp_path / "one.pt", study.teacher(), "cpu")
    share = ViewLoader.create_batch
    monkeypatch.setattr(ViewLoader, "create_batch",
                        lambda self, items: tuple(part[::2] for part in share(self, items)) if self.views.training
                        else share(self, items))
    half, half_history, _ = fit(settings, study.store, study.cohort, tmp_path / "half.pt", study.teacher(), "cpu")

    def answers(net):
        return evaluate(net, study.store, study.cohort, rows, settings)[["p1", "p2", "p3", "p4", "p5"]].to_numpy()

    expected, far = answers(net), answers(half)
    net.load_state_dict(two["frozen", 0]["net"])
    error, control = np.abs(answers(net) - expected).max(), np.abs(far - expected).max()
    assert error < 1e-4 and error < control / 100, (error, control)
    for column in ("train_loss", "L_cls", "L_dist", "L_attn", "valid_loss"):
        assert two["frozen", 0]["history"][column] == pytest.approx(history[column].tolist(), rel=1e-4), column
    assert half_history["L_cls"].tolist() != pytest.approx(history["L_cls"].tolist(), rel=1e-2)


@pytest.mark.slow
def test_a_run_on_two_devices_stops_goes_on_and_is_whole(study, two, capfd):
    """Stopped after its first epoch, it ends as two processes do that nobody stopped."""
    shared = Study(study.profile, study.manifest, "cpu", devices=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutOfTime, match="while training the student on 2 devices"):
        patch.setenv("SOS_DEADLINE", str(time.time() - 1))
        shared.student()
    (checkpoint,) = (study.folder / "models").glob(".student-*.partial/*")
    assert checkpoint.name == "checkpoint.pt" and len(torch.load(checkpoint, weights_only=True)["history"]) == 1
    capfd.readouterr()
    assert cli.main(["train", "student", "--profile", "tiny", "--cohort", str(study.manifest), "--devices", "2"]) == 0
    run = shared.student()
    assert capfd.readouterr().out.startswith(f"{run.path}\naccuracy ")
    assert run.config.batch_size == 4 and run.environment["devices"] == 2 and run.environment["images_a_device"] == 2
    assert run.history["epoch"].tolist() == [1, 2]
    assert run.history["L_attn"].tolist() == pytest.approx(two["usual", 0]["history"]["L_attn"], rel=1e-5)
    for key, weight in run.load().state_dict().items():
        assert torch.equal(weight, two["usual", 0]["net"][key]), key
    files = {"config.json", "metrics.json", "predictions.csv", "mirrored.csv", "history.csv", "environment.json", "weights.safetensors"}
    assert {path.name for path in run.path.iterdir()} == files
