"""The painter's tools of the phantom: polygons in millimetres on a supersampled canvas, curves, bands and textures."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

#: Sub-pixels along each side of a pixel; their mean gives the partial volume at edges.
SUPERSAMPLE = 2
#: The haze layer (soft-edged structures) has one sample for HAZE_STEP x HAZE_STEP pixels.
HAZE_STEP = 2
#: Tones along a ribbon are rounded to steps of this many HU, so that all bones of a canvas share a few tissues.
TONE_HU = 60


class Canvas:
    """Structures painted in order, each with a tissue of its own; `render` turns tissues into Hounsfield units.

    shape: (h, w) pixels; warp: function of points (n, 2) in mm (growth and personal form); pitch_deg: head tilt; anchor_mm lands
    on anchor_px (x, y).
    """

    def __init__(self, shape, voxel_mm, warp, pitch_deg, anchor_mm, anchor_px, air_hu=-1000.0):
        self.shape, self.voxel_mm, self.warp = shape, voxel_mm, warp
        angle = np.deg2rad(pitch_deg)
        self.cos, self.sin = np.cos(angle), np.sin(angle)
        self.anchor_px = np.asarray(anchor_px, float)
        self.anchor_mm = np.zeros(2)
        self.anchor_mm = warp(np.asarray(anchor_mm, float)[None])[0]
        self.hu, self.grain, self.hazy = [air_hu], [0.0], [0.0]
        self.tones = {}
        self.image = Image.new("L", (shape[1] * SUPERSAMPLE, shape[0] * SUPERSAMPLE), 0)
        self.pen = ImageDraw.Draw(self.image)
        self.veil = Image.new("F", (shape[1] // HAZE_STEP + 1, shape[0] // HAZE_STEP + 1), 0.0)
        self.veil_pen = ImageDraw.Draw(self.veil)

    def tissue(self, hu, grain=0.0, hazy=0.0) -> int:
        """Code of a new tissue: mean HU, amplitude of bone texture in HU, and how far the haze layer shows through (0 to 1)."""
        self.hu.append(float(hu))
        self.grain.append(float(grain))
        self.hazy.append(float(hazy))
        return len(self.hu) - 1

    def tone(self, level: int, grain: float) -> int:
        """Code of the shared tissue of `level` times TONE_HU."""
        if (level, grain) not in self.tones:
            self.tones[level, grain] = self.tissue(level * TONE_HU, grain, 0.3)
        return self.tones[level, grain]

    def to_px(self, points_mm) -> np.ndarray:
        """Pixel coordinates (x, y) of points (n, 2) in mm."""
        x, y = (self.warp(np.atleast_2d(np.asarray(points_mm, float))) - self.anchor_mm).T
        turned = np.stack([self.cos * x - self.sin * y, self.sin * x + self.cos * y], axis=1)
        return turned / self.voxel_mm + self.anchor_px

    def fine(self, points_mm) -> np.ndarray:
        """Sub-pixel coordinates of points in mm, for pens on an image of the size of `image`."""
        return (self.to_px(points_mm) + 0.5) * SUPERSAMPLE - 0.5

    def fill(self, points_mm, code: int) -> None:
        """Fill a polygon."""
        self.pen.polygon(self.fine(points_mm).ravel().tolist(), fill=code)

    def stroke(self, path_mm, width_mm, code: int) -> None:
        """Draw a band of `width_mm` (a number or one for each point) along an open path."""
        self.fill(band(path_mm, width_mm), code)

    def ribbon(self, one_mm, other_mm, hu, grain=50.0) -> None:
        """Fill the strip between two curves (n, 2) with tones `hu` (n,) along it; nan leaves what lies there."""
        edges = self.fine(np.vstack([one_mm, other_mm])).reshape(2, -1, 2)
        level = 0.5 * (hu[:-1] + hu[1:]) / TONE_HU
        level = np.where(np.isnan(level), -99, np.rint(level)).astype(int)
        cuts = np.flatnonzero(np.diff(level)) + 1
        for a, b in zip(np.r_[0, cuts], np.r_[cuts, len(level)], strict=True):
            if level[a] > -99:
                strip = np.concatenate([edges[0, a:b + 1], edges[1, a:b + 1][::-1]])
                self.pen.polygon(strip.ravel().tolist(), fill=self.tone(int(level[a]), grain))

    def haze(self, points_mm, hu: float) -> None:
        """Fill a soft-edged polygon that adds `hu` to what lies there, where the tissue lets the haze through."""
        self.veil_pen.polygon((self.to_px(points_mm) / HAZE_STEP).ravel().tolist(), fill=float(hu))

    def mask(self, points_mm) -> np.ndarray:
        """Boolean (h, w) of a polygon."""
        image = Image.new("L", (self.shape[1], self.shape[0]), 0)
        ImageDraw.Draw(image).polygon(self.to_px(points_mm).ravel().tolist(), fill=1)
        return np.asarray(image).astype(bool)

    def painted(self, code: int) -> np.ndarray:
        """Boolean (h, w) of the pixels that a tissue touches."""
        fine = np.asarray(self.image) == code
        rows = fine[0::2] | fine[1::2]
        return rows[:, 0::2] | rows[:, 1::2]

    def table(self, values) -> np.ndarray:
        """Mean of `values` (one for each tissue) over the sub-pixels of each pixel, (h, w) float32."""
        fine = np.take(np.asarray(values, np.float32), np.asarray(self.image))
        rows = fine[0::2] + fine[1::2]
        return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)

    def render(self, rng, haze_mm: float) -> np.ndarray:
        """Hounsfield units (h, w) float32: tissues, bone texture, haze blurred by `haze_mm`."""
        hu = self.table(self.hu)
        hu += self.table(self.grain) * texture(rng, self.shape, self.voxel_mm)
        veil = gaussian_filter(np.asarray(self.veil), haze_mm / self.voxel_mm / HAZE_STEP, truncate=3)
        size = (self.veil.width * HAZE_STEP, self.veil.height * HAZE_STEP)
        veil = np.asarray(Image.fromarray(veil).resize(size, Image.Resampling.BILINEAR))[: self.shape[0], : self.shape[1]]
        hu += self.table(self.hazy) * veil
        return np.maximum(hu, np.float32(self.hu[0]))


class Patch:
    """A small binary drawing in the sub-pixels of a canvas, for shapes made by smoothing and cutting other shapes."""

    def __init__(self, canvas: Canvas, around_mm, margin_mm=3.0):
        points = canvas.fine(around_mm)
        margin = margin_mm / canvas.voxel_mm * SUPERSAMPLE
        self.canvas, self.unit = canvas, SUPERSAMPLE / canvas.voxel_mm
        self.origin = np.floor(points.min(0) - margin).astype(int)
        self.size = tuple((np.ceil(points.max(0) + margin).astype(int) - self.origin).tolist())

    def draw(self, *polygons_mm) -> Image.Image:
        """Union of polygons as an image of 0 and 255."""
        image = Image.new("L", self.size, 0)
        return self.add(image, 255, *polygons_mm)

    def add(self, image, value, *polygons_mm) -> Image.Image:
        """Paint polygons with `value` on a drawing of this patch."""
        pen = ImageDraw.Draw(image)
        for polygon in polygons_mm:
            pen.polygon((self.canvas.fine(polygon) - self.origin).ravel().tolist(), fill=value)
        return image

    def soften(self, image, radius_mm, threshold=128) -> Image.Image:
        """Round the corners: blur by `radius_mm` and cut at `threshold`; below 128 grows the shape, above shrinks it."""
        return image.filter(ImageFilter.GaussianBlur(radius_mm * self.unit)).point(lambda v: 255 if v >= threshold else 0)

    def paste(self, image, code: int) -> None:
        """Put the drawing on the canvas as a tissue."""
        self.canvas.image.paste(code, (int(self.origin[0]), int(self.origin[1])), image)


def spline(points, closed=False, steps=8) -> np.ndarray:
    """Catmull-Rom curve through `points` (n, 2), `steps` samples a segment."""
    p = np.asarray(points, float)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    t = (np.arange(steps) / steps)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)
    return curve if closed else np.vstack([curve, p[-2:-1]])


def normals(path) -> np.ndarray:
    """Unit normals of an open path (n, 2), outward for an outline that runs clockwise on screen."""
    d = np.empty_like(path)
    d[1:-1] = path[2:] - path[:-2]
    d[0], d[-1] = path[1] - path[0], path[-1] - path[-2]
    d /= np.sqrt((d**2).sum(1, keepdims=True)) + 1e-9
    return np.stack([d[:, 1], -d[:, 0]], axis=1)


def band(path, width) -> np.ndarray:
    """Polygon of a band of `width` (a number or one for each point) round an open path (n, 2)."""
    path = np.asarray(path, float)
    half = np.broadcast_to(np.asarray(width, float) / 2, len(path))[:, None] * normals(path)
    return np.vstack([path + half, (path - half)[::-1]])


def inset(outline, depth) -> np.ndarray:
    """A closed outline, clockwise on screen, moved inward by `depth` (a number or one for each point)."""
    ring = np.vstack([outline[-1:], outline, outline[:1]])
    inward = -normals(ring)[1:-1]
    return outline + np.broadcast_to(np.asarray(depth, float), len(outline))[:, None] * inward


def paint_bone(canvas: Canvas, outline, rng, cortex_hu, cortex_mm, spongy_hu, grain):
    """A bone with an uneven surface, a cortex that varies in depth and brightness along the outline (clockwise on screen) and
    spongy bone inside."""
    n = len(outline)
    outline = inset(outline, 0.22 * waver(rng, n, 1.5))
    canvas.fill(outline, canvas.tissue(spongy_hu, grain, 0.4))
    depth = np.clip(np.asarray(cortex_mm) * np.exp(0.3 * waver(rng, n)), 0.35, None)
    hu = spongy_hu + (cortex_hu - spongy_hu) * np.clip(0.85 + 0.25 * waver(rng, n, 2.0), 0.1, 1.2)
    ring = np.r_[:n, 0]
    canvas.ribbon(outline[ring], inset(outline, depth)[ring], hu[ring])


def ellipse(centre, radii, tilt_deg=0.0, rng=None, rough=0.0, points=20) -> np.ndarray:
    """Outline (n, 2) of an ellipse, clockwise on screen, made irregular by `rough` (relative)."""
    a = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = 1.0
    if rng is not None and rough:
        phase = rng.uniform(0, 2 * np.pi, 3)
        r = 1 + rough * (np.sin(2 * a + phase[0]) + 0.7 * np.sin(3 * a + phase[1]) + 0.4 * np.sin(5 * a + phase[2]))
    x, y = radii[0] * r * np.cos(a), radii[1] * r * np.sin(a)
    t = np.deg2rad(tilt_deg)
    return np.asarray(centre, float) + np.stack([np.cos(t) * x - np.sin(t) * y, np.sin(t) * x + np.cos(t) * y], axis=1)


def waver(rng, n, length=3.0) -> np.ndarray:
    """Smooth noise (n,) with unit variance and a correlation length of about `length` points."""
    kernel = _bell(length)
    return np.convolve(rng.standard_normal(n + len(kernel) - 1), kernel, "valid")


@cache
def _bell(length: float) -> np.ndarray:
    """Gaussian of `length` points, scaled so that it keeps the variance of white noise."""
    reach = int(3 * length + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / length) ** 2)
    return kernel / np.sqrt((kernel**2).sum())


_SHEETS: dict[float, np.ndarray] = {}
_SHEET_SIZE = 600  # pixels; periodic, laid twice in both directions


def texture(rng, shape, voxel_mm) -> np.ndarray:
    """Trabecular texture (h, w) with unit variance: struts of about 0.7 mm and marrow lakes of 2 to 4 mm.

    A random window, mirrored at random, of a sheet that is made once for each process and voxel size from a fixed seed.
    """
    if voxel_mm not in _SHEETS:
        noise = np.random.default_rng(3).standard_normal((2, _SHEET_SIZE, _SHEET_SIZE), dtype=np.float32)
        fine = gaussian_filter(noise[0], 0.45 / voxel_mm, mode="wrap") - gaussian_filter(noise[0], 1.1 / voxel_mm, mode="wrap")
        lakes = gaussian_filter(noise[1], 1.5 / voxel_mm, mode="wrap")
        sheet = 0.75 * fine / fine.std() + 0.65 * lakes / lakes.std()
        _SHEETS[voxel_mm] = np.tile(sheet / sheet.std(), (2, 2))
    sheet = _SHEETS[voxel_mm]
    y, x = (int(rng.integers(0, _SHEET_SIZE * 2 - side)) for side in shape)
    window = sheet[y:y + shape[0], x:x + shape[1]]
    return window[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
