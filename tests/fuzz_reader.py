"""Hostile files for the reader: `python tests/fuzz_reader.py --cases 10000 --seed 0`.

Each case is a file (or a folder) made from the seed and the case's number: one of ours or of pydicom's collection, cut, flipped, spliced or with
absurd claims, or a bomb. It must give an image or an ImageError in one line, within 5 s and 1 GB. Workers read them under a limit of their
address space; a worker that dies or hangs accuses the case in its hands, which is saved. Time is the processor's, so that a busy machine accuses
no case, and a hang is four times as long on the clock. The last lines count what came of the cases; exit 1 if any failed.
"""

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from dicoms import dicom_bytes, encoded, more_seeds, picture
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sos.errors import ImageError
from sos.images.reader import read_image

SECONDS, BYTES = 5.0, 2**30
LARGEST_SEED = 300_000
COLLECTION = Path(pydicom.__file__).parent / "data/test_files"
#: Elements whose numbers decide what is allocated and read.
NUMBERS = [(0x0028, element) for element in (0x0002, 0x0004, 0x0006, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103, 0x1052,
                                             0x1053, 0x1101, 0x1201, 0x3002, 0x3006)] + [(0x7FE0, 0x0010), (0x0020, 0x0032), (0x0002, 0x0000)]
SYNTAXES = [b"1.2.840.10008.1.2" + end for end in (b"", b".1", b".2", b".5", b".1.99", b".4.50", b".4.51", b".4.57", b".4.70", b".4.80", b".4.90")]
ABSURD = [0, 1, 2, 7, 8, 255, 256, 4096, 32767, 32768, 60000, 65534, 65535]
ABSURD_LENGTHS = [0, 1, 2, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF]


class Outcome(NamedTuple):
    """What came of a case: `kind` counts it, `failed` accuses it; seconds of the processor; peak of the worker's memory so far in bytes."""

    case: int
    what: str
    kind: str
    failed: bool
    seconds: float
    memory: int


@cache
def files() -> dict[str, bytes]:
    """Whole files by name: ours, and pydicom's that are not large."""
    theirs = {str(path.relative_to(COLLECTION)): path.read_bytes() for path in sorted(COLLECTION.rglob("*"))
              if path.is_file() and path.stat().st_size <= LARGEST_SEED and not re.search("TINY_ALPHA/PT|/MR|/CT5N", str(path))}
    return more_seeds() | theirs  # less dozens that are alike


# damage


def cut(content: bytearray, rng) -> None:
    del content[len(content) * int(rng.integers(0, 10)) // 10 if rng.random() < 0.5 else int(rng.integers(0, len(content) + 1)):]


def flip(content: bytearray, rng) -> None:
    for _ in range(int(rng.integers(1, 9))):
        end = len(content) if rng.random() < 0.4 else min(len(content), 1500)  # most of what can go wrong stands at the front
        content[int(rng.integers(end))] ^= int(rng.integers(1, 256))


def claim(content: bytearray, rng) -> None:
    """Absurd numbers and lengths in the elements that decide what is allocated."""
    for _ in range(int(rng.integers(1, 4))):
        group, element = NUMBERS[rng.integers(len(NUMBERS))]
        at = content.find(struct.pack("<HH", group, element))
        if at < 0:
            at = content.find(struct.pack(">HH", group, element))
        if at < 0 or at + 14 > len(content):
            continue
        start = at + (12 if content[at + 4:at + 6] in (b"OB", b"OW", b"SQ", b"UN") else 8)
        how = rng.random()
        if how < 0.5:
            content[start:start + 2] = struct.pack("<H", int(rng.choice(ABSURD)))
        elif how < 0.8:
            content[start - 4:start] = struct.pack("<I", int(rng.choice(ABSURD_LENGTHS)))
        else:
            content[start:start + 4] = rng.choice([b"9e99", b"-1\\0", b"nan ", b"1e12", b"\xff\xff\xff\x7f", b"2147"])[:4].ljust(4)


def splice(content: bytearray, rng) -> None:
    """Take out, double or exchange a piece."""
    at, size = int(rng.integers(len(content))), int(rng.integers(1, 400))
    other = files()[str(rng.choice(sorted(files())))]
    begin = int(rng.integers(len(other)))
    content[at:at + int(rng.choice([0, size]))] = (b"", content[at:at + size], other[begin:begin + size], bytes(size))[rng.integers(4)]


def retype(content: bytearray, rng) -> None:
    """Another transfer syntax than the pixels'."""
    at = content.find(b"\x02\0\x10\0UI")
    if 0 <= at < len(content) - 8:
        size = int.from_bytes(content[at + 6:at + 8], "little")
        uid = SYNTAXES[rng.integers(len(SYNTAXES))]
        content[at + 8:at + 8 + size] = uid[:size].ljust(size, b"\0")


DAMAGES = (cut, flip, flip, claim, claim, splice, retype)


def damaged(rng) -> tuple[str, bytes]:
    name = str(rng.choice(sorted(files())))
    content, done = bytearray(files()[name]), []
    for how in rng.choice(len(DAMAGES), int(rng.integers(1, 4))):
        if content:
            DAMAGES[how](content, rng)
            done.append(DAMAGES[how].__name__)
    return f"{'+'.join(done)} of {name}", bytes(content)


# bombs


def nested(rng) -> bytes:
    """Sequences in sequences, thousands deep, with or without lengths."""
    depth, head = int(10 ** rng.uniform(1, 4.5)), dicom_bytes(PixelData=None)
    if rng.random() < 0.6:
        return head + b"\x40\0\x01\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * depth
    body, depth = b"", min(depth, 4000)
    for _ in range(depth):
        body = b"\x40\0\x01\0SQ\0\0" + struct.pack("<I", len(body) + 8) + b"\xfe\xff\0\xe0" + struct.pack("<I", len(body)) + body
    return head + body


def deflated_bomb(rng) -> bytes:
    """Zeros, deflated a thousandfold, as pixel data or as a header."""
    head = dicom_bytes(syntax=DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(head[140:144], "little")
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = int(10 ** rng.uniform(6, 8.8))
    element = b"\xe0\x7f\x10\0OW\0\0" if rng.random() < 0.5 else b"\x09\0\x10\x10UN\0\0"
    body = [deflater.compress(zlib.decompress(head[start:], -zlib.MAX_WBITS)[:200] + element + struct.pack("<I", size))]
    body += [deflater.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return head[:start] + b"".join(body) + deflater.flush()


def stream_bomb(rng) -> bytes:
    """A compressed frame, or a screenshot, that claims another size than it has."""
    names = [name for name in files() if re.search("JPEG|jpeg|progressive|J2K|j2k|jls|png|RGBA|tiff", name)]
    content, side = bytearray(files()[str(rng.choice(names))]), int(10 ** rng.uniform(2, 9))
    for mark, skip, form in ((b"\xff\x4f\xff\x51", 8, ">II"), (b"\xff\xc0", 5, ">HH"), (b"\xff\xc1", 5, ">HH"), (b"\xff\xc2", 5, ">HH"),
                             (b"\xff\xc3", 5, ">HH"), (b"\xff\xf7", 5, ">HH"), (b"IHDR", 4, ">II")):
        at = content.find(mark)
        if at >= 0 and at + skip + 8 < len(content):
            most = 65535 if form == ">HH" else 2**31 - 1
            content[at + skip:at + skip + struct.calcsize(form)] = struct.pack(form, min(side, most), min(int(rng.choice([side, 60, 4000])), most))
            if mark == b"IHDR":
                content[at + 17:at + 21] = struct.pack(">I", zlib.crc32(content[at:at + 17]))
    if rng.random() < 0.5:  # and its header agrees
        for element in (0x10, 0x11):
            at = content.find(struct.pack("<HH", 0x28, element))
            if at >= 0:
                content[at + 8:at + 10] = struct.pack("<H", min(side, 65535))
    return bytes(content)


def frames_bomb(rng) -> bytes:
    """Tens of thousands of tiny frames, with or without a table of where they are."""
    count = int(10 ** rng.uniform(2, 5))
    body = (b"\xfe\xff\0\xe0\x08\0\0\0" + bytes(8)) * count
    head = dicom_bytes(NumberOfFrames=count, Rows=int(rng.choice([1, 32, 60])), Columns=int(rng.choice([1, 32, 80])), PixelData=None)
    head = head.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    return head + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\0\0\0\0" + body + b"\xfe\xff\xdd\xe0\0\0\0\0"


def picture_bomb(rng) -> bytes:
    """Screenshots that are large, dull and small on disk; with hundreds of scans; with thousands of directories."""
    kind, side = rng.integers(4), int(10 ** rng.uniform(3, 4))
    if kind == 0:
        data = zlib.compressobj(1)
        row = bytes(1 + side)
        body = b"".join([data.compress(row * 100) for _ in range(side // 100)]) + data.flush()
        head = struct.pack(">IIBBBBB", side, side // 100 * 100, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
                                               for k, d in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b"")))
    if kind == 1:
        jpeg = encoded(np.zeros((min(side, 3000), min(side, 3000)), np.uint8), "JPEG", progressive=True)
        last = jpeg.rfind(b"\xff\xda")
        return jpeg[:-2] + jpeg[last:-2] * int(10 ** rng.uniform(1, 3)) + b"\xff\xd9"
    tiff = encoded(picture(8).astype(np.uint8), "TIFF")
    if kind == 2:  # one directory after the other, or in a circle
        at = int.from_bytes(tiff[4:8], "little")
        size, count = 2 + 12 * int.from_bytes(tiff[at:at + 2], "little"), int(10 ** rng.uniform(1, 4.5))
        body, start = b"", len(tiff)
        entry = tiff[at:at + size]
        parts = [tiff[:at + size] + struct.pack("<I", start) + tiff[at + size + 4:]]
        for k in range(count):
            parts.append(entry + struct.pack("<I", start if k == count - 1 and rng.random() < 0.5 else start + (k + 1) * (size + 4)))
        return b"".join(parts) + body
    return encoded(np.zeros((min(side, 5000), min(side, 5000)), np.uint8), "TIFF", compression="tiff_lzw")


def numbers_bomb(rng) -> bytes:
    """An element that should hold two numbers holds a million."""
    content = dicom_bytes(PixelSpacing=None)
    text = b"0.3\\" * int(10 ** rng.uniform(2, 4.1))
    at = content.find(b"\x28\0\x00\x01")
    return content[:at] + b"\x28\0\x30\0DS" + struct.pack("<H", len(text)) + text + content[at:]


BOMBS = (nested, deflated_bomb, stream_bomb, stream_bomb, frames_bomb, picture_bomb, numbers_bomb)


def make(seed: int, case: int, folder: Path) -> tuple[str, Path]:
    """Write case `case` into `folder`; what it is, and its path. Same seed and number, same bytes."""
    rng = np.random.default_rng([seed, case])
    path, choice = folder / "fuzzed", rng.random()
    if choice < 0.04:
        path.mkdir()
        names = [name for name in files() if name.startswith("dicomdirtests/7")] or sorted(files())
        for k in range(int(rng.integers(2, 6))):
            content = bytearray(files()[names[rng.integers(len(names))]])
            if rng.random() < 0.6:
                DAMAGES[rng.integers(len(DAMAGES))](content, rng)
            (path / f"{k}").write_bytes(content)
        return "folder", path
    if choice < 0.10:
        bomb = BOMBS[rng.integers(len(BOMBS))]
        what, content = bomb.__name__, bomb(rng)
    else:
        what, content = damaged(rng)
    path.write_bytes(content)
    return what, path


# judgement


def judge(path: Path, read: Callable) -> tuple[str, bool]:
    """Kind of what came of reading `path`, and whether that is a failure."""
    try:
        image = read(path)
    except ImageError as error:
        text = str(error)
        kind = re.sub(r"\d[\d.]*(e[+-]\d+)?", "N", re.sub(r"^[^:]*: ", "", text)).partition(";")[0]
        return kind, "\n" in text or str(path.parent) in text or "MemoryError" in text
    except BaseException as error:  # what should not be
        return f"untyped {type(error).__name__}", True
    pixels = image.pixels
    fits = pixels.ndim == 2 and pixels.dtype == np.float32 and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1
    return ("image", False) if fits else ("an image beyond [0, 1]", True)


def work(pipe, seed: int, folder: Path, read: Callable) -> None:
    """A worker: read the cases whose numbers come through `pipe`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of damage
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files()
    while (case := pipe.recv()) is not None:
        what, path = make(seed, case, folder)
        pipe.send(None)  # made; from here on the clock runs
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, most))
        start = time.process_time()
        kind, failed = judge(path, read)
        seconds = time.process_time() - start
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if seconds > SECONDS:
            kind, failed = "too slow", True
        pipe.send(Outcome(case, what, kind, failed, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        if not failed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Worker:
    """A process with a folder of its own, and the case in its hands."""

    def __init__(self, seed: int, read: Callable):
        self.folder, self.seed = Path(tempfile.mkdtemp(prefix="fuzz-")), seed
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(other, seed, self.folder, read), daemon=True)
        self.process.start()
        other.close()
        self.case, self.since = None, float("inf")

    def give(self, case: int | None) -> None:
        """The next case; None to end."""
        self.case, self.since = case, float("inf")
        self.pipe.send(case)

    def end(self) -> None:
        """Kill what is left of it."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(cases: int, seed: int, workers: int = 1, keep: Path | None = None, read: Callable = read_image) -> Iterator[Outcome]:
    """Outcomes of the cases, as they come; files of failed ones are copied to `keep`."""
    files()
    todo = iter(range(cases))
    hands = [Worker(seed, read) for _ in range(workers)]
    for hand in list(hands):
        give_next(hand, hands, todo)
    while hands:
        ready = wait([hand.pipe for hand in hands], timeout=0.5)
        for hand in list(hands):
            late = time.monotonic() - hand.since > 4 * SECONDS
            if hand.pipe not in ready and not late:
                continue
            outcome = None
            if hand.pipe in ready:
                try:
                    outcome = hand.pipe.recv()
                    if outcome is None:
                        hand.since = time.monotonic()
                        continue
                except EOFError:
                    hand.process.join()
            if outcome is None:
                kind = "hang" if hand.pipe not in ready else f"the process died ({hand.process.exitcode})"
                outcome = Outcome(hand.case, "?", kind, True, max(time.monotonic() - hand.since, 0.0), 0)
            if outcome.failed and keep is not None and (hand.folder / "fuzzed").exists():
                keep.mkdir(parents=True, exist_ok=True)
                shutil.move(hand.folder / "fuzzed", keep / f"{seed}-{outcome.case}")
            yield outcome
            if outcome.what == "?":
                hand.end()
                hands[hands.index(hand)] = hand = Worker(seed, read)
            elif outcome.failed and (left := hand.folder / "fuzzed").exists():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            give_next(hand, hands, todo)


def give_next(hand: Worker, hands: list[Worker], todo: Iterator[int]) -> None:
    """The next case to `hand`, or its end where none is left."""
    case = next(todo, None)
    hand.give(case)
    if case is None:
        hand.process.join(5)
        hand.end()
        hands.remove(hand)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for files of failed cases")
    args = parser.parse_args()
    start, outcomes = time.monotonic(), []
    for outcome in run(args.cases, args.seed, args.workers, args.keep):
        outcomes.append(outcome)
        if outcome.failed:
            print(f"case {outcome.case}: {outcome.kind} after {outcome.seconds:.1f} s: {outcome.what}", flush=True)
    for kind, count in Counter(outcome.kind for outcome in outcomes).most_common():
        print(f"{count:6d}  {kind}")
    failed, slowest = [outcome for outcome in outcomes if outcome.failed], max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"{len(outcomes)} cases in {time.monotonic() - start:.0f} s, {len(failed)} failed; the slowest took {slowest.seconds:.1f} s "
          f"({slowest.what}); at most {max(outcome.memory for outcome in outcomes) / 1e6:.0f} MB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
