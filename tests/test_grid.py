"""The grid on a dask cluster: the same runs as one after the other, through dead workers, failing runs, limits and locks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from sos import cli, config, files, notebook, steps
from sos.errors import ConfigError, OutOfTime, RunError
from sos.files import alone
from sos.study import cluster, grid
from sos.study.cluster import Order, Outcome, carry_out, local_workers, make_runs, slurm_cluster
from sos.study.runs import Run, training_code
from sos.study.training import Study

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 300  # with processes that need a few seconds to start, on a machine that may have other things to do


def tiny(**changes):
    """Six runs of a second each; the last two an ablation, a student without its terms, and the leaking teacher, which keep no weights."""
    base = config.get_profile("smoke")
    small = dict(frame_px=64, window_px=32, epochs=2, batch_size=8, precision="fp32", dropout=0.1)
    roles = {role: getattr(base, role).with_(**small) for role in config.MODELS}
    roles["student"] = roles["student"].with_(w_attn=0.0)
    return replace(base, **{"name": "tiny", "valid_share": 0.25, "test_share": 0.25, "native_px": 128, "bootstrap": 50, "varied": {}, "competitors_trained": (),
                            "without_labels": False} | roles | changes)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """Results in a folder of the test's own; no GPU, and two cores, so that two workers have a thread each as the runs they are compared with."""
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    monkeypatch.delenv("SOS_DEADLINE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes started here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setitem(config.PROFILES, "tiny", tiny())


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory, tiny_cohort):
    """Folder of the runs of the tiny profile, made one after the other in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("one_by_one")))
        return grid.run_grid(tiny(), tiny_cohort)[0].path.parent


def assert_same_runs(models: Path, reference: Path):
    assert sorted(path.name for path in models.iterdir()) == sorted(path.name for path in reference.iterdir())  # no lock or part is left
    for run in reference.iterdir():
        for file in ("predictions.csv", "mirrored.csv", "history.csv", "metrics.json", "config.json"):
            assert (models / run.name / file).read_bytes() == (run / file).read_bytes(), (run.name, file)
        assert (models / run.name / "weights.safetensors").exists() == (run / "weights.safetensors").exists()


# ---- whole grids ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_make_the_bytes_of_the_runs_one_after_the_other(one_by_one, tiny_cohort, capfd):
    assert cli.main(["grid", "--profile", "tiny", "--cohort", str(tiny_cohort), "--workers", "2"]) == 0
    assert capfd.readouterr() == ("", "")  # no terminal, no progress
    assert len(list(one_by_one.iterdir())) == 6
    assert_same_runs(Study("tiny", tiny_cohort).folder / "models", one_by_one)


@pytest.mark.slow
def test_the_road_makes_the_runs_side_by_side_before_its_notebooks(one_by_one, tiny_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(config.PROFILES, "tiny", tiny(at_once=2))
    monkeypatch.setattr(config, "source_digest", lambda *paths: "as it is")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("JUPYTER_PREFER_ENV_PATH", "PYDEVD_DISABLE_FILE_VALIDATION"):  # the road sets them for its kernels
        monkeypatch.setenv(name, "1")
    code = "import pathlib, os\nlen(list(pathlib.Path(os.environ['SOS_HOME'], 'runs').glob('*/models/*/config.json')))"
    cells = [nbformat.v4.new_code_cell("profile = 'tiny'\ncohort = ''", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_count.ipynb")
    walk = ["--profile", "tiny", "--cohort", str(tiny_cohort), "--notebooks", str(tmp_path / "notebooks")]

    assert steps.main([*walk, "--only", "01"]) == 0  # trains nothing that its notebook does not ask for
    models = Study("tiny", tiny_cohort).folder / "models"
    assert not models.exists() and "runs" not in capsys.readouterr().out.split("results in")[1].split("\n", 1)[1].split("done")[0]
    assert steps.main(walk) == 0
    assert_same_runs(models, one_by_one)
    (counted,) = nbformat.read(models.parent / "notebooks" / "01_count.ipynb", 4).cells[-1].outputs
    assert counted["data"]["text/plain"] == "6"

    weights = next(models.glob("student-*/weights.safetensors"))
    owned = json.loads((models.parent / "steps.json").read_text())["steps"]["runs"]["outputs"]
    assert os.path.relpath(weights, models.parent) in owned and len(owned) > 25
    shutil.rmtree(weights.parent)
    capsys.readouterr()
    assert steps.main(walk) == 0
    told = capsys.readouterr().out
    assert "is missing" in told and told.count("unchanged") == 2  # the notebook reads the same run again
    assert_same_runs(models, one_by_one)

    monkeypatch.setattr(cluster, "make_runs", lambda *_: [Outcome("student-1", "out of memory")])
    shutil.rmtree(weights.parent)
    assert steps.main(walk) == 1 and "sos: student-1: out of memory" in capsys.readouterr().err
    monkeypatch.setattr(cluster, "make_runs", lambda *_: [Outcome("student-1", stopped="in time")])
    assert steps.main(walk) == 0 and "the same command goes on from here" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_workers_run_goes_on_from_its_checkpoint(one_by_one, tiny_cohort):
    """The mark that only the checkpoint bears is in the result, which is otherwise as if nothing had been killed."""
    study = Study(tiny(baseline=tiny().baseline.with_(epochs=40)), tiny_cohort, device="cpu")
    jobs = [grid.Job(study.profile.run("baseline"))]
    told = []
    with cluster.cluster(workers=2) as client:
        processes = client.run(os.getpid)
        maker = threading.Thread(target=lambda: told.extend(make_runs(client, study, jobs)))
        maker.start()
        partial = wait_for(lambda: next((study.folder / "models").glob(".*.partial"), None))
        checkpoint = partial / "checkpoint.pt"
        wait_for(checkpoint.is_file)
        (worker,) = [address for address, tasks in client.processing().items() if tasks]
        os.kill(processes[worker], signal.SIGKILL)
        with alone(partial.with_name(partial.name.replace(".partial", ".lock"))):  # ours once the run has ended with its worker
            state = torch.load(checkpoint, weights_only=True)
            begun = len(state["history"])
            assert 1 <= begun < 40
            torch.save(state | {"seconds": 5e6}, checkpoint)
            time.sleep(6)  # in which the second attempt comes and has to wait
            assert len(torch.load(checkpoint, weights_only=True)["history"]) == begun and maker.is_alive()
        maker.join(PATIENCE_S)
    assert told == [Outcome(told[0].name)]
    run = Run(study.folder / "models" / told[0].name)
    assert 5e6 < run.environment["seconds"] < 5e6 + 600 and len(run.history) == 40
    os.environ["SOS_HOME"] += "/undisturbed"
    undisturbed = Study(study.profile, tiny_cohort, device="cpu").baseline()
    assert undisturbed.environment["seconds"] < 600 and undisturbed.name == run.name
    for file in ("predictions.csv", "history.csv", "weights.safetensors"):
        assert (undisturbed.path / file).read_bytes() == (run.path / file).read_bytes()


@pytest.mark.slow
def test_a_scheduler_and_workers_that_run_already(tiny_cohort, tmp_path, monkeypatch, capfd):
    """A student that cannot begin as it is told fails alone, is told in one line, and makes the exit status 1."""
    monkeypatch.setitem(config.PROFILES, "tiny", tiny(student=tiny().student.with_(backbone="resnet18_half", student_init="teacher"),
                                                      ablation_seeds=()))
    monkeypatch.setattr(cluster, "ANSWER_S", PATIENCE_S)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(tmp_path / "scheduler.json")]
    join = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(tmp_path / "scheduler.json"), "--nthreads", "1",
            "--nworkers", "2", "--no-dashboard"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet) for command in (begin, join)]
    try:
        wait_for((tmp_path / "scheduler.json").is_file)
        address = wait_for(lambda: address_in(tmp_path / "scheduler.json"))
        assert cli.main(["grid", "--profile", "tiny", "--cohort", str(tiny_cohort), "--scheduler", address]) == 1
        said = capfd.readouterr()
        assert said.out == "" and said.err.startswith("sos: student-") and said.err.count("\n") == 1
        assert "needs the teacher's backbone resnet16_half, not resnet18_half" in said.err
        made = (Study("tiny", tiny_cohort).folder / "models").glob("[!.]*")
        assert sorted(path.name.partition("-")[0] for path in made) == ["baseline", "student", "teacher", "teacher"]  # the student that looks twice, and the teacher that leaks
        assert cli.main(["grid", "--profile", "tiny", "--scheduler", address, "--runs-per-gpu", "2"]) == 2
        assert "no worker of" in (said := capfd.readouterr().err) and said.count("\n") == 1
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


def address_in(file: Path) -> str:
    try:
        return json.loads(file.read_text())["address"]
    except ValueError:  # half written
        return ""


def wait_for(thing):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := thing():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come in time")


# ---- one run on a worker -------------------------------------------------------------------------------------------


def order(study, **changes) -> Order:
    name = "teacher-000000000000"
    return replace(Order(name, study.store.digest, study.profile, str(study.manifest), study.profile.run("teacher"), True, os.environ["SOS_HOME"], float("inf"),
                         training_code()), **changes)


@pytest.mark.parametrize(("gib", "runs"), [((139.8,), 6), ((23.6,), 3), ((79.2, 15.7), 2), ((3.9,), 1)])
def test_no_more_runs_go_side_by_side_than_a_gpu_has_room_for(gib, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gib))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=int(gib[i] * 2**30)))
    assert cluster.room_for_runs(replace(config.get_profile("paper"), at_once=6, run_gib=6.0)) == runs


def test_the_road_trains_as_many_runs_side_by_side_as_a_gpu_has_room_for(monkeypatch):
    asked = []

    @contextmanager
    def room(**share):
        asked.append(share)
        yield

    for name, stands_in in (("visible_gpus", lambda: ["0"]), ("room_for_runs", lambda profile: 3), ("cluster", room),
                            ("make_runs", lambda client, study, jobs, runs_per_gpu: asked.append(runs_per_gpu) or [])):
        monkeypatch.setattr(cluster, name, stands_in)
    steps.Road.train(SimpleNamespace(profile=tiny()), None, [])
    assert asked == [{"runs_per_gpu": 3}, 3]


def test_the_deadline_reaches_a_run(tiny_cohort):
    study = Study("tiny", tiny_cohort)
    told = carry_out(order(study, deadline=time.time() + 0.5), [])
    assert told.stopped == "stopped in time after epoch 1 of 2 of the teacher; the next call goes on" and not told.error
    (checkpoint,) = (study.folder / "models").glob(".teacher-*.partial/checkpoint.pt")
    assert len(torch.load(checkpoint, weights_only=True)["history"]) == 1
    assert carry_out(order(study, deadline=time.time() - 1), []).stopped  # no process is started for this one


def test_a_grid_out_of_time_ends_well_and_says_what_is_left(tiny_cohort, capfd):
    assert cli.main(["grid", "--profile", "tiny", "--cohort", str(tiny_cohort), "--stop-after", "0"]) == 0
    assert capfd.readouterr().err == "stopped in time with 6 of 6 runs left; the next call goes on\n"


def test_a_fault_of_the_software_is_told_with_its_last_line(tiny_cohort, capfd):
    with pytest.raises(RuntimeError, match=r"its process ended with status 1: TypeError: str expected, not int"):
        carry_out(order(Study("tiny", tiny_cohort), home=3), [])
    assert "Traceback" in capfd.readouterr().err


def test_a_death_is_told_in_the_words_of_its_own_run(tmp_path, monkeypatch, capfd):
    child = tmp_path / "child"
    child.write_text(f"#!{sys.executable}\nimport pickle, sys\npickle.load(sys.stdin.buffer)\nprint('of the first', file=sys.stderr)\n"
                     "print('{}', flush=True)\npickle.load(sys.stdin.buffer)\nsys.exit('of the second')\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    maker = cluster.Maker("")
    assert maker.make(SimpleNamespace(name="a")) == Outcome("a")
    with pytest.raises(RuntimeError, match="its process ended with status 1: of the second"):
        maker.make(SimpleNamespace(name="b"))
    assert capfd.readouterr().err == "of the second\n"


def test_an_interpreter_makes_one_run_after_the_other_as_long_as_it_lives(one_by_one, tiny_cohort, monkeypatch):
    """The bytes are those of runs made in one process, whichever the interpreter made before; a dead one and one of other code are not used again."""
    monkeypatch.setattr(cluster, "_IDLE", [])
    study = Study("tiny", tiny_cohort)
    for role in ("baseline", "teacher"):
        assert carry_out(order(study, config=study.profile.run(role)), []) == Outcome("teacher-000000000000")
        (maker,) = cluster._IDLE
        first = maker if role == "baseline" else first
    assert maker is first
    for run in (study.baseline(), study.teacher()):  # found on disk
        assert (run.path / "predictions.csv").read_bytes() == (one_by_one / run.name / "predictions.csv").read_bytes()
    assert "another version" in carry_out(order(study, code="older"), []).error
    assert first.child.poll() is not None
    (other,) = cluster._IDLE
    other.child.kill()
    other.child.wait()
    assert carry_out(order(study), []) == Outcome("teacher-000000000000") and cluster._IDLE != [other]
    cluster._IDLE.pop().end()


def test_those_with_the_most_work_behind_them_begin_first():
    profile = config.get_profile("quick")
    jobs = grid.plan(profile)
    first = grid.priorities(jobs)
    for place, job in enumerate(jobs):
        assert first[place] >= grid.work(job.config)
        assert all(first[need] > first[place] for need in job.needs)
    leaking = next(place for place, job in enumerate(jobs) if job.config.leak)
    teacher = next(place for place, job in enumerate(jobs) if job.config == profile.run("teacher"))
    assert first.index(max(first)) == teacher and first[leaking] < first[jobs.index(grid.Job(profile.run("baseline")))]


def test_work_knows_what_each_backbone_costs():
    assert tuple(grid.PIXEL) == config.BACKBONES
    student = config.get_profile("paper").run("student")
    dear, fine, coarse = (grid.work(student.with_(**changes)) for changes in ({"backbone": "resnet50"}, {}, {"output_stride": 32}))
    assert dear > fine > coarse > 0


@pytest.mark.parametrize(("changes", "words"), [({"code": "older"}, "another version"), ({"manifest": ""}, "sees no cohort below")])
def test_a_worker_that_differs_from_this_machine_trains_nothing(changes, words, tiny_cohort):
    with pytest.raises(RunError, match=words):
        cluster._obtain(order(Study("tiny", tiny_cohort), **changes))


def test_runs_of_the_same_images_are_made_for_one_study(tiny_cohort, monkeypatch):
    monkeypatch.setattr(cluster, "_LAST", {})
    first = order(Study("tiny", tiny_cohort))
    study = cluster._study_of(first)
    assert cluster._study_of(replace(first, name="other", config=study.profile.run("student"))) is study
    for changes in ({"data": "other"}, {"home": "other"}, {"profile": replace(study.profile, bootstrap=77)}):
        assert cluster._study_of(replace(first, **changes)) is not study
        study = cluster._study_of(first)
    with pytest.raises(RunError, match="sees no cohort"):
        cluster._study_of(replace(first, manifest=""))
    assert not cluster._LAST  # neither of what was nor of what is not


def test_makers_of_runs_and_notebooks_ask_for_large_pages_unless_told_otherwise(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: asked.append(options["env"]["GLIBC_TUNABLES"]))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cluster.Maker("")
    notebook.Apart(tmp_path / "a.ipynb", tmp_path, {})
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    cluster.Maker("")
    notebook.Apart(tmp_path / "a.ipynb", tmp_path, {})
    assert asked == ["glibc.malloc.hugetlb=1"] * 2 + ["glibc.malloc.check=1"] * 2


# ---- how tasks are carried out, with runs that only pretend ---------------------------------------------------------

AT_WORK = {"now": 0, "most": 0, "attempts": []}
COUNT = threading.Lock()


def pretend(order, needs):
    """In place of `carry_out`: counts. Seed 7 fails as a user's error does, seed 8 as a process that dies, seed 9 dies once."""
    with COUNT:
        AT_WORK["attempts"].append((kind(order.config), order.config.seed))
        AT_WORK["now"] += 1
        AT_WORK["most"] = max(AT_WORK["most"], AT_WORK["now"])
        tried = AT_WORK["attempts"].count((kind(order.config), order.config.seed))
    time.sleep(0.1)
    with COUNT:
        AT_WORK["now"] -= 1
    if order.config.seed == 8 or order.config.seed == 9 and tried == 1:
        raise RuntimeError("its process ended with signal 9")
    for need in needs:
        if need.error:
            return Outcome(order.name, need.error)
    if order.config.seed == 7:
        return Outcome(order.name, "bad setting")
    (Path(order.home) / "runs" / "tiny" / "models" / order.name).mkdir(parents=True)
    (Path(order.home) / "runs" / "tiny" / "models" / order.name / "config.json").touch()
    return Outcome(order.name)


@pytest.fixture
def pretended(monkeypatch):
    """A cluster of one worker with four threads and one GPU, all in this process."""
    from distributed import Client, LocalCluster

    monkeypatch.setattr(cluster, "carry_out", pretend)
    monkeypatch.setattr(Study, "store", type("Store", (), {"digest": "pixels"}))
    AT_WORK.update(now=0, most=0, attempts=[])
    kind = dict(n_workers=1, threads_per_worker=4, processes=False, resources={"GPU": 1}, dashboard_address=None)
    with LocalCluster(**kind) as ours, Client(ours) as client:
        yield client


def kind(made: config.RunConfig) -> str:
    """The role of a run, and of the student that looks twice the name of its model; `leak` of the teacher that makes that mistake."""
    return "leak" if made.leak else "zoom" if made.looks == 2 else made.role


@pytest.mark.parametrize(("per_gpu", "most"), [(2, 2), (1, 1), (None, 4)])
def test_runs_on_one_gpu_at_once_are_as_many_as_asked_for(pretended, per_gpu, most):
    jobs = [grid.Job(tiny().run("baseline", 10 + seed)) for seed in range(8)]
    told = make_runs(pretended, Study("tiny"), jobs, per_gpu)
    assert len(told) == 8 and not any(outcome.error for outcome in told)
    assert AT_WORK["most"] == most


def test_failed_runs_stop_only_what_needs_them(pretended):
    """A user's error is not tried again, a death is; a student of a failed teacher says whose fault it is."""
    jobs = grid.plan(tiny(seeds=(7, 8, 9, 10), ablation_seeds=()))
    said = []
    told = make_runs(pretended, Study("tiny"), jobs, progress=said.append)
    ends = {(kind(job.config), job.config.seed): outcome for job, outcome in zip(jobs, told, strict=True)}
    names = {key: outcome.name for key, outcome in ends.items()}
    for role in ("teacher", "baseline"):
        assert ends[role, 7].error == "bad setting" and ends[role, 8].error == "its process ended with signal 9"
        assert [AT_WORK["attempts"].count((role, seed)) for seed in (7, 8, 9, 10)] == [1, config.RUN_ATTEMPTS, 2, 1]
    for student in ("student", "zoom"):
        assert [ends[student, seed].error for seed in (7, 8)] == [f"not made, because it needs {names['teacher', seed]}" for seed in (7, 8)]
    assert ("student", 8) not in AT_WORK["attempts"]
    made = {names[model, seed] for model in config.MODELS for seed in (9, 10)}
    assert {outcome.name for outcome in told if not outcome.error} == made == set(said)
    assert AT_WORK["attempts"].index(("student", 10)) > AT_WORK["attempts"].index(("teacher", 10))


def test_a_terminal_is_told_each_run_that_is_made(pretended, monkeypatch, capsys):
    monkeypatch.setitem(config.PROFILES, "tiny", tiny(seeds=(10, 7), ablation_seeds=()))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = cli.make_grid(pretended, "tiny", cli.build_parser().parse_args(["grid"]))
    names = [outcome.name for outcome in told if not outcome.error]
    lines = [line.strip() for line in re.split(r"[\r\n]", capsys.readouterr().err)]
    assert len(names) == 5 and sorted(line for line in lines if line in {outcome.name for outcome in told}) == sorted(names)


def test_a_run_made_elsewhere_than_here_is_an_error(pretended, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "home", lambda: tmp_path / "elsewhere")
    (told,) = make_runs(pretended, Study("tiny"), [grid.Job(tiny().run("baseline", 10))])
    assert "workers must share this folder" in told.error


# ---- clusters ------------------------------------------------------------------------------------------------------


def test_cores_and_gpus_are_shared_out_among_workers():
    def seen(*args):
        return [{**worker["options"]["env"], **worker["options"].get("resources", {}), "at_once": worker["options"]["nthreads"]}
                for worker in local_workers(*args).values()]

    assert seen([], 8) == [{"OMP_NUM_THREADS": 8, "at_once": 1}]
    assert seen([], 8, 3) == [{"OMP_NUM_THREADS": 2, "at_once": 1}] * 3
    assert seen([], 2, 5) == [{"OMP_NUM_THREADS": 1, "at_once": 1}] * 5
    gpus = [{"OMP_NUM_THREADS": 4, "CUDA_VISIBLE_DEVICES": name, "GPU": 1, "at_once": 2} for name in ("3", "5")]
    assert seen(["3", "5"], 16, None, 2) == gpus
    assert seen(["3", "5"], 8, 1, 2) == gpus[:1]
    for args in ([], 8, None, 2), (["0"], 8, 2, None):
        with pytest.raises(ConfigError):
            local_workers(*args)


def test_a_slurm_jobs_script():
    settings = ["queue=gpu", "cores=8", "memory=32GB", "walltime=04:00:00", "job_extra_directives=['--gres=gpu:1']"]
    with slurm_cluster(settings, 2) as slurm:
        lines = slurm.job_script().splitlines()
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 04:00:00", "#SBATCH --gres=gpu:1",
                 "export OMP_NUM_THREADS=4"):
        assert line in lines, line
    command = lines[-1].split()
    assert command[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    assert command[-4:] == ["--nthreads", "2", "--resources", "GPU=1"]
    with slurm_cluster(["cores=8", "memory=32GB", "processes=4"]) as slurm:
        script = slurm.job_script()
    assert "export OMP_NUM_THREADS=2\n" in script and "--nworkers 4" in script and script.split()[-2:] == ["--nthreads", "1"]


@pytest.mark.slow
def test_slurm_jobs_make_a_run(tiny_cohort, tmp_path, monkeypatch, capfd):
    """A stand-in for Slurm, which starts each script that it is handed at once; the jobs' workers are real, and gone in the end."""
    monkeypatch.setitem(config.PROFILES, "tiny", tiny(ablation_seeds=()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sbatch").write_text('#!/bin/bash\ncp "$1" script\nsetsid bash script > job.log 2>&1 &\n'
                                     'echo $! >> submitted\necho "Submitted batch job $!"\n')
    (tmp_path / "scancel").write_text('#!/bin/bash\nfor job in "$@"; do kill -- "-$job"; echo "$job" >> cancelled; done\n')
    for name in ("sbatch", "scancel"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    args = ["grid", "--profile", "tiny", "--cohort", str(tiny_cohort), "--slurm", "cores=1", "memory=4GB", "walltime=01:00:00", "interface=lo"]
    assert cli.main(args) == 0
    made = (Study("tiny", tiny_cohort).folder / "models").glob("[!.]*")
    assert sorted(path.name.partition("-")[0] for path in made) == ["baseline", "student", "student", "teacher", "teacher"]
    assert (tmp_path / "submitted").read_text().split() and "SBATCH -t 01:00:00" in (tmp_path / "script").read_text()
    assert (tmp_path / "cancelled").read_text().split() == (tmp_path / "submitted").read_text().split()


@pytest.mark.parametrize(("args", "words"), [
    (["--slurm", "cores"], "KEY=VALUE"),
    (["--slurm", "queue=gpu"], "cores and memory"),
    (["--slurm", "cores=8", "memory=1GB", "quue=gpu"], "quue"),
    (["--slurm", "cores=8", "memory=1GB", "processes=2", "--runs-per-gpu", "2"], "one process"),
    (["--slurm", "cores=8", "memory=1GB", "processes=0"], "processes=0"),
    (["--slurm", "cores=8", "memory=1GB", "walltime=01:00:00"], "start this on a login node"),
    (["--workers", "0"], "--workers 0 must be at least 1"),
    (["--scheduler", "tcp://127.0.0.1:9"], "start one with `dask scheduler`"),
    (["--scheduler", "nonsense://x"], "start one with `dask scheduler`"),
    (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "has the workers it has"),
])
def test_a_cluster_that_cannot_be_had_is_one_line(args, words, monkeypatch, capfd):
    monkeypatch.setattr(cluster, "ANSWER_S", 1)
    assert cli.main(["grid", "--profile", "tiny", *args]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith("sos: ") and words in said.err and said.err.count("\n") == 1


def test_without_dask_the_grid_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert cli.main(["grid", "--profile", "tiny"]) == 2
    assert capfd.readouterr().err == "sos: this needs dask; install it with `pip install distributed dask-jobqueue`\n"


def test_time_runs_out_while_no_worker_comes(tiny_cohort, monkeypatch):
    """As in a queue of Slurm that is full."""
    from distributed import Client, LocalCluster

    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    monkeypatch.setenv("SOS_DEADLINE", str(time.time() + 0.3))
    study = Study("tiny", tiny_cohort)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as ours, Client(ours) as client:
        told = make_runs(client, study, grid.plan(study.profile))
    assert len(told) == 6 and all(outcome.stopped and not outcome.error for outcome in told)


def test_cancelled_tasks_are_errors(tiny_cohort):
    from distributed import Client, Future, LocalCluster

    study = Study("tiny", tiny_cohort)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as ours, Client(ours) as client:
        jobs = grid.plan(study.profile)

        def cancel():
            wait_for(lambda: len(client.futures) == len(jobs))  # on a busy machine that takes its time
            client.cancel([Future(key, client=client) for key in list(client.futures)])

        stop = threading.Thread(target=cancel)
        stop.start()
        told = make_runs(client, study, jobs)
        stop.join()
    assert [outcome.error for outcome in told[:2]] == ["cancelled on the cluster; the same command goes on"] * 2
    assert all(outcome.error and not outcome.stopped for outcome in told)


# ---- the lock ------------------------------------------------------------------------------------------------------

HOLD = """import sys, time; from pathlib import Path; from sos.files import alone
with alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"""


def test_a_lock_is_waited_for_and_freed_by_the_death_of_its_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOOK_AGAIN_S", 0.05)
    lock = tmp_path / "new" / ".run.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutOfTime, match="waiting for run, which another process makes"), alone(lock, time.time() + 0.2):
            raise AssertionError("two hold it")
        assert lock.exists()
        holder.kill()
        holder.wait()
        with alone(lock, time.time() + 5):
            assert lock.exists()
    assert not lock.exists()


def test_a_lock_whose_file_was_taken_away_meanwhile_is_not_one(tmp_path, monkeypatch):
    """Between our opening and locking the file its holder removed it, and a third process made a new one: we have to look again."""
    monkeypatch.setattr(files, "LOOK_AGAIN_S", 0.01)
    lock, taken = tmp_path / ".run.lock", []
    take = files._take

    def late(file):
        if not taken:
            lock.unlink()
            lock.touch()
        taken.append(take(file))
        return taken[-1]

    monkeypatch.setattr(files, "_take", late)
    with alone(lock):
        assert taken == [True, True]


def test_a_run_made_while_we_waited_is_not_made_again(one_by_one, tiny_cohort, monkeypatch):
    """The other process finishes the run just as we get its lock."""
    study = Study("tiny", tiny_cohort, device="cpu")
    monkeypatch.setattr(Study, "_train", lambda *_: pytest.fail("trained twice"))

    class Finishing:
        def __init__(self, lock, deadline):
            self.name = lock.name[1:-len(".lock")]

        def __enter__(self):
            shutil.copytree(one_by_one / self.name, study.folder / "models" / self.name)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("sos.study.training.alone", Finishing)
    assert study.baseline().path == study.folder / "models" / study.baseline().name
