"""What the road has done so far: fingerprints of what each step read, hashes of what it made, and a lock on the folder."""

import csv
import fcntl
import hashlib
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

from . import config
from .errors import CohortError, RunError
from .files import leads_out, write_whole

RUN_FILES = ("config.json", "predictions.csv", "mirrored.csv", "weights.safetensors")  # of a trained run: what later steps depend on


def manifest_fingerprint(path: Path) -> str:
    """SHA-256 of a manifest's bytes, the size of each image in it (for a folder: of all its files), and what reviews beside it say of stages,
    boxes, readings and exclusions; '' without a manifest.

    Raises CohortError for a manifest or for reviews that cannot be read.
    """
    if not path.is_file():
        return ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: cannot read this manifest ({error}); save it as a CSV file in UTF-8") from None
    sizes = []
    for row in csv.DictReader(text.splitlines()):
        image = path.parent / next(((name or "").strip() for column, name in row.items() if (column or "").strip() == "image"), "")
        if leads_out(image, path.parent):  # nothing is known of it, and a whole disk is not walked through
            sizes.append(-1)
        elif image.is_dir():
            sizes.append(sum(p.stat().st_size for p in image.rglob("*") if p.is_file()))
        else:
            sizes.append(image.stat().st_size if image.exists() else -1)
    return config.digest([hashlib.sha256(text.encode()).hexdigest(), sizes, *spoken_reviews(path.with_name("reviews.csv"))])


def spoken_reviews(path: Path) -> list[list[str]]:
    """Who said what of which image, the last word of each person on each field; notes and disputes change no result."""
    if not path.is_file():
        return []
    from .cohort.reviews import read_reviews

    reviews = read_reviews(path).query("field in ['box', 'stage', 'reading', 'exclude']")
    key = ["who", "patient_id", "image", "field"]
    return reviews.drop_duplicates(key, keep="last")[[*key, "value"]].values.tolist()


def stamp(path: Path) -> dict:
    """Size, time of change and SHA-256 of a file, as kept in the record."""
    with open(path, "rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
        state = os.fstat(file.fileno())
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha}


class Record:
    """`steps.json`: for each step the fingerprints of what it read and the hashes of what it made. Saved whole or not at all."""

    def __init__(self, root: Path):
        self.root, self.path = root, root / "steps.json"
        self.steps = {}
        if self.path.is_file():
            try:
                self.steps = json.loads(self.path.read_text(encoding="utf-8"))["steps"]
            except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
                raise RunError(f"{self.path}: not a record of steps; delete it, and finished trainings are still found") from None

    def save(self) -> None:
        write_whole(self.path, json.dumps({"steps": self.steps}, indent=1) + "\n")

    def why(self, name: str, inputs: dict) -> str:
        """Why the step must run, in a few words; '' where it need not."""
        if name not in self.steps:
            return "not run yet"
        before = self.steps[name]["inputs"]
        if not before:
            return "did not finish"
        changed = [key for key in {**inputs, **before} if inputs.get(key) != before.get(key)]
        return f"{', '.join(changed)} changed" if changed else self.broken(name)

    def broken(self, name: str) -> str:
        """The first output of the step that is missing or not what it made; '' where all are as they were."""
        for file, known in self.steps[name]["outputs"].items():
            path = self.root / file
            if not path.is_file():
                return f"{file} is missing"
            state = path.stat()
            if (state.st_size, state.st_mtime_ns) != (known["size"], known["mtime_ns"]):
                now = stamp(path)
                if now["sha256"] != known["sha256"]:
                    return f"{file} was changed"
                known.update(now)
        return ""

    def begin(self, name: str) -> None:
        self.steps[name] = {"inputs": {}, "outputs": {}, "spent_s": self.steps.get(name, {}).get("spent_s", 0.0)}
        self.save()

    def pause(self, name: str, elapsed_s: float) -> None:
        """Note the time of an attempt that came to no end; the step's time will count it."""
        if name in self.steps and not self.steps[name]["inputs"]:
            self.steps[name]["spent_s"] += elapsed_s
            self.save()

    def finish(self, name: str, inputs: dict, files, began: float) -> None:
        """Note the end of a step that began at `began` (seconds since 1970)."""
        outputs = {os.path.relpath(path, self.root): stamp(path) for path in sorted(files)}
        for other in self.steps.values():  # a file belongs to the step that wrote it last
            other["outputs"] = {file: known for file, known in other["outputs"].items() if file not in outputs}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        span = [round(began, 1), round(time.time(), 1)]
        elapsed_s = span[1] - span[0] + self.steps.get(name, {}).get("spent_s", 0.0)
        self.steps[name] = {"inputs": inputs, "outputs": outputs, "elapsed_s": round(elapsed_s, 1), "span": span, "finished": when}
        self.save()

    def elapsed_s(self, names: list[str]) -> float:
        """How long `names` took together: what several spent side by side counts once."""
        total = end = 0.0
        for name in sorted(names, key=self._span):
            step, (first, last) = self.steps[name], self._span(name)
            total += step["elapsed_s"] - (last - first) + max(last - max(first, end), 0.0)
            end = max(end, last)
        return total

    def _span(self, name: str) -> list[float]:
        return self.steps[name].get("span", [0.0, 0.0])  # older records have none

    def owned(self) -> set[str]:
        return {file for step in self.steps.values() for file in step["outputs"]}

    def finished(self, names) -> bool:
        """Whether all steps `names` came to an end."""
        return all(self.steps.get(name, {}).get("inputs") for name in names)

    def made_in(self, folders) -> str:
        """Fingerprint of all results in `folders` of the root, whichever step made them."""
        made = [[file, known["sha256"]] for step in self.steps.values() for file, known in step["outputs"].items() if file.split("/")[0] in folders]
        return config.digest(sorted(made))

    def trained_in(self, steps: list[str]) -> str:
        """Fingerprint of the trained runs that `steps` made."""
        runs = [[file, known["sha256"]] for name in steps if name in self.steps
                for file, known in self.steps[name]["outputs"].items() if file.startswith("models/") and file.endswith(RUN_FILES)]
        return config.digest(sorted(runs))


@contextmanager
def only_one(root: Path):
    """Hold the folder of results for this process. The system frees the lock when the process ends, however it ends.

    Raises RunError where another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunError(f"{root}: process {holder} is at work here; wait until it has ended, or end it") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
