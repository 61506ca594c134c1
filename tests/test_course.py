"""The course: terms are explained where they first come up, backgrounds are short, a notebook takes a lesson, and links lead somewhere."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COURSE = NOTEBOOKS[0].parent / "course"
GLOSSARY = (COURSE / "glossary.md").read_text(encoding="utf-8")
#: Words of the glossary that everyday language uses too: no first use of them can be told from its text.
EVERYDAY = {"head", "step", "box", "weights", "loss", "stage", "risk", "training", "validation", "test split", "window"}
OTHER_NAMES = {"SOS": "SOS|spheno-occipital synchondrosis", "CBCT": "CBCT|cone-beam", "KL divergence": "KL", "Endocranial": "endocranial(?: border)?"}
#: Assumptions of the stopwatch, minutes: the instructor's guide states them.
WORDS_A_MINUTE, FIGURE, CODE, EXERCISE, LESSON = 200, 0.5, 1 / 3, 4, 45


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def terms() -> dict[str, tuple[re.Pattern, str]]:
    """Term → its pattern and its anchor, for all terms of the glossary that are no everyday words."""
    found = {}
    for heading in re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE):
        for term in heading.split(", "):
            if term not in EVERYDAY and term.lower() not in EVERYDAY:
                name = OTHER_NAMES.get(term, re.escape(term))
                found[term] = re.compile(rf"(?<![\w-])(?:{name})(?:e?s)?(?![\w-])", re.IGNORECASE), slug(heading)
    return found


def prose(source: str) -> str:
    """A Markdown source with headings, code, formulas and addresses blanked out, every other character at its place."""
    def blank(match):
        return " " * len(match[0])

    for pattern in (r"^#.*$", r"`[^`]*`", r"\$\$.*?\$\$", r"\$[^$\n]+\$"):
        source = re.sub(pattern, blank, source, flags=re.MULTILINE | re.DOTALL if "$$" in pattern.replace("\\", "") else re.MULTILINE)
    return re.sub(r"(?<=\])\([^)]*\)", blank, source)


def explained(source: str, at: int) -> bool:
    """Whether the character `at` of a Markdown source lies in bold type, as a term that is explained there, or in a link to the glossary."""
    marks = (r"\*\*[^*]+\*\*", r"\[[^\]]+\]\((?:course/)?glossary\.md#[^)]+\)")
    return any(match.start() <= at < match.end() for mark in marks for match in re.finditer(mark, source))


def first_use(notebook, pattern: re.Pattern):
    """Cell and place of the first use of a term in the prose of a notebook, or None."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (match := pattern.search(prose(cell.source))):
            return cell, match.start(), match.end()
    return None


def sections(notebook):
    """(cell, whether it is in a section that its heading calls optional) for each cell."""
    optional = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for marks, title in re.findall(r"^(#+) (.+)$", cell.source, re.MULTILINE):
                if optional and len(marks) <= optional:
                    optional = 0
                if not optional and title.endswith("(optional)"):
                    optional = len(marks)
        yield cell, bool(optional)


def minutes(notebook) -> float:
    """Minutes of work: prose read, code and figures looked at, exercises solved; optional sections left out."""
    took = 0.0
    for cell, optional in sections(notebook):
        tags = cell.metadata.get("tags", [])
        if optional or ("exercise" in tags and "stub" not in tags):
            continue
        if "stub" in tags:
            took += EXERCISE
        elif cell.cell_type == "markdown":
            took += len(re.findall(r"\w+", prose(cell.source))) / WORDS_A_MINUTE
        else:
            took += CODE + FIGURE * sum(out.get("data", {}).get("text/plain", "").startswith("<Figure") for out in cell.outputs)
    return took


# ---- terms ---------------------------------------------------------------------------------------------------------


def test_the_glossary_holds_each_term_once_and_explains_it():
    headings = re.findall(r"^### (.+)\n(.+)$", GLOSSARY, re.MULTILINE)
    names = [name.lower() for heading, _ in headings for name in heading.split(", ")]
    assert len(names) == len(set(names)) > 80
    assert not [heading for heading, text in headings if len(text.split()) < 6]
    for part in re.split(r"^## .+$", GLOSSARY, flags=re.MULTILINE)[1:]:
        order = [heading.lower().replace("-", " ") for heading in re.findall(r"^### (.+)$", part, re.MULTILINE)]
        assert order == sorted(order), "not in alphabetical order"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_each_term_is_explained_where_it_first_comes_up(self, path):
        notebook, bare = nbformat.read(path, 4), []
        for term, (pattern, _) in terms().items():
            if use := first_use(notebook, pattern):
                cell, start, end = use
                if not explained(cell.source, start):
                    bare.append(f"{term}: {cell.id}: …{cell.source[max(0, start - 40):end + 20]}…")
        assert not bare, "\n".join(bare)

    def test_background_has_two_short_halves(self, path):
        cells = [cell.source for cell in nbformat.read(path, 4).cells[:8]]
        (background,) = [source for source in cells if source.startswith("## Background")]
        halves = background.split("**If you know no ")[1:]
        assert [half.partition(".")[0] for half in halves] == ["anatomy", "machine learning"]
        assert all(60 <= len(half.split()) <= 155 for half in halves)

    def test_work_fits_a_lesson(self, path):
        assert minutes(nbformat.read(path, 4)) <= LESSON

    def test_optional_sections_hold_no_exercise(self, path):
        assert not [cell.id for cell, optional in sections(nbformat.read(path, 4)) if optional and "exercise" in cell.metadata.get("tags", [])]


def test_backgrounds_do_not_repeat_each_other():
    told = {}
    for path in NOTEBOOKS:
        (text,) = [cell.source for cell in nbformat.read(path, 4).cells if cell.source.startswith("## Background")]
        words = re.findall(r"\w+", re.sub(r"\*\*If you .*?\*\*|^## .*$|\([^)]*\)", "", text, flags=re.MULTILINE).lower())
        told[path.stem] = {tuple(words[i:i + 6]) for i in range(len(words) - 5)}
    names = list(told)
    assert not [(a, b, same) for i, a in enumerate(names) for b in names[i + 1:] if (same := told[a] & told[b])]


@pytest.mark.parametrize("source, term, well", [
    ("The **logit** is a score.", "Logit", True), ("A [logit](course/glossary.md#logit) is a score.", "Logit", True),
    ("A logit, then **logit**.", "Logit", False), ("# Logit\n\nno more", "Logit", None), ("`logit` and $logit$", "Logit", None),
    ("[logit](other.md#logit)", "Logit", False), ("many logits", "Logit", False)])
def test_the_rule_for_terms_sees_what_it_should(source, term, well):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
    use = first_use(notebook, terms()[term][0])
    assert (None if use is None else explained(use[0].source, use[1])) is well


def test_the_stopwatch_counts_what_it_should():
    figure = nbformat.v4.new_output("display_data", {"text/plain": "<Figure size 1x1>"})
    cells = [nbformat.v4.new_markdown_cell("# Title\n" + "word " * 200), nbformat.v4.new_code_cell("1", outputs=[figure]),
             nbformat.v4.new_markdown_cell("## More (optional)\n" + "word " * 400), nbformat.v4.new_code_cell("2"),
             nbformat.v4.new_markdown_cell("## On"), nbformat.v4.new_code_cell("x", metadata={"tags": ["exercise", "stub"]}),
             nbformat.v4.new_code_cell("y", metadata={"tags": ["exercise", "check"]})]
    assert minutes(nbformat.v4.new_notebook(cells=cells)) == pytest.approx(1 + 0.5 + 1 / 3 + 4)


# ---- links ---------------------------------------------------------------------------------------------------------


def pages():
    for path in NOTEBOOKS:
        yield path, "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    for path in sorted(COURSE.glob("*.md")):
        yield path, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path, text", list(pages()), ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_every_link_leads_somewhere(path, text):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", target):
            name, _, anchor = target.partition("#")
            page = (path.parent / name).resolve() if name else path
            if not page.exists() or (anchor and anchor not in anchors(page.read_text(encoding="utf-8"))):
                broken.append(target)
    assert not broken


def test_the_guide_states_the_stopwatch():
    guide = (COURSE / "instructors_guide.md").read_text(encoding="utf-8")
    for said in (f"{WORDS_A_MINUTE} words a minute", f"{60 * FIGURE:.0f} s a figure", f"{60 * CODE:.0f} s a code cell",
                 f"{EXERCISE} minutes an exercise", f"{LESSON} minutes"):
        assert said in guide, said


# ---- times ---------------------------------------------------------------------------------------------------------


def test_each_notebook_of_the_guide_computes_within_five_minutes():
    told = re.findall(r"^\| \*\*(\d\d_\w+)\*\*.*\*\*(\d+)\*\*", (COURSE / "instructors_guide.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in told] == [path.stem for path in NOTEBOOKS]
    assert all(int(seconds) <= 300 for _, seconds in told)
