"""Ratios of speed, each measured in one run on one machine: what batches cost, what distillation costs, and how near `sos predict` is to its floor.

    python tests/benchmarks/bench_speed.py [--patients 64] [--rounds 25] [--large]

Rows: time of making a batch over that of the training step it feeds; a distillation step over a plain step of the same student; throughput of
`sos predict` over that of bare decoding (pydicom, or Pillow) plus the bare forward pass of as many images at once. Parts take turns in every
round, medians are compared. `--large` adds the networks and pictures of the profile paper (minutes on two cores). All else should be idle.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import torch
import torch.nn.functional as F
from measure import in_turns
from PIL import Image

from sos.cohort.manifest import read_manifest
from sos.cohort.views import ViewLoader, open_store
from sos.config import RunConfig, get_profile
from sos.method.cam import explain
from sos.method.distill import distillation_terms, weighted_sum
from sos.phantom.write import write_cohort
from sos.predict import TOGETHER, load_stager, predict_paths
from sos.study.runs import machine_record
from sos.study.training import CLIP, adamw, decayed_and_not, keep_freed_memory, network


class Step:
    """One training step of a student: with its labels alone, or as its teacher teaches it."""

    def __init__(self, config: RunConfig, teacher: RunConfig):
        self.config = config
        self.net, self.teacher = network(config, 5, "cpu").train(), network(teacher, 5, "cpu").eval()
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


def training(profile: str, cohort, store, rounds: int, batch_size: int) -> list[tuple[str, float, str]]:
    """Rows on the student of a profile, on the images of `store`."""
    known = get_profile(profile)
    config, teacher = known.run("student").with_(batch_size=batch_size), known.run("teacher")
    loader = ViewLoader(store, np.arange(len(cohort.table)), config, training=True, window_px=teacher.window_px, window_scale=teacher.window_scale)
    rows, step = np.array(loader.get_idxs()[:batch_size]), Step(config, teacher)
    frame, crop, window, target = loader.views(rows)
    took = in_turns(rounds, batch=lambda: loader.views(rows), plain=lambda: step.plain(frame, target),
                    taught=lambda: step.taught(frame, crop, window, target))
    size = f"{config.backbone}, {config.frame_px} and {teacher.window_px} px, {step.net.bf16 and 'bf16' or 'fp32'}"
    an_image = {name: f"{1e3 * seconds / batch_size:.2f} ms an image" for name, seconds in took.items()}
    return [(f"making a batch over a distillation step ({size})", took["batch"] / took["taught"], an_image["batch"]),
            (f"distillation step over plain step ({size})", took["taught"] / took["plain"], f"plain: {an_image['plain']}")]


def prediction(files: list[Path], rounds: int) -> tuple[str, float, str]:
    stager = load_stager("released")
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

    took = in_turns(max(2, rounds // 8), decode=decode, forward=forward, predict=predict)
    return ("throughput of sos predict over bare decoding plus bare forward pass", (took["decode"] + took["forward"]) / took["predict"],
            f"{1e3 * took['predict'] / len(files):.1f} ms an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: %(default)s)")
    parser.add_argument("--large", action="store_true", help="also the networks of the profile paper")
    args = parser.parse_args()
    keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in machine_record("cpu").items()))
    with tempfile.TemporaryDirectory() as folder:
        cohort = read_manifest(write_cohort(Path(folder) / "cohort", args.patients, 11))
        rows = training("quick", cohort, open_store(cohort, Path(folder), 768), args.rounds, 8)
        if args.large:
            rows += training("paper", cohort, open_store(cohort, Path(folder), 1024), max(3, args.rounds // 5), 8)
        rows.append(prediction([cohort.image_path(row) for row in range(len(cohort.table))], args.rounds))
    for what, ratio, note in rows:
        print(f"{what}: {ratio:.2f} ({note})")


if __name__ == "__main__":
    main()
