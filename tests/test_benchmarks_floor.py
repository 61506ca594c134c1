"""The benchmarks of the floor and of growth: what they count and fit is right, and what they write is whole."""

import mmap
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # where they find each other

from benchmarks import bench_floor, bench_growth, publish, stages, work  # noqa: E402

from sos.config import get_profile  # noqa: E402


pytestmark = pytest.mark.usefixtures("one_thread")  # as both benchmarks compute: other processes disturb that less


# ---- counting ----


def test_operations_of_a_convolution_are_those_counted_by_hand():
    conv, x = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), torch.randn(2, 3, 8, 10)
    forward = 2 * (2 * 5 * 4 * 5) * (3 * 3 * 3)  # a multiplication and an addition for each output number and each weight behind it
    with torch.no_grad():
        looked = work.work_of(lambda: conv(x))
    assert looked.operations == forward
    assert looked.bytes == 4 * (2 * 3 * 8 * 10 + 5 * 3 * 3 * 3 + 2 * 5 * 4 * 5)  # input, weights, output: float32
    learned = work.work_of(lambda: conv(x).sum().backward(), extra_bytes=7)
    assert learned.operations == 2 * forward  # the gradient of the weights; nobody asks for that of the input
    through = work.work_of(lambda: conv(x.requires_grad_()).sum().backward())
    assert through.operations == 3 * forward


def test_operations_agree_with_torchs_counter_and_calls_are_told_apart():
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(),
                           nn.Linear(4 * 36, 5)), torch.randn(3, 1, 6, 6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    with torch.no_grad():
        counted = work.work_of(lambda: net(x))
    assert counted.operations == counter.get_total_flops() > 0
    assert sorted(call.times for call in counted.calls.values()) == [1, 1, 2]  # two equal convolutions are one kind of call


def test_depthwise_convolutions_cost_their_own_channel_only():
    """torch's counter takes the gradient of the weights for that of a dense convolution: eight times too much here."""
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), torch.randn(2, 8, 6, 6, requires_grad=True)
    assert work.work_of(lambda: conv(x).sum().backward()).operations == 3 * 2 * x.numel() * 3 * 3


def test_a_bare_call_gives_what_the_network_asked_for():
    conv, x = nn.Conv2d(2, 6, 3, padding=1).to(memory_format=torch.channels_last), torch.randn(2, 2, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (call,) = work.work_of(lambda: conv(x)).calls.values()
    drawn = [leaf.drawn() for leaf in call.leaves if isinstance(leaf, work.Shape)]
    assert [tuple(tensor.shape) for tensor in drawn] == [(2, 2, 9, 9), (6, 2, 3, 3), (6,)]
    assert {tensor.dtype for tensor in drawn} == {torch.bfloat16}
    call.again()()


def test_students_step_costs_its_own_its_teachers_and_little_more():
    profile = get_profile("smoke")
    amounts = {model: bench_floor.amounts(profile.run(model), profile.run("teacher"), {}) for model in ("teacher", "baseline", "student")}
    (teacher, teacher_looks), (plain, plain_looks), (student, _) = amounts.values()
    assert plain.operations / teacher.operations == pytest.approx((96 / 64) ** 2, rel=0.01)  # as their pictures' areas
    assert 2.9 < plain.operations / plain_looks.operations <= 3  # forward, and the gradients of weights and of inputs but the picture
    assert student.operations == pytest.approx(plain.operations + teacher_looks.operations, rel=0.01)
    assert plain.fixed_bytes > 0  # parameters, whatever the batch


def test_plan_counts_every_run_and_image_once():
    profile, known = get_profile("quick"), {}
    runs = bench_floor.plan_rows(profile, known)
    assert runs["model"].value_counts().to_dict() == {"student": 3, "teacher": 2, "baseline": 1, "zoom": 1, "detector": 1}  # a teacher leaks
    train = 1800 - 180 - 450
    baseline = runs[runs["model"] == "baseline"].iloc[0]
    assert runs.loc[runs["model"] == "teacher", "images"].tolist() == [16 * (n // 16) * 16 for n in (train, train + 450)]
    assert (baseline["images"], baseline["steps"]) == (12 * (train // 8) * 8, 12 * (train // 8))
    training, looking = bench_floor.amounts(profile.baseline, profile.teacher, known)
    assert baseline["operations"] == baseline["images"] * training.operations + (12 * 180 + 2 * 630) * looking.operations


def test_minutes_of_a_card_are_those_of_its_tightest_limit():
    profile = replace(get_profile("paper"), at_once=2, run_gib=10.0)
    runs = pd.DataFrame([{"images": 10, "operations": 6e16, "bytes": 1e12, "launches": 100}])
    table = bench_floor.plan_minutes(profile, runs, (120.0, 60.0), "cuda").set_index("device")
    card = bench_floor.CARDS[0]
    assert table.loc[card.name, "minutes"] == pytest.approx(6e16 / (bench_floor.SHARE * card.operations) / 60)
    assert table.loc[card.name, "limit"] == "operations" and table.loc[card.name, "kind"] == "computed, not measured"
    assert table["minutes"].iloc[:2].tolist() == [2.0, 1.0]
    slow = bench_floor.plan_minutes(profile, runs.assign(launches=10**9), (1.0, 1.0), "cuda").set_index("device")
    assert slow.loc[card.name, "limit"] == "calls" and slow.loc[card.name, "minutes"] == pytest.approx(10**9 * bench_floor.LAUNCH_S / 2 / 60)
    full = bench_floor.plan_minutes(replace(profile, run_gib=20.0), runs.assign(launches=10**9), (1.0, 1.0), "cuda").set_index("device")
    assert full.loc["A10 (24 GB)", "minutes"] == pytest.approx(2 * full.loc[card.name, "minutes"])  # 24 GB hold one


# ---- fitting ----


def test_exponent_of_known_data():
    x = np.array([1.0, 3.0, 10.0, 30.0])
    value, low, high, points = publish.exponent(x, 7 * x**1.5)
    assert (value, low, high) == pytest.approx((1.5, 1.5, 1.5)) and points == 4
    noisy = publish.exponent(x, x * np.exp([0.1, -0.1, 0.1, -0.1]))
    assert noisy.low < noisy.value < noisy.high and noisy.value == pytest.approx(1, abs=0.1)
    from scipy.stats import linregress, t

    line = linregress(np.log(x), np.log(x) + [0.1, -0.1, 0.1, -0.1])
    assert noisy.value == pytest.approx(line.slope) and noisy.high == pytest.approx(line.slope + t.ppf(0.975, 2) * line.stderr)
    with pytest.raises(ValueError, match="needs three"):
        publish.exponent([1, 2], [1, 2])


def test_memory_that_stays_flat_has_no_exponent_and_growth_is_told():
    x = [100, 300, 1000, 3000]
    held = pd.concat([pd.DataFrame({"series": "patients", "stage": stage, "x": x, "seconds": 1.0, "own_mib": own})
                      for stage, own in (("store", [10, 30, 100, 300]), ("loader", [40, 45, 42, 48]))])
    found = bench_growth.fits(held).set_index(["stage", "quantity"])
    assert found.loc[("store", "memory"), "value"] == pytest.approx(1) and ("loader", "memory") not in found.index
    assert bench_growth.grown(bench_growth.fits(held)) == ["decode to the store holds more for more patients: exponent 1.00 (1.00 to 1.00)"]


def test_own_memory_is_what_is_held_above_the_beginning():
    with stages.Watched() as watched:
        held = mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # an array may lie in memory that was held before
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        time.sleep(3 * stages.EVERY_S)
        held.close()
    assert 39 < watched.own < 60
    assert watched.peak > 40 and watched.seconds > 0


def test_repeated_manifest_links_the_drawn_files(tiny_cohort, tmp_path):
    manifest = bench_growth.repeated(tiny_cohort, tmp_path / "all", 50)
    from sos.cohort.manifest import read_manifest

    cohort = read_manifest(manifest)
    assert len(cohort.table) == cohort.table["patient_id"].nunique() == cohort.table["image"].nunique() == 50
    assert cohort.image_path(0).samefile(cohort.image_path(24)) and cohort.image_path(0).read_bytes()
    assert not cohort.image_path(0).samefile(cohort.image_path(1))


# ---- what is written ----


def test_small_floor_writes_tables_figure_and_machine(tmp_path, capsys):
    bench_floor.main(["--small", "--device", "cpu", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "floor_smoke_cpu.csv")
    assert list(table)[:6] == ["step", "operations", "bytes", "measured_ms", "floor_ms", "ratio"]
    assert [name.split()[0] for name in table["step"]] == ["draw", "decode", "augment", *["train"] * 4, "Grad-CAM", "losses", "evaluate", "train"]
    assert (table["ratio"] > 0).all()  # how large says nothing after two rounds on a busy machine
    assert np.allclose(table["ratio"], table["measured_ms"] / table["floor_ms"], rtol=1e-4)
    assert (table["operations"] > 0).tolist() == [False] * 3 + [True] * 5 + [False] + [True] * 2
    plan = pd.read_csv(tmp_path / "floor_plan_smoke_cpu.csv")
    assert plan["kind"].tolist() == ["from measured speed"] * 2 + ["computed, not measured"] * 3
    kinds = pd.read_csv(tmp_path / "floor_runs_smoke_cpu.csv")
    assert kinds["share"].sum() == pytest.approx(1, abs=1e-4) and kinds["runs"].sum() == plan["runs"][0]
    assert (tmp_path / "floor_smoke_cpu.png").stat().st_size > 20_000 and '"processor"' in (tmp_path / "floor_smoke_cpu_machine.json").read_text()
    assert "computed, not measured" in capsys.readouterr().out


@pytest.mark.slow
def test_small_growth_writes_tables_figure_and_machine(tmp_path, capsys):
    bench_growth.main(["--small", "--device", "cpu", "--out", str(tmp_path)])
    data, found = pd.read_csv(tmp_path / "growth.csv"), pd.read_csv(tmp_path / "growth_fits.csv")
    patients = data[data["series"] == "patients"]
    to_the_top = ("answers", "evaluate", "loader", "metrics", "store")
    assert patients.groupby("stage")["x"].apply(list).to_dict() == {"audit": [4, 8], "draw": [4, 8], **dict.fromkeys(to_the_top, [4, 8, 16])}
    assert (data["seconds"] > 0).all() and (data["peak_mib"] > 50).all()
    times = found[(found["series"] == "patients") & (found["quantity"] == "time")]
    assert set(times["stage"]) == set(to_the_top) and (times["points"] == 3).all()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert (tmp_path / "growth.png").stat().st_size > 20_000 and '"processor"' in (tmp_path / "growth_machine.json").read_text()
    assert "16 patients, store" in capsys.readouterr().out
