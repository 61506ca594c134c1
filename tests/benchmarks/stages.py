"""One point of `bench_growth`: a stage at one size, its seconds and its memory.

    python tests/benchmarks/stages.py '{"stage": "draw", "folder": "…", "patients": 100}'

It prints one JSON object. Each stage imports what it needs and no more, so that a process of its own is small and starts soon.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

SEED = 12
HELD_OUT = 0.35  # of the patients: validation and test
TESTED = 0.25
RESAMPLES = 2000
EVERY_S = 0.02  # between two looks at memory
FRAME_PX = 32  # what networks see where a stage goes through 100,000 images


class Watched:
    """Seconds, and memory in MiB, of what happens inside: `peak` resident, `own` above what was held at the beginning."""

    def __enter__(self):
        self._before = self._most = own_mib()
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._look, daemon=True)
        self._looker.start()
        self._start = time.perf_counter()
        return self

    def _look(self):
        while not self._over.wait(EVERY_S):
            self._most = max(self._most, own_mib())

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self._start
        self._over.set()
        self._looker.join()
        self.own = max(self._most, own_mib()) - self._before
        self.peak = _held(os.getpid(), "VmHWM")  # getrusage's begins with what the parent held

    def measured(self) -> dict:
        return {"seconds": self.seconds, "peak_mib": self.peak, "own_mib": self.own, "held_mib": self._before}


def own_mib() -> float:
    """Anonymous memory of this process and of those that it started, in MiB; nan where the system does not tell."""
    return sum(_held(process, "RssAnon") for process in [os.getpid(), *_children(os.getpid())])


def _held(process: int, what: str) -> float:
    """What the line `what` of a process's status says, in MiB."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # over since it was listed, or no Linux
        return 0.0 if process != os.getpid() else float("nan")
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024


def _children(process: int) -> list[int]:
    try:
        direct = [int(word) for task in Path(f"/proc/{process}/task").iterdir() for word in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*direct, *(below for child in direct for below in _children(child))]


def _draw(folder: str, patients: int, workers: int | None = None) -> dict:
    from sos.phantom.write import write_cohort

    with Watched() as watched:
        write_cohort(folder, patients, SEED, workers)
    return watched.measured()


def _store(manifest: str, cache: str, native_px: int) -> dict:
    from sos.cohort.manifest import read_manifest
    from sos.cohort.views import open_store

    cohort = read_manifest(manifest)
    with Watched() as watched:
        open_store(cohort, Path(cache), native_px)
    return watched.measured()


def _loader(manifest: str, cache: str, native_px: int) -> dict:
    from work import loader_of

    from sos.cohort.manifest import read_manifest
    from sos.cohort.views import open_store
    from sos.config import get_profile

    config, teacher = get_profile("smoke").run("student").with_(frame_px=FRAME_PX), get_profile("smoke").run("teacher").with_(window_px=FRAME_PX)
    store = open_store(read_manifest(manifest), Path(cache), native_px)
    with Watched() as watched:
        for _ in loader_of(config, teacher, store):
            pass
    return watched.measured()


def _audit(manifest: str) -> dict:
    from sos.cohort.audit import audit

    with Watched() as watched:
        audit(manifest)
    return watched.measured()


def _evaluate(manifest: str, cache: str, native_px: int) -> dict:
    import numpy as np

    from sos.cohort.manifest import read_manifest
    from sos.cohort.views import open_store
    from sos.config import get_profile
    from sos.cores import keep_freed_memory
    from sos.study.fitting import network
    from sos.study.training import evaluate

    keep_freed_memory()
    config, cohort = get_profile("smoke").run("baseline").with_(frame_px=FRAME_PX), read_manifest(manifest)
    store, net = open_store(cohort, Path(cache), native_px), network(config, len(cohort.scheme), "cpu").eval()
    rows = np.arange(len(cohort.table))[:round(HELD_OUT * len(cohort.table))]
    with Watched() as watched:
        evaluate(net, store, cohort, rows, config)
    return watched.measured()


def _answers(manifest: str) -> dict:
    """`sos predict` by a network of one layer: what is asked is what stays in memory between images."""
    from unittest.mock import patch

    import pandas as pd
    from torch import nn

    from sos import predict
    from sos.config import get_profile
    from sos.method.models import Head, StagingNet
    from sos.stages import BASSED5

    net = StagingNet(nn.Conv2d(1, 8, 3, stride=8, padding=1), Head(8, len(BASSED5))).eval()
    stager = predict.Stager(net, get_profile("smoke").run("baseline").with_(frame_px=FRAME_PX), BASSED5, "of one layer")
    paths = [Path(manifest).parent / name for name in pd.read_csv(manifest)["image"]]
    with patch.object(predict, "load_stager", return_value=stager), Watched() as watched:
        failed = sum(bool(row["error"]) for row in predict.predict_paths(paths))
    assert not failed, f"{failed} images could not be read"
    return watched.measured()


def _metrics(patients: int) -> dict:
    import numpy as np
    import pandas as pd

    from sos.study.metrics import measure

    n, rng = round(TESTED * patients), np.random.default_rng(SEED)
    target, words = rng.integers(0, 5, n), rng.normal(size=(n, 5))
    words[np.arange(n), target] += 2
    shares = np.exp(words) / np.exp(words).sum(1, keepdims=True)
    table = pd.DataFrame({"patient_id": np.arange(n).astype(str), "target": target, **{f"p{k + 1}": shares[:, k] for k in range(5)}})
    with Watched() as watched:
        measure(table, RESAMPLES)
    return watched.measured()


def _step(what: str, size: int, rounds: int, device: str) -> dict:
    """A plain training step of quick's network on frames of `size` px (`what`: train), or a prediction (predict); seconds an image of 8."""
    import torch
    from measure import in_turns
    from work import TrainingStep, on_device, synthetic_batch

    from sos.config import get_profile
    from sos.cores import keep_freed_memory

    keep_freed_memory()
    config = get_profile("quick").run("baseline").with_(frame_px=size)
    batch, step = synthetic_batch(config, 0, config.batch_size, device), TrainingStep(config, device=device)
    if what == "predict":
        step.net.eval()
    with Watched() as watched:
        took = in_turns(rounds, part=on_device(lambda: step(batch) if what == "train" else step.predict(batch[0]), device))
    memory = {"gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20} if device.startswith("cuda") else {}
    return watched.measured() | {"seconds": took["part"] / config.batch_size} | memory


def _run(steps: int, device: str) -> dict:
    """`steps` training steps of quick's student on one thread, as in runs that train side by side."""
    import torch
    from work import TrainingStep, on_device, synthetic_batch

    from sos.config import get_profile
    from sos.cores import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    profile = get_profile("quick")
    step = TrainingStep(profile.run("student"), profile.run("teacher"), device)
    batch = synthetic_batch(step.config, profile.run("teacher").window_px, step.config.batch_size, device)
    go = on_device(lambda: step(batch), device)
    for _ in range(3):
        go()
    with Watched() as watched:
        for _ in range(steps):
            go()
    return watched.measured()


def one(point: dict) -> dict:
    """Measure a point: `stage`, and what that stage's function takes."""
    return _STAGES[point["stage"]](**{name: value for name, value in point.items() if name != "stage"})


_STAGES = {"draw": _draw, "store": _store, "loader": _loader, "audit": _audit, "evaluate": _evaluate, "answers": _answers, "metrics": _metrics,
           "step": _step, "run": _run}

if __name__ == "__main__":
    print(json.dumps(one(json.loads(sys.argv[1]))))
