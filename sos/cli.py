"""The command `sos`. Each command imports the room that does its work when it is called, so that `--help` answers at once."""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from . import __version__, config
from .errors import OutOfTime, SOSError
from .rows import JSON_KEYS, json_line, tabled, whole_file


def phantom(args) -> int:
    """Draw a virtual cohort as CT DICOM files and screenshots, with boxes, masks and a manifest."""
    from .phantom.write import write_cohort

    print(write_cohort(args.out, args.patients, args.seed, progress=sys.stderr.isatty(), difficulty=args.difficulty, volumes=args.volumes))
    return 0


def audit(args) -> int:
    """Check a cohort: exit 0 where it is clean, 1 with findings, 2 where it cannot be used."""
    from tqdm import tqdm

    from .cohort.audit import audit as check

    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        report = check(args.manifest, progress=progress)
    print(report.to_json() if args.json else audit_text(report))
    return report.exit_code


def audit_text(report) -> str:
    """An audit's report as lines: counts first, then each finding with what to do about it."""
    counts = report.counts
    lines = [f"{report.manifest}: {counts['rows']} rows, {counts['patients']} patients, {counts['images_readable']} of {counts['images']} "
             f"images readable; {counts['errors']} errors, {counts['warnings']} warnings"
             + ("" if report.usable else "; this cohort cannot be used")]
    for finding in json.loads(report.to_json())["findings"]:
        place = f"row {finding['row']}, " if finding["row"] else ""
        lines.append(f"{finding['severity']}: {place}{finding['file']}: {finding['what']}; {finding['advice']}")
    return "\n".join(lines)


def predict(args) -> int:
    """Stage images: any DICOM file, folder with a DICOM series, PNG or JPEG; one row an input, exit 1 if any failed."""
    from .predict import predict_paths

    rows = predict_paths(args.paths, weights=args.weights, cam_dir=args.cam, dicom_dir=args.dicom)
    if sys.stderr.isatty() and (args.out or not sys.stdout.isatty()):
        from tqdm import tqdm

        rows = tqdm(rows, total=len(args.paths), unit="image")
    failed = 0
    with whole_file(args.out) if args.out else contextlib.nullcontext(sys.stdout) as file:
        if args.out or not args.json:
            rows = tabled(rows, file)
        for row in rows:
            failed += bool(row["error"])
            if args.json:
                print(json_line(row), flush=True)
    if args.out:
        print(f"{args.out}: {len(args.paths) - failed} of {len(args.paths)} staged", file=sys.stderr)
    return 1 if failed else 0


def train(args) -> int:
    """Train one run of a profile, or find it where it is finished; prints its folder and its accuracy."""
    profile, overrides = profile_of(args), config.parse_overrides(args.set)  # a slip is told before torch is loaded
    from .study.training import train as fit

    run = fit(args.role, profile, args.cohort, args.seed, overrides, args.devices)
    accuracy = run.metrics["accuracy"]
    print(f"{run.path}\naccuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}) on held-out images")
    return 0


def grid(args) -> int:
    """Train every run of a profile: teachers, baselines, students and ablations over all seeds, on this machine, its GPUs, or a cluster.

    Finished runs are found, unfinished ones go on. Exit 1 where a run failed; the others are made nevertheless.
    """
    profile = profile_of(args)
    from .study.cluster import cluster

    with cluster(args.workers, args.runs_per_gpu, args.scheduler, args.slurm) as client:
        outcomes = make_grid(client, profile, args)
    for outcome in outcomes:
        if outcome.error:
            print(f"sos: {outcome.name}: {outcome.error}", file=sys.stderr)
    if any(outcome.error for outcome in outcomes):
        return 1
    left = sum(bool(outcome.stopped) for outcome in outcomes)
    if left:
        raise OutOfTime(f"stopped in time with {left} of {len(outcomes)} runs left; the next call goes on")
    return 0


def make_grid(client, profile: str, args) -> list:
    """The plan's outcomes; on a terminal one line a run that is made, below a bar."""
    from tqdm import tqdm

    from .study.cluster import make_runs
    from .study.grid import plan
    from .study.training import Study

    study = Study(profile, args.cohort)
    jobs = plan(study.profile)
    with tqdm(total=len(jobs), unit="run", leave=False, disable=not sys.stderr.isatty()) as bar:

        def made(name):
            bar.update()
            if not bar.disable:
                bar.write(name, file=sys.stderr)

        return make_runs(client, study, jobs, args.runs_per_gpu, made)


def export(args) -> int:
    """Write a student as ONNX for other systems, with the preprocessing in words, numbers and code: it gives the probabilities of `sos predict`."""
    from .export import export_onnx

    print(export_onnx(args.run, args.out))
    return 0


def release(args) -> int:
    """Make the student of a run the weights that ship inside the package, with their model card."""
    from .study.runs import Run
    from .study.runs import release as ship

    print(ship(Run(Path(args.run))))
    return 0


def show_config(args) -> int:
    """Print every number of a profile as JSON."""
    print(json.dumps(config.get_profile(profile_of(args)).resolved(), indent=2))
    return 0


def profile_of(args) -> str:
    """The profile asked for, else what `run_all.sh` would take on this machine. Sets the deadline of `--stop-after` on the way."""
    if getattr(args, "stop_after", None) is not None:
        os.environ["SOS_DEADLINE"] = f"{time.time() + 60 * args.stop_after:.0f}"
    if args.profile:
        return config.get_profile(args.profile).name
    from .steps import default_profile

    return default_profile()


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="sos", epilog="example: sos predict scan.dcm --cam pictures", description="Stages spheno-occipital "
                                     "synchondrosis fusion on mid-sagittal CBCT images. For research and teaching, not for clinical decisions.")
    parser.add_argument("--version", action="version", version=f"sos {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, do, example):
        brief = do.__doc__.partition(":")[0].rstrip(".")
        sub = commands.add_parser(name, help=brief, description=do.__doc__, epilog=f"example: {example}")
        sub.set_defaults(do=do)
        return sub

    sub = command("phantom", phantom, "sos phantom cohort --patients 200 --seed 7")
    sub.add_argument("out", metavar="OUT", help="folder of the new cohort")
    sub.add_argument("--patients", type=int, default=96, help="default: %(default)s")
    sub.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    sub.add_argument("--difficulty", type=float, default=1.0,
                     help="0: as easy as a textbook picture; 1: the standard cohort; 2: hard (default: %(default)g)")
    sub.add_argument("--volumes", action="store_true", help="whole heads as series of axial slices, about 150 MB each")

    sub = command("audit", audit, "sos audit cohort/manifest.csv")
    sub.add_argument("manifest", metavar="MANIFEST", help="CSV file of a cohort")
    sub.add_argument("--json", action="store_true", help="one JSON object in place of text")

    sub = command("predict", predict, "sos predict scan.dcm series/ slice.png --out stages.csv --cam pictures")
    sub.add_argument("paths", metavar="PATH", nargs="+", help="DICOM file, folder with a DICOM series, PNG or JPEG")
    sub.add_argument("--weights", metavar="RUN", help="folder of a run, or `released` (default: the best student under runs/, else the released one)")
    sub.add_argument("--out", metavar="CSV", help="write the table to this file, not to standard output")
    sub.add_argument("--cam", metavar="DIR", help="also draw where the network looked, one picture an input")
    sub.add_argument("--dicom", metavar="DIR", help="also write, for each DICOM input, a secondary capture with the heat map and a structured report. "
                     "These two, and nothing else, carry the patient and study of their source, so that an archive files them there")
    sub.add_argument("--json", action="store_true", help="print one JSON object a line")

    def study_options(sub):
        sub.add_argument("--profile", help="smoke, quick, quick5, ablations or paper (default: paper with a CUDA device, else quick)")
        sub.add_argument("--cohort", default="", metavar="MANIFEST", help="your own cohort in place of the virtual one")
        sub.add_argument("--stop-after", type=float, metavar="MINUTES", help="end cleanly after this time; the same command goes on")

    sub = command("train", train, "sos train student --profile quick --seed 1 --set w_attn=0.5 --set lr=1e-3")
    sub.add_argument("role", choices=(*config.MODELS, "detector"), help="teacher: expert's crop; baseline: full image; student: full image, distilled; "
                     "zoom: distilled, looks twice; detector: finds the crop, which the teacher then stages")
    study_options(sub)
    sub.add_argument("--seed", type=int, help="default: the profile's first")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; `sos config` lists them")

    sub.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs, or CPU processes where there is none, that share each batch "
                     "of the run (default: %(default)s)")

    sub = command("grid", grid, "sos grid --profile paper --workers 4 --stop-after 60")
    study_options(sub)
    sub.add_argument("--workers", type=int, metavar="N", help="runs at once on this machine's cores (default: 1), GPUs to use (default: all), "
                     "or Slurm jobs (default: 1)")
    sub.add_argument("--runs-per-gpu", type=int, metavar="K", help="runs at once on each GPU (default: 1); workers of --scheduler must "
                     "declare theirs by `dask worker ... --resources GPU=1`")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="ADDRESS", default="", help="a running dask scheduler, such as tcp://node1:8786; its workers see "
                       "the same files as this machine")
    where.add_argument("--slurm", nargs="+", metavar="KEY=VALUE", help="start workers as Slurm jobs: cores=8 memory=32GB walltime=04:00:00 "
                       "queue=gpu and all else that dask-jobqueue's SLURMCluster takes")

    sub = command("export", export, "sos export released --out staging-onnx")
    sub.add_argument("run", metavar="RUN", help="folder of a student's or baseline's run, or the word `released`: the student that ships with sos")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder for the network and what describes it")

    sub = command("release", release, "sos release runs/paper/models/student-0123456789ab")
    sub.add_argument("run", metavar="RUN", help="folder of a student's run")

    sub = command("config", show_config, "sos config paper")
    sub.add_argument("profile", nargs="?", metavar="PROFILE", help="default: paper with a CUDA device, else quick")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: of this process); returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        status = args.do(args)
        sys.stdout.flush()
        return status
    except OutOfTime as error:
        print(error, file=sys.stderr)
        return 0
    except SOSError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no space, no permission, a folder in place of a file
        if error.filename is None:
            raise
        print(f"sos: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
