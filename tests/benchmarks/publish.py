"""How benchmarks write what they measured: tables as CSV and Markdown, a figure, the record of the machine; and fitted exponents."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

from sos.files import write_whole
from sos.study.figures import save_figure
from sos.study.results import Table, machine_said

# Okabe and Ito's, with a marker each, so that lines differ in grey too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


class Exponent(NamedTuple):
    """y grows as x to the power of `value`; the 95 % interval of least squares on logarithms, and the points it rests on."""

    value: float
    low: float
    high: float
    points: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})".replace("-", "−")


def exponent(x, y) -> Exponent:
    """The fitted exponent of y over x, both above 0. Raises ValueError for fewer than three points, which leave no interval."""
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if len(x) < 3:
        raise ValueError(f"{len(x)} points; an exponent with its interval needs three")
    design = np.stack([x, np.ones_like(x)], 1)
    (slope, offset), *_ = np.linalg.lstsq(design, y, rcond=None)
    free = len(x) - 2
    error = np.sqrt(((y - slope * x - offset) ** 2).sum() / free / ((x - x.mean()) ** 2).sum())
    reach = t.ppf(0.975, free) * error
    return Exponent(float(slope), float(slope - reach), float(slope + reach), len(x))


def publish(folder: Path, name: str, tables: list[Table], figure: Figure, machine: dict) -> list[Path]:
    """Write all into `folder`: each table by its own name, `<name>.png` and `<name>_machine.json`. Returns the paths."""
    paths = [path for table in tables for path in table.save(folder)]
    save_figure(figure, folder / f"{name}.png")
    write_whole(folder / f"{name}_machine.json", json.dumps(machine, indent=1) + "\n")
    return [*paths, folder / f"{name}.png", folder / f"{name}_machine.json"]


def machine_line(machine: dict) -> str:
    """The machine in half a line."""
    return f"{machine_said(machine)}, torch {machine['torch']}"
