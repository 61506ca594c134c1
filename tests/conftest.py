"""Fixtures that several tests share."""

import fcntl
import os

import pytest
from browser import chromium, jupyter, lab  # noqa: F401

from sos.phantom.write import write_cohort


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory):
    """Manifest of 24 virtual patients, drawn once for all workers of a test session. Read-only: copy what you change."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(shared / "tiny_cohort.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # the second worker waits here, then finds the cohort whole
        return write_cohort(shared / "tiny_cohort", patients=24, seed=11, workers=1)


@pytest.fixture(scope="module")
def one_thread():
    """Sums in the same order on every machine, and no more cores than a worker's share."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_deadline_left_behind():
    """`--stop-after` sets a deadline for the process; no later test shall run into it."""
    before = os.environ.get("SOS_DEADLINE")
    yield
    if before is None:
        os.environ.pop("SOS_DEADLINE", None)
    else:
        os.environ["SOS_DEADLINE"] = before
