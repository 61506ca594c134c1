"""Files that are written whole or not at all, and files that only one process may write."""

import fcntl
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import home
from .errors import OutOfTime

ALLOW_OUTSIDE = "SOS_ALLOW_OUTSIDE"  # environment variable: 1 lets a manifest name images anywhere on the machine
WRITTEN = "SOS_WRITTEN"  # environment variable: a file where a process notes each result that it writes, a path a line
LOOK_AGAIN_S = 1.0  # between two looks at a lock that another process holds


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".part.{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def note_result(path: Path) -> None:
    """Say, where $SOS_WRITTEN asks for it, that this process is about to put the result `path` in its place, a file or a folder."""
    if log := os.environ.get(WRITTEN):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{Path(path).resolve()}\n")


def end_with_parent() -> None:
    """Wait for the end of the standard input, which the process that started us holds open as long as it lives, and end with it: what we hold,
    a lock or a kernel, would be in the way of whoever does the same again."""
    end = select.poll()
    end.register(sys.stdin.fileno(), 0)  # of what may be read nothing is told or taken
    end.poll()
    os._exit(1)


def outside_allowed() -> bool:
    """Whether the user trusts manifests with images anywhere."""
    return os.environ.get(ALLOW_OUTSIDE) == "1"


def leads_out(path: Path, root: Path) -> bool:
    """Whether `path`, or a link inside the folder that it names, leads out of the folder `root`; also where it cannot be followed.

    Always False where the environment variable SOS_ALLOW_OUTSIDE is 1: then files outside are wanted.
    """
    if outside_allowed():
        return False
    try:
        home_of_all = root.resolve()
        if not path.resolve().is_relative_to(home_of_all):
            return True
        links = (item for item in path.rglob("*") if item.is_symlink()) if path.is_dir() else ()
        return any(not link.resolve().is_relative_to(home_of_all) for link in links)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL in the name
        return True


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
