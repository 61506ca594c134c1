"""Ablations: which runs there are and what they need, what each varied setting does, and that their tables hold right numbers."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_tables import ABLATED, ablated, finished, held_out, predictions, shown, study, write_run  # noqa: F401  fixtures among them
from test_views import small_store

from sos.choices import CHOICES, GROUPS
from sos.cohort.batches import ViewLoader
from sos.cohort.manifest import Cohort
from sos.cohort.views import Views, jittered, training_rows
from sos.config import PROFILES, TAUGHT_ROLES, RunConfig, get_profile
from sos.stages import BASSED5
from sos.study import ablation_figures, ablations, grid, results
from sos.study.fitting import fit
from sos.study.results import Results
from sos.study.runs import run_name
from sos.study.training import Study

PAPER = get_profile("paper")


# ---- which runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_groups_are_known_and_each_row_has_a_main_run_as_its_reference(profile):
    assert set(profile.varied) <= set(GROUPS) - {"terms"}
    for name, ablation in profile.ablations().items():
        group = GROUPS[name]
        for row, configs in ablation.rows.items():
            against = ablation.rows[ablation.reference[row]]
            assert [config.seed for config in configs] == list(profile.ablation_seeds)
            assert against == [profile.run("zoom" if name == "two_looks" else against[0].role, seed) for seed in profile.ablation_seeds]
            if name not in ("terms", "two_looks"):  # there rows of another role or several changes are compared with a student
                assert configs[0].role == against[0].role and configs[0].role in group.roles
                before, after = configs[0].resolved() | vars(configs[0]), vars(against[0])
                assert {key for key in after if before[key] != after[key]} <= set(group.settings)
        if name != "terms":
            firsts = [configs[0] for configs in ablation.rows.values()]
            assert len({run_name(config, "", "", str(profile.teacher_of(config))) for config in firsts}) == len(firsts)


def test_the_paper_profile_varies_every_group_over_five_seeds():
    assert set(PAPER.varied) == set(GROUPS) - {"terms"} and len(PAPER.ablation_seeds) == 5


def test_values_of_a_relative_group_are_factors_of_the_profiles_own_and_combined():
    rows = PAPER.ablations()["weights"].rows
    w_dist, w_attn = PAPER.student.w_dist, PAPER.student.w_attn
    got = {(configs[0].w_dist, configs[0].w_attn) for configs in rows.values()}
    want = {(a * w_dist, b * w_attn) for a in (0.1, 1, 10) for b in (0.1, 1, 10)}
    assert sorted(got) == [pytest.approx(pair) for pair in sorted(want)]
    sides = {configs[0].frame_px for configs in PAPER.ablations()["frame_px"].rows.values()}
    assert sides == {PAPER.student.frame_px // 2, PAPER.student.frame_px * 3 // 4, PAPER.student.frame_px}


@pytest.mark.parametrize("name", PROFILES)
def test_plan_makes_each_run_once_after_the_teacher_that_it_needs(name):
    profile = get_profile(name)
    jobs = grid.plan(profile)
    names = [run_name(job.config, "data", profile.scheme, run_name(profile.teacher_of(job.config), "data", profile.scheme)
                      if job.config.role == "student" else None) for job in jobs]
    assert len(set(names)) == len(names)
    for place, job in enumerate(jobs):
        teachers = [jobs[need] for need in job.needs]
        assert all(need < place for need in job.needs) and all(teacher.keep_weights for teacher in teachers)
        assert [teacher.config for teacher in teachers] == ([profile.teacher_of(job.config)] if job.config.role in TAUGHT_ROLES else [])


def test_an_ordinary_student_learns_from_the_main_teacher_and_another_from_one_that_shares_its_change():
    student, teacher = PAPER.run("student", 3), PAPER.run("teacher", 3)
    assert PAPER.teacher_of(student) == teacher
    assert PAPER.teacher_of(student.with_(temperature=9.0, w_attn=3.0, frame_px=64, lr=0.5, student_init="teacher")) == teacher
    for change in ({"label_share": 0.25}, {"box_jitter": 0.1}, {"window_scale": 1.5}):
        assert PAPER.teacher_of(student.with_(**change)) == teacher.with_(**change)
    other = replace(PAPER, teacher=PAPER.teacher.with_(window_scale=1.3))  # a profile's own teacher stays as the profile has it
    assert other.teacher_of(other.run("student")) == other.run("teacher")


def test_a_student_of_another_window_is_obtained_and_found_with_its_own_teacher(finished, monkeypatch):  # noqa: F811
    config = finished.profile.run("student", 0).with_(window_scale=1.5)
    teacher = finished.profile.run("teacher", 0).with_(window_scale=1.5)
    assert grid.find(finished, [config]) == []
    write_run(finished, teacher, predictions(finished.cohort, 0), weights=True)
    run = write_run(finished, config, predictions(finished.cohort, 1, 1.0), weights=True)
    assert grid.find(finished, [config])[0].path == run.path != grid.find(finished, [finished.profile.run("student", 0)])[0].path
    monkeypatch.setattr(Study, "_train", lambda *_: pytest.fail("trained"))
    assert finished.obtain(config).path == run.path
    assert run.record["teacher"] == finished.obtain(teacher).name != finished.teacher(0).name


def test_run_group_makes_the_rows_of_one_group_and_keeps_weights_that_students_need(monkeypatch):
    asked = {}
    monkeypatch.setattr(Study, "obtain", lambda self, config, keep_weights=True: asked.update({config: keep_weights}) or config)
    made = grid.run_group(Study("smoke"), "label_share")
    rows = get_profile("smoke").ablations()["label_share"].rows
    assert set(made) == set(asked) == {config for configs in rows.values() for config in configs}
    assert all(kept == (config.role == "teacher" or config.label_share == 1) for config, kept in asked.items())


# ---- what the new settings do ----------------------------------------------------------------------------------------


def people(images_each=(1, 2, 1), stages=5, per_stage=40) -> Cohort:
    """A cohort in memory: patients of each stage with one or two images, every fourth patient held out."""
    rows = []
    for stage in range(stages):
        for i in range(per_stage):
            for image in range(images_each[i % len(images_each)]):
                rows.append({"patient_id": f"{stage}-{i}", "image": f"{stage}-{i}-{image}", "stage": stage + 1, "target": stage,
                             "split": "test" if i % 4 == 3 else "train"})
    table = pd.DataFrame(rows).sample(frac=1, random_state=5).reset_index(drop=True)
    return Cohort(table, None, BASSED5, None)


def test_all_labelled_patients_are_the_training_split_in_its_order():
    cohort = people()
    assert training_rows(cohort, 1.0, 3).tolist() == cohort.subset("train").index.tolist()


def test_shares_of_labels_are_by_patient_by_stage_nested_and_of_as_many_steps():
    cohort = people()
    whole, before = cohort.subset("train"), set()
    for share in (0.02, 0.1, 0.25, 0.5, 1.0):
        rows = training_rows(cohort, share, 3)
        part = cohort.table.loc[np.unique(rows)]
        chosen = set(part["patient_id"])
        assert before <= chosen and (part["split"] == "train").all()
        assert len(part) == whole["patient_id"].isin(chosen).sum()  # all images of each chosen patient
        count = part.drop_duplicates("patient_id")["target"].value_counts()
        assert (count == max(1, round(share * 30))).all() and len(count) == 5
        times = pd.Series(rows).value_counts()
        assert len(rows) == len(whole) and times.max() - times.min() <= 1
        before = chosen
    assert len(before) == whole["patient_id"].nunique()


def test_labelled_patients_follow_the_seed():
    cohort = people()
    first, again, other = (set(training_rows(cohort, 0.25, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_training_sees_the_labelled_patients_alone(tiny_cohort, tmp_path, monkeypatch):
    seen, views = set(), Views.__call__

    def spy(self, rows, *args):
        if self.training:
            seen.update(rows.tolist())
        return views(self, rows, *args)

    monkeypatch.setattr(Views, "__call__", spy)
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    smoke = replace(get_profile("smoke"), native_px=96)
    config = smoke.run("baseline", 2).with_(label_share=0.4, epochs=2, batch_size=4, frame_px=32)
    half = Study(smoke, tiny_cohort, device="cpu")
    fit(config, half.store, half.cohort, tmp_path / "c.pt", None, "cpu")
    assert seen and seen <= set(training_rows(half.cohort, 0.4, 2)) < set(half.cohort.subset("train").index)


def test_jitter_moves_and_resizes_boxes_within_its_bounds_and_fills_them():
    boxes = torch.tensor([[10.0, 20, 30, 60]]).repeat(4000, 1)
    moved = jittered(boxes, 0.2, torch.Generator().manual_seed(1))
    shift = ((moved[:, :2] + moved[:, 2:]) / 2 - torch.tensor([20.0, 40])) / torch.tensor([20.0, 40])
    size = (moved[:, 2:] - moved[:, :2]) / torch.tensor([20.0, 40]) - 1
    for values in (*shift.T, *size.T):
        assert values.abs().max() <= 0.2001 and values.min() < -0.19 and values.max() > 0.19 and abs(float(values.mean())) < 0.01
    together = torch.corrcoef(torch.cat([shift, size], 1).T) - torch.eye(4)
    assert together.abs().max() < 0.06  # four draws, not one
    assert torch.allclose(jittered(boxes, 0.0, torch.Generator()), boxes)


def batch(role, box_jitter, training=True):
    config = RunConfig(role=role, batch_size=10, frame_px=48, window_px=32, box_jitter=box_jitter, noise=0.0)
    return next(iter(ViewLoader(small_store(), range(10), config, training=training)))


def test_jitter_leaves_frames_as_they_are_and_moves_windows_of_the_same_scene():
    frame, _, window, target = batch("student", 0.0)
    other, _, moved, again = batch("student", 0.3)
    assert torch.equal(frame, other) and torch.equal(target, again)
    side = (window[:, 2:] - window[:, :2])[:, :1]
    away = ((moved[:, :2] + moved[:, 2:]) - (window[:, :2] + window[:, 2:])).abs() / 2
    assert (away > 0).all() and (away <= 0.3 * side + 1e-5).all()
    grown = (moved[:, 2] - moved[:, 0]) / side[:, 0]
    assert (grown != 1).all() and (grown <= 1.3001).all() and (grown >= 0.6999).all()


def test_nothing_is_jittered_for_the_plain_network_nor_in_evaluation():
    assert all(torch.equal(a, b) for a, b in zip(batch("baseline", 0.0), batch("baseline", 0.3), strict=True))
    for role in ("teacher", "student"):
        assert all(torch.equal(a, b) for a, b in zip(batch(role, 0.0, False), batch(role, 0.3, False), strict=True))
    assert not torch.equal(batch("teacher", 0.0)[0], batch("teacher", 0.3)[0])


def test_a_teacher_sees_its_own_window_scale():
    store, config = small_store(), RunConfig(role="teacher", batch_size=10, window_px=32)
    wide = next(iter(ViewLoader(store, range(10), config.with_(window_scale=1.5), training=False)))[0]
    assert torch.equal(wide, next(iter(ViewLoader(store, range(10), config, training=False, window_scale=1.5)))[0])
    assert not torch.equal(wide, next(iter(ViewLoader(store, range(10), config, training=False)))[0])


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_ablation_compares_each_row_with_the_full_method_and_says_what_is_not_significant(ablated):  # noqa: F811
    table, n = ablations.ablation(Results(ablated)), held_out(ablated)
    data = table.data.set_index("setting")
    for setting, wrong in ABLATED.items():
        assert data.loc[setting, "accuracy_value"] == pytest.approx(1 - wrong / n)
        if setting != ablations.FULL:
            assert data.loc[setting, "accuracy_difference_value"] == pytest.approx(-wrong / n)
    assert data.loc["L_cls", "pointing_difference_p_holm"] < 0.2 and data.loc["L_cls", "pointing_difference_value"] == -1
    assert data.loc["L_dist + L_attn", "pointing_difference_p_holm"] == 1.0
    assert shown(table, "L_dist + L_attn", "pointing against the full method") == "+0.0, p = 1.000: not significant"
    said = ablations.ablation_findings(table)
    assert any(s.startswith("Pointing game not significantly") and "L_dist + L_attn" in s for s in said)


def test_a_row_that_was_not_run_says_so_and_is_in_no_finding(ablated):  # noqa: F811
    table = ablations.ablation(Results(ablated), "temperature")
    assert table.name == "ablation_temperature" and shown(table, "T = 1", "accuracy, %") == "not yet run"
    assert shown(table, "T = 3 (reference)", "accuracy, %") == "100.0 (100.0 to 100.0), SD 0.0"
    assert ablations.ablation_findings(table) == ["Ablation of the temperature: not yet run."]
    untrained = ablations.ablation(Results(ablated), "evidence")
    assert untrained.shown["setting"].tolist() == ["not yet run"] and ablations.finding(untrained) == "not yet run"


def test_effect_of_a_term_is_the_mean_over_the_subsets_it_can_be_added_to(ablated):  # noqa: F811
    data, n = ablations.effects(Results(ablated)).data.set_index(["term", "metric"]), held_out(ablated)
    gain = np.mean([ABLATED["L_cls"] - ABLATED["L_cls + L_dist"], ABLATED["L_attn"] - ABLATED["L_dist + L_attn"],
                    ABLATED["L_cls + L_attn"] - ABLATED[ablations.FULL]]) / n
    assert data.loc[("L_dist", "accuracy"), "value"] == pytest.approx(gain)
    assert data.loc[("L_attn", "pointing"), "value"] == 1
    assert data.loc[("L_cls", "pointing"), "value"] == 0


SAID = {"baseline": "plain network"}  # in names of rows; other roles as they are
FEW = {"teacher": 2, "baseline": 5, "student": 4}  # wrong with half of the patients; with all: 0, 3, 1


@pytest.fixture
def taught_by_half(finished):  # noqa: F811
    """All main runs and those of half of the labelled patients."""
    for role, wrong in FEW.items():
        for seed in finished.profile.ablation_seeds:
            config = finished.profile.run(role, seed).with_(label_share=0.5)
            write_run(finished, config, predictions(finished.cohort, wrong, None if role == "teacher" else 1.0), weights=role == "teacher")
    return finished


def test_shares_of_labels_are_compared_with_the_same_network_and_have_their_own_gap(taught_by_half):
    table, n = ablations.ablation(Results(taught_by_half), "label_share"), held_out(taught_by_half)
    data = table.data.set_index("setting")
    for role, wrong in FEW.items():
        said = SAID.get(role, role)
        half, whole = data.loc[f"{said}, 50 % of the patients"], data.loc[f"{said}, 100 % of the patients"]
        assert half["accuracy_value"] == pytest.approx(1 - wrong / n)
        assert half["accuracy_difference_value"] == pytest.approx(half["accuracy_value"] - whole["accuracy_value"])
        assert np.isnan(whole["accuracy_difference_value"])
    assert data.loc["student, 50 % of the patients", "gap_value"] == pytest.approx((5 - 4) / (5 - 2))
    assert data.loc["student, 100 % of the patients", "gap_value"] == pytest.approx((3 - 1) / 3)
    assert np.isnan(data.loc["teacher, 50 % of the patients", "gap_value"])
    cohort = taught_by_half.cohort
    assert data.loc["teacher, 100 % of the patients", "training_patients"] == cohort.subset("train")["patient_id"].nunique()
    assert data.loc["teacher, 50 % of the patients", "training_patients"] < data.loc["teacher, 100 % of the patients", "training_patients"]
    assert shown(table, "teacher, 50 % of the patients", "pointing game, %") == ""
    assert table.markdown().count("reference)") == 4  # three rows, and the note


def test_a_table_names_the_seeds_of_its_own_rows(finished):  # noqa: F811
    finished.profile = replace(finished.profile, ablation_seeds=(0,), network_seeds=(0, 1, 2), backbones=("resnet18_half",))
    results = Results(finished)
    for table in (ablations.ablation(results, "terms"), ablations.effects(results), ablations.choices(results)):
        assert "one seed" in table.notes[0] and "mean of" not in table.notes[0]
        assert any("chance in training" in note for note in table.notes)
    assert not any("chance in training" in note for note in ablations.networks(results).notes)
    assert "mean of 3 seeds" in ablations.networks(results).notes[0] and "mean of 2 seeds" in ablations.seeds(results).notes[0]


def test_epochs_under_a_table_are_those_of_its_rows():
    profile = get_profile("ablations")
    said = {name: ablations._epochs({row: configs[0] for row, configs in varied.rows.items()}) for name, varied in profile.ablations().items()}
    assert said["terms"] == "in every row: 12" and said["window_scale"] == "in every row: teacher 16, student 12"
    assert said["two_looks"] == "in every row: 6, but labels alone, no teacher 22; one look 12"


def test_a_finding_counts_the_other_networks_of_a_group_of_one_kind(study):  # noqa: F811
    data = pd.DataFrame({"setting": ["a", "b"], "role": ["student", "baseline"], "accuracy_difference_p_holm": [0.5, 0.01],
                         "accuracy_difference_value": [0.1, -0.4], "accuracy_difference_low": [0.0, -0.5], "accuracy_difference_high": [0.2, -0.3]})
    said = {name: ablations.finding(results.Table(f"ablation_{name}", "", data, data)) for name in ("two_looks", "label_share")}
    assert said["two_looks"].startswith("1 of 2 significant; b") and said["label_share"].startswith("not significant; a")


def test_p_values_are_adjusted_within_the_group(taught_by_half):
    data = ablations.ablation(Results(taught_by_half), "label_share").data
    p = data["accuracy_difference_p"].dropna()
    by_hand, highest = {}, 0.0
    for rank, (i, value) in enumerate(p.sort_values(kind="stable").items()):
        highest = max(highest, min(1.0, (len(p) - rank) * value))
        by_hand[i] = highest
    assert len(p) == 3 and data["accuracy_difference_p_holm"].dropna().to_dict() == pytest.approx(by_hand)


def test_seeds_table_holds_the_best_and_the_worst_that_one_seed_would_have_said(study):  # noqa: F811
    wrong = {"baseline": (4, 4), "student": (1, 3), "teacher": (0, 0)}
    for role, each in wrong.items():
        for seed, count in enumerate(each):
            write_run(study, study.profile.run(role, seed), predictions(study.cohort, count, None if role == "teacher" else 1.0))
    table, n = ablations.seeds(Results(study)), held_out(study)
    row = table.data.set_index("who").loc["student − plain"]
    assert (row["value"], row["lowest_value"], row["highest_value"]) == pytest.approx((2 / n, 1 / n, 3 / n))
    assert row["sd"] == pytest.approx(np.std([1 / n, 3 / n], ddof=1)) and row["seeds"] == 2
    assert table.data.set_index("who").loc["distilled student", "lowest_value"] == pytest.approx(1 - 3 / n)


# ---- the page of open choices ----------------------------------------------------------------------------------------


def test_every_setting_of_a_run_is_among_the_choices_and_has_a_reason():
    assert {f.name for f in fields(RunConfig)} <= set(CHOICES)
    for name, choice in CHOICES.items():
        assert choice.reason and bool(choice.groups) != bool(choice.fixed), name
        assert all(name in GROUPS[group].settings for group in choice.groups)
    assert {setting for group in GROUPS.values() for setting in group.settings} <= {name for name, choice in CHOICES.items() if choice.groups}


@pytest.mark.parametrize("name", PROFILES)
def test_page_of_choices_has_each_once_with_the_profiles_values(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    profile = get_profile(name)
    data = ablations.choices(Results(Study(profile))).data.set_index("setting")
    assert data.index.tolist() == list(CHOICES) and (data["value"] != "").all()
    assert data.loc["lr", "value"].split(";")[0] == f"{profile.student.lr:g}" and data.loc["window_px", "value"] == str(profile.teacher.window_px)
    assert ("teacher" in data.loc["epochs", "value"]) == (profile.teacher.epochs != profile.student.epochs)
    for setting, row in data.iterrows():
        said = row["accuracy when varied"]
        assert "not yet run" in said if CHOICES[setting].groups else said.startswith("not varied: "), setting
    assert data.loc["temperature", "whose"] == "the paper's" and (data["whose"] == "ours").sum() == len(data) - 1


def test_page_of_choices_says_what_an_ablation_said(ablated):  # noqa: F811
    n = held_out(ablated)
    said = ablations.choices(Results(ablated)).data.set_index("setting")["accuracy when varied"]
    assert said["evidence"].endswith("not yet run")
    assert said["w_dist"].startswith("the three terms: ") and "; the weights of L_dist and L_attn: not yet run" in said["w_dist"]
    assert f"{-400 / n:.1f} (".replace("-", "−") in said["w_cls"]  # the largest difference: four more wrong than the full method
    for seed in ablated.profile.ablation_seeds:
        write_run(ablated, ablated.profile.run("student", seed).with_(temperature=1.0), predictions(ablated.cohort, n, 1.0))
    table = ablations.ablation(Results(ablated), "temperature")  # all wrong at T = 1, in every resample; p = 2 / (100 + 1)
    assert ablations.finding(table) == "1 of 1 significant; T = 1: −100.0 (−100.0 to −100.0), p = 0.020"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_design_counts_the_rows_and_runs_of_each_group(profile):
    data = ablations.design(profile).data.set_index("group")
    for name, row in data.iterrows():
        rows = profile.ablations()[name].rows if name in profile.ablations() else {}
        assert (row[f"rows in {profile.name}"], row["runs"]) == (len(rows), len(rows) * len(profile.ablation_seeds))
    assert data.index.tolist() == list(GROUPS)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_forest_draws_the_numbers_of_the_table(ablated):  # noqa: F811
    table = ablations.ablation(Results(ablated))
    ax = ablation_figures.forest(table).axes[0]
    drawn = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() in list("oD")]
    assert drawn == pytest.approx((100 * table.data["accuracy_value"]).tolist())
    assert [label.get_text() for label in ax.get_yticklabels()][0] == "L_cls"
    texts = [text.get_text() for text in ax.texts]
    assert "reference" in texts and any("n.s." in text for text in texts)


def test_forest_says_what_was_not_run(ablated):  # noqa: F811
    figure = ablation_figures.forest(ablations.ablation(Results(ablated), "temperature"))
    assert "not yet run" in [text.get_text() for text in figure.axes[0].texts] and "virtual patients" in figure.get_suptitle()


def test_learning_curve_draws_each_network_by_its_share_and_counts_patients(taught_by_half):
    table, n = ablations.ablation(Results(taught_by_half), "label_share"), held_out(taught_by_half)
    figure = ablation_figures.curve(table)
    ax, gap = figure.axes[0], figure.axes[-1]
    heights = {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in ax.containers}
    assert heights["crop teacher"] == pytest.approx([100 * (1 - 2 / n), 100])
    assert heights["plain full-image network"] == pytest.approx([100 * (1 - 5 / n), 100 * (1 - 3 / n)])
    assert heights["distilled student"] == pytest.approx([100 * (1 - 4 / n), 100 * (1 - 1 / n)])
    assert list(gap.containers[0].lines[0].get_ydata()) == pytest.approx([1 / 3, 2 / 3])
    count = taught_by_half.cohort.subset("train")["patient_id"].nunique()
    assert ax.get_xticklabels()[-1].get_text() == f"100 %\n{count}"


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_of_a_profile_without_runs_can_be_drawn(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    results = Results(Study("paper"))
    drawn = ablation_figures.ablation_figures(name, lambda: ablations.ablation(results, name))
    assert len(drawn) == 1 + bool(GROUPS[name].axis)
    for draw in drawn.values():
        assert any(text.get_text() == "not yet run" for ax in draw().axes for text in ax.texts)


# ---- other networks --------------------------------------------------------------------------------------------------


def test_other_networks_are_compared_with_the_main_network_of_their_role(study):  # noqa: F811
    study.profile = replace(study.profile, backbones=("resnet18_half",), progressive=0.5)
    wrong, n = {"teacher": 1, "baseline": 4, "student": 2}, held_out(study)
    for name, configs in study.profile.networks().items():
        more = 2 if "resnet18_half" in name else 0  # the other backbone errs twice more, whatever its role; progressive training changes nothing
        for config in configs:
            write_run(study, config, predictions(study.cohort, wrong[config.role] + more, None if config.role == "teacher" else 0.5))
    table = ablations.networks(Results(study))
    data, shown = table.data.set_index("network"), table.shown.set_index("network")
    main = study.profile.teacher.backbone
    assert set(data.index) == {f"{name}, {SAID.get(role, role)}" for name in (main, "resnet18_half", f"{main}, progressive") for role in wrong}
    for role, count in wrong.items():
        role = SAID.get(role, role)
        assert data.loc[f"{main}, {role}", "accuracy_value"] == pytest.approx(1 - count / n)
        assert data.loc[f"resnet18_half, {role}", "difference_value"] == pytest.approx(-2 / n)
        assert data.loc[f"{main}, progressive, {role}", "difference_value"] == 0
        assert shown.loc[f"{main}, {role}", "accuracy against the main network"] == "reference"
    assert data["pointing_value"].isna().tolist() == [name.endswith("teacher") for name in data.index]


def test_a_profile_without_other_networks_says_so_and_one_without_runs_too(study, tmp_path, monkeypatch):  # noqa: F811
    assert ablations.networks(Results(study)).shown["network"].tolist() == ["not yet run"]
    monkeypatch.setenv("SOS_HOME", str(tmp_path / "empty"))
    shown = ablations.networks(Results(Study("paper"))).shown.set_index("network")
    assert len(shown) == len(PAPER.networks()) and (shown[["accuracy, %", "quadratic weighted kappa"]] == "not yet run").all(axis=None)
