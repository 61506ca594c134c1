"""Exercises of the notebooks: sources are whole, students' copies are theirs and leak nothing, stubs run and solutions are right."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from sos import lessons
from sos.check import check
from sos.errors import LessonError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PAIRS = lessons.pairs(NOTEBOOKS)
SETUP = 2  # code cells at a notebook's beginning: parameters, imports and the study

SOURCE = """# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · One
#
# Add.

# %% tags=["stub"]
total = float("nan")  # your answer

# %% tags=["solution"]
total = 40 + 2

# %% [markdown] tags=["solution"]
# Because.

# %% tags=["check"]
check("1", total, 42)
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.py"
    path.write_text(SOURCE + "".join(SOURCE.partition("\n\n")[2].replace("Exercise 1", f"Exercise {n}") for n in (2, 3)))
    return path


def lesson(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in sources])


def test_every_notebook_has_exercises():
    assert len(PAIRS) == len(list(NOTEBOOKS.glob("*.ipynb"))) == 6


def test_copies_hold_the_stub_or_the_solution(source):
    student, solved = (lessons.with_exercises(lesson("# Title", "## Close"), source, solved) for solved in (False, True))
    for copy, has, lacks in ((student, "float(\"nan\")", "40 + 2"), (solved, "40 + 2", "float(\"nan\")")):
        text = "\n".join(cell.source for cell in copy.cells)
        assert has in text and lacks not in text and text.count('check("1"') == 3
        assert copy.cells[0].source == "# Title" and copy.cells[-1].source == "## Close"
        nbformat.validate(copy)
    assert "Because." in solved.cells[4].source and not [cell for cell in student.cells if "Because." in cell.source]


def test_putting_exercises_in_again_changes_nothing_and_keeps_outputs(source):
    once = lessons.with_exercises(lesson("# Title", "## Close"), source)
    once.cells[3].outputs = [nbformat.v4.new_output("stream", text="not yet")]
    again = lessons.with_exercises(once, source)
    assert again == once and again.cells[3].outputs


@pytest.mark.parametrize("tag", ["stub", "solution", "check"])
def test_an_exercise_that_lacks_a_part_is_named(source, tag):
    source.write_text(source.read_text().replace(f'tags=["{tag}"]', ""))
    with pytest.raises(LessonError, match=f"source.py: Exercise 1 · One has no cell tagged {tag}"):
        lessons.read_exercises(source)


def test_too_few_exercises_are_told(source):
    source.write_text(SOURCE)
    with pytest.raises(LessonError, match="1 exercises; a notebook has 3 to 5"):
        lessons.read_exercises(source)


@pytest.mark.parametrize("answer, expected, said", [
    (42, 42, "right"), (42.5, 42, "not yet; off by up to 0.5, at most 1e-06 is asked for"), (float("nan"), 42, "not yet; write your answer"),
    (None, 42, "not yet; write"), ("no number", 42, "not yet; write"), ([1, 2], [1, 2, 3], r"not yet; the shape is \(2,\), not \(3,\)"),
    (np.array([1.0, 2.0]), [1, 2], "right"), (float("nan"), [1, 2], "not yet; write"), (..., 1, "not yet; write"), (1, [1, 1], "not yet; the shape")])
def test_a_check_says_whether_an_answer_is_right(capsys, answer, expected, said):
    check("1", answer, expected)
    assert re.match(f"Exercise 1: {said}", capsys.readouterr().out)


def test_command_line_writes_both_copies(source, tmp_path, capsys):
    folder = tmp_path / "notebooks"
    (folder / "exercises").mkdir(parents=True)
    nbformat.write(lesson("# Title", "## Close"), folder / "01_one.ipynb")
    source.rename(folder / "exercises" / "01_one.py")
    assert lessons.main(["--notebooks", str(folder), "--solutions", str(tmp_path / "solved")]) == 0
    assert "40 + 2" in (tmp_path / "solved" / "01_one.ipynb").read_text() and "40 + 2" not in (folder / "01_one.ipynb").read_text()
    assert lessons.main(["--notebooks", str(folder)]) == 0
    assert "Add." in (folder / "01_one.ipynb").read_text()
    assert lessons.main(["--notebooks", str(tmp_path)]) == 2 and "name the folder" in capsys.readouterr().err
    (folder / "exercises" / "01_one.py").write_text(SOURCE)
    assert lessons.main(["--notebooks", str(folder)]) == 2 and "1 exercises" in capsys.readouterr().err


@pytest.mark.parametrize("notebook, source", PAIRS, ids=[path.stem for path, _ in PAIRS])
class TestExercises:
    def test_the_committed_notebook_is_up_to_date(self, notebook, source):
        committed = nbformat.read(notebook, 4)
        made = lessons.with_exercises(committed, source)
        assert [cell.source for cell in committed.cells] == [cell.source for cell in made.cells], "run python -m sos.lessons"

    def test_no_line_of_a_solution_is_in_the_students_copy(self, notebook, source):
        _, exercises = lessons.read_exercises(source)
        others = "\n".join(cell.source for exercise in exercises for cell in exercise.copy(solved=False))
        text = "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells)
        secret = [line.strip() for exercise in exercises for cell in exercise.cells if "solution" in cell.metadata.get("tags", [])
                  for line in cell.source.splitlines()]
        secret = [line for line in secret if len(line) > 12 and line not in others]
        assert secret and not [line for line in secret if line in text]

    def test_code_cells_are_short(self, notebook, source):
        intro, exercises = lessons.read_exercises(source)
        for cell in intro + [cell for exercise in exercises for cell in exercise.cells]:
            assert cell.cell_type == "markdown" or len(cell.source.splitlines()) <= 15

    @pytest.mark.parametrize("solved, said", [(False, "not yet"), (True, "right")])
    def test_stubs_run_and_solutions_are_right(self, notebook, source, solved, said, capsys):
        intro, exercises = lessons.read_exercises(source)
        setup = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"][:SETUP]
        space = {}
        for cell in setup + intro:
            if cell.cell_type == "code":
                exec(compile(cell.source, notebook.stem, "exec"), space)
        capsys.readouterr()
        for exercise in exercises:
            for cell in exercise.copy(solved):
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{source.stem}, {exercise.title}", "exec"), space)
            told = capsys.readouterr().out.splitlines()
            assert told and all(re.match(f"Exercise [^:]*: {said}", line) for line in told), told


def executed(folder, name, **papermill):
    """A notebook as the road leaves it: an opening of half a second, a section of 2.5 s in two cells, one of 0.2 s."""
    new = nbformat.v4
    machine = new.new_output("execute_result", data={"text/plain": "processor  Quick Brown\ncores  2\ndevice  cpu\nprofile  smoke"})
    cells = [new.new_code_cell("1", outputs=[machine]), new.new_markdown_cell("## 1. Slow\n\ntext"), new.new_code_cell("2"), new.new_code_cell("3"),
             new.new_markdown_cell("## 2. Fast"), new.new_code_cell("4")]
    for cell, seconds in zip([cell for cell in cells if cell.cell_type == "code"], (0.5, 2.0, 0.5, 0.2), strict=True):
        cell.metadata["papermill"] = {"duration": seconds}
    nbformat.write(new.new_notebook(cells=cells, metadata={"papermill": papermill}), folder / name)
    return folder / name


def test_times_of_sections_are_written_into_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    made, notebooks = tmp_path / "runs" / "smoke" / "notebooks", tmp_path / "notebooks"
    (notebooks / "course").mkdir(parents=True)
    made.mkdir(parents=True)
    guide = notebooks / "course" / "instructors_guide.md"
    guide.write_text("before\n<!-- times -->\nold\n<!-- end of times -->\nafter\n")
    monkeypatch.setattr(lessons, "pairs", lambda _: [(notebooks / "01_a.ipynb", None), (notebooks / "02_b.ipynb", None)])
    executed(made, "01_a.ipynb", duration=7.4)
    assert lessons.main(["--notebooks", str(notebooks), "--times", "smoke"]) == 2
    assert "02_b.ipynb: not there" in capsys.readouterr().err and "old" in guide.read_text()
    executed(made, "02_b.ipynb", duration=8.6)
    assert lessons.main(["--notebooks", str(notebooks), "--times", "smoke"]) == 0
    assert guide.read_text() == """before
<!-- times -->
Measured on Quick Brown, 2 cores, device cpu, profile smoke.

| notebook, section | seconds | slowest cell, seconds |
|---|---|---|
| **01_a**, with the start of its kernel | **7** | |
| 1. Slow | 2.5 | 2.0 |
| **02_b**, with the start of its kernel | **9** | |
| 1. Slow | 2.5 | 2.0 |
<!-- end of times -->
after
"""
    executed(made, "02_b.ipynb")
    assert lessons.main(["--notebooks", str(notebooks), "--times", "smoke"]) == 2
