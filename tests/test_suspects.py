"""Suspects: folds keep patients together and hold each out once, scores follow the signs, and planted faults come first."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_tables import finished, predictions, study, write_run  # noqa: F401  (two fixtures among them)

from sos.cli import main
from sos.cohort.manifest import Cohort, read_manifest
from sos.config import PROFILES
from sos.errors import CohortError
from sos.panels.session import ReviewSession
from sos.stages import BASSED5
from sos.study.runs import Run
from sos.study.suspects import COLUMNS, attention_in_box, folded, judged, share_as_strong, student_of, suspects
from sos.study.training import Study


def cohort_of(patients, stages):
    table = pd.DataFrame({"patient_id": patients, "target": stages, "split": "train"})
    return Cohort(table, None, BASSED5, "some.csv")


def test_each_patient_is_held_out_once_with_all_images():
    patients = [f"p{i // 2}" for i in range(80)]
    parts = folded(cohort_of(patients, np.repeat(np.arange(40) % 5, 2)), 4)
    held_out = np.stack([part.table["split"] != "train" for part in parts])
    assert (held_out.sum(0) == 1).all()
    for part in parts:
        assert (part.table.groupby("patient_id")["split"].nunique() == 1).all() and set(part.table["split"]) == {"train", "valid", "test"}
        assert part.table.loc[part.table["split"] != "train", "target"].value_counts().tolist() == [4] * 5  # two patients of each stage
    again = folded(cohort_of(patients, np.repeat(np.arange(40) % 5, 2)), 4)
    assert all(part.table.equals(same.table) for part, same in zip(parts, again, strict=True))


def test_too_few_patients_to_fold_are_told():
    with pytest.raises(CohortError, match="7 patients cannot be folded 4 times"):
        folded(cohort_of([f"p{i}" for i in range(7)], [0] * 7), 4)


def judge(stage, probabilities, attention):
    stage = np.asarray(stage)
    table = pd.DataFrame(probabilities, columns=[f"p{k + 1}" for k in range(5)])
    return judged(table.assign(patient_id=[f"p{i}" for i in range(len(stage))], image="x", stage=stage, target=stage - 1, attention=attention,
                               decided=np.argmax(probabilities, 1) + 1))


def test_the_share_as_strong_is_one_of_n_for_the_strongest_and_ties_are_weak():
    assert share_as_strong(np.array([3.0, 1, 2, 1])).tolist() == [0.25, 1, 0.5, 1]


def test_a_wrong_stage_and_a_wrong_box_are_suspicious_for_their_own_reasons():
    n = 40
    rng = np.random.default_rng(0)
    stage = np.arange(n) % 5 + 1
    sure = 0.8 * np.eye(5)[stage - 1] + 0.04 + 0.01 * rng.random((n, 5))
    attention = np.full(n, 0.9) - 0.2 * rng.random(n)
    sure[7] = [0.02, 0.02, 0.03, 0.03, 0.9]  # labelled 3
    attention[11] = 0.01
    got = judge(stage, sure / sure.sum(1, keepdims=True), attention)
    assert set(got["score"].nlargest(2).index) == {7, 11} and list(got) == list(COLUMNS)
    assert got.loc[7, "reasons"] == "read as stage 5, labelled 3; its own stage has a probability of 0.03" and got.loc[7, "predicted"] == 5
    assert got.loc[11, "reasons"] == "1 % of the attention in the box" and (got["reasons"] != "").sum() == 2
    assert got.loc[7, "loss"] == pytest.approx(-np.log(got.loc[7, "probability"])) and got.loc[7, "probability"] == pytest.approx(0.03, abs=1e-3)
    assert got.loc[7, "score"] == pytest.approx(np.log(n))  # first in both signs of the stage, none of the box


@pytest.fixture(scope="module")
def planted(tiny_cohort, tmp_path_factory):
    """The tiny cohort with three boxes moved to a corner; and a smoke profile with a very short teacher."""
    table = pd.read_csv(tiny_cohort, dtype={"patient_id": str})
    boxes = ["x0", "y0", "x1", "y1"]
    table[boxes] = table[boxes].astype(float)
    for row in (3, 9, 17):
        table.loc[row, boxes] -= table.loc[row, ["x0", "y0", "x0", "y0"]].to_numpy()
    path = shutil.copytree(tiny_cohort.parent, tmp_path_factory.mktemp("planted") / "cohort") / "manifest.csv"
    table.to_csv(path, index=False)
    return path


def test_moved_boxes_come_first_and_a_second_call_finds_the_runs(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    smoke = PROFILES["smoke"]
    study = Study(replace(smoke, teacher=smoke.teacher.with_(epochs=1), bootstrap=20), planted, "cpu")
    done = []
    got = suspects(study, 2, lambda *state: done.append(state), steps=1)
    assert done == [(1, 2), (2, 2)] and len(got) == 24 and got["score"].is_monotonic_decreasing
    moved = got["patient_id"].isin(study.cohort.table.loc[[3, 9, 17], "patient_id"])
    assert roc_auc_score(moved, -got["attention"]) > 0.95 and roc_auc_score(moved, got["score"]) > 0.9
    runs = {path: path.stat().st_mtime_ns for path in (study.folder / "suspects" / "models").glob("teacher-*/config.json")}
    assert len(runs) == 2 and not (study.folder / "models").exists()
    pd.testing.assert_frame_equal(suspects(study, 2, steps=1), got)
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert read_manifest(planted).fingerprint == study.cohort.fingerprint
    assert attention_in_box(study).shape == (24,)


def test_whose_attention_counts_does_not_hang_on_which_run_finished_last(finished):  # noqa: F811
    profile = finished.profile
    assert student_of(finished)[1].resolved() == profile.run("zoom").resolved()
    varied = profile.student.with_(w_attn=0.7)
    write_run(finished, varied, predictions(finished.cohort, 1, 1.0), weights=True)
    assert student_of(finished)[1].resolved() == profile.run("zoom").resolved()
    for run in finished.folder.glob("models/student-*/config.json"):
        if Run(run.parent).config.resolved() != varied.resolved():
            (run.parent / "weights.safetensors").unlink(missing_ok=True)
    assert student_of(finished)[1].resolved() == varied.resolved()


def test_the_command_writes_what_the_tool_reads(planted, tmp_path, monkeypatch, capsys):
    table = judge([5, 1], [[.9, .1, 0, 0, 0], [.9, .1, 0, 0, 0]], np.array([.9, .9]))
    monkeypatch.setattr("sos.study.suspects.suspects", lambda study, folds, progress: table)
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    assert main(["suspects", str(planted), "--profile", "smoke", "--out", str(tmp_path / "s.csv"), "--top", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and "p0" in out[0] and str(tmp_path / "s.csv") in out[1]
    written = pd.read_csv(tmp_path / "s.csv")
    assert tuple(written) == COLUMNS and len(written) == 2
    assert len(ReviewSession(planted, "AB", suspects=tmp_path / "s.csv").suspects) == 1  # by image


def test_the_command_tells_the_agreement_of_readers(planted, capsys):
    from sos.cohort.reviews import add_review

    assert main(["agreement", str(planted)]) == 0
    assert "nobody has read a stage yet" in capsys.readouterr().out
    patients = pd.read_csv(planted)["patient_id"].unique()[:6]
    for who, shift in (("AB", 0), ("CD", 1), ("EF", 1)):
        for i, patient in enumerate(patients):
            add_review(planted.with_name("reviews.csv"), who, patient, "reading", min(1 + i % 5 + shift, 5))
    assert main(["agreement", str(planted)]) == 0
    out = capsys.readouterr().out
    assert "CD and EF: 6 images, 100.0 % agree, kappa 1.000" in out and "Fleiss' kappa" in out and "AB and manifest: 6 images" in out
