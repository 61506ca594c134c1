"""Rows of `sos predict` as JSON lines and as CSV, for programs that read them. Each says that it is for research only."""

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from .stages import BASSED5

USE = "research use only"
JSON_KEYS = ("path", "stage", "probabilities", "expected_stage", "uncertainty", "peak", "box", "warnings", "error", "use")


def empty_row(path) -> dict:
    """The row of an input of which nothing is known yet."""
    return dict.fromkeys(JSON_KEYS) | {"path": str(path), "warnings": [], "use": USE}


def json_line(row: dict) -> str:
    """A row of `predict_paths` as one line of JSON."""
    return json.dumps({key: row[key] for key in JSON_KEYS})


def tabled(rows: Iterable[dict], file) -> Iterator[dict]:
    """Passes rows of `predict_paths` on and writes each to `file` as CSV; errors wait for the first row that tells how many stages."""
    table, waiting = None, []
    for row in chain(rows, [None]):
        waiting += [row] if row else []
        if table is None and (row is None or row["probabilities"]):
            stages = len(row["probabilities"]) if row else len(BASSED5)
            table = csv.DictWriter(file, list(csv_row(dict.fromkeys(JSON_KEYS), stages)), lineterminator="\n")
            table.writeheader()
        if table:
            table.writerows(csv_row(known, stages) for known in waiting)
            waiting.clear()
            file.flush()
        if row:
            yield row


def csv_row(row: dict, stages: int) -> dict:
    """A row of `predict_paths` laid flat: path, stage, p1…, expected_stage, uncertainty, peak and box in pixels, warnings, error, use."""

    def spread(names, values, digits):
        values = values or [None] * len(names)
        return {name: "" if value is None else f"{value:.{digits}f}" for name, value in zip(names, values, strict=True)}

    return {"path": row["path"], "stage": row["stage"], **spread([f"p{k + 1}" for k in range(stages)], row["probabilities"], 4),
            **spread(["expected_stage", "uncertainty"], [row["expected_stage"], row["uncertainty"]], 3),
            **spread(["peak_x", "peak_y"], row["peak"], 1), **spread(["box_x0", "box_y0", "box_x1", "box_y1"], row["box"], 1),
            "warnings": "; ".join(row["warnings"] or []), "error": row["error"], "use": USE}


@contextlib.contextmanager
def whole_file(out: str | Path, mode: str = "w") -> Iterator:
    """The file `out`, open for writing text (or bytes, mode `wb`), which appears under its name when whole."""
    part = Path(out).with_name(f".part.{Path(out).name}")
    try:
        with open(part, mode, **({} if "b" in mode else {"newline": "", "encoding": "utf-8"})) as file:
            yield file
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
