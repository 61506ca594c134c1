"""The road from a cohort to the figures: the cohort, then each notebook in order, and of these only what is missing or stale.

A step is skipped because its inputs are unchanged and its outputs are still what it made, never because a file exists. What a step
read and made stands in `runs/<profile>/steps.json`. Everything is written to a temporary name and renamed when whole, so a run that was
ended in any way, `kill -9` included, goes on with the same command.
"""

import argparse
import ast
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import config
from .errors import CohortError, ConfigError, RunError, SOSError
from .files import show_in_readme, write_whole
from .record import Record, manifest_fingerprint, only_one

PACKAGE = Path(__file__).resolve().parent
ROOMS_OF_NO_RESULT = ("cli.py", "steps.py", "record.py", "files.py", "__main__.py")  # changing these changes no result
RESULT_FOLDERS = ("tables", "figures")
QUIET_KERNEL = ["--IPKernelApp.log_level=50"]  # no "Kernel is running over TCP" on stderr


class StepFailed(SOSError):
    """A notebook or a training ended with an error; the message names it and the error."""


def read_notebook(path: Path) -> dict:
    """A notebook as its JSON. Raises RunError for a file that is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise RunError(f"{path}: not a notebook; restore it from the repository") from None
    return notebook


def notebook_fingerprint(path: Path) -> str:
    """SHA-256 over the sources of a notebook's cells; outputs, counts and ids do not count."""
    cells = read_notebook(path)["cells"]
    return config.digest([[cell["cell_type"], "".join(cell["source"])] for cell in cells])


def check_parameters(path: Path, parameters: dict) -> None:
    """Raises ConfigError where the cell tagged `parameters` does not define each of `parameters`; papermill itself would only warn."""
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"{path.name}: has {len(cells)} cells tagged 'parameters'; it needs exactly one")
    names = {target.id for node in ast.parse("".join(cells[0]["source"])).body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}
    for name in parameters:
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ConfigError(f"{path.name}: knows no parameter '{name}'; its parameters cell defines {known}")


def execute(path: Path, folder: Path, parameters: dict) -> list[Path]:
    """Execute the notebook `path` into `folder` as .ipynb and .html, with the notebook's own folder as working directory.

    Returns the two files. Raises Stopped where the notebook ran into the deadline, StepFailed for any other error; the notebook as far as
    it came is then kept as `<name>.failed.ipynb`.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_parameters(path, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    part, done, failed = folder / f".part.{path.name}", folder / path.name, folder / f"{path.stem}.failed.ipynb"
    try:
        notebook = papermill.execute_notebook(path, part, parameters, kernel_name="python3", language="python", cwd=path.parent,
                                              progress_bar=False, log_output=False, extra_arguments=QUIET_KERNEL)
    except papermill.PapermillExecutionError as error:
        if error.ename == "OutOfTime":
            part.unlink()
            raise Stopped from None
        os.replace(part, failed)
        reason = (error.evalue.strip().splitlines() or ["no message"])[0]
        raise StepFailed(f"{path.name}, cell [{error.exec_count}]: {error.ename}: {reason}\n  as far as it came: {failed}") from None
    except DeadKernelError:
        os.replace(part, failed)
        raise StepFailed(f"{path.name}: its kernel died, most often for want of memory\n  as far as it came: {failed}") from None
    keep_still(notebook)
    notebook.metadata["papermill"].update(input_path=path.name, output_path=path.name)  # no path of this machine in a result
    nbformat.write(notebook, part)
    made = [done]
    if importlib.util.find_spec("nbconvert"):
        write_whole(done.with_suffix(".html"), as_html(notebook, path.stem))
        made.append(done.with_suffix(".html"))
    os.replace(part, done)
    failed.unlink(missing_ok=True)
    return made


def keep_still(notebook) -> None:
    """Leave of a widget's output its picture, or where it has none its text: without a kernel its controls would do nothing."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if data.pop("application/vnd.jupyter.widget-view+json", None) and "image/png" in data:
            data["text/plain"] = "a panel to explore with; run the cell to move its controls"
    notebook.metadata.pop("widgets", None)


def as_html(notebook, title: str) -> str:
    """One self-contained page; only formulas are set by a script from outside, since they need its fonts."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(require_js_url="", jquery_url="", mermaid_js_url="", widget_renderer_url="")
    return exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})[0]


class Stopped(Exception):
    """The deadline has passed; everything done is saved."""


class Road:
    """The steps of one profile and one cohort: `cohort`; `runs`, where the profile trains several at once; then the notebooks in the order of
    their numbers."""

    def __init__(self, profile: str, cohort: str = "", notebooks: Path | None = None):
        self.profile = config.get_profile(profile)
        self.own = Path(cohort).resolve() if cohort else None
        self.root = config.runs_dir(profile, self.own or "").resolve()
        self.manifest = self.own or self.root / "cohort" / "manifest.csv"
        folder = Path(notebooks or PACKAGE.parent / "notebooks").resolve()
        self.notebooks = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
        if not self.notebooks:
            raise RunError("no notebooks found beside the package; start this from a checkout of the repository")
        self.steps = ["cohort", *(["runs"] if self.profile.at_once else []), *self.notebooks]
        self.code = config.source_digest(*(p for p in PACKAGE.rglob("*.py") if p.name not in ROOMS_OF_NO_RESULT))

    def choose(self, only: str | None) -> list[str]:
        """Names of the steps to look at. With `only`, the cohort (which every notebook reads) and the steps of that number or name."""
        if not only:
            return self.steps
        chosen = [name for name in self.steps if name == only or name.startswith(f"{only.zfill(2)}_")]
        if not chosen:
            raise ConfigError(f"no step '{only}'; known: {', '.join(self.steps)}")
        return sorted({"cohort", *chosen}, key=self.steps.index)

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
        return known | {"notebook": notebook_fingerprint(self.notebooks[name]),
                        "earlier results": record.trained_in(self.steps[:self.steps.index(name)])}

    def do(self, name: str, record: Record) -> list[Path]:
        """Carry the step out; returns the files that it made."""
        if name != "cohort":
            return self.do_with_results(name, record)
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
        if name in record.steps and record.broken(name):
            (folder / "cohort.json").unlink(missing_ok=True)  # without it every file is made anew
        manifest = write_cohort(folder, self.profile.patients, self.profile.cohort_seed, progress=sys.stderr.isatty())
        return [manifest, folder / "cohort.json", *(folder / "images").glob("*"), *(folder / "masks").glob("*")]

    def do_with_results(self, name: str, record: Record) -> list[Path]:
        """Make the runs or execute a notebook; to it belong the results it wrote, and those of an earlier attempt that was cut off."""
        before = self.results()
        record.begin(name)
        if name == "runs":
            pages = []
            self.make_runs()
        else:
            parameters = {"profile": self.profile.name, **({"cohort": str(self.own)} if self.own else {})}
            pages = execute(self.notebooks[name], self.root / "notebooks", parameters)
        owned = record.owned()
        return pages + [path for path, state in self.results().items()
                        if before.get(path) != state or os.path.relpath(path, self.root) not in owned]

    def make_runs(self) -> None:
        """Train what is not trained yet, `at_once` runs of the profile at a time: small networks leave much of a GPU, or of two cores, idle."""
        from .study.cluster import cluster, make_runs, visible_gpus
        from .study.grid import finished, plan
        from .study.training import Study

        study, jobs = Study(self.profile, self.own or ""), plan(self.profile)
        if finished(study, jobs):
            return
        gpus, at_once = visible_gpus(), self.profile.at_once
        share = {"runs_per_gpu": at_once} if gpus else {"workers": min(at_once, len(os.sched_getaffinity(0)))}
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
        """Do what is missing or stale, one line a step. Raises Stopped between steps once `deadline` (seconds since 1970) has passed."""
        with only_one(self.root):
            for left_over in (self.root / "notebooks").glob(".part.*"):
                left_over.unlink()
            record = Record(self.root)
            for name in self.choose(only):
                if time.time() >= deadline:
                    raise Stopped
                inputs = self.inputs(name, record)
                reason = record.why(name, inputs) or ("forced" if force and not (only and name == "cohort") else "")
                print(f"  {name.replace('_', ' '):<22}", end="", flush=True)
                if not reason:
                    record.save()
                    print(f"unchanged ({spoken(record.steps[name]['elapsed_s'])} on {record.steps[name]['finished'][:10]})")
                    continue
                print(f"{reason} ... ", end="", flush=True)
                start = time.monotonic()
                try:
                    files = self.do(name, record)
                except BaseException as error:
                    record.pause(name, time.monotonic() - start)
                    print("failed" if isinstance(error, SOSError) else "stopped")  # ends the step's line; the caller tells why
                    raise
                record.finish(name, inputs, files, time.monotonic() - start)
                print(spoken(time.monotonic() - start))
            if not self.own and not only and set(record.steps) >= set(self.steps):
                show_in_readme(f"times:{self.profile.name}", self.times(record))

    def times(self, record: Record) -> str:
        """How long each step took when it was last carried out, attempts that were stopped included, as Markdown."""
        took = {name.replace("_", " "): record.steps[name]["elapsed_s"] for name in self.steps}
        rows = [f"| {name} | {spoken(seconds)} |" for name, seconds in {**took, "all": sum(took.values())}.items()]
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
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="end cleanly after this time; the same command goes on")
    parser.add_argument("--notebooks", metavar="DIR", help="default: those of the checkout")
    args = parser.parse_args(argv)
    start = time.time()
    os.environ.setdefault("SOS_HOME", str(config.home().resolve()))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    deadline = float("inf")
    if args.stop_after is not None:
        deadline = round(start + 60 * args.stop_after)  # whole seconds, the same for the road and for the trainings in its notebooks
        os.environ["SOS_DEADLINE"] = str(deadline)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("papermill", "asyncio"):  # what ends a notebook is told below, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        road = Road(args.profile or default_profile(), args.cohort, args.notebooks)
        print(f"profile {road.profile.name}, results in {short(road.root)}")
        road.walk(args.only, args.force, deadline)
    except Stopped:
        print(f"stopped after {spoken(time.time() - start)}; the same command goes on from here")
        return 0
    except SOSError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 1 if isinstance(error, StepFailed) else 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"done in {spoken(time.time() - start)}\n{road.where()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
