"""What tells students of the notebooks whether an answer is right. A room of its own, as it is the one part of an exercise that a notebook imports."""

import numpy as np


def check(exercise: str, answer, expected, tolerance: float = 1e-6) -> None:
    """Say whether the answer to an exercise is right: every number of it within `tolerance` of the expected one."""
    try:
        got, wanted = np.asarray(answer, float), np.asarray(expected, float)
    except (TypeError, ValueError):
        got, wanted = np.array(np.nan), np.asarray(expected, float)
    if not np.isfinite(got).all():
        print(f"Exercise {exercise}: not yet; write your answer into the cell above")
    elif got.shape != wanted.shape:
        print(f"Exercise {exercise}: not yet; the shape is {got.shape}, not {wanted.shape}")
    elif np.allclose(got, wanted, rtol=0, atol=tolerance):
        print(f"Exercise {exercise}: right")
    else:
        print(f"Exercise {exercise}: not yet; off by up to {np.abs(got - wanted).max():.3g}, at most {tolerance:g} is asked for")
