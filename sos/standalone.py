"""Stage images with an exported network, without sos and without torch: `python stage.py scan.dcm slice.png`. RESEARCH USE ONLY.

`sos export` copies this file beside the network. It is also the reference for README.md there: each function is one of its steps. Needs numpy,
pillow and onnxruntime, and pydicom for DICOM (with its plugins where that is compressed). It reads single images that are whole and plain, and
refuses DICOM that `sos predict` reads otherwise than by these steps (volumes, colour, tables, unusual bits). Damaged files, wide borders of
screenshots, warnings and heat maps are not its matter.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


class Refused(ValueError):
    """An image that takes more than the steps below; `sos predict` may read it."""


def read(path) -> np.ndarray:
    """Step 1: source values (h, w) float32, bright = dense; NaN where nothing was measured. Raises Refused."""
    path = Path(path)
    with path.open("rb") as file:
        dicom = file.read(132)[128:] == b"DICM"
    return read_dicom(path) if dicom else read_picture(path)


def read_dicom(path: Path) -> np.ndarray:
    """Step 1 of one DICOM file."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the header
    ds = pydicom.dcmread(path)
    number = lambda name, default=None: default if ds.get(name) in (None, "") else float(ds[name].value)  # noqa: E731
    if ds.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2") or number("NumberOfFrames", 1) > 1:
        raise Refused("not a single grey image")
    tables = ("ModalityLUTSequence", "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    if "PixelData" not in ds or ds.HighBit != ds.BitsStored - 1 or any(name in ds for name in tables):
        raise Refused("its pixels are stored in an unusual way")
    stored = ds.pixel_array
    values = stored.astype(np.float32)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        values = (2**ds.BitsStored - 1 if ds.PixelRepresentation == 0 else -1) - values
    values = values * np.float32(number("RescaleSlope") or 1) + np.float32(number("RescaleIntercept", 0))
    padding = number("PixelPaddingValue")
    if padding is not None:
        ends = np.array([padding, number("PixelPaddingRangeLimit", padding)])
        if ds.PixelRepresentation == 1:
            ends[ends >= 2 ** (ds.BitsAllocated - 1)] -= 2.0**ds.BitsAllocated  # stated unsigned
        if abs(ends).max() >= 2**ds.BitsStored:
            raise Refused("its padding uses bits above those stored")
        values[(stored >= ends.min()) & (stored <= ends.max())] = np.nan
    return values


def read_picture(path: Path) -> np.ndarray:
    """Step 1 of a PNG, JPEG or TIFF."""
    image = Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        if image.format == "TIFF" and image.mode != "L" and image.tag_v2.get(262) == 0:
            raise Refused("white is zero")
        values = np.asarray(image).astype(np.float32)
        values[values == image.info.get("transparency", np.nan)] = np.nan
        return values
    layers = np.asarray(image.convert("RGBA")).astype(np.float32)
    values = layers[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    values[layers[..., 3] < 128] = np.nan
    return values


def grey(values: np.ndarray, how: dict) -> np.ndarray:
    """Step 2: (h, w) in [0, 1]."""
    ordered = np.sort(values[np.isfinite(values)])
    if not ordered.size or ordered[0] == ordered[-1]:
        raise Refused("all of it has the same value, or is padding")
    low, high = (ordered[max(int(np.ceil(share * ordered.size)) - 1, 0)] for share in (how["dark"], how["bright"]))
    if low == high:
        low, high = ordered[0], ordered[-1]
    return np.nan_to_num(np.clip((values - low) * np.float32(1 / (float(high) - float(low))), 0, 1), nan=0.0)


def reduce(picture: np.ndarray, how: dict) -> np.ndarray:
    """Step 3: (h, w) whole numbers from 0 to 255, the longer side at most `native_px`."""
    height, width = picture.shape
    scale = how["native_px"] / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    return np.rint(np.clip(picture, 0, 1) * 255)


def frame(native: np.ndarray, how: dict) -> np.ndarray:
    """Step 4: (frame_px, frame_px) float32 in [0, 1], the square picture that the network takes."""
    side = max(native.shape)

    def weights(length):  # (frame_px, length): how much each pixel of a row or column counts in each pixel of the frame
        samples = how["frame_px"] * how["samples"]
        place = length / 2 + side * ((np.arange(samples) + 0.5) / samples - 0.5) - 0.5
        bilinear = np.maximum(0, 1 - abs(place[:, None] - np.arange(length)))
        return bilinear.reshape(how["frame_px"], how["samples"], length).mean(1)

    return (weights(native.shape[0]) @ native @ weights(native.shape[1]).T / 255).astype(np.float32)


def main(paths: list[str]) -> int:
    """Print one line of JSON for each image; 1 where one was not read."""
    import onnxruntime

    folder = Path(__file__).resolve().parent
    how = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    network = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    failed = 0
    for path in paths:
        row = {"path": path}
        try:
            seen = frame(reduce(grey(read(path), how), how), how)
        except Refused as error:
            row |= {"error": f"{error}; stage it with `sos predict`"}
        except (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:  # of pillow, pydicom and its plugins
            row |= {"error": f"not readable ({type(error).__name__})"}
        else:
            probabilities = network.run(["probabilities"], {"frame": seen[None, None]})[0][0]
            row |= {"stage": how["labels"][int(probabilities.argmax())], "probabilities": [float(p) for p in probabilities]}
        failed |= "error" in row
        print(json.dumps(row | {"use": how["use"]}))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
