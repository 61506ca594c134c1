"""Mistakes on purpose: each is really made, and its cost is what a table says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sos.cohort.views import training_rows
from sos.config import get_profile
from sos.errors import ConfigError
from sos.study import mistakes
from sos.study.training import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_cohort, one_thread):
    """24 virtual patients, and a teacher that learns the training images by heart."""
    small = dict(frame_px=64, window_px=48, epochs=12, batch_size=4, precision="fp32", rotate_deg=0.0, zoom=0.0, shift=0.0, flip=0.0, gain=0.0,
                 offset=0.0, gamma=0.0, noise=0.0)
    base = get_profile("smoke")
    profile = replace(base, bootstrap=50, native_px=256, test_share=0.4, teacher=base.teacher.with_(**small), baseline=base.baseline.with_(**small))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))
        yield Study(profile, tiny_cohort, device="cpu")


def value(text):
    return float(text.split()[0])


def test_a_leak_raises_the_accuracy_on_the_images_that_leaked_only(study):
    table = mistakes.leak(study)
    clean, leaked = (value(text) for text in table["held-out images, accuracy, %"])
    assert leaked > clean + 25
    assert (study.cohort.table["split"] == "test").sum() == len(study.teacher().test)  # the study's own cohort is as it was


def test_a_second_look_at_the_leak_trains_nothing(study, monkeypatch):
    first = mistakes.leak(study)
    monkeypatch.setattr("sos.study.fitting.fit", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(mistakes.leak(study), first)


def test_a_leak_is_a_mistake_of_teachers_and_names_a_run_of_its_own():
    teacher = get_profile("smoke").run("teacher")
    assert "leak" not in teacher.resolved() and teacher.with_(leak=True).resolved() == teacher.resolved() | {"leak": True}
    with pytest.raises(ConfigError, match="leak = true of a student"):
        get_profile("smoke").run("student").with_(leak=True)


def test_the_leaking_teacher_learns_from_all_but_the_validation_images(study):
    rows, table = training_rows(study.cohort, leak=True), study.cohort.table
    assert sorted(rows) == table.index[table["split"] != "valid"].tolist()
    assert set(table.loc[training_rows(study.cohort), "split"]) == {"train"}


def test_a_constant_answer_wins_in_accuracy_where_one_stage_is_common(study):
    table = mistakes.imbalance(study, study.teacher(), share=0.9)
    always = table.loc["90% of the last stage: always the last stage"]
    assert always["accuracy, %"] == "90.0" and always["quadratic weighted kappa"] == "0.00"
    test = study.teacher().test
    assert float(table.loc["as held out: network", "accuracy, %"]) == pytest.approx(100 * (test["decided"] == test["stage"]).mean(), abs=0.05)


def test_where_no_image_of_the_last_stage_is_held_out_the_last_that_is_counts(study):
    run = study.teacher()
    test = run.test
    fewer = type("Fewer", (), {"test": test[test["target"] < test["target"].max()]})()
    table = mistakes.imbalance(study, fewer)
    assert table.loc["80% of the last stage: always the last stage", "accuracy, %"] == "80.0"
    alone = type("Alone", (), {"test": test[test["target"] == 0]})()
    assert list(mistakes.imbalance(study, alone).index) == ["as held out: network", "as held out: always the last stage"]


def test_without_transforms_augmented_images_are_the_images(study):
    table = mistakes.augmented(study, study.teacher())["accuracy, %"]
    assert len(set(table)) == 1 and table["as they are"] == pytest.approx(100 * study.teacher().metrics["accuracy"]["value"], abs=0.05)


def test_the_decided_stage_is_explained_as_it_was_in_evaluation(study):
    run = study.baseline()
    table = mistakes.other_stages(study, run)
    assert table.loc["decided stage", "peak in the box, %"] == pytest.approx(100 * run.test["pointing"].mean(), abs=0.01)
    assert table.loc["decided stage", "share of the map in the box, %"] == pytest.approx(100 * run.test["energy"].mean(), abs=0.01)
    others = table["cosine with the decided stage's"].drop("decided stage")
    assert table.loc["decided stage", "cosine with the decided stage's"] == 1.0 and (others < 0.999).all() and np.isfinite(table.to_numpy()).all()
