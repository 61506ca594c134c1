"""What a user waits for before anything happens, and what many files cost: start-up of the commands and peak memory. For Linux.

    python tests/benchmarks/bench_start.py [--patients 64] [--rounds 25]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from measure import Bench, Goal, Ratio, bench

from sos.study.runs import machine_record

FIRST = Goal("start of `sos predict` to its first result, s", "at most", 3.0)
HELP = Goal("`sos --help`, all its imports, s", "at most", 0.5)
MEMORY = Goal("peak memory of `sos predict`: 200 files over 50", "at most", 1.1)
GOALS = (FIRST, HELP, MEMORY)
FEW, MANY = 50, 200

# what `sos` does, and then the most memory that the process had at once, in kB
WATCHED = "import sys; from sos.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read(), file=sys.stderr)"


def first_result(file: Path) -> float:
    """Seconds from the start of the process to the first line that it prints."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "sos", "predict", str(file), "--weights", "released", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        took = time.perf_counter() - start
    if json.loads(line)["error"]:
        raise SystemExit(line)
    return took


def help_imports() -> float:
    """Seconds that all imports of `sos --help` take, as Python itself says."""
    said = subprocess.run([sys.executable, "-X", "importtime", "-m", "sos", "--help"], capture_output=True, text=True, check=True).stderr
    return sum(int(own) for own in re.findall(r"import time:\s+(\d+) \|", said)) / 1e6


def peak_mb(files: list[Path]) -> float:
    """The most memory that `sos predict` had at once, in MB."""
    command = [sys.executable, "-c", WATCHED, "predict", *map(str, files), "--weights", "released", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    if len(said.stdout.splitlines()) != len(files):
        raise SystemExit(said.stderr)
    return int(re.search(r"VmHWM:\s+(\d+) kB", said.stderr)[1]) / 1e3


def start(run: Bench) -> list[Ratio]:
    """All rows."""
    turns = max(2, run.rounds // 5)
    first = [first_result(run.files[0]) for _ in range(turns + 1)][1:]  # the first reads the modules from disk
    told = [help_imports() for _ in range(turns + 1)][1:]
    few, many = min(FEW, len(run.files)), min(MANY, 4 * len(run.files))
    memory = {n: peak_mb(np.resize(np.array(run.files), n).tolist()) for n in (few, many)}
    return [FIRST.got(statistics.median(first), f"{min(first):.2f} to {max(first):.2f} s in {turns} starts"),
            HELP.got(statistics.median(told), f"{min(told):.2f} to {max(told):.2f} s in {turns} starts, by `python -X importtime`"),
            MEMORY.got(memory[many] / memory[few], f"{memory[many]:.0f} MB for {many} files over {memory[few]:.0f} MB for {few}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="a fifth of this many starts (default: %(default)s)")
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine_record("cpu").items()))
    with bench(args.patients, args.rounds) as run:
        for row in start(run):
            print(f"{row.what}: {row.value:.2f} ({row.note})")


if __name__ == "__main__":
    main()
