"""The cranial base: clivus, sphenoid body with sella, and the spheno-occipital synchondrosis in its state of fusion.

Millimetres from basion, x forward, y down, before growth and head tilt (see `anatomy`). The sinus has a room of its own.
"""

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, band, ellipse, inset, normals, spline, waver
from .population import SCAR_VISIBLE, Person

AIR, CARTILAGE, CORTICAL = -1000.0, 20.0, 950.0
#: How clearly the joint stands out from the bone round it: 1 as in a sharp slice through its middle, lower is harder to read; times
#: `Person.clarity`.
CLARITY = 1.2
#: The joint's line runs from u = 0 (endocranial cortex) to u = 1 (ectocranial cortex) and a little beyond both.
_U = np.linspace(-0.08, 1.08, 59)


@dataclass(frozen=True)
class Base:
    """Curves of one cranial base in mm (n, 2): outline pieces clockwise from basion, and the joint's line from endo- to
    ectocranial."""

    endo: np.ndarray
    sella: np.ndarray
    planum: np.ndarray
    front: np.ndarray
    under: np.ndarray
    joint: np.ndarray

    @property
    def outline(self) -> np.ndarray:
        return np.vstack([self.endo, self.sella, self.planum, self.front, self.under])

    @property
    def centre(self) -> np.ndarray:
        return self.joint[len(self.joint) // 2]

    @property
    def extent(self) -> np.ndarray:
        """What an expert frames: basion, dorsum, sella and the body below it."""
        return np.vstack([self.endo, self.sella, self.under[self.under[:, 0] < self.sella[-1, 0] + 2]])


def draw_base(rng, person: Person, off_mm: float) -> Base:
    """Landmarks of one cranial base; away from the midline (`off_mm`) sella and dorsum flatten."""
    flexion = np.clip(rng.normal(0, 1), -2, 2)  # of the base: an upright clivus goes with a planum that falls forward
    steep = np.deg2rad(np.clip(62.5 + 2.8 * flexion + rng.normal(0, 2.6), 55, 70))
    gentle = np.minimum(np.deg2rad(np.clip(31.5 + 2.2 * flexion + rng.normal(0, 4.0), 25, 40)), steep - np.deg2rad(24))
    length = np.clip(rng.normal(38.5, 2.3), 33, 44)
    direction, side = np.array([np.cos(steep), -np.sin(steep)]), np.array([np.sin(steep), np.cos(steep)])
    flat = max(0.2, 1 - 0.05 * off_mm**2)
    # joint ends: distances from basion along both cortices
    start_mm = np.clip(rng.normal(22.6, 1.9), 18, 26)
    stop_mm = np.clip(start_mm + np.clip(rng.normal(0.6, 1.9), -2.5, 3.5), 18, 26.5)
    along = np.linspace(0, 1, 25)
    bow = np.clip(rng.normal(0.1, 0.8), -1.6, 1.3) * np.sin(np.pi * along) + rng.normal(0, 0.3) * np.sin(3 * np.pi * along)
    ahead = along * length - start_mm
    bow = bow + np.clip(rng.normal(0.1, 0.4), -0.7, 0.8) * np.clip(ahead / 1.5 + 0.5, 0, 1) + 0.12 * waver(rng, 25, 1.5)
    # lips of the cortex at an open joint, which remodel as it closes
    lips = rng.normal(0, 0.5) * (1 - 0.7 * person.fusion.closed) * ahead * np.exp(-(ahead / 1.8) ** 2)
    tip, curl = rng.uniform(0.2, 2.4), rng.normal(0, 0.7) * np.array([1.0, 0.5, 0.2, 0.05])[:, None] * side
    endo = np.array([-0.5 * tip, 0.0]) + along[:, None] * length * direction + bow[:, None] * side
    endo[-4:] += (1 - flat) * np.linspace(0, 3, 4)[:, None] * side
    endo[:4] += curl
    sella = draw_sella(rng, endo[-1], flat)
    tub, rise = sella[-1], rng.normal(0.13, 0.07) - 0.035 * flexion
    planum = spline([tub + (x, -0.7 - rise * x + rng.normal(0, 0.5)) for x in (0.8, 5, 11, rng.uniform(14, 20))], steps=5)
    # ectocranial side: gently concave to the joint, then the underside of the body to the rostrum
    end = stop_mm * np.array([np.cos(gentle), -np.sin(gentle)])
    hollow, far_hollow = np.clip(rng.normal(0.7, 0.7, 2), -0.5, 1.9)
    sag = np.array([-np.sin(gentle), -np.cos(gentle)])
    lift = rng.normal(-2.2, 1.3)
    under = spline([(0.1 - 0.1 * tip, 0.4 + 0.45 * tip), (0.9 + 0.4 * tip, 0.2 + 0.3 * tip), 0.33 * end + hollow * sag + (0.2, 0.5),
                    0.7 * end + 0.7 * far_hollow * sag, end, end + (5.5, 0.4 * lift - 1.0 + rng.normal(0, 0.8)),
                    end + (12.5, lift - 1.2 + rng.normal(0, 1.0)),
                    end + (rng.uniform(17, 22.5), lift - 3.0 + rng.normal(0, 1.4))], steps=6)[::-1]
    under[-4:] += curl[::-1]
    under[1:-8, 1] += 0.15 * waver(rng, len(under) - 9, 1.5)
    front = spline([planum[-1] + (0.8, 1.5), 0.5 * (planum[-1] + under[0]) + (1.0 + rng.normal(0, 1.4), 0),
                    under[0] + (1.2, -1.2)], steps=4)
    # the joint's line
    start = np.array([np.interp(start_mm, along * length, endo[:, k]) for k in (0, 1)])
    stop = under[np.argmin(((under - end) ** 2).sum(1))]
    chord = stop - start
    across = np.array([chord[1], -chord[0]]) / np.linalg.norm(chord)
    wave = rng.normal(0, 0.65) * np.sin(np.pi * _U) + rng.normal(0, 0.4) * np.sin(2 * np.pi * _U)
    wave += rng.uniform(0.05, 0.3) * waver(rng, len(_U), 2.5)
    return Base(endo + lips[:, None] * side, sella, planum, front, under, start + _U[:, None] * chord + wave[:, None] * across)


def draw_sella(rng, top, flat) -> np.ndarray:
    """Dorsum, sella turcica and tuberculum from the upper end of the clivus `top`: a thin spur or a thick plate, then a bowl
    that may be shallow, deep, or J-shaped with a low tuberculum; `flat` < 1 flattens all of it."""
    width, depth = np.clip(rng.normal(11.5, 1.3), 9, 14.5), np.clip(rng.normal(7.5, 0.9), 6, 9) * flat
    thick, hook = rng.uniform(0.9, 3.4), rng.uniform(-0.5, 1.3)
    deepest, low = rng.uniform(0.35, 0.6), rng.uniform(0, 2.5) * (rng.random() < 0.3)
    return spline([top + (0.4, -0.6), top + (thick + hook, 0.3), top + (thick + 0.3, 0.5 * depth),
                   top + ((deepest - 0.2) * width + 1, 0.9 * depth), top + (deepest * width + 1, depth),
                   top + (0.92 * width, 0.72 * depth), top + (width + 1.2, 0.22 * depth + 0.7 * low),
                   top + (width + 2.4 + low, -0.2 + low)], steps=5)


def paint_base(canvas: Canvas, base: Base, person: Person, rng, off_mm: float) -> np.ndarray:
    """Paint bone and joint; returns the joint's strip (polygon in mm)."""
    spongy_hu = 170 + 220 * rng.beta(1.3, 1.8)
    canvas.fill(base.outline, canvas.tissue(spongy_hu, rng.uniform(35, 80), 0.8))
    paint_marrow(canvas, base, rng, spongy_hu)
    paint_variants(canvas, base, rng, spongy_hu)
    paint_cortex(canvas, base, person, rng, spongy_hu)
    # numbers of its own: whatever the state of the joint, all else of a patient stays the same
    return paint_joint(canvas, base, person, rng.spawn(1)[0], off_mm, spongy_hu)


def paint_marrow(canvas: Canvas, base: Base, rng, spongy_hu: float) -> None:
    """Denser and looser patches of the spongy bone, and channels of vessels that leave it through the inner cortex."""
    floor = base.under[::-1]
    for _ in range(rng.integers(3, 9)):
        at = rng.integers(3, 34)
        centre = floor[at] + rng.uniform(0.2, 0.8) * (base.endo[min(at, 24)] - floor[at])
        canvas.haze(ellipse(centre, (rng.uniform(1, 4.5), rng.uniform(0.7, 2.5)), rng.uniform(-90, 90), rng, 0.12, 14),
                    rng.normal(0, 75))
    for _ in range(rng.poisson(0.6)):
        mouth = base.endo[rng.integers(3, 12)]
        path = spline([mouth, mouth + rng.uniform(1, 2, 2) * (1, 0.3), mouth + rng.uniform(2, 5, 2) * (1, 0.7)], steps=4)
        canvas.stroke(path, np.linspace(rng.uniform(0.6, 1.1), 0.3, len(path)),
                      canvas.tissue(spongy_hu - rng.uniform(60, 160), 30, 0.5))


def paint_variants(canvas: Canvas, base: Base, rng, spongy_hu: float) -> None:
    """Rare variants: a bar of bone over the sella, a canal that stayed open through its floor, a median canal in the clivus."""
    kind = rng.random()
    if kind < 0.04:
        bar = [base.sella[3], base.sella[3] + (0.35, -0.06) * (base.sella[-3] - base.sella[3]) + (0, -0.6), base.sella[-3]]
        canvas.stroke(spline(bar, steps=5), rng.uniform(0.6, 1.3), canvas.tissue(rng.uniform(350, 850), 60))
    elif kind < 0.055:
        floor = base.sella[base.sella[:, 1].argmax()]
        below = base.under[np.argmin(np.abs(base.under[:, 0] - floor[0] - rng.uniform(0, 4)))]
        canvas.stroke(spline([floor, 0.5 * (floor + below) + rng.normal(0, 0.6, 2), below], steps=5), rng.uniform(0.7, 1.4),
                      canvas.tissue(rng.uniform(20, 80), 0, 0.3))
    elif kind < 0.085:
        mouth, end = base.endo[rng.integers(4, 8)], base.under[-rng.integers(8, 14)]
        canvas.stroke(spline([mouth, 0.5 * (mouth + end) + rng.normal(0, 0.8, 2), end], steps=5)[: rng.integers(6, 11)],
                      rng.uniform(0.6, 1.2), canvas.tissue(spongy_hu - rng.uniform(80, 160), 20, 0.3))


def paint_cortex(canvas: Canvas, base: Base, person: Person, rng, spongy_hu: float) -> None:
    """Cortex round the whole base: of uneven depth and brightness, solid at basion, fainter on the inner side above the joint,
    and thinning out toward an open or lately closed growth plate."""
    outline, closed, n = base.outline, person.fusion.closed, len(base.outline)
    part = np.repeat(np.arange(5), [len(p) for p in (base.endo, base.sella, base.planum, base.front, base.under)])
    depth = (np.array([0.95, 0.6, 0.7, 0.55, 1.15]) * np.exp(0.22 * rng.standard_normal(5)))[part]
    strength = np.array([rng.uniform(0.55, 1.05), rng.uniform(0.4, 0.9), rng.uniform(0.45, 1.0), rng.uniform(0.3, 0.9),
                         rng.uniform(0.7, 1.1)])[part]
    rise = np.sqrt((outline**2).sum(1))
    above = (part == 0) & (rise > np.sqrt((base.joint[4] ** 2).sum()))
    strength[above] *= rng.uniform(0.3, 1.05)
    strength = np.convolve(np.r_[strength[-2:], strength, strength[:2]], np.ones(5) / 5, "valid")
    near_tip = np.exp(-rise / rng.uniform(3, 8))
    depth *= np.exp(0.33 * waver(rng, n)) * (1 + rng.uniform(0.0, 1.3) * near_tip)
    strength *= (1 + 0.25 * near_tip) * np.exp(0.28 * waver(rng, n, 2.0))
    for length, rare in ((1.5, 1.9), (4.0, 1.6)):  # short and longer breaks: small vessels, partial volume
        strength *= np.where(waver(rng, n, length) > rare, rng.uniform(0.05, 0.7), 1)
    ends = np.arange(n)[-16:], np.arange(10), np.arange(19, 37)  # tip from below, tip from above, dorsum's two faces
    for one, other in ((ends[0], ends[1]), (ends[2][:6], ends[2][6:])):  # where a bone is thin, its two cortices meet
        between = np.sqrt(((outline[one][:, None] - outline[other][None]) ** 2).sum(2))
        depth[one], depth[other] = np.minimum(depth[one], 0.7 * between.min(1)), np.minimum(depth[other], 0.7 * between.min(0))
    healing = rng.uniform(0, 0.6, 2) * (person.fusion.scar if closed >= 1 else 1 - closed)
    for at, gone in ((4, 1.0 if closed <= 0 else healing[0]), (-5, 1.0 if closed < 1 else healing[1])):
        distance = np.sqrt(((outline - base.joint[at]) ** 2).sum(1))
        fade = gone * np.exp(-(distance / rng.uniform(1.0, 3.2)) ** 2)
        strength *= 1 - fade
        depth *= 1 - 0.4 * fade
    hard_hu = CORTICAL * rng.uniform(0.85, 1.2)
    hu = spongy_hu + (hard_hu - spongy_hu) * np.clip(strength, 0.02, 1.25)
    ring = np.r_[:n, 0]
    canvas.ribbon(outline[ring], inset(outline, np.clip(depth, 0.3, 2.8))[ring], hu[ring])


def paint_joint(canvas: Canvas, base: Base, person: Person, rng, off_mm: float, spongy_hu: float) -> np.ndarray:
    """The synchondrosis in its state of fusion; returns the polygon of its strip in mm."""
    fusion, path, n = person.fusion, base.joint, len(_U)
    clear = CLARITY * person.clarity * max(0.4, 1 - 0.035 * off_mm**2)
    wedge = 1 + np.clip(rng.normal(0.15, 0.3), -0.4, 0.7) * (_U - 0.5) + 0.3 * np.abs(2 * _U - 1) ** 3
    gap = fusion.gap_mm * np.minimum(rng.uniform(0.75, 1.1) * wedge * np.exp(0.25 * waver(rng, n, 2.5)), 1.45)
    beads = clear * rng.uniform(0.85, 1.1) * np.clip(1 + rng.uniform(0, 0.35) * waver(rng, n, 1.5), 0.4, 1.15)
    gristle_hu = spongy_hu - beads * (spongy_hu - CARTILAGE - rng.uniform(-25, 25))
    if fusion.closed < 1:
        paint_gap(canvas, path, gap, gristle_hu, fusion.closed, clear, rng, spongy_hu)
    if fusion.closed > 0:
        paint_scar(canvas, path, fusion, clear, rng, spongy_hu)
    if 0 < fusion.closed < 1:
        for _ in range(rng.poisson(0.8)):  # islands of cartilage left behind the front
            at = int(np.argmin(np.abs(_U - rng.uniform(0.02, max(fusion.closed, 0.1)))))
            canvas.fill(ellipse(path[at], (rng.uniform(0.2, 0.4) * gap[at], rng.uniform(0.3, 0.9)), rng.uniform(0, 90), rng, 0.1),
                        canvas.tissue(gristle_hu[at], 0, 0.3))
    return band(path, np.maximum(gap, 1.4) + 0.6)


def paint_gap(canvas: Canvas, path, gap, gristle_hu, closed, clear, rng, spongy_hu: float) -> None:
    """Cartilage ahead of the front of fusion at `closed`, between margins of sclerotic bone, here and there bridged by bone."""
    out, n = normals(path), len(path)
    taper = np.clip((_U - closed) / rng.uniform(0.06, 0.2) + 0.4, 0.0, 1) if closed > 0 else np.ones(n)
    half, here, inside = 0.5 * gap * taper, taper > 0, (_U > 0.03) & (_U < 0.97)
    for side in (-1, 1):
        rim = half + rng.uniform(0.4, 1.0) * np.exp(0.2 * waver(rng, n, 2.5)) * np.minimum(1, 2 * taper)
        hu = spongy_hu + rng.uniform(0, 230) * clear * np.clip(0.7 + 0.5 * waver(rng, n, 2.0), 0, 1.4)
        canvas.ribbon(path + side * half[:, None] * out, path + side * rim[:, None] * out, np.where(here & inside, hu, np.nan), 45)
    for extra, share in ((0.22, 0.55), (0.0, 1.0)):  # an uneven edge, then the cartilage
        wide = ((half + extra * taper) * np.exp(0.08 * waver(rng, n, 1.0)))[:, None] * out
        canvas.ribbon(path - wide, path + wide, np.where(here, spongy_hu + share * (gristle_hu - spongy_hu), np.nan), 15)
    for _ in range(rng.poisson(0.9) if 0.05 < closed < 0.9 else 0):
        at = int(np.argmin(np.abs(_U - rng.uniform(closed + 0.05, 0.95))))
        canvas.stroke(path[max(at - rng.integers(1, 3), 0):at + 2], gap[at] * 1.3,
                      canvas.tissue(spongy_hu * rng.uniform(0.75, 1.2), 50, 0.3))


def paint_scar(canvas: Canvas, path, fusion, clear, rng, spongy_hu: float) -> None:
    """The line that the closed part keeps: a bright seam, a dark one, or a dark core in a bright seam; uneven, often incomplete,
    fading with the years."""
    n, whole = len(path), fusion.closed >= 1
    strength = 1 / (1 + np.exp((SCAR_VISIBLE - fusion.scar) / 0.035)) if whole else rng.uniform(0.1, 0.6)
    dim = 0.22 if spongy_hu > 220 else 0.0  # a dark line shows in dense bone only
    kind = rng.choice(["bright", "dark", "both"], p=[0.82 - dim, dim, 0.18] if whole else [0.8, 0.2, 0.0])
    shut = (_U >= 0.0) & (_U <= min(fusion.closed, 1.0)) & (_U > 0.03) & (_U < 0.97)
    kept = waver(rng, n, 2.5) > -1.9 + 1.2 * (1 - strength) + rng.uniform(0, 0.5)
    bright = rng.uniform(380, 640) * np.clip(0.85 + 0.35 * waver(rng, n, 2.0), 0, 1.3)
    dark = rng.uniform(0.5, 0.8) * (CARTILAGE - spongy_hu) * np.clip(0.9 + 0.3 * waver(rng, n, 2.0), 0, 1.1)
    lines = {"bright": ((bright, rng.uniform(1.1, 1.7)),), "dark": ((dark, rng.uniform(0.7, 1.1)),),
             "both": ((bright, rng.uniform(1.6, 2.4)), (dark, rng.uniform(0.4, 0.6)))}[str(kind)]
    for tone, width in lines:
        change = tone * strength * clear
        half = (0.5 * width * np.exp(0.2 * waver(rng, n, 2.0)))[:, None] * normals(path)
        canvas.ribbon(path - half, path + half, np.where(shut & kept & (np.abs(change) > 25), spongy_hu + change, np.nan), 35)
