"""All ratios of speed that are asked of this project, each measured in one run on this machine, with what is asked and whether it is reached.

    python tests/benchmarks/ratios.py [--publish] [--quick]

It runs what `bench_speed.py`, `bench_against.py` and `bench_start.py` measure, on the cores and, where there is one, on the GPU with the networks of
the profile paper; some minutes on two cores that do nothing else. What it compares with is in `requirements.txt` beside this file. `--publish`
saves the table with the record of the machine in `figures/speed` and shows it in the README; rows of another device that were saved before stay.
`--quick` takes few turns of small networks: to see that all works, its figures mean nothing.
"""

import argparse
from importlib.metadata import distributions
from pathlib import Path

import bench_against
import bench_speed
import bench_start
import pandas as pd
import torch
from bench_against import against
from measure import Bench, Ratio, bench
from packaging.utils import canonicalize_name

from sos.config import home
from sos.cores import keep_freed_memory
from sos.files import show_in_readme
from sos.study.results import NOT_YET, Table
from sos.study.runs import machine_record

GOALS = (*bench_against.GOALS, *bench_speed.GOALS, *bench_start.GOALS)
DEVICES = ("cpu", "cuda")
MARK = "speed"  # of the README's block
TITLE = "Ratios of speed: what is asked, and what is measured"
PEERS = ("grad-cam", "fasterai", "torchdistill")  # beside fastai, whose version every record of a machine holds


def measured(run: Bench) -> list[Ratio]:
    """All rows on the device of `run` of which something is asked."""
    rows = [*against(run), *bench_speed.training(run)]
    if run.device == "cpu":
        rows += [*bench_speed.prediction(run), *bench_start.start(run)]
    return [row for row in rows if row.target is not None]


def as_frame(rows: list[Ratio], device: str) -> pd.DataFrame:
    """One row a ratio: what, device, value (empty: not measured), sense, target, note."""
    return pd.DataFrame([{"what": row.what, "device": device, "value": row.value, "sense": row.sense, "target": row.target, "note": row.note}
                         for row in rows])


def saved(path: Path) -> pd.DataFrame:
    """A table that was saved before; empty where there is none."""
    return pd.read_csv(path, keep_default_na=False, na_values={"value": [""]}) if path.is_file() else pd.DataFrame()


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """`new`, and of `old` the rows of other devices."""
    kept = [old[~old["device"].isin(new["device"])]] if len(old) else []
    return pd.concat([*kept, new], ignore_index=True).sort_values("device", kind="stable", ignore_index=True)


def ratio_table(data: pd.DataFrame, machines: pd.DataFrame) -> Table:
    """The rows of both devices side by side, in the order of GOALS; the machines are named below."""
    known = {(row["what"], row["device"]): row for row in data.to_dict("records")}
    shown = []
    for goal in GOALS:
        asked = f"{goal.sense} {goal.target:g}" + (f" ({goal.gpu:g} on a GPU)" if goal.gpu not in (None, goal.target) else "")
        cells = {"ratio": goal.what, "asked": asked}
        for device, name in zip(DEVICES, ("cores", "GPU"), strict=True):
            cells[name] = "–" if device == "cuda" and goal.gpu is None else cell(known.get((goal.what, device)))
        notes = [known[goal.what, device]["note"] for device in DEVICES if known.get((goal.what, device), {}).get("note")]
        shown.append(cells | {"figures behind it": "; on the GPU ".join(notes) or "–"})
    notes = tuple(f"{'Cores' if one['device'] == 'cpu' else 'GPU'}: {machine_said(one)}." for one in machines.to_dict("records"))
    if notes:
        notes = ("Where parts take turns, a ratio is the median of those of the turns; the figures behind it are medians too.", *notes)
    return Table("ratios", TITLE, data, pd.DataFrame(shown), notes)


def cell(row: dict | None) -> str:
    """A measured value and whether it reaches its target."""
    if row is None:
        return NOT_YET
    if pd.isna(row["value"]):
        return "not installed"
    reached = Ratio(row["what"], row["value"], row["sense"], row["target"]).reached
    digits = 3 if round(row["value"], 2) == row["target"] else 2  # so that the number says on which side it lies
    return f"{row['value']:.{digits}f}, {'reached' if reached else '**not reached**'}"


def machine(device: str) -> pd.DataFrame:
    """The record of this machine, one row, with the versions of what is compared with."""
    there = {canonicalize_name(found.name): found.version for found in distributions()}
    return pd.DataFrame([machine_record(device) | {peer: there.get(peer, "not installed") for peer in PEERS}])


def machine_said(one: dict) -> str:
    """A machine in one line."""
    where = one["gpu"] if one["device"] != "cpu" else f"{one['processor']}, {one['cores']} cores, {one['threads']} threads"
    return f"{where}; Python {one['python']}, torch {one['torch']}, fastai {one['fastai']}"


def machine_table(machines: pd.DataFrame) -> Table:
    """What the ratios were measured on, a column a device."""
    shown = machines.set_index("device").T.rename_axis("of").reset_index()
    return Table("machine", "Machines of the ratios of speed", machines, shown)


def publish(folder: Path, data: pd.DataFrame, machines: pd.DataFrame) -> None:
    """Save both tables in `folder`, together with what it holds of other devices, and show the ratios in the README."""
    data, machines = merged(saved(folder / "ratios.csv"), data), merged(saved(folder / "machine.csv"), machines).fillna("")
    for table in (ratio_table(data, machines), machine_table(machines)):
        table.save(folder)
    show_in_readme(MARK, readme_block(folder))


def readme_block(folder: Path) -> str:
    """What the README says of the ratios saved in `folder`: nothing is measured where there are none."""
    return ratio_table(saved(folder / "ratios.csv"), saved(folder / "machine.csv")).markdown()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: %(default)s)")
    parser.add_argument("--device", choices=DEVICES, help="only on this one (default: all that are here)")
    parser.add_argument("--quick", action="store_true", help="few turns of small networks")
    parser.add_argument("--publish", action="store_true", help="save the table in figures/speed and show it in the README")
    args = parser.parse_args(argv)
    if args.quick and args.publish:
        parser.error("--quick measures nothing that may be published; leave one of the two out")
    patients, rounds = (12, 1) if args.quick else (args.patients, args.rounds)
    keep_freed_memory()
    here = [args.device] if args.device else [device for device in DEVICES if device == "cpu" or torch.cuda.is_available()]
    frames, machines = [], []
    for device in here:
        with bench(patients, rounds, "smoke" if args.quick else "quick" if device == "cpu" else "paper", device) as run:
            frames.append(as_frame(measured(run), device))
        machines.append(machine(device))
    data, machines = pd.concat(frames, ignore_index=True), pd.concat(machines, ignore_index=True)
    if args.publish:
        publish(home() / "figures" / "speed", data, machines)
        print(readme_block(home() / "figures" / "speed"))
    else:
        print(ratio_table(data, machines).markdown())


if __name__ == "__main__":
    main()
