"""Agreement of readers: against scikit-learn, a published table, and by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from sos.cohort.reviews import add_review, read_reviews
from sos.errors import CohortError
from sos.stages import BASSED5, FRANKLIN4
from sos.study.agreement import agreement, fleiss_kappa, readings, weighted_kappas


def table(n=8, stage=(1, 2, 3, 4, 5, 1, 2, 3)):
    return pd.DataFrame({"patient_id": [f"p{i}" for i in range(n)], "image": [f"{i}.png" for i in range(n)], "stage": stage})


def said(path, *lines):
    for who, patient, field, value in lines:
        add_review(path, who, patient, field, value)
    return read_reviews(path)


def test_each_readers_last_stage_counts_and_a_blind_reading_more(tmp_path):
    reviews = said(tmp_path / "r.csv", ("AB", "p0", "stage", 2), ("AB", "p0", "stage", 3), ("AB", "p1", "reading", 4), ("AB", "p1", "stage", 2),
                   ("CD", "p0", "reading", 1), ("CD", "p2", "box", (1, 2, 3, 4)))
    got = readings(table(), reviews, BASSED5)
    assert list(got) == ["AB", "CD", "manifest"] and got.loc[0].tolist() == [3, 1, 1] and got.loc[1, "AB"] == 4
    assert got["CD"].notna().sum() == 1 and got.loc[2:, "AB"].isna().all()


def test_pairs_agree_as_scikit_learn_has_it(tmp_path):
    stages = {"AB": (1, 2, 3, 4, 5, 2), "CD": (1, 3, 3, 5, 5, 1)}
    reviews = said(tmp_path / "r.csv", *((who, f"p{i}", "reading", stage) for who, given in stages.items() for i, stage in enumerate(given)))
    got = agreement(table(), reviews, BASSED5, bootstrap=300).set_index(["one", "other"])
    pair = got.loc[("AB", "CD")]
    assert pair["images"] == 6 and pair["agreement"] == 3 / 6
    assert pair["kappa"] == pytest.approx(cohen_kappa_score(stages["AB"], stages["CD"], weights="quadratic", labels=[1, 2, 3, 4, 5]))
    assert pair["low"] < pair["kappa"] < pair["high"] <= 1
    assert got.loc[("AB", "manifest"), "agreement"] == 5 / 6 and len(got) == 3


def test_intervals_come_from_the_same_kappa():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 40)
    b = np.clip(a + rng.integers(-1, 2, 40), 0, 3)
    counts = rng.multinomial(40, np.full(40, 1 / 40), 5)
    wanted = [cohen_kappa_score(np.repeat(a, c), np.repeat(b, c), weights="quadratic", labels=[0, 1, 2, 3]) for c in counts]
    assert weighted_kappas(a, b, counts, FRANKLIN4) == pytest.approx(wanted)


def test_pairs_without_common_images_or_with_one_stage_have_no_kappa(tmp_path):
    reviews = said(tmp_path / "r.csv", ("AB", "p0", "stage", 1), ("CD", "p5", "stage", 1))
    got = agreement(table(), reviews, BASSED5, bootstrap=50).set_index(["one", "other"])
    assert got.loc[("AB", "CD"), "images"] == 0 and np.isnan(got.loc[("AB", "CD"), "kappa"])
    assert got.loc[("AB", "manifest"), "agreement"] == 1 and np.isnan(got.loc[("AB", "manifest"), "kappa"])
    assert agreement(table(), reviews.iloc[:0], BASSED5).empty


def test_fleiss_kappa_by_hand(tmp_path):
    votes = {"A": (1, 1, 2, 2), "B": (1, 2, 2, 2), "C": (1, 1, 2, 1)}
    reviews = said(tmp_path / "r.csv", *((who, f"p{i}", "reading", stage) for who, given in votes.items() for i, stage in enumerate(given)))
    got = fleiss_kappa(table(), reviews, BASSED5)  # pairs that agree: 1, 1/3, 1, 1/3; both stages are given six times of twelve
    assert (got["readers"], got["images"]) == (3, 4) and got["kappa"] == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))
    assert np.isnan(fleiss_kappa(table(), reviews[reviews["who"] != "C"], BASSED5)["kappa"])


def test_a_stage_outside_the_scheme_is_named_with_its_line_and_not_counted_as_another(tmp_path):
    reviews = said(tmp_path / "r.csv", ("AB", "p0", "reading", 2), ("AB", "p1", "reading", 7), ("CD", "p1", "box", (1, 2, 3, 4)))
    for measure in (agreement, fleiss_kappa):
        with pytest.raises(CohortError, match="r.csv, line 3: AB's stage 7 is not in the scheme 'bassed5'"):
            measure(table(), reviews, BASSED5)
        with pytest.raises(CohortError, match="the manifest's stage 4 of 3.png is not in the scheme 'franklin4'"):
            measure(table(), reviews, FRANKLIN4)
    reviews = said(tmp_path / "r.csv", ("AB", "p1", "reading", 3))  # corrected
    assert readings(table(), reviews, BASSED5)["AB"].dropna().tolist() == [2, 3]


def test_no_reader_may_be_called_as_the_manifest(tmp_path):
    with pytest.raises(CohortError, match="a reader is called 'manifest'"):
        agreement(table(), said(tmp_path / "r.csv", ("manifest", "p0", "stage", 1)), BASSED5)
