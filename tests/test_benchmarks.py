"""The command that measures all ratios: its rows on tiny sizes, rows of libraries that are missing, and what is saved and shown."""

import importlib
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sos.cohort.manifest import read_manifest
from sos.images.reader import GreyImage

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "benchmarks"))  # where each script finds what the benchmarks share
ratios, measure, against, speed, start = (importlib.import_module(name) for name in ("ratios", "measure", "bench_against", "bench_speed",
                                                                                     "bench_start"))

CORES = {"device": "cpu", "processor": "P", "cores": 2, "threads": 2, "python": "3", "torch": "2", "fastai": "2"}  # a record of a machine


@pytest.fixture
def run(tiny_cohort, tmp_path):
    return measure.Bench(tmp_path, read_manifest(tiny_cohort), rounds=1, profile="smoke")


@pytest.fixture
def without_peers(monkeypatch):
    """As if nothing that is compared with were installed."""
    def missing(module):
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)
    monkeypatch.setattr(against, "peer", missing)


@pytest.fixture
def own_home(monkeypatch, tmp_path):
    """A folder with an empty README for everything that is published."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    (tmp_path / "README.md").write_text("before\n<!-- speed -->\n<!-- /speed -->\nafter\n", encoding="utf-8")
    return tmp_path


def every_goal(value: float, device: str = "cpu") -> list:
    """A row of each goal that is measured on the device."""
    return [goal.got(value, f"on {device}", device) for goal in ratios.GOALS if device == "cpu" or goal.gpu is not None]


# ---- what is shared ------------------------------------------------------------------------------------------------


def test_parts_take_turns_and_the_first_turn_does_not_count():
    calls = []
    took = measure.in_turns(3, lambda: calls.append("wait"), a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "wait", "b", "wait"] * 4
    assert set(took) == {"a", "b"} and 0 < took["a"] < 1 and len(took.each["a"]) == 3


def test_a_ratio_is_that_of_the_rounds_and_not_of_the_medians():
    took = measure.Turns({"a": [1.0, 2.0, 9.0], "b": [1.0, 4.0, 3.0]})  # in the last round all was slow
    assert took == {"a": 2.0, "b": 3.0} and took.ratio("a", "b") == 1.0 and took.ratio("b", "a") == 1.0


def test_a_goal_has_its_own_target_on_a_gpu_and_may_be_reached_from_either_side():
    goal = measure.Goal("x", "at most", 1.35, gpu=1.25)
    assert goal.got(1.3).reached and not goal.got(1.3, device="cuda").reached
    assert measure.Goal("x", "at least", 2.0).got(2.0).reached and not measure.Goal("x", "at least", 2.0).got(1.999).reached
    assert goal.got(None).reached is None and measure.Ratio("x", 1.0).reached is None


def test_goals_have_names_of_their_own():
    assert len({goal.what for goal in ratios.GOALS}) == len(ratios.GOALS) == 15


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_a_missing_library_gives_a_row_that_says_so(run, without_peers):
    rows = [against.compare(run, against.CAM, against.cam_against), *against.distillation(run), against.compare(run, against.DICOM, against.dicom)]
    assert [row.what for row in rows] == [goal.what for goal in (against.CAM, *against.LOOPS, against.DICOM)]
    for row, library in zip(rows, ("pytorch_grad_cam", "fasterai.", "fasterai.", "torchdistill.", "fasterai.", "torchdistill.", "fastai.medical"), strict=True):
        assert row.value is None and row.reached is None
        assert re.match(rf"not installed: {library}.*; see tests/benchmarks/requirements.txt", row.note)


def test_a_missing_module_of_this_project_is_no_missing_library(run):
    def broken(_):
        raise ModuleNotFoundError("No module named 'sos.method.none'", name="sos.method.none")
    with pytest.raises(ModuleNotFoundError):
        against.compare(run, against.CAM, broken)


def test_grad_cam_is_measured_over_the_forward_pass_that_it_holds(run):
    row = against.compare(run, against.CAM_FLOOR, against.cam_floor)
    assert row.what == against.CAM_FLOOR.what and row.target == 1.05 and row.value > 0
    assert "32 at once, 96 px" in row.note


def test_our_loop_in_the_comparison_lowers_the_loss_that_it_names(run):
    ours = against.Ours(run)
    for _ in range(4):
        ours.epoch()
    x, y = ours.batches[0]
    torch.manual_seed(0)
    fresh = against.Ours(run)
    with torch.no_grad():
        theirs, own = fresh.teacher(x) / against.TEMPERATURE, fresh.net.train()(x)
        soft = against.TEMPERATURE**2 * F.kl_div((own / against.TEMPERATURE).log_softmax(1), theirs.softmax(1), reduction="batchmean")
        expected = 0.5 * F.cross_entropy(own, y) + 0.5 * soft
    assert ours.losses[0] == pytest.approx(float(expected), rel=1e-3)
    assert len(ours.losses) == 4 * against.STEPS and np.mean(ours.losses[-against.STEPS:]) < np.mean(ours.losses[:against.STEPS])


def test_pictures_must_be_alike_up_to_their_grey_values():
    rng, size = np.random.default_rng(0), np.array([300, 400])
    frame = np.zeros((64, 64))
    frame[8:56] = rng.random((48, 64))
    against.check_alike(frame, 3 * frame + 1, size)
    with pytest.raises(AssertionError):
        against.check_alike(frame, np.roll(frame, 1, 1), size)
    with pytest.raises(AssertionError):
        against.check_alike(frame, -frame, size)


def test_detector_and_teacher_say_the_same_of_an_image_and_its_mirror_image_together():
    pixels = np.random.default_rng(0).random((120, 100), np.float32)
    other = against.Pipeline("smoke", 5)
    one, mirrored = (GreyImage(np.ascontiguousarray(seen), None, {}) for seen in (pixels, pixels[:, ::-1]))
    stages = other.stages([one, mirrored], mirror=True)
    assert stages[0] == stages[1] and set(stages) <= set(range(5))
    assert len(other.stages([one], mirror=False)) == 1


def test_training_has_its_rows_on_tiny_sizes(run):
    rows = speed.training(run)
    assert [row.what for row in rows[1:]] == [speed.LOADER.what, speed.TEACHING.what]
    assert all(row.value > 0 for row in rows)  # how large says nothing on a busy machine
    assert all("resnet16_half, 96 and 64 px, 8 at once" in row.note for row in rows)


def test_the_stem_has_its_row_on_tiny_sizes(run):
    (row,) = speed.stem(run)
    assert row.value > 0 and "96 and 64 px, 8 at once" in row.note


def test_help_names_the_time_of_its_imports():
    assert 0.01 < start.help_imports() < 30


# ---- what is printed, saved and shown ------------------------------------------------------------------------------


def test_the_command_prints_every_row_and_saves_nothing_unasked(monkeypatch, capsys, own_home, run):
    monkeypatch.setattr(ratios, "bench", lambda *asked: nullcontext(run))
    monkeypatch.setattr(ratios, "measured", lambda run: every_goal(1.1, run.device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ratios.main(["--quick"])
    printed = capsys.readouterr().out
    assert all(f"| {goal.what} | {goal.sense} {goal.target:g}" in printed for goal in ratios.GOALS)
    assert f"| {speed.TEACHING.what} | at most 1.35 (1.25 on a GPU) | 1.10, reached | not yet run | on cpu |" in printed
    assert f"| {start.HELP.what} | at most 0.5 | 1.10, **not reached** | – | on cpu |" in printed
    assert not (own_home / "figures").exists() and "<!-- speed -->\n<!-- /speed -->" in (own_home / "README.md").read_text()


def test_quick_figures_are_not_published(capsys):
    with pytest.raises(SystemExit):
        ratios.main(["--quick", "--publish"])
    assert "--quick measures nothing that may be published" in capsys.readouterr().err


def test_rows_of_the_other_device_stay(own_home):
    folder = own_home / "figures" / "speed"
    for device, value, record in (("cpu", 1.0, CORES), ("cuda", 2.0, CORES | {"device": "cuda", "gpu": "G"}), ("cpu", 1.5, CORES)):
        ratios.publish(folder, ratios.as_frame(every_goal(value, device), device), pd.DataFrame([record]))
    table = pd.read_csv(folder / "ratios.csv")
    assert table.groupby("device")["value"].unique().to_dict() == {"cpu": [1.5], "cuda": [2.0]}
    assert not table.duplicated(["what", "device"]).any()
    assert pd.read_csv(folder / "machine.csv").set_index("device")["gpu"].to_dict()["cuda"] == "G"
    text = (folder / "ratios.md").read_text(encoding="utf-8")
    missed = "1.50, **not reached** | 2.00, **not reached** | on cpu; on the GPU on cuda"
    assert f"| {speed.TEACHING.what} | at most 1.35 (1.25 on a GPU) | {missed} |" in text
    assert "Cores: P, 2 cores, 2 threads" in text and "GPU: G; Python 3" in text
    assert (own_home / "README.md").read_text(encoding="utf-8") == f"before\n<!-- speed -->\n{text}<!-- /speed -->\nafter\n"


def test_a_library_that_was_missing_stays_missing_in_what_is_saved(own_home):
    folder = own_home / "figures" / "speed"
    data = ratios.as_frame([against.CAM.got(None, "not installed: x"), against.CAM_FLOOR.got(1.051)], "cpu")
    ratios.publish(folder, data, pd.DataFrame([CORES]))
    block = ratios.readme_block(folder)
    assert f"| {against.CAM.what} | at least 2.8 | not installed | not yet run | not installed: x |" in block
    assert f"| {against.CAM_FLOOR.what} | at most 1.05 | 1.051, **not reached** | not yet run | – |" in block


def test_readme_shows_the_saved_ratios():
    shown = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("<!-- speed -->\n")[2].partition("<!-- /speed -->")[0]
    assert shown == ratios.readme_block(REPOSITORY / "figures" / "speed")


def test_what_is_compared_with_has_exact_versions_and_is_no_dependency():
    lines = (REPOSITORY / "tests" / "benchmarks" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.partition("#")[0]) for line in lines if not line.startswith("#")]
    assert set(ratios.PEERS) < {pin.name for pin in pins} and all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins)
    locked = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert not {canonicalize_name(pin.name) for pin in pins} & {canonicalize_name(line.partition("==")[0]) for line in locked.splitlines()}
