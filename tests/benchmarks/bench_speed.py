"""Ratios of speed, each measured in one run on one machine: what batches cost, what distillation costs, and how near `sos predict` is to its floor.

    python tests/benchmarks/bench_speed.py [--patients 64] [--rounds 25] [--large]

Rows: time of making a batch over that of the training step it feeds; training from the real loader against the same steps on one batch again and
again; a distillation step over a plain step of the same student; throughput of `sos predict` over that of bare decoding (pydicom, or Pillow) plus the
bare forward pass of as many images at once. Parts take turns in every round, medians are compared. `--large` adds the networks and pictures of the
profile paper (minutes on two cores). All else should be idle.
"""

import argparse
from dataclasses import replace

import numpy as np
import pydicom
import torch
import torch.nn.functional as F
from measure import Bench, Goal, Ratio, bench, in_turns
from PIL import Image

from sos.cohort.views import ViewLoader, open_store
from sos.config import RunConfig, get_profile
from sos.method.cam import explain
from sos.method.distill import distillation_terms, weighted_sum
from sos.predict import TOGETHER, load_stager, predict_paths
from sos.study.runs import machine_record
from sos.study.training import CLIP, adamw, decayed_and_not, keep_freed_memory, network

LOADER = Goal("training throughput: real loader over one batch again and again", "at least", 0.95, gpu=0.95)
TEACHING = Goal("distillation step over plain step", "at most", 1.35, gpu=1.25)
PREDICT = Goal("throughput of `sos predict` over bare decoding plus bare forward pass", "at least", 0.8)
GOALS = (LOADER, TEACHING, PREDICT)
BATCHES = 8  # of an epoch from the real loader
LARGEST = 8  # images a batch on cores, where a batch of the profile paper takes many seconds


class Step:
    """One training step of a student: with its labels alone, or as its teacher teaches it."""

    def __init__(self, config: RunConfig, teacher: RunConfig, device: str = "cpu"):
        self.config = config
        self.net, self.teacher = network(config, 5, device).train(), network(teacher, 5, device).eval()
        groups = decayed_and_not(self.net)
        self.opt = adamw([{"params": groups[0], "weight_decay": config.weight_decay}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-4)

    def update(self, loss: torch.Tensor) -> None:
        self.opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.opt.step()

    def plain(self, frame, target) -> None:
        self.update(F.cross_entropy(self.net(frame), target))

    def taught(self, frame, crop, window, target) -> None:
        look = self.net.look(frame)
        seen, cam = explain(self.teacher, crop, target, self.config.cam_layer)
        terms = distillation_terms(look, seen, cam, window, target, self.config)
        self.update(weighted_sum(terms, self.config))


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
    rows, step = np.asarray(loader.rows[:config.batch_size]), Step(config, teacher, run.device)
    frame, crop, window, target = batch = loader.views(rows)

    def epoch():
        for views in loader:
            step.taught(*views)

    def same():
        for _ in range(BATCHES):
            step.taught(*batch)

    took = in_turns(run.rounds, run.wait, batch=lambda: loader.views(rows), plain=lambda: step.plain(frame, target),
                    taught=lambda: step.taught(*batch))
    took |= in_turns(max(2, run.rounds // 4), run.wait, epoch=epoch, same=same)
    took |= {name: took[name] / BATCHES for name in ("epoch", "same")}
    an_image = {name: f"{1e3 * seconds / config.batch_size:.2f}" for name, seconds in took.items()}
    precision = "bf16" if step.net.bf16 else "fp32"
    size = f"ms an image; {config.backbone}, {config.frame_px} and {teacher.window_px} px, {config.batch_size} at once, {precision}"
    return [Ratio("making a batch over a distillation step", took["batch"] / took["taught"],
                  note=f"{an_image['batch']} over {an_image['taught']} {size}"),
            LOADER.got(took["same"] / took["epoch"], f"{an_image['epoch']} against {an_image['same']} {size}", run.device),
            TEACHING.got(took["taught"] / took["plain"], f"{an_image['taught']} over {an_image['plain']} {size}", run.device)]


def prediction(run: Bench) -> list[Ratio]:
    """`sos predict` on the files of the cohort."""
    stager, files = load_stager("released"), run.files
    side = stager.config.frame_px
    frames = torch.randn(2 * TOGETHER, 1, side, side)  # with their mirror images

    def decode():
        for file in files:
            pydicom.dcmread(file).pixel_array if file.suffix == ".dcm" else np.asarray(Image.open(file))

    def forward():
        with torch.inference_mode():
            for _ in range(-(-len(files) // TOGETHER)):
                stager.net(frames)

    def predict():
        for row in predict_paths(files, "released"):
            if row["error"]:
                raise SystemExit(row["error"])

    took = in_turns(max(2, run.rounds // 8), decode=decode, forward=forward, predict=predict)
    a_file = {name: f"{1e3 * seconds / len(files):.1f}" for name, seconds in took.items()}
    return [PREDICT.got((took["decode"] + took["forward"]) / took["predict"],
                        f"{a_file['predict']} against {a_file['decode']} and {a_file['forward']} ms a file; {len(files)} files")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: %(default)s)")
    parser.add_argument("--large", action="store_true", help="also the networks of the profile paper")
    args = parser.parse_args()
    keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in machine_record("cpu").items()))
    with bench(args.patients, args.rounds) as run:
        rows = training(run)
        if args.large:
            rows += training(replace(run, profile="paper", rounds=max(3, args.rounds // 5)))
        rows += prediction(run)
    for row in rows:
        print(f"{row.what}: {row.value:.2f} ({row.note})")


if __name__ == "__main__":
    main()
