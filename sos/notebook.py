"""One notebook, executed by papermill in a process of its own (`python -m sos.notebook`), so that several can go side by side."""

import ast
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from . import config
from .cores import LARGE_PAGES
from .errors import ConfigError, RunError, SOSError
from .files import WRITTEN, end_with_parent, write_whole

KERNEL = ["--IPKernelApp.log_level=50",  # no "Kernel is running over TCP" on stderr
          "--InlineBackend.print_figure_kwargs={'bbox_inches': None}"]  # figures as they are: to find tighter edges each is drawn once more


class StepFailed(SOSError):
    """A notebook or a training ended with an error; the message names it and the error."""


class Stopped(Exception):
    """The deadline has passed; everything done is saved."""


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


def code_cells(path: Path) -> int:
    """How many cells of code a notebook has."""
    return sum(cell["cell_type"] == "code" for cell in read_notebook(path)["cells"])


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
    sys.modules.setdefault("rfc3987_syntax", None)  # a grammar that jsonschema would take 3 s to compile, for addresses that no notebook has
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_parameters(path, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    part, done, failed = folder / f".part.{path.name}", folder / path.name, folder / f"{path.stem}.failed.ipynb"
    try:
        notebook = papermill.execute_notebook(path, part, parameters, kernel_name="python3", language="python", cwd=path.parent,
                                              progress_bar=False, log_output=False, extra_arguments=KERNEL)
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


class Apart:
    """A notebook that is executed in a process of its own, begun when this is made and ended with this process, however that ends."""

    def __init__(self, path: Path, folder: Path, parameters: dict, threads: int = 0, log: Path | None = None):
        """threads: of the numerical libraries in its kernel; 0: as they choose. log: where it notes the results that it writes, see `files`."""
        environment = {**LARGE_PAGES, **os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {}), **({WRITTEN: str(log)} if log else {})}
        command = [sys.executable, "-m", __name__, str(path), str(folder), json.dumps(parameters)]
        self.path, self.child = path, subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def made(self) -> list[Path]:
        """Wait for the end; the files that `execute` made. Raises what it raised."""
        answer = self.child.stdout.read()
        if self.child.wait() or not answer:
            raise StepFailed(f"{self.path.name}: the process that executed it ended with status {self.child.returncode}; the same command goes on")
        known = json.loads(answer.splitlines()[-1])
        if known["stopped"]:
            raise Stopped
        if known["error"]:
            raise (StepFailed if known["failed"] else ConfigError)(known["error"])
        return list(map(Path, known["made"]))

    def end(self) -> None:
        """End it now, and its kernel."""
        if self.child.poll() is None:
            self.child.terminate()
            self.child.wait()


def main(argv: list[str]) -> None:
    """Execute the notebook argv[0] into the folder argv[1] with the parameters argv[2]; the last line of the output says how it ended, as JSON."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("papermill", "asyncio"):  # what ends a notebook is told in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    end = {"made": [], "stopped": False, "failed": False, "error": ""}
    try:
        end["made"] = list(map(str, execute(Path(argv[0]), Path(argv[1]), json.loads(argv[2]))))
    except Stopped:
        end["stopped"] = True
    except SOSError as error:
        end |= {"failed": isinstance(error, StepFailed), "error": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(end), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
