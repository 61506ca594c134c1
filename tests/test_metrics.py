"""Metrics against scikit-learn on random tables, resamples that keep patients whole, and the gap closed on tables made by hand."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from sos.study import metrics
from sos.study.metrics import (attention_metrics, difference, gap_closed, interval, measure, paired, probability_columns, resamples,
                               staging_metrics)


def draw(n, k, seed, signal=1.0):
    """Random targets (all stages present) and probabilities (n, k) that know a little of them."""
    rng = np.random.default_rng(seed)
    target = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    scores = rng.normal(size=(n, k)) + signal * np.eye(k)[target]
    return target, np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def sklearn_values(target, probabilities, weight=None):
    decided = probabilities.argmax(1)
    keep = dict(sample_weight=weight)
    weighted = dict(average="weighted", zero_division=0, **keep)
    return {
        "accuracy": sk.accuracy_score(target, decided, **keep),
        "precision": sk.precision_score(target, decided, **weighted),
        "recall": sk.recall_score(target, decided, **weighted),
        "f1": sk.f1_score(target, decided, **weighted),
        "kappa": sk.cohen_kappa_score(target, decided, weights="quadratic", **keep),
        "stage_error": sk.mean_absolute_error(target, decided, **keep),
        "auroc": sk.roc_auc_score(target, probabilities, multi_class="ovr", average="macro", **keep) if weight is None else None,
    }


@pytest.mark.parametrize(("n", "k", "seed", "signal"), [(60, 5, 0, 1.0), (200, 5, 1, 2.0), (35, 4, 2, 0.0), (80, 3, 3, 5.0),
                                                        (25, 5, 4, -2.0)])
def test_metrics_equal_scikit_learns(n, k, seed, signal):
    target, probabilities = draw(n, k, seed, signal)
    ours = {name: value[0] for name, value in staging_metrics(target, probabilities, np.ones((1, n))).items()}
    for name, value in sklearn_values(target, probabilities).items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name
    decided = probabilities.argmax(1)
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(target, decided, labels=np.unique(target), average="macro", zero_division=0))
    assert ours["within_one"] == pytest.approx((abs(target - decided) <= 1).mean())


def test_a_resample_counts_as_scikit_learns_sample_weights_and_as_repeated_rows():
    target, probabilities = draw(70, 5, 5)
    counts = np.random.default_rng(0).integers(0, 4, (3, 70))
    ours = staging_metrics(target, probabilities, counts)
    for r in range(3):
        repeated = np.repeat(np.arange(70), counts[r])
        again = staging_metrics(target[repeated], probabilities[repeated], np.ones((1, len(repeated))))
        for name, value in ours.items():
            assert value[r] == pytest.approx(again[name][0], abs=1e-9), name
        for name, value in sklearn_values(target, probabilities, counts[r]).items():
            assert value is None or ours[name][r] == pytest.approx(value, abs=1e-9), name
        assert ours["auroc"][r] == pytest.approx(sk.roc_auc_score(target[repeated], probabilities[repeated], multi_class="ovr"), abs=1e-9)


def test_tied_probabilities_count_half_in_auroc():
    target = np.array([0, 0, 1, 1, 1])
    p = np.array([0.2, 0.5, 0.5, 0.5, 0.9])
    ours = staging_metrics(target, np.stack([1 - p, p], 1), np.ones((1, 5)))["auroc"][0]
    assert ours == pytest.approx(sk.roc_auc_score(target, p)) == pytest.approx(5 / 6)


def test_auroc_of_resamples_is_the_share_of_pairs_in_order():
    target, probabilities = draw(120, 4, 8)
    probabilities = probabilities.round(1)  # many ties
    counts = np.random.default_rng(1).integers(0, 3, (20, 120))
    each = []
    for stage in range(4):
        rest = target != stage
        p, q, a, b = probabilities[~rest, stage], probabilities[rest, stage], counts[:, ~rest], counts[:, rest]
        order = (p[:, None] > q) + 0.5 * (p[:, None] == q)  # (images of the stage, others)
        each.append(((a @ order) * b).sum(1) / (a.sum(1) * b.sum(1)))
    assert staging_metrics(target, probabilities, counts)["auroc"] == pytest.approx(np.mean(each, 0), abs=1e-12)


def test_a_stage_absent_from_the_table_is_left_out_of_auroc_and_macro_f1():
    target, probabilities = draw(50, 5, 6)
    target = np.where(target == 4, 3, target)
    ours = staging_metrics(target, probabilities, np.ones((1, 50)))
    each = [sk.roc_auc_score(target == k, probabilities[:, k]) for k in range(4)]
    assert ours["auroc"][0] == pytest.approx(np.mean(each))
    f1 = sk.f1_score(target, probabilities.argmax(1), labels=range(4), average="macro", zero_division=0)
    assert ours["macro_f1"][0] == pytest.approx(f1)


def test_a_perfect_and_a_constant_reader():
    target = np.arange(5).repeat(4)
    perfect = {name: value[0] for name, value in staging_metrics(target, np.eye(5)[target], np.ones((1, 20))).items()}
    assert perfect == pytest.approx({"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "macro_f1": 1, "kappa": 1, "stage_error": 0,
                                     "within_one": 1, "auroc": 1, "ece": 0})
    constant = staging_metrics(target, np.tile([0.1, 0.1, 0.6, 0.1, 0.1], (20, 1)), np.ones((1, 20)))
    assert constant["kappa"][0] == pytest.approx(0) and constant["auroc"][0] == pytest.approx(0.5)
    assert constant["accuracy"][0] == 0.2 and constant["stage_error"][0] == pytest.approx(1.2) and constant["within_one"][0] == 0.6
    assert constant["ece"][0] == pytest.approx(0.4)


def test_calibration_error_equals_bin_by_bin_counting():
    target, probabilities = draw(300, 5, 7, 1.5)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert staging_metrics(target, probabilities, np.ones((1, 300)))["ece"][0] == pytest.approx(expected)


def test_attention_metrics_are_weighted_means_of_the_columns_there_are():
    table = pd.DataFrame({"pointing": [1.0, 0.0, 1.0], "energy": [0.5, 0.1, 0.3]})
    values = attention_metrics(table, np.array([[1, 1, 1], [0, 2, 1]]))
    assert set(values) == {"pointing", "energy"}
    assert values["pointing"] == pytest.approx([2 / 3, 1 / 3]) and values["energy"] == pytest.approx([0.3, 0.5 / 3])


# ---- the bootstrap -------------------------------------------------------------------------------------------------


def predictions(n=80, seed=0, signal=1.0, images_each=1, k=5):
    target, probabilities = draw(n, k, seed, signal)
    table = pd.DataFrame({"patient_id": [f"p{i // images_each}" for i in range(n)], "image": [f"{i:03d}.dcm" for i in range(n)],
                          "target": target})
    return table.assign(**{f"p{j + 1}": probabilities[:, j] for j in range(k)})


def test_a_resample_holds_all_images_of_a_patient_or_none():
    patients = pd.Series(["a", "b", "a", "c", "d", "c", "c", "e"])
    counts = resamples(patients, 500)
    for name in "abcde":
        columns = counts[:, (patients == name).to_numpy()]
        assert (columns == columns[:, :1]).all()
    drawn = counts[:, [0, 1, 3, 4, 7]]  # one image of each patient
    assert (drawn.sum(1) == 5).all() and drawn.mean(0) == pytest.approx(1, abs=0.15)
    assert (drawn == 0).mean() == pytest.approx(0.8**5, abs=0.03)


def test_resamples_are_repeatable_and_follow_the_seed():
    patients = pd.Series(list("abcdef"))
    assert (resamples(patients, 20) == resamples(patients, 20)).all()
    assert (resamples(patients, 20, seed=1) != resamples(patients, 20)).any()


def test_interval_of_accuracy_has_the_width_of_the_binomial():
    table = predictions(400, signal=2.0)
    found = measure(table, 2000)["accuracy"]
    p = (table[probability_columns(table)].to_numpy().argmax(1) == table["target"]).mean()
    half = 1.96 * np.sqrt(p * (1 - p) / 400)
    assert found["value"] == pytest.approx(p)
    assert found["low"] == pytest.approx(p - half, abs=0.01) and found["high"] == pytest.approx(p + half, abs=0.01)


def test_copies_of_a_patients_image_do_not_narrow_the_interval():
    single = predictions(60)
    fourfold = pd.concat([single.assign(image=single["image"] + str(i)) for i in range(4)], ignore_index=True)
    assert measure(fourfold, 300)["accuracy"] == pytest.approx(measure(single, 300)["accuracy"])


def test_measure_tells_of_attention_only_where_there_is_one():
    table = predictions(40)
    assert "pointing" not in measure(table, 20)
    told = measure(table.assign(pointing=1.0, energy=0.25, iou=np.linspace(0, 1, 40)), 20)
    assert told["energy"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25}) and told["iou"]["value"] == pytest.approx(0.5)


def test_resamples_are_drawn_once_for_all_tables_of_the_same_patients():
    one, other = (predictions(40, seed, images_each=2)["patient_id"] for seed in (1, 2))
    counts = resamples(one, 30)
    assert resamples(other, 30) is counts and resamples(one, 30, seed=1) is not counts and resamples(one[1:], 30) is not counts
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 7


def test_resamples_in_many_parts_are_those_in_one(monkeypatch):
    table, other = predictions(90, 1, images_each=2), predictions(90, 2, images_each=2)
    at_once = resamples(table["patient_id"], 50), measure(table, 50), difference(table, other, "auroc", 50)
    monkeypatch.setattr(metrics, "AT_ONCE", 700)  # seven resamples
    monkeypatch.setattr(metrics, "KEPT", 0)
    assert (resamples(table["patient_id"], 50) == at_once[0]).all()
    in_parts = measure(table, 50)
    for name, values in at_once[1].items():
        assert in_parts[name] == pytest.approx(values, abs=1e-12), name
    assert difference(table, other, "auroc", 50) == pytest.approx(at_once[2], abs=1e-12)


def test_memory_of_the_bootstrap_of_many_images_is_bounded():
    table = predictions(20_000)
    tracemalloc.start()
    try:
        measure(table, 150)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 2**20  # all pairs of a stage with the rest would be 500 MiB; 2,000 resamples are measured as 150 are, a part after the other


def test_interval_leaves_out_resamples_without_a_value():
    assert interval(np.array([np.nan, 2.0, 2.0, np.inf])) == {"low": 2.0, "high": 2.0}
    assert all(np.isnan(v) for v in interval(np.array([np.nan])).values())


def test_interval_of_a_calibration_error_holds_its_value_and_reaches_down_to_what_is_calibrated():
    target, probabilities, rng = *draw(200, 5, 8), np.random.default_rng(1)
    target = np.array([rng.choice(5, p=p) for p in probabilities])  # as often right as it says: the true error is 0
    counts = np.concatenate([np.ones((1, 200)), rng.multinomial(200, np.full(200, 1 / 200), 500)])
    values = metrics.calibration_error(target, probabilities, counts)
    plain, ours = interval(values[1:]), metrics.summarise(values, "ece")
    assert plain["low"] > 0.02 and ours["low"] < 0.01  # each resample adds its own chance
    assert ours["low"] == pytest.approx(max(0, 2 * values[0] - plain["high"])) and ours["high"] == pytest.approx(2 * values[0] - plain["low"])
    assert interval(np.array([0.05, 0.06]), 0.03)["high"] == 0.03 and interval(np.array([0.01, 0.02]), 0.03)["low"] == 0.03
    assert metrics.summarise(values, "accuracy") == {"value": values[0], **plain}


def test_a_resample_of_one_stage_alone_has_no_auroc():
    target, probabilities = np.array([0, 0, 0, 0, 1]), np.eye(2)[[0, 0, 0, 0, 1]]
    value = staging_metrics(target, probabilities, np.array([[1, 1, 1, 1, 1], [2, 1, 1, 1, 0]]))["auroc"]
    assert value[0] == 1 and np.isnan(value[1])
    assert metrics.summarise(value)["low"] != 0


def test_probability_columns_are_in_order_of_the_stages():
    assert probability_columns(pd.DataFrame(columns=["p10", "p2", "peak_x", "p1", "patient_id", "pointing"])) == ["p1", "p2", "p10"]


# ---- comparisons ---------------------------------------------------------------------------------------------------


def answers(right):
    """A table of two stages in which image i is decided rightly where `right[i]`."""
    right = np.asarray(right)
    target = np.arange(len(right)) % 2
    p2 = np.where(right, target, 1 - target) * 0.8 + 0.1
    names = [f"{i:03d}" for i in range(len(right))]
    return pd.DataFrame({"patient_id": names, "image": names, "target": target, "p1": 1 - p2, "p2": p2})


def first(n, of=100):
    return answers(np.arange(of) < n)


@pytest.mark.parametrize(("student", "expected"), [(60, 0.0), (75, 0.5), (90, 1.0), (96, 1.2), (45, -0.5)])
def test_gap_closed_on_tables_made_by_hand(student, expected):
    found = gap_closed(first(student), first(60), first(90), 300)
    assert set(found) == {"value", "low", "high"}
    assert found["value"] == pytest.approx(expected)
    assert found["low"] <= expected + 1e-9 and found["high"] >= expected - 1e-9
    if expected in (0.0, 1.0):  # the student repeats one of the two on every resample
        assert found["low"] == pytest.approx(expected) and found["high"] == pytest.approx(expected)


@pytest.mark.parametrize("teacher", [60, 50])
def test_there_is_no_gap_where_the_teacher_is_not_better(teacher):
    assert np.isnan(gap_closed(first(70), first(60), first(teacher), 50)["value"])


def test_comparisons_pair_images_whatever_the_order_of_rows():
    student, baseline, teacher = first(75), first(60), first(90)
    mixed = [table.sample(frac=1, random_state=i) for i, table in enumerate((student, baseline, teacher))]
    assert gap_closed(*mixed, 100) == gap_closed(student, baseline, teacher, 100)
    assert difference(mixed[0], mixed[1], "accuracy", 100) == difference(student, baseline, "accuracy", 100)


def test_difference_is_paired():
    a, b = first(70), first(60)
    found = difference(a, b, "accuracy", 4000)
    assert found["value"] == pytest.approx(0.1)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 100)  # ten images decide; unpaired it would be twice as wide
    assert found["low"] == pytest.approx(0.1 - half, abs=0.015) and found["high"] == pytest.approx(0.1 + half, abs=0.015)
    assert found["p"] < 0.01
    back = difference(b, a, "accuracy", 4000)
    assert (back["value"], back["low"], back["high"]) == pytest.approx((-found["value"], -found["high"], -found["low"]))


def test_difference_of_a_table_with_itself_is_nothing():
    assert difference(first(70), first(70), "kappa", 100) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_tables_about_different_images_cannot_be_compared():
    with pytest.raises(ValueError, match="different images"):
        paired(first(5, 10), first(5, 11))


def test_comparisons_leave_their_tables_as_they_are():
    tables = [first(n).sample(frac=1, random_state=n) for n in (75, 60, 90)]
    before = [table.copy() for table in tables]
    gap_closed(*tables, 20)
    for table, copy in zip(tables, before):
        pd.testing.assert_frame_equal(table, copy)
