"""The cranial base: clivus, sphenoid body with sella and sinus, and the spheno-occipital synchondrosis in its state of fusion.

Millimetres from basion, x forward, y down, before growth and head tilt (see `anatomy`).
"""

from dataclasses import dataclass

import numpy as np
from PIL import ImageChops

from .canvas import Canvas, Patch, band, ellipse, inset, spline, waver
from .population import SCAR_VISIBLE, Person

AIR, CARTILAGE, CORTICAL = -1000.0, 20.0, 950.0
#: How clearly the joint stands out from the bone round it: 1 as in a sharp slice through its middle, lower is harder to read; times
#: `Person.clarity`.
CLARITY = 1.0
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
    steep = np.deg2rad(np.clip(rng.normal(63, 3.5), 55, 70))
    gentle = np.minimum(np.deg2rad(np.clip(rng.normal(30, 4.0), 24, 40)), steep - np.deg2rad(24))
    length = np.clip(rng.normal(38.5, 1.8), 34, 43)
    direction, side = np.array([np.cos(steep), -np.sin(steep)]), np.array([np.sin(steep), np.cos(steep)])
    flat = max(0.2, 1 - 0.05 * off_mm**2)
    # joint ends: distances from basion along both cortices
    start_mm = np.clip(rng.normal(23.2, 1.5), 19, 26)
    stop_mm = np.clip(start_mm + rng.normal(0.6, 1.5), 19, 27)
    along = np.linspace(0, 1, 25)
    bow = np.clip(rng.normal(0.1, 0.7), -1.5, 1.0) * np.sin(np.pi * along) + rng.normal(0, 0.25) * np.sin(3 * np.pi * along)
    step = np.clip(rng.normal(0.15, 0.45), -0.7, 0.9) * (1 - 0.6 * person.fusion.closed)
    bow = bow + step * np.clip((along * length - start_mm) / 1.5 + 0.5, 0, 1)
    tip = rng.uniform(0.5, 2.2)
    endo = np.array([-0.5 * tip, 0.0]) + along[:, None] * length * direction + bow[:, None] * side
    endo[-4:] += (1 - flat) * np.linspace(0, 3, 4)[:, None] * side
    # sella
    width, depth = np.clip(rng.normal(11.3, 1.1), 9, 14), np.clip(rng.normal(7.8, 1.1), 5.5, 10) * flat
    thick = rng.uniform(1.6, 3.4)
    top, hook = endo[-1], rng.uniform(-0.4, 1.0)
    sella = spline([top + (0.7, -0.6), top + (thick + hook, 0.3), top + (thick + 0.3, 0.5 * depth),
                    top + (0.28 * width + 1, 0.93 * depth), top + (0.6 * width + 1, depth), top + (0.92 * width, 0.75 * depth),
                    top + (width + 1.4, 0.22 * depth), top + (width + 2.6, -0.2)], steps=5)
    tub = sella[-1]
    planum = spline([tub + (0.8, -0.8), tub + (5, -1.6 + rng.normal(0, 0.7)), tub + (11, -2.0 + rng.normal(0, 0.9)),
                     tub + (rng.uniform(15, 19), -2.0 + rng.normal(0, 1.0))], steps=5)
    # ectocranial side: gently concave to the joint, then the underside of the body to the rostrum
    end = stop_mm * np.array([np.cos(gentle), -np.sin(gentle)])
    hollow = np.clip(rng.normal(0.6, 0.5), -0.5, 1.2)
    sag = np.array([-np.sin(gentle), -np.cos(gentle)])
    lift = rng.normal(-2.2, 0.8)
    under = spline([(0.8 + 0.5 * tip, 0.6 + 0.6 * tip), 0.33 * end + hollow * sag + (0.2, 0.5), 0.7 * end + 0.8 * hollow * sag,
                    end, end + (5.5, -2.0 + rng.normal(0, 0.7)), end + (12.5, lift - 1.2 + rng.normal(0, 0.8)),
                    end + (rng.uniform(18, 22), lift - 3.0 + rng.normal(0, 1.2))], steps=7)[::-1]
    front = spline([planum[-1] + (0.8, 1.5), 0.5 * (planum[-1] + under[0]) + (1.0 + rng.normal(0, 1.0), 0),
                    under[0] + (1.2, -1.2)], steps=4)
    # the joint's line
    start = np.array([np.interp(start_mm, along * length, endo[:, k]) for k in (0, 1)])
    stop = under[np.argmin(((under - end) ** 2).sum(1))]
    chord = stop - start
    across = np.array([chord[1], -chord[0]]) / np.linalg.norm(chord)
    wave = rng.normal(0, 0.55) * np.sin(np.pi * _U) + rng.normal(0, 0.35) * np.sin(2 * np.pi * _U)
    wave += 0.16 * waver(rng, len(_U), 2.5)
    return Base(endo, sella, planum, front, under, start + _U[:, None] * chord + wave[:, None] * across)


def paint_base(canvas: Canvas, base: Base, person: Person, rng, off_mm: float) -> tuple[np.ndarray, int | None]:
    """Paint bone, joint and sinus; returns the joint's strip (polygon in mm) and the tissue code of the sinus (None where there
    is none)."""
    outline, fusion = base.outline, person.fusion
    spongy_hu = rng.uniform(220, 370)
    hard = canvas.tissue(CORTICAL * rng.uniform(0.8, 1.15), 50)
    spongy = canvas.tissue(spongy_hu, rng.uniform(45, 80), 0.5)
    canvas.fill(outline, hard)
    part = np.repeat(np.arange(5), [len(p) for p in (base.endo, base.sella, base.planum, base.front, base.under)])
    depth = np.choose(part, (1.05, 0.65, 0.75, 0.6, 1.1)) * rng.uniform(0.8, 1.2) * np.exp(0.22 * waver(rng, len(outline)))
    near_tip = np.exp(-np.sqrt((outline**2).sum(1)) / 5)
    depth = depth * (1 + rng.uniform(0.0, 0.9) * near_tip)
    if fusion.closed < 1:  # the cortex thins toward an open growth plate
        gap_side = np.minimum(*(np.sqrt(((outline - base.joint[k]) ** 2).sum(1)) for k in (4, -5)))
        depth = depth * (1 - 0.35 * (1 - fusion.closed) * np.exp(-gap_side / 2.5))
    canvas.fill(inset(outline, np.clip(depth, 0.4, 2.6)), spongy)
    strip = paint_joint(canvas, base, person, rng, off_mm, spongy_hu)
    return strip, paint_sinus(canvas, base, person, rng, strip)


def paint_joint(canvas: Canvas, base: Base, person: Person, rng, off_mm: float, spongy_hu: float) -> np.ndarray:
    """The synchondrosis in its state of fusion; returns the polygon of its strip in mm."""
    fusion, path = person.fusion, base.joint
    inside = (_U > 0.03) & (_U < 0.97)
    clear = CLARITY * person.clarity * max(0.4, 1 - 0.035 * off_mm**2)
    flare = 1 + 0.3 * np.abs(2 * _U - 1) ** 3
    gap = fusion.gap_mm * flare * np.exp(0.2 * waver(rng, len(_U), 2.5))
    gristle_hu = spongy_hu - clear * (spongy_hu - CARTILAGE - rng.uniform(-25, 25))
    gristle = canvas.tissue(gristle_hu, 0, 0.3)
    if fusion.closed < 1:
        fringe = canvas.tissue(0.55 * gristle_hu + 0.45 * spongy_hu, 30, 0.3)
        sclerosis = canvas.tissue(spongy_hu + rng.uniform(40, 220) * clear, 40, 0.3)
        taper = np.clip((_U - fusion.closed) / 0.10 + 0.4, 0.0, 1) if fusion.closed > 0 else np.ones_like(_U)
        for code, extra, where in ((sclerosis, rng.uniform(1.0, 1.6), inside), (fringe, 0.45, _U > -1), (gristle, 0.0, _U > -1)):
            here = where & (taper > 0)
            if here.sum() > 2:
                canvas.stroke(path[here], (gap * taper + extra)[here] * np.clip(taper[here] * 2, 0, 1), code)
        bridge = canvas.tissue(spongy_hu * rng.uniform(0.8, 1.1), 60, 0.3)
        for _ in range(rng.poisson(0.7) if 0.1 < fusion.closed < 0.85 else 0):  # bridges of bone ahead of the front
            at = int(np.argmin(np.abs(_U - rng.uniform(fusion.closed + 0.05, 0.92))))
            canvas.stroke(path[at - 1:at + 2], gap[at] * 1.4, bridge)
    if fusion.closed > 0:  # the closed part keeps a line: sclerotic, in one joint out of four dark
        whole = fusion.closed >= 1
        strength = 1 / (1 + np.exp((SCAR_VISIBLE - fusion.scar) / 0.05)) if whole else rng.uniform(0.2, 0.6)
        dark = whole and rng.random() < 0.25
        tone, width = (CARTILAGE - spongy_hu, rng.uniform(0.8, 1.1)) if dark else (rng.uniform(400, 600), rng.uniform(1.1, 1.6))
        line = canvas.tissue(spongy_hu + tone * strength * clear, 35, 0.3)
        shut = (_U >= 0.0) & (_U <= min(fusion.closed, 1.0))
        kept = waver(rng, len(_U), 2.5) > -1.8 + 1.2 * (1 - strength)
        for run in _runs(shut & kept & inside) if strength > 0.03 else ():
            from_end = np.minimum(np.arange(len(run)), np.arange(len(run))[::-1])
            canvas.stroke(path[run], width * np.minimum(1, 0.4 + 0.3 * from_end), line)
        for _ in range(rng.poisson(0.5) if not whole else 0):  # islands of cartilage left behind the front
            at = int(np.argmin(np.abs(_U - rng.uniform(0.1, max(fusion.closed, 0.12)))))
            if shut[at]:
                canvas.fill(ellipse(path[at], (0.4 * gap[at], 0.7), 45, rng, 0.1), gristle)
        notch = canvas.tissue(CORTICAL * (1 - 0.6 * strength), 40)
        for end, share in ((len(_U) - 5, 0.7), (4, 0.35)):  # the cortex heals last at the ectocranial end
            if whole and strength > 0.1 and rng.random() < share:
                canvas.stroke(path[end - 4:end + 5], rng.uniform(0.5, 0.9) * (0.4 + 0.6 * strength), notch)
    return band(path, np.maximum(gap, 1.4) + 0.6)


def paint_sinus(canvas: Canvas, base: Base, person: Person, rng, strip) -> int | None:
    """Sphenoid sinus, larger with age, always in front of the joint and never across an open one; returns its tissue code."""
    grown = np.clip((person.age_y - 4.5) / 9.5, 0, 1.05) * rng.uniform(0.65, 1.1) + rng.normal(0, 0.17)
    if grown < 0.12 or rng.random() < 0.03:
        return None
    fused = person.fusion.closed >= 1
    margin = (1.3 if fused else person.fusion.gap_mm / 2 + 1.8) + rng.exponential(2.0 if fused else 3.0)
    axis = base.planum[-1] - base.centre
    patch = Patch(canvas, base.outline)
    allowed = patch.draw(inset(base.outline, rng.uniform(1.1, 1.7)))
    chord = base.joint[-1] - base.joint[0]
    ahead = np.array([chord[1], -chord[0]]) / np.linalg.norm(chord)
    ahead = ahead if ahead @ axis > 0 else -ahead
    most = ((base.joint - base.joint[0]) @ ahead).max()
    wall_at = base.joint[0] + (most + margin) * ahead
    keep_out = np.vstack([wall_at - 3 * chord, wall_at + 4 * chord, wall_at + 4 * chord - 80 * ahead,
                          wall_at - 3 * chord - 80 * ahead])
    patch.add(allowed, 0, keep_out, strip)
    allowed = patch.soften(allowed, 0.7, 200)
    # lobes from the front backward, below the floor of the sella
    ceiling = np.vstack([base.sella, base.planum])[base.sella[:, 1].argmax():]
    bottom = base.under[::-1]
    front_x = base.planum[-1, 0] - rng.uniform(0.5, 3.0)
    reach = np.clip(0.9 * grown, 0.25, 1.0) * (front_x - wall_at[0])
    lobes, n = [], 2 + int(grown * 3)
    for k in range(n):
        x = front_x - 2.5 - (reach - 4) * (k + rng.uniform(0.2, 0.8)) / n
        roof, floor = np.interp(x, ceiling[:, 0], ceiling[:, 1]), np.interp(x, bottom[:, 0], bottom[:, 1])
        y = 0.5 * (roof + floor) + rng.normal(0, 1.2)
        height = 0.5 * (floor - roof) * np.clip(rng.normal(0.75 + 0.25 * min(grown, 1), 0.15), 0.4, 1.1)
        lobes.append(ellipse((x, y), (max(2.2, 0.7 * reach / n + rng.uniform(0, 2)), max(height, 1.8)), rng.uniform(-35, 35), rng,
                             0.08))
    shape = patch.soften(patch.draw(*lobes), 0.8)
    if rng.random() < 0.45:  # septa and spurs
        at = lobes[rng.integers(len(lobes))]
        k = rng.integers(len(at))
        patch.add(shape, 0, band(np.linspace(at[k] + 0.4 * (at[k] - at.mean(0)), at.mean(0) + rng.normal(0, 1, 2), 7),
                                 np.linspace(1.8, 0.6, 7)))
    shape = patch.soften(ImageChops.multiply(shape, allowed), 1.8, 125)
    shape = ImageChops.multiply(shape, allowed)
    if shape.getbbox() is None:
        return None
    patch.paste(patch.soften(shape, 0.8, 30), canvas.tissue(rng.uniform(600, 1050), 40))
    air = canvas.tissue(AIR + rng.uniform(0, 30))
    patch.paste(shape, air)
    if rng.random() < 0.25:  # mucosal swelling or a retention cyst on the floor
        c = np.array([np.mean([lobe[:, 0].mean() for lobe in lobes]) + rng.normal(0, 3), 0])
        c[1] = np.interp(c[0], bottom[:, 0], bottom[:, 1])
        swelling = patch.draw(ellipse(c, (rng.uniform(3, 8), rng.uniform(2, 6)), rng.uniform(-20, 10), rng, 0.06))
        patch.paste(ImageChops.multiply(swelling, shape), canvas.tissue(rng.uniform(20, 60)))
    return air


def _runs(flags):
    """Index arrays of the runs of True of at least three."""
    at = np.flatnonzero(flags)
    return [run for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(run) > 2]


