"""Exercises of the notebooks: one source each, from which the students' copies and the solutions are made.

`notebooks/exercises/NN_*.py` holds the exercises of `notebooks/NN_*.ipynb` in the percent format of jupytext. An exercise begins with a Markdown cell
`### Exercise …`; its cells tagged `stub` are the student's, those tagged `solution` the teacher's, all others (such as the `check`) everybody's.
`python -m sos.lessons` puts the students' cells into the notebooks, before their last cell; `--solutions DIR` writes copies with the solutions.
`--times PROFILE` writes into the instructor's guide how long the cells of that profile's executed notebooks took.
"""

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbformat.notebooknode import NotebookNode

from . import config
from .errors import LessonError
from .files import write_whole

EXERCISE = "exercise"  # tag of every cell of a notebook that comes from the source
STUB, SOLUTION = "stub", "solution"
FEWEST, MOST = 3, 5  # exercises of a notebook


@dataclass(frozen=True)
class Exercise:
    """The cells of one exercise in their order, those of students and those of teachers among them."""

    title: str
    cells: tuple[NotebookNode, ...]

    def copy(self, solved: bool) -> list[NotebookNode]:
        """New cells without outputs: with the solution in place of the stub, or the other way round."""
        other = STUB if solved else SOLUTION
        return [_cell(cell, self.title) for cell in self.cells if other not in _tags(cell)]


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _cell(cell: NotebookNode, title: str = "") -> NotebookNode:
    new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    made = new(cell.source, metadata={"tags": [EXERCISE, *_tags(cell)]})
    made.id = hashlib.sha256(f"{title} {cell.source}".encode()).hexdigest()[:8]  # the same cell, the same id
    return made


def read_exercises(source: Path) -> tuple[list[NotebookNode], list[Exercise]]:
    """The introduction and the exercises in a source. Raises LessonError where one lacks its stub, its solution or its check."""
    intro, groups = [], []
    for cell in jupytext.read(source, fmt="py:percent").cells:
        if cell.cell_type == "markdown" and cell.source.startswith("### Exercise"):
            groups.append([])
        (groups[-1] if groups else intro).append(cell)
    exercises = [Exercise(cells[0].source.splitlines()[0].removeprefix("### "), tuple(cells)) for cells in groups]
    for exercise in exercises:
        tags = {tag for cell in exercise.cells for tag in _tags(cell)}
        if missing := {STUB, SOLUTION, "check"} - tags:
            raise LessonError(f"{source.name}: {exercise.title} has no cell tagged {', '.join(sorted(missing))}")
    if not FEWEST <= len(exercises) <= MOST:
        raise LessonError(f"{source.name}: {len(exercises)} exercises; a notebook has {FEWEST} to {MOST}")
    return [_cell(cell) for cell in intro], exercises


def with_exercises(notebook: NotebookNode, source: Path, solved: bool = False) -> NotebookNode:
    """A copy of `notebook` with the exercises of `source` before its last cell, in place of those that it had.

    Students' cells that are as they were keep their outputs.
    """
    intro, exercises = read_exercises(source)
    cells = [cell for cell in notebook.cells if EXERCISE not in _tags(cell)]
    had = {cell.id: cell for cell in notebook.cells if EXERCISE in _tags(cell)}
    new = intro + [cell for exercise in exercises for cell in exercise.copy(solved)]
    if not solved:
        new = [had.get(cell.id, cell) for cell in new]
    return nbformat.from_dict({**notebook, "cells": cells[:-1] + new + cells[-1:]})


def pairs(notebooks: Path) -> list[tuple[Path, Path]]:
    """(notebook, source of its exercises) for all notebooks that have some."""
    sources = {source.stem: source for source in (notebooks / "exercises").glob("*.py")}
    return [(path, sources[path.stem]) for path in sorted(notebooks.glob("*.ipynb")) if path.stem in sources]


TIMES = re.compile(r"(?<=<!-- times -->\n).*?(?=<!-- end of times -->)", re.DOTALL)  # their place in the guide
WORTH_TELLING_S = 1.0


def times(executed: list[Path]) -> str:
    """Where and how long executed notebooks ran, in Markdown: a row for each notebook and for each of its sections that took a second or more.

    Seconds are papermill's. Raises LessonError where a notebook holds none, or does not say its machine.
    """
    rows, machines = ["| notebook, section | seconds | slowest cell, seconds |", "|---|---|---|"], set()
    for path in executed:
        notebook = nbformat.read(path, 4)
        whole = notebook.metadata.get("papermill", {}).get("duration")
        text = "\n".join(out.get("data", {}).get("text/plain", "") for cell in notebook.cells[:8] for out in cell.get("outputs", []))
        machine = {name: value.strip() for name, value in re.findall(r"^(processor|cores|device|profile) +(.+)$", text, re.MULTILINE)}
        if whole is None or len(machine) < 4:
            raise LessonError(f"{path}: not executed by run_all.sh; run it first")
        machines.add("{processor}, {cores} cores, device {device}, profile {profile}".format(**machine))
        title, took = "opening", {}
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                title = ([title] + re.findall(r"^## (.+)$", cell.source, re.MULTILINE))[-1]
            else:
                took.setdefault(title, []).append(cell.metadata.get("papermill", {}).get("duration") or 0.0)
        rows.append(f"| **{path.stem}**, with the start of its kernel | **{whole:.0f}** | |")
        rows += [f"| {name} | {sum(took[name]):.1f} | {max(took[name]):.1f} |" for name in took if sum(took[name]) >= WORTH_TELLING_S]
    return "\n".join([f"Measured on {'; '.join(sorted(machines))}.", "", *rows]) + "\n"


def text_of(notebook: NotebookNode) -> str:
    """A notebook as it is committed."""
    return re.sub(r"\s*$", "\n", nbformat.writes(notebook, indent=1, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    """Bring the notebooks' exercises up to date, or write copies with the solutions, or the times of executed notebooks into the guide."""
    parser = argparse.ArgumentParser(prog="python -m sos.lessons", description=main.__doc__)
    parser.add_argument("--notebooks", type=Path, default=Path(__file__).resolve().parents[1] / "notebooks", metavar="DIR")
    parser.add_argument("--solutions", type=Path, metavar="DIR", help="write copies with the solutions there, and change no notebook")
    parser.add_argument("--times", metavar="PROFILE", help="write the times of this profile's executed notebooks into the instructor's guide instead")
    args = parser.parse_args(argv)
    try:
        if args.times:
            executed = [config.runs_dir(args.times) / "notebooks" / path.name for path, _ in pairs(args.notebooks)]
            if missing := [path for path in executed if not path.is_file()]:
                raise LessonError(f"{missing[0]}: not there; ./run_all.sh --profile {args.times} makes it")
            guide = args.notebooks / "course" / "instructors_guide.md"
            made = times(executed)
            write_whole(guide, TIMES.sub(lambda _: made, guide.read_text(encoding="utf-8")))
            print(guide)
            return 0
        found = pairs(args.notebooks)
        if not found:
            raise LessonError(f"{args.notebooks}: no notebook with exercises there; name the folder with --notebooks")
        for path, source in found:
            notebook = with_exercises(nbformat.read(path, 4), source, solved=args.solutions is not None)
            target = (args.solutions or args.notebooks) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, text_of(notebook))
            print(target)
    except LessonError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
