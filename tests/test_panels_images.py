"""The panels that show images: who is shown, in which window of grey values, with what drawn over it; and a virtual patient that follows sliders."""

import base64
import html
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets import HTML
from matplotlib.patches import Rectangle
from PIL import Image

from sos.cohort.batches import ViewLoader
from sos.cohort.cameras import MEAN, STD
from sos.config import RunConfig
from sos.errors import ConfigError
from sos.method.models import build
from sos.panels import patient as patient_panel
from sos.panels.base import as_png
from sos.panels.browse import BAR_MM, BrowsePanel, browse
from sos.panels.patient import PatientPanel, Wish, draw, draw_patient
from sos.predict import Stager, load_stager
from sos.stages import BASSED5, FRANKLIN4
from sos.study.training import Study


@pytest.fixture(scope="module")
def study(tiny_cohort, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))
        study = Study("smoke", tiny_cohort)
        study.store  # decoded where SOS_HOME says
    return study


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Somebody's study: PNG files of unknown spacing, neither sex nor age nor device, e has two images."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path / "home"))
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (60, 80), np.uint8)).save(tmp_path / f"{i}.png")
    table = pd.DataFrame({"patient_id": [*"abcde", "e"], "image": [f"{i}.png" for i in range(6)], "stage": [1, 2, 3, 4, 5, 5], "age_y": np.nan,
                          "sex": "", "x0": 10.0, "y0": 20.0, "x1": 50.0, "y1": 45.0, "split": [*["train"] * 4, "test", "test"]})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return lambda **columns: Study("smoke", _written(table.assign(**columns), tmp_path / "manifest.csv"))


def _written(table, path):
    table.to_csv(path, index=False)
    return path


def shown(panel) -> np.ndarray:
    """(h, w) grey values, 0 to 1, of the picture that the panel shows."""
    data = re.search(r'base64,([^"]*)"', panel.picture.value)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) / 255


def said(panel) -> str:
    return html.unescape(re.sub("<[^>]*>", "", panel.message.value))


def names(panel) -> list[str]:
    return [name for name, _ in panel.patient.options]


# ---- a cohort ------------------------------------------------------------------------------------------------------


def test_filters_leave_those_they_name_and_say_when_they_leave_none(study):
    panel, table = browse(study), study.cohort.table
    assert len(names(panel)) == 24 and panel.row == 0
    panel.stage.value = 3
    panel.split.value = "train"
    left = table[(table["stage"] == 3) & (table["split"] == "train")]
    assert names(panel) == left["patient_id"].tolist() and panel.row == left.index[0]
    assert said(panel).startswith(f"Virtual patient {left['patient_id'].iloc[0]} (1 of {len(left)}): stage 3 (mostly), ")
    assert said(panel).endswith("; split train.")
    for sex, word in (("M", "male"), ("F", "female")):
        panel.sex.value = sex
        few = left[left["sex"] == sex]["patient_id"].tolist()
        assert names(panel) == few
        assert f", {word}, " in said(panel) if few else "set one of them to any" in said(panel) and panel.picture.value == ""
    panel.move(1)  # with or without anybody left
    panel.sex.value = panel.split.value = panel.stage.value = "any"
    assert len(names(panel)) == 24 and "<img" in panel.picture.value


def test_a_filter_keeps_the_patient_it_leaves_and_buttons_go_round(study):
    panel, table = browse(study), study.cohort.table
    panel.patient.value = row = int(table.index[table["stage"] == 4][1])
    panel.stage.value = 4
    assert panel.row == row and "(2 of " in said(panel)
    last = int(table.index[table["stage"] == 4][-1])
    panel.patient.value = last
    panel.next.click()
    assert panel.row == table.index[table["stage"] == 4][0]
    panel.previous.click()
    assert panel.row == last and table["patient_id"][last] in said(panel)
    panel.stage.value = 1
    assert panel.row == table.index[table["stage"] == 1][0]


def test_the_window_of_grey_values_is_that_of_both_pictures(study):
    panel = browse(study)
    panel.overlay.value = False
    places = slice(60, 380), slice(20, 500)  # within the image
    crop = slice(60, 400), slice(600, 940)
    means = []
    for level, width in ((0.5, 1.0), (0.0, 0.05), (1.0, 0.05)):
        panel.level.value, panel.width.value = level, width
        means.append([shown(panel)[part].mean() for part in (places, crop)])
    (whole, close), bright, dark = means
    assert min(bright) > 0.6 and max(dark) < 0.1 and 0.1 < whole < 0.6 and 0.1 < close < 0.6
    panel.level.value, panel.width.value = 0.4, 0.5
    for ax in panel.figure().axes:
        assert ax.images[0].get_clim() == pytest.approx((0.15, 0.65))


def test_the_crop_is_what_the_teacher_is_given(study):
    panel = browse(study)
    panel.patient.value = 5
    given, target = ViewLoader(study.store, [5], study.profile.run("teacher"), training=False).views(np.array([5]))
    crop = panel.figure().axes[1].images[0].get_array()
    np.testing.assert_allclose(crop, (given[0, 0] * STD + MEAN).clamp(0, 1), atol=1e-6)
    assert crop.shape == (study.profile.run("teacher").window_px,) * 2 and f"stage {BASSED5.labels[int(target)]} " in panel.words()


def test_overlay_shows_boxes_joint_and_scale_at_their_places(study):
    panel, table = browse(study), study.cohort.table
    panel.patient.value = row = int(table.index[table["spacing_mm"].notna()][3])
    ax = panel.figure().axes[0]
    x0, y0, x1, y1 = box = study.store.boxes[row]
    expert, teacher = (patch.get_bbox().extents for patch in ax.patches)
    side = max(x1 - x0, y1 - y0) * panel.teacher.window_scale / 2
    np.testing.assert_allclose(expert, box, atol=1e-3)
    np.testing.assert_allclose(teacher, [(x0 + x1) / 2 - side, (y0 + y1) / 2 - side, (x0 + x1) / 2 + side, (y0 + y1) / 2 + side], atol=1e-2)
    (outline,), scale = ax.collections, study.store.scale[row]
    points = np.vstack([path.vertices for path in outline.get_paths()])
    mask = np.asarray(Image.open(study.cohort.root / table.loc[row, "mask"])) > 127
    rows, columns = np.nonzero(mask)
    for ends, seen in ((points[:, 0], columns), (points[:, 1], rows)):
        assert [ends.min(), ends.max()] == pytest.approx([seen.min() * scale, (seen.max() + 1) * scale], abs=1.0)
    centre = next(line for line in ax.lines if line.get_marker() == "+")
    assert [centre.get_xdata()[0], centre.get_ydata()[0]] == pytest.approx((table.loc[row, ["joint_x", "joint_y"]].astype(float) + 0.5) * scale)
    bar = next(line for line in ax.lines if line.get_color() == "white").get_xdata()
    assert (bar[1] - bar[0]) / scale * table.loc[row, "spacing_mm"] == pytest.approx(BAR_MM, rel=0.02)
    panel.overlay.value = False
    bare = panel.figure().axes[0]
    assert not bare.patches and not bare.lines and not bare.collections and bare.get_legend() is None


def test_a_cohort_without_sex_age_device_and_spacing_is_shown_too(own):
    panel = browse(own())
    assert isinstance(panel, BrowsePanel) and names(panel) == ["a", "b", "c", "d", "e, 4.png", "e, 5.png"]
    assert panel.sex not in [control for row in panel.children for control in getattr(row, "children", ())]
    panel.move(-1)
    assert said(panel) == ("Patient e (6 of 6): stage 5 (fused), sex unknown, age unknown; 80 × 60 pixels, spacing unknown; split test.")
    ax = panel.figure().axes[0]
    assert len(ax.patches) == 2 and not ax.lines and not ax.collections
    assert [option for option, _ in panel.split.options] == ["any", "train", "test"]


def test_what_others_write_in_the_columns_of_virtual_cohorts_does_no_harm(own, tmp_path):
    Image.new("L", (80, 60)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_text("no picture")
    masks = ["empty.png", "broken.png", "nowhere.png", "../out.png", "", "1.png"]
    shutil.copy(tmp_path / "1.png", tmp_path.parent / "out.png")
    panel = browse(own(mask=masks, joint_x="left", joint_y=3.0, spacing_mm=["0.5", "wide", -1, 0, "", 0.25], device=[7, "", "", "", "", "C & D"]))
    assert "device 7" in said(panel) and "pixels of 0.5 mm" in said(panel) and not panel.figure().axes[0].collections
    panel.move(1)
    assert panel.picture.value == "" and "broken.png" in said(panel)
    for number in range(2, 5):
        panel.move(1)
        assert f"({number + 1} of 6)" in said(panel) and "spacing unknown" in said(panel) and not panel.figure().axes[0].collections
    panel.move(1)
    assert "device C & D" in said(panel) and len(panel.figure().axes[0].collections) == 1 and "device C &amp; D" in panel.picture.value


def test_a_study_that_cannot_be_read_is_told_in_one_line(own, tmp_path):
    for wrong in ({"stage": 9}, {"image": "nowhere.png"}, {"x1": 5.0}):
        told = browse(own(**wrong))
        assert isinstance(told, HTML) and 'role="alert"' in told.value and "\n" not in told.value
    (tmp_path / "0.png").write_bytes(b"no image")
    assert "image 0.png: " in browse(own()).value


def test_without_a_kernel_the_picture_is_there(study):
    for panel in (browse(study), draw_patient()):
        data = panel._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        picture = base64.b64decode(data["image/png"])
        assert Image.open(io.BytesIO(picture)).size[0] == 980 and base64.b64encode(picture).decode() in panel.picture.value
        assert f'alt="{html.escape(said(panel))}"' in panel.picture.value


# ---- a virtual patient ---------------------------------------------------------------------------------------------

GIRL = Wish(7, 13.0, "F", 2.0, 1.0, 170)


@pytest.mark.parametrize("sex", ["F", "M"])
def test_the_joint_is_in_the_state_asked_for_whatever_the_age(sex):
    states = [replace(GIRL, sex=sex, fusion=at).person for at in np.arange(1, 5.01, 0.05).round(2)]
    for person, at in zip(states, np.arange(1, 5.01, 0.05).round(2), strict=True):
        assert person.fusion.position == pytest.approx(at, abs=1e-6)
        assert person.fusion.stage == int(np.floor(at + 0.5)) == person.stage and person.age_y == 13 and person.sex == sex
        assert (person.fusion.closed == 1) == (at >= 3.5) and (person.fusion.scar > 0) == (at >= 3.5)
    assert (np.diff([person.fusion.closed for person in states]) >= 0).all() and states[0].fusion.closed == 0
    assert replace(GIRL, sex=sex, age_y=21).person.fusion == replace(GIRL, sex=sex, age_y=7).person.fusion


def test_fusion_changes_the_joint_and_nothing_far_away():
    (open_, section), (fused, _) = draw(GIRL), draw(replace(GIRL, fusion=4.8))
    change = abs(open_.pixels - fused.pixels)
    y, x = np.mgrid[:open_.pixels.shape[0], :open_.pixels.shape[1]]
    away_mm = np.hypot(x - section.landmarks["joint"][0], y - section.landmarks["joint"][1]) * open_.spacing_mm
    assert change[section.joint].mean() > 5 * change[away_mm < 30].mean() and change[section.joint].max() > 0.15
    assert (change[away_mm > 50] == 0).all()


def test_the_joint_stays_as_it_is_while_the_head_grows():
    """In a cohort all details come from one row of numbers: a structure that appears at some age changes those drawn after it."""
    for number in (7, 11):
        around = []
        for age_y in np.arange(7.0, 17.0):
            picture, section = draw(Wish(number, age_y, "F", 2.0, 0.0, 170))
            x, y = section.landmarks["joint"].astype(int)
            around.append(picture.pixels[y - 40:y + 40, x - 40:x + 40])
        assert np.abs(np.diff(around, axis=0)).mean((1, 2)).max() < 0.025


def test_age_sex_person_noise_and_field_change_what_they_say():
    picture, section = draw(GIRL)
    older, other = draw(replace(GIRL, age_y=20))
    assert other.landmarks["symphysis"][1] > section.landmarks["symphysis"][1] + 5  # pixels: the face is longer
    np.testing.assert_allclose(other.landmarks["joint"], section.landmarks["joint"])
    boy = draw(replace(GIRL, sex="M", age_y=20))[1]
    assert boy.landmarks["symphysis"][1] > other.landmarks["symphysis"][1]
    assert abs(draw(replace(GIRL, number=8))[0].pixels - picture.pixels).mean() > 0.05
    wide = draw(replace(GIRL, field_mm=240))
    assert wide[0].spacing_mm == 240 / 560 and wide[0].pixels.shape == picture.pixels.shape == (512, 560)
    assert wide[1].joint.sum() / section.joint.sum() == pytest.approx((170 / 240) ** 2, rel=0.1)
    grain = [np.diff(draw(replace(GIRL, noise=noise))[0].pixels[100:200, 150:200], axis=1).std() for noise in (0.0, 1.0, 3.0)]
    assert grain[0] < 0.5 * grain[1] < 0.5 * grain[2]


@pytest.mark.parametrize("wrong", [{"fusion": 5.2}, {"fusion": np.nan}, {"age_y": 40}, {"sex": "X"}, {"noise": -1}, {"field_mm": 90}, {"number": -1}])
def test_what_cannot_be_drawn_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(GIRL, **wrong)


class Counted(Stager):
    looks = 0

    def look(self, image):
        type(self).looks += 1
        return super().look(image)


def counted(stager: Stager) -> Counted:
    return Counted(**{name: getattr(stager, name) for name in ("net", "config", "scheme", "source", "temperature", "virtual")})


def test_each_control_moves_the_picture_and_costs_one_drawing_and_one_look(monkeypatch):
    drawn, threads = [], torch.get_num_threads()
    monkeypatch.setattr(patient_panel, "draw_section", lambda *args, real=patient_panel.draw_section, **how: drawn.append(1) or real(*args, **how))
    patient_panel.draw.cache_clear()
    Counted.looks = 0
    panel = draw_patient(counted(load_stager("released")))
    pictures, sentences = {panel.picture.value}, {said(panel)}
    moves = {"fusion": 4.2, "age": 17.0, "sex": "M", "noise": 2.0, "field": 220, "number": 12}
    for name, value in moves.items():
        getattr(panel, name).value = value
        pictures.add(panel.picture.value)
        sentences.add(said(panel))
    assert len(pictures) == 7 and len(sentences) > 5 and len(drawn) == Counted.looks == 7
    panel.heat.value = False
    assert panel.picture.value not in pictures and len(drawn) == Counted.looks == 7
    assert np.ptp(np.asarray(Image.open(io.BytesIO(panel.still())))[30:360, 10:370], axis=2).mean() < 1  # grey but for the outline of the close-up
    assert torch.get_num_threads() == threads


def test_the_released_student_follows_the_joint_and_not_the_age():
    panel = draw_patient()

    def expected(**moved):
        return panel.stager.look(draw(replace(GIRL, **moved))[0])["expected_stage"]

    assert expected(fusion=4.8) - expected(fusion=1.2) > 2.5
    ages = [expected(age_y=age) for age in (8.0, 13.0, 19.0)]
    assert max(ages) - min(ages) < 1.2


def test_what_is_painted_over_the_rest_looks_as_if_all_was_drawn_anew():
    panel = draw_patient()
    panel.fusion.value = 4.5
    panel.fusion.value = 1.5
    quick, whole = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float) for png in (panel.still(), as_png(panel.figure())))
    assert quick.shape == whole.shape and (abs(quick - whole).max(2) > 40).mean() < 2e-3


def test_the_sentence_and_the_bars_say_what_the_network_said():
    panel = draw_patient()
    panel.fusion.value = 4.0
    answer = panel.stager.look(draw(panel.wish)[0])
    assert [bar.get_width() for bar in panel.drawn.bars] == pytest.approx(answer["probabilities"], abs=1e-5)
    assert [mark.get_ydata()[0] for mark in panel.drawn.marks] == pytest.approx([answer["expected_stage"], 4.0, panel.wish.usual], abs=1e-4)
    assert panel.wish.usual == pytest.approx(2.98, abs=0.01)
    scar = panel.wish.person.fusion.scar
    assert said(panel).startswith("Virtual patient 7, female, 13.00 years: the joint is drawn at 4.00, "
                                  f"stage 4 (scar; scar, {scar:.0%} of a fresh one); usual at this age and sex is 2.98. The network (released ")
    assert f"reads stage {answer['stage']} (" in said(panel) and said(panel).endswith(f"expected stage {answer['expected_stage']:.2f}.")


def test_a_network_of_another_scheme_speaks_in_its_own_stages():
    torch.manual_seed(0)
    config = RunConfig(role="baseline", frame_px=96)
    panel = PatientPanel(Stager(build(config, 4).eval(), config, FRANKLIN4, "untrained"))
    label = panel.answer["stage"]
    assert f"(untrained) reads stage {label} ({FRANKLIN4.names[label]})" in said(panel) and "stage 2 (endocranial;" in said(panel)
    assert len(panel.drawn.bars) == 4 and len(panel.drawn.marks) == 1 and "<img" in panel.picture.value


def test_a_network_that_is_none_is_told_in_its_place(tmp_path):
    told = draw_patient(tmp_path / "nowhere")
    assert isinstance(told, HTML) and "no run here" in told.value and 'role="alert"' in told.value


# ---- in JupyterLab -------------------------------------------------------------------------------------------------


def picture(page) -> str:
    return page.locator(".sos-panel img").get_attribute("src")


def test_a_cohort_is_browsed_by_mouse_and_keyboard_in_jupyterlab(lab, own, tmp_path):
    own()
    page = lab("import os; os.environ['SOS_HOME'] = '.'\nfrom sos.panels.browse import browse\nfrom sos.study.training import Study\n"
               "browse(Study('smoke', 'manifest.csv'))", tmp_path)
    sentence = page.locator(".sos-panel [role=status]")
    page.locator(".sos-panel", has_text="Patient a (1 of 6): stage 1 (open)").wait_for()
    seen = [picture(page)]
    page.locator(".sos-panel button", has_text="Next").click()
    page.locator(".sos-panel", has_text="Patient b (2 of 6): stage 2").wait_for()
    seen.append(picture(page))
    page.get_by_label("Split", exact=True).select_option("test")
    page.locator(".sos-panel", has_text="Patient e (1 of 2): stage 5 (fused)").wait_for()
    seen.append(picture(page))
    page.get_by_label("Patient", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.locator(".sos-panel", has_text="Patient e (2 of 2)").wait_for()
    seen.append(picture(page))
    before = sentence.inner_text()
    for key in ("Tab", "Tab", "Enter"):  # past Previous to Next, which comes round
        page.keyboard.press(key)
    page.locator(".sos-panel", has_text="Patient e (1 of 2)").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # the level
    page.locator(".widget-readout", has_text="0.51").wait_for()
    page.wait_for_function("seen => !seen.includes(document.querySelector('.sos-panel img').src)", arg=seen)
    seen.append(picture(page))
    page.get_by_label("Boxes, joint and scale").click()
    page.wait_for_function("seen => !seen.includes(document.querySelector('.sos-panel img').src)", arg=seen)
    page.keyboard.press("x")  # in the notebook's own command mode this cuts the cell
    assert page.locator(".jp-CodeCell").count() == 1 and page.get_by_role("slider").count() == 2
    assert len(set(seen)) == 5 and before != sentence.inner_text()
    assert page.locator(".sos-panel img").get_attribute("alt") == sentence.inner_text()
    page.set_viewport_size({"width": 1000, "height": 900})
    assert page.locator(".sos-panel").evaluate("panel => panel.scrollWidth <= panel.clientWidth")


def test_a_virtual_patient_follows_keys_and_mouse_in_jupyterlab(lab, tmp_path):
    page = lab("from sos.panels.patient import draw_patient\ndraw_patient()", tmp_path)
    sentence = page.locator(".sos-panel [role=status]")
    page.locator(".sos-panel", has_text="13.00 years: the joint is drawn at 2.00, stage 2").wait_for()
    seen = [picture(page)]
    page.get_by_role("slider", name="Fusion", exact=True).focus()
    page.keyboard.press("ArrowRight")
    page.locator(".sos-panel", has_text="the joint is drawn at 2.05, stage 2").wait_for()
    seen.append(picture(page))
    page.keyboard.press("End")
    page.locator(".sos-panel", has_text="the joint is drawn at 5.00, stage 5 (fused;").wait_for()
    seen.append(picture(page))
    assert float(re.search(r"expected stage ([\d.]+)\.$", sentence.inner_text())[1]) > 3.5
    place = page.get_by_role("slider", name="Age, years", exact=True).bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2 - 300, place["y"] + place["height"] / 2)
    page.mouse.up()
    page.locator(".sos-panel", has_text=" 6.00 years: the joint is drawn at 5.00, stage 5 (fused;").wait_for()
    seen.append(picture(page))
    page.get_by_label("Sex", exact=True).select_option("male")
    page.locator(".sos-panel", has_text="male, 6.00 years").wait_for()
    page.get_by_label("Grad-CAM over the picture").click()
    page.wait_for_function("seen => !seen.includes(document.querySelector('.sos-panel img').src)", arg=seen)
    assert len(set(seen)) == 4
    page.set_viewport_size({"width": 1000, "height": 900})
    assert page.locator(".sos-panel").evaluate("panel => panel.scrollWidth <= panel.clientWidth")
