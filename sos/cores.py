"""The same work on many things, spread over the cores of this machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

MANY = 100  # things from which on processes are worth the two seconds that they take to start


@contextmanager
def spread(items: int, workers: int | None = None) -> Iterator[Callable]:
    """A function like `map`, in order, whose calls are spread over the cores: by threads for few `items`, for many by processes, which take
    two seconds to start. workers: how many of either; default: one a core. What processes are given must be importable and picklable."""
    workers = workers or len(os.sched_getaffinity(0))
    if items < MANY or workers == 1:
        with ThreadPoolExecutor(workers) as pool:  # decoders and numpy let go of the interpreter's lock
            yield pool.map
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield partial(pool.map, chunksize=8)
