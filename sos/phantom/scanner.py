"""How a section looks: field of view, resolution, grey values, noise and artefacts of cone-beam scanners.

CBCT grey values are not calibrated Hounsfield units: each preset has its own offset, slope and cupping, and each scan drifts on
top. The presets are typical settings of large-field (whole head) and small-field (face and cranial base) units, none of a
particular make.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from .difficulty import Difficulty

MIN_PIXELS = 512


@dataclass(frozen=True)
class Preset:
    """One scanner setting. Lengths in mm; noise, offset and cupping in grey values; grain_px: correlation of the noise; the rest
    are probabilities or relative strengths. `intercept` and `bits` say how the file stores a grey value."""

    name: str
    field: str
    width_mm: float
    height_mm: float
    voxel_mm: float
    blur_mm: float
    noise: float
    grain_px: float
    slope: float
    offset: float
    cupping: float
    motion: float
    streaks: float
    stripes: float
    border: float
    intercept: int = -1000
    bits: int = 12


PRESETS = (
    Preset("large-0.40", "large", 236, 205, 0.40, 0.34, 65, 0.60, 1.00, 0, 60, 0.10, 1.0, 1.0, 0.6),
    Preset("large-0.30-grainy", "large", 188, 160, 0.30, 0.30, 95, 0.60, 0.92, 60, 40, 0.10, 1.2, 1.6, 0.3, -1024, 16),
    Preset("large-0.36-smooth", "large", 214, 185, 0.36, 0.42, 42, 1.00, 1.10, -60, 90, 0.08, 0.7, 0.6, 0.5),
    Preset("large-0.30-rect", "large", 205, 156, 0.30, 0.36, 60, 0.85, 1.05, 0, 70, 0.10, 1.0, 1.0, 1.0, -1000, 16),
    Preset("small-0.25", "small", 140, 130, 0.25, 0.28, 70, 0.90, 0.95, 80, 110, 0.12, 1.3, 1.0, 0.5, -1000, 16),
    Preset("small-0.30", "small", 160, 154, 0.30, 0.34, 52, 0.70, 1.05, -50, 70, 0.10, 1.0, 0.8, 0.6),
    Preset("small-0.25-smooth", "small", 155, 130, 0.25, 0.40, 36, 1.30, 0.85, 120, 130, 0.15, 0.6, 0.5, 0.4, -1024, 16),
    Preset("small-0.32-grainy", "small", 170, 164, 0.32, 0.30, 85, 0.55, 1.00, 0, 60, 0.08, 1.5, 1.5, 0.3),
)


@dataclass(frozen=True)
class Exposure:
    """One scan: the preset and the pose. `joint_px` is (x, y) of the joint's centre before mirroring; `mirrored` heads face
    left; `noise` is a factor on the preset's noise and rings (see `difficulty`)."""

    preset: Preset
    shape: tuple[int, int]
    voxel_mm: float
    pitch_deg: float
    joint_px: tuple[float, float]
    off_mm: float
    mirrored: bool
    noise: float = 1.0


def draw_exposure(rng, difficulty: Difficulty = Difficulty()) -> Exposure:
    """Choose a scanner and a pose."""
    preset = PRESETS[rng.integers(len(PRESETS))]
    h, w = (max(MIN_PIXELS, int(round(mm / preset.voxel_mm))) for mm in (preset.height_mm, preset.width_mm))
    if preset.field == "large":
        across, down = rng.normal(0.46, 0.055), rng.normal(0.45, 0.05)
    else:
        across, down = rng.normal(0.36, 0.055), rng.normal(0.45, 0.06)
    joint_px = (float(np.clip(across, 0.285, 0.595) * w), float(np.clip(down, 0.345, 0.565) * h))
    pitch, off_mm = np.clip(rng.normal(0, 7.0), -20, 20), np.clip(rng.normal(0, 1.4), -4, 4)
    return Exposure(preset, (h, w), preset.voxel_mm, float(pitch), joint_px, float(off_mm), bool(rng.random() < 0.1),
                    difficulty.noise)


def expose(hu, exposure: Exposure, rng, landmarks) -> np.ndarray:
    """Grey values (h, w) int16 of a section `hu` (h, w) float32 in Hounsfield units, after the rescaling that the file states.

    landmarks: pixels (x, y) by name; streaks start at `upper` and `lower`, the incisors' tips. The order is that of nature:
    objects and metal, blur and motion, beam hardening and scatter, noise, what the reconstruction leaves out.
    """
    preset, (h, w), mm = exposure.preset, exposure.shape, exposure.voxel_mm
    braces = rng.random() < 0.3
    image = add_rests(hu, exposure, rng)
    if braces:
        image = add_brackets(image, landmarks, mm, rng)
    sigma = preset.blur_mm * rng.uniform(0.85, 1.2) / mm
    image = gaussian_filter(image, sigma, truncate=3)
    if rng.random() < preset.motion:
        image = move(image, rng.uniform(0.5, 1.3) / mm, rng)
    inside = lowpass(image > -500, 8)  # (h, w) about 1 in tissue, 0 far from it
    low = preset.cupping * rng.uniform(0.3, 1.4) * bowl((h, w), rng)
    low += streaks((h, w), landmarks, mm, preset.streaks * (rng.uniform(30, 110) if braces else rng.uniform(3, 35)), rng)
    image += low * inside
    if rng.random() < 0.5:  # truncated tissue: the left edge brightens
        image += inside * (rng.uniform(20, 140) * np.exp(-np.arange(w, dtype=np.float32) * mm / rng.uniform(4, 14)))
    gain, shift = np.float32(preset.slope * rng.normal(1, 0.05)), np.float32(preset.offset + rng.normal(0, 35))
    image = (image + 1000) * gain - 1000 + shift * inside
    noise = rng.standard_normal((h, w), dtype=np.float32)
    noise = gaussian_filter(noise, preset.grain_px, truncate=3)
    noise *= np.float32(exposure.noise * preset.noise * rng.uniform(0.65, 1.3) / noise[::4, ::4].std())
    rows = np.abs(np.linspace(-1, 1, h, dtype=np.float32))[:, None]
    image += noise * (0.35 + 0.65 * inside) * (1 + 0.5 * rows**4)
    image += exposure.noise * preset.stripes * stripes((h, w), rng)
    image = leave_out(image, exposure, rng)
    if preset.field == "large" and rng.random() < 0.2:
        image = bound(image, mm, rng)
    top = (1 << preset.bits) - 1 + preset.intercept if preset.bits < 16 else 4000
    return np.clip(np.rint(image), preset.intercept, top).astype(np.int16)


def add_rests(hu, exposure: Exposure, rng):
    """Chin rest and head rest: plastic in the air round the head."""
    preset, (h, w), mm = exposure.preset, exposure.shape, exposure.voxel_mm
    image = Image.new("F", (w, h), -1000.0)
    pen = ImageDraw.Draw(image)
    used = False
    if rng.random() < 0.45:  # chin rest: plates at the bottom right
        used = True
        x, y = w * rng.uniform(0.78, 0.95), h * rng.uniform(0.86, 1.0)
        wide, tall = rng.uniform(12, 28) / mm, rng.uniform(3, 6) / mm
        plastic = rng.uniform(-500, 150)
        for half, upper, lower, value in ((0.5, 0, tall, plastic), (0.33, tall, 2 * h, plastic - 200),
                                          (0.25, 1.4 * tall, 2 * h, -950.0)):
            pen.rectangle((x - half * wide, y + upper, x + half * wide, y + lower), fill=value)
        if rng.random() < 0.5:
            pen.line((x - 60 / mm, y + tall + rng.uniform(0, 6) / mm, x + 30 / mm, y + tall), fill=rng.uniform(-700, -200),
                     width=max(2, int(1.5 / mm)))
    if preset.field == "large" and rng.random() < 0.45:  # head rest or strap at the back
        used = True
        x, bend = rng.uniform(0.0, 0.06) * w, rng.uniform(4, 20) / mm
        y = np.linspace(0.05, 0.75, 24) * h
        curve = np.c_[x + bend * ((y / h - 0.35) / 0.4) ** 2, y]
        pen.line(curve.ravel().tolist(), fill=rng.uniform(-800, -250), width=max(2, int(rng.uniform(1, 5) / mm)))
    if not used:
        return hu
    return np.where(hu < -600, np.maximum(hu, np.asarray(image)), hu)


def add_brackets(hu, landmarks, mm, rng):
    """Orthodontic brackets and wire on the incisors."""
    image = hu.copy()
    h, w = hu.shape
    for name, side in (("upper", -1), ("lower", 1)):
        x, y = landmarks[name] + np.array([rng.uniform(0.6, 1.4), side * rng.uniform(4, 5.5)]) / mm
        a, b = max(int(x - 0.9 / mm), 0), max(int(y - 1.4 / mm), 0)
        c, d = min(int(x + 0.9 / mm), w), min(int(y + 1.4 / mm), h)
        if a < c and b < d:
            image[b:d, a:c] = np.maximum(image[b:d, a:c], rng.uniform(2600, 3600))
    return image


def move(image, distance_px, rng):
    """A second, fainter image displaced by `distance_px`: the patient moved for part of the turn."""
    h, w = image.shape
    angle, share = rng.uniform(0, np.pi), np.float32(rng.uniform(0.15, 0.35))
    dx, dy = int(np.rint(distance_px * np.cos(angle))), int(np.rint(distance_px * np.sin(angle)))
    pad = max(abs(dx), abs(dy), 1)
    wide = np.pad(image, pad, mode="edge")
    return (1 - share) * image + share * wide[pad + dy:pad + dy + h, pad + dx:pad + dx + w]


def streaks(shape, landmarks, mm, strength, rng):
    """Bright and dark rays from the incisors, fading with distance, (h, w) float32."""
    h, w = shape
    step = 3
    origin = 0.5 * (landmarks["upper"] + landmarks["lower"])
    y, x = np.mgrid[0:h + step:step, 0:w + step:step].astype(np.float32)
    x, y = (x - np.float32(origin[0])) * np.float32(mm), (y - np.float32(origin[1])) * np.float32(mm)
    angle = (np.arctan2(y, x) * np.float32(720 / (2 * np.pi))).astype(np.int32) % 720
    rays = gaussian_filter1d(rng.standard_normal(720), 2.0, mode="wrap")
    rays = rays * (2.65 * (rng.random() * 0.5 + 0.5)) - 0.35 * np.abs(rays)
    far = np.sqrt(x * x + y * y)
    field = rays.astype(np.float32)[angle] * np.exp(-far / np.float32(rng.uniform(25, 60))) * np.float32(strength)
    return np.asarray(Image.fromarray(field).resize((field.shape[1] * step, field.shape[0] * step),
                                                    Image.Resampling.BILINEAR))[:h, :w]


def bowl(shape, rng):
    """Cupping with a tilt and slow drifts, about unit height, (h, w) float32."""
    y, x = np.mgrid[-1:1:24j, -1:1:24j]
    field = (x - rng.normal(0, 0.2)) ** 2 + (y - rng.normal(0, 0.2)) ** 2 - 0.7
    field += rng.normal(0, 0.3) * x + rng.normal(0, 0.3) * y + 0.12 * rng.standard_normal((24, 24))
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def stripes(shape, rng):
    """Rings of a slice through the axis: faint columns, mirrored about it, (w,) float32."""
    axis = int(shape[1] * rng.uniform(0.45, 0.6))
    ring = gaussian_filter1d(rng.standard_normal(shape[1]), 0.7) * rng.uniform(2, 9)
    return ring[np.abs(np.arange(shape[1]) - axis)].astype(np.float32)


def leave_out(image, exposure: Exposure, rng):
    """Frame of the reconstruction: black margins, dark first rows, slanted ends of the cone at top and bottom."""
    preset, (h, w), mm = exposure.preset, exposure.shape, exposure.voxel_mm
    if rng.random() > preset.border:
        return image
    row, column = np.arange(h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    for side in (row, h - 1 - row):
        if rng.random() < 0.6:  # the outermost rows are seen from fewer angles: shading and a slanted or curved edge
            edge = rng.uniform(0, 3) / mm * (1 + rng.uniform(-0.8, 0.8) * column + rng.uniform(-0.3, 0.9) * column**2)
            fade = np.clip((side - edge) / (rng.uniform(0.3, 2) / mm), 0, 1)
            image = image + rng.uniform(-140, 60) * np.exp(-side * mm / rng.uniform(2, 9))
            image = fade * (image + 1000) - 1000
    if rng.random() < 0.35:
        pad = int(rng.uniform(1, 4) / mm)
        sides = rng.random(4) < 0.5
        image[: pad * sides[0]] = -1000
        image[h - pad * int(sides[1]):] = -1000
        image[:, : pad * sides[2]] = -1000
        image[:, w - pad * int(sides[3]):] = -1000
    return image


def bound(image, mm, rng):
    """Boundary of the reconstructed field, black beyond: a circle that cuts the corners, or a rectangle inside the frame."""
    h, w = image.shape
    row, column = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
    if rng.random() < 0.5:
        x, y, radius = w * rng.normal(0.5, 0.01), h * rng.normal(0.5, 0.01), w * rng.uniform(0.5, 0.58)
        inside = (column - x) ** 2 + (row - y) ** 2 < radius**2
    else:
        left, right, above, below = rng.uniform(2, 12, 4) / mm
        inside = (column >= left) & (column < w - right) & (row >= above) & (row < h - below)
    return np.where(inside, image, np.float32(-1000))


def lowpass(flags, pixels):
    """A boolean image blurred coarsely, (h, w) float32 in [0, 1]."""
    h, w = flags.shape
    small = Image.fromarray(flags[::2, ::2].astype(np.float32)).resize((w // pixels, h // pixels), Image.Resampling.BOX)
    return np.asarray(small.resize((w, h), Image.Resampling.BILINEAR))

