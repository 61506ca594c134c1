"""The floor: what each step must do, what this device reaches on just that, and how near the step comes to it.

    python tests/benchmarks/bench_floor.py [--profile quick] [--device cpu] [--rounds 15] [--plan paper] [--out figures/speed] [--small]

Each step's operations and bytes are counted by the rule in `work.py`. The floor of its time is the larger of two: the time of its bare
convolutions and matrix products, each measured alone on tensors of the same shapes, strides and precision; and the time of its bytes at the
speed of a copy of a large array. All parts take turns in every round, medians are compared. Drawing and decoding are numpy, without a counter of
operations: their floor, and that of making a batch, is that of their bytes alone, which is far below what so much computing can reach.

Then the training of a whole profile (`--plan`): the operations of every run of its plan, counted, and the minutes that they take at the speed
measured here, and, *computed, not measured*, on graphics cards by their published peaks. `--small` is for the test: smoke's networks, few rounds.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from measure import in_turns
from publish import COLOURS, machine_line, publish
from work import ADAMW_BYTES, STAGES, TrainingStep, Work, loader_of, on_device, real_batch, synthetic_batch, tensor_bytes, work_of

from sos.cohort.cameras import reduce_to
from sos.cohort.manifest import read_manifest
from sos.cohort.views import open_store
from sos.config import PROFILES, Profile, RunConfig, get_profile
from sos.cores import keep_freed_memory
from sos.images.reader import read_image
from sos.method.cam import class_score, grad_cam
from sos.method.losses import attention_distance, spatial_distillation
from sos.method.models import Look
from sos.phantom.difficulty import Difficulty
from sos.phantom.export import export_patient
from sos.phantom.write import draw_patient, write_cohort, write_patient
from sos.study.figures import PAGE, caption, journal
from sos.study.grid import plan
from sos.study.results import Table
from sos.study.runs import machine_record
from sos.study.training import evaluate

SEED = 11
COPY_MIB = 256  # of the array that is copied: beyond the caches that one core has to itself
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product shows the best that the device can do


@dataclass(frozen=True)
class Card:
    """A graphics card by what its maker publishes: dense bfloat16 operations with float32 sums, and bytes of memory, a second; GiB of memory."""

    name: str
    operations: float
    bytes: float
    memory: int


CARDS = (
    Card("H200", 989e12, 4.8e12, 141),  # NVIDIA H200 Tensor Core GPU, datasheet: 1,979 TFLOPS with sparsity, which doubles it; 4.8 TB/s
    Card("RTX 4090 (24 GB)", 165.2e12, 1.008e12, 24),  # NVIDIA Ada GPU architecture, whitepaper: 165.2 dense; 1,008 GB/s
    Card("A10 (24 GB)", 125e12, 0.6e12, 24),  # NVIDIA A10 Tensor Core GPU, datasheet: 125 dense, 250 with sparsity; 600 GB/s
)
SHARE = 0.3  # of a card's peaks, assumed: torch without fusion moves each map several times, and small channels fill no tensor core
COMPUTED = "computed, not measured"
LAUNCH_S = 10e-6  # of a process's time for each call that torch makes, assumed: no card is faster than its driver is told what to do


MODEL_NAMES = {"teacher": "teacher", "baseline": "plain network", "student": "student", "zoom": "two-look student", "detector": "detector"}


@dataclass
class Step:
    """One step of the work: `run` does it for `images` images; what it must do is in `work`."""

    name: str
    run: Callable[[], object]
    images: int
    work: Work


# --- the steps -----------------------------------------------------------------------------------------------------------------
def steps_of(profile: Profile, folder: Path, device: str, images: int) -> tuple[list[Step], dict[str, Step]]:
    """Every step at the size of a profile, on `images` virtual patients drawn into `folder`; and those of training by model."""
    cohort = read_manifest(write_cohort(folder / "cohort", images, SEED))
    store = open_store(cohort, folder / "cache", profile.native_px)
    teacher = profile.run("teacher")
    models = {model: TrainingStep(profile.run(model), teacher, device) for model in ("teacher", "baseline", "student", "zoom")}
    training = {model: _training(f"train the {MODEL_NAMES[model]}", step, real_batch(step.config, teacher, store, device), device)
                for model, step in models.items()}
    student = models["student"]
    steps = [_draw(folder), _decode(cohort, profile.native_px), _augment(student.config, teacher, store, device), *training.values(),
             _grad_cam(student, device), _losses(student, teacher, device), _evaluate(models["baseline"], store, cohort, device)]
    return steps, training


def _draw(folder: Path) -> Step:
    """One virtual patient on disk; bytes: the section, its exposure, the mask and the file, each once."""
    patient = draw_patient(SEED, 0)
    moved = tensor_bytes([patient.section.hu, patient.pixels, patient.mask]) + len(export_patient(patient).data)
    return Step("draw a patient", lambda: write_patient((folder / "cohort", SEED, 0, Difficulty())), 1, Work(bytes=moved))


def _decode(cohort, native_px: int) -> Step:
    """Files to stored pixels; bytes: the file, the decoded picture, the stored one."""
    rows = range(min(8, len(cohort.table)))

    def decode():
        return [(image := read_image(cohort.image_path(row)), reduce_to(image, native_px)[0]) for row in rows]

    moved = sum(cohort.image_path(row).stat().st_size for row in rows) + sum(tensor_bytes([image.pixels, grey]) for image, grey in decode())
    return Step("decode a file", decode, len(rows), Work(bytes=moved))


def _augment(config: RunConfig, teacher: RunConfig, store, device: str) -> Step:
    """A student's training batch from stored pixels; bytes: native pixels and both pictures."""
    loader, rows = loader_of(config, teacher, store, device), np.resize(np.arange(len(store.targets)), config.batch_size)
    moved = store.native(rows).nbytes + tensor_bytes(loader.views(rows))
    return Step("augment", on_device(lambda: loader.views(rows), device), len(rows), Work(bytes=moved))


def _training(name: str, step: TrainingStep, batch, device: str) -> Step:
    """A training step; bytes beside its calls': the batch, and what AdamW reads and writes."""
    work = work_of(lambda: step.backward(batch), tensor_bytes(batch) + ADAMW_BYTES * step.parameters)
    return Step(name, on_device(lambda: step(batch), device), len(batch[-1]), work)


def _grad_cam(step: TrainingStep, device: str) -> Step:
    """A student's Grad-CAM from its features, with the gradient through it; bytes: features, their gradient, the map and its gradient."""
    images, target = step.config.batch_size, torch.arange(step.config.batch_size, device=device) % STAGES
    with torch.no_grad():
        features = step.net.features(torch.randn(images, 1, step.config.frame_px, step.config.frame_px, device=device))
    features.requires_grad_()

    def explained():
        cam = grad_cam(features, class_score(step.net.judge(features).logits, target), create_graph=True)
        torch.autograd.grad(cam.sum(), features)
        return cam

    moved = 2 * tensor_bytes([features.detach(), explained().detach()])
    return Step("Grad-CAM of the student", on_device(explained, device), images, work_of(explained, moved))


def _losses(step: TrainingStep, teacher: RunConfig, device: str) -> Step:
    """The three terms and their gradient, from finished logits and maps; bytes: these, and the gradients of the student's."""
    config, images = step.config, step.config.batch_size
    frame, crop, window, target = synthetic_batch(config, teacher.window_px, images, device)
    (seen, cam), (taught, taught_cam) = step.predict(frame), (Look(*map(torch.detach, step.teacher.look(crop)[:3])), None)
    taught_cam = torch.rand_like(cam)
    own = [seen.spatial.requires_grad_(), cam.requires_grad_()]

    def losses():
        look = Look(seen.features, own[0], own[0].mean((2, 3)))
        total = (F.cross_entropy(look.logits, target) + spatial_distillation(look, taught, window, config.temperature, config.evidence)
                 + attention_distance(own[1], taught_cam, config.attn_distance))
        return torch.autograd.grad(total, own)

    moved = tensor_bytes([own[0].detach(), own[1].detach(), taught.spatial, taught_cam, window, target]) + tensor_bytes(losses())
    return Step("losses of the student", on_device(losses, device), images, work_of(losses, moved))


def _evaluate(step: TrainingStep, store, cohort, device: str) -> Step:
    """Held-out images from stored pixels to a table; bytes beside its calls': native pixels and frames."""
    rows = np.arange(min(2 * step.config.batch_size, len(cohort.table)))
    net = step.net.eval()
    answers = partial(evaluate, net, store, cohort, rows, step.config, device)
    work = work_of(answers, store.native(rows).nbytes + 4 * len(rows) * step.config.frame_px ** 2)
    net.train()

    def evaluated():
        net.eval()
        answers()
        net.train()

    return Step("evaluate", on_device(evaluated, device), len(rows), work)


# --- measured against their floor ----------------------------------------------------------------------------------------------
def measure_steps(steps: list[Step], rounds: int, device: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """One row a step, see the table `floor`; with it what the device reaches: bytes a second of a copy, operations a second of a large product."""
    large = torch.zeros(COPY_MIB << 18, device=device)  # float32
    target = torch.empty_like(large)
    side = PRODUCT["cuda" if device.startswith("cuda") else "cpu"]
    bf16 = any(call.leaves[0].dtype == torch.bfloat16 for step in steps for call in step.work.calls.values())
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    bare = {key: call for step in steps for key, call in step.work.calls.items()}  # several steps may make the same call
    parts = {step.name: step.run for step in steps} | {key: on_device(call.again(), device) for key, call in bare.items()}
    parts |= {"copy": on_device(lambda: target.copy_(large), device), "product": on_device(lambda: torch.mm(factor, factor), device)}
    numbers = {name: str(number) for number, name in enumerate(parts)}  # names of parts are keywords
    took = in_turns(rounds, **{numbers[name]: part for name, part in parts.items()})
    took = {name: took[number] for name, number in numbers.items()}
    reached = {"copy": 2 * tensor_bytes(large) / took["copy"], "product": 2 * side**3 / took["product"]}
    return pd.DataFrame([_row(step, took, reached["copy"]) for step in steps]), reached


def _row(step: Step, took: dict, copy: float) -> dict:
    work, measured = step.work, took[step.name]
    computing = sum(call.times * took[key] for key, call in work.calls.items())
    moving = work.bytes / copy
    floor = max(computing, moving)
    return {"step": step.name, "operations": work.operations / step.images, "bytes": work.bytes / step.images,
            "measured_ms": 1e3 * measured / step.images, "floor_ms": 1e3 * floor / step.images, "ratio": measured / floor,
            "bound": "bytes" if moving > computing else "operations",
            "reached_gflops": work.operations / computing / 1e9 if work.operations else np.nan,
            "gflops": work.operations / measured / 1e9, "images": step.images, "calls": work.launches}


# --- the training of a whole profile -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Amount:
    """What training costs: in one batch, bytes = fixed_bytes + bytes · images; operations and bytes of one image; calls of torch a step."""

    operations: float
    bytes: float
    fixed_bytes: float
    launches: int

    @classmethod
    def of(cls, step: Callable[[int], Work]) -> "Amount":
        one, two = step(1), step(2)
        return cls(two.operations / 2, two.bytes - one.bytes, 2 * one.bytes - two.bytes, two.launches)


_COUNTED = ("role", "backbone", "output_stride", "looks", "glance_px", "aim_gradient", "cam_layer", "frame_px", "window_px", "evidence",
            "attn_distance", "cam_target", "teacher_backbone")


def amounts(config: RunConfig, teacher: RunConfig, known: dict) -> tuple[Amount, Amount]:
    """Of a training step and of a pass that evaluates, for a run in bfloat16; a progressive one counts as if no block slept. known: kept answers."""
    key = tuple(getattr(config, name) for name in _COUNTED) + (config.w_dist > 0, config.w_attn > 0, config.w_cls > 0, teacher.backbone)
    if key not in known:
        step = TrainingStep(config.with_(precision="bf16"), teacher.with_(precision="bf16"))
        optimiser = ADAMW_BYTES * step.parameters

        def trained(images):
            batch = synthetic_batch(config, teacher.window_px, images)
            return work_of(lambda: step.backward(batch), tensor_bytes(batch) + optimiser)

        training, picture = Amount.of(trained), lambda images: synthetic_batch(config, config.window_px, images)[0]
        step.net.eval()
        with torch.no_grad():
            known[key] = training, Amount.of(lambda images: work_of(lambda: step.net(picture(images))))
    return known[key]


def plan_rows(profile: Profile, known: dict | None = None) -> pd.DataFrame:
    """One row a run of the profile's plan: model, images and steps of training, operations, bytes and calls of its training, its validation after
    each epoch and its answers to the held-out images and their mirror images at the end."""
    held_out = {name: round(share * profile.patients) for name, share in (("valid", profile.valid_share), ("test", profile.test_share))}
    train, known, rows = profile.patients - sum(held_out.values()), {} if known is None else known, []
    for job in plan(profile):
        config = job.config
        teacher = profile.teacher_of(config) if job.needs else profile.run("teacher")
        training, looking = amounts(config, teacher, known)
        steps = config.epochs * ((train + config.leak * held_out["test"]) // config.batch_size)
        images = steps * config.batch_size
        seen = config.epochs * held_out["valid"] + 2 * sum(held_out.values())
        passes = seen / (2 * config.batch_size)
        rows.append({"model": "zoom" if config.looks == 2 else config.role, "backbone": config.backbone, "stride": config.output_stride,
                     "side_px": config.window_px if config.role == "teacher" else config.frame_px, "images": images, "steps": steps,
                     "operations": images * training.operations + seen * looking.operations,
                     "bytes": images * training.bytes + steps * training.fixed_bytes + seen * looking.bytes + passes * looking.fixed_bytes,
                     "launches": steps * training.launches + passes * looking.launches})
    return pd.DataFrame(rows)


def seconds_here(runs: pd.DataFrame, table: pd.DataFrame, training: dict[str, Step]) -> tuple[float, float]:
    """Of all runs one after the other, at the speed of the step measured here of each run's model (a detector: the plain network's), and at the speed
    of its floor: operations over operations a second, whatever the size of the pictures."""
    steps, operations = table.set_index("step"), runs.groupby("model")["operations"].sum()
    known = steps.loc[[training.get(model, training["baseline"]).name for model in operations.index]]
    images = operations.to_numpy() / known["operations"].to_numpy()  # of the size measured
    return tuple(float(images @ known[name]) / 1e3 for name in ("measured_ms", "floor_ms"))


def plan_minutes(profile: Profile, runs: pd.DataFrame, here: tuple[float, float], device: str) -> pd.DataFrame:
    """How long the plan's training takes: one row a device, see the table `floor_plan`. here: see `seconds_here`; a CPU trains as many runs side by
    side as it has cores for."""
    at_once = max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads()) if device == "cpu" else 1
    operations, moved, launches = (runs[name].sum() for name in ("operations", "bytes", "launches"))
    rows = [{"device": f"this machine, at the speed of {what}", "minutes": seconds / 60 / at_once, "limit": "operations",
             "kind": "from measured speed"} for what, seconds in zip(("the steps measured here", "bare convolutions"), here, strict=True)]
    for card in CARDS:
        limits = {"operations": operations / (SHARE * card.operations), "bytes": moved / (SHARE * card.bytes),
                  "calls": launches * LAUNCH_S / profile.side_by_side(card.memory)}
        limit = max(limits, key=limits.get)
        rows.append({"device": card.name, "minutes": limits[limit] / 60, "limit": limit, "kind": COMPUTED,
                     **{f"{name}_minutes": seconds / 60 for name, seconds in limits.items()}, "at_peak_minutes": operations / card.operations / 60})
    total = {"profile": profile.name, "runs": len(runs), "images": int(runs["images"].sum()), "operations": operations, "bytes": moved}
    return pd.DataFrame([total | row for row in rows])


def whole_row(profile: Profile, runs: pd.DataFrame, here: tuple[float, float]) -> dict:
    """The row `train profile X`: all its training together, an image."""
    (measured, floor), images, operations = here, int(runs["images"].sum()), runs["operations"].sum()
    return {"step": f"train profile {profile.name}", "operations": operations / images, "bytes": runs["bytes"].sum() / images,
            "measured_ms": 1e3 * measured / images, "floor_ms": 1e3 * floor / images, "ratio": measured / floor, "bound": "operations",
            "reached_gflops": operations / floor / 1e9, "gflops": operations / measured / 1e9, "images": images,
            "calls": runs["launches"].sum() / runs["steps"].sum()}


# --- written -------------------------------------------------------------------------------------------------------------------
def step_table(table: pd.DataFrame, profile: str, reached: dict[str, float], machine: dict, runs: int) -> Table:
    shown = pd.DataFrame({
        "step": table["step"], "operations an image": [_big(value, "") if value else "not counted" for value in table["operations"]],
        "bytes an image": [_big(value, "B") for value in table["bytes"]], "measured, ms an image": [f"{value:.3g}" for value in table["measured_ms"]],
        "floor, ms an image": [f"{value:.3g}" for value in table["floor_ms"]], "measured / floor": [f"{value:.2f}" for value in table["ratio"]],
        "floor set by": table["bound"],
        "calls of torch a batch": [f"{value:.0f}" if value > 0 else "–" for value in table["calls"]],
        "bare convolutions, GFLOP/s": ["–" if np.isnan(value) else f"{value:.0f}" for value in table["reached_gflops"]]})
    notes = (f"Networks and pictures of the profile {profile}; {machine_line(machine)}. Medians of parts that take turns.",
             "Operations: convolutions and matrix products, a multiplication and an addition are two. Floor: the same convolutions and products "
             f"alone, or the bytes at the speed of a copy ({reached['copy'] / 1e9:.1f} GB/s, read and written), whichever takes longer. Not counted: "
             "numpy, and torch's other operations; there the floor is that of the bytes alone, and far off.",
             f"A product of two large matrices reaches {reached['product'] / 1e9:,.0f} GFLOP/s: what this device could do if all layers were wide.",
             f"Last row: all training of the plan's {runs} runs, each at the speed of its model's step (a detector: the plain network's).")
    return Table("floor", "Measured time of each step over its floor", table, shown, notes)


def plan_table(minutes: pd.DataFrame) -> Table:
    first = minutes.iloc[0]
    shown = pd.DataFrame({"device": minutes["device"], "minutes": [f"{value:,.1f}" for value in minutes["minutes"]], "limit": minutes["limit"],
                          "how known": minutes["kind"]})
    notes = (f"{first['runs']} runs, {first['images']:,} training images, {_big(first['operations'], '')} operations, {_big(first['bytes'], 'B')}, "
             "counted from the plan: training, validation after each epoch, answers to the held-out images. No cohort, notebooks or figures.",
             f"Cards: published dense bfloat16 peak and bandwidth, of which {SHARE:.0%} assumed reached, and {1e6 * LAUNCH_S:.0f} µs for each call "
             "that torch makes, by as many processes as the profile trains at once there; the longest of the three. Computed, not measured.")
    return Table("floor_plan", f"Training of the whole profile {first['profile']}", minutes, shown, notes)


def runs_table(runs: pd.DataFrame, profile: str) -> Table:
    """Where the operations of a plan are: one row a kind of run, the dearest first."""
    kinds = runs.groupby(["model", "backbone", "stride", "side_px"], as_index=False).agg(
        runs=("images", "size"), images=("images", "sum"), operations=("operations", "sum"), bytes=("bytes", "sum"), launches=("launches", "sum"))
    kinds = kinds.sort_values("operations", ascending=False, ignore_index=True)
    kinds["share"] = kinds["operations"] / kinds["operations"].sum()
    shown = pd.DataFrame({"model": kinds["model"].map(MODEL_NAMES), "backbone": kinds["backbone"],
                          "stride": kinds["stride"], "side of its picture, px": kinds["side_px"], "runs": kinds["runs"],
                          "images trained on": [f"{value:,}" for value in kinds["images"]],
                          "operations": [_big(value, "") for value in kinds["operations"]], "share": [f"{value:.1%}" for value in kinds["share"]]})
    return Table("floor_runs", f"Where the operations of profile {profile} are", kinds, shown,
                 ("Counted. Two looks: their picture is the frame, which no network sees whole.",))


def _big(value: float, unit: str) -> str:
    """12,300,000 → `12.3 M`."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


@journal
def floor_figure(table: pd.DataFrame, minutes: pd.DataFrame, profile: str, machine: dict) -> Figure:
    """Above: each step's measured time an image beside its floor, and how many times the floor it takes. Below: the training of the whole plan."""
    fig, (ax, below) = plt.subplots(2, 1, figsize=(PAGE, 5.6), height_ratios=(len(table), len(minutes)))
    places = np.arange(len(table))[::-1]
    ax.barh(places + 0.2, table["measured_ms"], 0.38, color=COLOURS[0])
    for bound, hatch in (("operations", ""), ("bytes", "////")):
        part = (table["bound"] == bound).to_numpy()
        ax.barh(places[part] - 0.2, table["floor_ms"][part], 0.38, color=COLOURS[4], hatch=hatch, edgecolor="white" if hatch else COLOURS[4])
    for place, row in zip(places, table.itertuples(), strict=True):
        ax.annotate(f"{row.ratio:.1f} ×" if row.ratio < 10 else f"{row.ratio:,.0f} ×", (row.measured_ms, place + 0.2), (3, 0),
                    textcoords="offset points", va="center", fontsize=7)
    low, high = min(table["floor_ms"].min(), table["measured_ms"].min()), table["measured_ms"].max()
    ax.set(xscale="log", yticks=places, yticklabels=table["step"], xlabel="time an image, ms", xlim=(low / 2, high * 3),
           title="How near each step is to its floor: measured time over floor beside the bars")
    ax.legend(handles=[Patch(color=COLOURS[0], label="measured"), Patch(color=COLOURS[4], label="floor: bare convolutions"),
                       Patch(facecolor=COLOURS[4], edgecolor="white", hatch="////", label="floor: bytes at the speed of a copy")],
              loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3)
    places = np.arange(len(minutes))[::-1]
    computed = (minutes["kind"] == COMPUTED).to_numpy()
    below.barh(places[~computed], minutes["minutes"][~computed], 0.6, color=COLOURS[0])
    below.barh(places[computed], minutes["minutes"][computed], 0.6, color="white", edgecolor=COLOURS[1], hatch="....")
    for place, row in zip(places, minutes.itertuples(), strict=True):
        note = f"{row.minutes:.2g} min" if row.minutes < 10 else f"{row.minutes:,.0f} min"
        note += f", limited by {row.limit}; computed" if row.kind == COMPUTED else ""
        below.annotate(note, (row.minutes, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    first = minutes.iloc[0]
    names = [name.replace("this machine, at the speed of ", "here, ").replace(" measured here", "") for name in minutes["device"]]
    below.set(xscale="log", yticks=places, yticklabels=names, xlabel="minutes", xlim=(minutes["minutes"].min() / 3, minutes["minutes"].max() * 6),
              title=f"All training of profile {first['profile']}: {first['runs']} runs, {_big(first['operations'], '')} operations")
    caption(fig, f"Networks and pictures of profile {profile}; {machine_line(machine)}. Hollow bars: computed from published peaks, {SHARE:.0%} of "
                 "them assumed reached; not measured.")
    return fig


def run(profile_name: str, plan_name: str, device: str, rounds: int, images: int, out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure and write all; returns the data of the tables of steps and of the plan."""
    keep_freed_memory()
    profile, planned, machine = get_profile(profile_name), get_profile(plan_name), machine_record(device)
    with tempfile.TemporaryDirectory() as folder:
        steps, training = steps_of(profile, Path(folder), device, images)
        table, reached = measure_steps(steps, rounds, device)
    known, kind = {}, device.partition(":")[0]
    own, all_runs = plan_rows(profile, known), plan_rows(planned, known)
    minutes = plan_minutes(planned, all_runs, seconds_here(all_runs, table, training), device)
    table = pd.concat([table, pd.DataFrame([whole_row(profile, own, seconds_here(own, table, training))])], ignore_index=True)
    written = [(profile, step_table(table, profile.name, reached, machine, len(own))), (planned, plan_table(minutes)),
               (planned, runs_table(all_runs, planned.name))]
    tables = [replace(one, name=f"{one.name}_{whose.name}_{kind}") for whose, one in written]
    publish(out, f"floor_{profile.name}_{kind}", tables, floor_figure(table, minutes, profile.name, machine),
            machine | {f"reached_{name}_a_second": value for name, value in reached.items()})
    for one in tables:
        print(one.markdown())
    return table, minutes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--profile", choices=PROFILES, help="whose networks are measured (default: paper on a GPU, else quick)")
    parser.add_argument("--plan", choices=PROFILES, default="paper", help="whose whole training is counted (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU; as in runs side by side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each part (default: %(default)s)")
    parser.add_argument("--patients", type=int, default=32, help="virtual patients (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("figures/speed"), help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="profile smoke for all, three rounds")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    profile = args.profile or ("paper" if args.device.startswith("cuda") else "quick")
    small = ("smoke", "smoke", args.device, 3, 16, args.out)
    run(*(small if args.small else (profile, args.plan, args.device, args.rounds, args.patients, args.out)))


if __name__ == "__main__":
    main()
