"""Files that are written whole or not at all."""

import os
from pathlib import Path

from .config import home


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".part.{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def show_in_readme(mark: str, text: str) -> None:
    """Put `text` between the README's two comments `mark` and `/mark`; a README without them is left as it is."""
    readme = home() / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = old.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if end and (new := before + begin + text + end + after) != old:
        write_whole(readme, new)
