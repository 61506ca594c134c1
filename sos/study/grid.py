"""Every run of a profile: which there are and what each needs (`plan`), making them (`run_grid`), finding those on disk (`find`).

The plan is data and knows nothing of how it is carried out: here one run after the other, in the room `cluster` by many processes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..config import MODELS, ROLES, TAUGHT_ROLES, Profile, RunConfig
from .runs import Run, find_runs, run_name, training_code
from .training import Study

# what a pixel costs against one of resnet18: its operations on a graphics card, or its bytes where those take longer, as counted by
# tests/benchmarks/bench_floor.py; and at stride 32 against one at 16
PIXEL = {"resnet16_half": 0.16, "resnet16_pool_first": 0.16, "resnet18_half": 0.25, "resnet18": 1.0, "resnet50": 2.1, "efficientnet_b0": 1.0,
         "convnext_tiny": 2.3, "convnext_tiny_attention": 2.3}
COARSE = 0.6


@dataclass(frozen=True)
class Job:
    """One run to be made. `needs`: places in the plan of the jobs that must be finished before; always earlier ones."""

    config: RunConfig
    keep_weights: bool = True
    needs: tuple[int, ...] = ()


def plan(profile: Profile) -> list[Job]:
    """All runs of a profile, each once: teachers, baselines, students and competitors of all seeds, then ablations, other networks and the
    leaking teacher of notebook 02, whose weights nobody needs unless they teach.

    A student or a detector needs its teacher, see `Profile.teacher_of`. An ablation that equals a main run is that run.
    """
    main = [profile.run(model, seed) for model in MODELS for seed in profile.seeds]
    competitors = [config for name in profile.competitors_trained for config in profile.competitors()[name]]
    varied = [config for ablation in profile.ablations().values() for configs in ablation.rows.values() for config in configs]
    varied += [config for configs in profile.networks().values() for config in configs] + [profile.run("teacher").with_(leak=True)]
    taught = [profile.teacher_of(config) for config in varied if config.role in TAUGHT_ROLES]  # their weights are needed
    kept = list(dict.fromkeys(main + competitors + taught))
    kept.sort(key=lambda config: ROLES.index(config.role))
    order = kept + [config for config in dict.fromkeys(varied) if config not in kept]
    jobs = []
    for config in order:
        needs = (order.index(profile.teacher_of(config)),) if config.role in TAUGHT_ROLES else ()
        jobs.append(Job(config, config in kept, needs))
    return jobs


def priorities(jobs: list[Job]) -> list[float]:
    """How much work waits for each job of a plan: its own and that of the longest row of jobs that need it. Where those with the most begin first,
    none is left to run alone at the end."""
    waiting = [work(job.config) for job in jobs]
    for place in reversed(range(len(jobs))):
        for need in jobs[place].needs:
            waiting[need] = max(waiting[need], work(jobs[need].config) + waiting[place])
    return waiting


def work(config: RunConfig) -> float:
    """A rough measure of a training: pixels that it shows to networks for each image of the cohort, in millions, times what a pixel costs."""
    seen = {"teacher": config.window_px**2, "detector": config.frame_px**2, "baseline": config.frame_px**2,
            "student": config.frame_px**2 + config.window_px**2 / 3}[config.role]  # a teacher's forward pass is a third of a step
    if config.looks == 2:
        seen = config.glance_px**2 + config.window_px**2 * (4 / 3 if config.role == "student" else 1)
    return config.epochs * seen / 1e6 * PIXEL[config.backbone] * (1.0 if config.output_stride == 16 else COARSE)


def run_grid(profile: str | Profile, cohort: str = "", progress: Callable[[int, int], None] | None = None) -> list[Run]:
    """Make every run of a profile on a cohort, one after the other, and return them in the order of the plan.

    Finished runs are found on disk, an unfinished one goes on from its last epoch. `progress(done, total)` is called after each run.
    Raises OutOfTime where the deadline of `--stop-after` comes first; the next call goes on from there.
    """
    study = Study(profile, cohort)
    jobs, runs = plan(study.profile), []
    for job in jobs:
        runs.append(study.obtain(job.config, keep_weights=job.keep_weights))
        if progress is not None:
            progress(len(runs), len(jobs))
    return runs


def run_group(study: Study, name: str) -> list[Run]:
    """Make or find the runs of one ablation of the study's profile, by its name, in the order of the plan."""
    wanted = {config for configs in study.profile.ablations()[name].rows.values() for config in configs}
    return [study.obtain(job.config, keep_weights=job.keep_weights) for job in plan(study.profile) if job.config in wanted]


def find(study: Study, configs: list[RunConfig]) -> list[Run]:
    """Those runs of `configs` that are finished on disk, in order. Trains nothing and draws no cohort.

    Only runs of the present training code count, on the study's cohort where it is there, else on that of the newest run.
    """
    data = _data(study)
    runs = []
    for config in configs if data else []:
        teacher = find(study, [study.profile.teacher_of(config)]) if config.role in TAUGHT_ROLES else None
        if teacher == []:
            continue
        name = run_name(config, data, study.profile.scheme, teacher[0].name if teacher else None)
        path = study.folder / "models" / name
        if (path / "config.json").is_file():
            runs.append(Run(path))
    return runs


def finished(study: Study, jobs: list[Job]) -> bool:
    """Whether all runs of `jobs` are on disk, with weights where they are kept; looks, and makes nothing."""
    runs = find(study, [job.config for job in jobs])
    return len(runs) == len(jobs) and all(run.weights.is_file() for run, job in zip(runs, jobs, strict=True) if job.keep_weights)


def has_cohort(study: Study) -> bool:
    """Whether the study's images are there, so that nothing would have to be drawn."""
    return study.manifest is not None or (study.folder / "cohort" / "manifest.csv").is_file()


def _data(study: Study) -> str | None:
    if has_cohort(study):
        return study.store.digest
    code = training_code()
    known = [run for run in find_runs(study.folder / "models") if run.record["code"] == code]
    return known[-1].record["data"] if known else None
