"""The face in section: forehead, nose, palate, incisors and chin. Millimetres from basion before growth, as in `anatomy`."""

import numpy as np

from .canvas import Canvas, band, ellipse, inset, normals, paint_bone, spline, waver
from .cranial_base import AIR, CORTICAL, Base
from .population import Person

ENAMEL = 2700.0


def paint_frontal(canvas: Canvas, base: Base, person: Person, rng, mid, thick) -> None:
    """Glabella with frontal sinus, nasal bone, crista galli, cribriform plate and the ethmoid cells behind them."""
    hard = canvas.tissue(CORTICAL * rng.uniform(0.85, 1.1), 60)
    spongy = canvas.tissue(rng.uniform(380, 620), 130)
    canvas.fill(spline([(81.5, -53), (86.5, -54), (89.8, -47), (90.5, -40), (92.5, -33), (88.5, -31), (83, -34.5), (77, -37),
                        (76, -41), (79.5, -46)], True, 5), hard)
    canvas.fill(spline([(82.5, -53), (85.7, -53), (88.2, -46.5), (88.8, -40), (89.5, -35), (84, -36.5), (79, -39), (81, -46)],
                       True, 5), spongy)
    bone_tip = rng.normal(0, 1.5)
    canvas.stroke(spline([(90, -40), (93.5, -31.5), (98, -23), (101.5 + 0.5 * bone_tip, -17 + bone_tip)]),
                  np.interp(np.arange(25), (0, 10, 24), (4.2, 2.6, 0.7)), hard)
    if rng.random() < 0.7:
        canvas.stroke(np.array([(87.5, -37.5), (90.5, -38.5), (94, -38.5)]) + rng.normal(0, 0.7, 2), rng.uniform(0.4, 0.9),
                      canvas.tissue(150))
    # frontal sinus: scalloped, none before about 7 years
    grown = np.clip((person.age_y - 6.5) / 9, 0, 1) * rng.uniform(0.3, 1.35)
    if grown > 0.12:
        reach = np.searchsorted(-mid[::-1, 1], 41 + 4 + 22 * grown)  # points of the forehead, from the root of the nose upward
        path, room = mid[::-1][1:max(reach, 9)], thick[::-1][1:max(reach, 9)] + 1.5 * grown - 2.3
        s = np.linspace(0, 1, len(path))
        width = np.maximum(room * np.sin(np.pi * (0.03 + 0.94 * s)) ** rng.uniform(0.3, 0.8) * (1 + 0.22 * waver(rng, len(s), 1.5)),
                           0.4)
        canvas.stroke(path, width + 2.2, hard)
        canvas.stroke(path, width, canvas.tissue(AIR + 15))
        for k in rng.choice(np.arange(2, len(path) - 1), min(rng.poisson(0.6), 3) if grown > 0.5 else 0, replace=False):
            across = normals(path)[k] * thick[::-1][k + 1] * 0.5
            canvas.stroke(path[k] + np.array([-1.0, rng.uniform(-0.4, 0.4), 1.0])[:, None] * across, rng.uniform(0.5, 1.1),
                          canvas.tissue(500))
    # crista galli, roof of the nose
    high, x = rng.uniform(6, 14), 71 + rng.normal(0, 1.5)
    if rng.random() < 0.85:
        crista = spline([(x - 5, -33), (x - 3.5, -34 - 0.7 * high), (x, -34 - high), (x + 3.5, -34 - 0.75 * high), (x + 5.5, -36),
                         (x + 5, -32)], True, 5)
        paint_bone(canvas, crista, rng, CORTICAL * 0.75, 0.9, rng.uniform(250, 520), 110)
    roof = spline([base.planum[-1], base.planum[-1] + (5, 0.3), (63, -32 + rng.normal(0, 0.8)), (70, -33), (80, -36)], steps=6)
    canvas.stroke(roof, 1.0 * np.exp(0.3 * waver(rng, len(roof), 2)), canvas.tissue(rng.uniform(450, 800)))
    paint_ethmoid(canvas, base, rng)


def paint_ethmoid(canvas: Canvas, base: Base, rng) -> None:
    """Ethmoid cells from the sphenoid forward below the roof of the nose: a honeycomb of air, mucosa and paper-thin walls."""
    wall = canvas.tissue(rng.uniform(150, 500), 60, 0.5)
    full = canvas.tissue(rng.uniform(-850, 40), 0, 0.5)
    air = canvas.tissue(rng.uniform(-1000, -850))
    x, y = base.planum[-1] + (rng.uniform(0, 2), 0)
    size = rng.uniform(0.7, 1.4)
    for _ in range(rng.integers(1, 9)):
        radii = size * np.exp(0.4 * rng.standard_normal(2)) * (1.7, 2.4)
        centre = (x + radii[0], y + rng.uniform(1.0, 2.5) + radii[1] + (rng.uniform(1, 9) if rng.random() < 0.5 else 0))
        cell = ellipse(centre, radii, rng.uniform(-70, 70), rng, 0.14, 14)
        canvas.fill(inset(cell, -rng.uniform(0.4, 0.8)), wall)
        canvas.fill(cell, full if rng.random() < 0.3 else air)
        x += radii[0] * rng.uniform(0.3, 2.3)


def paint_nose(canvas: Canvas, base: Base, rng, off_mm: float) -> None:
    """Nasal cavity: septum or turbinates with air between in any mixture, soft-edged since walls lie oblique to the slice."""
    corner, low, rostrum = base.planum[-1], base.front[-1], base.under[0]
    cavity = spline([corner + (0.5, 1), (62, -32), (74, -33), (86, -32), (92, -27), (99, -15), (103, -3), (99, 3), (88, -2.5),
                     (78, 0), (64, 3.2), (50, 5), (41, 5.5),
                     (34, 0), low + (2, 3), low + (1, -2)], True, 6)
    canvas.fill(cavity, canvas.tissue(rng.uniform(0, 40), 0, 1.0))
    septum = rng.random() < (0.65 if abs(off_mm) < 1.5 else 0.2)
    dark = rng.uniform(-900, -250) if septum else rng.uniform(-950, -600)
    ahead = 72 if septum else 90  # cartilage of the septum fills the front
    for _ in range(rng.integers(2, 4) + (not septum)):  # wide spaces beside the septum: below the roof, and over the palate
        if rng.random() < 0.5:
            centre = (rng.uniform(54, ahead), rng.uniform(-29, -16))
        else:
            centre = (rng.uniform(44, ahead), rng.uniform(-9, -1))
        space = ellipse(centre, (rng.uniform(6, 19), rng.uniform(3, 8)), rng.uniform(-45, 10), rng, 0.12) - centre
        for scale in np.linspace(1, rng.uniform(0.35, 0.95), 4):  # its edge may be sharp or a slope of a centimetre
            canvas.haze(centre + scale * space, dark * 0.25 * rng.uniform(0.4, 1.1))
    back = rng.uniform(0, 14)  # choana: the pharynx' air fades forward into the nose
    canvas.haze(spline([low + (1, 0), (41, -6 - 0.3 * back), (46 + back, -4 - 0.2 * back), (52 + back, 1.0), (48, 5), (37, 8),
                        (30, 6)], True, 4), rng.uniform(-1000, -350))
    canvas.haze(ellipse((36, 1), (rng.uniform(3, 8), rng.uniform(4, 8)), rng.uniform(-40, 40), rng, 0.1), rng.uniform(-900, -300))
    for _ in range(rng.integers(1, 4)):  # turbinates: mucosa round a curled bone
        centre, tilt = np.array([rng.uniform(50, ahead), rng.uniform(-24, -3)]), rng.uniform(-45, 20)
        radii = np.array([rng.uniform(4, 14), rng.uniform(2, 5)])
        shell = ellipse(centre, radii, tilt, rng, 0.1)
        canvas.haze(shell, rng.uniform(-60, 60))
        canvas.haze(band(shell[: rng.integers(7, 15)], rng.uniform(0.8, 1.8)), rng.choice([dark * rng.uniform(0.4, 1.0), 0.0]))
        canvas.haze(band(ellipse(centre, radii * (0.6, 0.3), tilt, rng, 0.1)[: rng.integers(6, 14)], rng.uniform(0.7, 1.6)),
                    rng.uniform(80, 480))
    slope = np.deg2rad(rng.uniform(-50, 10))
    for _ in range(rng.integers(3, 11)):  # clefts and folds of mucosa, side by side
        length, centre = rng.uniform(4, 18), np.array([rng.uniform(46, ahead + 4), rng.uniform(-28, 0)])
        t = np.linspace(-0.5, 0.5, 9)
        turn = slope + rng.normal(0, 0.25)
        line = centre + np.c_[np.cos(turn) * t, np.sin(turn) * t] * length
        line[:, 1] += rng.uniform(-2, 2) * np.cos(np.pi * t) + 0.4 * waver(rng, 9, 1.0)
        canvas.haze(band(line, rng.uniform(0.6, 2.2) * (1 - 1.6 * t * t)),
                    rng.choice([dark * rng.uniform(0.2, 0.7), rng.uniform(20, 160)]))
    # vomer: in some slices a plate of bone as thick as the palate, in others faint oblique lines
    vomer = spline([rostrum + (-3, 0.5), rostrum + (4, 5), (60, -5 + rng.normal(0, 2)), (74, 1)], steps=6)
    if septum and rng.random() < 0.4:
        wide = np.linspace(rng.uniform(1.5, 3.0), rng.uniform(2.5, 6.5), len(vomer))
        canvas.stroke(vomer, wide, canvas.tissue(rng.uniform(150, 420), 110, 0.6))
    else:
        canvas.haze(band(vomer, np.linspace(2.2, 3.0, len(vomer)) * rng.uniform(0.5, 1.3)), rng.uniform(30, 350))
    wing = spline([rostrum + (-6, 1.5), rostrum + (-3, 4.5), rostrum + (3, 9), (52, 3)], steps=6)
    canvas.haze(band(wing[: rng.integers(8, 20)], rng.uniform(0.8, 1.6)), rng.uniform(100, 700) * (rng.random() < 0.7))
    plate = spline([(68, -32), (72, -22 + rng.normal(0, 2)), (80, -12)], steps=5)
    canvas.haze(band(plate, rng.uniform(1.0, 3.0)), rng.uniform(0, 280))


def tooth(canvas: Canvas, tip, tilt_deg, length, crown, width, rng, clear=1.0):
    """An incisor in section: `tip` of the crown in mm, root `length` and `crown` height in mm, tilt from the vertical (root
    backward)."""
    t = np.deg2rad(tilt_deg)
    up, out = np.array([-np.sin(t), -np.cos(t)]), np.array([np.cos(t), -np.sin(t)])
    total = length + crown

    def place(rows):
        return np.asarray(tip, float) + np.array([h * total * up + w * width * out for h, w in rows])

    neck = crown / total
    root = place([(1, 0.0), (0.93, 0.22), (0.7, 0.38), (neck, 0.5), (neck * 0.5, 0.42), (0.04, 0.1), (0.04, -0.08),
                  (neck * 0.45, -0.25), (neck * 0.8, -0.5), (neck, -0.5), (0.7, -0.4), (0.93, -0.2)])
    root_hu, crown_hu = 700 + rng.uniform(100, 900) * clear, 700 + (ENAMEL - 700) * clear * rng.uniform(0.55, 1.0)
    canvas.fill(inset(spline(root, True, 3), -0.25), canvas.tissue(rng.uniform(200, 600)))
    canvas.fill(spline(root, True, 3), canvas.tissue(root_hu))
    cap = place([(neck * 1.05, 0.54), (neck * 0.5, 0.48), (0.0, 0.14), (0.0, -0.12), (neck * 0.4, -0.28), (neck * 0.75, -0.52),
                 (neck * 0.7, -0.3), (neck * 0.3, rng.uniform(-0.1, 0.1)), (neck * 0.7, 0.3)])
    canvas.fill(spline(cap, True, 3), canvas.tissue(crown_hu))
    crown_body = place([(neck, 0.45), (neck * 0.5, 0.38), (0.1 * neck, 0.0), (neck * 0.5, -0.3), (neck, -0.45)])
    canvas.fill(spline(crown_body, True, 3), canvas.tissue(0.35 * root_hu + 0.65 * crown_hu))
    if rng.random() < 0.5:
        canvas.stroke(place(np.c_[np.linspace(0.93, neck * 0.6, 8), np.zeros(8)]), np.linspace(0.02, 0.16, 8) * width,
                      canvas.tissue(0.6 * root_hu))


def paint_jaws(canvas: Canvas, person: Person, rng) -> dict[str, np.ndarray]:
    """Palate, maxilla, incisors, mandibular symphysis; returns landmarks in mm."""
    arch, body, cortex = rng.normal(0, 1.3), rng.normal(0, 0.8), CORTICAL * rng.uniform(0.7, 1.15)
    palate = spline([(42 + rng.normal(0, 1.5), 6.3), (48, 5.4 - 0.5 * body), (58, 4.4 - 0.4 * arch - body),
                     (69, 2.8 - 0.4 * arch - body), (79, -0.3), (86, -2.6), (90, -3.4),
                     (91.2, -2.2), (89.8, 0.5), (89.6, 5), (92.3, 12), (96.2, 20.5), (94.5, 23.2), (91, 22.5), (87, 18),
                     (81, 12 - 0.6 * arch), (72, 8.2 - arch + 0.7 * body), (58, 7.4 - arch + 0.5 * body), (47, 8.3)], True, 4)
    paint_bone(canvas, palate, rng, cortex, 0.95, rng.uniform(330, 560), 130)
    if rng.random() < 0.55:  # incisive canal
        canvas.stroke(spline([(77.5, -1.5), (80, 5), (82.5, 12.5), (84, 18)], steps=4), rng.uniform(0.8, 2.2), canvas.tissue(110))
    wide, high = rng.normal(0, 1.0), rng.normal(0, 1.5)
    chin = spline([(90.5, 38.5), (93, 40), (93.5, 47), (93 + 0.5 * wide, 53), (96 + wide, 60 + high), (93.5 + wide, 66.5 + high),
                   (87, 68.5 + high), (81 - wide, 65 + high),
                   (79.5 - wide, 59), (83, 50), (87.5, 41)], True, 4)
    lower = np.clip((chin[:, 1] - 48) / 15, 0, 1)
    shell = rng.uniform(0.8, 1.4) + rng.uniform(0.6, 1.5) * lower
    paint_bone(canvas, chin, rng, cortex * 1.3, shell, rng.uniform(90, 480), rng.uniform(90, 250))
    clear = 1.0 if rng.random() < 0.75 else rng.uniform(0.0, 0.7)
    proclined, bite = rng.normal(24, 7), rng.normal(2.0, 1.3)
    child = np.interp(person.age_y, (6, 8.5), (0.0, 1.0))
    upper_tip, lower_tip = np.array([97.5, 31.0]), np.array([97.5 - np.clip(rng.normal(2.8, 1.3), 0.8, 6), 31.0 - bite])
    bud = canvas.tissue(2300.0 * clear + 300)
    if person.age_y < 7.5 and rng.random() < 1 - 0.6 * child:  # milk teeth, permanent crowns still in the bone
        tooth(canvas, upper_tip - (1, 2), 18, 9, 6.5, 5.0, rng, clear)
        tooth(canvas, lower_tip - (1, 0), 160 - rng.normal(0, 5), 8, 6, 4.5, rng, clear)
        for centre, tilt in (((86, 11), 60), ((87, 53), -70)):
            canvas.fill(ellipse(centre, (5.2, 3.6), tilt), canvas.tissue(60))
            canvas.fill(ellipse(centre, (4.4, 2.6), tilt, rng, 0.05), bud)
            canvas.fill(ellipse(centre, (3.2, 1.2), tilt), canvas.tissue(500))
    else:
        tooth(canvas, upper_tip, proclined, 12.5, 9.5 * rng.uniform(0.9, 1.1), 6.8, rng, clear)
        tooth(canvas, lower_tip, 180 - rng.normal(20, 7), 12, 8.5 * rng.uniform(0.9, 1.1), 5.8, rng, clear)
    return {"upper": upper_tip, "lower": lower_tip, "palate": np.array([60.0, 5.6 - 0.7 * arch]), "symphysis": chin.mean(0)}
