"""From any image to a stage: one network, one forward pass, no crop and no detector.

Heads face either way, and in few training cohorts equally often. So the pass takes the image and its mirror image as a batch of two; their
probabilities are averaged, and their heat maps laid over each other. Table `mirror` of a profile says what that does to accuracy. At last the
probabilities are calibrated by the temperature that the network's own validation split asks for; table `trust` says what that does.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from .cohort.cameras import Scene, frame_camera, normalise, reduce_to, still_scene
from .config import RunConfig, runs_dir
from .errors import ImageError, RunError
from .images.reader import GreyImage, read_image
from .method.cam import enlarge, explain, peak
from .method.models import StagingNet, fold_norms
from .rows import empty_row
from .stages import StagingScheme, get_scheme
from .study.runs import RELEASED, Run, config_of, find_runs, load_network

NATIVE_PX = 1024  # larger images are reduced to this before the camera looks, where the record of a run does not say to what its own were
REGION = 0.5  # the box looked at holds the part of the heat map above this share of its peak
TOGETHER = 8  # images in one pass of the network, when there are many
WEAK_MASS = 1e-6  # below, the heat map is empty
STUDENTS_OF = ("paper", "paper3", "quick5", "quick")  # profiles whose students are preferred to the released one, larger studies first
TINY = 1e-30  # as in study.trust, whose libraries take long to import


@dataclass(frozen=True)
class Stager:
    """A full-image network ready for use, with what is needed to read its answers."""

    net: StagingNet
    config: RunConfig
    scheme: StagingScheme
    source: str  # name of the run, or of the released student
    temperature: float = 1.0  # calibrates the probabilities, see study.trust; 1: as they are
    virtual: bool = False  # trained on virtual patients
    native_px: int = NATIVE_PX  # larger images are reduced to this, as those were that it learned from

    def look(self, image: GreyImage) -> dict:
        """Stage one image.

        Returns stage (label), probabilities, expected_stage (mean label under the probabilities), uncertainty (entropy over its largest
        value: 0 certain, 1 ignorant), peak (x, y) and box (x0, y0, x1, y1) in pixels of the image, and cam: the Grad-CAM (n, n) of the
        decided stage over the square frame; over the frame of the part between a screenshot's borders, where only that is looked at.
        """
        return self.look_at([image])[0]

    def look_at(self, images: list[GreyImage]) -> list[dict]:
        """`look` of several images in one pass, which costs less than a pass for each."""
        parts = [image.record.get("content") or (0, 0, *image.pixels.shape[::-1]) for image in images]
        views = [self._frame_of(image, part) for image, part in zip(images, parts, strict=True)]
        frames = torch.cat([frame for frame, _, _ in views])
        both = torch.cat([frames, frames.flip(3)])  # (2n, 1, side, side)

        def together(logits):  # (n, k) probabilities of images, from logits (2n, k) of them and their mirror images
            return logits.double().softmax(1).view(2, len(images), -1).mean(0)

        look, cams = explain(self.net, both, lambda logits: together(logits).argmax(1).repeat(2), self.config.cam_layer)
        cams = cams[:len(images)] + cams[len(images):].flip(2)  # (n, m, m)
        peaks, fine = peak(cams).tolist(), enlarge(cams, self.config.frame_px).numpy()
        probabilities = (together(look.logits).clamp_min(TINY).log() / self.temperature).softmax(1).numpy()
        return [self._answer(*seen) for seen in zip(probabilities, cams.numpy(), peaks, fine, views, parts, strict=True)]

    def _frame_of(self, image: GreyImage, part: tuple[int, int, int, int]) -> tuple[torch.Tensor, Scene, float]:
        """The frame (1, 1, side, side), normalised, of a part x0, y0, x1, y1 of an image, where it lies on the part as reduced, and reduced over
        stored pixels."""
        x0, y0, x1, y1 = part
        native, scale, _ = reduce_to(replace(image, pixels=image.pixels[y0:y1, x0:x1]), self.native_px)
        scene = still_scene(torch.tensor([native.shape]))
        frame = frame_camera(torch.from_numpy(native)[None, None], scene, self.config)
        return normalise(frame.div_(255), out=frame), scene, scale

    def _answer(self, probabilities: np.ndarray, cam: np.ndarray, at: list[float], fine: np.ndarray, view: tuple, part: tuple) -> dict:
        """What `look` returns, of one image: from its probabilities (k,), its map (m, m), the map's peak in the frame, the map as fine as the frame,
        and what `_frame_of` says of the part that was seen."""
        seen = bool(cam.sum() > WEAK_MASS)
        if seen:
            _, scene, scale = view
            x, y = (scene.to_native(torch.tensor([[at, *region(fine)]]))[0] / scale).numpy().T
            x0, y0, x1, y1 = part
            x, y = x0 + np.clip(x, 0, x1 - x0), y0 + np.clip(y, 0, y1 - y0)
        labels = np.array(self.scheme.labels)
        entropy = -(probabilities * np.log(np.clip(probabilities, 1e-12, 1))).sum() / math.log(len(labels))
        return {"stage": int(labels[probabilities.argmax()]), "probabilities": probabilities.tolist(),
                "expected_stage": float(probabilities @ labels), "uncertainty": float(entropy),
                "peak": [float(x[0]), float(y[0])] if seen else None,
                "box": [float(v) for v in (x[1], y[1], x[2], y[2])] if seen else None, "cam": cam}


def region(cam: np.ndarray) -> list[list[float]]:
    """Two corners, in [0, 1], of the connected part of a map (n, n) that is above REGION of its peak and holds the peak."""
    from scipy import ndimage  # which takes a quarter of a second, and what imports this room need not wait for it

    above = cam >= REGION * cam.max()
    (y0, y1), (x0, x1) = ((np.flatnonzero(above.any(axis))[[0, -1]] + (0, 1)).tolist() for axis in (1, 0))  # most of a map lies below: not looked at
    parts, _ = ndimage.label(above[y0:y1, x0:x1])
    y, x = np.unravel_index(cam.argmax(), cam.shape)
    rows, columns = ndimage.find_objects(parts)[parts[y - y0, x - x0] - 1]
    height, width = cam.shape
    return [[(x0 + columns.start) / width, (y0 + rows.start) / height], [(x0 + columns.stop) / width, (y0 + rows.stop) / height]]


def load_stager(weights=None) -> Stager:
    """The network that stages images: of the run folder `weights`, or where it is `released` the one that ships with the package; where it is None
    the best student (by validation accuracy) of the first of STUDENTS_OF that has one under `runs/`, else the released one.

    Raises RunError for a folder without a run, or of another role.
    """
    run = best_student() if weights is None else None if str(weights) == "released" else Run(Path(weights))
    if run is None:
        record = released_record()
        config, scheme = config_of(record, RELEASED), get_scheme(record["scheme"])
        net = load_network(RELEASED / "student.safetensors", config, len(scheme))
        return Stager(fold_norms(net), config, scheme, f"released {record['run']}", record.get("temperature_scale", 1.0), record["virtual"],
                      record.get("native_px", NATIVE_PX))
    if run.config.role not in ("student", "baseline"):
        raise RunError(f"{run.name}: a teacher reads crops that a person or a detector draws; give the folder of a student or baseline")
    return Stager(fold_norms(run.load()), run.config, run.scheme, run.name, run.temperature_scale, run.record["virtual"],
                  run.record.get("native_px", NATIVE_PX))


def best_student() -> Run | None:
    """The student with the best accuracy on its validation images of the first profile in STUDENTS_OF that has one under `runs/`; None where there
    is none."""
    for profile in STUDENTS_OF:
        students = [run for run in find_runs(runs_dir(profile) / "models", "student") if run.weights.is_file()]
        if students:
            return max(students, key=lambda run: run.split("valid").eval("decided == stage").mean())
    return None


def released_record() -> dict:
    """What is known of the released student. Raises RunError where the package ships without one."""
    try:
        return json.loads((RELEASED / "student.json").read_text())
    except OSError:
        raise RunError("no trained student: run ./run_all.sh, or give --weights RUN") from None


def predict_paths(paths: Iterable, weights=None, cam_dir=None, dicom_dir=None) -> Iterator[dict]:
    """Stage each path; yields one row an input, in order, with the keys of `sos predict --json`.

    A path that cannot be read gives a row with `error` and does not stop the rest. With `cam_dir`, a picture of the heat map over each image
    is written there; with `dicom_dir` a secondary capture and a structured report of each DICOM input, which carry its patient and study.
    Raises RunError where the weights cannot be used.
    """
    stager = load_stager(weights)
    for folder in filter(None, (cam_dir, dicom_dir)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for number, (path, image, answer) in enumerate(_answered(stager, paths), 1):
        if isinstance(image, ImageError):
            yield empty_row(path) | {"error": str(image)}
        else:
            yield _row(path, image, answer, stager, f"{number:04d}_{Path(path).stem}", cam_dir, dicom_dir)


def _answered(stager: Stager, paths: Iterable) -> Iterator[tuple]:
    """Each path, its image and what the stager says to it, in order; of an input that has none its ImageError and None.

    One pass of the network takes the first path alone, so that an answer comes soon, and then TOGETHER. Each core reads and looks at a batch of
    its own with one thread, so that none waits for another's, and one more batch waits for the core that ends first; beyond that nothing is read
    ahead.
    """
    def look(batch):
        known = [(path, _image_or_error(path)) for path in batch]
        images = [image for _, image in known if isinstance(image, GreyImage)]
        answers = iter(stager.look_at(images) if images else [])
        return [(path, image, next(answers) if isinstance(image, GreyImage) else None) for path, image in known]

    paths, cores, threads, ahead = iter(paths), len(os.sched_getaffinity(0)), torch.get_num_threads(), deque()
    size, most = 1, cores  # of the first: the batch that would wait is not taken before it is answered
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while batch := list(islice(paths, size)):
                ahead.append(pool.submit(look, batch))
                if len(ahead) == most:
                    yield from ahead.popleft().result()
                    most = cores + 1
                size = TOGETHER
            for left in ahead:
                yield from left.result()
    finally:
        torch.set_num_threads(threads)  # of the caller, and of threads that it has not started yet


def _image_or_error(path) -> GreyImage | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


def _row(path, image: GreyImage, answer: dict, stager: Stager, name: str, cam_dir, dicom_dir) -> dict:
    cam = answer.pop("cam")
    warnings = list(image.record["warnings"])
    if answer["box"] is None:
        warnings.append("the network looked nowhere in particular; do not trust this stage")
    if cam_dir is not None:
        from .pictures import save_picture  # matplotlib takes half a second to import

        save_picture(Path(cam_dir) / f"{name}.png", image, cam, answer, stager)
    if dicom_dir is not None:
        from .report import write_dicom

        warnings += write_dicom(Path(dicom_dir), name, path, image, cam, answer, stager)
    return empty_row(path) | answer | {"warnings": warnings}
