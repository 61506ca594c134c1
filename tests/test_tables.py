"""Tables, result figures and the grid: right numbers from runs on disk, and nothing from anywhere else."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sos.config import PROFILES, PUBLISHED, TAUGHT_ROLES, get_profile
from sos.errors import ConfigError, RunError
from sos.study import ablations, grid, result_figures, results, tables
from sos.study.metrics import difference, gap_closed, measure, summarise
from sos.study.zoom_figures import WINDOW
from sos.study.runs import Run, round_weights, run_name, save_weights, training_code
from sos.study.training import Study

STAGES = 5
REPOSITORY = Path(__file__).resolve().parents[1]


def predictions(cohort, wrong: int, pointed: float | None = None) -> pd.DataFrame:
    """Predictions for held-out images: the first `wrong` of the test split one stage off, the share `pointed` of peaks in the box."""
    kept = ["patient_id", "image", "split", "stage", "target"]
    table = cohort.table.loc[cohort.table["split"] != "train", kept].reset_index(drop=True)
    decided = table["target"].to_numpy().copy()
    first = table.index[table["split"] == "test"][:wrong]
    decided[first] = (decided[first] + 1) % STAGES
    p = np.full((len(table), STAGES), 0.05)
    p[np.arange(len(table)), decided] = 0.8
    for k in range(STAGES):
        table[f"p{k + 1}"] = p[:, k]
    table["decided"] = decided + 1
    if pointed is not None:
        test = (table["split"] == "test").to_numpy()
        rank = np.cumsum(test) - 1
        table["pointing"] = (test & (rank < round(pointed * test.sum()))).astype(float)
        table["energy"], table["iou"] = 0.3, 0.2
    return table


def write_run(study, config, table, weights=False, mirrored=None):
    """A finished run of `config` with those predictions, for mirrored images the same unless given, as training would have left it."""
    teacher = None
    if config.looks == 2:
        table = table.assign(**dict(zip(WINDOW, (0.3, 0.3, 0.6, 0.6), strict=True)))
    if config.role in TAUGHT_ROLES:
        teacher = run_name(study.profile.teacher_of(config), study.store.digest, study.profile.scheme)
    path = study.folder / "models" / run_name(config, study.store.digest, study.profile.scheme, teacher)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    table.to_csv(path / "predictions.csv", index=False)
    (table if mirrored is None else mirrored).to_csv(path / "mirrored.csv", index=False)
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "valid_loss": [2.0, 1.5], "valid_accuracy": [0.2, 0.4]})
    if config.role == "student":
        history = history.assign(L_cls=[1.6, 1.2], L_dist=[0.4, 0.1], L_attn=[5.0, 2.0])
    if config.looks == 2:
        history = history.assign(L_aim=[0.5, 0.25])
    history.to_csv(path / "history.csv", index=False)
    known = {"config": config.resolved(), "scheme": study.profile.scheme, "virtual": True, "data": study.store.digest,
             "code": training_code(), "teacher": teacher}
    metrics = measure(table[table["split"] == "test"], study.profile.bootstrap)
    environment = {"processor": "some processor", "threads": 2, "precision": "fp32", "seconds": 1.5}
    for name, value in (("metrics", metrics), ("environment", environment), ("config", known)):
        (path / f"{name}.json").write_text(json.dumps(value))
    if weights:
        from sos.method.models import build
        from sos.study.detector import Detector

        net = Detector(config) if config.role == "detector" else build(config, STAGES)
        save_weights(round_weights(net.state_dict()), path / "weights.safetensors")
    return Run(path)


@pytest.fixture
def study(tiny_cohort, tmp_path, monkeypatch):
    """A study of two seeds on 24 virtual patients, without any run."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    smoke = get_profile("smoke")
    small = {role: getattr(smoke, role).with_(frame_px=64, window_px=32, batch_size=8) for role in WRONG}
    profile = replace(smoke, seeds=(0, 1), ablation_seeds=(0, 1), bootstrap=100, native_px=128, **small)
    return Study(profile, tiny_cohort, device="cpu")


WRONG = {"teacher": 0, "student": 1, "zoom": 2, "baseline": 3}  # of the test images, in each seed
POINTED = {"teacher": None, "student": 1.0, "zoom": 0.5, "baseline": 0.0}


@pytest.fixture
def finished(study):
    """The same study with all main runs, whose accuracies are known."""
    for seed in study.profile.seeds:
        for role, wrong in WRONG.items():
            write_run(study, study.profile.run(role, seed), predictions(study.cohort, wrong, POINTED[role]), weights=seed == 0)
    return study


def held_out(study) -> int:
    return int((study.cohort.table["split"] == "test").sum())


def test_mirror_table_holds_what_each_model_loses_on_mirrored_images(finished):
    n = held_out(finished)
    for seed, wrong in ((0, 3), (1, 5)):  # of mirrored images; as they are, 1 of them in both seeds
        config = finished.profile.run("student", seed)
        write_run(finished, config, predictions(finished.cohort, 1, 1.0), mirrored=predictions(finished.cohort, wrong, 0.0))
    data = tables.mirror(results.Results(finished)).data.set_index(["model", "metric", "seen"])
    assert data.loc[("student", "accuracy", "as_is"), "value"] == pytest.approx(1 - 1 / n)
    assert data.loc[("student", "accuracy", "mirrored"), "value"] == pytest.approx(1 - 4 / n)
    assert data.loc[("student", "accuracy", "mirrored"), "change_value"] == pytest.approx(-3 / n)
    assert data.loc[("student", "pointing", "mirrored"), "change_value"] == pytest.approx(-1)
    assert data.loc[("baseline", "accuracy", "mirrored"), "change_value"] == 0 and ("teacher", "pointing", "mirrored") not in data.index


def test_both_averages_the_probabilities_of_an_image_and_of_its_mirror_image(finished):
    config = finished.profile.run("student", 0)
    as_is, turned = predictions(finished.cohort, 1, 1.0), predictions(finished.cohort, 3, 0.0).iloc[::-1]  # in another order
    run = write_run(finished, config, as_is, mirrored=turned)
    both, *right = (run.split("test", seen).set_index("image") for seen in ("both", "as_is", "mirrored"))
    for name in ("p1", "p5"):
        assert both[name].to_numpy() == pytest.approx(0.5 * (right[0][name] + right[1].loc[both.index, name]).to_numpy())
    assert len(both) == held_out(finished) and "pointing" not in both and (both["target"] == right[0]["target"]).all()


def test_mirror_table_without_runs_says_so(study):
    assert (tables.mirror(results.Results(study)).shown.drop(columns="model").isin([results.NOT_YET, ""])).all(axis=None)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example():
    assert results.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert results.holm([0.5, 0.9]) == [1.0, 1.0]
    assert results.holm([]) == []


def test_p_value_is_never_zero_and_one_without_a_difference():
    assert results.p_value(np.full(1000, 0.1)) == pytest.approx(2 / 1000)
    assert results.p_value(np.zeros(1000)) == 1.0
    spread = np.concatenate([[0.3], np.arange(-10, 189) / 100])  # 10 below 0, one at 0, 188 above
    assert results.p_value(spread) == pytest.approx(2 * (11 + 1) / 200)


def test_gap_closed_is_one_at_the_teacher_zero_at_the_baseline_and_undefined_without_a_gap():
    baseline, teacher = np.array([0.4, 0.4, 0.6]), np.array([0.8, 0.8, 0.6])
    assert results.closed(teacher, baseline, teacher)[:2] == pytest.approx([1, 1])
    assert results.closed(baseline, baseline, teacher)[:2] == pytest.approx([0, 0])
    assert np.isnan(results.closed(baseline, baseline, teacher)[2])


def test_sampled_metrics_are_those_of_measure_whatever_the_order_of_rows(study):
    table = predictions(study.cohort, 2, 0.5).query("split == 'test'").reset_index(drop=True)
    ordered = table.sort_values("image", ignore_index=True)
    ours = results.sample(table.sample(frac=1, random_state=3), 200)
    for name, known in measure(ordered, 200).items():
        assert summarise(ours[name], name) == pytest.approx(known), name


def test_one_seed_gives_the_paired_bootstrap_of_metrics(finished):
    one = replace(finished.profile, seeds=(0,))
    known = results.Results(Study(one, finished.manifest, device="cpu"))
    a, b, c = (next(iter(known.role(role).values())).test for role in ("student", "baseline", "teacher"))
    ours = known.contrast("accuracy", np.subtract, known.role("student"), known.role("baseline"))
    theirs = difference(a, b, "accuracy", one.bootstrap)
    for key in ("value", "low", "high"):
        assert ours[key] == pytest.approx(theirs[key])
    gap = known.contrast("accuracy", results.closed, *(known.role(role) for role in ("student", "baseline", "teacher")))
    theirs = gap_closed(a, b, c, one.bootstrap)
    assert {key: gap[key] for key in theirs} == pytest.approx(theirs, nan_ok=True)


def test_spread_is_over_seeds_and_the_value_their_mean(study):
    for seed, wrong in ((0, 0), (1, 2)):
        write_run(study, study.profile.run("baseline", seed), predictions(study.cohort, wrong, 0.0))
    known = results.Results(study)
    summary, n = known.summary(known.role("baseline"), "accuracy"), held_out(study)
    assert summary["value"] == pytest.approx(1 - 1 / n)
    assert summary["sd"] == pytest.approx(np.std([1, 1 - 2 / n], ddof=1))


# ---- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_plan_has_each_run_once_and_what_it_needs_before_it(name):
    profile = get_profile(name)
    jobs = grid.plan(profile)
    assert len({job.config for job in jobs}) == len(jobs)
    varied = {config for ablation in profile.ablations().values() for configs in ablation.rows.values() for config in configs}
    varied |= {config for configs in profile.networks().values() for config in configs}
    assert varied <= {job.config for job in jobs}
    for place, job in enumerate(jobs):
        assert all(need < place for need in job.needs)
        teachers = [jobs[need].config for need in job.needs]
        assert teachers == ([profile.teacher_of(job.config)] if job.config.role in TAUGHT_ROLES else [])
    main = {profile.run(role, seed) for role in WRONG for seed in profile.seeds}
    main |= {config for name in profile.competitors_trained for config in profile.competitors()[name]}
    taught = {profile.teacher_of(job.config) for job in jobs if job.config.role in TAUGHT_ROLES}
    assert {job.config for job in jobs if job.keep_weights} == main | taught


def test_run_grid_obtains_every_job_in_the_order_of_the_plan(monkeypatch):
    asked, told = [], []

    def obtain(self, config, keep_weights=True):
        asked.append((config, keep_weights))
        return len(asked)

    monkeypatch.setattr(Study, "obtain", obtain)
    runs = grid.run_grid("smoke", progress=lambda done, total: told.append((done, total)))
    jobs = grid.plan(get_profile("smoke"))
    assert asked == [(job.config, job.keep_weights) for job in jobs]
    assert runs == list(range(1, len(jobs) + 1)) and told == [(i, len(jobs)) for i in runs]


def test_finding_runs_draws_no_cohort_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    study = Study("paper")
    assert grid.find(study, [study.profile.run("student")]) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_other_code_is_not_found(finished, monkeypatch):
    config = finished.profile.run("student", 1)
    assert [run.config.resolved() for run in grid.find(finished, [config])] == [config.resolved()]
    monkeypatch.setattr("sos.study.runs.training_code", lambda: "another")
    assert grid.find(finished, [config]) == []


# ---- tables ----------------------------------------------------------------------------------------------------------


def shown(table, row, column):
    return table.shown.set_index(table.shown.columns[0]).loc[row, column]


def test_accuracy_alone_is_that_among_all_metrics(finished):
    table = predictions(finished.cohort, 2, 1.0).sample(frac=1, random_state=1)
    assert (results.sample_accuracy(table, 100) == results.sample(table, 100)["accuracy"]).all()


def test_every_table_of_a_profile_without_runs_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    study = Study("paper")
    paths = tables.write_tables(results.Results(study))
    assert sorted(path.suffix for path in paths) == sorted([".csv", ".md"] * (len(tables.TABLES) + len(study.profile.ablations()) - 1))
    assert len({path.name for path in paths}) == len(paths)
    for path in paths:
        if path.suffix == ".md":
            assert "not yet run" in path.read_text(encoding="utf-8"), path.name
    assert tables.findings(results.Results(study)) == ["The models are not yet run."]


def test_headline_has_the_accuracies_of_the_runs_and_the_papers_beside_them(finished):
    table, n = tables.headline(results.Results(finished)), held_out(finished)
    values = table.data.set_index(["metric", "model"])["value"]
    for role, wrong in WRONG.items():
        assert values["accuracy", role] == pytest.approx(1 - wrong / n)
    assert shown(table, "accuracy, %", "crop teacher") == "100.0 (100.0 to 100.0), SD 0.0"
    assert shown(table, "accuracy, %", tables.PAPER_COLUMN) == "83.75"
    assert shown(table, "AUROC", tables.PAPER_COLUMN) == "not published"
    assert "real patients" in tables.PAPER_COLUMN and "not comparable" in tables.PAPER_COLUMN
    assert "virtual patients" in table.markdown()


def test_comparisons_have_the_gap_that_the_student_closes(finished):
    table, n = tables.comparisons(results.Results(finished)), held_out(finished)
    row = table.data.set_index(["metric", "quantity"]).loc[("accuracy", "gap closed by student")]
    assert row["value"] == pytest.approx((3 - 1) / 3)
    assert np.isnan(row["p"])
    assert table.data.set_index(["metric", "quantity"]).loc[("accuracy", "gap closed by zoom"), "value"] == pytest.approx((3 - 2) / 3)
    assert table.data.set_index(["metric", "quantity"])["value"]["accuracy", "student - baseline"] == pytest.approx(2 / n)


def test_no_gap_is_called_so(study):
    for role in WRONG:
        write_run(study, study.profile.run(role, 0), predictions(study.cohort, 1, None if role == "teacher" else 0.5))
    known = results.Results(study)
    assert shown(tables.comparisons(known), "gap closed by student (1 of 2 seeds)", "accuracy, %") == "no gap"
    assert any("no gap to close" in sentence for sentence in tables.findings(known))
    assert any("not significantly different" in sentence for sentence in tables.findings(known))


ABLATED = {"L_cls": 4, "L_dist": 4, "L_attn": 3, "L_cls + L_dist": 2, "L_cls + L_attn": 3, "L_dist + L_attn": 1, ablations.FULL: 0}


@pytest.fixture
def ablated(finished):
    for setting, wrong in ABLATED.items():
        for config in finished.profile.ablations()["terms"].rows[setting]:
            table = predictions(finished.cohort, wrong, 1.0 if "L_attn" in setting else 0.0)
            write_run(finished, config, table, weights=setting in ("L_cls", ablations.FULL) and config.seed == 0)  # those are main runs
    return finished


def test_localisation_stands_beside_controls(finished):
    table = tables.localisation(results.Results(finished))
    values = table.data.set_index(["map", "metric"])["value"]
    assert values["distilled student", "pointing"] == 1 and values["plain full-image network", "pointing"] == 0
    assert values["student − plain", "pointing"] == 1
    assert values["student − mean position", "pointing"] == pytest.approx(1 - values["mean position", "pointing"])
    assert 0 < values["random map", "energy"] < 0.3


def test_machine_table_has_each_run_once(finished):
    table = tables.machine(results.Results(finished))
    assert len(table.data) == 8 and table.data["run"].is_unique
    assert set(table.shown["machine"]) == {"some processor, 2 threads"}


@pytest.mark.parametrize("name", PROFILES)
def test_machine_table_has_every_run_of_the_plan(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    known = results.Results(Study(name))
    asked = set()
    monkeypatch.setattr(known, "of", lambda configs: asked.update(configs) or {})
    tables.machine(known)
    assert asked >= {job.config for job in grid.plan(known.profile)}


def test_a_mean_that_lacks_seeds_says_so(finished):
    profile = replace(finished.profile, seeds=(0, 1, 2))
    known = results.Results(Study(profile, finished.manifest, device="cpu"))
    write_run(known.study, profile.run("baseline", 2), predictions(finished.cohort, 3, 0.0))
    columns = list(tables.headline(known).shown)
    assert "crop teacher (2 of 3 seeds)" in columns and "plain full-image network" in columns
    for make in (tables.comparisons, tables.localisation, tables.mirror, ablations.seeds):
        names = " ".join(make(known).shown.iloc[:, 0])
        assert "(2 of 3 seeds)" in names, make.__name__
    assert "3 seeds (at least 2 of 3 seeds)" in result_figures._tested(known)
    assert "(2 of 3 seeds)" not in "".join(tables.headline(results.Results(finished)).shown)


def test_resamples_without_a_gap_are_told_by_metric(finished):
    for seed in finished.profile.seeds:
        write_run(finished, finished.profile.run("baseline", seed), predictions(finished.cohort, 1, 0.0))
    note = tables.comparisons(results.Results(finished)).notes[-1]
    assert re.search(r"In \d+\.\d % \(accuracy\), .* \(quadratic weighted kappa\) of the resamples the teacher is not better", note)


def test_saved_table_has_the_numbers_and_a_well_formed_text(finished, tmp_path):
    table = tables.headline(results.Results(finished))
    csv, text = table.save(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_csv(csv), table.data, check_dtype=False, rtol=1e-5)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == len(table.shown) + 2


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_only_quick_and_paper_are_published(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="smoke"):
        tables.publish("smoke")
    with pytest.raises(RunError, match="no figures or tables"):
        tables.publish("quick")
    assert not (tmp_path / "figures").exists()


def test_publishing_copies_pictures_and_tables_and_takes_old_ones_away(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    made = {"figures/fig_main.png": "new", "figures/.fig.png.12": "half", "tables/headline.md": "text", "tables/headline.csv": "1"}
    for name, text in made.items():
        path = tmp_path / "runs" / "quick" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    old = tmp_path / "figures" / "quick" / "fig_old.png"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    readme = "a\n<!-- quick/headline -->\n<!-- /quick/headline -->\nb\n<!-- paper/headline -->\n<!-- /paper/headline -->\n"
    (tmp_path / "README.md").write_text(readme)
    assert [path.name for path in tables.publish("quick")] == ["fig_main.png", "headline.csv", "headline.md", "machine.json"]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["quick"]
    assert (tmp_path / "README.md").read_text() == readme.replace("quick/headline -->\n<", "quick/headline -->\ntext<")
    record = json.loads((old.parent / "machine.json").read_text())
    assert record["runs"] == 0 and record["profile"]["patients"] == get_profile("quick").patients


def test_machine_summary_names_each_machine_once(finished):
    summary = tables.machine_summary(results.Results(finished))
    assert summary["machines"] == [{"processor": "some processor", "threads": 2, "precision": "fp32"}]
    assert (summary["runs"], summary["training_seconds"], summary["data"]) == (8, 12.0, finished.store.digest)


def test_what_training_took_is_read_from_what_is_published(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    monkeypatch.setattr(tables, "PUBLISHED", ("quick", "paper"))
    (tmp_path / "figures" / "quick").mkdir(parents=True)
    known = tables.machine_summary(results.Results(finished)) | {"training_seconds": 200.0}
    (tmp_path / "figures" / "quick" / "machine.json").write_text(json.dumps(known))
    shown = tables.trainings().shown.to_numpy().tolist()
    assert shown == [["`quick`", 8, "3", "some processor, 2 threads, fp32"], ["`paper`", *["not yet run"] * 3]]


def test_the_readme_shows_the_tables_as_they_are_published(monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(REPOSITORY))
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"<!-- (\w+)/(\w+) -->\n(.*?)<!-- /\1/\2 -->", text, re.DOTALL)
    assert {profile for profile, *_ in places} <= set(PUBLISHED) and len(places) == len(re.findall(r"<!-- \w+/\w+ -->", text)) > 3
    for profile, table, shown in places:
        assert shown == (REPOSITORY / "figures" / profile / f"{table}.md").read_text(encoding="utf-8"), (profile, table)
    assert f"<!-- trainings -->\n{tables.trainings().markdown()}<!-- /trainings -->" in text


# ---- result figures --------------------------------------------------------------------------------------------------


def test_model_bars_have_the_heights_of_the_accuracies(finished):
    ax = result_figures.model_bars(results.Results(finished)).axes[0]
    n = held_out(finished)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([1 - WRONG[role] / n for role in result_figures.MODELS])


def test_loss_terms_are_drawn_as_their_mean_over_seeds(finished):
    runs = list(results.Results(finished).role("student").values())
    axes = result_figures.loss_terms(runs).axes
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[1.6, 1.2], [0.4, 0.1], [5.0, 2.0]]
    axes = result_figures.loss_terms(list(results.Results(finished).role("zoom").values())).axes
    assert [ax.get_title(loc="left").split("  ")[1] for ax in axes] == ["L_cls: cross-entropy", "L_dist: KL of logits, T = 3", "L_attn: KL of Grad-CAM", "L_aim: own window"]
    assert list(axes[-1].lines[0].get_ydata()) == [0.5, 0.25]


def test_main_figure_shows_four_stages_and_who_they_are(finished):
    figure = result_figures.main_result(finished, results.Results(finished), size_px=32)
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) % 5 == 0 and len(panels) >= 15
    assert "virtual patients" in figure.get_suptitle()


def test_every_figure_in_the_catalogue_can_be_drawn(ablated, tmp_path):
    from sos.study.figures import save_figure

    drawn = result_figures.catalogue(ablated, results.Results(ablated))
    for name in ("fig10_shared_scene", "fig13_confusion", "fig15_student_localisation", "fig17_temperature", "fig21_two_looks", "fig22_aiming"):
        save_figure(drawn[name](), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
