"""Calibration, rejection and age against closed forms and other libraries; the table and the figure from runs on disk."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk
from test_figures import texts
from test_tables import finished, held_out, predictions, shown, study, write_run  # noqa: F401  (two fixtures among them)

from sos import predict
from sos.images.reader import read_image
from sos.predict import load_stager
from sos.study import result_figures, results, runs, tables, trust
from sos.study.metrics import calibration_error, probability_columns

STAGES = 5


def drawn(n, seed=0, too_sure=1.0):
    """A predictions table whose targets are drawn from its probabilities; then its logits are multiplied by `too_sure`."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, STAGES))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=STAGES - 1)
    names = [f"{i:05d}" for i in range(n)]
    table = pd.DataFrame({"patient_id": names, "image": names, "stage": target + 1, "target": target})
    q = trust.scaled(p, 1 / too_sure)
    return table.assign(**{f"p{k + 1}": q[:, k] for k in range(STAGES)})


def ones(n):
    return np.ones((1, n))


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_calibrated_probabilities_need_a_temperature_of_one():
    assert trust.fit_temperature(drawn(20000)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_the_temperature_undoes_a_factor_of_the_logits(factor):
    assert trust.fit_temperature(drawn(20000, too_sure=factor)) == pytest.approx(factor * trust.fit_temperature(drawn(20000)), rel=1e-3)


def test_the_fitted_temperature_has_the_smallest_loss_of_all():
    table = drawn(300, 1, 2.0)
    best = sk.log_loss(table["target"], trust.answers(table, trust.fit_temperature(table))[0])
    assert all(sk.log_loss(table["target"], trust.answers(table, t)[0]) >= best - 1e-7 for t in np.geomspace(*trust.BOUNDS, 400))


def test_the_temperature_is_one_where_the_validation_split_is_tiny_and_stays_within_its_bounds():
    assert trust.fit_temperature(drawn(trust.FEWEST - 1, too_sure=3.0)) == 1.0
    assert trust.fit_temperature(drawn(trust.FEWEST, too_sure=3.0)) > 1.5
    table = drawn(200)
    right = table.assign(target=table[probability_columns(table)].to_numpy().argmax(1))
    wrong = table.assign(target=table[probability_columns(table)].to_numpy().argmin(1))
    assert trust.fit_temperature(right) == pytest.approx(trust.BOUNDS[0], rel=1e-3)
    assert trust.fit_temperature(wrong) == pytest.approx(trust.BOUNDS[1], rel=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 10.0])
def test_scaling_keeps_the_order_of_the_stages_and_makes_probabilities(temperature):
    p = trust.answers(drawn(500))[0]
    q = trust.scaled(p, temperature)
    assert q.sum(1) == pytest.approx(1) and (q.argsort(1) == p.argsort(1)).all()
    assert q == pytest.approx(p ** (1 / temperature) / (p ** (1 / temperature)).sum(1, keepdims=True))


def test_scaling_takes_certainty():
    p = np.array([[1.0, 0.0, 0.0]])
    assert trust.scaled(p, 2.0) == pytest.approx(p) and np.isfinite(trust.log_loss(p, np.array([2]))).all()


def test_calibration_error_falls_on_a_table_that_is_too_sure():
    valid, test = drawn(2000, 2, 3.0), drawn(2000, 3, 3.0)
    before, after = (calibration_error(target, p, ones(2000))[0] for p, target, _ in
                     (trust.answers(test), trust.answers(test, trust.fit_temperature(valid))))
    assert before > 0.15 and after < 0.03


def test_scores_equal_scikit_learns():
    p, target, _ = trust.answers(drawn(150, 4))
    assert trust.log_loss(p, target).mean() == pytest.approx(sk.log_loss(target, p))
    assert trust.brier_score(p, target).mean() == pytest.approx(sum(sk.brier_score_loss(target == k, p[:, k]) for k in range(STAGES)))


def test_a_reliability_diagram_has_bins_of_equal_mass_and_intervals_that_hold_a_calibrated_network():
    table = drawn(1000, 5)
    points = trust.reliability(table, 500)
    assert (points["n"] == 100).all() and points["confidence"].is_monotonic_increasing
    assert ((points["low"] <= points["accuracy"]) & (points["accuracy"] <= points["high"])).all()
    assert (points["confidence"].between(points["low"], points["high"])).sum() >= 8
    assert np.average(points["accuracy"], weights=points["n"]) == pytest.approx(trust.answers(table)[2].mean())
    assert len(trust.reliability(table.head(trust.BIN_IMAGES - 1), 20)) == 1


# ---- rejection -------------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_lowest_that_keeps_the_target(monkeypatch):
    monkeypatch.setattr(trust, "LEAST_KEPT", 2)
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    right = np.array([True, False, True, True, False, False])
    assert trust.choose_threshold(score, right, 0.75) == 0.6  # 3 of 4; 2 of 3 before, 3 of 5 after
    assert trust.choose_threshold(score, right, 0.6) == 0.5
    assert trust.choose_threshold(score, right, 0.8) == np.inf  # only the first one alone
    assert trust.choose_threshold(score, right, 0.0) == 0.4
    shuffled = np.array([3, 0, 5, 1, 4, 2])
    assert trust.choose_threshold(score[shuffled], right[shuffled], 0.75) == 0.6


def test_the_threshold_takes_equals_together_and_needs_enough_images(monkeypatch):
    score, right = np.array([0.9, 0.9, 0.9, 0.2]), np.array([True, True, False, True])
    assert trust.choose_threshold(score, right, 0.7) == np.inf
    monkeypatch.setattr(trust, "LEAST_KEPT", 1)
    assert trust.choose_threshold(score, right, 0.7) == 0.2  # 3 of 4; 2 of 3 are too few, and the first two cannot be told from the third
    assert trust.choose_threshold(score, right, 0.8) == np.inf


def test_risk_and_coverage_of_a_perfect_a_random_and_a_reversed_order():
    right = np.arange(10) < 7
    risk, area = trust.risk_coverage(np.arange(10.0)[::-1], right, ones(10))
    assert risk[0] == pytest.approx([0] * 7 + [1 / 8, 2 / 9, 3 / 10]) and area[0] == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 10)
    assert trust.risk_coverage(right.astype(float), right, ones(10))[1] == pytest.approx(area)  # equals share their risk
    risk, area = trust.risk_coverage(np.zeros(10), right, ones(10))
    assert risk[0] == pytest.approx(0.3) and area[0] == pytest.approx(0.3)
    assert trust.risk_coverage(np.arange(10.0), right, ones(10))[0][0] == pytest.approx([1, 1, 1] + [3 / n for n in range(4, 11)])


def test_risk_of_a_resample_leaves_out_who_is_not_in_it():
    score, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, True])
    counts = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    alone = trust.risk_coverage(score[1:], right[1:], ones(3))[1]
    assert trust.risk_coverage(score, right, counts)[1] == pytest.approx([alone[0], (1 + 1 / 2 + 2 / 3 + 2 / 4) / 4])


def test_three_ways_to_be_sure():
    ways = trust.sureness(np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]))
    assert ways["confidence"] == pytest.approx([1, 1 / 3, 0.5])
    assert ways["entropy"] == pytest.approx([0, -np.log(3), -np.log(2)])
    assert ways["whole"] == pytest.approx([0, 0, -0.5])  # which takes ignorance for certainty


# ---- age -------------------------------------------------------------------------------------------------------------


def test_spearman_equals_scipys_with_equals_and_in_resamples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=60), rng.integers(0, 5, 60)
    counts = rng.integers(0, 4, (3, 60))
    assert trust.spearman(x, y, ones(60))[0] == pytest.approx(spearmanr(x, y).statistic)
    for r, ours in enumerate(trust.spearman(x, y, counts)):
        repeated = np.repeat(np.arange(60), counts[r])
        assert ours == pytest.approx(spearmanr(x[repeated], y[repeated]).statistic)
    assert np.isnan(trust.spearman(x, np.zeros(60), ones(60))).all()


# ---- a network -------------------------------------------------------------------------------------------------------


def test_everything_fitted_comes_from_the_validation_split():
    valid, test = drawn(400, 6, 2.0), drawn(300, 7, 2.0)
    first = trust.sample(valid, test, (1, 2, 3, 4, 5), None, 50)
    other = trust.sample(valid, test.assign(target=(test["target"] + 1) % STAGES), (1, 2, 3, 4, 5), None, 50)
    for name in ("temperature", "threshold_90", "coverage_90", "threshold_80", "coverage_80"):
        assert (first[name] == other[name]).all()
    assert other["kept_90"][0] < first["kept_90"][0]


def test_numbers_of_a_network_that_is_too_sure():
    valid, test = drawn(2000, 6, 3.0), drawn(2000, 7, 3.0).sample(frac=1, random_state=0)
    ages = pd.DataFrame({"age_y": 3.0 * test["stage"].to_numpy(), "sex": "F"}, index=test["image"])
    values = trust.sample(valid, test, (1, 2, 3, 4, 5), ages, 100)
    value = {name: array[0] for name, array in values.items()}
    assert all(array.shape == (101,) for array in values.values())
    assert value["temperature"] == trust.fit_temperature(valid) == pytest.approx(3, rel=0.1)
    for name in ("ece", "nll", "brier"):
        assert value[f"{name}_scaled"] < value[name]
    assert value["aurc_ideal"] < value["aurc_confidence"] < value["aurc_random"] and value["aurc_confidence"] < value["aurc_whole"]
    for aim in (90, 80):
        assert value[f"kept_{aim}"] == pytest.approx(aim / 100, abs=0.03) and value[f"referred_{aim}"] < value[f"kept_{aim}"]
    assert value["coverage_90"] < value["coverage_80"]
    p, target, right = trust.answers(test, value["temperature"])
    kept = p.max(1) >= value["threshold_90"]
    assert value["coverage_90"] == pytest.approx(kept.mean()) and value["kept_90"] == pytest.approx(right[kept].mean())
    assert value["nll_scaled"] == pytest.approx(sk.log_loss(target, p))
    assert value["aurc_confidence"] == pytest.approx(trust.surest_first(test, value["temperature"]).mean())
    assert value["label_F"] == pytest.approx(1) and 0.5 < value["age_F"] < 1 and np.isnan(values["age_M"]).all()


def test_a_target_out_of_reach_refers_every_image():
    valid = drawn(trust.LEAST_KEPT - 1)
    value = {name: array[0] for name, array in trust.sample(valid, drawn(50, 1), (1, 2, 3, 4, 5), None, 20).items()}
    assert value["threshold_90"] == np.inf and value["coverage_90"] == 0 and np.isnan(value["kept_90"])
    assert value["referred_90"] == pytest.approx(1 - value["aurc_random"])


# ---- the table and the figure ----------------------------------------------------------------------------------------


def test_table_has_the_numbers_of_the_runs(finished, monkeypatch):  # noqa: F811
    monkeypatch.setattr(trust, "LEAST_KEPT", 1)  # there are few images: all right in the validation split, a few wrong in the test split
    table, n = tables.trust(results.Results(finished)), held_out(finished)
    data = table.data.set_index(["model", "metric"])["value"]
    for role, wrong in (("crop teacher", 0), ("distilled student", 1), ("plain full-image network", 3)):
        assert data[role, "temperature"] == 1 and data[role, "threshold_90"] == pytest.approx(0.8)
        assert data[role, "ece"] == pytest.approx(abs(1 - wrong / n - 0.8)) and data[role, "coverage_90"] == 1
        assert data[role, "kept_90"] == pytest.approx(1 - wrong / n)
        assert [data[role, "aurc_confidence"], data[role, "aurc_random"]] == pytest.approx([wrong / n] * 2)
    assert data["student − plain network", "aurc_random"] == pytest.approx(-2 / n)
    assert shown(table, "temperature T", "crop teacher") == "1.00, SD 0.00"
    assert shown(table, "target 90 %: accuracy of those kept, %", "crop teacher").startswith("100.0 (100.0 to 100.0)")
    assert shown(table, "target 90 %: accuracy of those referred, %", "crop teacher") == "–"
    assert "virtual patients" in table.markdown()


def test_a_difference_is_of_the_seeds_in_which_both_networks_have_the_value(finished, monkeypatch):  # noqa: F811
    monkeypatch.setattr(trust, "LEAST_KEPT", 1)
    for role in ("student", "baseline"):
        write_run(finished, finished.profile.run(role, 0), predictions(finished.cohort, 1, 1.0))
    unsure = predictions(finished.cohort, 4, 0.0)
    unsure.loc[unsure["split"] == "valid", "target"] = (unsure["target"] + 1) % 5  # wrong wherever it is sure: no threshold keeps the target
    write_run(finished, finished.profile.run("baseline", 1), unsure)
    table, n = tables.trust(results.Results(finished)), held_out(finished)
    data = table.data.set_index(["model", "metric"])
    assert data.loc[("plain full-image network", "kept_90"), "seeds"] == 1 and data.loc[("distilled student", "kept_90"), "seeds"] == 2
    assert data.loc[("student − plain network", "kept_90"), "value"] == 0  # of seed 0, where they answer alike
    row = "target 90 %: accuracy of those kept, %"
    for column in ("plain full-image network", "student − plain network"):
        assert shown(table, row, column).endswith("(1 of 2 seeds)")
    assert data.loc[("student − plain network", "aurc_random"), "value"] == pytest.approx(-3 / n / 2)


def test_table_refers_all_where_no_threshold_keeps_the_target(finished):  # noqa: F811
    table = tables.trust(results.Results(finished))
    assert shown(table, "target 90 %: threshold of confidence", "distilled student") == "all referred"
    assert shown(table, "target 90 %: images kept, %", "distilled student").startswith("0.0")
    assert shown(table, "target 90 %: accuracy of those kept, %", "distilled student") == "–"


def test_spearman_with_age_is_that_of_the_cohort(finished):  # noqa: F811
    known = results.Results(finished)
    cohort, run = finished.cohort.table, known.role("teacher")[0]
    test = run.test.merge(cohort[["image", "age_y", "sex"]], on="image").query("sex == 'F'")
    data = tables.trust(known).data.set_index(["model", "metric"])["value"]
    assert data["crop teacher", "label_F"] == pytest.approx(spearmanr(test["stage"], test["age_y"]).statistic, nan_ok=True)
    expected = trust.expected_stage(test, finished.cohort.scheme.labels)
    assert data["crop teacher", "age_F"] == pytest.approx(spearmanr(expected, test["age_y"]).statistic, nan_ok=True)


def test_without_runs_table_and_figure_say_so(study):  # noqa: F811
    known = results.Results(study)
    body = tables.trust(known).shown.drop(columns="metric")
    assert (body == results.NOT_YET).all(axis=None)
    figure = result_figures.trust_panels(known)
    assert [sum(text.get_text() == results.NOT_YET for text in ax.texts) for ax in figure.axes] == [1, 1, 1]


def test_figure_draws_the_curves_the_threshold_and_everyone(finished, monkeypatch, tmp_path):  # noqa: F811
    from sos.study.figures import save_figure

    monkeypatch.setattr(trust, "LEAST_KEPT", 1)
    for seed in finished.profile.seeds:
        write_run(finished, finished.profile.run("student", seed), predictions(finished.cohort, 2, 1.0))
    known, n = results.Results(finished), held_out(finished)
    figure = result_figures.trust_panels(known)
    reliable, curves, stages = figure.axes
    bars = reliable.containers
    assert len(bars) == 2 and bars[0].lines[0].get_ydata() == pytest.approx([1 - 2 / n]) and bars[0].lines[0].get_xdata() == pytest.approx([0.8])
    drawn_at = {bar.lines[0].get_color(): (bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in curves.containers}
    assert drawn_at[result_figures.ROLE_COLOURS["student"]] == pytest.approx((1, 2 / n))
    dots = [line for line in stages.lines if line.get_marker() in ("o", "^")]
    assert sum(len(line.get_xdata()) for line in dots) == n
    assert "virtual patients" in figure.get_suptitle()
    for name, again in (("one", figure), ("two", result_figures.trust_panels(known))):
        save_figure(again, tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for text in texts(figure):
        box = text.get_window_extent()
        assert -2 <= box.x0 and box.x1 <= width + 2 and -2 <= box.y0 and box.y1 <= height + 2, f"cut off: {text.get_text()!r}"


# ---- in use ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def too_sure(study):  # noqa: F811
    """A baseline's run whose logits are doubled, and whose answers for mirror images are those of ignorance."""
    table = pd.concat([drawn(200, 1, 2.0).assign(split="valid"), drawn(150, 2, 2.0).assign(split="test")], ignore_index=True)
    table["image"] = table["split"] + table["image"]
    mirrored = table.assign(**dict.fromkeys(probability_columns(table), 0.2))
    return write_run(study, study.profile.run("baseline", 0), table.assign(decided=1), weights=True, mirrored=mirrored)


def test_a_run_knows_the_temperatures_of_an_image_and_of_both_directions(too_sure):
    assert too_sure.image_temperature == pytest.approx(trust.fit_temperature(drawn(200, 1, 2.0)), rel=1e-4) and too_sure.image_temperature > 1.5
    assert too_sure.temperature_scale == pytest.approx(trust.fit_temperature(too_sure.split("valid", "both"))) and too_sure.temperature_scale < 1


def test_answers_in_use_have_the_temperature_of_the_run(too_sure, tiny_cohort):
    stager = load_stager(too_sure.path)
    image = read_image(sorted((tiny_cohort.parent / "images").glob("*.dcm"))[0])
    answer, plain = stager.look(image), replace(stager, temperature=1.0).look(image)
    assert stager.temperature == too_sure.temperature_scale != 1
    p = np.array(plain["probabilities"])
    assert answer["probabilities"] == pytest.approx(trust.scaled(p[None], stager.temperature)[0]) and answer["probabilities"] != pytest.approx(p)
    assert answer["stage"] == plain["stage"] and answer["peak"] == plain["peak"]
    assert answer["expected_stage"] == pytest.approx(np.array(answer["probabilities"]) @ [1, 2, 3, 4, 5])


def test_a_release_carries_its_temperature_and_an_older_one_has_none(finished, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runs, "RELEASED", tmp_path / "weights")
    monkeypatch.setattr(predict, "RELEASED", tmp_path / "weights")
    monkeypatch.setattr(predict, "best_student", lambda: None)
    monkeypatch.setattr(runs.Run, "temperature_scale", 1.25)
    folder = results.Results(finished).role("student")[0].path
    for name, more in (("config", {"patients": 24}), ("environment", {"torch": "2", "fastai": "2"})):  # as training writes them
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    runs.release(runs.Run(folder))
    file = tmp_path / "weights" / "student.json"
    known = json.loads(file.read_text())
    assert known["temperature_scale"] == 1.25 and "the temperature 1.25" in (tmp_path / "weights" / "MODEL_CARD.md").read_text()
    assert load_stager().temperature == 1.25
    del known["temperature_scale"]
    file.write_text(json.dumps(known))
    assert load_stager().temperature == 1.0 and "the temperature 1.00" in runs.model_card(known)
