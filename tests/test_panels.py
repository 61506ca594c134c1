"""The review tool without a browser: what a session drafts, writes and shows, and that its widgets call it and hide no error."""

import base64
import csv
import shutil

import numpy as np
import pandas as pd
import pytest
from ipywidgets import HTML
from PIL import Image

from sos.cohort.manifest import BOX, read_manifest
from sos.cohort.reviews import add_review
from sos.errors import CohortError, ConfigError, ImageError
from sos.panels.review import ReviewPanel, review
from sos.panels.session import ReviewSession
from sos.stages import FRANKLIN4


@pytest.fixture
def manifest(tmp_path):
    """Six images of five patients (e has two), 80 pixels wide and 60 high; b has no box, c no stage."""
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (60, 80), np.uint8)).save(tmp_path / f"{i}.png")
    table = pd.DataFrame({"patient_id": [*"abcde", "e"], "image": [f"{i}.png" for i in range(6)], "stage": [1, 2, np.nan, 4, 5, 5], "age_y": 9.0,
                          "sex": "F", "x0": 10.0, "y0": 20.0, "x1": 50.0, "y1": 45.0, "split": ""})
    table.loc[1, BOX] = np.nan
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def lines(manifest) -> list[tuple]:
    with manifest.with_name("reviews.csv").open(newline="") as file:
        return [(row["who"], row["patient_id"], row["field"], row["value"], row["note"], row["image"]) for row in csv.DictReader(file)]


def seen(manifest, who="AB", row=0, **options) -> ReviewSession:
    session = ReviewSession(manifest, who, **options)
    session.row = row
    return session


# ---- the session ---------------------------------------------------------------------------------------------------


def test_what_is_drafted_is_written_on_moving_on(manifest):
    session = seen(manifest)
    session.set_box((60.004, 50, 12, 8))
    session.set_stage(3)
    session.draft.note = "a step in the cortex"
    assert not manifest.with_name("reviews.csv").exists()
    assert session.next() == ["box 12 8 60 50 “a step in the cortex”", "stage 3"]
    assert lines(manifest) == [("AB", "a", "box", "12 8 60 50", "a step in the cortex", "0.png"), ("AB", "a", "stage", "3", "", "0.png")]
    assert session.case.number == 2 and session.draft.empty and session.previous() == []
    assert (session.case.stage, session.case.box) == (3, (12, 8, 60, 50)) and len(lines(manifest)) == 2


def test_a_note_alone_is_a_note_and_an_untouched_image_is_nothing(manifest):
    session = seen(manifest)
    session.draft.note = " dark \n"
    assert session.save() == ["note “dark”"] and session.save() == []
    assert lines(manifest) == [("AB", "a", "note", "", "dark", "0.png")] and session.reviewed == set()


def test_discard_forgets_the_draft(manifest):
    session = seen(manifest)
    session.set_stage(5)
    session.discard()
    assert session.next() == [] and not manifest.with_name("reviews.csv").exists()


def test_a_confirmed_stage_is_a_review_of_the_same_value(manifest):
    session = seen(manifest, row=3)
    session.confirm()
    session.save()
    assert lines(manifest) == [("AB", "d", "stage", "4", "", "3.png")] and session.changes["outcome"].tolist() == ["unchanged"]
    with pytest.raises(CohortError, match="no stage to confirm"):
        seen(manifest, row=2).confirm()


def test_a_line_with_single_spaces_is_the_reviewers_own_for_a_name_with_others(manifest):
    table = pd.read_csv(manifest)
    table.loc[3, "image"] = "3\u202fPM.png"
    manifest.with_name("3.png").rename(manifest.with_name("3\u202fPM.png"))
    table.to_csv(manifest, index=False)
    add_review(manifest.with_name("reviews.csv"), "AB", "d", "stage", 2, image="3 PM.png")
    session = seen(manifest, row=3)
    assert session.case.stage == 2 and len(session.case.reviews) == 1 and session.reviewed == {3}


def test_a_stage_outside_the_scheme_is_none_until_one_is_given(manifest):
    table = pd.read_csv(manifest)
    table.loc[3, "stage"] = 9
    table.to_csv(manifest, index=False)
    session = seen(manifest, row=3)
    assert session.case.stage is None
    with pytest.raises(CohortError, match="no stage to confirm"):
        session.confirm()


def test_only_the_image_in_front_is_reviewed_of_a_patient_with_two(manifest):
    session = seen(manifest, row=5)
    session.set_stage(2)
    session.draft.exclude = True
    session.next()
    assert {line[-1] for line in lines(manifest)} == {"5.png"}
    assert [seen(manifest, row=row).case.excluded for row in (4, 5)] == [False, True] and seen(manifest, row=4).case.stage == 5


def test_a_dispute_stands_until_somebody_gives_or_confirms_the_stage(manifest):
    mine, other = seen(manifest), seen(manifest, "CD")
    mine.draft.dispute = True
    mine.save()
    assert not other.case.disputed
    other.refresh()
    assert other.case.disputed and other.queue()[0] == 0
    other.confirm()
    other.save()
    mine.refresh()
    assert not mine.case.disputed and lines(manifest)[0][2:4] == ("dispute", "yes")


def test_another_persons_review_is_seen_after_a_refresh(manifest):
    mine = seen(manifest)
    add_review(manifest.with_name("reviews.csv"), "CD", "a", "stage", 4, "scar")
    assert mine.case.stage == 1
    mine.refresh()
    assert mine.case.stage == 4 and mine.case.reviews[["who", "note"]].values.tolist() == [["CD", "scar"]]


def test_the_queue_begins_with_what_is_in_dispute_then_incomplete_then_least_believed(manifest):
    pd.DataFrame({"image": ["0.png", "3.png", "4.png", "5.png"], "score": [0.5, 3.0, 2.0, 1.0], "reasons": ["", "read as stage 1", "", ""]}).to_csv(
        manifest.with_name("suspects.csv"), index=False)
    session = ReviewSession(manifest, "AB")
    assert session.row == 1 and session.queue() == [1, 2, 3, 4, 5, 0]
    add_review(manifest.with_name("reviews.csv"), "CD", "a", "dispute", "yes")
    add_review(manifest.with_name("reviews.csv"), "CD", "d", "exclude", "yes")
    session.set_box((0, 0, 9, 9))
    session.next_suspicious()
    assert session.row == 0 and session.queue() == [0, 2, 4, 5]
    session.go(4)
    assert session.case.suspicion == "read as stage 1"
    for row in (0, 2, 4, 5):
        session.row = row
        session.set_stage(1)
        session.save()
    with pytest.raises(CohortError, match="been through all"):
        session.next_suspicious()


def test_a_blind_reader_sees_no_label_and_no_other_and_changes_no_label(manifest):
    pd.DataFrame({"image": ["0.png"], "score": [9], "reasons": ["read as stage 5"]}).to_csv(manifest.with_name("suspects.csv"), index=False)
    add_review(manifest.with_name("reviews.csv"), "CD", "a", "stage", 4, "scar")
    session = ReviewSession(manifest, "AB", blind=True)
    assert session.queue() == list(range(6)) and session.case.stage is None and session.case.reviews.empty and session.case.suspicion == ""
    with pytest.raises(CohortError, match="no stage to confirm"):
        session.confirm()
    session.set_stage(2)
    session.next()
    assert lines(manifest)[-1] == ("AB", "a", "reading", "2", "", "0.png")
    session.previous()
    assert session.case.stage == 2 and session.reviewed == {0}  # one's own is shown
    assert seen(manifest, "EF").case.stage == 4  # the label is the other's
    bundle = ReviewPanel(session)
    words = "".join(widget.value for widget in (bundle.where, bundle.history, bundle.criterion))
    assert "scar" not in words and "CD" not in words and "suspicious" not in words


def test_moves_stay_inside_the_cohort(manifest):
    session = seen(manifest)
    session.previous()
    assert session.row == 0
    session.go(99)
    assert session.row == 5
    session.next()
    assert session.row == 5
    session.go_to("b")
    session.go_to("5.png")
    assert session.row == 5
    with pytest.raises(CohortError, match="no patient and no image 'zz'"):
        session.go_to("zz")


def test_a_box_is_cut_to_the_image_and_one_beside_it_refused(manifest):
    session = seen(manifest)
    session.set_box((-5, 30, 500, 70))
    assert session.draft.box == (0, 30, 80, 60)
    with pytest.raises(CohortError, match="holds no pixel of the image, which is 80 by 60"):
        session.set_box((90, 0, 120, 50))
    assert session.draft.box == (0, 30, 80, 60)


def test_stages_outside_the_scheme_are_refused(manifest):
    with pytest.raises(ConfigError, match="not in the scheme"):
        seen(manifest).set_stage(6)
    session = seen(manifest, scheme=FRANKLIN4)
    session.set_stage(0)
    assert session.save() == ["stage 0"]


def test_what_cannot_be_written_stays_drafted(manifest):
    session = seen(manifest)
    session.set_stage(3)
    manifest.with_name("reviews.csv").mkdir()
    with pytest.raises(CohortError, match="cannot be written"):
        session.next()
    assert session.row == 0 and session.draft.stage == 3
    manifest.with_name("reviews.csv").rmdir()
    assert session.next() == ["stage 3"]


def test_an_empty_manifest_of_collected_files_becomes_one_to_train_on(manifest):
    table = pd.read_csv(manifest).assign(stage=np.nan, x0=np.nan, y0=np.nan, x1=np.nan, y1=np.nan)
    table.to_csv(manifest, index=False)
    session = ReviewSession(manifest, "AB")
    for _ in range(6):
        session.set_box((10, 10, 40, 40))
        session.set_stage(session.row % 5 + 1)
        session.next()
    assert read_manifest(manifest).table["stage"].tolist() == [1, 2, 3, 4, 5, 1]


# ---- its widgets ---------------------------------------------------------------------------------------------------


def test_controls_call_the_session_and_show_what_was_written(manifest):
    panel = review(manifest, "AB")
    panel.session.go(1)
    panel.show(new=True)
    assert panel.canvas.box == [10, 20, 50, 45] and panel.stages.value == 1 and "a</b> · 1 of 6" in panel.where.value and panel.save.disabled
    panel.canvas.box = [12.0, 20.0, 50.0, 45.0]
    panel.stages.value = 2
    panel.note.value = "<b>bold</b>"
    assert panel.edges[0].value == 12 and panel.canvas.drafted and not panel.save.disabled and "at most half" in panel.criterion.value
    before = panel.canvas.picture
    panel.next.click()
    assert [line[1:5] for line in lines(manifest)] == [("a", "box", "12 20 50 45", "<b>bold</b>"), ("a", "stage", "2", "")]
    assert "written for a: box 12 20 50 45" in panel.message.value and panel.canvas.picture != before and panel.note.value == ""
    assert panel.session.case.patient_id == "b" and "no box yet" in panel.where.value and panel.canvas.box == []
    panel.previous.click()
    assert "&lt;b&gt;bold&lt;/b&gt;" in panel.history.value and "<b>bold" not in panel.history.value


def test_showing_an_image_drafts_nothing(manifest):
    panel = review(manifest, "AB")
    for _ in range(6):
        panel.next.click()
    panel.jump.value = "d"
    assert panel.session.case.patient_id == "d" and panel.session.draft.empty and not manifest.with_name("reviews.csv").exists()


def test_numbers_typed_one_by_one_become_a_box(manifest):
    panel = review(manifest, "AB")
    panel.session.go(2)
    panel.show(new=True)
    for edge, value in zip(panel.edges, (5, 6, 30, 40), strict=True):
        assert panel.session.draft.box is None
        edge.value = value
    assert panel.session.draft.box == (5, 6, 30, 40) and panel.canvas.box == [5, 6, 30, 40] and panel.message.value == ""


def test_keys_do_what_buttons_do(manifest):
    panel = review(manifest, "AB")
    panel.session.go(1)
    for key in ("3", "Enter", "ArrowLeft", "5", "Escape", "c", "ArrowRight", "F5"):
        panel.press(key)
    assert [line[1:4] for line in lines(manifest)] == [("a", "stage", "3")] * 2 and panel.session.row == 1
    panel.press("9")
    assert "not in the scheme" in panel.message.value


def test_dispute_and_exclude_are_switches(manifest):
    panel = review(manifest, "AB")
    panel.session.go(1)
    panel.show(new=True)
    panel.exclude.value = True
    panel.dispute.value = True
    panel.dispute.value = False
    panel.save.click()
    assert [line[2:4] for line in lines(manifest)] == [("exclude", "yes")] and "excluded" in panel.where.value
    panel.exclude.value = False
    panel.save.click()
    assert lines(manifest)[-1][2:4] == ("exclude", "no")


def test_faults_are_told_in_the_panel(manifest, tmp_path):
    assert "no such manifest" in review(tmp_path / "absent.csv", "AB").value
    assert "who must not be empty" in review(manifest, " ").value
    (tmp_path / "0.png").write_bytes(b"no picture")
    panel = review(manifest, "AB")
    panel.jump.value = "zz"
    assert "no patient and no image" in panel.message.value
    panel.jump.value = "a"
    assert "0.png" in panel.message.value and 'role="alert"' in panel.message.value and panel.canvas.picture == b""
    with pytest.raises(ImageError):
        panel.session.image()
    manifest.write_text(manifest.read_text().replace("0.png", "/etc/hostname"))
    panel = review(manifest, "AB")
    panel.jump.value = "a"
    assert "hostname: lies outside the manifest" in panel.message.value
    manifest.with_name("reviews.csv").write_text("when,who\n")
    panel.refresh.click()
    assert "not a file of reviews" in panel.message.value
    manifest.with_name("suspects.csv").write_text("a,b\n")
    assert "not a table of suspects" in review(manifest, "AB").value


def test_readers_without_a_kernel_get_a_picture(manifest):
    bundle = review(manifest, "AB")._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in bundle


def test_every_control_has_a_name(manifest):
    panel = review(manifest, "AB")
    names = [getattr(widget, "description", "") for widget in vars(panel).values()
             if hasattr(widget, "description") and not isinstance(widget, HTML)]
    assert all(names) and len(names) >= 14 and [edge.description for edge in panel.edges] == ["x0", "y0", "x1", "y1"]


def test_a_dicom_cohort_is_paged_through(tiny_cohort, tmp_path):
    folder = shutil.copytree(tiny_cohort.parent, tmp_path / "cohort")
    session = ReviewSession(folder / "manifest.csv", "AB")
    assert session.image().pixels.ndim == 2 and session.case.box is not None and len(session) == 24
