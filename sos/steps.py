"""The road from a cohort to the figures: the cohort, then each notebook in order, and of these only what is missing or stale.

A step is skipped because its inputs are unchanged and its outputs are still what it made, never because a file exists. What a step
read and made stands in `runs/<profile>/steps.json`. Everything is written to a temporary name and renamed when whole, so a run that was
ended in any way, `kill -9` included, goes on with the same command.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from . import config
from .errors import CohortError, ConfigError, OutOfTime, RunError, SOSError, said_of
from .files import show_in_readme, write_whole
from .notebook import Apart, StepFailed, Stopped, code_cells, notebook_fingerprint
from .record import Record, manifest_fingerprint, only_one

PACKAGE = Path(__file__).resolve().parent
ROOMS_OF_NO_RESULT = ("cli.py", "steps.py", "notebook.py", "record.py", "files.py", "__main__.py")  # changing these changes no result
RESULT_FOLDERS = ("tables", "figures")


@dataclass(eq=False)
class Todo:
    """A step on its way: what it reads, why it runs, the results that were there before, and of a notebook the process that executes it."""

    name: str
    forced: bool
    inputs: dict = field(default_factory=dict)
    reason: str = ""
    began: float = 0.0  # seconds since 1970
    before: dict = field(default_factory=dict)
    apart: Apart | None = None
    log: Path | None = None

    @property
    def title(self) -> str:
        return f"  {self.name.replace('_', ' '):<22}"

    def noted(self) -> set[Path]:
        """The files that the notebook's kernel said it wrote; of a folder all in it."""
        if self.log is None or not self.log.is_file():
            return set()
        paths = [Path(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return {file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}


class Road:
    """The steps of one profile and one cohort: `cohort`; `runs`, where the profile trains several at once; the notebooks in the order of their
    numbers; and `publish`, where results of the profile are kept in the repository."""

    def __init__(self, profile: str, cohort: str = "", notebooks: Path | None = None):
        self.profile = config.get_profile(profile)
        self.own = Path(cohort).resolve() if cohort else None
        self.root = config.runs_dir(profile, self.own or "").resolve()
        self.manifest = self.own or self.root / "cohort" / "manifest.csv"
        folder = Path(notebooks or PACKAGE.parent / "notebooks").resolve()
        self.notebooks = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
        if not self.notebooks:
            raise RunError("no notebooks found beside the package; start this from a checkout of the repository")
        publish = ["publish"] if self.profile.name in config.PUBLISHED and not self.own else []
        self.steps = ["cohort", *(["runs"] if self.profile.at_once else []), *self.notebooks, *publish]
        self.code = config.source_digest(*(p for p in PACKAGE.rglob("*.py") if p.name not in ROOMS_OF_NO_RESULT))

    def choose(self, only: str | None) -> list[str]:
        """Names of the steps to look at. With `only`, the cohort (which every notebook reads), the steps of that number or name, and publishing."""
        if not only:
            return self.steps
        chosen = [name for name in self.steps if name == only or name.startswith(f"{only.zfill(2)}_")]
        if not chosen:
            raise ConfigError(f"no step '{only}'; known: {', '.join(self.steps)}")
        return sorted({"cohort", *chosen, *(["publish"] if "publish" in self.steps else [])}, key=self.steps.index)

    def inputs(self, name: str, record: Record) -> dict:
        """Fingerprints of all that the step reads; the keys are what the reason for a new run says."""
        if name == "cohort":
            if self.own:
                return {"manifest": manifest_fingerprint(self.own)}
            return {"number of patients": self.profile.patients, "seed": self.profile.cohort_seed,
                    "phantom": config.source_digest(PACKAGE / "phantom")}
        known = {"code": self.code, "profile": config.digest(self.profile.resolved()), "cohort": manifest_fingerprint(self.manifest)}
        if name == "runs":
            return known
        if name == "publish":
            return {"code": self.code, "results": record.made_in(RESULT_FOLDERS)}
        return known | {"notebook": notebook_fingerprint(self.notebooks[name]),
                        "earlier results": record.trained_in(self.steps[:self.steps.index(name)])}

    def do(self, name: str) -> list[Path]:
        """Carry out a step that is no notebook; returns the files that it made beside results."""
        if name == "runs":
            self.make_runs()
            return []
        if name == "publish":
            from .study.tables import publish

            return publish(self.profile.name)
        if self.own:
            from .cohort.audit import audit

            report = audit(self.own)
            if not report.usable:
                first = report.findings[0].what
                raise CohortError(f"{self.own}: this cohort cannot be used ({first}); `sos audit` lists what to mend")
            write_whole(self.root / "audit.json", report.to_json() + "\n")
            return [self.root / "audit.json"]
        from .phantom.write import write_cohort

        folder = self.root / "cohort"
        manifest = write_cohort(folder, self.profile.patients, self.profile.cohort_seed, progress=sys.stderr.isatty())
        return [manifest, folder / "cohort.json", *(folder / "images").glob("*"), *(folder / "masks").glob("*")]

    def make_runs(self) -> None:
        """Train what is not trained yet, and make what else the notebooks would wait for: networks timed while nothing else is at work, and
        their answers to harder patients."""
        from .study import difficulty, latency
        from .study.grid import finished, plan
        from .study.results import Results
        from .study.training import Study

        study, jobs = Study(self.profile, self.own or ""), plan(self.profile)
        if not finished(study, jobs):
            self.train(study, jobs)
        latency.obtain(study)
        try:
            difficulty.stage_all(Results(study))
        except OutOfTime:
            raise Stopped from None

    def train(self, study, jobs: list) -> None:
        """`at_once` runs of the profile at a time, on a GPU no more than it has room for: small networks leave much of a GPU, or of two cores, idle."""
        from .study.cluster import cluster, make_runs, room_for_runs, visible_gpus

        if visible_gpus():
            share = {"runs_per_gpu": room_for_runs(self.profile)}
        else:
            share = {"workers": min(self.profile.at_once, len(os.sched_getaffinity(0)))}
        with cluster(**share) as client:
            outcomes = make_runs(client, study, jobs, share.get("runs_per_gpu"))
        for outcome in outcomes:
            if outcome.error:
                raise StepFailed(f"{outcome.name}: {outcome.error}")
        if any(outcome.stopped for outcome in outcomes):
            raise Stopped

    @property
    def published(self) -> Path:
        """Where the figures and tables of a virtual cohort are published."""
        return config.home().resolve() / "figures" / self.profile.name

    def results(self) -> dict[Path, tuple]:
        """All results with size and time of change: published ones, those in `RESULT_FOLDERS`, and of trained runs the finished."""
        runs = [path.parent for path in (self.root / "models").glob("[!.]*/config.json")]
        folders = [*runs, *(self.root / name for name in RESULT_FOLDERS), *([] if self.own else [self.published])]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    def walk(self, only: str | None = None, force: bool = False, deadline: float = float("inf")) -> None:
        """Do what is missing or stale and print one line a step. Raises Stopped once `deadline` (seconds since 1970) has passed and what had begun by then
        has ended."""
        with only_one(self.root):
            for left_over in (self.root / "notebooks").glob(".part.*"):
                left_over.unlink()
            record = Record(self.root)
            todo = [Todo(name, force and not (only and name == "cohort")) for name in self.choose(only)]
            for step in todo:
                if step.name in ("cohort", "runs"):
                    self.carry_out(step, record, deadline)
            self.execute_notebooks([step for step in todo if step.name in self.notebooks], record, deadline)
            if todo[-1].name == "publish":
                if record.finished(self.notebooks):
                    self.carry_out(todo[-1], record, deadline)
                elif only == "publish":
                    raise ConfigError("nothing is published before all notebooks have ended; leave out --only")
            if not self.own and not only and set(record.steps) >= set(self.steps):
                show_in_readme(f"times:{self.profile.name}", self.times(record))

    def needed(self, step: Todo, record: Record) -> bool:
        """Whether the step must run, which then has begun in the record; else its line is printed."""
        step.inputs = self.inputs(step.name, record)
        step.reason = record.why(step.name, step.inputs) or ("forced" if step.forced else "")
        if not step.reason:
            record.save()
            last = record.steps[step.name]
            print(f"{step.title}unchanged ({spoken(last['elapsed_s'])} on {last['finished'][:10]})")
            return False
        step.before, step.began = self.results() if step.name != "cohort" else {}, time.time()
        if step.name == "cohort":
            if not self.own and step.name in record.steps and record.broken(step.name):
                (self.root / "cohort" / "cohort.json").unlink(missing_ok=True)  # without it every file is made anew
        else:
            record.begin(step.name)
        return True

    def carry_out(self, step: Todo, record: Record, deadline: float) -> None:
        """A step that is no notebook."""
        if time.time() >= deadline:
            raise Stopped
        if not self.needed(step, record):
            return
        print(f"{step.title}{step.reason} ... ", end="", flush=True)
        try:
            made = self.do(step.name)
        except BaseException as error:
            record.pause(step.name, time.time() - step.began)
            print("failed" if isinstance(error, SOSError) else "stopped")  # ends the step's line; the caller tells why
            raise
        self.finish(step, record, made, [])
        print(spoken(time.time() - step.began))

    def execute_notebooks(self, steps: list[Todo], record: Record, deadline: float) -> None:
        """In the order of their numbers; where the runs that they read are made before, `at_once` of them side by side, first the audit, which reads
        every file, then those with the most cells, so that no long one is left to run alone at the end. Each line is printed when its notebook has
        ended."""
        parameters = {"profile": self.profile.name, **({"cohort": str(self.own)} if self.own else {})}
        abreast = min(self.profile.at_once or 1, len(os.sched_getaffinity(0)))
        threads = len(os.sched_getaffinity(0)) // abreast if abreast > 1 else 0
        if abreast > 1:
            steps = sorted(steps, key=lambda step: (step.name != next(iter(self.notebooks)), -code_cells(self.notebooks[step.name])))
        begun, running, wrong = [], {}, None
        with TemporaryDirectory() as logs, ThreadPoolExecutor(abreast) as pool:
            try:
                while running or (steps and not wrong):
                    while steps and not wrong and len(running) < abreast:
                        if time.time() >= deadline:
                            wrong = Stopped()
                        elif self.needed(step := steps.pop(0), record):
                            step.log = Path(logs, step.name)
                            step.apart = Apart(self.notebooks[step.name], self.root / "notebooks", parameters, threads, step.log)
                            begun.append(step)
                            running[pool.submit(step.apart.made)] = step
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        step = running.pop(future)
                        try:
                            self.finish(step, record, future.result(), [other for other in begun if other is not step])
                            print(f"{step.title}{step.reason} ... {spoken(time.time() - step.began)}", flush=True)
                        except (SOSError, Stopped) as error:  # the others go on to their ends
                            self.interrupted(step, record, "failed" if isinstance(error, SOSError) else "stopped")
                            wrong = error if isinstance(error, SOSError) else wrong or error
            except BaseException:
                for step in running.values():
                    step.apart.end()
                    self.interrupted(step, record, "stopped")
                raise
        if wrong:
            raise wrong

    def interrupted(self, step: Todo, record: Record, how: str) -> None:
        record.pause(step.name, time.time() - step.began)
        print(f"{step.title}{step.reason} ... {how}", flush=True)

    def finish(self, step: Todo, record: Record, made: list[Path], beside: list[Todo]) -> None:
        """Record what the step made: the results that it noted, and those that have changed, or that nobody owns since an attempt was cut off,
        and that no notebook `beside` it noted."""
        results = set()
        if step.name != "cohort":
            now, owned, others = self.results(), record.owned(), {path for other in beside for path in other.noted()}
            results = {path for path, state in now.items() if path not in others and
                       (step.before.get(path) != state or os.path.relpath(path, self.root) not in owned)}
            results |= step.noted() & now.keys()
        record.finish(step.name, step.inputs, [*made, *results], step.began)

    def times(self, record: Record) -> str:
        """How long each step took when it was last carried out, attempts that were stopped included, as Markdown; of all together steps that ran side
        by side count once."""
        took = {name.replace("_", " "): record.steps[name]["elapsed_s"] for name in self.steps}
        rows = [f"| {name} | {spoken(seconds)} |" for name, seconds in {**took, "all": record.elapsed_s(self.steps)}.items()]
        return "\n".join([f"| step, profile `{self.profile.name}` | time |", "|---|---|", *rows]) + "\n"

    def where(self) -> str:
        """Where everything lies, for the last lines of a run."""
        places = {name: self.root / name for name in ("notebooks", "models", *RESULT_FOLDERS)}
        if not self.own:
            places["published"] = self.published
        return "\n".join(f"  {name:<22}{short(path)}" for name, path in places.items() if path.is_dir())


def short(path: Path) -> str:
    """`path` as seen from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def spoken(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def default_profile() -> str:
    """`paper` where a CUDA device is visible, else `quick`; found without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "quick"
    if Path("/dev/nvidia0").exists():
        return "paper"
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, timeout=20).stdout if tool else b""
    return "paper" if listed.startswith(b"GPU") else "quick"


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0 when done or stopped by the clock, 1 when a notebook failed, 2 for a user's error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sos.steps", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=sorted(config.PROFILES), help="default: paper with a CUDA device, else quick")
    parser.add_argument("--cohort", default="", metavar="MANIFEST", help="your own cohort in place of the virtual one")
    parser.add_argument("--only", metavar="NN", help="look at this step alone, for instance 04")
    parser.add_argument("--force", action="store_true", help="run also what is unchanged; finished trainings are still found")
    parser.add_argument("--stop-after", type=config.minutes, metavar="MINUTES", help="end cleanly after this time; the same command goes on")
    parser.add_argument("--notebooks", metavar="DIR", help="default: those of the checkout")
    args = parser.parse_args(argv)
    start = time.time()
    os.environ["SOS_HOME"] = str(config.home().resolve())  # kernels work in another folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    deadline = float("inf")
    if args.stop_after is not None:
        deadline = round(start + 60 * args.stop_after)  # whole seconds, the same for the road and for the trainings in its notebooks
        os.environ["SOS_DEADLINE"] = str(deadline)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        road = Road(args.profile or default_profile(), args.cohort, args.notebooks)
        print(f"profile {road.profile.name}, results in {short(road.root)}")
        road.walk(args.only, args.force, deadline)
    except Stopped:
        print(f"stopped after {spoken(time.time() - start)}; the same command{' without --force' if args.force else ''} goes on from here")
        return 0
    except SOSError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 1 if isinstance(error, StepFailed) else 2
    except OSError as error:  # no space, no permission, a file in place of a folder
        print(f"sos: {said_of(error)}; mend that, or set SOS_HOME to another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"done in {spoken(time.time() - start)}\n{road.where()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
