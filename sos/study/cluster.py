"""The plan of a profile carried out by many processes, on one machine or on many that share its folder of results, with dask.

Each job is a task of a dask cluster. Runs are made in interpreters beside the workers (`python -m sos.study.cluster`), one run at a time in each, so
that no two share random numbers or threads, and so that a run that dies takes no worker with it. This room loads torch only in those interpreters.
"""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from ..config import RUN_ATTEMPTS, Profile, RunConfig, home
from ..cores import LARGE_PAGES
from ..errors import ConfigError, OutOfTime, RunError, SOSError
from ..files import alone, end_with_parent

GPU = "GPU"  # name of the dask resource: a worker declares one, each run takes its share
NOT_BEGUN = "stopped in time before it began; the next call goes on"
LOOK_S = 2  # between two looks at the clock while no run ends
ANSWER_S = 30  # how long a scheduler, and then a first worker of it, may take to answer


@dataclass(frozen=True)
class Order:
    """All that a worker is told of one run. `name`: of the run's folder; `data`: digest of the cohort's images; `code`: of the software that gave
    the order."""

    name: str
    data: str
    profile: Profile
    manifest: str
    config: RunConfig
    keep_weights: bool
    home: str
    deadline: float
    code: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: made, where both texts are empty, or failed with `error`, or `stopped` in time."""

    name: str
    error: str = ""
    stopped: str = ""


# ---- the cluster ---------------------------------------------------------------------------------------------------


@contextmanager
def cluster(workers: int | None = None, runs_per_gpu: int | None = None, scheduler: str = "", slurm: list[str] | None = None) -> Iterator:
    """A dask client: of processes of this machine, of the cluster whose scheduler has the address `scheduler`, or of Slurm jobs.

    workers: processes here (default: one a GPU, else one in all), or Slurm jobs (default 1). Raises ConfigError for what cannot be had.
    """
    if not find_spec("distributed") or (slurm and not find_spec("dask_jobqueue")):
        raise ConfigError("this needs dask; install it with `pip install distributed dask-jobqueue`")
    for name, number in (("workers", workers), ("runs-per-gpu", runs_per_gpu)):
        if number is not None and number < 1:
            raise ConfigError(f"--{name} {number} must be at least 1")
    import dask
    from distributed import Client, SpecCluster

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": RUN_ATTEMPTS - 1,
                                             "distributed.worker.profile.enabled": False}))  # which looks at every worker a hundred times a second
        if scheduler:
            yield stack.enter_context(_joined(scheduler, workers, runs_per_gpu))
            return
        if slurm:
            ours = stack.enter_context(slurm_cluster(slurm, runs_per_gpu))
            if not shutil.which("sbatch"):
                raise ConfigError("--slurm: there is no sbatch on this machine; start this on a login node of the cluster")
            ours.adapt(minimum_jobs=workers or 1, maximum_jobs=workers or 1)  # unlike scale(), puts a new job in place of one that has ended
        else:
            board = find_spec("bokeh") is not None
            spec = local_workers(visible_gpus(), len(os.sched_getaffinity(0)), workers, runs_per_gpu)
            ours = stack.enter_context(SpecCluster(workers=spec, scheduler=_local_scheduler(board), silence_logs="ERROR"))
            if board:
                print(f"dashboard: {ours.dashboard_link}", file=sys.stderr)
        yield stack.enter_context(Client(ours))


def local_workers(gpus: list[str], cores: int, workers: int | None = None, runs_per_gpu: int | None = None) -> dict:
    """What `SpecCluster` is told of the workers on this machine: one process a GPU that takes `runs_per_gpu` runs (default 1) at once; without
    GPUs `workers` processes (default 1) with one run at once each. All `cores` are shared out among the runs as torch's threads."""
    from distributed import Nanny

    if not gpus and runs_per_gpu:
        raise ConfigError("--runs-per-gpu: no GPU is to be seen here")
    if gpus and workers and workers > len(gpus):
        raise ConfigError(f"--workers {workers}: there are {len(gpus)} GPUs, a worker each; for more runs on each use --runs-per-gpu")
    workers, at_once = workers or len(gpus) or 1, runs_per_gpu or 1
    env = {"OMP_NUM_THREADS": max(1, cores // (workers * at_once))}
    # no limit of memory: it is the runs that need it, and they are no part of the worker
    options = {"nthreads": at_once, "memory_limit": 0, "host": "127.0.0.1", "silence_logs": "ERROR"}
    if not gpus:
        return {i: {"cls": Nanny, "options": options | {"env": env}} for i in range(workers)}
    return {i: {"cls": Nanny, "options": options | {"env": env | {"CUDA_VISIBLE_DEVICES": gpus[i]}, "resources": {GPU: 1}}}
            for i in range(workers)}


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine as $CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:torch.cuda.device_count()] if names else list(map(str, range(torch.cuda.device_count())))


def room_for_runs(profile: Profile) -> int:
    """How many runs of a profile go side by side on the smallest GPU of this machine."""
    import torch

    smallest = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return profile.side_by_side(smallest / 2**30)


def slurm_cluster(settings: list[str], runs_per_gpu: int | None = None):
    """dask-jobqueue's SLURMCluster with `settings` (KEY=VALUE; values as Python writes them, or plain text), nothing submitted yet.

    A job runs `processes` workers (default 1), each one run at once, or with `runs_per_gpu` that many on the job's one GPU.
    """
    from dask_jobqueue import SLURMCluster

    options = {}
    for pair in settings:
        key, sep, text = pair.partition("=")
        if not sep:
            raise ConfigError(f"--slurm '{pair}' is not of the form KEY=VALUE")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    processes, at_once = options.setdefault("processes", 1), runs_per_gpu or 1
    if runs_per_gpu and processes != 1:
        raise ConfigError("--slurm processes: with --runs-per-gpu a job has one GPU and one process; ask for more jobs with --workers")
    try:
        threads = max(1, options["cores"] // (processes * at_once))
        # of an option given twice dask takes the last: a run at once for each thread would be dask-jobqueue's choice
        extra = ["--nthreads", str(at_once), *(["--resources", f"{GPU}=1"] if runs_per_gpu else [])]
        options["worker_extra_args"] = [*options.get("worker_extra_args", []), *extra]
        options["job_script_prologue"] = [f"export OMP_NUM_THREADS={threads}", *options.get("job_script_prologue", [])]
        return SLURMCluster(**options)
    except KeyError:
        raise ConfigError("--slurm needs cores and memory of a job at least, such as cores=8 memory=32GB walltime=04:00:00") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--slurm {' '.join(settings)}: {str(error).splitlines()[0]}") from None


def _local_scheduler(board: bool) -> dict:
    from distributed import Scheduler

    port = 8787 if board else 0
    return {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": board, "dashboard_address": f"127.0.0.1:{port}"}}


@contextmanager
def _joined(address: str, workers: int | None, runs_per_gpu: int | None):
    from distributed import Client

    if workers:
        raise ConfigError("--workers: the cluster of --scheduler has the workers it has")
    try:
        client = Client(address, timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--scheduler {address}: no answer ({str(error).splitlines()[0]}); start one with `dask scheduler`") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except TimeoutError:
            raise ConfigError(f"--scheduler {address}: it has no worker; start some with `dask worker {address} --nthreads 1`") from None
        known = client.scheduler_info(n_workers=-1)["workers"].values()
        if runs_per_gpu and not any(GPU in worker["resources"] for worker in known):
            raise ConfigError(f"--runs-per-gpu: no worker of {address} declares a GPU; start them with `dask worker --resources GPU=1`")
        yield client


# ---- the plan on it ------------------------------------------------------------------------------------------------


def make_runs(client, study, jobs: list, runs_per_gpu: int | None = None, progress: Callable[[str], None] | None = None) -> list[Outcome]:
    """Make the runs of `jobs` (of `grid.plan`) of a `training.Study`, each after those it needs; one Outcome a job, in their order.

    A run whose process or worker dies is tried again, from its last epoch, RUN_ATTEMPTS times in all; one with an SOSError is not. Neither
    stops runs that do not need it. `progress` is told the name of each run that is made.
    """
    from distributed import CancelledError, wait

    from .grid import priorities
    from .runs import run_name, training_code

    deadline = float(os.environ.get("SOS_DEADLINE", "inf"))
    with alone(study.folder / ".cohort.lock", deadline):
        data = study.store.digest  # drawn and decoded here, once
    share = {GPU: int(1e6 / (runs_per_gpu or 1)) / 1e6} if runs_per_gpu else {}  # rounded down: nine times 1/9 is above 1
    manifest = str(study.manifest.resolve()) if study.manifest else ""
    names, futures = [], []
    for job, first in zip(jobs, priorities(jobs), strict=True):
        teacher = names[job.needs[0]] if job.needs else None
        names.append(run_name(job.config, data, study.profile.scheme, teacher))
        order = Order(names[-1], data, study.profile, manifest, job.config, job.keep_weights, str(home().resolve()), deadline, training_code())
        futures.append(client.submit(carry_out, order, [futures[i] for i in job.needs], pure=False, retries=RUN_ATTEMPTS - 1, resources=share,
                                     priority=first))
    places = {future.key: place for place, future in enumerate(futures)}
    outcomes: list[Outcome] = [None] * len(jobs)
    left = set(futures)
    while left:
        try:
            done, left = wait(left, timeout=LOOK_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            if time.time() < deadline or any(client.processing().values()):
                continue
            done, left = left, set()  # no worker has come, or none is left
        except CancelledError:  # the scheduler has gone, or somebody has cancelled tasks there
            done, left = left, set()
        for future in done:
            place = places[future.key]
            outcomes[place] = _outcome(future, names[place])
            if progress is not None and not (outcomes[place].error or outcomes[place].stopped):
                progress(names[place])
    for place, job in enumerate(jobs):  # dask gives a task the exception of what it needs
        lost = [names[i] for i in job.needs if outcomes[i].error]
        if lost:
            outcomes[place] = Outcome(names[place], f"not made, because it needs {lost[0]}")
        elif not (outcomes[place].error or outcomes[place].stopped or (study.folder / "models" / names[place] / "config.json").is_file()):
            outcomes[place] = Outcome(names[place], f"made, but not below {study.folder}; workers must share this folder")
    return outcomes


def _outcome(future, name: str) -> Outcome:
    if future.status == "finished":
        return future.result()
    if future.status == "pending":
        return Outcome(name, stopped=NOT_BEGUN)
    return Outcome(name, f"{future.exception()}" if future.status == "error" else f"{future.status} on the cluster; the same command goes on")


def carry_out(order: Order, needs: list[Outcome]) -> Outcome:
    """On a worker: make one run in an interpreter beside it. Raises RuntimeError where that dies, so that dask tries it again."""
    for need in needs:
        if need.error or need.stopped:
            return Outcome(order.name, need.error, need.stopped)
    if time.time() > order.deadline:
        return Outcome(order.name, stopped=NOT_BEGUN)
    maker = _idle_maker(order.code)
    outcome = maker.make(order)
    _IDLE.append(maker)
    return outcome


class Maker:
    """An interpreter that makes one run after the other: to start it and load torch takes longer than a small run."""

    def __init__(self, code: str):
        self.code, self.log = code, tempfile.TemporaryFile()
        self.child = subprocess.Popen([sys.executable, "-m", __name__], env=LARGE_PAGES | os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self.log)

    def make(self, order: Order) -> Outcome:
        """The run of `order`. Raises RuntimeError, with the last words of the interpreter, where that dies."""
        self.log.seek(0)  # the child's place in it too: what was said of earlier runs is not of this one
        self.log.truncate()
        try:
            pickle.dump(order, self.child.stdin)
            self.child.stdin.flush()  # and stays open: its end tells the child that this worker is gone
            answer = self.child.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            return Outcome(order.name, **json.loads(answer))
        status = self.child.wait()
        self.log.seek(0)
        told = self.log.read().decode(errors="replace").strip()
        if told:
            print(told, file=sys.stderr, flush=True)
        end = f"signal {-status}" if status < 0 else f"status {status}"
        raise RuntimeError(f"its process ended with {end}" + (f": {told.splitlines()[-1]}" if told else ""))

    def end(self) -> None:
        self.child.stdin.close()
        self.child.wait()


_IDLE: list[Maker] = []  # of this worker, which has as many at most as it carries out runs at once


def _idle_maker(code: str) -> Maker:
    """One that waits and has loaded the software of the hash `code`, else a new one."""
    while _IDLE:
        maker = _IDLE.pop()
        if maker.code == code and maker.child.poll() is None:
            return maker
        maker.end()
    return Maker(code)


def main() -> None:
    """In an interpreter of its own: make the run of each Order that comes on standard input; a line of output for each says how it ended, as JSON."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    while True:
        order = pickle.load(sys.stdin.buffer)
        os.environ.update(SOS_HOME=order.home, SOS_DEADLINE=str(order.deadline))
        outcome = Outcome(order.name)
        try:
            _obtain(order)
        except OutOfTime as error:
            outcome = Outcome(order.name, stopped=_last_line(error))
        except SOSError as error:
            outcome = Outcome(order.name, error=_last_line(error))
        words = asdict(outcome)
        del words["name"]
        print(json.dumps(words), file=answers, flush=True)


def _obtain(order: Order) -> None:
    from .runs import training_code

    if training_code() != order.code:
        raise RunError("this worker has another version of the software; install the same on all machines")
    _study_of(order).obtain(order.config, keep_weights=order.keep_weights)


def _study_of(order: Order):
    """The study of an order: that of the order before where it is of the same images, which then are neither looked for nor copied to a GPU again."""
    from .grid import has_cohort
    from .training import Study

    asked = order.profile, order.manifest, order.home, order.data
    if _LAST.get("asked") != asked:
        _LAST.clear()  # its memory goes before the next takes some
        study = Study(order.profile, order.manifest)
        if not has_cohort(study):
            raise RunError(f"this worker sees no cohort below {study.folder}; workers must share this folder")
        _LAST.update(asked=asked, study=study)
    return _LAST["study"]


_LAST: dict = {}  # of this interpreter: the study that it made its last run for, and what that is of


def _last_line(error: SOSError) -> str:
    return str(error).splitlines()[-1].strip()  # before it fastai says in which callback


if __name__ == "__main__":
    main()
