"""The site: README, executed notebooks, course, results and API as static pages with search, built by Sphinx without any network.

The pages' sources are laid out as in the repository, so that links between README, notebooks, figures and tables hold as they are.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from . import __version__, config
from .errors import LessonError

SHOWN = ("paper", "paper3", "quick5", "ablations", "quick", "smoke")  # the executed notebooks of the first of these profiles that has all of them
COURSE = ("instructors_guide", "glossary", "limits")
ROOMS = ("", "images", "phantom", "cohort", "method", "study", "panels")
IGNORED = shutil.ignore_patterns("__pycache__", ".*", "exercises")

SETTINGS = f"""
project = "sos"
author = "the sos authors"
release = version = "{__version__}"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["**.ipynb_checkpoints", "sos/**.py"]
autodoc_member_order = "bysource"
autodoc_default_options = {{"members": True}}
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
html_theme = "sphinx_book_theme"
html_title = "sos"
html_sidebars = {{"**": ["navbar-logo.html", "sbt-sidebar-nav.html"]}}
html_theme_options = {{"home_page_in_toc": True, "use_download_button": True, "show_toc_level": 2}}
html_last_updated_fmt = None
suppress_warnings = ["myst.header", "misc.highlighting_failure", "toc.not_included"]


def setup(app):
    from sos.site import as_rst

    app.connect("autodoc-process-docstring", as_rst)
"""


def build(repository: Path, out: Path, log=None) -> Path:
    """Build the site of the checkout `repository` into `out`/html and return its first page; warnings of Sphinx go to `log`.

    Raises LessonError where Sphinx could not build it.
    """
    from sphinx.application import Sphinx

    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    lay_out(repository, source)
    app = Sphinx(source, source, out / "html", out / "doctrees", "html", status=None, warning=log, parallel=1)
    app.build()
    if app.statuscode:
        raise LessonError(f"{out}: the site could not be built; the messages above say why")
    return out / "html" / "README.html"


def lay_out(repository: Path, source: Path) -> None:
    """Copy what the site shows into `source`, with the pages that list it and Sphinx's settings."""
    shutil.copytree(repository / "figures", source / "figures", ignore=IGNORED)
    shutil.copytree(repository / "sos", source / "sos", ignore=IGNORED)
    shutil.copytree(repository / "notebooks", source / "notebooks", ignore=IGNORED)
    for name in ("LICENSE", "CITATION.cff", "run_all.sh"):
        shutil.copy(repository / name, source)
    for path in executed(repository):
        shutil.copy(path, source / "notebooks")
    (source / "conf.py").write_text(SETTINGS)
    api = [page(source / "api", wing) for wing in ROOMS if (repository / "sos" / wing).is_dir()]
    results = sorted(f"figures/{folder.name}/index" for folder in (source / "figures").iterdir() if folder.is_dir())
    for name in results:
        results_page(source / name)
    lessons = sorted(f"notebooks/{path.stem}" for path in (source / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    parts = {"Lessons": lessons, "Course": [f"notebooks/course/{name}" for name in COURSE], "Results": [*results, "sos/weights/MODEL_CARD"],
             "Code": [f"api/{name}" for name in api]}
    text = (repository / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((figures/[\w-]+)/?\)", r"](\1/index.md)", text)  # a folder becomes its page
    (source / "README.md").write_text(text + "".join(contents(caption, pages) for caption, pages in parts.items()), encoding="utf-8")


def executed(repository: Path) -> list[Path]:
    """The executed notebooks of the largest profile that has run; none where only the committed ones are there."""
    names = sorted(path.name for path in (repository / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for profile in SHOWN:
        made = [config.runs_dir(profile) / "notebooks" / name for name in names]
        if all(path.is_file() for path in made):
            return made
    return []


def contents(caption: str, pages: list[str]) -> str:
    """A part of the table of contents."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def page(folder: Path, wing: str) -> str:
    """Write the page of the modules of one wing of `sos/`; its name."""
    package = Path(__file__).parent / wing
    names = sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("_"))
    modules = [".".join(filter(None, ("sos", wing, name))) for name in names]
    folder.mkdir(exist_ok=True)
    blocks = [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in modules]
    (folder / f"{wing or 'sos'}.md").write_text("\n".join([f"# {'.'.join(filter(None, ('sos', wing)))}\n", *blocks]))
    return wing or "sos"


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with names in backticks: mark these as code, and take the meaning that reStructuredText sees in other marks."""
    def plain(text):
        return re.sub(r"([*|`\\]|_\b)", r"\\\1", text)

    parts = re.split(r"`([^`]+)`", "\n".join(lines))  # plain, code, plain, …
    lines[:] = "".join(f"``{part}``" if i % 2 else plain(part) for i, part in enumerate(parts)).split("\n")


def results_page(path: Path) -> None:
    """Write the page of a profile's published figures and tables."""
    folder = path.parent
    figures = sorted(folder.glob("*.png"), key=lambda file: (file.stem != "fig_main", len(file.stem.partition("_")[0]), file.stem))
    tables = sorted(file for file in folder.glob("*.md") if file.stem != "index")
    title = f"Results of the profile {folder.name}" if folder.name in config.PROFILES else folder.name.capitalize()
    lines = [f"# {title}", "Virtual patients, drawn by this project; nothing here says how accurate anything is on real people."]
    lines += [f"```{{include}} {file.name}\n```" for file in tables]
    lines += [f"![{file.stem}]({file.name})" for file in figures]
    path.with_suffix(".md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Build the site from a checkout."""
    parser = argparse.ArgumentParser(prog="python -m sos.site", description=main.__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/site")
    args = parser.parse_args(argv)
    try:
        print(build(Path(__file__).resolve().parents[1], (args.out or config.home() / "runs" / "site").resolve(), sys.stderr))
    except LessonError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
