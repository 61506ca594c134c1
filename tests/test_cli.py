"""The command line: help, exit codes, one-line errors, and output that other programs can read."""

import csv
import errno
import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sos
from sos import cli, config
from sos.errors import OutOfTime, RunError
from sos.rows import JSON_KEYS, USE
from sos.stages import BASSED5

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = ("phantom", "audit", "collect", "predict", "train", "grid", "suspects", "agreement", "export", "release", "config")
GOOD = {"path": "a.dcm", "stage": 3, "probabilities": [0.1, 0.1, 0.6, 0.15, 0.05], "expected_stage": 2.95, "uncertainty": 0.71,
        "peak": [101.5, 88.0], "box": [0.0, 0.0, 512.0, 512.0], "warnings": ["no spacing", "8 bits"], "error": None, "use": USE}
BAD = {**dict.fromkeys(GOOD), "path": "b.dcm", "warnings": [], "error": "b.dcm: empty file; export it again", "use": USE}


def run(*args, **kw):
    """`python -m sos` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "sos", *map(str, args)], capture_output=True, text=True, cwd=REPOSITORY, **kw)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    example = told.split("example:")[1].split()
    assert example[:2] == ["sos", command]
    args = cli.build_parser().parse_args(example[1:])  # the example is one that the command takes
    assert args.do.__doc__.split()[0] in told


def test_help_answers_at_once_and_imports_nothing_heavy():
    done = run("--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "fastai", "numpy", "pandas", "matplotlib", "pydicom", "highdicom", "onnx", "onnxruntime", "tqdm"}
    assert all(command in done.stdout for command in COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"sos {sos.__version__}"


@pytest.mark.parametrize(("args", "words"), [
    (["config", "smoek"], "no profile 'smoek'"),
    (["train", "student", "--profile", "smoke", "--set", "lrr=1"], "did you mean 'lr'"),
    (["train", "student", "--profile", "smoke", "--set", "lr=fast"], "not of type float"),
    (["train", "student", "--profile", "smoke", "--set", "lr"], "name=value"),
    (["train", "teacher", "--profile", "smoke", "--cohort", "nowhere.csv"], "nowhere.csv"),
    (["train", "teacher", "--profile", "smoke", "--seed", "-1"], "seed"),
    (["train", "teacher", "--profile", "smoke", "--seed", "9" * 24], "seed"),
    (["phantom", "x", "--patients", "0"], "patients"),
    (["phantom", "x", "--difficulty", "-1"], "difficulty"),
    (["phantom", "x", "--difficulty", "nan"], "difficulty"),
    (["release", "nowhere"], "nowhere"),
])
def test_a_users_error_is_one_line_and_exit_2(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("sos: ") and words in told.err and told.err.count("\n") == 1


def test_errors_of_the_file_system_are_one_line_too(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["phantom", str(tmp_path / "file" / "cohort"), "--patients", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_is_one_line_though_the_system_names_no_file(monkeypatch, capsys):
    def full(name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(config, "get_profile", full)
    assert cli.main(["config", "smoke"]) == 2
    assert capsys.readouterr().err == "sos: No space left on device\n"


@pytest.mark.parametrize(("raised", "status"), [(RunError("no such run"), 2), (KeyboardInterrupt(), 130), (OutOfTime("in time"), 0)])
def test_exit_status(raised, status, monkeypatch, capsys):
    def fail(name):
        raise raised

    monkeypatch.setattr(config, "get_profile", fail)
    assert cli.main(["config", "smoke"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden_behind_one_line(monkeypatch):
    monkeypatch.setattr(config, "get_profile", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config", "smoke"])


def test_config_prints_the_resolved_profile(capsys):
    assert cli.main(["config", "smoke"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(config.get_profile("smoke").resolved()))


def test_phantom_then_audit(tmp_path, capsys):
    assert cli.main(["phantom", str(tmp_path / "cohort"), "--patients", "3", "--seed", "5"]) == 0
    manifest = Path(capsys.readouterr().out.strip())
    assert len(manifest.read_text().splitlines()) == 4
    status = cli.main(["audit", str(manifest)])
    told = capsys.readouterr().out
    assert "3 of 3 images readable; 0 errors" in told
    assert status == (0 if told.count("\n") == 1 else 1)
    next((manifest.parent / "images").iterdir()).write_bytes(b"")
    assert cli.main(["audit", str(manifest), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["images_readable"] == 2 and report["findings"]
    assert cli.main(["audit", str(tmp_path / "nowhere.csv")]) == 2
    assert "cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [[GOOD, BAD], [BAD, GOOD], [BAD], [GOOD]])
def test_table_of_predictions(rows):
    file = io.StringIO()
    assert list(cli.tabled(rows, file)) == rows
    table = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert list(table[0]) == ["path", "stage", "p1", "p2", "p3", "p4", "p5", "expected_stage", "uncertainty", "peak_x", "peak_y",
                              "box_x0", "box_y0", "box_x1", "box_y1", "warnings", "error", "use"]
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    for row, told in zip(rows, table, strict=True):
        assert told["use"] == "research use only"
        if row is GOOD:
            values = [told[key] for key in ("stage", "p3", "peak_x", "box_x1", "error")]
            assert values == ["3", "0.6000", "101.5", "512.0", ""]
            assert told["warnings"] == "no spacing; 8 bits"
        else:
            assert told["stage"] == told["p1"] == told["box_x0"] == "" and told["error"] == BAD["error"]


def test_rows_appear_while_the_work_goes_on():
    file = io.StringIO()
    rows = cli.tabled(iter([GOOD, BAD]), file)
    next(rows)
    assert file.getvalue().count("\n") == 2


def test_file_appears_only_when_whole(tmp_path):
    out = tmp_path / "stages.csv"
    out.write_text("before")
    with pytest.raises(RunError), cli.whole_file(out) as file:
        file.write("half a row")
        raise RunError("gone")
    assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]


def test_predict(tmp_path, tiny_cohort, capsys, monkeypatch):
    """The shipped student on a good file and three bad ones: a row each, exit 1, nothing stops."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))  # no runs there, so the released weights are taken
    image = next((tiny_cohort.parent / "images").iterdir())
    text, empty = tmp_path / "text.dcm", tmp_path / "empty.dcm"
    text.write_text("not an image")
    empty.touch()
    paths = [str(text), str(image), str(empty), str(tmp_path / "missing.dcm")]
    assert cli.main(["predict", *paths, "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == paths
    assert all(set(row) == set(JSON_KEYS) for row in rows)
    assert [bool(row["error"]) for row in rows] == [True, False, True, True]
    good = rows[1]
    assert sum(good["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert good["stage"] == 1 + good["probabilities"].index(max(good["probabilities"]))
    out = tmp_path / "stages.csv"
    assert cli.main(["predict", str(image), "--out", str(out), "--cam", str(tmp_path / "cam")]) == 0
    assert capsys.readouterr().out == ""
    with open(out, newline="") as file:
        assert next(csv.DictReader(file))["stage"] == str(good["stage"])
    assert len(list((tmp_path / "cam").iterdir())) == 1


def test_predict_imports_what_it_needs_and_nothing_that_takes_long(tiny_cohort):
    path = sorted((tiny_cohort.parent / "images").glob("*.dcm"))[0]
    done = run("predict", path, "--weights", "released", "--json", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0 and json.loads(done.stdout)["stage"] in BASSED5.labels
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert {"torch", "pydicom"} <= imported
    slow = {"torchvision", "torch._dynamo", "sympy", "fastai", "pandas", "scipy.optimize", "scipy.stats", "matplotlib", "sklearn", "highdicom", "onnx"}
    assert not imported & slow


def test_output_whose_reader_has_gone_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sos", "config", "paper"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_garbage_is_looked_for_again_after_imports_also_where_one_fails():
    try:
        with pytest.raises(ImportError), cli.importing():
            assert not gc.isenabled()
            raise ImportError("no such room")
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
