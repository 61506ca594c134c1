"""Files that are written whole or not at all, and files that only one process may write."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import home
from .errors import OutOfTime

LOOK_AGAIN_S = 1.0  # between two looks at a lock that another process holds


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".part.{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def alone(lock: Path, deadline: float = float("inf")) -> Iterator[None]:
    """Hold the file `lock` for this process, after waiting for any other that does, here or on another machine that shares the folder.

    The system frees the lock when its process ends, however it ends; one that is only thought dead keeps it. The file is gone afterwards.
    Raises OutOfTime where the lock is not free at `deadline` (Unix time).
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "a") as file:
            if _take(file) and _same_file(file, lock):  # the one who held it before may have taken the file away since we opened it
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        if time.time() > deadline:
            raise OutOfTime(f"stopped in time while waiting for {lock.stem.lstrip('.')}, which another process makes; the next call goes on")
        time.sleep(LOOK_AGAIN_S)


def _take(file) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf, not flock: the one that network file systems carry to other machines
    except (BlockingIOError, PermissionError):  # POSIX allows either answer
        return False
    return True


def _same_file(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def show_in_readme(mark: str, text: str) -> None:
    """Put `text` between the README's two comments `mark` and `/mark`; a README without them is left as it is."""
    readme = home() / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = old.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if end and (new := before + begin + text + end + after) != old:
        write_whole(readme, new)
