"""How fast a virtual cohort is made: with all cores, and where the time of one patient goes.

    python tests/benchmarks/bench_phantom.py [--patients 723] [--sample 40] [--seed 0]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from functools import wraps
from pathlib import Path

from sos.phantom import export, write
from sos.phantom.difficulty import Difficulty


def timed(spent, name, function):
    """`function`, adding the seconds of processor time of each call to the list `spent[name]`: a busy machine matters less then."""

    @wraps(function)
    def measured(*args, **kwargs):
        start = time.process_time()
        result = function(*args, **kwargs)
        spent[name].append(time.process_time() - start)
        return result

    return measured


def shares(folder: Path, seed: int, sample: int) -> dict[str, list[float]]:
    """Seconds of each step of making a patient, in this process: section, exposure, encoding, writing (mask and files), all."""
    spent = defaultdict(list)
    steps = {"draw_section": "draw the section", "expose": "expose", "export_patient": "encode"}
    before = {name: getattr(write, name) for name in steps}
    for name, label in steps.items():
        setattr(write, name, timed(spent, label, before[name]))
    try:
        one = timed(spent, "all", write.write_patient)
        for index in range(sample):
            one((folder, seed, index, Difficulty()))
    finally:
        for name, function in before.items():
            setattr(write, name, function)
    parts = zip(*(spent[label] for label in steps.values()), strict=True)
    spent["rest: person, box, mask, files"] = [whole - sum(part) for whole, part in zip(spent["all"], parts, strict=True)]
    return spent


def encoders(seed: int, sample: int) -> dict[str, list[float]]:
    """Seconds of encoding the same `sample` patients as each kind of file."""
    spent = defaultdict(list)
    for patient in [write.draw_patient(seed, index) for index in range(sample)]:
        for kind in export.SHARES:
            timed(spent, kind, export.export_patient)(replace(patient, export=replace(patient.export, kind=kind)))
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=723, help="in the cohort that all cores make")
    parser.add_argument("--sample", type=int, default=40, help="patients that one process makes to see where the time goes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "masks"):
            Path(folder, name).mkdir()
        encoders(args.seed, 1)  # imports and first calls are no part of it
        spent = shares(Path(folder), args.seed, args.sample)
        print(f"one process, {args.sample} patients: ms of processor time a patient, mean (median)")
        for name, seconds in sorted(spent.items(), key=lambda item: -sum(item[1])):
            print(f"  {name:32} {1e3 * statistics.fmean(seconds):7.1f} ({1e3 * statistics.median(seconds):.1f})")
        print("encoders: the same, and share of patients")
        for name, seconds in encoders(args.seed, max(1, args.sample // 4)).items():
            print(f"  {name:32} {1e3 * statistics.fmean(seconds):7.1f} ({1e3 * statistics.median(seconds):.1f})  "
                  f"{100 * export.SHARES[name]:.0f} %")
    if args.patients:
        with tempfile.TemporaryDirectory() as folder:
            cores, start = len(os.sched_getaffinity(0)), time.perf_counter()
            write.write_cohort(folder, args.patients, args.seed)
            seconds = time.perf_counter() - start
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"cohort of {args.patients} patients, {cores} cores: {seconds:.1f} s, {args.patients / seconds / cores:.1f} patients a "
              f"second for each core, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
