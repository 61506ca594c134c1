"""The road: what is skipped, what is run again and why; failing notebooks, the clock, `kill -9` and a second run beside the first."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from sos import config, notebook, steps
from sos.errors import ConfigError
from sos.record import Record
from sos.study import tables

REPOSITORY = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile = "smoke"\ncohort = ""'
SAY = 'import os, pathlib\nhome = pathlib.Path(os.environ["SOS_HOME"])\nwith open(home / "calls", "a") as f: f.write("{name}\\n")'
TRAIN = """
run = home / "runs" / profile / "models" / "{run}"
run.mkdir(parents=True, exist_ok=True)
for name in ("metrics.json", "predictions.csv", "config.json"): (run / name).write_text("{content}")"""


def write_notebook(folder: Path, name: str, code: str = "", parameters: str = PARAMETERS) -> Path:
    """A notebook that notes in `calls` that it was executed, then runs `code`."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), tagged, nbformat.v4.new_code_cell(SAY.format(name=name[:2]))]
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(code or "1 + 1")])
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


class House:
    """A home with its own notebooks and a profile of one patient."""

    def __init__(self, home: Path):
        self.home, self.notebooks, self.root = home, home / "notebooks", home / "runs" / "tiny"
        self.notebooks.mkdir()

    def notebook(self, name, code="", **kw):
        return write_notebook(self.notebooks, name, code, **kw)

    def train(self, name, run, content="1"):
        return self.notebook(name, TRAIN.format(run=run, content=content).strip())

    def walk(self, *options) -> int:
        """`python -m sos.steps` in this process; returns the exit status."""
        return steps.main(["--profile", "tiny", "--notebooks", str(self.notebooks), *options])

    def calls(self) -> str:
        """Numbers of the notebooks executed since the last time this was asked."""
        path = self.home / "calls"
        lines = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return " ".join(lines)


@pytest.fixture
def house(tmp_path, monkeypatch):
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    monkeypatch.setitem(config.PROFILES, "tiny", replace(config.PROFILES["smoke"], name="tiny", patients=1, at_once=0))
    monkeypatch.setattr(config, "source_digest", lambda *paths: "as it is")  # who edits the package meanwhile disturbs no test
    yield House(tmp_path)
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


def test_second_run_does_nothing_and_at_once(house, capsys):
    house.train("01_look", "teacher-1")
    house.notebook("02_learn")
    assert house.walk() == 0
    assert house.calls() == "01 02"
    assert "runs/tiny" in capsys.readouterr().out
    files = [path for path in house.root.rglob("*.*") if path.is_file() and path.name not in ("steps.json", ".lock")]
    before = {path: path.stat().st_mtime_ns for path in files}
    start = time.monotonic()
    assert house.walk() == 0
    assert time.monotonic() - start < 2
    assert house.calls() == ""
    assert capsys.readouterr().out.count("unchanged") == 3
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_makes_whole_notebooks_without_paths_of_this_machine(house):
    house.notebook("01_look", "print(profile)")
    assert house.walk() == 0
    names = {path.name for path in (house.root / "notebooks").iterdir()}
    assert names == {"01_look.ipynb", "01_look.html"}
    text = (house.root / "notebooks" / "01_look.ipynb").read_text()
    outputs = [out for cell in json.loads(text)["cells"] for out in cell.get("outputs", [])]
    assert outputs[0]["text"] == ["tiny\n"]
    assert str(house.home) not in text
    assert "tiny" in (house.root / "notebooks" / "01_look.html").read_text()


def test_a_panel_is_kept_as_its_picture(house):
    code = ("import ipywidgets as w\nfrom IPython.display import display\nslider = w.IntSlider()\n"
            "display({'image/png': 'aaaa', 'text/plain': 'slider', **slider._repr_mimebundle_()}, raw=True)\nslider")
    house.notebook("01_look", code)
    assert house.walk() == 0
    notebook = nbformat.read(house.root / "notebooks" / "01_look.ipynb", 4)
    panel, plain = notebook.cells[-1].outputs
    assert panel["data"] == {"image/png": "aaaa", "text/plain": "a panel to explore with; run the cell to move its controls"}
    assert "widgets" not in notebook.metadata and plain["data"] == {"text/plain": "IntSlider(value=0)"}  # that one has no picture
    assert "data:image/png;base64,aaaa" in (house.root / "notebooks" / "01_look.html").read_text()


def test_only_what_reads_a_change_is_run(house, monkeypatch, capsys):
    path = house.notebook("01_look", "print(5)")
    house.notebook("02_learn")
    house.walk()
    house.calls()

    notebook = nbformat.read(path, 4)  # saved from JupyterLab with its outputs
    notebook.cells[-1].execution_count = 9
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="5\n")]
    nbformat.write(notebook, path)
    house.walk()
    assert house.calls() == ""

    house.notebook("01_look", "print(6)")
    capsys.readouterr()
    house.walk()
    assert house.calls() == "01"
    assert "notebook changed" in capsys.readouterr().out

    monkeypatch.setitem(config.PROFILES, "tiny", replace(config.PROFILES["tiny"], bootstrap=50))
    house.walk()
    assert house.calls() == "01 02"
    assert capsys.readouterr().out.count("profile changed") == 2

    monkeypatch.setattr(config, "source_digest", lambda *paths: "edited" if "losses.py" in {p.name for p in paths} else "as it is")
    house.walk("--only", "01")
    assert house.calls() == "01"
    told = capsys.readouterr().out
    assert "code changed" in told and "phantom changed" not in told


def test_changed_runs_of_an_earlier_step_reach_the_later_ones(house, capsys):
    house.train("01_teach", "teacher-1")
    house.notebook("02_learn")
    house.walk()
    house.train("01_teach", "teacher-1", content="2")
    capsys.readouterr(), house.calls()
    house.walk()
    assert house.calls() == "01 02"
    assert "earlier results changed" in capsys.readouterr().out


def test_harmed_output_is_made_again(house, capsys):
    house.train("01_teach", "teacher-1")
    house.walk()
    house.calls()
    for file, harm, reason in (("notebooks/01_teach.html", Path.unlink, "is missing"),
                               ("notebooks/01_teach.ipynb", lambda path: path.write_text("{}"), "was changed"),
                               ("models/teacher-1/metrics.json", Path.unlink, "is missing")):
        path = house.root / file
        size = path.stat().st_size
        harm(path)
        capsys.readouterr()
        assert house.walk() == 0
        assert house.calls() == "01"
        assert f"{file} {reason}" in capsys.readouterr().out
        assert path.stat().st_size == pytest.approx(size, rel=0.01)
    os.utime(house.root / "models" / "teacher-1" / "metrics.json")  # a new time alone is no harm
    house.walk()
    assert house.calls() == ""


def test_harmed_image_of_the_virtual_cohort_is_drawn_again(house):
    house.notebook("01_look")
    house.walk()
    image = next((house.root / "cohort" / "images").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:1000])
    house.calls()
    assert house.walk() == 0
    assert image.read_bytes() == whole
    assert house.calls() == ""  # same bytes, so nothing downstream is stale


def test_only_and_force(house):
    house.notebook("01_look")
    house.notebook("02_teach")
    assert house.walk("--only", "02") == 0
    assert house.calls() == "02"
    assert house.walk() == 0
    assert house.calls() == "01"
    assert house.walk("--only", "2", "--force") == 0
    assert house.calls() == "02"
    assert house.walk("--force") == 0
    assert house.calls() == "01 02"
    assert house.walk("--only", "07") == 2


def test_failing_notebook_is_told_in_two_lines_and_the_rest_waits(house, capsys):
    house.notebook("01_look")
    house.notebook("02_learn", "x = 3\nraise ValueError('no such stage')")
    house.notebook("03_more")
    assert house.walk() == 1
    assert house.calls() == "01 02"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "sos: 02_learn.ipynb, cell [4]: ValueError: no such stage"
    assert len(told) == 2 and told[1].endswith("02_learn.failed.ipynb")
    kept = nbformat.read(house.root / "notebooks" / "02_learn.failed.ipynb", 4)
    assert any(out.output_type == "error" for cell in kept.cells for out in cell.get("outputs", []))
    house.notebook("02_learn", "x = 3")
    assert house.walk() == 0
    assert house.calls() == "02 03"
    assert not (house.root / "notebooks" / "02_learn.failed.ipynb").exists()


def test_dead_kernel_is_told(house, capsys):
    house.notebook("01_look", "os.kill(os.getpid(), 9)")
    assert house.walk() == 1
    assert "its kernel died" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ['profile = "smoke"', 'cohort = ""\nprofil = "smoke"'])
def test_unknown_parameter_is_an_error_before_execution(house, tmp_path, cell):
    path = house.notebook("01_look", parameters=cell)
    with pytest.raises(ConfigError, match="knows no parameter"):
        notebook.execute(path, tmp_path / "out", {"profile": "tiny", "cohort": "mine.csv"})
    assert house.calls() == ""


def test_notebook_without_parameters_cell_is_refused(house, capsys):
    path = house.notebook("01_look")
    notebook = nbformat.read(path, 4)
    notebook.cells[1].metadata = {}
    nbformat.write(notebook, path)
    assert house.walk() == 2
    assert "0 cells tagged 'parameters'" in capsys.readouterr().err


def test_stops_between_steps_once_the_time_is_used_up(house, capsys):
    house.notebook("01_look", "import time\ntime.sleep(max(0, float(os.environ['SOS_DEADLINE']) + 0.1 - time.time()))")
    house.notebook("02_learn")
    assert house.walk("--stop-after", "0.1") == 0
    assert house.calls() == "01"
    assert "the same command goes on from here" in capsys.readouterr().out
    os.environ.pop("SOS_DEADLINE")
    assert house.walk() == 0
    assert house.calls() == "02"
    assert house.walk("--force", "--stop-after", "-1") == 0  # what is forced begins anew at each call
    assert "the same command without --force goes on" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(house, capsys, text):
    with pytest.raises(SystemExit):
        house.walk("--stop-after", text)
    assert f"invalid minutes value: '{text}'" in capsys.readouterr().err


def test_notebooks_have_the_home_that_was_named_from_another_folder(house, monkeypatch):
    house.notebook("01_look")
    monkeypatch.chdir(house.home.parent)
    monkeypatch.setenv("SOS_HOME", house.home.name)
    assert house.walk() == 0
    assert house.calls() == "01"


def test_a_home_that_is_no_folder_is_one_line(house, capsys, monkeypatch):
    house.notebook("01_look")
    (house.home / "file").write_text("")
    monkeypatch.setenv("SOS_HOME", str(house.home / "file"))
    assert house.walk() == 2
    said = capsys.readouterr().err
    assert said.startswith("sos: ") and "Not a directory" in said and "SOS_HOME" in said and said.count("\n") == 1


def test_notebook_out_of_time_is_no_failure(house, capsys):
    code = "from sos.errors import OutOfTime\nif 'SOS_DEADLINE' in os.environ: raise OutOfTime('two epochs done')"
    house.notebook("01_look", code)
    assert house.walk("--stop-after", "5") == 0
    told = capsys.readouterr()
    assert "stopped after" in told.out and told.err == ""
    assert [path.name for path in (house.root / "notebooks").iterdir()] == []
    os.environ.pop("SOS_DEADLINE")
    assert house.walk() == 0
    assert house.calls() == "01 01"


def start_walk(house) -> subprocess.Popen:
    """The same road in a process of its own."""
    code = ("import signal, sys; from dataclasses import replace; from sos import config, steps\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell takes from what it starts in the background
            "config.PROFILES['tiny'] = replace(config.PROFILES['smoke'], name='tiny', patients=1, at_once=0)\n"
            "config.source_digest = lambda *paths: 'as it is'\n"
            "if __name__ == '__main__': sys.exit(steps.main(sys.argv[1:]))")
    script = house.home / "walk.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, script, "--profile", "tiny", "--notebooks", house.notebooks], env=environment)


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def test_times_stand_in_the_readme_and_count_attempts_that_were_stopped(house):
    readme = house.home / "README.md"
    readme.write_text("before\n<!-- times:tiny -->\nold\n<!-- /times:tiny -->\nafter\n")
    house.notebook("01_look", "import time; time.sleep(1.5); raise ValueError('not today')")
    assert house.walk() == 1 and "old" in readme.read_text()  # not whole yet
    house.notebook("01_look")
    assert house.walk() == 0
    table = readme.read_text()
    assert table.startswith("before\n<!-- times:tiny -->\n| step, profile `tiny` | time |") and table.endswith("<!-- /times:tiny -->\nafter\n")
    steps_s = json.loads((house.root / "steps.json").read_text())["steps"]
    assert f"| 01 look | {steps.spoken(steps_s['01_look']['elapsed_s'])} |" in table
    assert steps_s["01_look"]["elapsed_s"] > 1.5  # the failed attempt slept that long


def test_second_process_waits_its_turn_and_kill_9_loses_nothing_done(house, capsys):
    house.train("01_teach", "teacher-1")
    house.notebook("02_learn", "(home / 'inside').touch()\nimport time\nwhile not (home / 'go').exists(): time.sleep(0.05)")
    running = start_walk(house)
    wait_for(house.home / "inside")
    assert house.walk() == 2
    assert f"process {running.pid} is at work here" in capsys.readouterr().err
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert house.calls() == "01 02"
    assert list((house.root / "notebooks").glob(".part.*"))
    (house.home / "go").touch()
    assert house.walk() == 0
    assert house.calls() == "02"
    assert not list((house.root / "notebooks").glob(".part.*"))
    assert "did not finish" in capsys.readouterr().out


@pytest.fixture
def abreast(house, monkeypatch):
    """The house with a profile whose notebooks go two at a time, after runs that are there already."""
    monkeypatch.setitem(config.PROFILES, "tiny", replace(config.PROFILES["tiny"], at_once=2))
    monkeypatch.setattr(steps.Road, "make_runs", lambda self: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return house


MEET = """(home / "{own}").touch()
import time
for _ in range(600):
    if (home / "{other}").exists(): break
    time.sleep(0.1)
else: raise TimeoutError("alone")"""
FIGURE = """
from sos.files import note_result
path = home / "runs" / profile / "figures" / "{name}.png"
path.parent.mkdir(exist_ok=True)
note_result(path)
path.write_text("{name}")"""


def test_notebooks_go_side_by_side_and_each_owns_what_it_wrote(abreast, capsys):
    """Each waits for the other, so one after the other neither would end; and the first ends when the second has written its figure."""
    abreast.notebook("01_look", MEET.format(own="first", other="second") + FIGURE.format(name="fig1"))
    abreast.notebook("02_learn", FIGURE.format(name="fig2") + "\n" + MEET.format(own="second", other="first") + "\ntime.sleep(1)")
    abreast.notebook("03_more", FIGURE.format(name="fig3"))
    assert abreast.walk() == 0
    assert sorted(abreast.calls().split()) == ["01", "02", "03"]
    known = json.loads((abreast.root / "steps.json").read_text())["steps"]
    figures = {name: [Path(file).stem for file in step["outputs"] if file.startswith("figures/")] for name, step in known.items()}
    assert figures == {"cohort": [], "runs": [], "01_look": ["fig1"], "02_learn": ["fig2"], "03_more": ["fig3"]}
    capsys.readouterr()
    (abreast.root / "figures" / "fig2.png").unlink()
    assert abreast.walk() == 0
    assert abreast.calls() == "02" and capsys.readouterr().out.count("unchanged") == 4


def test_a_notebook_beside_one_that_fails_comes_to_its_end(abreast, capsys):
    abreast.notebook("01_look", MEET.format(own="first", other="second") + "\nraise ValueError('no such stage')")
    abreast.notebook("02_learn", MEET.format(own="second", other="runs/tiny/notebooks/01_look.failed.ipynb") + "\ntime.sleep(3)")
    abreast.notebook("03_more")
    assert abreast.walk() == 1
    told = capsys.readouterr()
    assert "01_look.ipynb, cell [4]: ValueError: no such stage" in told.err and (abreast.root / "notebooks" / "02_learn.ipynb").is_file()
    assert told.out.index("failed") < told.out.index("02 learn") and "03 more" not in told.out
    abreast.calls()
    abreast.notebook("01_look")
    assert abreast.walk() == 0
    assert sorted(abreast.calls().split()) == ["01", "03"]


def test_the_audit_and_notebooks_with_the_most_cells_begin_first_where_two_go_side_by_side(abreast):
    for name, more in (("01_look", 0), ("02_learn", 1), ("03_figures", 2)):
        path = abreast.notebook(name, "import time; time.sleep(2)")
        notebook = nbformat.read(path, 4)
        notebook.cells += [nbformat.v4.new_code_cell("1")] * more
        nbformat.write(notebook, path)
    assert abreast.walk() == 0
    assert abreast.calls().split()[2] == "02"


def test_results_are_published_when_all_notebooks_have_ended(abreast, monkeypatch, capsys):
    """The last notebook ends long before the first, whose figure is published all the same; a second time nothing is copied."""
    monkeypatch.setattr(config, "PUBLISHED", ("tiny",))
    monkeypatch.setattr(tables, "PUBLISHED", ("tiny",))
    abreast.notebook("01_look", "import time; time.sleep(3)" + FIGURE.format(name="fig1"))
    abreast.notebook("02_figures", FIGURE.format(name="fig2"))
    assert abreast.walk("--only", "02") == 0 and not (abreast.home / "figures").exists()
    assert abreast.walk("--only", "publish") == 2 and "before all notebooks have ended" in capsys.readouterr().err
    assert abreast.walk() == 0
    published = abreast.home / "figures" / "tiny"
    assert sorted(path.name for path in published.glob("*.png")) == ["fig1.png", "fig2.png"]
    capsys.readouterr()
    assert abreast.walk() == 0 and capsys.readouterr().out.count("unchanged") == 5
    (published / "fig1.png").unlink()
    assert abreast.walk() == 0 and (published / "fig1.png").is_file()
    assert "figures/tiny/fig1.png is missing" in capsys.readouterr().out


def test_side_by_side_counts_once_in_the_time_of_all(tmp_path):
    record = Record(tmp_path)
    for name, span, spent_s in (("runs", [0, 100], 0), ("01", [100, 160], 5), ("02", [100, 130], 0), ("03", [130, 170], 0), ("cohort", None, 12)):
        record.steps[name] = {"elapsed_s": spent_s + (span[1] - span[0] if span else 0)} | ({"span": span} if span else {})
    assert record.elapsed_s(list(record.steps)) == 12 + 100 + 5 + 70


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_kernel_outlives_the_road(house, end):
    house.notebook("01_look", "(home / 'pid').write_text(str(os.getpid()))\nimport time\ntime.sleep(600)")
    running = start_walk(house)
    wait_for(house.home / "pid")
    time.sleep(0.5)  # the number is written
    running.send_signal(end)
    assert running.wait(60) == (-9 if end == signal.SIGKILL else 130)
    kernel = int((house.home / "pid").read_text())
    for _ in range(300):
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel lives on")


def test_broken_record_is_told(house, capsys):
    house.notebook("01_look")
    house.root.mkdir(parents=True)
    (house.root / "steps.json").write_text("{")
    assert house.walk() == 2
    assert "delete it" in capsys.readouterr().err


def test_own_cohort_goes_to_its_own_folder(house, tiny_cohort):
    house.notebook("01_look", "print(cohort)")
    manifest = tiny_cohort
    assert house.walk("--cohort", str(manifest)) == 0
    root = config.runs_dir("tiny", manifest)
    assert root.name.startswith("tiny-") and (root / "notebooks" / "01_look.html").is_file()
    assert not house.root.exists()
    house.calls()
    house.walk("--cohort", str(manifest))
    assert house.calls() == ""


def test_unusable_cohort_stops_the_road(house, capsys):
    house.notebook("01_look")
    manifest = house.home / "mine.csv"
    manifest.write_text("patient,file\n1,a.dcm\n")
    assert house.walk("--cohort", str(manifest)) == 2
    assert house.calls() == ""
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_heavy_is_imported():
    code = "import sys, sos.steps; print([m for m in ('torch', 'numpy', 'pandas', 'papermill', 'nbconvert') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("seconds", "words"), [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s")])
def test_spoken_times(seconds, words):
    assert steps.spoken(seconds) == words
