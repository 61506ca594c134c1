"""Trained networks on easier and harder virtual patients: drawn once, read from disk, the same people, and only for the virtual cohort."""

from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from test_tables import predictions, write_run

from sos.config import get_profile
from sos.errors import OutOfTime
from sos.phantom import write
from sos.study import difficulty, result_figures, tables
from sos.study.figures import ROLE_NAMES
from sos.study.results import NOT_YET, Results
from sos.study.training import Study

LEVELS = (0.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A study of its own 16 virtual patients, without any run, whose networks would be tested on 10 others at three difficulties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))
        smoke = get_profile("smoke")
        small = {role: getattr(smoke, role).with_(frame_px=64, window_px=32, batch_size=8, precision="fp32") for role in ROLE_NAMES}
        study = Study(replace(smoke, patients=16, bootstrap=50, native_px=128, difficulties=LEVELS, difficulty_patients=10, **small), device="cpu")
        assert len(study.cohort.table) == 16
        return study


@pytest.fixture(scope="module")
def before(empty):
    """Table and findings before anything was run, and what lay on disk then."""
    table = tables.by_difficulty(Results(empty))
    return table, tables.difficulty_findings(table), sorted(path.name for path in empty.folder.iterdir())


@pytest.fixture(scope="module")
def tested(empty, before):
    """The same study with its main runs (untrained networks), tested at all difficulties."""
    for role in ROLE_NAMES:
        write_run(empty, empty.profile.run(role), predictions(empty.cohort, 1, None if role == "teacher" else 0.5), weights=True)
    difficulty.stage_all(Results(empty))
    return empty


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_without_runs_the_table_says_so_and_draws_nobody(before):
    table, said, on_disk = before
    assert (table.shown.drop(columns="difficulty") == NOT_YET).all(axis=None) and table.shown["difficulty"].tolist() == ["0", "1", "2"]
    assert said == [f"Easier and harder patients: {NOT_YET}."]
    assert not [name for name in on_disk if name.startswith("difficulty")]


def test_the_people_are_the_same_at_each_difficulty_and_never_in_training(tested):
    cohorts = [difficulty.drawn(tested, level).table for level in LEVELS]
    for table in cohorts:
        assert len(table) == 10 and (table["split"] == "test").all() and (table["cohort_kind"] == "virtual").all()
        same = ["age_y", "sex", "stage_true", "x0", "y1", "joint_x", "device"]
        assert (table[same] == cohorts[0][same]).all(axis=None)
        assert not set(table["maturity_y"]) & set(tested.cohort.table["maturity_y"])
    assert len(set(pd.concat([tested.cohort.table, *cohorts])["patient_id"])) == 16 + 3 * 10


def test_the_table_holds_what_lies_on_disk(tested):
    results = Results(tested)
    data = tables.by_difficulty(results).data.set_index(["difficulty", "who"])
    for level in LEVELS:
        cohort = difficulty.drawn(tested, level).table
        assert data.loc[(level, "true state"), "value"] == pytest.approx((cohort["stage_true"] == cohort["stage"]).mean())
        for role, name in ROLE_NAMES.items():
            table = difficulty.predictions(tested, results.role(role)[0], level)
            assert table["image"].tolist() == cohort["image"].tolist() and table["stage"].tolist() == cohort["stage"].tolist()
            assert data.loc[(level, name), "value"] == pytest.approx((table["decided"] == table["stage"]).mean())
            assert data.loc[(level, name), "low"] <= data.loc[(level, name), "value"] <= data.loc[(level, name), "high"]
    assert data.loc[(0.0, "true state"), "value"] == data.loc[(0.0, "one reader"), "value"] == 1


def test_differences_are_paired_with_difficulty_one(tested, monkeypatch):
    right = {0.0: range(10), 1.0: range(5), 2.0: range(3)}  # of the people, in their order

    def told(study, run, level):
        cohort = difficulty.drawn(study, level).table
        table = cohort[["patient_id", "image", "target"]].copy()
        decided = np.where(np.isin(np.arange(10), right[level]), cohort["target"], (cohort["target"] + 1) % 5)
        return table.assign(**{f"p{k + 1}": (decided == k).astype(float) for k in range(5)})

    monkeypatch.setattr(difficulty, "predictions", told)
    table = tables.by_difficulty(Results(tested))
    rows = table.data[table.data["who"] == "crop teacher"].set_index("difficulty")
    assert rows["value"].tolist() == [1.0, 0.5, 0.3]
    assert rows["against_1_value"].tolist() == pytest.approx([0.5, np.nan, -0.2], nan_ok=True)
    assert rows.loc[2.0, "against_1_high"] <= 0 <= rows.loc[0.0, "against_1_low"]  # the same resample of the same people
    said = tables.difficulty_findings(table)
    assert len(said) == 8 and said[0].startswith("Accuracy of the crop teacher at difficulty 0 against 1: +50.0 (")


def test_a_second_call_does_nothing_and_a_lost_file_is_made_again(tested):
    results = Results(tested)
    paths = sorted(tested.folder.glob("difficulty-*/predictions/*.csv"))
    assert len(paths) == 12
    stamps = [path.stat().st_mtime_ns for path in paths]
    difficulty.stage_all(results)
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    text = paths[0].read_bytes()
    paths[0].unlink()
    assert NOT_YET in tables.by_difficulty(Results(tested)).shown.to_numpy()
    difficulty.stage_all(results)
    assert paths[0].read_bytes() == text and [path.stat().st_mtime_ns for path in paths[1:]] == stamps[1:]


def test_what_another_phantom_drew_is_not_read(tested, monkeypatch):
    monkeypatch.setattr(write, "fingerprint", lambda: "another")
    run = Results(tested).role("student")[0]
    assert difficulty.drawn(tested, 1.0) is None and difficulty.predictions(tested, run, 1.0) is None


def test_it_stops_in_time_and_goes_on(tested, monkeypatch):
    paths = sorted(tested.folder.glob("difficulty-*/predictions/*.csv"))
    for path in paths:
        path.unlink()
    monkeypatch.setenv("SOS_DEADLINE", "1")
    with pytest.raises(OutOfTime, match="difficulty 0"):
        difficulty.stage_all(Results(tested))
    assert len(list(tested.folder.glob("difficulty-0/predictions/*.csv"))) == 4
    assert not list(tested.folder.glob("difficulty-1/predictions/*.csv"))
    monkeypatch.delenv("SOS_DEADLINE")
    difficulty.stage_all(Results(tested))
    assert sorted(tested.folder.glob("difficulty-*/predictions/*.csv")) == paths


def test_the_figure_shows_the_table_and_the_same_patients_at_each_difficulty(tested):
    results = Results(tested)
    figure = result_figures.catalogue(tested, results)["fig18_difficulty"]()
    data = tables.by_difficulty(results).data.set_index("who")
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    assert curves["true state against the label"].get_ydata() == pytest.approx(100 * data.loc["true state", "value"].to_numpy())
    for container in figure.axes[0].containers:
        name = container.get_label()
        assert container.lines[0].get_ydata() == pytest.approx(100 * data.loc[name, "value"].to_numpy())
    assert {container.get_label() for container in figure.axes[0].containers} == set(ROLE_NAMES.values())
    assert sum(bool(ax.images) for ax in figure.axes) == 2 * len(LEVELS)
    width, height = figure.canvas.get_width_height()
    for text in figure.findobj(matplotlib.text.Text):
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= -2 and box.y0 >= -2 and box.x1 <= width + 2 and box.y1 <= height + 2), text.get_text()
    assert "10 virtual patients" in figure.get_suptitle().replace("\n", " ") and "difficulty 2" in texts(figure)


def test_for_ones_own_cohort_there_is_nothing_to_draw(empty, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    own = Study(empty.profile, tiny_cohort, device="cpu")
    results = Results(own)
    assert not difficulty.applies(own)
    assert "fig18_difficulty" not in result_figures.catalogue(own, results)
    difficulty.stage_all(results)
    assert not list(own.folder.glob("difficulty*"))
    table = tables.by_difficulty(results)
    assert table.data.empty and len(table.shown) == 1 and "not for a cohort given by its manifest" in table.shown.iloc[0, 0]
    assert "not for a cohort given by its manifest" in tables.difficulty_findings(table)[0]


def test_the_headline_tells_the_ceiling_of_a_virtual_cohort_only(tested):
    held_out = tested.cohort.subset("test")
    share = 100 * (held_out["stage_true"] == held_out["stage"]).mean()
    notes = tables.headline(Results(tested)).notes
    assert f"agrees with them in {share:.1f} (" in notes[-1]
    own = Study(tested.profile, device="cpu")
    own.folder = tested.folder
    own.cohort = replace(tested.cohort, table=tested.cohort.table.drop(columns="cohort_kind"))
    assert not any("Ceiling" in note for note in tables.headline(Results(own)).notes)
