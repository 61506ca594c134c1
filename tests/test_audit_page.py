"""The page of an audit: whole, self-contained, safe against what a manifest holds, and silent about what a header or a picture says."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_audit import HEADER, SECRET, pixels, write_cohort, write_dicom

from sos import cli
from sos.cohort import audit_page
from sos.cohort.audit import audit
from sos.cohort.audit_page import page, thumbnail, write_page
from sos.cohort.audit_report import SHOWN, row_list


class Page(HTMLParser):
    """Tags that are open to the end, all attributes, all text; refuses tags that close in the wrong order."""

    VOID = ("meta", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def report_of(root, rows, header=HEADER):
    pd.DataFrame(rows, columns=header.split(",")).to_csv(root / "manifest.csv", index=False)
    return audit(root / "manifest.csv", workers=1)


@pytest.fixture
def planted(tmp_path):
    rows = [row + ["<b>$x^2$"] for row in write_cohort(tmp_path, 3)]
    rows[0][0] = "<script>alert('&')</script>"
    rows[0][4], rows[1][2], rows[2][1] = "<i>male", 9, "\"><img src=x>.dcm"
    write_dicom(tmp_path / "0.dcm", pixels(0), PatientAddress=SECRET, InstitutionAddress="Hidden Street")
    return report_of(tmp_path, rows, HEADER + ",device")


def test_the_page_tells_each_finding_and_is_one_well_formed_file_of_its_own(planted, tmp_path):
    path = write_page(planted, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    words = " ".join(seen.text)
    for finding in planted.findings:
        for part in (finding.kind, finding.what, finding.advice, finding.patient_id, finding.file):
            assert part in words
    for attrs in (attrs for _, attrs in seen.tags):
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"@import|url\((?!#)", text) and "default-src 'none'" in text and not list(tmp_path.glob(".part*"))
    assert all(attrs["scope"] == "col" for attrs in seen.all("th")) and all(attrs["alt"] for attrs in seen.all("img"))
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in seen.all("a")} <= set(ids)
    assert len(seen.all("svg")) == 5 and page(planted) == text


def test_nothing_in_a_manifest_becomes_markup(planted):
    seen = Page(page(planted))
    assert not seen.all("script") and not seen.all("i") and not seen.all("b")[5:]
    assert [attrs for attrs in seen.all("img") if attrs["src"] == "x"] == []
    assert "<script>alert('&')</script>" in " ".join(seen.text)


def test_no_value_of_a_header_is_on_the_page(planted):
    text = page(planted)
    assert "PatientAddress" in text and "ROSALIND" not in text and "Hidden Street" not in text


def test_virtual_patients_are_called_so_and_others_are_not(tmp_path):
    rows = write_cohort(tmp_path, 2)
    assert "irtual" not in " ".join(Page(page(report_of(tmp_path, rows))).text)
    virtual = report_of(tmp_path, [row + ["virtual"] for row in rows], HEADER + ",cohort_kind")
    assert "2 virtual patients" in " ".join(Page(page(virtual)).text).replace("  ", " ") and "2 virtual patients" in virtual.summary()


def test_suspected_text_is_black_in_thumbnails_and_the_box_is_drawn(tmp_path):
    picture = np.full((400, 800), 90, np.uint8)
    rows = [["p", "a.png", 1, 10, "F", 200, 200, 400, 300, ""]]
    Image.fromarray(picture).save(tmp_path / "a.png")
    file = audit_page.FileFacts(size=(800, 400), small=np.full((80, 160), 90, np.uint8), text=[(100, 40, 300, 70)])
    small = np.asarray(thumbnail(file, [float(v) for v in rows[0][5:9]]))
    assert (small[8:14, 20:60] == 0).all() and (small[40:60, 100:] == 90).all()
    assert tuple(small[40, 60]) == tuple(small[60, 60]) == audit_page.BOX_COLOUR


def test_an_image_that_is_said_to_hold_text_is_not_shown_unless_its_text_was_found(tmp_path):
    rows = write_cohort(tmp_path, 1)
    write_dicom(tmp_path / "0.dcm", pixels(0), BurnedInAnnotation="YES")
    report = report_of(tmp_path, rows)
    assert not Page(page(report)).all("img") and "not shown" in page(report)
    report.files["0.dcm"].text.append((10, 10, 60, 30))
    (image,) = Page(page(report)).all("img")
    shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert max(shown.size) == 160 and "hidden" in image["alt"]


def test_a_page_of_many_findings_shows_some_thumbnails_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_page, "MOST_PICTURES", 4)
    rows = write_cohort(tmp_path, 1)
    rows[0][4] = "male"
    report = report_of(tmp_path, [["p", *rows[0][1:]] for _ in range(9)])
    text = page(report)
    assert len(Page(text).all("img")) == 6 and text.count("Thumbnails stand beside the first 3 only") == 2
    assert "Rows 5–10: sex &#x27;male&#x27; is neither F nor M" in text


def test_pages_of_what_is_no_manifest_and_of_no_findings(tmp_path):
    text = page(audit(tmp_path / "none.csv"))
    assert "This cohort cannot be used" in text and "no such manifest" in text and not Page(text).all("svg")
    assert "No findings." in page(report_of(tmp_path, write_cohort(tmp_path, 2)))


def test_text_counts_first_and_says_the_same_words_once(tmp_path):
    rows = [[f"p{i}", "gone.dcm", 2, f"{i} y" if i < 12 else "", "F", 200, 200, 300, 300, ""] for i in range(16)]
    report = report_of(tmp_path, rows)
    lines = report.to_text().splitlines()
    assert lines[1:5] == ["    16  error: unreadable file", "    12  error: age no number", "     4  warning: age missing", ""]
    assert lines[5] == ("error: rows 2–17: unreadable: no such file or folder; check the path; "
                        "mend or export the file again, or take the row out")
    assert lines[7].startswith("error: row 2, gone.dcm: age_y '0 y' is not a number; ")
    assert lines[7 + SHOWN] == "… and 2 more of this kind; --all lists them"
    assert lines[-1] == "warning: rows 14–17: age_y is empty; fill in the age in years; tables and plots by age leave this patient out"
    every = report.to_text(everything=True).splitlines()
    assert len(every) == 4 + 3 + 32 and every[5].startswith("error: row 2, gone.dcm: unreadable")
    assert json.loads(report.to_json())["kinds"][2] == {"severity": "warning", "kind": "age missing", "count": 4}
    assert row_list([2, 3, 4, 9, 11, 12]) == "2–4, 9, 11–12"


def test_the_command_writes_the_page_and_keeps_its_exit_codes(tmp_path, capsys):
    rows = write_cohort(tmp_path, 2)
    report_of(tmp_path, rows)
    assert cli.main(["audit", str(tmp_path / "manifest.csv"), "--html", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out.count("\n") == 1 and "No findings" in (tmp_path / "a.html").read_text()
    assert cli.main(["audit", str(tmp_path / "none.csv"), "--html", str(tmp_path / "b.html"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["usable"] is False and (tmp_path / "b.html").is_file()
    assert cli.main(["audit", str(tmp_path / "manifest.csv"), "--html", str(tmp_path / "no" / "a.html")]) == 2
    assert "its folder is not there" in capsys.readouterr().err
