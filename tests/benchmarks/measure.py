"""What the benchmarks share: functions that take turns, and ratios with the target that each is held against."""

import statistics
import time
from dataclasses import dataclass


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


def in_turns(rounds: int, **parts) -> dict[str, float]:
    """Median seconds of each function; they take turns, after one turn that does not count."""
    times = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
