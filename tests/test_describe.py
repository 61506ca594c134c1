"""Tables that describe a cohort: against sums, hand-counted agreement, and curves whose middle is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from sos.cohort.manifest import BOX, read_manifest
from sos.cohort.views import open_store
from sos.config import RunConfig
from sos.images.reader import read_image
from sos.stages import BASSED5
from sos.study import describe


@pytest.fixture(scope="module")
def cohort(tiny_cohort):
    return read_manifest(tiny_cohort)


@pytest.fixture(scope="module")
def store(cohort, tmp_path_factory):
    return open_store(cohort, tmp_path_factory.mktemp("cache"), 256)


def changed(cohort, **columns):
    return type(cohort)(cohort.table.assign(**columns), cohort.root, cohort.scheme, cohort.path)


def test_stage_table_adds_up(cohort):
    table = describe.stage_table(cohort)
    stages = table.iloc[:-1]
    counts = ["train", "valid", "test", "all", "F", "M"]
    assert (stages[counts].sum() == table.loc["all", counts]).all()
    assert table.loc["all", "all"] == len(cohort.table) == table.loc["all", ["train", "valid", "test"]].sum()
    ages = cohort.table["age_y"]
    assert table.loc["all", "age_y mean ± SD"] == f"{ages.mean():.1f} ± {ages.std():.1f}"


def test_stage_table_lives_with_unknown_ages(cohort):
    assert describe.stage_table(changed(cohort, age_y=np.nan)).loc["all", "age_y mean ± SD"] == "unknown"


def test_shares_of_female_patients_are_of_those_whose_sex_is_known(cohort):
    table = cohort.table.copy()
    train = table.index[table["split"] == "train"]
    table.loc[train, "sex"] = ["F", *["M"] * (len(train) - 1)]
    table.loc[train[2:], "sex"] = ""
    assert describe.split_table(replace(cohort, table=table)).loc["train", "F %"] == 50


def test_ages_of_one_image_have_no_standard_deviation(cohort):
    table = cohort.table.copy()
    table.loc[table.index[1:], "age_y"] = np.nan
    shown = describe.stage_table(replace(cohort, table=table))["age_y mean ± SD"]
    assert shown["all"] == f"{table['age_y'].iloc[0]:.1f}"


def test_split_table_tells_a_leak(cohort):
    assert (describe.split_table(cohort)["patients also elsewhere"] == 0).all()
    ids = cohort.table["patient_id"].copy()
    train, test = (cohort.table.index[cohort.table["split"] == split][0] for split in ("train", "test"))
    ids[test] = ids[train]
    leaking = describe.split_table(changed(cohort, patient_id=ids))["patients also elsewhere"]
    assert leaking.to_dict() == {"train": 1, "valid": 0, "test": 1}


def test_image_table_speaks_of_images_as_decoded_not_as_stored(cohort, store):
    table = describe.image_table(cohort, store)
    assert (store.scale < 1).all()
    for row in (0, 7, 23):
        image = read_image(cohort.image_path(row))
        assert (table["height_px"][row], table["width_px"][row]) == pytest.approx(image.pixels.shape, abs=1.5)
        assert max(table["height_px"][row], table["width_px"][row]) == max(image.pixels.shape)
        spacing_mm = np.nan if image.spacing_mm is None else image.spacing_mm
        assert table["spacing_mm"][row] == pytest.approx(spacing_mm, rel=1e-4, nan_ok=True)
        assert table["field_mm"][row] == pytest.approx(spacing_mm * max(image.pixels.shape), rel=1e-4, nan_ok=True)
        assert table["median_grey"][row] == pytest.approx(np.median(image.pixels), abs=0.02)
        x0, y0, x1, y1 = cohort.table.loc[row, BOX]
        assert table["box_share"][row] == pytest.approx(max(x1 - x0, y1 - y0) / image.pixels.shape[1], rel=1e-2)


def test_grey_histograms_are_shares_of_each_image_without_its_padding(store):
    shares = describe.grey_histograms(store, 32)
    assert shares.shape == (len(store.sizes), 32) and shares.sum(1) == pytest.approx(1)
    i = int(store.sizes[:, 0].argmin())
    height, width = store.sizes[i]
    assert shares[i, 0] == pytest.approx((store.pixels[i, :height, :width] < 8).mean())


def test_source_windows_are_those_of_the_reader(cohort):
    table = describe.source_windows(cohort, most=3)
    assert len(table) == 3
    assert tuple(table.loc[2, ["low", "high"]]) == read_image(cohort.image_path(len(cohort.table) - 1)).record["window"]


def test_sampling_table_counts_pixels(cohort, store):
    configs = {"window": RunConfig(role="teacher", window_px=96, window_scale=1.5), "frame": RunConfig(role="baseline", frame_px=192)}
    table = describe.sampling_table(cohort, store, configs, joint_mm=15)
    decoded = describe.image_table(cohort, store)
    assert table.loc["frame", "mm a pixel"] == pytest.approx(np.nanmedian(decoded["field_mm"]) / 192, abs=0.006)
    box_mm = (decoded["box_share"] * decoded["width_px"] * decoded["spacing_mm"]).median()
    assert table.loc["window", "mm a pixel"] == pytest.approx(1.5 * box_mm / 96, abs=0.006)
    assert table.loc["window", "px along 15 mm"] > table.loc["frame", "px along 15 mm"]


def test_sampling_table_of_screenshots_alone_is_unknown(cohort, store):
    blind = replace(store, spacing_mm=np.full_like(store.spacing_mm, np.nan))
    table = describe.sampling_table(cohort, blind, {"window": RunConfig(role="teacher"), "frame": RunConfig(role="baseline")})
    assert table.drop(columns="side px").isna().all(axis=None) and (table["side px"] > 0).all()


def test_transition_ages_find_the_middle_of_a_known_curve(cohort):
    rng = np.random.default_rng(3)
    n = 6000
    age_y, sex = rng.uniform(6, 22, n), np.where(np.arange(n) % 2, "F", "M")
    passed = rng.random(n) < 1 / (1 + np.exp(-1.3 * (age_y - np.where(sex == "F", 11.0, 13.0))))
    table = pd.DataFrame({"age_y": age_y, "sex": sex, "stage": 1 + passed})
    found = describe.transition_ages(type(cohort)(table, cohort.root, cohort.scheme, cohort.path))
    assert found.loc["1 to 2", "F"] == pytest.approx(11, abs=0.15) and found.loc["1 to 2", "M"] == pytest.approx(13, abs=0.15)
    assert found.loc["2 to 3":].isna().all(axis=None)  # nobody went further


def test_rater_agreement_equals_hand_counting(cohort):
    a, b = np.array([1, 1, 2, 2, 3, 3, 4, 5] * 3), np.array([1, 2, 2, 2, 3, 5, 4, 5] * 3)
    rated = cohort.table.assign(rater_1=a, rater_2=b, stage=a).drop(columns="rater_3")
    table = describe.rater_agreement(type(cohort)(rated, cohort.root, cohort.scheme, cohort.path))
    row = table.loc["rater 1 – rater 2"]
    assert (row["n"], row["agreement %"], row["within one stage %"]) == (24, 75.0, 87.5)
    chance = sum((a == k).mean() * (b == k).mean() for k in range(1, 6))
    assert row["kappa"] == pytest.approx((0.75 - chance) / (1 - chance), abs=1e-3)
    squares = np.subtract.outer(a, b) ** 2
    assert row["weighted kappa"] == pytest.approx(1 - ((a - b) ** 2).mean() / squares.mean(), abs=1e-3)
    assert table.loc["rater 1 – consensus", "kappa"] == 1


def test_without_readers_there_is_no_agreement(cohort):
    alone = cohort.table.drop(columns=["rater_1", "rater_2", "rater_3"])
    cohort = type(cohort)(alone, cohort.root, cohort.scheme, cohort.path)
    assert describe.rater_agreement(cohort).empty
    assert describe.accuracy_by_agreement(cohort, pd.DataFrame({"image": [], "decided": [], "stage": []})).empty


def test_accuracy_is_told_apart_by_agreement(cohort):
    readers = pd.DataFrame({"rater_1": [1] * 12 + [1] * 12, "rater_2": [1] * 12 + [2] * 12, "rater_3": 1})
    split = cohort.table.assign(**readers)
    predictions = split[["image", "stage"]].assign(decided=np.where(np.arange(24) % 4 == 0, 0, split["stage"])).sample(frac=1, random_state=0)
    predictions.loc[predictions.index >= 12, "decided"] = 0
    table = describe.accuracy_by_agreement(type(cohort)(split, cohort.root, cohort.scheme, cohort.path), predictions)
    assert table.loc["readers agree"].to_dict() == {"n": 12, "accuracy %": 75.0}
    assert table.loc["readers differ"].to_dict() == {"n": 12, "accuracy %": 0.0}


# ---- published ages, and what the label lets anyone reach ------------------------------------------------------------


def people(cohort, **columns):
    """A cohort of other people: only the table counts here."""
    n = len(next(iter(columns.values())))
    return type(cohort)(pd.DataFrame({"patient_id": [f"P{i}" for i in range(n)], **columns}), cohort.root, cohort.scheme, cohort.path)


def test_ages_beside_published_are_means_by_sex_and_phase(cohort):
    table = describe.ages_beside_published(people(cohort, stage=[1, 1, 4, 5, 5, 2], sex=list("FFFFMM"), age_y=[9.0, 10.0, 15.0, 17.0, 18.0, np.nan]))
    assert table.loc[("F", "open")].tolist() == [2, 9.5, 9.75, -0.25]
    assert table.loc[("F", "completely fused")].tolist() == [2, 16.0, 15.25, 0.75]  # with and without a scar
    assert table.loc[("M", "completely fused")].tolist() == [1, 18.0, 16.41, 1.59]
    assert table.loc[("M", "partially fused"), "n"] == 0 and np.isnan(table.loc[("M", "partially fused"), "difference"])
    assert table["published mean"].tolist() == [9.75, 11.67, 13.25, 15.25, 11.07, 12.95, 14.44, 16.41]  # PMC5565182


def test_virtual_people_are_within_a_year_and_a_half_of_the_published_means():
    from sos.cohort.manifest import Cohort
    from sos.phantom.population import draw_person

    drawn = [draw_person(2, i, np.random.default_rng([2, i]).spawn(3)[0]) for i in range(1800)]
    table = pd.DataFrame([{"patient_id": str(p.index), "age_y": p.age_y, "sex": p.sex, "stage": p.stage} for p in drawn])
    virtual = Cohort(table, None, BASSED5, None)
    assert describe.ages_beside_published(virtual)["difference"].abs().max() < 1.5
    correlation = describe.age_stage_correlation(virtual)
    assert (correlation["Spearman"] - correlation["published (Hasani et al. 2022)"]).abs().max() < 0.08


def test_age_stage_correlation_is_spearmans(cohort):
    from scipy.stats import spearmanr

    age_y, stage = [8.0, 9.0, 11.0, 12.0, 12.0, 15.0], [1, 2, 1, 3, 4, 5]
    table = describe.age_stage_correlation(people(cohort, stage=[*stage, 2], sex=[*"FFFFFF", "M"], age_y=[*age_y, 12.0]))
    assert table.loc["F"].tolist() == pytest.approx([6, spearmanr(age_y, stage).statistic, 0.783], abs=1e-3)
    assert table.loc["M", "n"] == 1 and np.isnan(table.loc["M", "Spearman"])


def test_ceiling_equals_hand_counting(cohort):
    label, truth = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1, 2, 3, 5, 3]
    a, b, c = [1, 2, 3, 4, 5, 2, 2, 3, 4, 1], [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1, 3, 3, 4, 5]
    rated = people(cohort, stage=label, stage_true=truth, rater_1=a, rater_2=b, rater_3=c)
    table = describe.ceiling(rated, 200)
    top = table.loc["true state against the label"]
    assert (top["n"], top["accuracy"], top["within_one"]) == (10, 0.8, 0.9)
    assert top["kappa"] == pytest.approx(cohen_kappa_score(label, truth, weights="quadratic"))
    first = table.loc["rater 1 against the other two"]  # who agree on nine: rater 1 is right on seven and one stage off on one
    assert (first["n"], first["accuracy"], first["within_one"]) == (9, pytest.approx(7 / 9), pytest.approx(8 / 9))
    kept = [i for i in range(10) if b[i] == c[i]]
    assert first["kappa"] == pytest.approx(cohen_kappa_score([a[i] for i in kept], [b[i] for i in kept], weights="quadratic"))
    assert table.loc["rater 2 against the other two"][["n", "accuracy"]].tolist() == [7, 1.0]
    assert (table["accuracy_low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["accuracy_high"]).all()
    assert describe.ceiling_text(table).loc["true state against the label", "accuracy %"].startswith("80.0 (")


def test_ceiling_has_only_the_rows_that_the_manifest_allows(cohort):
    assert len(describe.ceiling(cohort, 50)) == 4
    unknown = type(cohort)(cohort.table.drop(columns="stage_true"), cohort.root, cohort.scheme, cohort.path)
    assert [name[:5] for name in describe.ceiling(unknown, 50).index] == ["rater"] * 3
    two = type(cohort)(cohort.table.drop(columns=["stage_true", "rater_3"]), cohort.root, cohort.scheme, cohort.path)
    assert describe.ceiling(two, 50).empty and describe.ceiling_text(describe.ceiling(two, 50)).empty
