"""What the benchmarks share: functions that take turns, what is asked of a ratio and what was measured, and the cohort and sizes of one run."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sos.cohort.manifest import Cohort, read_manifest
from sos.phantom.write import write_cohort


@dataclass(frozen=True)
class Ratio:
    """One measured ratio. `sense` says on which side of `target` it should lie ("at least", "at most"); both are None where nothing is demanded."""

    what: str
    value: float | None  # None: not yet run on this kind of machine
    sense: str | None = None
    target: float | None = None
    note: str = ""  # the absolute figures behind it, with units

    @property
    def reached(self) -> bool | None:
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.sense == "at least" else self.value <= self.target


@dataclass(frozen=True)
class Goal:
    """What is asked of a ratio, on processor cores and on a GPU; `gpu` is None for what runs on cores only."""

    what: str
    sense: str
    target: float
    gpu: float | None = None

    def got(self, value: float | None, note: str = "", device: str = "cpu") -> Ratio:
        return Ratio(self.what, value, self.sense, self.target if device == "cpu" else self.gpu, note)


@dataclass(frozen=True)
class Bench:
    """What the benchmarks of one run share: a virtual cohort in a folder of its own, turns of each part, networks of a profile, the device."""

    folder: Path
    cohort: Cohort
    rounds: int
    profile: str = "quick"
    device: str = "cpu"

    @property
    def files(self) -> list[Path]:
        return [self.cohort.image_path(row) for row in range(len(self.cohort.table))]

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


@contextmanager
def bench(patients: int, rounds: int, profile: str = "quick", device: str = "cpu") -> Iterator[Bench]:
    """A Bench on `patients` virtual patients, drawn now and gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(Path(folder), read_manifest(write_cohort(Path(folder) / "cohort", patients, 11)), rounds, profile, device)


class Turns(dict[str, float]):
    """Median seconds of each part. `each`: the seconds of all its turns, in order, (rounds,)."""

    def __init__(self, each: dict[str, list[float]]):
        self.each = {name: np.array(seconds) for name, seconds in each.items()}
        super().__init__({name: float(np.median(seconds)) for name, seconds in self.each.items()})

    def ratio(self, above: str, below: str) -> float:
        """Seconds of one part over those of another: the median of the rounds, in each of which both met the same machine."""
        return float(np.median(self.each[above] / self.each[below]))


def in_turns(rounds: int, wait: Callable[[], None] = lambda: None, **parts) -> Turns:
    """The seconds of each function; they take turns, after one turn that does not count. wait: called before the clock stops."""
    times = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            wait()
            if turn:
                times[name].append(time.perf_counter() - start)
    return Turns(times)
