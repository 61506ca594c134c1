"""The site: every page is there, links hold, what is searched is found, and nothing is fetched from elsewhere but fonts of formulas."""

import io
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from sos import site

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API modifications")  # of extensions, whatever their user does


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the pages and what Sphinx warned of."""
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))  # nothing has run: the committed notebooks are shown
        first = site.build(REPOSITORY, tmp_path_factory.mktemp("site"), log)
    return first.parent, log.getvalue()


def test_nothing_is_warned_of(built):
    assert built[1] == ""


def test_all_pages_are_there(built):
    pages = built[0]
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        assert (pages / "notebooks" / f"{path.stem}.html").is_file()
    for name in site.COURSE:
        assert (pages / "notebooks" / "course" / f"{name}.html").is_file()
    for folder in (REPOSITORY / "figures").iterdir():
        if folder.is_dir():
            assert folder.name in (pages / "figures" / folder.name / "index.html").read_text()
    assert "distillation_kl" in (pages / "api" / "method.html").read_text()


def test_every_link_within_the_site_leads_somewhere(built):
    pages, broken = built[0], []
    for page in (page for page in pages.rglob("*.html") if "_static" not in page.parts):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (page.parent / unquote(target)).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_search_finds_terms_of_the_field(built):
    index = (built[0] / "searchindex.js").read_text(encoding="utf-8").lower()
    assert all(word in index for word in ("synchondrosi", "clivus", "distil", "temperatur"))


def test_solutions_are_not_on_the_site(built):
    assert not list(built[0].rglob("*exercises*"))
    text = (built[0] / "notebooks" / "05_ablations.html").read_text(encoding="utf-8")
    assert "Holm" in text and "maximum.accumulate" not in text


@pytest.mark.parametrize("text, shown", [("A `name` and `b`.", "A ``name`` and ``b``."), ("T² · |x| of *args_", r"T² · \|x\| of \*args\_"),
                                         ("one ` alone", r"one \` alone")])
def test_docstrings_are_shown_as_plain_text(text, shown):
    lines = [text]
    site.as_rst(None, "function", "name", None, None, lines)
    assert lines == [shown]
