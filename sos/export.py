"""A trained network for systems without Python: ONNX, from the square frame to the probabilities of `sos predict`, and beside it how a file
becomes such a frame, in words, in numbers and in code that needs neither sos nor torch."""

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from . import __version__, standalone
from .cohort.cameras import FINE, MEAN, STD, normalise
from .errors import RunError
from .images.reader import BRIGHT, DARK
from .predict import Stager, load_stager
from .rows import USE
from .study.trust import TINY

OPSET = 20
TOLERANCE = 1e-4  # of a probability, between onnxruntime and torch
TRIED = 8  # frames that both are held against each other on


class Whole(nn.Module):
    """What a Stager does between the frame and the probabilities: normalisation, the image and its mirror image, their mean, calibration.

    frame: (b, 1, n, n) in [0, 1] → probabilities (b, k), and where the network looks twice the window (b, 4) x0, y0, x1, y1 of its second look
    at the image as it is, in shares of the frame.
    """

    def __init__(self, stager: Stager):
        super().__init__()
        self.net, self.temperature = stager.net, stager.temperature

    def forward(self, frame: torch.Tensor):
        x = normalise(frame)
        picture, window = self.net.view(torch.cat([x, x.flip(3)]))
        logits = self.net.judge(self.net.features(picture)).logits  # (2b, k)
        mean = logits.softmax(1).unflatten(0, (2, -1)).mean(0)  # (b, k)
        probabilities = (mean.clamp_min(TINY).log() / self.temperature).softmax(1)
        return probabilities if window is None else (probabilities, window.unflatten(0, (2, -1))[0])


def export_onnx(weights, out) -> Path:
    """Write the network `weights` (a run's folder or `released`) into the new folder `out`: model.onnx, preprocessing.json, README.md, stage.py.

    The folder appears when whole and checked: onnxruntime and torch agree to TOLERANCE. Raises RunError for a teacher, for a folder that holds
    something, and where they do not agree.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is there and not empty; give a new folder for the export")
    stager = load_stager(weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part.", dir=out.parent) as part:
        folder = Path(part) / "export"
        folder.mkdir()
        how = description(stager)
        write_network(stager, folder / "model.onnx", how)
        how["largest_difference"] = largest_difference(stager, folder / "model.onnx")
        if not how["largest_difference"] <= TOLERANCE:
            raise RunError(f"{stager.source}: onnxruntime gives probabilities that differ by {how['largest_difference']:.1e}; nothing was exported")
        (folder / "preprocessing.json").write_text(json.dumps(how, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(how), encoding="utf-8")
        shutil.copyfile(standalone.__file__, folder / "stage.py")
        os.replace(folder, out)
    return out


def write_network(stager: Stager, path: Path, how: dict) -> None:
    """The network as ONNX of any batch size, its description among the model's properties; checked by onnx."""
    import onnx

    whole, n = Whole(stager).eval(), stager.config.frame_px
    names = list(how["outputs"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        torch.onnx.export(whole, (torch.rand(2, 1, n, n),), path, input_names=["frame"], output_names=names, opset_version=OPSET, dynamo=True,
                          dynamic_shapes={"frame": {0: torch.export.Dim("batch")}}, external_data=False, verbose=False)
    model = onnx.load(path)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the exporter's notes, which quote source files of this machine
    model.producer_name, model.producer_version = "sos", __version__
    model.doc_string = f"Stages fusion of the spheno-occipital synchondrosis. {USE}: not a medical device, not for clinical decisions."
    onnx.helper.set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in how.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def largest_difference(stager: Stager, path: Path) -> float:
    """Between probabilities of onnxruntime and torch, over smooth noise that is no head; a network that answers heads alike on both does so here."""
    import onnxruntime

    rng, n = np.random.default_rng(0), stager.config.frame_px
    frames = np.stack([gaussian_filter(rng.random((n, n)), 1 + 2 * k) for k in range(TRIED)])[:, None]
    low, high = frames.min((2, 3), keepdims=True), frames.max((2, 3), keepdims=True)
    frames = ((frames - low) / (high - low)).astype(np.float32)
    with torch.no_grad():
        told = Whole(stager).eval()(torch.from_numpy(frames))
    told = (told if isinstance(told, torch.Tensor) else told[0]).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(abs(session.run(["probabilities"], {"frame": frames})[0] - told).max())


def description(stager: Stager) -> dict:
    """Everything that it takes to use the network, as plain values: preprocessing.json."""
    config, scheme = stager.config, stager.scheme
    outputs = {"probabilities": ["batch", len(scheme)]} | ({"window": ["batch", 4]} if config.looks == 2 else {})
    return {"name": "sos", "version": __version__, "weights": stager.source, "use": USE, "licence": "MIT", "virtual": stager.virtual,
            "scheme": scheme.name, "source": scheme.source, "labels": list(scheme.labels), "names": list(scheme.names),
            "criteria": [stage.criterion for stage in scheme.stages],
            "input": {"frame": ["batch", 1, config.frame_px, config.frame_px]}, "outputs": outputs, "opset": OPSET,
            "dark": DARK, "bright": BRIGHT, "native_px": stager.native_px, "frame_px": config.frame_px, "samples": 1 if config.looks == 2 else FINE,
            "inside": {"mean": MEAN, "std": STD, "mirrored": True, "temperature": stager.temperature}}


def readme(how: dict) -> str:
    """preprocessing.json in words."""
    n, samples = how["frame_px"], how["samples"]
    stages = "\n".join(f"| {k} | {label} | {name} | {text} |" for k, (label, name, text) in
                       enumerate(zip(how["labels"], how["names"], how["criteria"], strict=True)))
    averaged = "" if samples == 1 else f"; a pixel of the frame is the mean of its {samples} × {samples} samples"
    window = ("\n- `window` (batch, 4): x0, y0, x1, y1 of the second look, in shares of the frame (0, 0 its top left, 1, 1 its bottom right)."
              if "window" in how["outputs"] else "")
    trained = ("**Trained and tested on virtual patients only**; on real images its stages are a demonstration." if how["virtual"] else
               "Trained on the cohort of one group; test it on your own.")
    return f"""# Stage of the spheno-occipital synchondrosis, as ONNX

**Research use only.** Not a medical device, no regulatory approval, not for decisions about a person, least of all about a person's age.
{trained} Licence: {how["licence"]}.

`model.onnx` (opset {how["opset"]}) holds `{how["weights"]}` of sos {how["version"]}. It gives the probabilities of `sos predict` to {TOLERANCE:g} in
onnxruntime; when it was written they differed by {how["largest_difference"]:.1e} at most. `stage.py` does all below
without sos and torch; it needs numpy, pillow, onnxruntime, and for DICOM pydicom:

    python stage.py slice.dcm slice.png

## In and out

- `frame` (batch, 1, {n}, {n}), float32 in [0, 1]: made as said below. Normalisation, the mirror image, the mean of both and the calibration
  are inside of the network; give it one image as it is.
- `probabilities` (batch, {len(how["labels"])}): of the stages, in this order.{window}

| place | stage | name | criterion ({how["source"]}) |
|---|---|---|---|
{stages}

The expected stage is the sum of stages times probabilities; the uncertainty is −Σ p·ln p / ln {len(how["labels"])}.

## From a file to a frame

The numbers stand in `preprocessing.json`. One mid-sagittal image, the whole of it, as it comes from the device; which way the
head faces does not matter.

1. **Source values**, bright = dense. DICOM: stored values, those of MONOCHROME1 subtracted from the largest that the bits stored can hold (from −1
   where they are signed), then rescale slope (1 where it is absent or 0) and intercept; no display window. PNG, JPEG or TIFF: grey values, or
   0.299 R + 0.587 G + 0.114 B. Not measured are padding (stored values from the padding value to its range limit; where pixels are signed and it is
   stated unsigned, take two to the power of the bits allocated from it) and what is transparent (alpha below 128, or the one grey value that a PNG
   names). `stage.py` refuses what takes more than this: volumes, colour, modality and VOI tables, pixels that do not end at the
   lowest bit.
2. **Grey.** Of the n measured values in rising order take number ⌈{how["dark"]} n⌉ and number ⌈{how["bright"]} n⌉, counted from 1 (no
   interpolation; where they are equal, the least and the largest). The first becomes 0, the second 1, linearly, in single precision, by a
   product with the reciprocal of their difference; clip to [0, 1]. What was not measured becomes 0. Of a screenshot whose plain borders
   take more than a quarter of its longer side, `sos predict` goes on with what lies between them; `stage.py` does not
   look for borders: cut them off first.
3. **Reduce.** Where the longer side exceeds {how["native_px"]} pixels: resize to {how["native_px"]} over it, sides rounded, by a triangle filter as
   wide as the reduction (Pillow's BILINEAR; torch's `antialias=True`), not by bare bilinear sampling. Smaller images stay as they are. Then 255
   times, rounded to whole numbers (half to even).
4. **Frame.** The image lies centred in a square with the longer side s of it as side, black beyond its edges. The square is sampled at
   {n * samples} × {n * samples} places, bilinearly: sample i (from 0) of a row lies at x = w/2 + s·((i + 0.5)/{n * samples} − 0.5), where pixel j has
   its middle at j + 0.5; columns alike. A neighbour beyond the image counts as 0{averaged}. Divide by 255.
"""
