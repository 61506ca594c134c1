"""Ratios against what a user would pick instead: the same work with the same weights on the same inputs, and results that agree.

    python tests/benchmarks/bench_against.py [--patients 64] [--rounds 25]

- Grad-CAM of a batch against pytorch-grad-cam, both up to maps of the picture's size in [0, 1]; and the maps alone over a bare forward pass.
- A distillation step against the loops of fasterai and torchdistill: what all three can do, which is cross-entropy and the KL of image logits, of a
  student and a teacher that see the same frames, which lie in memory as batches.
- An epoch of training batches from a folder of DICOM files, the second one, against fastai.medical.imaging: the plain network's frames and labels.
- From files to stages: `sos predict` against the detector and the crop teacher of this study behind the same reader, both for an image and its mirror
  image; there is no trained detector to ship, so that theirs have random weights, which cost as much, and only their number of answers is checked.

Each compared result is checked to be the same before its time counts. What is compared with is no dependency of this project: `requirements.txt`
beside this file holds it, and a library that is missing gives a row that says so.
"""

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter, ToTensor
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import defaults
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from measure import Bench, Goal, Ratio, bench, in_turns
from torch import nn

from sos.cohort.batches import ViewLoader
from sos.cohort.cameras import camera, frame_camera, normalise, reduce_to, square_window, still_scene
from sos.cohort.views import open_store
from sos.config import RunConfig, get_profile
from sos.cores import keep_freed_memory
from sos.images.reader import read_image
from sos.method.cam import enlarge, explain
from sos.method.distill import Distillation
from sos.method.models import StagingNet, fold_norms
from sos.predict import TOGETHER, predict_paths, released_record
from sos.study.fitting import adamw, decayed_and_not, network
from sos.study.runs import RELEASED, config_of, load_network, machine_record
from sos.study.training import CLIP, use_bf16

CAM = Goal("Grad-CAM of a batch: time of pytorch-grad-cam over ours", "at least", 2.8, gpu=2.8)
CAM_FLOOR = Goal("Grad-CAM of a batch over a bare forward pass", "at most", 1.05, gpu=1.05)
FASTERAI = Goal("distillation step: time of fasterai's over ours", "at least", 1.2, gpu=1.2)
FROZEN = Goal("distillation step: time of fasterai's over ours, its teacher frozen by hand", "at least", 1.2, gpu=1.2)
TORCHDISTILL = Goal("distillation step: time of torchdistill's over ours", "at least", 1.2, gpu=1.2)
FASTERAI_FP32 = Goal("distillation step: time of fasterai's, its teacher frozen, in the fp32 of its documentation over ours", "at least", 1.2, gpu=1.2)
TORCHDISTILL_FP32 = Goal("distillation step: time of torchdistill's in the fp32 of its examples over ours", "at least", 1.2, gpu=1.2)
DICOM = Goal("second epoch of batches from DICOM files: time of fastai.medical.imaging over ours", "at least", 5.0, gpu=5.0)
PIPELINE = Goal("from file to stage: time of detector, then teacher over `sos predict`", "at least", 2.0)
GOALS = (CAM, CAM_FLOOR, FASTERAI, FROZEN, TORCHDISTILL, FASTERAI_FP32, TORCHDISTILL_FP32, DICOM, PIPELINE)

STAGES = 5
STEPS = 8  # of an epoch in the comparison of distillation steps
LR = 1e-4
TEMPERATURE = 3.0


def peer(module: str):
    """A module of a library that this project does not depend on. Raises ModuleNotFoundError where it is not installed."""
    return importlib.import_module(module)


def not_installed(error: ModuleNotFoundError) -> str:
    """The note of a row that needs a library. Raises `error` again where what is missing is ours."""
    if error.name.partition(".")[0] == "sos":
        raise error
    return f"not installed: {error.name}; see tests/benchmarks/requirements.txt"


def compare(run: Bench, goal: Goal, measured: Callable[[Bench], tuple[float, str]]) -> Ratio:
    """The row of `goal`: what `measured` says, or that a library is missing."""
    try:
        return goal.got(*measured(run), run.device)
    except ModuleNotFoundError as error:
        return goal.got(None, not_installed(error), run.device)


def ms(seconds: float, images: int) -> str:
    return f"{1e3 * seconds / images:.2f}"


# ---- Grad-CAM ------------------------------------------------------------------------------------------------------


class AboveMean:
    """What Grad-CAM explains here, as a target of pytorch-grad-cam: one image's logit above the mean of its logits."""

    def __init__(self, stage: int):
        self.stage = stage

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.stage] - logits.mean()


def cam_batch(run: Bench) -> tuple[StagingNet, torch.Tensor, torch.Tensor]:
    """A network, a batch as large as evaluation takes it, and a stage for each image; on cores the released weights."""
    config = get_profile(run.profile).run("student")
    net = network(config, STAGES, run.device)
    released = config_of(released_record(), RELEASED)
    if config.backbone == released.backbone:
        trained = load_network(RELEASED / "student.safetensors", released, STAGES)
        net.load_state_dict(StagingNet(trained.body, trained.head).state_dict())
    images = 2 * config.batch_size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 1, config.frame_px, config.frame_px, generator=generator).to(run.device)
    return net.eval(), x, (torch.arange(images) % STAGES).to(run.device)


def cam_against(run: Bench) -> tuple[float, str]:
    net, x, target = cam_batch(run)
    # the head's dropout hands the feature map on as it is, in float32: numpy, in which theirs goes on, knows no bfloat16
    theirs = partial(peer("pytorch_grad_cam").GradCAM(net, [net.head.dropout]), x, [AboveMean(int(stage)) for stage in target])

    def ours():
        maps = enlarge(explain(net, x, target)[1], x.shape[-1])
        maps = maps - maps.amin((1, 2), keepdim=True)
        return (maps / (1e-7 + maps.amax((1, 2), keepdim=True))).cpu().numpy()

    np.testing.assert_allclose(ours(), theirs(), atol=5e-3)  # a map with almost no evidence is scaled up with its rounding
    took = in_turns(run.rounds, run.wait, ours=ours, theirs=theirs)
    return took.ratio("theirs", "ours"), f"{ms(took['theirs'], len(x))} over {ms(took['ours'], len(x))} ms an image; {said(net, x)}"


def cam_floor(run: Bench) -> tuple[float, str]:
    net, x, target = cam_batch(run)

    def bare():
        with torch.inference_mode():
            return net(x)

    torch.testing.assert_close(explain(net, x, target)[0].logits, bare().clone())
    took = in_turns(4 * run.rounds, run.wait, ours=lambda: explain(net, x, target), bare=bare)
    return took.ratio("ours", "bare"), f"{ms(took['ours'], len(x))} over {ms(took['bare'], len(x))} ms an image; {said(net, x)}"


def said(net: StagingNet, x: torch.Tensor) -> str:
    return f"{len(x)} at once, {x.shape[-1]} px, {'bf16' if net.bf16 else 'fp32'}"


# ---- distillation --------------------------------------------------------------------------------------------------


class LossKeeper(Callback):
    """Keeps the loss of each training batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after_batch(self):
        if self.training:
            self.seen.append(self.loss.detach())


class Taught:
    """A student, its teacher and batches in memory; `epoch` is STEPS steps of somebody's loop, `losses` what they were.

    Loss: half the cross-entropy with the label, half T² KL(teacher ‖ student) of the image logits. Gradients are clipped, the optimiser is AdamW.
    plain: networks in fp32 and torch's own order of memory, in place of those of this project.
    """

    def __init__(self, run: Bench, plain: bool = False):
        known = get_profile(run.profile)
        self.config = known.run("student").with_(w_cls=0.5, w_dist=0.5, w_attn=0.0, evidence="none", temperature=TEMPERATURE)
        torch.manual_seed(0)
        configs = [config.with_(precision="fp32") if plain else config for config in (known.run("teacher"), self.config)]
        self.teacher, self.net = (network(config, STAGES, run.device) for config in configs)
        self.teacher.eval()
        if plain:
            for net in (self.teacher, self.net):
                net.to(memory_format=torch.contiguous_format)
        self.images, side, self.device = self.config.batch_size, self.config.frame_px, torch.device(run.device)
        self.batches = [(torch.randn(self.images, 1, side, side).to(run.device), torch.randint(STAGES, (self.images,)).to(run.device))
                        for _ in range(STEPS)]
        self.prepare()

    def learner(self, batches: list[tuple], **settings) -> Learner:
        """fastai's, on batches as they are; its validation is a single image, the same in each loop."""
        x, y = self.batches[0]
        dls = DataLoaders(*(DataLoader(part, bs=None, num_workers=0) for part in (batches, [(x[:1], y[:1])])), device=self.device)
        self.kept = LossKeeper()
        return Learner(dls, self.net, loss_func=nn.CrossEntropyLoss(), lr=LR, cbs=[GradientClip(CLIP), self.kept], **settings)

    @property
    def losses(self) -> list[float]:
        return [float(loss) for loss in self.kept.seen]


class Ours(Taught):
    """As `sos.study.fitting.fit` sets it up."""

    def prepare(self):
        self.teacher = fold_norms(self.teacher)
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=self.device).expand(self.images, 4)
        self.learn = self.learner([(x, x, whole, y) for x, y in self.batches], opt_func=partial(OptimWrapper, opt=adamw), splitter=decayed_and_not,
                                  wd=[self.config.weight_decay, 0.0])

    def epoch(self):
        with Distillation(self.net, self.teacher, self.config) as distillation, self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit(1, cbs=distillation)


class Fasterai(Taught):
    """A fastai Learner with its callback, as its documentation has it: the optimiser is fastai's own, and gradients reach the teacher."""

    frozen = False

    def prepare(self):
        distill, soft = peer("fasterai.distill.distillation_callback"), partial(peer("fasterai.distill.losses").SoftTarget, T=TEMPERATURE)
        self.teacher.requires_grad_(not self.frozen)
        self.learn = self.learner(self.batches, wd=self.config.weight_decay)
        self.learn.add_cb(distill.KnowledgeDistillationCallback(self.teacher, soft, weight=0.5))

    def epoch(self):
        with self.learn.no_bar(), self.learn.no_logging():
            self.learn.fit(1)


class FasteraiFrozen(Fasterai):
    """The same with a teacher whose weights its user has frozen."""

    frozen = True


class Torchdistill(Taught):
    """The loop of its examples: a DistillationBox that freezes its teacher, with torch's AdamW as it comes."""

    def prepare(self):
        logits = {f"{whose}_module_{what}": name for whose in ("student", "teacher") for what, name in (("path", "."), ("io", "output"))}
        loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 0.5, "reduction": "batchmean"}}
        adam = {"lr": LR, "betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": self.config.weight_decay}
        forward = {"forward_proc": "forward_batch_only"}
        config = {"num_epochs": 1, "teacher": {"requires_grad": False, **forward}, "student": forward,
                  "optimizer": {"key": "AdamW", "max_grad_norm": CLIP, "kwargs": adam},
                  "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}}}
        box = peer("torchdistill.core.distillation").DistillationBox
        self.box = box(self.teacher, self.net, {}, config, self.device, None, False, 1)
        self.kept = LossKeeper()

    def epoch(self):
        self.box.pre_epoch_process(epoch=0)
        for x, y in self.batches:
            self.box.pre_forward_process()
            loss = self.box.forward_process(x, y, {})
            self.box.post_forward_process(loss=loss)
            self.kept.seen.append(loss.detach())
        with torch.no_grad():  # validation, as the other loops have it
            F.cross_entropy(self.net.eval()(x[:1]), y[:1])
        self.net.train()
        self.box.post_epoch_process()


LOOPS = {FASTERAI: Fasterai, FROZEN: FasteraiFrozen, TORCHDISTILL: Torchdistill, FASTERAI_FP32: FasteraiFrozen, TORCHDISTILL_FP32: Torchdistill}


def distillation(run: Bench) -> Iterator[Ratio]:
    """The rows of all loops, which take turns together."""
    ours, loops, missing = Ours(run), {}, {}
    for goal, loop in LOOPS.items():
        try:
            loops[goal] = loop(run, plain=goal in (FASTERAI_FP32, TORCHDISTILL_FP32))
        except ModuleNotFoundError as error:
            missing[goal] = not_installed(error)
    took = in_turns(run.rounds, run.wait, ours=ours.epoch, **{goal.what: loop.epoch for goal, loop in loops.items()})
    an_image = {name: ms(seconds, STEPS * ours.images) for name, seconds in took.items()}
    for goal in LOOPS:
        if goal in missing:
            yield goal.got(None, missing[goal], run.device)
            continue
        loop = loops[goal]
        np.testing.assert_allclose(loop.losses[0], ours.losses[0], rtol=1e-3 if loop.net.bf16 == ours.net.bf16 else 1e-2)
        np.testing.assert_allclose(np.mean(loop.losses[:STEPS]), np.mean(ours.losses[:STEPS]), rtol=1e-2)  # updates in bf16 drift apart
        mixed = "; theirs in fp32" if ours.net.bf16 and not loop.net.bf16 else ""
        note = f"{an_image[goal.what]} over {an_image['ours']} ms an image; {said(ours.net, ours.batches[0][0])}{mixed}"
        yield goal.got(took.ratio(goal.what, "ours"), note, run.device)


# ---- DICOM ---------------------------------------------------------------------------------------------------------


def dicom(run: Bench) -> tuple[float, str]:
    medical = peer("fastai.medical.imaging")
    kept = [row for row, file in enumerate(run.files) if file.suffix == ".dcm"]
    cohort = replace(run.cohort, table=run.cohort.table.iloc[kept].reset_index(drop=True))
    files = replace(run, cohort=cohort).files
    config = get_profile(run.profile).run("baseline")
    if len(files) < config.batch_size:
        config = config.with_(batch_size=len(files))
    # theirs; of what the frame camera does at random it has no shift
    stage = dict(zip(files, cohort.table["target"], strict=True))
    fitted = Resize(config.frame_px, method="pad", pad_mode="zeros")
    block = DataBlock((ImageBlock(medical.PILDicom), CategoryBlock), get_items=lambda _: [*files, files[0]], get_y=lambda file: stage[file],
                      splitter=IndexSplitter([len(files)]), item_tfms=fitted,
                      batch_tfms=aug_transforms(do_flip=False, max_rotate=config.rotate_deg, min_zoom=np.exp(-config.zoom),
                                                max_zoom=np.exp(config.zoom), max_warp=0, max_lighting=config.gain, p_affine=1, p_lighting=1))
    theirs = {f"workers_{n}": block.dataloaders(run.folder, bs=config.batch_size, num_workers=n, device=torch.device(run.device)).train
              for n in (0, defaults.cpus)}  # fastai's own number of processes is that of the cores
    # ours
    store = open_store(cohort, run.folder / "cache", get_profile(run.profile).native_px)
    rows = np.arange(len(files))
    ours = ViewLoader(store, rows, config, training=True, device=run.device)
    still = ViewLoader(store, rows, config, training=False).views(rows)[0]
    for file, size, frame in zip(files, store.sizes, still[:, 0].numpy(), strict=True):
        picture = ToTensor()(fitted(medical.PILDicom.create(file), split_idx=1))[0].numpy()
        if read_image(file).record["inverted"]:  # which theirs leaves to its user
            picture = picture.max() - picture
        check_alike(frame, picture, size)

    def epoch(loader):
        assert sum(len(batch[-1]) for batch in loader) == len(files) // config.batch_size * config.batch_size

    took = in_turns(max(2, run.rounds // 5), run.wait, ours=lambda: epoch(ours), **{name: partial(epoch, loader) for name, loader in theirs.items()})
    best = min(theirs, key=took.get)
    note = (f"{ms(took[best], len(files))} (with {best.removeprefix('workers_')} workers, its best) over {ms(took['ours'], len(files))} ms an image; "
            f"{len(files)} files, {config.frame_px} px, {config.batch_size} at once")
    return took.ratio(best, "ours"), note


def check_alike(frame: np.ndarray, picture: np.ndarray, size: np.ndarray) -> None:
    """Raises AssertionError where two pictures (n, n) of an image of `size` differ by more than how their grey values are scaled and clipped."""
    side = len(frame)
    margin = ((side - size * side / size.max()) / 2).astype(int) + 2
    inside = tuple(slice(m, side - m) for m in margin)
    assert np.corrcoef(frame[inside].ravel(), picture[inside].ravel())[0, 1] > 0.98


# ---- from file to stage --------------------------------------------------------------------------------------------


class Pipeline:
    """Detector, then teacher, on batches of files, the next of which are read meanwhile. Both networks have random weights, which cost as much as
    trained ones: what no box is found in, its middle is looked at."""

    def __init__(self, profile: str, scheme_size: int):
        known = get_profile(profile)
        self.config, self.window = (known.run(role).with_(precision="fp32") for role in ("detector", "teacher"))
        self.native_px = known.native_px
        torch.manual_seed(0)
        self.detector, self.teacher = (network(config, scheme_size, "cpu").eval() for config in (self.config, self.window))

    @torch.inference_mode()
    def stages(self, images: list, mirror: bool) -> list[int]:
        """Stages, counted from 0, of GreyImages."""
        views = []
        for image in images:
            native = torch.from_numpy(reduce_to(image, self.native_px)[0])[None, None].float()
            views += [(native, still_scene(torch.tensor([native.shape[2:]]), mirrored)) for mirrored in (False, True)[:1 + mirror]]
        frames = torch.cat([frame_camera(native, scene, self.config) for native, scene in views])
        found = self.detector.find(normalise(frames / 255))
        shown = torch.where(found.there[:, None], found.boxes, found.boxes.new_tensor([0.25, 0.25, 0.75, 0.75]))
        windows = square_window(shown, self.window.window_scale)
        crops = torch.cat([camera(*view, self.window.window_px, window[None]) for view, window in zip(views, windows, strict=True)])
        return self.teacher(normalise(crops / 255)).softmax(1).view(len(images), 1 + mirror, -1).mean(1).argmax(1).tolist()

    def predict(self, files: list, mirror: bool) -> list[int]:
        found, batches = [], [files[i:i + TOGETHER] for i in range(0, len(files), TOGETHER)]
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(lambda batch: [read_image(file) for file in batch], batches[0])
            for following in [*batches[1:], None]:
                images = read.result()
                if following:
                    read = pool.submit(lambda batch: [read_image(file) for file in batch], following)
                found += self.stages(images, mirror)
        return found


def pipeline(run: Bench) -> tuple[float, str]:
    files, other = run.files, Pipeline(run.profile, STAGES)

    def ours():
        rows = list(predict_paths(files, "released"))
        assert all(row["stage"] is not None for row in rows), json.dumps(rows)

    def theirs(mirror):
        assert len(other.predict(files, mirror)) == len(files)

    took = in_turns(max(2, run.rounds // 8), ours=ours, theirs=lambda: theirs(True), plain=lambda: theirs(False),
                    read=lambda: [read_image(file) for file in files])
    a_file = {name: ms(seconds, len(files)) for name, seconds in took.items()}
    note = (f"{a_file['theirs']} over {a_file['ours']} ms a file; reading alone {a_file['read']}, the detector without mirror images "
            f"{a_file['plain']}; {len(files)} files, fp32")
    return took.ratio("theirs", "ours"), note


def against(run: Bench) -> Iterator[Ratio]:
    """All rows on the device of `run`."""
    yield compare(run, CAM, cam_against)
    yield compare(run, CAM_FLOOR, cam_floor)
    yield from distillation(run)
    yield compare(run, DICOM, dicom)
    if run.device == "cpu":
        yield compare(run, PIPELINE, pipeline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=64, help="virtual patients (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: %(default)s)")
    args = parser.parse_args()
    keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in machine_record("cpu").items()))
    with bench(args.patients, args.rounds) as run:
        for row in against(run):
            print(f"{row.what}: {'-' if row.value is None else f'{row.value:.2f}'} ({row.note})", flush=True)


if __name__ == "__main__":
    main()
