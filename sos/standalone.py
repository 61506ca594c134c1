"""Stage images with an exported network, without sos and without torch: `python stage.py scan.dcm slice.png`. RESEARCH USE ONLY.

`sos export` copies this file beside the network. It is also the reference for README.md there: each function is one of its steps. Needs numpy,
pillow and onnxruntime, and pydicom for DICOM. It reads single images that are whole and plain; what `sos predict` does beyond that (volumes,
damaged files, colour and display tables in DICOM, wide
borders of screenshots, warnings, heat maps) it does not.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def read(path) -> np.ndarray:
    """Step 1: source values (h, w) float32, bright = dense; NaN where nothing was measured."""
    path = Path(path)
    with path.open("rb") as file:
        dicom = file.read(132)[128:] == b"DICM"
    if dicom:
        import pydicom

        ds = pydicom.dcmread(path)
        stored = ds.pixel_array
        values = stored.astype(np.float32)
        if ds.PhotometricInterpretation == "MONOCHROME1":
            values = (2**ds.BitsStored - 1 if ds.PixelRepresentation == 0 else -1) - values
        values = values * np.float32(ds.get("RescaleSlope", 1)) + np.float32(ds.get("RescaleIntercept", 0))
        if "PixelPaddingValue" in ds:
            values[stored == ds.PixelPaddingValue] = np.nan
        return values
    image = Image.open(path)
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32)
    layers = np.asarray(image.convert("RGBA")).astype(np.float32)
    values = layers[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    values[layers[..., 3] < 128] = np.nan
    return values


def grey(values: np.ndarray, how: dict) -> np.ndarray:
    """Step 2: (h, w) in [0, 1]."""
    ordered = np.sort(values[np.isfinite(values)])
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


def main(paths: list[str]) -> None:
    """Print one line of JSON for each image."""
    import onnxruntime

    folder = Path(__file__).resolve().parent
    how = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    network = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for path in paths:
        seen = frame(reduce(grey(read(path), how), how), how)
        probabilities = network.run(["probabilities"], {"frame": seen[None, None]})[0][0]
        print(json.dumps({"path": path, "stage": how["labels"][int(probabilities.argmax())], "probabilities": [float(p) for p in probabilities],
                          "use": how["use"]}))


if __name__ == "__main__":
    main(sys.argv[1:])
