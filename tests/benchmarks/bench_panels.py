"""What a move of a slider costs in the panel of the virtual patient, all included, and how that splits.

    python tests/benchmarks/bench_panels.py [--moves 50] [--seed 0] [--weights RUN] [--cohort MANIFEST]

Each move sets one control, drawn at random, to a value drawn at random, and takes the time until the new picture and its sentence are handed to the
browser; what the browser does then is no part of it. With `--cohort`, the moves of the panel that browses it are timed too: to another patient, and
to another level of the grey values.
"""

import argparse
import statistics
import time
from collections import defaultdict
from functools import wraps

import numpy as np

from sos.panels import patient
from sos.panels.browse import browse
from sos.study.training import Study


def timed(spent, name, function):
    """`function`, adding the seconds of each call to spent[name]."""

    @wraps(function)
    def measured(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - start
        return result

    return measured


def another(control, rng):
    """A value that the control does not have yet."""
    if hasattr(control, "options"):
        values = [value for _, value in control.options]
    elif hasattr(control, "min"):
        values = np.arange(control.min, control.max + control.step / 2, control.step).tolist()
    else:
        values = [False, True]
    return rng.choice([value for value in values if value != control.value]).item()


def moves_of_patient(moves: int, seed: int, weights: str) -> list[dict[str, float]]:
    """Seconds of each move by its parts: all, drawing, network, and the picture with all the rest."""
    panel, rng, spent = patient.draw_patient(weights), np.random.default_rng(seed), defaultdict(float)
    controls = [panel.fusion, panel.age, panel.sex, panel.noise, panel.field, panel.number, panel.heat]
    patient.draw_section = timed(spent, "draw", patient.draw_section)
    patient.expose = timed(spent, "expose", patient.expose)
    object.__setattr__(panel.stager, "look", timed(spent, "network and Grad-CAM", panel.stager.look))
    rows = []
    for move in range(moves + 3):  # three to warm up
        spent.clear()
        control, start = controls[rng.integers(len(controls))], time.perf_counter()
        control.value = another(control, rng)
        whole = time.perf_counter() - start
        rows.append({**spent, "picture and rest": whole - sum(spent.values()), "all": whole})
    return rows[3:]


def moves_of_cohort(moves: int, seed: int, manifest: str) -> list[dict[str, float]]:
    """Seconds of each move of the browsing panel."""
    panel, rng, rows = browse(Study("smoke", manifest)), np.random.default_rng(seed), []
    for move in range(moves + 3):
        control = (panel.patient, panel.level)[rng.integers(2)]
        value, start = another(control, rng), time.perf_counter()
        control.value = value
        rows.append({"all": time.perf_counter() - start})
    return rows[3:]


def report(title: str, rows: list[dict[str, float]]) -> None:
    print(f"{title}, {len(rows)} moves: ms a move, median (95th percentile)")
    for name in ("draw", "expose", "network and Grad-CAM", "picture and rest", "all"):
        times = [1e3 * row.get(name, 0.0) for row in rows]
        if any(times):
            print(f"  {name:22} {statistics.median(times):6.0f} ({np.percentile(times, 95):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="released", help="folder of a run; default: the student that ships with the package")
    parser.add_argument("--cohort", help="manifest of a cohort to browse")
    args = parser.parse_args()
    report("virtual patient", moves_of_patient(args.moves, args.seed, args.weights))
    if args.cohort:
        report("browsing", moves_of_cohort(args.moves, args.seed, args.cohort))


if __name__ == "__main__":
    main()
