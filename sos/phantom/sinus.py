"""The sphenoid sinus: absent, small and round, or filling the body back below the sella; aired, septate, or partly filled.

It grows with age and stays in front of the joint, across which it never reaches while the joint is open.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .canvas import Canvas, Patch, band, ellipse, inset
from .cranial_base import AIR, Base
from .population import Person


def paint_sinus(canvas: Canvas, base: Base, person: Person, rng) -> int | None:
    """Paint the sinus into the sphenoid body, clear of the joint; returns its tissue code (None where there is none)."""
    grown = np.interp(person.age_y, (3, 7, 11, 15), (0, 0.4, 0.75, 0.95)) * rng.uniform(0.6, 1.15) + rng.normal(0, 0.15)
    if grown < 0.12 or rng.random() < 0.03:
        return None
    patch = Patch(canvas, base.outline[base.outline[:, 0] > base.joint[:, 0].min()])
    allowed, behind = room(patch, base, person, rng)
    lobes = draw_lobes(base, rng, min(grown, 1.1), behind)
    shape = patch.soften(patch.draw(*lobes), rng.uniform(0.4, 0.9))
    for _ in range(rng.integers(0, 3)):  # septa and spurs
        at = lobes[rng.integers(len(lobes))]
        k = rng.integers(len(at))
        inner = at.mean(0) + rng.normal(0, 1, 2) + rng.uniform(-0.6, 0.7) * (at.mean(0) - at[k])
        patch.add(shape, 0, band(np.linspace(at[k] + 0.4 * (at[k] - at.mean(0)), inner, 7),
                                 np.linspace(rng.uniform(1.2, 2.0), rng.uniform(0.7, 1.0), 7)))
    shape = patch.soften(ImageChops.multiply(shape, allowed), rng.uniform(0.6, 1.7), 125)
    shape = ImageChops.multiply(shape, allowed)
    if shape.getbbox() is None:
        return None
    patch.paste(patch.soften(shape, 0.8, int(rng.integers(30, 100))), canvas.tissue(rng.uniform(450, 1050), 80))
    air = canvas.tissue(AIR + rng.uniform(0, 30))
    patch.paste(shape, air)
    return fill_sinus(canvas, patch, shape, lobes, base, rng, air)


def room(patch: Patch, base: Base, person: Person, rng):
    """Where the sinus may lie: inside the bone and ahead of the joint (drawing of the patch), and the x in mm of its back."""
    fused = person.fusion.closed >= 1
    margin = (1.3 if fused else person.fusion.gap_mm / 2 + 1.6) + rng.exponential(2.0 if fused else 2.5)
    allowed = patch.draw(inset(base.outline, rng.uniform(0.8, 1.6)))
    chord = base.joint[-1] - base.joint[0]
    ahead = np.array([chord[1], -chord[0]]) / np.linalg.norm(chord)
    ahead = ahead if ahead @ (base.planum[-1] - base.centre) > 0 else -ahead
    most = ((base.joint - base.joint[0]) @ ahead).max()
    wall = base.joint[0] + (most + margin) * ahead
    patch.add(allowed, 0, np.vstack([wall - 3 * chord, wall + 4 * chord, wall + 4 * chord - 80 * ahead,
                                     wall - 3 * chord - 80 * ahead]), band(base.joint, 1.6 * person.fusion.gap_mm + 1.4))
    return patch.soften(allowed, 0.6, 200), wall[0]


def draw_lobes(base: Base, rng, grown: float, behind: float) -> list[np.ndarray]:
    """Outlines (mm) of the lobes from the front backward, below the floor of the sella; they grow by merging."""
    ceiling = np.vstack([base.sella, base.planum])[base.sella[:, 1].argmax():]
    bottom = base.under[::-1]
    front = base.planum[-1, 0] - rng.uniform(-1.0, 3.0)
    reach = np.clip(0.95 * grown, 0.22, 1.0) * (front - behind)
    lobes, n = [], 2 + int(grown * 3)
    for k in range(n):
        x = front - 2.5 - (reach - 4) * (k + rng.uniform(0.2, 0.8)) / n
        roof, floor = np.interp(x, ceiling[:, 0], ceiling[:, 1]), np.interp(x, bottom[:, 0], bottom[:, 1])
        y = 0.5 * (roof + floor) + rng.normal(0, 1.2)
        height = 0.5 * (floor - roof) * np.clip(rng.normal(0.7 + 0.35 * grown, 0.2), 0.35, 1.3)
        width = max(2.0, 0.75 * reach / n + rng.uniform(0, 2.5))
        lobes.append(ellipse((x, y), (width, max(height, 1.8)), rng.uniform(-40, 40), rng, 0.1))
    return lobes


def fill_sinus(canvas: Canvas, patch: Patch, shape, lobes, base: Base, rng, air: int) -> int:
    """What a sinus may hold besides air: a cyst on its floor, swollen lining, a level of fluid, or nothing but soft tissue;
    returns the code of the tissue that fills most of it."""
    kind, soft = rng.random(), canvas.tissue(rng.uniform(10, 70), 0, 0.0)
    if kind < 0.2:
        x = np.mean([lobe[:, 0].mean() for lobe in lobes]) + rng.normal(0, 3)
        y = np.interp(x, *base.under[::-1].T)
        cyst = patch.draw(ellipse((x, y), (rng.uniform(3, 9), rng.uniform(2, 7)), rng.uniform(-25, 10), rng, 0.05))
        patch.paste(ImageChops.multiply(cyst, shape), soft)
    elif kind < 0.35:  # swollen lining
        open_ = patch.soften(shape, rng.uniform(0.8, 2.0), int(rng.integers(150, 215)))
        patch.paste(ImageChops.subtract(shape, open_), soft)
    elif kind < 0.39:  # the head is upright: the level is a row of the picture
        left, top, right, bottom = shape.getbbox()
        low = Image.new("L", shape.size, 0)
        ImageDraw.Draw(low).rectangle((left, int(top + rng.uniform(0.35, 0.8) * (bottom - top)), right, bottom), fill=255)
        patch.paste(ImageChops.multiply(low, shape), soft)
    elif kind < 0.43:
        patch.paste(shape, soft)
        return soft
    return air
