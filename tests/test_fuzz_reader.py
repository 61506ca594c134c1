"""The fuzz command itself: a short run of it, and that it sees a crash, a hang, an untyped error and too much memory, and says which case."""

import os
import time

import fuzz_reader
import numpy as np
import pytest

from sos.errors import ImageError


def test_hostile_files_give_an_image_or_a_typed_error(tmp_path):
    outcomes = list(fuzz_reader.run(250, seed=1, keep=tmp_path))
    assert sorted(outcome.case for outcome in outcomes) == list(range(250))
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert sum(outcome.kind == "image" for outcome in outcomes) > 10 and not list(tmp_path.iterdir())


def test_same_seed_and_number_give_the_same_file(tmp_path):
    for case in range(20):
        made = []
        for folder in (tmp_path / f"{case}a", tmp_path / f"{case}b"):
            folder.mkdir()
            what, path = fuzz_reader.make(7, case, folder)
            made.append((what, [file.read_bytes() for file in sorted(path.rglob("*"))] if path.is_dir() else path.read_bytes()))
        assert made[0] == made[1]


def dies(path):
    os._exit(3)


def hangs(path):
    time.sleep(60)


def burns(path):
    while True:
        pass


def slips(path):
    raise KeyError("PatientName")


def hoards(path):
    try:
        np.ones(2**28)
    except MemoryError as error:
        raise ImageError(f"{path.name}: failed ({type(error).__name__})") from None


def chatters(path):
    raise ImageError(f"{path.name}: two\nlines")


@pytest.mark.parametrize("read, kind", [(dies, "the process died (3)"), (hangs, "hang"), (burns, "hang"), (slips, "untyped KeyError"),
                                        (hoards, "failed (MemoryError)"), (chatters, "two\nlines")])
def test_each_kind_of_failure_is_seen_and_its_file_is_kept(tmp_path, monkeypatch, read, kind):
    monkeypatch.setattr(fuzz_reader, "SECONDS", 0.1)
    outcomes = list(fuzz_reader.run(2, seed=1, keep=tmp_path, read=read))
    assert [(outcome.case, outcome.kind, outcome.failed) for outcome in outcomes] == [(0, kind, True), (1, kind, True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-0", "1-1"]
