"""What leaves the clinic: the file that a picture archive or a screenshot makes of a patient's image.

Archives write 16-bit DICOM, plain or compressed without loss, some with inverted grey (MONOCHROME1). Screenshots hold 8 bits
after a workstation's window, on whatever grid the screen had, between bars, and know nothing of millimetres. Box, mask and joint
follow the pixels, so that the manifest speaks of each image as decoded.
"""

import io
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from .header import WINDOW, ct_header, dicom_bytes

#: Kinds of file and the share of patients that have them. Our choice: every kind is met in a hundred patients, and rarest are
#: the two whose encoders take longest.
SHARES = {"dicom": 0.50, "dicom-monochrome1": 0.09, "dicom-rle": 0.09, "dicom-jpegls": 0.09, "dicom-jpeg2000": 0.05, "png": 0.07,
          "jpeg": 0.11}
#: Transfer syntax and encoder of the compressed kinds; all lossless.
COMPRESSED = {"dicom-rle": (RLELossless, "gdcm"), "dicom-jpegls": (JPEGLSLossless, "pyjpegls"),
              "dicom-jpeg2000": (JPEG2000Lossless, "pylibjpeg")}
#: Ends of file names: of screenshots by kind, and of all files.
SCREENSHOTS = {"png": ".png", "jpeg": ".jpg"}
SUFFIXES = (".dcm", *SCREENSHOTS.values())
#: Width of a screenshot in pixels.
SCREEN_PX = (680, 1000)


@dataclass(frozen=True)
class Export:
    """How one image leaves the clinic. All but `kind` matters to screenshots only.

    centre, width: the window in grey values. picture_px: width of the picture between the bars. left, right (px), above, below
    (shares of the picture's height): the bars, of grey value `bar` (8 bits). rgb: three equal channels. quality: of JPEG.
    """

    kind: str
    centre: float
    width: float
    picture_px: int
    left: int
    right: int
    above: float
    below: float
    bar: int
    rgb: bool
    quality: int

    @property
    def screenshot(self) -> bool:
        return self.kind in SCREENSHOTS

    @property
    def suffix(self) -> str:
        """End of the file's name, one of SUFFIXES."""
        return SCREENSHOTS.get(self.kind, ".dcm")


class File(NamedTuple):
    """An encoded image and the truth in its pixels as decoded: `data`; `mask` (h, w) bool; `box` (x0, y0, x1, y1); `joint_px`
    (x, y), whole numbers at the middle of a pixel; `spacing_mm` of a pixel, also where the file does not state it."""

    data: bytes
    mask: np.ndarray
    box: tuple[float, float, float, float]
    joint_px: tuple[float, float]
    spacing_mm: float


def draw_export(rng) -> Export:
    """Choose a kind of file, and what a person at a workstation would have set for a screenshot."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    centre, width = np.clip(rng.normal(500, 120), 250, 750), np.clip(rng.normal(3000, 400), 2200, 4000)
    narrowest, widest = SCREEN_PX
    file_px = int(rng.integers(narrowest, widest + 1))
    across, down = (rng.uniform(0, most) * (rng.random() < 0.45) for most in (0.2, 0.4))
    before = np.where(rng.random(2) < 0.7, 0.5, rng.random(2))  # shares of the bars on the left and above: mostly in the middle
    picture_px = max(narrowest, round(file_px * (1 - across)))
    left = int(before[0] * (file_px - picture_px))
    bar = int(rng.integers(16, 56)) if rng.random() < 0.2 else 0
    return Export(kind, float(centre), float(width), picture_px, left, file_px - picture_px - left, float(before[1] * down),
                  float((1 - before[1]) * down), bar, bool(rng.random() < 0.3), int(rng.integers(70, 96)))


def export_patient(patient) -> File:
    """Encode a `write.Patient` as its `export` says. Same patient, same bytes."""
    if patient.export.screenshot:
        return _screenshot(patient)
    return File(to_dicom(patient, patient.export.kind), patient.mask, patient.box, patient.joint_px, patient.exposure.voxel_mm)


def _screenshot(patient) -> File:
    """Window, scale to the screen's pixels, frame; mask, box and joint go along, the box to whole pixels outward."""
    export, (h, w) = patient.export, patient.pixels.shape
    size = export.picture_px, round(h * export.picture_px / w)
    scale = np.array(size) / (w, h)
    above, below = (round(share * size[1]) for share in (export.above, export.below))
    first = np.array([export.left, above])
    frame = size[0] + export.left + export.right, size[1] + above + below  # width, height
    steps = np.float32(255 / export.width)
    grey = patient.pixels * steps + np.float32(128 - export.centre * steps)  # (h, w) float32, 0.5 more than the 8 bits shown
    grey = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    screen = Image.new("L", frame, export.bar)
    screen.paste(grey, tuple(first.tolist()))
    mask = np.zeros(frame[::-1], bool)
    columns, rows = (((np.arange(n) + 0.5) / s).astype(int) for n, s in zip(size, scale, strict=True))  # nearest native pixels
    mask[above:above + size[1], export.left:export.left + size[0]] = patient.mask[np.ix_(rows, columns)]
    if export.rgb:
        screen = screen.convert("RGB")
    buffer = io.BytesIO()
    if export.kind == "png":
        screen.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # noise comes out quicker and smaller than by default
    else:
        screen.save(buffer, "JPEG", quality=export.quality)
    box = np.array(patient.box).reshape(2, 2) * scale
    x0, y0, x1, y1 = (float(v) for v in np.r_[np.floor(box[0]), np.minimum(np.ceil(box[1]), size)] + np.tile(first, 2))
    x, y = (np.array(patient.joint_px) + 0.5) * scale - 0.5 + first  # whole numbers are the middle of a pixel, not its edge
    return File(buffer.getvalue(), mask, (x0, y0, x1, y1), (float(x), float(y)), patient.exposure.voxel_mm / float(scale[0]))


def to_dicom(patient, kind: str = "dicom") -> bytes:
    """The patient's native pixels as a CT Image Storage file (16 bits allocated, no dates, no names) of one of the DICOM kinds.

    MONOCHROME1 holds the complement within the bits stored, its window with it: shown as the standard says, it looks the same.
    """
    preset, mm = patient.exposure.preset, patient.exposure.voxel_mm
    ds = ct_header(patient.seed, patient.index, patient.difficulty, patient.person, preset, mm)
    # columns run to the front (-y of the patient) in a head facing right, rows down (-z)
    forward = 1 if patient.exposure.mirrored else -1
    ds.ImageOrientationPatient = ["0", str(forward), "0", "0", "0", "-1"]
    x, y = patient.joint_px  # the origin of the frame of reference is the joint
    ds.ImagePositionPatient = [f"{patient.exposure.off_mm:.2f}", f"{-forward * x * mm:.2f}", f"{y * mm:.2f}"]
    if kind == "dicom-monochrome1":
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.WindowCenter = str((1 << preset.bits) - 1 + 2 * preset.intercept - WINDOW[0])
    return dicom_bytes(ds, patient.pixels, COMPRESSED.get(kind))
