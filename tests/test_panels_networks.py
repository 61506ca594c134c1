"""Panels on trained networks: what they say equals what the study has saved or what is computed apart, and nothing is changed by looking."""

import base64
import hashlib
import io
import os
import pickle
import re
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_figures import texts
from torch import nn

from sos.cohort.batches import ViewLoader
from sos.config import ATTENTION_DISTANCES, EVIDENCES, MODELS, get_profile
from sos.method.cam import box_mask, explain, judge_map, map_of
from sos.method.distill import distillation_terms
from sos.panels.base import as_png
from sos.panels.heatmaps import HeatMaps, heatmaps
from sos.panels.journey import STEPS, Journey, journey
from sos.panels.networks import Networks, Styled
from sos.panels.terms import STEP, Terms, terms
from sos.study.attention import image_rows, look, windows
from sos.study.figures import STYLE
from sos.study.training import CLIP, Study, frame_boxes

PANELS = (heatmaps, terms, journey)


def tiny_profile(**student):
    small = dict(frame_px=64, window_px=48, epochs=1, batch_size=8, precision="fp32")
    smoke = get_profile("smoke")
    return replace(smoke, name="tiny", native_px=256, bootstrap=20, teacher=smoke.teacher.with_(**small), baseline=smoke.baseline.with_(**small),
                   student=smoke.student.with_(**small, **student), zoom=smoke.zoom.with_(**small | dict(frame_px=96, glance_px=48)))


def study_in(folder, profile, device="cpu"):
    before = os.environ.get("SOS_HOME")
    os.environ["SOS_HOME"] = str(folder)
    study = Study(profile, folder / "cohort" / "manifest.csv", device)
    os.environ.pop("SOS_HOME") if before is None else os.environ.update(SOS_HOME=before)
    return study


@pytest.fixture(scope="module")
def home(tiny_cohort, tmp_path_factory):
    """A folder with a cohort of 24 virtual patients and the four main networks, trained for one epoch: what the browser's tests copy too."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_cohort.parent, folder / "cohort")
    (folder / "profile.pickle").write_bytes(pickle.dumps(tiny_profile()))
    study = study_in(folder, tiny_profile())
    for config in [study.profile.run(model) for model in MODELS]:
        study.obtain(config)
    return folder


@pytest.fixture(scope="module")
def study(home):
    return study_in(home, tiny_profile())


@pytest.fixture(scope="module")
def networks(study):
    return Networks(study)


@pytest.fixture
def heat(networks):
    return HeatMaps(networks)


@pytest.fixture
def lesson(networks):
    return Terms(networks)


@pytest.fixture
def way(networks):
    return Journey(networks)


@pytest.fixture
def undrawn(monkeypatch):
    """Panels that make no picture, for tests of what they say: drawing takes most of the time of a move."""
    monkeypatch.setattr(Styled, "still", lambda self: b"")


def picture(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.still())).convert("RGB"))


def digests(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def number(pattern, text) -> float:
    return float(re.search(pattern, text).group(1))


# ---- where networks look -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("model", ["baseline", "student", "zoom"])
def test_the_sentence_says_of_each_held_out_patient_what_is_saved_with_the_run(heat, networks, model):
    heat.model.value = model
    saved = networks.runs[model].test
    rows = image_rows(networks.study.cohort, saved["image"])
    assert set(rows) == {row for _, row in heat.patient.options}
    for row, case in zip(rows, saved.itertuples(), strict=True):
        heat.patient.value = int(row)
        words = heat.words()
        assert number(r"decides for stage (\d)", words) == case.decided and number(r"label is stage (\d)", words) == case.stage
        assert number(r"probability of ([\d.]+);", words) == pytest.approx(max(case[6:11]), abs=0.006)
        if "zero everywhere" in words:
            assert case.energy == 0 and case.pointing == 0
        else:
            assert ("peaks inside" in words) == bool(case.pointing)
            assert number(r"and (\d+) % of the heat", words) == pytest.approx(100 * case.energy, abs=0.6)
        assert f"virtual patient {case.patient_id} " in words and words in heat.message.value.replace("&#x27;", "'")


def test_without_opacity_the_picture_is_the_plain_one(heat, networks):
    class Plain(HeatMaps):
        def figure(self):
            fig = super().figure()
            for ax in fig.axes[:2]:
                ax.images[-1].remove()
            return fig

    covered = picture(heat).astype(int)
    heat.opacity.value = 0
    assert heat.still() == Plain(networks).still() and np.abs(picture(heat) - covered).max() > 40


@pytest.mark.usefixtures("undrawn")
def test_a_given_stage_and_layer_are_explained(heat, study, networks):
    run, row = networks.runs["student"], heat.patient.value
    for target in range(5):
        heat.stage.value = target
        assert torch.allclose(heat.seen().cam, look(study, run, [row], torch.tensor([target]))[1], atol=1e-6)
        assert heat.seen().empty or f"Its heat map for stage {target + 1} (" in heat.words()
    heat.stage.value, heat.layer.value = "label", "previous"
    frame, target = ViewLoader(study.store, [row], run.config, training=False).views(np.array([row]))
    assert torch.allclose(heat.seen().cam, explain(run.load(), frame, target, "previous")[1], atol=1e-6)
    heat.layer.value = "last"
    assert torch.allclose(heat.seen().cam, explain(run.load(), frame, target, "last")[1], atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_a_teachers_heat_lies_in_its_window(heat, study, networks):
    heat.model.value = "teacher"
    row = heat.patient.value
    window = windows(study.store, [row])
    cam = heat.seen().cam
    assert cam.shape == (1, 32, 32) and cam.max() > 0 and cam[box_mask(window, 32) == 0].max() == 0
    assert "of the crop round the expert's box" in heat.words()
    inside = (torch.nn.functional.interpolate(cam[:, None], size=96, mode="bilinear")[:, 0] * box_mask(frame_boxes(study.store, [row]), 96)).sum()
    whole = torch.nn.functional.interpolate(cam[:, None], size=96, mode="bilinear").sum()
    assert number(r"and (\d+) % of the heat", heat.words()) == pytest.approx(100 * float(inside / whole), abs=0.6)


def test_a_map_of_zeros_is_said_to_be_one_and_has_no_peak(heat, monkeypatch, networks):
    assert all(len(ax.lines) == 1 for ax in heat.figure().axes[:2])
    seen, cam = networks.look("student", heat.patient.value, None, "last")
    monkeypatch.setattr(networks, "look", lambda *args: (seen, torch.zeros_like(cam)))
    assert "is zero everywhere" in heat.words() and " peaks " not in heat.words()
    assert all(len(ax.lines) == 0 for ax in heat.figure().axes[:2])


# ---- terms ---------------------------------------------------------------------------------------------------------


def by_hand(study, panel, net=None, layer="last"):
    """The batch of one patient, and its terms, as training would have them of a still scene."""
    runs, row, model = panel.networks.runs, panel.patient.value, panel.model.value
    config = runs[model].config.with_(temperature=panel.temperature.value, attn_distance=panel.distance.value, evidence=panel.evidence.value)
    net, mentor = runs[model].load() if net is None else net, runs["teacher"].load()
    frame, target = ViewLoader(study.store, [row], config, training=False).views(np.array([row]))
    crop, _ = ViewLoader(study.store, [row], runs["teacher"].config, training=False).views(np.array([row]))
    seen, cam = explain(mentor, crop, target, layer)
    previous = None
    if layer == "previous":
        lower = map_of(net, frame, "previous")
        previous = lower, judge_map(net, lower, "previous").logits
    own = net.look(frame)
    return distillation_terms(own, seen, cam, windows(study.store, [row]), target, config, previous), own, seen, target


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("model", ["student", "zoom"])
def test_terms_shown_are_those_of_the_batch(lesson, study, model):
    lesson.model.value = model
    lesson.patient.value = lesson.patient.options[2][1]
    lesson.temperature.value = 2.5
    for distance, evidence in zip(ATTENTION_DISTANCES, EVIDENCES, strict=True):  # neither depends on the other
        lesson.distance.value, lesson.evidence.value = distance, evidence
        expected = by_hand(study, lesson)[0]
        shown = lesson.measured()[0].terms
        assert list(shown) == list(expected) and ("L_aim" in shown) == (model == "zoom")
        for name, value in expected.items():
            assert shown[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
            assert f"× {name} {value.item():.3f} " in lesson.words()


@pytest.mark.usefixtures("undrawn")
def test_terms_of_the_previous_layer_are_those_of_the_batch(home, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    study = study_in(tmp_path / "home", tiny_profile(cam_layer="previous"))
    study.student()
    panel = Terms(Networks(study))
    expected = by_hand(study, panel, layer="previous")[0]
    assert panel.measured()[0].terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)
    batch = panel.lesson("student", panel.patient.value)
    assert not torch.allclose(panel.measured()[0].student_map, explain(panel.networks.net("student"), batch.frame, batch.target)[1][0])


@pytest.mark.usefixtures("undrawn")
def test_weights_make_the_total_and_its_shares(lesson):
    for name, weight in (("cls", 0.5), ("dist", 2.0), ("attn", 0.25)):
        lesson.weights[name].value = weight
    parts, unweighted = lesson.parts(lesson.measured()[1]), lesson.measured()[1].terms
    total = 0.5 * unweighted["L_cls"] + 2 * unweighted["L_dist"] + 0.25 * unweighted["L_attn"]
    for name, weight in (("L_cls", 0.5), ("L_dist", 2.0), ("L_attn", 0.25)):
        assert parts[name] == pytest.approx((unweighted[name], weight, weight * unweighted[name], weight * unweighted[name] / total))
    assert number(r"= ([\d.]+)\.$", lesson.words()) == pytest.approx(total, abs=6e-4)
    widths = [bar.get_width() for bar in lesson.figure().axes[1].patches]
    assert widths == pytest.approx([part[2] for part in parts.values()])


@pytest.mark.usefixtures("undrawn")
def test_bars_are_softened_and_the_distance_is_their_kl_times_t_squared(lesson):
    lesson.evidence.value = "none"  # of the image's logits alone
    for temperature in (0.5, 1.0, 4.0, 10.0):
        lesson.temperature.value = temperature
        seen = lesson.measured()[0]
        logits = [seen.teacher.double().numpy(), seen.student.double().numpy()]
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in logits)
        heights = [bar.get_height() for bar in lesson.figure().axes[0].patches]
        assert heights == pytest.approx([*p, *q], abs=1e-5)
        assert seen.terms["L_dist"] == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(), rel=1e-3, abs=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_equal_answers_have_no_distance(lesson, monkeypatch):
    lesson.evidence.value = "none"
    model, row = lesson.model.value, lesson.patient.value
    assert lesson.measured()[0].terms["L_dist"] > 0
    known, own = lesson.lesson(model, row), lesson.answer(model, row, 0)[0]
    monkeypatch.setattr(lesson, "lesson", lambda *args: known._replace(teacher=own))
    assert lesson.measured()[0].terms["L_dist"] == pytest.approx(0, abs=1e-6)
    assert lesson.measured()[0].terms["L_cls"] == pytest.approx(F.cross_entropy(own.logits, known.target).item(), rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_a_step_is_one_of_gradient_descent_on_a_copy_and_reset_takes_it_back(lesson, study, networks):
    run = networks.runs["student"]
    before, said = lesson.measured()[0], lesson.words()
    net = run.load()
    found = by_hand(study, lesson, net)[0]
    config = run.config
    (config.w_cls * found["L_cls"] + config.w_dist * found["L_dist"] + config.w_attn * found["L_attn"]).backward()
    nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    with torch.no_grad():
        for weight in net.parameters():
            weight -= STEP * weight.grad
    expected = by_hand(study, lesson, net)[0]
    lesson.step.click()
    after = lesson.measured()[1]
    assert after.terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-3)
    assert "1 step on this patient alone changed L_cls" in lesson.words()
    assert f"L_cls {before.terms['L_cls']:.3f} → {after.terms['L_cls']:.3f}" in lesson.words()
    lesson.steps.click()
    totals = [sum(part[2] for part in lesson.parts(measured).values()) for measured in (before, after, lesson.measured()[1])]
    assert totals[0] > totals[1] > totals[2] and "11 steps" in lesson.words()
    assert lesson.measured()[0].terms == before.terms
    lesson.reset.click()
    assert lesson.words() == said and lesson.reset.disabled
    lesson.step.click()
    lesson.patient.value = lesson.patient.options[1][1]
    assert "step" not in lesson.words(), "steps on one patient were shown on another"


@pytest.mark.usefixtures("undrawn")
def test_other_weights_change_what_a_step_does_and_none_leave_no_step(lesson):
    lesson.weights["cls"].value, lesson.weights["dist"].value, lesson.weights["attn"].value = 0, 0, 1
    before = lesson.measured()[0].terms
    lesson.steps.click()
    assert lesson.measured()[1].terms["L_attn"] < before["L_attn"]
    lesson.reset.click()
    lesson.weights["attn"].value = 0
    assert lesson.step.disabled and lesson.steps.disabled and "all weights are 0" in lesson.words()
    lesson.go(1)
    assert lesson.measured()[1].terms == before


@pytest.mark.usefixtures("undrawn")
def test_training_patients_can_be_looked_at_too(lesson, study):
    lesson.split.value = "train"
    assert {row for _, row in lesson.patient.options} == set(study.cohort.subset("train").index)
    assert lesson.patient.value == lesson.patient.options[0][1] and "<img" in lesson.picture.value


# ---- the way through both ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_outcomes_are_those_of_the_saved_predictions(way, networks):
    teacher, student = (networks.runs[model].test.set_index("image") for model in ("teacher", "student"))
    names = {(1, 1): "both right", (1, 0): "only the teacher right", (0, 1): "only the student right", (0, 0): "both wrong"}
    expected = {}
    for image, case in teacher.iterrows():
        key = int(case["decided"] == case["stage"]), int(student.at[image, "decided"] == case["stage"])
        expected.setdefault(names[key], []).append(image)
    assert {name for _, name in way.outcome.options} == set(expected)
    way.step.value = len(STEPS)
    for name, images in expected.items():
        way.outcome.value = name
        rows = [row for _, row in way.patient.options]
        assert networks.study.cohort.table.loc[rows, "image"].tolist() == [image for image in networks.study.cohort.table["image"] if image in images]
        assert way.words().endswith(f": {name}.") and f"({len(images)})" in dict(map(reversed, way.outcome.options))[name]


@pytest.mark.usefixtures("undrawn")
def test_steps_reveal_the_way_one_by_one(way):
    said = []
    for step in range(1, len(STEPS) + 1):
        assert way.step.value == step and len(way.figure().axes) == 2 * step and way.words().startswith(f"Step {step} of {len(STEPS)}. ")
        assert 2 <= len(re.findall(r"[a-z)]\.(?: |$)", way.words().partition(". ")[2])) <= 3, "two to three short sentences"
        said.append(way.words())
        way.next.click()
    assert len(set(said)) == len(STEPS) and way.next.disabled and not way.back.disabled and way.step.value == len(STEPS)
    way.back.click()
    assert way.step.value == len(STEPS) - 1 and way.words() == said[-2]


def test_without_a_kernel_the_whole_way_is_seen(way):
    way.step.value = 1
    data = way._repr_mimebundle_()
    kept = base64.b64decode((data[0] if isinstance(data, tuple) else data)["image/png"])
    assert kept != way.still()
    way.step.value = 6
    assert kept == way.still()


@pytest.mark.usefixtures("undrawn")
def test_places_of_the_window_are_read_off_the_students_scores(way, study, networks):
    row = way.patient.value
    spatial = look(study, networks.runs["student"], [row])[0].spatial  # (1, k, h, w)
    teacher = look(study, networks.runs["teacher"], [row])[0].spatial
    grid = teacher.shape[-1]
    x0, y0, x1, y1 = windows(study.store, [row])[0].tolist()
    fine = (torch.arange(2 * grid) + 0.5) / (2 * grid)  # two samples a place along each side
    across, down = x0 + (x1 - x0) * fine, y0 + (y1 - y0) * fine
    places = torch.stack([across.expand(2 * grid, -1), down[:, None].expand(-1, 2 * grid)], -1)[None] * 2 - 1
    expected = F.avg_pool2d(F.grid_sample(spatial, places, mode="bilinear", padding_mode="border", align_corners=False), 2)[0]
    assert torch.allclose(way.inside(row), expected, atol=1e-3)
    way.step.value = 4
    shown = [ax.images[0].get_array() for ax in way.figure().axes[6:8]]
    decided = int(networks.look("teacher", row)[0].logits.argmax())
    assert np.allclose(shown[0], teacher[0, decided]) and np.allclose(shown[1], expected[decided], atol=1e-3)


@pytest.mark.usefixtures("undrawn")
def test_heat_and_probabilities_of_the_way_are_those_of_evaluation(way, networks):
    row = way.patient.value
    case = networks.runs["student"].test.set_index("image").loc[networks.study.cohort.table.at[row, "image"]]
    way.step.value = 5
    told = way.words()[way.words().index("The student's"):]
    assert ("hottest inside" in told) == bool(case["pointing"]) and number(r"holds (\d+) %", told) == pytest.approx(100 * case["energy"], abs=0.6)
    way.step.value = 6
    heights = [bar.get_height() for bar in way.figure().axes[11].patches]
    assert heights == pytest.approx(case[[f"p{k + 1}" for k in range(5)]].astype(float).tolist(), abs=1e-4)


# ---- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_looking_changes_no_run_and_no_network(study, networks, heat, lesson, way):
    before, weights = digests(study.folder / "models"), {model: networks.net(model).state_dict() for model in MODELS}
    copies = {model: {name: value.clone() for name, value in state.items()} for model, state in weights.items()}
    drawn = torch.get_rng_state()
    for model in MODELS:
        heat.model.value = model
    for model in ("student", "zoom"):
        lesson.model.value = model
        lesson.steps.click()
    way.step.value = len(STEPS)
    assert digests(study.folder / "models") == before and torch.equal(torch.get_rng_state(), drawn)
    for model in MODELS:
        net = networks.net(model)
        assert all(torch.equal(value, copies[model][name]) for name, value in net.state_dict().items())
        assert not any(part.training for part in net.modules()) and all(weight.grad is None for weight in net.parameters())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("panel", PANELS)
def test_what_is_not_trained_yet_is_told_in_one_line(panel, study, home, tmp_path, monkeypatch):
    part = study_in(home, replace(study.profile, zoom=study.profile.zoom.with_(epochs=9)))
    assert isinstance(panel(part), (HeatMaps, Terms, Journey))
    none = study_in(home, replace(study.profile, teacher=study.profile.teacher.with_(epochs=9), baseline=study.profile.baseline.with_(epochs=9)))
    told = panel(none).value
    assert 'role="alert"' in told and "not trained yet" in told and "crop teacher" in told and "\n" not in told
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    assert "is not drawn yet; run notebook 01" in panel("quick").value and "no profile &#x27;quikc&#x27;" in panel("quikc").value
    assert list(tmp_path.iterdir()) == []


def test_heat_maps_name_the_networks_that_are_not_trained_yet(study, home):
    panel = heatmaps(study_in(home, replace(study.profile, zoom=study.profile.zoom.with_(epochs=9))))
    assert [model for _, model in panel.model.options] == ["teacher", "baseline", "student"]
    assert any("not trained yet: two-look student" in getattr(row.children[0], "value", "") for row in panel.children if hasattr(row, "children"))


def test_broken_weights_are_told_in_the_panel(home, tmp_path):
    folder = shutil.copytree(home, tmp_path / "home")
    study = study_in(folder, tiny_profile())
    panel = heatmaps(study)
    panel.networks.runs["baseline"].weights.write_bytes(b"nothing")
    panel.model.value = "baseline"
    assert panel.picture.value == "" and 'role="alert"' in panel.message.value and "not readable as safetensors" in panel.message.value
    panel.model.value = "student"
    assert "<img" in panel.picture.value and 'role="status"' in panel.message.value
    panel.networks.runs["teacher"].weights.unlink()  # as of a run whose weights were not kept
    assert [model for _, model in heatmaps(study).model.options] == ["baseline", "student", "zoom"]
    for other in (terms, journey):
        assert "not trained yet" in other(study).value and "crop teacher;" in other(study).value


def test_pictures_are_narrow_enough_and_whole_in_every_state(heat, lesson, way):
    heat.model.value, heat.stage.value = "zoom", 1
    lesson.model.value = "zoom"
    lesson.step.click()
    way.step.value = len(STEPS)
    for panel in (heat, lesson, way):
        still = panel.still()
        assert Image.open(io.BytesIO(still)).width <= 900
        with plt.style.context(["default", STYLE]):
            fig = panel.figure()
            assert as_png(fig) == still and base64.b64encode(still).decode() in panel.picture.value
        width, height = fig.canvas.get_width_height()
        for text in texts(fig):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"cut off: {text.get_text()!r}"
            assert text.get_fontsize() >= 7


# ---- in JupyterLab -------------------------------------------------------------------------------------------------

CELL = """import os, pickle
os.environ["SOS_HOME"] = "."
from sos.panels.{0} import {0}
from sos.study.training import Study
{0}(Study(pickle.load(open("profile.pickle", "rb")), "cohort/manifest.csv", "cpu"))"""


CUT = """() => [...document.querySelectorAll('.jp-OutputArea-output, .sos-panel, .sos-panel .widget-hbox, .sos-panel label, .sos-panel button')]
    .filter(e => e.scrollWidth > e.clientWidth && e.clientWidth > 0).map(e => e.className + e.innerText)"""


def shown(page):
    """The picture and the sentence."""
    image = page.locator(".sos-panel img")
    return image.get_attribute("src"), image.get_attribute("alt")


def changed(page, before):
    """The picture and the sentence, once the picture is another one than `before` and the sentence below it, which comes by itself, is its own."""
    page.wait_for_function("""src => {
        const image = document.querySelector('.sos-panel img'), below = [...document.querySelectorAll('.sos-plain')].at(-1);
        return image && image.src !== src && below && below.innerText === image.alt;
    }""", arg=before[0])
    return shown(page)


def opened(lab, name, home):
    page = lab(CELL.format(name), home)
    page.locator(".sos-panel[data-keys] img").wait_for()
    page.set_viewport_size({"width": 1000, "height": 900})
    assert page.evaluate(CUT) == [], "wider than the page, or a label is cut"
    return page, shown(page)


def handle(page, name):
    """The handle of a slider."""
    return page.locator(".widget-slider", has_text=name).locator(".noUi-handle")


def test_heat_maps_are_moved_by_keys_and_mouse(lab, home):
    page, before = opened(lab, "heatmaps", home)
    page.get_by_label("Network").select_option("two-look student")
    now = changed(page, before)
    assert "two-look student decides" in now[1] and "distilled student decides" in before[1]
    page.get_by_label("Network").focus()
    for name in ("Patient", "Explain", "Layer"):  # Tab goes through the controls in the order of reading
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.labels[0].innerText") == name
    page.keyboard.press("ArrowDown")  # in the notebook's own command mode it would leave the cell, and a letter might add or cut one
    previous = changed(page, now)
    assert page.get_by_label("Layer").input_value() == "previous layer"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    paler = changed(page, previous)
    assert paler[1] == previous[1] and page.locator(".widget-readout", has_text="0.95").is_visible()
    track = page.locator(".widget-slider", has_text="Opacity").locator(".noUi-target").bounding_box()
    page.mouse.click(track["x"] + 2, track["y"] + track["height"] / 2)
    plain = changed(page, paler)
    page.get_by_label("Explain").focus()
    page.keyboard.press("s")  # the first of the stages
    page.locator(".sos-plain", has_text="heat map for stage 1 (open)").wait_for()
    assert page.locator(".jp-CodeCell").count() == 1
    assert plain[1] == previous[1] and page.locator(".widget-readout", has_text="0.00").is_visible()


def test_terms_are_moved_by_keys_and_mouse(lab, home):
    page, before = opened(lab, "terms", home)
    handle(page, "Temperature T").focus()
    page.keyboard.press("ArrowRight")
    hotter = changed(page, before)
    assert "at T = 3 " in before[1] and "at T = 3.5 " in hotter[1]
    assert re.search(r"L_cls [\d.]+", hotter[1])[0] == re.search(r"L_cls [\d.]+", before[1])[0]
    page.get_by_label("Map distance").select_option("mse")
    other = changed(page, hotter)
    assert re.search(r"L_attn [\d.]+", other[1])[0] != re.search(r"L_attn [\d.]+", hotter[1])[0]
    page.locator(".sos-panel button", has_text="10 steps").click()
    after = changed(page, other)
    assert "10 steps on this patient alone changed L_cls" in after[1]
    page.locator(".sos-panel button", has_text="Reset").focus()
    page.keyboard.press("Enter")
    assert changed(page, after) == other
    assert page.locator(".jp-CodeCell").count() == 1


def test_the_way_is_moved_by_keys_and_mouse(lab, home):
    page, before = opened(lab, "journey", home)
    handle(page, "Step").focus()
    page.keyboard.press("ArrowRight")
    second = changed(page, before)
    assert before[1].startswith("Step 1 of 6") and second[1].startswith("Step 2 of 6")
    page.locator(".sos-panel button", has_text="Next").click()
    third = changed(page, second)
    assert third[1].startswith("Step 3 of 6")
    page.locator(".sos-panel button", has_text="Back").focus()
    page.keyboard.press("Enter")
    assert changed(page, third) == second
    outcomes = page.get_by_label("Outcome").locator("option").all_inner_texts()
    assert len(outcomes) > 1
    page.get_by_label("Outcome").select_option(outcomes[1])
    assert changed(page, second)[1].startswith("Step 2 of 6")
