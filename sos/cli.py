"""The command `sos`. Each command imports the room that does its work when it is called, so that `--help` answers at once."""

import argparse
import contextlib
import gc
import json
import os
import shlex
import sys
import time
from pathlib import Path

from . import __version__, config
from .errors import ConfigError, OutOfTime, SOSError, said_of
from .rows import json_line, tabled, whole_file
from .stages import BASSED5, get_scheme


def phantom(args) -> int:
    """Draw a virtual cohort as CT DICOM files and screenshots, with boxes, masks and a manifest."""
    from .phantom.write import write_cohort

    print(write_cohort(args.out, args.patients, args.seed, progress=sys.stderr.isatty(), difficulty=args.difficulty, volumes=args.volumes))
    return 0


def audit(args) -> int:
    """Check a cohort: exit 0 where it is clean, 1 with findings, 2 where it cannot be used."""
    from tqdm import tqdm

    from .cohort.audit import audit as check

    check_target("--html", args.html)
    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        report = check(args.manifest, progress=shown_by(bar))
    if args.html:
        from .cohort.audit_page import write_page

        write_page(report, args.html)
    print(report.to_json() if args.json else report.to_text(args.all))
    return report.exit_code


def collect(args) -> int:
    """Write the manifest of a folder of images and a spreadsheet with columns of any names: exit 1 where rows had to be kept out.

    Columns are found by --columns or by well-known names, images by a column with their names or by the patient's identifier in names of
    folders and files. What was understood is printed, and why each row that was kept out was. Text as CSV or TSV, or XLSX.
    """
    from tqdm import tqdm

    from .cohort.audit import audit as check
    from .cohort.collect import collect as gather
    from .cohort.collect import pairs, value_maps
    from .cohort.words import spoken

    def bar(unit):
        return tqdm(unit=unit, leave=False, disable=not sys.stderr.isatty())

    with bar("row") as rows:
        done = gather(args.folder, args.table, args.out, columns=pairs(args.columns, "--columns"), values=value_maps(args.values), sheet=args.sheet,
                      header=args.header, months=args.months, dates=args.dates, box=args.box, keep=tuple(args.keep), match=args.match, into=args.into,
                      pseudonyms=args.pseudonyms, key=args.key, force=args.force, progress=shown_by(rows))
    print("\n".join([*done.mapping, *done.notes]))
    for number, reason in done.rejected[:20]:
        print(f"kept out: row {number}: {reason}")
    print(f"{done.manifest}: {spoken(done.rows)}, {done.patients} patients"
          + (f"; {spoken(len(done.rejected))} kept out, listed in {done.rejects}" if done.rejected else ""))
    if done.without_box:
        print(f"{spoken(done.without_box)} without a box, which must be drawn before a study can use them: in JupyterLab by sos.panels.review")
    with bar("image") as images:
        counts = check(done.manifest, progress=shown_by(images)).counts
    print(f"audit: {counts['images_readable']} of {counts['images']} images readable; {counts['errors']} errors, {counts['warnings']} warnings; "
          f"`sos audit {shlex.quote(str(done.manifest))}` lists them")
    return 1 if done.rejected else 0


@contextlib.contextmanager
def importing():
    """What is imported inside is not searched for garbage, of which there is none, neither meanwhile nor later: the start is sooner."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def check_target(option: str, path: str | None) -> None:
    """Look, before the work, at where its result goes. Raises ConfigError for a folder, or a file in a folder that is not there."""
    if path and Path(path).is_dir():
        raise ConfigError(f"{option} {path}: this is a folder; give the name of a file")
    if path and not Path(path).parent.is_dir():
        raise ConfigError(f"{option} {path}: its folder is not there; make it first")


def shown_by(bar):
    """What keeps a progress bar at (done, total)."""

    def progress(done, total):
        bar.total = total
        bar.update(done - bar.n)

    return progress


def predict(args) -> int:
    """Stage images: any DICOM file, folder with a DICOM series, PNG or JPEG; one row an input, exit 1 if any failed."""
    check_target("--out", args.out)
    with importing():
        from .cores import keep_freed_memory
        from .predict import predict_paths

    keep_freed_memory()
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


def suspects(args) -> int:
    """Say which images of a cohort to look at again: those whose stage or box the networks do not believe.

    Writes a table beside the manifest, by which the review tool orders the images, and prints the first of them.
    """
    profile = profile_of(args)
    check_target("--out", args.out)
    from tqdm import tqdm

    from .cohort.reviews import SUSPECTS
    from .study.suspects import suspects as judge
    from .study.training import Study

    with tqdm(total=args.folds, unit="fold", leave=False, disable=not sys.stderr.isatty()) as bar:
        table = judge(Study(profile, args.manifest), args.folds, progress=lambda *_: bar.update())
    out = args.out or str(Path(args.manifest).with_name(SUSPECTS))
    with whole_file(out) as file:
        table.to_csv(file, index=False, float_format="%.4g")
    for row in table.head(args.top).itertuples():
        print(f"{row.score:5.2f}  {row.patient_id}  {row.image}: {row.reasons or 'no single reason'}")
    print(f"{out}: {len(table)} images, the most suspicious first")
    return 0


def agreement(args) -> int:
    """Say how far readers agree: with each other and with the manifest, from the stages in the reviews beside it."""
    from .cohort.manifest import read_rows
    from .cohort.reviews import REVIEWS, read_reviews
    from .study.agreement import agreement as compare
    from .study.agreement import fleiss_kappa

    table, reviews, scheme = read_rows(Path(args.manifest)), read_reviews(Path(args.manifest).with_name(REVIEWS)), get_scheme(args.scheme)
    pairs = compare(table, reviews, scheme)
    for row in pairs.itertuples():
        known = f", {100 * row.agreement:.1f} % agree, kappa {row.kappa:.3f} ({row.low:.3f} to {row.high:.3f})" if row.images else ""
        print(f"{row.one} and {row.other}: {row.images} images{known}")
    if pairs.empty:
        print("nobody has read a stage yet")
    together = fleiss_kappa(table, reviews, scheme)
    if together["readers"] > 2:
        print(f"{together['readers']} readers: {together['images']} images, Fleiss' kappa {together['kappa']:.3f}")
    return 0


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

    sub = command("audit", audit, "sos audit cohort/manifest.csv --html audit.html")
    sub.add_argument("manifest", metavar="MANIFEST", help="CSV file of a cohort")
    sub.add_argument("--json", action="store_true", help="one JSON object in place of text")
    sub.add_argument("--all", action="store_true", help="text: every finding, not only the first lines of each kind")
    sub.add_argument("--html", metavar="PAGE", help="also write a page with charts and thumbnails, one file that needs no network")

    sub = command("collect", collect, "sos collect scans --table sheet.xlsx --columns patient_id=PatNr stage=Grade age_y=Age --values sex:1=M,2=F")
    sub.add_argument("folder", metavar="FOLDER", help="where the images lie, in folders of any depth")
    sub.add_argument("--table", required=True, metavar="SHEET", help="XLSX, CSV or TSV with one row an image or a patient")
    sub.add_argument("--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN", help="patient_id, stage, and where there are: "
                     "image, age_y (or birth_date and exam_date), sex, x0, y0, x1, y1, split; 'column C' for one without a name; NAME= for none")
    sub.add_argument("--values", nargs="+", action="extend", default=[], metavar="NAME:OLD=NEW,...", help="what words mean: sex:1=M,2=F or "
                     "stage:0=1,1=2,2=3,3=4,4=5; a word that is not listed then keeps its row out")
    sub.add_argument("--months", action="store_true", help="ages are in months")
    sub.add_argument("--dates", choices=("dmy", "mdy"), default="", help="order of dates with slashes, where the column does not tell")
    sub.add_argument("--box", choices=("xyxy", "xywh", "centre"), default="xyxy", help="what x0 y0 x1 y1 hold, in pixels of the decoded image: "
                     "edges; left, top, width, height; or centre, width, height (default: %(default)s)")
    sub.add_argument("--keep", nargs="+", action="extend", default=[], metavar="COLUMN", help="further columns to carry over")
    sub.add_argument("--sheet", default="", metavar="NAME", help="sheet of the workbook (default: the first)")
    sub.add_argument("--header", type=int, default=0, metavar="ROW", help="row with the names of columns (default: the first with two cells)")
    sub.add_argument("--match", choices=("name", "dicom-patient-id"), default="name", help="without a column of images: by the identifier in "
                     "names of folders and files, or by that in DICOM headers, which is never shown (default: %(default)s)")
    sub.add_argument("--out", metavar="CSV", help="the manifest (default: manifest.csv in FOLDER, or in --into)")
    sub.add_argument("--force", action="store_true", help="write over a manifest that is there")
    sub.add_argument("--into", metavar="DIR", help="link or copy the images into a new folder under neutral names, each series in a folder "
                     "of its own")
    sub.add_argument("--pseudonyms", action="store_true", help="p0001 and so on in place of patients' identifiers")
    sub.add_argument("--key", metavar="FILE", help="write which pseudonym and neutral name is whose, readable by you alone")

    sub = command("predict", predict, "sos predict scan.dcm series/ slice.png --out stages.csv --cam pictures")
    sub.add_argument("paths", metavar="PATH", nargs="+", help="DICOM file, folder with a DICOM series, PNG or JPEG")
    sub.add_argument("--weights", metavar="RUN", help="folder of a run, or `released` (default: the best student under runs/, else the released one)")
    sub.add_argument("--out", metavar="CSV", help="write the table to this file, not to standard output")
    sub.add_argument("--cam", metavar="DIR", help="also draw where the network looked, one picture an input")
    sub.add_argument("--dicom", metavar="DIR", help="also write, for each DICOM input, a secondary capture with the heat map and a structured "
                     "report. These two, and nothing else, carry the patient and study of their source, so that an archive files them there")
    sub.add_argument("--json", action="store_true", help="print one JSON object a line")

    def study_options(sub):
        sub.add_argument("--profile", help=f"one of {', '.join(config.PROFILES)} (default: paper with a CUDA device, else quick)")
        sub.add_argument("--cohort", default="", metavar="MANIFEST", help="your own cohort in place of the virtual one")
        sub.add_argument("--stop-after", type=config.minutes, metavar="MINUTES", help="end cleanly after this time; the same command goes on")

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

    sub = command("suspects", suspects, "sos suspects cohort/manifest.csv --profile quick")
    sub.add_argument("manifest", metavar="MANIFEST", help="CSV file of a cohort")
    sub.add_argument("--profile", help="whose crop teacher judges (default: paper with a CUDA device, else quick)")
    sub.add_argument("--folds", type=int, default=4, help="trainings, each without one share of the patients (default: %(default)s)")
    sub.add_argument("--top", type=int, default=20, metavar="N", help="print so many (default: %(default)s)")
    sub.add_argument("--out", metavar="CSV", help="default: suspects.csv beside the manifest")

    sub = command("agreement", agreement, "sos agreement cohort/manifest.csv")
    sub.add_argument("manifest", metavar="MANIFEST", help="CSV file of a cohort, its reviews.csv beside it")
    sub.add_argument("--scheme", default=BASSED5.name, help="staging scheme (default: %(default)s)")

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
        print(str(error).splitlines()[-1].strip(), file=sys.stderr)  # before it fastai says in which callback
        return 0
    except SOSError as error:
        print(f"sos: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no space, no permission, a folder in place of a file
        print(f"sos: {said_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
