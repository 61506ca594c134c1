"""Work is spread over threads or processes, in order, and what goes wrong in one of them is told here."""

import os
import subprocess
import sys
import threading
import time

import pytest

from sos.cores import MANY, spread


def where(_) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def halved(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.parametrize("items", [MANY - 1, MANY])
def test_results_come_in_order_and_an_error_is_raised(items):
    with spread(items, 2) as each:
        assert list(each(halved, range(0, 2 * items, 2))) == list(range(items))
        with pytest.raises(ValueError, match="^7 is odd$"):
            list(each(halved, [2, 7]))


def test_few_things_are_done_in_threads_here_and_many_in_two_processes():
    with spread(MANY - 1, 2) as each:
        assert {process for process, _ in each(where, range(MANY - 1))} == {os.getpid()}
    with spread(MANY, 2) as each:
        processes = {process for process, _ in each(where, range(MANY))}
    assert len(processes) <= 2 and os.getpid() not in processes
    with spread(MANY, 1) as each:  # one at a time needs no process
        assert len(set(each(where, range(MANY)))) == 1


WORK = """
import os, sys, time
from sos.cores import processes
if __name__ == "__main__":
    with processes(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_no_process_of_a_pool_outlives_the_one_that_is_killed(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    running = subprocess.Popen([sys.executable, str(tmp_path / "work.py")], stdout=subprocess.PIPE, text=True)
    child = int(running.stdout.readline())
    os.kill(child, 0)
    running.kill()
    running.wait()
    for _ in range(300):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("it lives on")
