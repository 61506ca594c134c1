"""How long a stage takes: every way from a decoded image to its stage, timed one image at a time on this machine.

All of them begin with native grey pixels in memory and end with a stage; the camera, which makes a frame or a crop of the pixels, is part of the
time. The models take turns on each image, so that whatever else the machine does hits all alike. It should do nothing else.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from ..cohort.cameras import camera, frame_camera, normalise, square_window, still_scene
from ..config import RunConfig
from ..errors import RunError
from ..files import write_whole
from .grid import find
from .runs import Run, machine_record
from .training import Study

WARM_UP = 3  # untimed turns before the first timed one


def full_image(net, config: RunConfig, device: str) -> Callable:
    """The way of a full-image network: (native pixels (h, w) uint8, box) → stage counted from 0. The box is not looked at."""
    def stage(native, box):
        pixels, scene = _scene(native, device)
        return int(net(normalise(frame_camera(pixels, scene, config) / 255)).argmax())
    return stage


def given_box(net, config: RunConfig, device: str) -> Callable:
    """The way of the crop teacher once a person has drawn the box (4,), in native pixels."""
    def stage(native, box):
        pixels, scene = _scene(native, device)
        window = square_window(scene.box_to_frame(torch.from_numpy(box)[None].to(device)), config.window_scale)
        return int(net(normalise(camera(pixels, scene, config.window_px, window) / 255)).argmax())
    return stage


def found_box(detector, config: RunConfig, teacher, window: RunConfig, device: str) -> Callable:
    """The way of a detector and, after it, the teacher of configuration `window`; -1 where nothing is found."""
    def stage(native, box):
        pixels, scene = _scene(native, device)
        found = detector.find(normalise(frame_camera(pixels, scene, config) / 255))
        if not found.there[0]:
            return -1
        crop = camera(pixels, scene, window.window_px, square_window(found.boxes, window.window_scale))
        return int(teacher(normalise(crop / 255)).argmax())
    return stage


def _scene(native: np.ndarray, device: str):
    pixels = torch.from_numpy(native).to(device)[None, None].float()
    return pixels, still_scene(torch.tensor([native.shape], device=device))


def way_of(run: Run, teacher: Run | None, device: str) -> Callable:
    """From native pixels and the expert's box to a stage, as the model of `run` goes; teacher: a detector's."""
    net, config = run.load(device), run.config
    if config.role == "detector":
        return found_box(net, config, teacher.load(device), teacher.config, device)
    return (given_box if config.role == "teacher" else full_image)(net, config, device)


def obtain(study: Study) -> pd.DataFrame:
    """What was measured of just these runs on such a machine, by the name of the run; measured now where it was not.

    With how many threads, the measurement says: a notebook that has one core of two takes what was measured while both were idle.
    """
    known, machine = read_latency(study), machine_record(study.device)
    same = all(name in known and (known[name] == machine[name]).all() for name in ("processor", "cores", "device"))
    if not same or set(known.index) != {run.name for run in _timed(study).values()}:
        measure_latency(study)
    return read_latency(study)


def _timed(study: Study) -> dict[str, Run]:
    """The competitors whose run of the first seed is finished with its weights."""
    return {name: found[0] for name, configs in study.profile.competitors().items()
            if (found := find(study, configs[:1])) and found[0].weights.is_file()}


def measure_latency(study: Study) -> pd.DataFrame:
    """Time each competitor whose run of the first seed is finished with its weights; written to `runs/<profile>/latency.csv` and returned.

    One row a model: model, run, images, median_ms, low_ms and high_ms (quartiles), person (whether a person has to draw the box before; that
    time is not in it), and the record of the machine. Raises RunError where no run is finished.
    """
    runs = _timed(study)
    if not runs:
        raise RunError(f"{study.folder}: no finished run whose time could be measured; train the models first")
    teacher = find(study, [study.profile.run("teacher")])
    ways = {name: way_of(run, teacher[0] if teacher else None, study.device) for name, run in runs.items()}
    held_out = study.cohort.table.index[study.cohort.table["split"] == "test"].to_numpy()
    took = time_turns(ways, study.store, np.resize(held_out, study.profile.latency_images))
    low, median, high = np.percentile(took, [25, 50, 75], axis=0)  # (models,) each
    machine = machine_record(study.device) | {"precision": "fp32"}
    table = pd.DataFrame([{"model": name, "run": run.name, "images": len(took), "median_ms": median[i], "low_ms": low[i], "high_ms": high[i],
                           "person": run.config.role == "teacher", **machine} for i, (name, run) in enumerate(runs.items())])
    write_whole(study.folder / "latency.csv", table.to_csv(index=False, float_format="%.4g"))
    return table


@torch.no_grad()
def time_turns(ways: dict[str, Callable], store, rows: np.ndarray) -> np.ndarray:
    """(images, ways) milliseconds. Each image goes through all ways in turn, each time beginning with another one."""
    each, took = list(ways.values()), np.empty((len(rows), len(ways)))
    for turn in range(-WARM_UP, len(rows)):
        row = rows[max(turn, 0)]
        native = np.ascontiguousarray(store.native([row])[0])
        for k in np.roll(np.arange(len(each)), turn):
            began = time.perf_counter()
            each[k](native, store.boxes[row])  # gives a number, and so waits for a GPU
            if turn >= 0:
                took[turn, k] = 1000 * (time.perf_counter() - began)
    return took


def read_latency(study: Study) -> pd.DataFrame:
    """What `measure_latency` wrote, by the name of the run; empty where nothing was measured yet."""
    path = study.folder / "latency.csv"
    return pd.read_csv(path).set_index("run") if path.is_file() else pd.DataFrame()
