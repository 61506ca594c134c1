"""The panels where people use them: in JupyterLab, in Chromium, with mouse and keys."""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
from browser import STEP_MS, find_browser
from playwright.sync_api import expect

from sos.cohort.manifest import read_manifest
from sos.cohort.reviews import add_review
from sos.images.reader import read_image
from sos.stages import BASSED5

CELL = "from sos.panels.review import review\nreview('manifest.csv', who='AB')"


@pytest.fixture
def cohort(tiny_cohort, tmp_path):
    """Four patients of the tiny cohort in a folder of their own."""
    table = pd.read_csv(tiny_cohort, dtype={"patient_id": str}).head(4)
    for name in table["image"]:
        target = tmp_path / "cohort" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (tiny_cohort.parent / name).is_dir() else shutil.copy)(tiny_cohort.parent / name, target)
    table.to_csv(tmp_path / "cohort" / "manifest.csv", index=False)
    return tmp_path / "cohort"


def lines(folder: Path) -> list[dict]:
    with (folder / "reviews.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def picture(canvas) -> str:
    """What is painted on the canvas."""
    return canvas.evaluate("canvas => canvas.toDataURL()")


def button(page, name: str):
    return page.locator(".sos-tool button").get_by_text(name, exact=True)


def test_a_box_a_stage_and_a_note_are_given_in_jupyterlab(lab, cohort):
    table = pd.read_csv(cohort / "manifest.csv", dtype={"patient_id": str})
    first, second = table["patient_id"][:2]
    given = next(stage for stage in BASSED5.stages[::-1] if stage.label != table["stage"][0])
    page = lab(CELL, cohort)
    folder = page.folder
    canvas = page.locator(".sos-canvas canvas")
    page.locator(f'.sos-canvas canvas[data-shown="{first}, 1 of 4"]').wait_for()
    untouched = picture(canvas)

    place = canvas.bounding_box()
    height, width = read_image(folder / table["image"][0]).pixels.shape
    scale = min(place["width"] / width, place["height"] / height)
    left, top = place["x"] + (place["width"] - width * scale) / 2, place["y"] + (place["height"] - height * scale) / 2
    wanted = [0.30 * width, 0.62 * height, 0.55 * width, 0.85 * height]
    page.mouse.move(left + wanted[0] * scale, top + wanted[1] * scale)
    page.mouse.down()
    page.mouse.move(left + wanted[0] * scale + 30, top + wanted[1] * scale + 30)
    page.mouse.move(left + wanted[2] * scale, top + wanted[3] * scale)
    page.mouse.up()
    page.locator(".widget-toggle-buttons button", has_text=str(given.label)).click()
    page.get_by_label("Note", exact=True).fill("a step in the cortex, \"scar\"")
    page.locator(".sos-tool", has_text=given.criterion).wait_for()
    drawn = picture(canvas)
    assert drawn != untouched
    assert not (folder / "reviews.csv").exists()

    button(page, "Next").click()
    page.locator(f'.sos-canvas canvas[data-shown="{second}, 2 of 4"]').wait_for()
    page.locator(".sos-done", has_text=f"written for {first}").wait_for()
    box, stage = lines(folder)
    assert [float(edge) for edge in box["value"].split()] == pytest.approx(wanted, abs=1.5 / scale)
    assert (box["field"], box["note"]) == ("box", 'a step in the cortex, "scar"')
    assert {key: stage[key] for key in ("who", "patient_id", "field", "value", "note", "image")} == {
        "who": "AB", "patient_id": first, "field": "stage", "value": str(given.label), "note": "", "image": table["image"][0]}
    expect(page.get_by_label("Note", exact=True)).to_have_value("", timeout=STEP_MS)
    assert picture(canvas) not in (drawn, untouched)

    canvas.press("2")  # in the notebook's own command mode these keys would turn the cell into a heading and leave it
    canvas.press("Enter")
    page.locator(".sos-canvas canvas[data-shown$='3 of 4']").wait_for()
    canvas.press("ArrowLeft")
    page.locator(".sos-canvas canvas[data-shown$='2 of 4']").wait_for()
    assert lines(folder)[2]["patient_id"] == second and lines(folder)[2]["value"] == "2" and len(lines(folder)) == 3
    assert page.locator(".jp-CodeCell").count() == 1 and page.locator(".jp-MarkdownCell").count() == 0

    add_review(folder / "reviews.csv", "CD", second, "stage", 5, "no scar <i>left</i>")  # somebody else, meanwhile
    button(page, "Refresh").click()
    page.locator(".sos-history", has_text="no scar <i>left</i>").wait_for()
    assert page.locator(".widget-toggle-buttons button.mod-active").inner_text() == "5"
    corrected = read_manifest(folder / "manifest.csv").table
    assert corrected["stage"][:2].tolist() == [given.label, 5]
    assert corrected.loc[0, ["x0", "y0", "x1", "y1"]].tolist() == [float(edge) for edge in box["value"].split()]


def test_window_and_magnifier_change_the_picture_and_write_nothing(lab, cohort):
    page = lab(CELL, cohort)
    canvas = page.locator(".sos-canvas canvas[data-shown]")
    canvas.wait_for()
    looks = [picture(canvas)]
    place = canvas.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x - 112, y - 56)  # of 560 pixels, each 1.5 / 560 of the grey values
    page.mouse.up(button="right")
    page.locator(".widget-readout", has_text="0.35").wait_for()  # the level's slider follows: 0.5 - 0.15
    page.locator(".widget-readout", has_text="0.70").wait_for()  # and the width's: 1 - 0.3
    looks.append(picture(canvas))
    page.mouse.move(x, y)
    page.mouse.wheel(0, -240)
    canvas.press("+")
    looks.append(picture(canvas))
    canvas.press("0")
    assert picture(canvas) == looks[1] and len(set(looks)) == 3 and not (page.folder / "reviews.csv").exists()


def test_without_a_browser_continuous_integration_fails_and_others_skip(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find_browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        find_browser()
