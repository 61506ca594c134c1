"""What is drawn: a mid-sagittal section of head and neck in Hounsfield units, from landmarks in millimetres.

Origin at basion, x forward (the head faces right), y down. The landmarks are those of a girl of 13; growth by age and sex,
personal size and a smooth random displacement carry them to one patient, so that neighbouring structures vary together. The
cranial base with the joint has a room of its own (`cranial_base`), the painter's tools another (`canvas`).
"""

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, ellipse, inset, normals, paint_bone, spline, waver
from .cranial_base import AIR, CORTICAL, draw_base, paint_base
from .face import paint_frontal, paint_jaws, paint_nose
from .population import Person
from .sinus import paint_sinus

SOFT = 45.0


@dataclass(frozen=True)
class Section:
    """A drawn section: `hu` (h, w) float32; `joint` and `sinus` (h, w) bool; landmarks in pixels (x, y) by name, some of them
    beyond the frame; `extent` and `line` (the joint from endo- to ectocranial, a little beyond both) are (n, 2)."""

    hu: np.ndarray
    joint: np.ndarray
    sinus: np.ndarray
    landmarks: dict[str, np.ndarray]


def draw_section(person: Person, rng, shape, voxel_mm: float, pitch_deg: float, joint_px, off_mm: float = 0.0,
                 apart: bool = False) -> Section:
    """Draw one section.

    shape: (h, w) in pixels; joint_px: where the joint's centre lies (x, y); pitch_deg: head tilt, positive chin down; off_mm:
    distance of the slice from the midline in mm; apart: each structure draws its details from numbers of its own, so that one
    that comes or goes with age leaves all others as they are. Cohorts draw all from one row of numbers.
    """
    def own():
        return rng.spawn(1)[0] if apart else rng

    base = draw_base(rng, person, off_mm)
    canvas = Canvas(shape, voxel_mm, make_warp(person, rng), pitch_deg, base.centre, joint_px)
    paint_skin(canvas, person, own())
    vault = paint_vault(canvas, base, person, own())
    paint_nose(canvas, base, own(), off_mm)
    marks = {"joint": base.centre, "basion": base.endo[0], "dorsum": base.sella[4],
             "sella": base.sella[base.sella[:, 1].argmax()] - (0, 3), "clivus": 0.6 * base.centre, "occiput": vault[0][16]}
    marks |= paint_airway(canvas, base, person, own())
    marks |= paint_spine(canvas, person, own())
    paint_frontal(canvas, base, person, own(), *vault)
    marks |= paint_jaws(canvas, person, own())
    strip = paint_base(canvas, base, person, own(), off_mm)
    sinus = paint_sinus(canvas, base, person, own())
    hu = canvas.render(own(), haze_mm=1.0)
    points = canvas.to_px(np.array(list(marks.values())))
    landmarks = dict(zip(marks, points, strict=True)) | {"extent": canvas.to_px(base.extent), "line": canvas.to_px(base.joint)}
    air = np.zeros(shape, bool) if sinus is None else canvas.painted(sinus)
    if air.any():
        landmarks["sinus"] = np.median(np.argwhere(air), axis=0)[::-1]
    return Section(hu, canvas.mask(strip), air, landmarks)


def make_warp(person: Person, rng):
    """Growth by age and sex, personal size and proportions, and a smooth random displacement: a function of points (n, 2) in
    mm."""
    ages = (6, 10, 13, 16, 18, 22)
    face = {"F": (0.85, 0.93, 1.0, 1.03, 1.035, 1.04), "M": (0.86, 0.94, 1.0, 1.07, 1.10, 1.115)}[person.sex]
    vault = {"F": (0.965, 0.985, 1.0, 1.01, 1.01, 1.01), "M": (0.985, 1.005, 1.02, 1.035, 1.04, 1.045)}[person.sex]
    size = 1 + 0.035 * rng.standard_normal()
    up = np.interp(person.age_y, ages, vault) * size
    down = np.interp(person.age_y, ages, face) * size * (1 + 0.035 * rng.standard_normal())
    front = (0.5 * up + 0.5 * down) * (1 + 0.025 * rng.standard_normal())
    back = up * (1 + 0.03 * rng.standard_normal())
    waves = rng.normal(0, 1, (7, 2)) * 2 * np.pi / 80
    phases, gains = rng.uniform(0, 2 * np.pi, (2, 1, 7)), rng.normal(0, 0.6, (2, 1, 7))
    chin = rng.normal(0, 2.5)

    def ramp(values):
        return np.minimum(np.maximum(values, 0.0), 1.0)

    def warp(points):
        x, y = points[:, 0], points[:, 1]
        low, ahead = ramp((y + 45) / 60), ramp((x + 10) / 50)
        calm = 1 - 0.65 * ramp((-y - 45) / 30)  # the vault's curve is even
        moved = np.empty((len(points), 2))
        moved[:, 0] = x * (up + (front - up) * low * ahead + (back - up) * ramp(-x / 40)) + chin * ahead * ramp((y - 15) / 40)
        moved[:, 1] = y * (up + (down - up) * low)
        phase = moved[:, :1] * waves[:, 0] + moved[:, 1:] * waves[:, 1]  # (n, 7); a matrix product rounds by machine
        return moved + calm[:, None] * (np.sin(phase + phases) * gains).sum(2).T

    return warp


def paint_skin(canvas, person, rng):
    """Head and neck as soft tissue, with fat below the skin of the nape and the chin and faint muscles."""
    nose, lips, throat = rng.normal(0, 2.4), rng.normal(0, 1.5), rng.normal(0, 6)
    open_mm = 0.0 if rng.random() < 0.75 else rng.uniform(1, 4)
    skin = [(-78, 150), (-67, 85), (-63, 55), (-71, 24), (-89, -6), (-97, -30), (-98, -52), (-90, -82), (-62, -115), (-22, -133),
            (22, -135), (60, -119), (85, -90), (94, -64), (95.5, -50), (94, -41), (100, -27), (108 + 0.6 * nose, -12),
            (114.5 + nose, -2), (117 + nose, 2), (115.8 + nose, 5.8), (112 + 0.7 * nose, 8), (107.5, 9.5 - 0.4 * nose), (104, 11),
            (104.5 + lips, 15), (108.5 + lips, 21), (108 + lips, 25.5), (102.5, 28 - open_mm), (102.5, 28.5 + open_mm),
            (106.5 + lips, 31), (107 + lips, 36), (102.5, 42), (104.5, 50), (103.5, 59), (95, 68), (80, 72), (58 + throat, 76),
            (42 + throat / 2, 86), (38, 105), (40, 150)]
    outline = spline(skin, True, 5)
    canvas.fill(outline, canvas.tissue(20, 0, 1.0))
    canvas.fill(inset(outline, 1.3), canvas.tissue(SOFT, 0, 1.0))
    fat = canvas.tissue(rng.uniform(-60, 10), 0, 1.0)
    thick = rng.uniform(1.5, 5.0)
    canvas.stroke(spline([(-66, 110), (-61, 85), (-57, 55), (-64, 25), (-80, 2), (-90, -18)]),
                  np.r_[np.full(30, thick), np.linspace(thick, 1, 11)], fat)
    canvas.stroke(spline([(46, 80), (64, 71), (84, 67.5), (95, 63)]), rng.uniform(1.5, 3.5), fat)
    for _ in range(rng.integers(5, 14)):  # muscles and the fat between them, along the nape and in the tongue: a few HU
        if rng.random() < 0.6:
            centre, radii = (rng.uniform(-62, -12), rng.uniform(15, 95)), (rng.uniform(6, 26), rng.uniform(1.2, 4.5))
            tilt = rng.normal(75, 14)
        else:
            centre, radii = (rng.uniform(30, 85), rng.uniform(18, 65)), (rng.uniform(4, 14), rng.uniform(2, 6))
            tilt = rng.uniform(-80, 80)
        canvas.haze(ellipse(centre, radii, tilt, rng, 0.12), rng.uniform(-50, 25))


def paint_vault(canvas, base, person, rng):
    """Skull vault from opisthion to the forehead: two tables with diploe, sutures across them; returns its middle line and
    thickness in mm."""
    bulge = rng.normal(0, 2.5)
    mid = spline([(-37, 6), (-46, 1), (-60, -6), (-77, -21), (-86 - 0.5 * bulge, -35), (-88 - bulge, -50), (-83 - bulge, -72),
                  (-71 - bulge, -92), (-52, -108 - bulge), (-20, -122 - bulge), (20, -124), (54, -110), (75, -86), (83.5, -64),
                  (84, -50), (85, -42)])
    s = np.linspace(0, 1, len(mid))
    child = np.interp(person.age_y, (6, 16), (0.75, 1.05)) * rng.uniform(0.85, 1.35)
    thick = child * np.interp(s, (0, 0.06, 0.16, 0.22, 0.35, 0.6, 0.85, 0.95, 1),
                              (2.0, 5.0, 7.5, 8.6, 6.5, 6.0, 6.5, 8.5, 8.5)) * np.exp(0.05 * waver(rng, len(mid), 6))
    inside = np.vstack([mid, base.planum[::-1], base.sella[::-1], base.endo[::-1]])
    canvas.haze(inside, -rng.uniform(0, 80))  # grey values are lower inside the skull (beam hardening)
    out = normals(mid) * thick[:, None] / 2
    for side in (-out, out):  # the two tables
        canvas.ribbon(mid, mid + side, CORTICAL * rng.uniform(0.75, 1.35) * np.exp(0.15 * waver(rng, len(mid), 3)), 60)
    core = np.maximum(thick - rng.uniform(2.4, 3.2) * np.exp(0.15 * waver(rng, len(mid), 4)), 0.2)
    canvas.stroke((mid + normals(mid) * 0.25)[2:-3], core[2:-3], canvas.tissue(rng.uniform(260, 600), 130))
    for at in rng.choice(np.arange(20, 95), 2, replace=False):
        width, tone = rng.uniform(0.5, 1.5), rng.choice([110.0, 300.0])
        zigzag = np.c_[np.linspace(-1.05, 1.05, 9)] * out[at] + np.c_[0.5 * np.sin(np.arange(9) * 1.9), np.zeros(9)]
        canvas.stroke(mid[at] + zigzag, width, canvas.tissue(tone))
    return mid, thick


def paint_airway(canvas, base, person, rng) -> dict[str, np.ndarray]:
    """Pharynx with adenoid, soft palate, oral air, epiglottis and hyoid; returns landmarks in mm."""
    air, soft = canvas.tissue(AIR + 8, 0, 0.2), canvas.tissue(SOFT - 5, 0, 1.0)
    adenoid = np.clip(rng.normal(np.interp(person.age_y, (6, 9, 14, 20), (8, 8, 4, 1)), 2.8), 0, 13)
    narrow, thick = rng.normal(0, 1.8), rng.normal(0, 1.2)  # of the airway, and of the wall behind it
    roof = base.under[np.argmin(np.abs(base.under[:, 0] - rng.uniform(26, 32)))] + (0, rng.uniform(2.5, 6.5) + 0.5 * adenoid)
    lump = waver(rng, 7, 1.0) * np.array([0.8, 1.3, 1.3, 1.0, 0.8, 0.8, 0.8])
    wall = [roof + (-2 - 0.3 * adenoid + lump[0], 3 + 0.4 * adenoid), (19 + 0.7 * adenoid + lump[1], 8 + 0.6 * adenoid),
            (16.5 + 0.5 * adenoid + thick + lump[2], 14 + 0.4 * adenoid), (15.5 + 0.2 * adenoid + thick + lump[3], 22),
            (11.5 + thick + lump[4], 33), (9 + thick + lump[5], 48), (7.5 + thick + lump[6], 65), (6, 85), (2, 150)]
    base_of_tongue = rng.normal(0, 1.3, 4)
    front = [(24, 150), (22, 100), (19 + narrow, 82), (17 + narrow + base_of_tongue[0], 68), (22 + narrow, 58),
             (21 + narrow + base_of_tongue[1], 46), (24.5 + narrow + base_of_tongue[2], 35), (26, 30), (30, 20 + base_of_tongue[3]),
             (38, 11), (41.5, 6.5), (38.5, 2)]
    nasal = [roof + (rng.uniform(5, 9), rng.uniform(0.5, 3)), roof + (rng.uniform(2, 5), rng.uniform(-1, 0.5))]
    outline = spline(np.array(front + nasal + wall), True, 5)
    canvas.fill(inset(outline, 0.25 * waver(rng, len(outline), 1.0)), air)
    uvula = np.array([24.5, 31]) + rng.normal(0, 1.6, 2)
    canvas.stroke(spline([(44, 7.5), (37, 11 + rng.normal(0, 0.8)), (30, 20), uvula], steps=6),
                  np.interp(np.arange(19), (0, 9, 15, 18), (3.5, 7.0, 6.0, 3.0)) * rng.uniform(0.75, 1.3), soft)
    reach = rng.normal(0, 2.2, 3)
    epiglottis = spline([(28 + narrow, 69), (21.5 + narrow + reach[2], 60 - 0.5 * reach[2]),
                         (17.5 + narrow + 0.5 * reach[0], 51), (16 + narrow + reach[0], 46 + reach[1])], steps=5)
    canvas.stroke(epiglottis, np.linspace(rng.uniform(3, 5), rng.uniform(1.0, 2.0), len(epiglottis)), soft)
    if rng.random() < 0.5:  # vallecula before the epiglottis
        canvas.fill(ellipse((24.5 + narrow, 57), (rng.uniform(1, 2.4), rng.uniform(2, 4)), rng.uniform(-50, -15), rng, 0.1), air)
    if rng.random() < 0.6:  # air between tongue and palate
        w = rng.uniform(0.3, 4.5)
        back = rng.uniform(-0.6, 1)
        canvas.fill(spline([uvula + (3, 0.5), (38, 18), (50, 12 - 0.3 * w), (62 + 14 * back, 11 + 2 * back),
                            (62 + 14 * back, 12 + 2 * back + 0.5 * w), (50, 13 + w), (39, 19.5 + w),
                            uvula + (5, 3.0)], True, 5), air)
    if rng.random() < 0.25:  # lips apart: air before the teeth
        canvas.haze(ellipse((100.5, 33), (1.5, 5), 10, rng, 0.1), rng.uniform(-900, -300))
    if rng.random() < 0.85:
        hyoid = ellipse((36 + narrow + rng.normal(0, 1.5), 64 + rng.normal(0, 3)), (rng.uniform(1.5, 2.6), rng.uniform(3.2, 5.5)),
                        rng.uniform(-55, 5), rng, 0.1)
        paint_bone(canvas, hyoid, rng, 900 * rng.uniform(0.6, 1.3), 0.8, rng.uniform(100, 300), 60)
    return {"pharynx": roof + (2.5, 8), "uvula": np.array([33.0, 15.5])}


def paint_spine(canvas, person, rng) -> dict[str, np.ndarray]:
    """Atlas, axis, C3 to C7 with discs, and the spinous processes behind them; returns landmarks in mm."""
    cortex, spongy = CORTICAL * rng.uniform(0.7, 1.05), rng.uniform(220, 430)
    child = person.age_y < 12

    def bone(points, mm=1.0):
        paint_bone(canvas, spline(points, True, 4), rng, cortex, mm, spongy, 110)

    lean = rng.normal(-0.12, 0.11)  # sideways drift for each mm down
    shift = lambda pts: [(x + lean * (y - 8), y) for x, y in pts]  # noqa: E731
    arch = np.array(shift([(7, 8), (10.2, 9), (11.6, 13), (10, 17.3), (6.8, 16), (6.2, 12)]))
    arch = arch.mean(0) + (arch - arch.mean(0)) * rng.uniform(0.8, 1.15, 2) + rng.normal(0, 0.5, (6, 2))
    arch += (max(0.4, rng.normal(1.2, 0.6) + 0.8 * child), rng.normal(0, 0.7))  # the joint before the dens is wider in children
    bone(arch, rng.uniform(0.9, 1.6))
    dens = np.array(shift([(-4.5, 10), (-1.5, 6.2), (2.5, 6.0), (5, 9.5), (4.3, 15), (3.6, 20), (5.2, 27), (6.6, 35.5), (2, 36.2),
                           (-6.8, 35), (-6.2, 25), (-4.4, 18)]))
    dens[:5, 1] += rng.normal(0, 1.3)
    bone(dens + rng.normal(0, 0.5, (12, 2)))
    if rng.random() < (0.25 if person.age_y < 10 else 0.02):  # terminal ossicle at the tip of the dens
        bone(ellipse(dens[1:3].mean(0) - (0, 2.5), (2.0, 1.2), rng.uniform(-20, 20), rng, 0.1, 8), 0.6)
    if child or rng.random() < 0.35:  # dentocentral synchondrosis or its trace
        y = rng.uniform(21, 24)
        canvas.stroke(shift(spline([(-5.5, y), (-1, y + rng.normal(0, 0.8)), (4.5, y)], steps=3)), rng.uniform(0.5, 1.3),
                      canvas.tissue(rng.choice([120.0, spongy + 260])))
    y, wedge = 39.5, np.interp(person.age_y, (6, 14), (2.6, 0.6))
    for k in range(6):
        h, w = (11.0 + 0.4 * k) * np.interp(person.age_y, (6, 15), (0.86, 1.04)), 13.5 + 0.3 * k
        top = y + 0.25 * wedge
        bone(shift([(-w / 2 - 1, top), (-1, top + 0.6), (w / 2 - 1.5, top + wedge), (w / 2 - 1, y + h * 0.6),
                    (w / 2 - 0.6, y + h + 0.2), (-1, y + h - 0.8), (-w / 2 - 1, y + h - 0.3),
                    (-w / 2 - 0.6, y + h / 2)]), 0.9)
        y += h + rng.uniform(3.0, 4.6)
    y, x, thick, fill = 17.0 + rng.normal(0, 1), -30 + rng.normal(0, 1.5), rng.uniform(0.9, 1.5), rng.uniform(0.3, 0.85)
    for k in range(6):
        if k == 0:
            points = ellipse((x, y + 2), (4.6, 3.6), rng.uniform(-30, 30), rng, 0.08, 10)
        else:
            size = (1.15 if k == 1 else 0.85) * rng.uniform(0.8, 1.15)
            points = np.array([(4.5, -0.5), (5, 3), (0, 6.5), (-7 - k, 8 + k), (-8.5 - k, 5 + k), (-3, -1),
                               (1, -3.4)]) * size + (x, y)
        paint_bone(canvas, spline(points, True, 3), rng, cortex * 1.1, thick, spongy * fill, 110)
        y += rng.uniform(12.5, 16.5)
        x -= rng.uniform(0.2, 1.4)
    return {"atlas": arch.mean(0), "dens": dens[[0, 4]].mean(0), "axis": dens[[6, 10]].mean(0)}
