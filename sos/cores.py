"""This machine's cores and memory: the same work on many things, spread over the cores; memory that is kept for the next batch."""

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Thread

from threadpoolctl import threadpool_limits

# for the environment of processes that compute for long: glibc asks Linux to lay out memory in large pages, which takes a tenth off a training step
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

MANY = 100  # things from which on processes are worth the two seconds that they take to start


@contextmanager
def spread(items: int, workers: int | None = None) -> Iterator[Callable]:
    """A function like `map`, in order, whose calls are spread over the cores: by threads for few `items`, for many by processes, which take
    two seconds to start. workers: how many of either; default: one a core. What processes are given must be importable and picklable.

    Inside, numpy's products of matrices keep to one thread: threads of several that wait for each other make small ones twenty times slower."""
    workers = workers or len(os.sched_getaffinity(0))
    if items < MANY or workers == 1:
        with ThreadPoolExecutor(workers) as pool, threadpool_limits(1):  # decoders and numpy let go of the interpreter's lock
            yield pool.map
    else:
        with _one_thread_each(), processes(workers) as pool:
            yield partial(pool.map, chunksize=8)


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh interpreters that end with this one, however it ends. Unlike a Pool it fails where a script lacks its
    `if __name__ == "__main__":`, and does not hang."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started inside compute with one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks for this process instead of giving them back; elsewhere do nothing.

    Each batch frees and asks again for the same blocks; pages that come anew from the system nearly double the time of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: the largest it takes
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
