"""The audit as one HTML page that needs no network and no script: counts, charts, and each finding with a thumbnail.

Thumbnails show the expert's box; places where text is suspected in the pixels are black, and an image whose header says that it holds text is
not shown unless they were found. Every string from the manifest is escaped.
"""

import base64
import io
from html import escape
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from .. import __version__
from ..files import write_whole
from .audit_charts import charts
from .audit_files import FileFacts
from .audit_report import AuditReport, row_list
from .audit_rows import number
from .audit_style import STYLE
from .manifest import BOX

MOST_PICTURES = 200  # thumbnails on one page, about 8 kB each
BOX_COLOUR, QUALITY = (86, 180, 233), 80
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(report: AuditReport, path) -> Path:
    """Write the page of `report` to `path`, whole or not at all, and return the path. Raises OSError where it cannot be written."""
    path = Path(path)
    write_whole(path, page(report))
    return path


def page(report: AuditReport) -> str:
    """The HTML text of the page."""
    counts, title = report.counts, f"Audit of {escape(report.manifest)}"
    people = "virtual patients" if report.virtual else "patients"
    tiles = [(counts["rows"], "rows"), (counts["patients"], people), (f"{counts['images_readable']} of {counts['images']}", "images readable"),
             (counts["errors"], "errors"), (counts["warnings"], "warnings")]
    verdict = ("No findings." if not report.findings else "Errors make a row unusable; warnings ask a person to look." if report.usable
               else "This cohort cannot be used as it is.")
    strip = "" if report.table is None else "".join(
        f'<figure role="img" aria-label="{escape(words)}">{svg}</figure>' for words, svg in charts(report.table, report.files))
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">', f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>", f"<header><h1>{title}</h1>",
        '<p class="virtual">All patients are virtual: drawn by a program, no people.</p>' if report.virtual else "",
        f"<p>{verdict}</p></header>", "<main>",
        '<ul class="tiles">' + "".join(f"<li><b>{n}</b> {escape(word)}</li>" for n, word in tiles) + "</ul>",
        f'<section class="charts" aria-label="Who and what is in the cohort">{strip}</section>' if strip else "",
        *_found(report), "</main>",
        f"<footer>Made by sos {__version__}, for research and teaching, not for clinical decisions. Rows count as a spreadsheet does. Patients "
        "are named as in the manifest; no value of a DICOM header is on this page. Dark patches in thumbnails hide what may be text.</footer>",
        "</body></html>", ""])


def _found(report: AuditReport) -> list[str]:
    """The table of kinds, then one section a kind."""
    kinds, frame = report.kinds(), report.to_frame()
    if not kinds:
        return []
    each = MOST_PICTURES if len(frame) <= MOST_PICTURES else max(3, MOST_PICTURES // len(kinds))
    links = "".join(f'<tr class="{kind["severity"]}"><td>{_badge(kind["severity"])}</td><td><a href="#kind{i}">{escape(kind["kind"])}</a></td>'
                    f'<td class="number">{kind["count"]}</td></tr>' for i, kind in enumerate(kinds))
    parts = ['<h2>What was found</h2><p class="filter">Show <label><input type="checkbox" id="errors" checked> errors</label> '
             '<label><input type="checkbox" id="warnings" checked> warnings</label></p>',
             '<table class="kinds"><thead><tr><th scope="col">Severity</th><th scope="col">Finding</th><th scope="col">How many</th></tr></thead>'
             f"<tbody>{links}</tbody></table>"]
    for i, kind in enumerate(kinds):
        of_kind = frame[(frame["severity"] == kind["severity"]) & (frame["kind"] == kind["kind"])]
        parts += _group(report, f"kind{i}", kind, of_kind, each)
    return parts


def _group(report: AuditReport, name: str, kind: dict, findings: pd.DataFrame, pictures: int) -> list[str]:
    parts = [f'<section class="group {kind["severity"]}" id="{name}"><h2>{_badge(kind["severity"])} {escape(kind["kind"])} '
             f'<small>{kind["count"]}</small></h2>']
    if len(findings) > pictures:
        parts.append(f"<p>Thumbnails stand beside the first {pictures} only; the others follow as a list.</p>")
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Row", "Patient", "File", "What was found", "What to do", "Image"))
    parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>")
    for finding in findings.head(pictures).itertuples():
        row = "" if pd.isna(finding.row) else int(finding.row)
        cells = (row, finding.patient_id, finding.file, finding.what, finding.advice)
        parts.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + f"<td>{_picture(report, row, finding.file)}</td></tr>")
    parts.append("</tbody></table>")
    for (what, advice), same in findings.iloc[pictures:].groupby(["what", "advice"], sort=False):
        rows = row_list(same["row"].dropna().astype(int).tolist())
        parts.append(f"<p class=\"rest\">Row{'s' if len(same) > 1 else ''} {rows}: {escape(what)}; {escape(advice)}</p>")
    return parts + ["</section>"]


def _badge(severity: str) -> str:
    return f'<span class="badge {severity}">{"✖" if severity == "error" else "▲"} {severity}</span>'


def _picture(report: AuditReport, row, name: str) -> str:
    """An image element of the finding's file with the row's box, or why there is none."""
    file = report.files.get(name)
    if row == "" or file is None:
        return ""
    if file.small is None:
        return '<span class="none">no image</span>'
    if file.header is not None and file.header.burned_in and not file.text:
        return '<span class="none">not shown: its header says that it holds text</span>'
    box = [number(report.table.at[row, column]) for column in BOX]
    small = thumbnail(file, None if None in box else box)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    words = f"Image of row {row}" + ("" if None in box else ", with the expert's box") + ("; suspected text is hidden" if file.text else "")
    return f'<img src="data:image/jpeg;base64,{data}" width="{small.width}" height="{small.height}" alt="{words}" loading="lazy">'


def thumbnail(file: FileFacts, box: list[float] | None) -> Image.Image:
    """The small picture of a readable file in colour, suspected text black, with a box given in pixels of the image."""
    small = Image.fromarray(file.small).convert("RGB")
    draw, (kx, ky) = ImageDraw.Draw(small), (small.width / file.size[0], small.height / file.size[1])
    for x0, y0, x1, y1 in file.text:  # the ends of a line may have been missed
        aside, above = 1.5 * (y1 - y0), 0.5 * (y1 - y0)
        draw.rectangle(((x0 - aside) * kx - 1, (y0 - above) * ky - 1, (x1 + aside) * kx + 1, (y1 + above) * ky + 1), fill=0)
    if box is not None and box[2] > box[0] and box[3] > box[1]:
        x0, y0, x1, y1 = (min(max(v, -1e6), 1e6) for v in box)
        draw.rectangle((x0 * kx, y0 * ky, x1 * kx, y1 * ky), outline=BOX_COLOUR, width=1)
    return small
