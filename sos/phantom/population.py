"""Who the virtual patients are: age, sex, the state of the joint, and how three readers stage it.

The state is continuous. Each person has a fusion age (calendar age plus a personal lead or lag), and the joint's closure, gap and
scar follow from it; a stage is a reading of that state, so that borderline patients exist as they do in a clinic.

Stages 1 to 4 are an ordered probit in age: P(stage >= k | age, sex) = Phi((age - tau_k) / sigma), with the transition ages tau
and the spread sigma of Hisham et al. 2018 (500 CT, `TRANSITION_AGE_Y`). For the step from scar to no scar no transition age is
published, only that the scar's persistence varies and can last for years (Shirley & Jantz): here it is a personal log-normal life
time.

Raters see the state with noise of their own; the label is their consensus. Their noise puts unweighted pairwise kappa into the
published range (0.7 to 0.91; Hisham et al. 2018 give 0.81 between and 0.79 to 0.91 within observers), which leaves a ceiling
below 1 for any model. It grows with `difficulty`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from .difficulty import Difficulty

AGE_RANGE_Y = (6.0, 22.0)
#: Age (years) at which half of the people have reached stage 2, 3, 4 (Hisham et al. 2018).
TRANSITION_AGE_Y = {"M": (12.52, 13.98, 15.52), "F": (10.47, 12.26, 13.80)}
#: Spread of the transitions in years (same source).
TRANSITION_SD_Y = {"M": 1.37, "F": 1.72}
#: Median of a scar's visible life in years and its spread as a standard deviation of the logarithm; our choice, see above.
SCAR_LIFE_Y, SCAR_LIFE_LOG_SD = 1.9, 0.55
#: Scar strength (1 at complete fusion) below which it is no longer seen at reading distance.
SCAR_VISIBLE = 0.35
#: Share of the joint's length that is closed over the reading scale: quick at the borders of stages, slower within; our choice.
CLOSURE = (1.5, 1.65, 2.35, 2.5, 2.65, 3.35, 3.5), (0.0, 0.12, 0.38, 0.5, 0.62, 0.90, 1.0)
#: Ages are drawn around the usual age of orthodontic records, so that no stage is rare: mean and SD (years) of a truncated
#: normal.
CLINIC_AGE_Y = {"M": (15.2, 3.0), "F": (13.6, 3.0)}
#: Noise (in stages) of one reading of the state by one rater, and the raters' standing bias.
RATER_NOISE, RATER_BIAS = 0.13, (-0.03, 0.0, 0.03)

#: Additive steps of the R3 low-discrepancy sequence: cohorts of any size cover age, lead and sex evenly.
_R3 = np.array([0.8191725133961645, 0.6710436067037893, 0.5497004779019703])


@dataclass(frozen=True)
class Fusion:
    """State of the joint.

    closed: share of the length that is bone, counted from the endocranial end (0 open, 1 fused). gap_mm: width of the cartilage
    where it is open. scar: strength of the fusion scar (0 none, 1 fresh). position: the state on the reading scale, k + 0.5 at
    the border between stage k and k + 1.
    """

    closed: float
    gap_mm: float
    scar: float
    position: float

    @property
    def stage(self) -> int:
        """Stage (1..5) that a reader without noise gives to this state."""
        return int(np.clip(np.floor(self.position + 0.5), 1, 5))


@dataclass(frozen=True)
class Person:
    """One virtual patient. `stage` is the raters' consensus, `fusion.stage` the truth; `maturity_y` is the fusion age in
    years; `clarity` is the factor on the contrast of joint and scar in pictures of this person (see `difficulty`)."""

    index: int
    age_y: float
    sex: str
    maturity_y: float
    fusion: Fusion
    raters: tuple[int, int, int]
    stage: int
    clarity: float = 1.0


def fuse(maturity_y: float, sex: str, scar_life_y: float, gap_scale: float = 1.0) -> Fusion:
    """State of a joint at fusion age `maturity_y` (years) for a scar that stays visible `scar_life_y` years after closure."""
    start, half, end = TRANSITION_AGE_Y[sex]
    gap_mm = gap_scale * float(np.interp(maturity_y, (6.0, start, half, end), (2.9, 2.3, 2.0, 1.7)))
    since = max(0.0, maturity_y - end)
    scar = 0.0 if maturity_y < end else float(SCAR_VISIBLE ** (since / scar_life_y))
    early = (start - 3.5, start, half, end, end + scar_life_y, end + scar_life_y + 3.5)
    position = float(np.interp(maturity_y, early, (0.6, 1.5, 2.5, 3.5, 4.5, 5.5)))
    closed = float(np.interp(position, *CLOSURE))
    return Fusion(closed, gap_mm, scar, position)


def draw_person(seed: int, index: int, rng: np.random.Generator, difficulty: Difficulty = Difficulty()) -> Person:
    """Draw patient `index` of the cohort `seed`.

    Age, personal lead and sex come from a low-discrepancy sequence shifted by the seed, all else from `rng`.
    """
    shift = np.random.default_rng([seed, 2**32 - 1]).random(3)
    u_age, u_lead, u_sex = np.clip((shift + (index + 1) * _R3) % 1.0, 1e-6, 1 - 1e-6)
    sex = "F" if u_sex < 0.5 else "M"
    age_y = _truncated_normal(u_age, *CLINIC_AGE_Y[sex])
    maturity_y = float(age_y + TRANSITION_SD_Y[sex] * ndtri(u_lead))
    scar_life_y = SCAR_LIFE_Y * float(np.exp(SCAR_LIFE_LOG_SD * rng.standard_normal()))
    fusion = fuse(maturity_y, sex, scar_life_y, gap_scale=float(np.exp(0.18 * rng.standard_normal())))
    seen = fusion.position + difficulty.noise * (np.array(RATER_BIAS) + RATER_NOISE * rng.standard_normal(3))
    raters = tuple(int(r) for r in np.clip(np.floor(seen + 0.5), 1, 5))
    return Person(index, round(age_y, 2), sex, maturity_y, fusion, raters, int(np.median(raters)),
                  difficulty.clarity)


def _truncated_normal(u: float, mean: float, sd: float) -> float:
    """Quantile `u` of a normal distribution cut to AGE_RANGE_Y."""
    from scipy.special import ndtr

    low, high = ndtr((np.array(AGE_RANGE_Y) - mean) / sd)
    return float(np.clip(mean + sd * ndtri(low + u * (high - low)), *AGE_RANGE_Y))
