"""How cost grows: time and memory of each stage against patients, image size, and cores or devices that work at once.

    python tests/benchmarks/bench_growth.py                      all of it, to 100,000 patients: about 18 minutes of two slow cores
    python tests/benchmarks/bench_growth.py --up-to 10000        the same without the last point: about six
    python tests/benchmarks/bench_growth.py --draw-up-to 200 --sizes 96 192 384 --folder /scratch --out figures/speed

Leave the machine to it alone; it writes `growth*` under figures/speed. It needs 2 GiB of disk for a while.

Each point is measured in a process of its own. *Peak* memory is the most that was resident at once, memory-mapped files included, which the
system takes back when it needs the room; *own* memory is what the process and its workers hold and nobody can take back (anonymous pages,
looked at fifty times a second), less what was held before the stage began. A stage that streams has own memory that stays flat.

Drawing and the audit, which would find repeats, are measured on drawn patients at their true size: that is what stops first, at 400 patients. All
else goes up to `--up-to` patients on small pictures: those of the first drawn patients reduced to `--px`, as PNG, which are read in a
millisecond, repeated as hard links under names of their own. That costs time and memory for each image as other patients would, though less
time than true images: what those cost each is in the tables of the floor. Networks see frames of 32 px, and that of `sos predict` has one layer, as
its own time is not asked for. Evaluation stops at `--evaluate-up-to` patients. Metrics, which see no image, are measured on made-up answers.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from publish import COLOURS, MARKERS, exponent, machine_line, publish
from stages import FRAME_PX, HELD_OUT, RESAMPLES, TESTED, one

from sos.cohort.cameras import reduce_to
from sos.cohort.manifest import BOX
from sos.images.reader import read_image
from sos.study.figures import PAGE, caption, journal
from sos.study.results import Table
from sos.study.runs import machine_record

DRAWN, PATIENTS = (100, 200, 400), (100, 1000, 10_000, 100_000)
SIZES = (96, 192, 384, 768)
STAGES = {"draw": "draw the cohort", "audit": "audit", "store": "decode to the store", "loader": "an epoch of batches", "answers": "sos predict",
          "evaluate": "evaluate held-out", "metrics": f"metrics, {RESAMPLES:,} resamples"}
GROWS_MIB = 16  # more own memory at the largest point than at the smallest than that: it grows; less is what allocators and buffers do
FLAT = 0.15  # exponents of own memory whose interval lies above are told as growth

# --- the points ----------------------------------------------------------------------------------------------------------------
def measured(*points: dict) -> list[dict]:
    """Each point by a process of its own, all at once. Raises CalledProcessError where one fails, after its own message."""
    script = str(Path(__file__).with_name("stages.py"))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    processes = [subprocess.Popen([sys.executable, script, json.dumps(point)], stdout=subprocess.PIPE, text=True, env=environment)
                 for point in points]
    answers = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def here(*points: dict) -> list[dict]:
    """Each point in this process, one after the other: quick, but no point's memory is its own."""
    return [one(point) for point in points]


def reduced(manifest: Path, folder: Path, px: int) -> Path:
    """A manifest in `folder` of the same patients, their images PNG with a longer side of `px` pixels."""
    table = pd.read_csv(manifest, dtype={"patient_id": str})
    names, scales = [f"images/{row:06d}.png" for row in range(len(table))], []
    (folder / "images").mkdir(parents=True)
    for old, new in zip(table["image"], names, strict=True):
        grey, scale, _ = reduce_to(read_image(manifest.parent / old), px)
        Image.fromarray(grey).save(folder / new)
        scales.append(scale)
    table[BOX] = table[BOX].mul(scales, axis=0)
    table = table.assign(image=names, mask="", spacing_mm="")
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def repeated(manifest: Path, folder: Path, patients: int) -> Path:
    """A manifest of `patients` rows in `folder`: the first of another, and where those are too few all of them again under other names.

    Images are hard links, so that no byte is copied."""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    (folder / "images").mkdir(parents=True)
    table = rows.iloc[np.arange(patients) % len(rows)].reset_index(drop=True)
    names = [f"images/{number:06d}_{Path(name).name}" for number, name in enumerate(table["image"])]
    for old, new in zip(table["image"], names, strict=True):
        os.link(manifest.parent / old, folder / new)
    table.assign(image=names, patient_id=[f"{name}-{number // len(rows)}" for number, name in enumerate(table["patient_id"])],
                 mask="").to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def against_patients(measure: Callable, drawn: list[int], counts: list[int], evaluated: int, px: int, folder: Path) -> pd.DataFrame:
    """Drawing and the audit of as many patients as in `drawn`; the other stages of as many as in `counts`, on pictures of `px` pixels of the first
    drawn patients, repeated; evaluation up to `evaluated`."""
    rows = []

    def add(stage, patients, given, repeats=False):
        rows.append({"stage": stage, "x": patients, "repeats": repeats, **measure({"stage": stage, **given})[0]})
        print(f"{patients} patients, {stage}: {rows[-1]['seconds']:.1f} s, own memory {rows[-1]['own_mib']:.0f} MiB", flush=True)

    cohorts = [folder / f"drawn{patients}" for patients in drawn]
    for patients, cohort in zip(drawn, cohorts, strict=True):
        add("draw", patients, {"folder": str(cohort), "patients": patients})
        add("audit", patients, {"manifest": str(cohort / "manifest.csv")})
    small = reduced(cohorts[0] / "manifest.csv", folder / "reduced", px)
    for patients in counts:
        files = {"manifest": str(repeated(small, folder / f"all{patients}", patients))}
        stored = files | {"cache": str(folder / f"cache{patients}"), "native_px": px}
        for stage, given in (("store", stored), ("loader", stored), ("answers", files), ("evaluate", stored)):
            if stage != "evaluate" or patients <= evaluated:
                add(stage, patients, given, repeats=patients > drawn[0])
        add("metrics", patients, {"patients": patients})
        shutil.rmtree(folder / f"all{patients}")
        shutil.rmtree(folder / f"cache{patients}")
    order = list(STAGES)
    return pd.DataFrame(rows).sort_values("stage", key=lambda names: names.map(order.index), kind="stable").assign(series="patients")


def against_size(measure: Callable, sizes: list[int], rounds: int, device: str) -> pd.DataFrame:
    rows = [{"stage": what, "x": size, **measure({"stage": "step", "what": what, "size": size, "rounds": rounds, "device": device})[0]}
            for size in sizes for what in ("train", "predict")]
    return pd.DataFrame(rows).assign(series="size")


def against_devices(measure: Callable, most: int, patients: int, steps: int, turns: int, device: str, folder: Path) -> pd.DataFrame:
    """Drawing by 1, 2, … processes, and as many runs training at once; medians over turns. Seconds of a run at once are divided by their number."""
    rows, counts = [], [2**power for power in range(most.bit_length()) if 2**power <= most]
    for turn in range(turns):
        for count in counts:
            drawn = measure({"stage": "draw", "folder": str(folder / f"turn{turn}-{count}"), "patients": patients, "workers": count})[0]
            cards = torch.cuda.device_count() if device.startswith("cuda") else 0
            runs = measure(*({"stage": "run", "steps": steps, "device": f"cuda:{i % cards}" if cards else device} for i in range(count)))
            rows.append({"stage": "draw", "x": count, **drawn})
            rows.append({"stage": "runs", "x": count, "seconds": max(run["seconds"] for run in runs) / count,
                         "peak_mib": sum(run["peak_mib"] for run in runs), "own_mib": sum(run["own_mib"] for run in runs)})
    return pd.DataFrame(rows).groupby(["stage", "x"], as_index=False).median(numeric_only=True).assign(series="devices")


def fits(data: pd.DataFrame) -> pd.DataFrame:
    """Fitted exponents of time and of own memory, where there are three points; of memory only for stages that hold at least GROWS_MIB more at their
    largest point than at their smallest."""
    rows = []
    for (series, stage), part in data[data["series"] != "devices"].groupby(["series", "stage"], sort=False):
        grows = part["own_mib"].iloc[-1] - part["own_mib"].iloc[0] >= GROWS_MIB
        for quantity, column in (("time", "seconds"), ("memory", "own_mib")):
            known = part[part[column] > (1 if quantity == "memory" else 0)]  # below 1 MiB is what nobody would see
            if len(known) >= 3 and (quantity == "time" or grows):
                fit = exponent(known["x"], known[column])
                rows.append({"series": series, "stage": stage, "quantity": quantity, **fit._asdict(), "shown": str(fit)})
    return pd.DataFrame(rows)


# --- written -------------------------------------------------------------------------------------------------------------------
NAMES = STAGES | {"train": "training step", "predict": "prediction", "runs": "runs at once"}
AXES = {"patients": "patients", "size": "side of the image, px", "devices": "processes at once"}


def _pictures(data: pd.DataFrame) -> str:
    """What was measured on which pictures, and where it stops."""
    most = data[data["series"] == "patients"].groupby("stage")["x"].max()
    return (f"Drawn and audited at true size, to {most['draw']:,}; otherwise PNG of {data.attrs['px']} px in frames of {FRAME_PX} px, repeated, and "
            f"evaluated to {most['evaluate']:,}; sos predict by a network of one layer.")


def growth_table(data: pd.DataFrame, machine: dict) -> Table:
    shown = pd.DataFrame({"against": data["series"].map(AXES), "stage": data["stage"].map(NAMES), "at": [f"{x:,}" for x in data["x"]],
                          "time, s": [f"{value:.3g}" for value in data["seconds"]], "own memory, MiB": [f"{value:.0f}" for value in data["own_mib"]],
                          "peak resident, MiB": [f"{value:.0f}" for value in data["peak_mib"]],
                          "files": ["repeated" if value is True else "" for value in data["repeats"]]})
    notes = (f"Virtual patients; {machine_line(machine)}. Each point in a process of its own. Own memory: what the process and its workers hold "
             "above what was held before, and nobody can take back; peak resident: with memory-mapped files and the program itself.",
             f"Evaluated: {HELD_OUT:.0%} of the patients, as a study holds out; metrics: {TESTED:.0%}, made-up answers. {_pictures(data)} "
             "Repeated: hard links to fewer files.",
             "Image size: an image of a batch of 8. Processes: for runs at once, seconds of all over their number.")
    return Table("growth", "What each stage costs", data, shown, notes)


def fit_table(found: pd.DataFrame) -> Table:
    shown = pd.DataFrame({"against": found["series"].map(AXES), "stage": found["stage"].map(NAMES), "quantity": found["quantity"],
                          "exponent (95 % interval)": found["shown"], "points": found["points"]})
    notes = ("Least squares on logarithms: 1 grows in proportion, 0 stays flat. Memory: own memory; a stage without a row holds less than "
             f"{GROWS_MIB} MiB more at its largest point than at its smallest.",)
    return Table("growth_fits", "How cost grows: fitted exponents", found.drop(columns="shown"), shown, notes)


@journal
def growth_figure(data: pd.DataFrame, found: pd.DataFrame, machine: dict) -> Figure:
    """Time and own memory against patients; both of a training step and a prediction against image size; work done against processes."""
    fig, axes = plt.subplot_mosaic("AAABBB;CCDDEE", figsize=(PAGE, 6.4))
    panels = (("A", "patients", "time", "time, s", "Time of each stage"), ("B", "patients", "memory", "own memory, MiB", "Memory that it holds"),
              ("C", "size", "time", "time an image, s", "Time, by image size"), ("D", "size", "memory", "own memory, MiB", "Memory, by image size"))
    for letter, series, quantity, label, title in panels:
        _growth(axes[letter], data[data["series"] == series], found[(found["series"] == series) & (found["quantity"] == quantity)], quantity)
        axes[letter].set(xlabel=AXES[series], ylabel=label)
    _at_work(axes["E"], data[data["series"] == "devices"])
    for (letter, ax), title in zip(axes.items(), (*(panel[-1] for panel in panels), "Cores at work"), strict=True):
        ax.set_title(f"$\\bf{{{letter.lower()}}}$  {title}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), handlelength=1.6)
    top = data.loc[data["series"] == "patients", "x"].max()
    caption(fig, f"How cost grows, up to {top:,} virtual patients; {machine_line(machine)}. Beside the names: exponent (95 % interval). "
                 f"{_pictures(data)}")
    return fig


def _growth(ax, data: pd.DataFrame, found: pd.DataFrame, quantity: str) -> None:
    """A line a stage on logarithms, its exponent beside its name; memory below 1 MiB is drawn as 1."""
    for number, (stage, part) in enumerate(data.groupby("stage", sort=False)):
        fit = found[found["stage"] == stage]
        said = fit["shown"].iloc[0] if len(fit) else "flat" if quantity == "memory" and len(part) >= 3 else "no fit"
        values = part["seconds"] if quantity == "time" else part["own_mib"].clip(lower=1)
        ax.plot(part["x"], values, color=COLOURS[number], marker=MARKERS[number], label=f"{NAMES[stage]}: {said}")
    places = sorted(data["x"].unique())
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(places, labels=[f"{place:,}" for place in places])
    ax.minorticks_off()


def _at_work(ax, data: pd.DataFrame) -> None:
    """How many times as much work is done in the same time."""
    most = data["x"].max()
    ax.plot([1, most], [1, most], color="0.6", linestyle="--", label="in proportion")
    for number, (stage, rows) in enumerate(data.groupby("stage", sort=False)):
        speed = rows["seconds"].iloc[0] / rows["seconds"]
        name = {"draw": "drawing", "runs": "training runs"}[stage]
        ax.plot(rows["x"], speed, color=COLOURS[number], marker=MARKERS[number], label=f"{name}: {speed.iloc[-1]:.2f} × with {most}")
    ax.set(xlabel=AXES["devices"], ylabel="work in the same time, times", xticks=sorted(data["x"].unique()), ylim=0)


def grown(found: pd.DataFrame) -> list[str]:
    """A line for each stage whose own memory grows with the patients, beyond doubt."""
    memory = found[(found["series"] == "patients") & (found["quantity"] == "memory") & (found["low"] > FLAT)]
    return [f"{NAMES[row.stage]} holds more for more patients: exponent {row.shown}" for row in memory.itertuples()]


def _until(most: int, counts: tuple[int, ...]) -> list[int]:
    """The counts below `most`, and `most` itself."""
    return [*(count for count in counts if count < most), most]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--up-to", type=int, default=PATIENTS[-1], help="patients (default: %(default)s)")
    parser.add_argument("--draw-up-to", type=int, default=DRAWN[-1], help="patients that are drawn and audited (default: %(default)s)")
    parser.add_argument("--evaluate-up-to", type=int, default=10_000, help="patients of whom the held-out are evaluated (default: %(default)s)")
    parser.add_argument("--px", type=int, default=64, help="longer side of the small pictures (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of images, px (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each process; numpy's stages use all cores (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=2, help="processes, at most (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=1, help="of drawing and training by several processes (default: %(default)s)")
    parser.add_argument("--folder", help="for cohorts and stores (default: the system's for temporary files)")
    parser.add_argument("--out", type=Path, default=Path("figures/speed"), help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="few patients and small images, all in this process, for the test")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    measure = here if args.small else measured
    drawn, counts = ([4, 8], [4, 8, 16]) if args.small else (_until(args.draw_up_to, DRAWN), _until(args.up_to, PATIENTS))
    sizes, rounds = ([32, 64, 96], 2) if args.small else (args.sizes, 3)
    patients, steps = (8, 2) if args.small else (80, 20)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        data = pd.concat([against_patients(measure, drawn, counts, args.evaluate_up_to, args.px, folder),
                          against_size(measure, sizes, rounds, args.device),
                          against_devices(measure, args.at_once, patients, steps, args.turns, args.device, folder)], ignore_index=True)
    data.attrs["px"] = args.px
    found, machine = fits(data), machine_record(args.device)
    tables = [growth_table(data, machine), fit_table(found)]
    publish(args.out, "growth", tables, growth_figure(data, found, machine), machine)
    for table in tables:
        print(table.markdown())
    print("\n".join(grown(found)) or "no stage holds more for more patients")


if __name__ == "__main__":
    main()
