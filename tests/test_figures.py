"""Figures: the same bytes for the same data, the numbers that they claim to show, and nothing cut off."""

import os
import subprocess
import sys
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix

from sos.config import get_profile
from sos.stages import BASSED5, FRANKLIN4
from sos.study import attention, cohort_figures, figures
from sos.study.training import Study

PLAIN = "plain full-image network"


@pytest.fixture(scope="module")
def study(tiny_cohort, tmp_path_factory):
    """A study of 24 virtual patients whose networks train for one epoch."""
    before = os.environ.get("SOS_HOME")
    os.environ["SOS_HOME"] = str(tmp_path_factory.mktemp("home"))
    smoke = get_profile("smoke")
    small = dict(frame_px=64, window_px=48, epochs=1, batch_size=8, precision="fp32")
    tiny = replace(smoke, name="tiny", native_px=256, bootstrap=50, teacher=smoke.teacher.with_(**small), baseline=smoke.baseline.with_(**small))
    study = Study(tiny, tiny_cohort, device="cpu")
    os.environ.pop("SOS_HOME") if before is None else os.environ.update(SOS_HOME=before)
    return study


@pytest.fixture(scope="module")
def runs(study):
    return {"crop teacher": study.teacher(), PLAIN: study.baseline()}


@pytest.fixture(scope="module")
def maps(study, runs):
    return attention.localisation(study, {PLAIN: runs[PLAIN]})


def draw(name, study, runs, maps):
    teacher, plain, virtual = runs["crop teacher"], runs[PLAIN], study.cohort.virtual
    return {
        "ages": lambda: cohort_figures.ages(study.cohort),
        "image_properties": lambda: cohort_figures.image_properties(study.cohort, study.store),
        "image_grid": lambda: cohort_figures.image_grid(study.cohort, study.store, pairs=1, size_px=64),
        "anatomy_plate": lambda: cohort_figures.anatomy_plate(study.cohort),
        "training_views": lambda: figures.training_views(study, teacher.config, 3),
        "learning_curves": lambda: figures.learning_curves({"crop teacher": [teacher, teacher], PLAIN: plain}),
        "confusion_matrix": lambda: figures.confusion_matrix(runs),
        "error_gallery": lambda: figures.error_gallery(study, teacher, 4),
        "cam_panels": lambda: figures.cam_panels(study, teacher, {PLAIN: plain}, size_px=64),
        "localisation_bars": lambda: figures.localisation_bars(attention.summary(maps, 50), virtual),
        "joint_distances": lambda: figures.joint_distances(attention.joint_distances(study, teacher, maps), virtual),
    }[name]()


FIGURES = ("ages", "image_properties", "image_grid", "anatomy_plate", "training_views", "learning_curves", "confusion_matrix", "error_gallery", "cam_panels",
           "localisation_bars", "joint_distances")


def texts(fig) -> list:
    """All texts that are drawn: not those of axes that are off, nor of ticks beyond the axis' limits."""
    hidden = set()
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond = [axis] if not ax.axison else [tick for tick in ticks if not low - 1e-9 <= tick.get_loc() <= high + 1e-9]
            hidden |= {id(text) for part in beyond for text in part.findobj(matplotlib.text.Text)}
    return [t for t in fig.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_whom_it_shows_repeats_to_the_byte_and_is_whole(name, study, runs, maps, tmp_path):
    fig = draw(name, study, runs, maps)
    assert "virtual patients" in fig.get_suptitle()
    assert any(character.isdigit() for character in fig.get_suptitle()), "no n"
    assert not plt.get_fignums(), "the figure was left open and would be shown twice"
    first, second = tmp_path / "a" / "first.png", tmp_path / "second.png"
    assert figures.save_figure(fig, first) is fig
    np.random.seed(99)
    torch.manual_seed(99)
    with plt.rc_context({"font.size": 20, "axes.facecolor": "red"}):  # what a user has set does not matter
        figures.save_figure(draw(name, study, runs, maps), second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in first.parent.iterdir()) == ["first.png"]
    width, height = fig.canvas.get_width_height()
    fig.draw_without_rendering()
    for text in texts(fig):
        box = text.get_window_extent()
        assert box.x0 >= -2 and box.y0 >= -2 and box.x1 <= width + 2 and box.y1 <= height + 2, f"cut off: {text.get_text()!r}"
        assert text.get_fontsize() >= 6.5 or "$" in text.get_text(), f"too small: {text.get_text()!r}"


def test_own_patients_are_not_called_virtual(study):
    own = type(study.cohort)(study.cohort.table.drop(columns="cohort_kind"), study.cohort.root, study.cohort.scheme, study.cohort.path)
    caption = cohort_figures.ages(own).get_suptitle()
    assert "24 patients" in caption and "virtual" not in caption


def test_ages_leaves_out_who_has_no_age_or_sex_and_says_how_many_are_left(study):
    table = study.cohort.table.copy()
    table.loc[:3, "age_y"] = np.nan
    table.loc[6, "sex"] = np.nan
    fig = cohort_figures.ages(type(study.cohort)(table, study.cohort.root, study.cohort.scheme, study.cohort.path))
    assert "19 virtual patients of known age and sex" in fig.get_suptitle()


def test_ages_without_any_age_says_so(study):
    unknown = type(study.cohort)(study.cohort.table.assign(age_y=np.nan), study.cohort.root, study.cohort.scheme, study.cohort.path)
    assert "0 virtual patients of known age and sex" in cohort_figures.ages(unknown).get_suptitle()


def test_images_of_unknown_spacing_are_left_out_and_not_counted(study, maps):
    known = study.cohort.table[~np.isnan(study.store.spacing_mm)]
    assert 0 < len(known) < len(study.cohort.table)
    titles = [ax.get_title("left") for ax in cohort_figures.image_properties(study.cohort, study.store).axes]
    assert [title.split()[-1] for title in titles[1:3]] == [str(len(known))] * 2 and titles[5].endswith(f"n = {len(study.cohort.table)}")
    held_out = known["split"].eq("test").sum()
    spoken = " ".join(figures.joint_distances(maps, True).get_suptitle().split())
    assert f"{held_out} virtual patients held out" in spoken
    assert ("known spacing" in spoken) == (held_out < len(study.cohort.subset("test")))


def test_stage_shares_by_age_add_up_to_one(study):
    for ax in cohort_figures.ages(study.cohort).axes[1:]:
        total = pd.Series([bar.get_height() for bar in ax.patches]).groupby([round(bar.get_x(), 6) for bar in ax.patches]).sum()
        assert set(total.round(9)) <= {0.0, 1.0} and (total > 0).any()


def test_confusion_matrix_shows_counts_and_row_percent(runs):
    run = runs["crop teacher"]
    expected = confusion_matrix(run.test["stage"], run.test["decided"], labels=run.scheme.labels)
    ax = figures.confusion_matrix({"crop teacher": run}).axes[0]
    shown = np.zeros_like(expected)
    for text in ax.texts:
        count, _, percent = text.get_text().partition("\n")
        i, j = int(text.get_position()[1]), int(text.get_position()[0])
        shown[i, j] = int(count)
        if percent:
            assert percent == f"{100 * expected[i, j] / expected[i].sum():.0f}"
    assert (shown == expected).all() and expected.sum() == len(run.test)
    assert f"{np.trace(expected)} of {expected.sum()} right" in ax.get_title(loc="left")


def test_worst_decisions_are_the_most_distant_then_the_surest(runs):
    class Fake:
        test = pd.DataFrame({"image": list("abcd"), "target": [0, 0, 2, 4], "stage": [1, 1, 3, 5], "decided": [2, 4, 3, 4],
                             "p1": [0.1, 0.0, 0, 0], "p2": [0.9, 0.1, 0, 0], "p3": [0, 0, 0.6, 0], "p4": [0, 0.9, 0.4, 0.6], "p5": [0, 0, 0, 0.4]})

    shown, wrong = figures.worst_decisions(Fake, 2)
    assert wrong == 3 and list(shown["image"]) == ["b", "a"]
    Fake.test = Fake.test.iloc[[2]]
    shown, wrong = figures.worst_decisions(Fake, 2)
    assert wrong == 0 and list(shown["image"]) == ["c"]


def test_learning_curves_draw_the_history_of_the_run(runs):
    run = runs[PLAIN]
    ax = figures.learning_curves({PLAIN: run}).axes[0]
    assert np.allclose(ax.lines[0].get_ydata(), run.history["train_loss"]) and np.allclose(ax.lines[1].get_ydata(), run.history["valid_loss"])


def test_bars_are_as_long_as_the_means_and_carry_their_intervals(maps):
    table = attention.summary(maps, 50)
    axes = figures.localisation_bars(table, True).axes
    for ax, metric in zip(axes, ("pointing", "energy", "iou"), strict=True):
        part = table[table["metric"] == metric]
        assert np.allclose([bar.get_width() for bar in ax.patches], part["value"])
        segments = ax.collections[0].get_segments()
        assert np.allclose([[s[0, 0], s[1, 0]] for s in segments], part[["low", "high"]], atol=1e-9)


def test_localisation_of_a_network_is_what_its_run_has_saved(runs, maps):
    mine = maps[maps["source"] == PLAIN].set_index("image")
    saved = runs[PLAIN].test.set_index("image").loc[mine.index]
    for name in ("pointing", "energy", "iou"):
        assert np.allclose(mine[name], saved[name], atol=1e-4), name
    half_a_cell = runs[PLAIN].config.output_stride / runs[PLAIN].config.frame_px / 2
    assert (mine[["peak_x", "peak_y"]] - saved[["peak_x", "peak_y"]]).abs().max(axis=None) <= half_a_cell  # a map is flat there, at its border


def test_teacher_takes_part_in_the_distances_from_the_joint(study, runs, maps):
    table = attention.joint_distances(study, runs["crop teacher"], maps)
    assert list(table["source"].unique()) == ["crop teacher", PLAIN, *attention.CONTROLS]
    assert (table.groupby("source")["joint_mm"].size() == study.cohort.subset("test").shape[0]).all()
    teacher = table[table["source"] == "crop teacher"]
    rows = attention.image_rows(study.cohort, teacher["image"])
    side_mm = (attention.windows(study.store, rows)[:, 2:] - attention.windows(study.store, rows)[:, :2])[:, 0].numpy()
    side_mm = side_mm * study.store.sizes[rows].max(1) * study.store.spacing_mm[rows]
    known = ~np.isnan(side_mm)
    assert (teacher["joint_mm"].notna() == known).all() and known.any()
    assert (teacher["joint_mm"].to_numpy() <= side_mm * 2**0.5)[known].all()  # peak and joint both lie in the window


def test_distances_without_the_truth_are_empty_and_the_figure_says_so(study, runs, maps):
    table = attention.joint_distances(study, runs["crop teacher"], maps.drop(columns="joint_mm"))
    assert table.empty
    assert any("unknown" in text.get_text() for text in texts(figures.joint_distances(table, True)))


def test_notebook_03_can_sum_up_distances_of_a_cohort_without_the_place_of_the_joint(study, runs, maps):
    table = attention.joint_distances(study, runs["crop teacher"], maps.drop(columns="joint_mm"))
    assert table.groupby("source", sort=False)["joint_mm"].quantile([0.5, 0.9]).unstack().empty  # TypeError where the empty column is of objects


@pytest.mark.parametrize("scheme", [BASSED5, FRANKLIN4], ids=lambda s: s.name)
def test_stage_colours_darken_with_fusion(scheme):
    weights = np.array([0.2126, 0.7152, 0.0722])
    lightness = [np.array(matplotlib.colors.to_rgb(c)) @ weights for c in figures.stage_colours(scheme)]
    assert len(lightness) == len(scheme) and (np.diff(lightness) < -0.05).all()


def test_example_rows_keep_to_their_stage_and_split(study):
    for label in study.cohort.scheme.labels:
        rows = figures.example_rows(study.cohort, label, 2, "train")
        part = study.cohort.table.loc[rows]
        assert (part["stage"] == label).all() and (part["split"] == "train").all() and len(set(rows)) == len(rows)
    assert figures.example_rows(study.cohort, 1, 0) == []


def test_study_imports_without_matplotlib():
    done = subprocess.run([sys.executable, "-c", "import sys, sos.study; print('matplotlib' in sys.modules)"], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_ages_shows_the_published_means_in_their_colours_and_none_for_other_phases(study, monkeypatch):
    def diamonds():
        return {line.get_color(): line for line in cohort_figures.ages(study.cohort).axes[0].lines if line.get_marker() == "D"}

    drawn = diamonds()
    assert drawn[figures.SEX_COLOURS["F"]].get_ydata() == pytest.approx([15.25, 13.25, 9.75, 11.67])  # by name: fused, mostly, open, partial
    assert drawn[figures.SEX_COLOURS["M"]].get_ydata() == pytest.approx([16.41, 14.44, 11.07, 12.95])
    assert [round(x) for x in drawn[figures.SEX_COLOURS["F"]].get_xdata()[1:]] == [2, 0, 1]
    fused = [drawn[colour].get_xdata()[0] for colour in figures.SEX_COLOURS.values()]
    assert 3.37 < fused[0] < fused[1] < 3.63  # between the boxes of stages 4 and 5
    monkeypatch.setattr(cohort_figures, "phases", lambda scheme: {})
    assert all(len(line.get_ydata()) == 0 for line in diamonds().values())
