"""How near the mid-sagittal plane is found in virtual volumes, turned and shifted at random, and what it costs; and how the slices are staged.

    python tests/benchmarks/bench_midsagittal.py [--patients 50] [--seed 7] [--turn 15] [--shift 15] [--cube N] [--stage] [--rows FILE]
        [--heads FOLDER]

Every turn (yaw, roll, pitch) and shift (x, y, z) is uniform up to the given size, so harder than the poses of `sos phantom --volumes`. Each
volume is read as a series folder in a process of its own, so that peak memory is its own; it counts what is resident beyond the
imported modules, over the size of the voxels as stored (two bytes each). Seconds are of processor time: a busy machine matters less then.
`--cube 400` draws fields of 400³ voxels. `--stage` lets the released student stage the slice found, the slice in the true plane and the
patient's own two-dimensional image. `--heads` keeps the volumes, about 150 MB each, for another run.
"""

import argparse
import csv
import multiprocessing
import re
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from sos.errors import ImageError
from sos.images import reader
from sos.images.midsagittal import Plane, resample
from sos.phantom.series import Scan, draw_scan, write_series

NEAR_MM = NEAR_DEG = 2.0
FIELDS = ("patient", "field", "stage", "yaw", "roll", "pitch", "offset_mm", "angle_deg", "correlation", "confidence", "read_s", "cut_s", "memory",
          "warnings", "refused", "staged", "staged_true_plane", "staged_image")


def draw_posed(seed: int, index: int, turn_deg: float, shift_mm: float, cube: int = 0) -> Scan:
    """Patient `index` with a pose that is uniform up to the given sizes about and along each axis, in a cube of voxels if asked for."""
    scan, rng = draw_scan(seed, index), np.random.default_rng([seed, index, 15])
    scan = replace(scan, shape=(cube, cube, cube)) if cube else scan
    turn, shift = rng.uniform(-turn_deg, turn_deg, 3), rng.uniform(-shift_mm, shift_mm, 3)
    return replace(scan, turn_deg=tuple(turn.tolist()), shift_mm=tuple(shift.tolist()), joint_mm=scan.joint_mm - scan.shift_mm + shift)


def resident() -> float:
    """Bytes of this process that were resident at most (Linux; `ru_maxrss` would be the parent's)."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(folder: Path, truth: Plane) -> dict:
    """Read one series; seconds and memory of that, the image read, and the same slice cut in the true plane as another image."""
    spent, volumes = {}, []

    def timed(name, function):
        def call(*args):
            start = time.process_time()
            try:
                result = function(*args)
            finally:
                spent[name] = time.process_time() - start
            volumes.extend([result] * (name == "read_s"))
            return result
        return call

    read, cut = reader.read_series, reader.midsagittal_slice
    reader.read_series, reader.midsagittal_slice = timed("read_s", read), timed("cut_s", cut)
    before, found, refused = resident(), None, ""
    try:
        found = reader.read_image(folder)
    except ImageError as error:
        refused = str(error)
    finally:
        reader.read_series, reader.midsagittal_slice = read, cut
    stored = volumes[0].values.size * 2
    memory = (resident() - before) / stored
    values, spacing_mm = resample(volumes[0], truth)
    record = {"warnings": []}
    return spent | {"memory": memory, "found": found, "refused": refused,
                    "true": reader.GreyImage(reader._to_grey(values, folder, record), spacing_mm, record)}


def errors(found: dict, scan: Scan) -> tuple[float, float]:
    """Distance of the joint's centre from the plane found, in mm, and the angle between the planes in degrees."""
    yaw, roll = np.radians([found["yaw_deg"], found["roll_deg"]])
    normal = np.array([np.cos(roll) * np.cos(yaw), np.cos(roll) * np.sin(yaw), np.sin(roll)])
    angle = np.degrees(np.arccos(np.clip(normal @ scan.plane.normal, -1, 1)))
    return float(abs(normal @ scan.joint_mm - found["offset_mm"])), float(angle)


def staged(seed: int, index: int, answer: dict, folder: Path) -> dict:
    """Stages by the released student: of the slice found, of that in the true plane, and of the patient's own image."""
    from sos.phantom.difficulty import Difficulty
    from sos.phantom.write import write_patient

    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    row = write_patient((folder, seed, index, Difficulty()))
    images = {"staged": answer["found"], "staged_true_plane": answer["true"], "staged_image": reader.read_image(folder / row["image"])}
    return {name: STAGER[0].look(image)["stage"] if image else "" for name, image in images.items()}


STAGER = []


def examine(index: int, args, folder: Path, heads: Path) -> dict:
    """One patient: draw, write, read, compare; one row of FIELDS."""
    scan = draw_posed(args.seed, index, args.turn, args.shift, args.cube)
    head = heads / f"{args.seed}-{index:05d}-{args.turn:g}-{args.shift:g}-{args.cube or 'field'}"
    if not head.is_dir():
        write_series(head, scan)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        answer = pool.submit(measure, head, scan.plane).result()
    row = dict.fromkeys(FIELDS, "") | {"patient": index, "field": scan.preset.field, "stage": scan.person.stage, "refused": answer["refused"]}
    row |= {name: f"{value:.1f}" for name, value in zip(("yaw", "roll", "pitch"), scan.turn_deg, strict=True)}
    row |= {name: f"{answer[name]:.2f}" for name in ("read_s", "cut_s", "memory")}
    if answer["found"]:
        record = answer["found"].record
        offset, angle = errors(record["slice"], scan)
        row |= {"offset_mm": f"{offset:.2f}", "angle_deg": f"{angle:.2f}", "warnings": "; ".join(record["warnings"])}
        row |= {name: record["slice"][name] for name in ("correlation", "confidence")}
    if args.stage:
        row |= staged(args.seed, index, answer, folder)
    if heads == folder:
        shutil.rmtree(head)
    return row


def interval(right, draws: int = 2000) -> str:
    """Mean of (n,) bool with its 95 % bootstrap interval."""
    right = np.asarray(right, float)
    means = np.random.default_rng(0).choice(right, (draws, len(right))).mean(1)
    return f"{right.mean():.2f} [{np.quantile(means, 0.025):.2f}, {np.quantile(means, 0.975):.2f}]"


def summary(rows: list[dict]) -> str:
    """What the rows say together."""
    read = [row for row in rows if not row["refused"]]
    near = sum(float(row["offset_mm"]) <= NEAR_MM and float(row["angle_deg"]) <= NEAR_DEG for row in read)
    lines = [f"{near} of {len(rows)} planes within {NEAR_MM:g} mm and {NEAR_DEG:g}°; {len(rows) - len(read)} volumes refused, "
             f"{sum(bool(row['warnings']) for row in read)} with warnings"]
    for name in ("offset_mm", "angle_deg", "confidence", "read_s", "cut_s", "memory"):
        values = [float(row[name]) for row in rows if row[name] != ""]
        lines.append(f"{name}: median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}")
    for name in ("staged", "staged_true_plane", "staged_image"):
        apart = np.array([int(row[name]) - int(row["stage"]) for row in rows if row[name] != ""])
        if len(apart):
            lines.append(f"{name}: accuracy {interval(apart == 0)}, within one stage {interval(abs(apart) <= 1)}, mean error {apart.mean():+.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--turn", type=float, default=15.0, help="degrees about each axis, at most")
    parser.add_argument("--shift", type=float, default=15.0, help="mm along each axis, at most")
    parser.add_argument("--cube", type=int, default=0, help="voxels along each edge of the field; 0: the scanner's own field")
    parser.add_argument("--stage", action="store_true", help="let the released student stage the slices")
    parser.add_argument("--rows", type=argparse.FileType("w"), default=sys.stdout, help="CSV, a row a patient")
    parser.add_argument("--heads", type=Path, help="folder that keeps the volumes")
    args = parser.parse_args()
    if args.stage:
        from sos.predict import load_stager

        STAGER.append(load_stager())
    table, rows = csv.DictWriter(args.rows, FIELDS, lineterminator="\n"), []
    table.writeheader()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = args.heads or folder
        heads.mkdir(parents=True, exist_ok=True)
        for index in range(args.patients):
            rows.append(examine(index, args, folder, heads))
            table.writerow(rows[-1])
            args.rows.flush()
    print(summary(rows))


if __name__ == "__main__":
    main()
