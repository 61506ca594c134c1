"""Ratios of speed, each measured in one run on one machine: what batches cost, what distillation costs, and how near `sos predict` is to its floor.

    python tests/benchmarks/bench_speed.py [--patients 64] [--rounds 25] [--large]

Rows: time of making a batch over that of the training step it feeds; training from the real loader against the same steps on one batch again and
again; a distillation step over a plain step of the same student; that step with the pool of the stem before its norm over one with the pool behind
it; throughput of `sos predict` over that of bare decoding by pydicom, on as many cores, plus the bare forward pass of as many images at once. Parts
take turns in every round; a ratio is the median of those of the rounds. `--large` adds the networks and pictures of the profile paper (minutes on two
cores). All else should be idle.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pydicom
import torch
from measure import Bench, Goal, Ratio, bench, in_turns
from work import TrainingStep, synthetic_batch

from sos.cohort.batches import ViewLoader
from sos.cohort.views import open_store
from sos.config import get_profile
from sos.cores import keep_freed_memory
from sos.predict import TOGETHER, load_stager, predict_paths
from sos.study.runs import machine_record

LOADER = Goal("training throughput: real loader over one batch again and again", "at least", 0.95, gpu=0.95)
TEACHING = Goal("distillation step over plain step", "at most", 1.35, gpu=1.25)
PREDICT = Goal("throughput of `sos predict` over bare decoding plus bare forward pass", "at least", 0.8)
GOALS = (LOADER, TEACHING, PREDICT)
BATCHES = 8  # of an epoch from the real loader
SLICES = 1000  # for `sos predict`
LARGEST = 8  # images a batch on cores, where a batch of the profile paper takes many seconds


def training(run: Bench) -> list[Ratio]:
    """Rows on the student of the profile, on the images of the cohort, as often as an epoch of BATCHES needs them."""
    known = get_profile(run.profile)
    config, teacher = known.run("student"), known.run("teacher")
    if run.device == "cpu":
        config = config.with_(batch_size=min(config.batch_size, LARGEST))
    store = open_store(run.cohort, run.folder / "cache", known.native_px)
    loader = ViewLoader(store, np.resize(np.arange(len(run.cohort.table)), BATCHES * config.batch_size), config, training=True, device=run.device,
                        window_px=teacher.window_px, window_scale=teacher.window_scale)
    loader.get_idxs()  # seeds it
    rows = np.asarray(loader.dataset[:config.batch_size])
    taught, plain = TrainingStep(config, teacher, run.device), TrainingStep(config.with_(role="baseline"), device=run.device)
    frame, _, _, target = batch = loader.views(rows)

    def epoch():
        for views in loader:
            taught(views)

    def same():
        for _ in range(BATCHES):
            taught(batch)

    took = in_turns(run.rounds, run.wait, batch=lambda: loader.views(rows), plain=lambda: plain((frame, target)),
                    taught=lambda: taught(batch))
    epochs = in_turns(max(2, run.rounds // 4), run.wait, epoch=epoch, same=same)
    steps = took | {name: seconds / BATCHES for name, seconds in epochs.items()}
    an_image = {name: f"{1e3 * seconds / config.batch_size:.2f}" for name, seconds in steps.items()}
    precision = "bf16" if taught.net.bf16 else "fp32"
    size = f"ms an image; {config.backbone}, {config.frame_px} and {teacher.window_px} px, {config.batch_size} at once, {precision}"
    return [Ratio("making a batch over a distillation step", took.ratio("batch", "taught"),
                  note=f"{an_image['batch']} over {an_image['taught']} {size}"),
            LOADER.got(epochs.ratio("same", "epoch"), f"{an_image['epoch']} against {an_image['same']} {size}", run.device),
            TEACHING.got(took.ratio("taught", "plain"), f"{an_image['taught']} over {an_image['plain']} {size}", run.device)]


def stem(run: Bench) -> list[Ratio]:
    """The row on a distillation step of the profile's student and teacher with the pool of their stems before the norm."""
    known = get_profile(run.profile)
    config, teacher = known.run("student"), known.run("teacher")
    if run.device == "cpu":
        config = config.with_(batch_size=min(config.batch_size, LARGEST))
    batch = synthetic_batch(config, teacher.window_px, config.batch_size, run.device)
    first, last = (TrainingStep(config.with_(backbone=name), teacher.with_(backbone=name), run.device)
                   for name in ("resnet16_pool_first", "resnet16_half"))
    took = in_turns(run.rounds, run.wait, first=lambda: first(batch), last=lambda: last(batch))
    an_image = {name: f"{1e3 * seconds / config.batch_size:.2f}" for name, seconds in took.items()}
    return [Ratio("distillation step: pool of the stem before its norm over behind it", took.ratio("first", "last"),
                  note=f"{an_image['first']} over {an_image['last']} ms an image; {config.frame_px} and {teacher.window_px} px, "
                       f"{config.batch_size} at once, {'bf16' if first.net.bf16 else 'fp32'}, {torch.get_num_threads()} threads")]


def prediction(run: Bench) -> list[Ratio]:
    """`sos predict` on SLICES DICOM files: those of the cohort, again and again. Bare decoding is done by one thread, and by one a core as `sos
    predict` does it; the faster of the two counts."""
    stager, own = load_stager("released"), [file for file in run.files if file.suffix == ".dcm"]
    files = [own[i % len(own)] for i in range(min(SLICES, 20 * len(own)))]
    side = stager.config.frame_px
    frames = torch.randn(2 * TOGETHER, 1, side, side)  # with their mirror images

    def pixels(file):
        return pydicom.dcmread(file).pixel_array.shape

    def decode():
        for file in files:
            pixels(file)

    def decode_at_once():
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(pixels, files):
                pass

    def forward():
        with torch.inference_mode():
            for _ in range(-(-len(files) // TOGETHER)):
                stager.net(frames)

    def predict():
        for row in predict_paths(files, "released"):
            if row["error"]:
                raise SystemExit(row["error"])

    took = in_turns(max(2, run.rounds // 12), decode=decode, decode_at_once=decode_at_once, forward=forward, predict=predict)
    a_file = {name: f"{1e3 * seconds / len(files):.1f}" for name, seconds in took.items()}
    bare = took.each[min("decode", "decode_at_once", key=took.get)] + took.each["forward"]
    return [PREDICT.got(float(np.median(bare / took.each["predict"])),
                        f"{a_file['predict']} against {a_file['forward']} and, decoding, {a_file['decode']} by one thread and {a_file['decode_at_once']} "
                        f"by one a core, ms a file; {len(files)} files")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: %(default)s)")
    parser.add_argument("--large", action="store_true", help="also the networks of the profile paper")
    args = parser.parse_args()
    keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in machine_record("cpu").items()))
    with bench(args.patients, args.rounds) as run:
        rows = training(run) + stem(run)
        if args.large:
            large = replace(run, profile="paper", rounds=max(3, args.rounds // 5))
            rows += training(large) + stem(large)
        rows += prediction(run)
    for row in rows:
        print(f"{row.what}: {row.value:.2f} ({row.note})")


if __name__ == "__main__":
    main()
