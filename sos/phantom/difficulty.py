"""How hard a virtual cohort is to read: one number, and what follows from it. All laws of difficulty stand here.

| difficulty | readers' noise and bias | scanner's noise and rings | contrast of joint and scar against the bone |
|---|---|---|---|
| 0, a textbook picture | none: every reader sees the true state | none | one and a half times the standard |
| 1, the standard cohort | as in `population` | as in the presets of `scanner` | as in `cranial_base` |
| 2, hard | twice | twice | half the standard |

Who the people are, their heads, poses and the draws of all noise do not depend on it: the same seed and index at another difficulty is the
same person in the same scanner, only easier or harder to read. The laws are our choice: simple, monotone, and 1 at the standard cohort.
"""

import math
from dataclasses import dataclass

from ..errors import CohortError


@dataclass(frozen=True)
class Difficulty:
    """`value` from 0 (easy) over 1 (standard) upward. Raises CohortError for a negative or non-finite one."""

    value: float = 1.0

    def __post_init__(self):
        if not 0 <= self.value < math.inf:
            raise CohortError(f"a difficulty must be a number from 0 upward (1 is the standard cohort), not {self.value:g}")

    @property
    def noise(self) -> float:
        """Factor on the noise of readers and scanner."""
        return float(self.value)

    @property
    def clarity(self) -> float:
        """Factor on the contrast of joint and scar against the bone round them: 1.5, 1, 0.5 at 0, 1, 2, and never 0."""
        return 3 / (2 + self.value**2)

    @property
    def mark(self) -> str:
        """What identifiers carry, so that patients of two difficulties are never taken for each other; nothing at 1."""
        return "" if self.value == 1 else f"-d{self.value:.15g}"
