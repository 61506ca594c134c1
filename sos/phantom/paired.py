"""What lies beside the midline of a head, as unions of ellipsoids: orbits, sinuses, jaws with teeth, petrous bones, upper neck.

Head coordinates in mm from basion (`head`): X sideways, x forward, y down; sizes are those of a girl of 13, growth follows from
the section's. Shapes are simple; what counts is that they lie where a head has them and look alike on both sides.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from .anatomy import SOFT
from .canvas import Canvas
from .cranial_base import AIR, CORTICAL
from .population import Person

FAT, TOOTH, ENAMEL = -90.0, 1500.0, 2500.0
#: The dental arch from the first incisor backward: X, x in mm.
ARCH = np.array([(4.0, 92), (11, 90), (17, 85), (21.5, 78.5), (24.5, 71), (27, 62), (29.5, 52)])
CIRCLE = np.stack([f(np.arange(24) * np.pi / 12) for f in (np.cos, np.sin)], axis=1)  # (24, 2)


@dataclass(frozen=True)
class Solid:
    """A structure of one side as a union of ellipsoids. parts: (n, 7) of the centre (X, x, y) in mm, the radii along X, x, y in mm
    and the tilt in the sagittal plane in degrees. Tissue `hard` HU, and deeper than `wall` mm `soft` HU (no wall: all `hard`)."""

    parts: np.ndarray
    hard: float
    wall: float = 0.0
    soft: float = 0.0


def chain(points, radii, links) -> np.ndarray:
    """Ellipsoids strung along a path: points (n, 3) of X, x, y, radii (n, 3); returns parts (links, 7) evenly along the path."""
    points, radii = np.asarray(points, float), np.broadcast_to(np.asarray(radii, float), (len(points), 3))
    along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    at = np.linspace(0, along[-1], links)
    rows = [np.interp(at, along, column) for column in (*points.T, *radii.T)]
    return np.stack([*rows, np.zeros(links)], axis=1)


def one(centre, radii, tilt=0.0) -> np.ndarray:
    """Parts (1, 7) of a single ellipsoid."""
    return np.array([[*centre, *radii, tilt]], float)


def cells(rng, count, centre, spread, size) -> np.ndarray:
    """Parts (count, 7) of small cells scattered in an ellipsoid."""
    way = rng.normal(0, 1, (count, 3))
    way *= (rng.random((count, 1)) ** (1 / 3)) / np.linalg.norm(way, axis=1, keepdims=True)
    radii = rng.uniform(*size, (count, 3))
    return np.hstack([np.asarray(centre) + way * spread, radii, np.zeros((count, 1))])


def draw_paired(person: Person, rng) -> list[Solid]:
    """The structures of either side in the order of painting, alike until they are `varied`."""
    grown = float(np.interp(person.age_y, (6, 16), (0.7, 1.0)))
    cortex, spongy = CORTICAL * rng.uniform(0.85, 1.1), rng.uniform(260, 420)
    return [*_skull_base(person, rng, cortex, spongy), *_face(rng, cortex, spongy, grown), *_jaws(person, rng, cortex, spongy),
            *_neck(cortex, spongy)]


def _skull_base(person, rng, cortex, spongy):
    air = cells(rng, 26, (54, -18, 6), (8, 9, 13), (1.2, 2.8))
    return [
        Solid(np.vstack([chain([(67, 4, -34), (65, 22, -32), (58, 38, -30), (47, 46, -28)],  # temporal squama, greater wing
                               [(2.4, 16, 22), (2.4, 14, 22), (3, 9, 18), (4, 5, 14)], 48)]), cortex, 1.0, spongy),
        Solid(np.vstack([chain([(20, 24, -16), (34, 26, -12), (50, 20, -10), (62, 8, -12)], [(6, 13, 3.2)] * 4, 18),  # middle fossa
                         chain([(12, 38, -24), (24, 42, -32), (40, 44, -34)], [(5, 3, 3.5)] * 3, 14)]), cortex, 1.2, spongy),
        Solid(np.vstack([chain([(16, -3, 2), (26, -20, 5), (30, -36, 4), (24, -52, 2), (10, -60, -2)],  # beside the great foramen
                               [(5, 7, 3.5), (7, 9, 3), (9, 9, 2.5), (9, 9, 2.5), (9, 7, 2.5)], 28),
                         chain([(40, -30, -2), (52, -34, -10), (58, -42, -18)], [(8, 9, 3)] * 3, 12)]), cortex, 1.1, spongy),
        Solid(one((15, -2, 3.5), (5.5, 9, 5), 25), cortex, 1.2, spongy),  # occipital condyle
        Solid(chain([(13, 14, -14), (24, 6, -14), (38, -4, -14), (52, -14, -12)], [(5, 6, 5), (7, 8, 8), (8, 9, 9), (8, 11, 11)], 24),
              1.05 * cortex, 3.2, 1.5 * spongy),  # petrous pyramid
        Solid(np.vstack([one((53, -19, 6), (10, 11, 16)), one((51, -17, 14), (7, 8, 12))]), cortex, 1.4, spongy),  # mastoid
        Solid(air, AIR + 100),
        Solid(np.vstack([one((24, 3, -13.5), (4.5, 2, 2)), one((33, 4, -12), (3.0, 4, 4)), one((40, -3, -12), (4.5, 3.2, 4.5))]),
              AIR + 60 if rng.random() < 0.9 else SOFT),  # tympanic cavity
        Solid(one((24, -2, -14), (6, 2, 2.2)), SOFT),  # internal acoustic meatus
        Solid(chain([(46, -2, -9), (58, -4, -9), (66, -6, -10)], [(4, 4.6, 5)] * 3, 12), cortex, 0.0),  # external acoustic meatus
        Solid(chain([(44, -2, -9), (60, -4, -9), (74, -7, -10)], [(4, 3.2, 3.4)] * 3, 14), AIR + 10),
        Solid(one((71, -16, -10), (5.5, 14, 27), 15), SOFT),  # auricle
        Solid(one((74.5, -12, -10), (3, 6, 14), 15), AIR),
    ]


def _face(rng, cortex, spongy, grown):
    sinus = np.array([11.5, 15.5, 14.5]) * grown * rng.uniform(0.85, 1.12)
    ethmoid = cells(rng, 24, (8.5, 60, -26), (3.6, 14, 8), (2.0, 4.2))
    wall = ethmoid.copy()
    wall[:, 3:6] += 0.7
    turbinates = [one((6.5, 62 + rng.normal(0, 2), y), (r, 15, 3.6), -8) for y, r in ((-3, 3.6), (-12, 2.8), (-20, 2.0))]
    return [
        Solid(one((30, 60, -28), (19.5, 27, 19), -5), cortex, 1.0, FAT),  # orbit
        Solid(one((31, 77, -28), (17.5, 12, 15.5)), SOFT),
        Solid(one((31, 71, -28), (12.2, 12.2, 12.2)), 15.0),  # globe
        Solid(one((31, 80, -28), (4.6, 2.2, 4.6)), 95.0),  # lens
        Solid(chain([(28, 66, -28), (14, 44, -29)], [(2.2, 2.2, 2.2)] * 2, 24), SOFT),  # optic nerve
        *(Solid(chain([(29 + a, 76, -28 + b), (17, 44, -29)], [(2.0, 3, 2.0)] * 2, 16), SOFT + 15)
          for a, b in ((0, -13), (0, 13), (-12, 0), (12, 0))),  # muscles of the eye
        Solid(chain([(12, 84, -40), (30, 86, -46), (46, 76, -38), (49, 70, -24), (46, 74, -14)], [(5, 4, 3.5)] * 5, 28), cortex, 1.3,
              spongy),  # orbital rim
        Solid(chain([(18, 88, -10), (30, 82, -8), (44, 74, -10), (56, 60, -11), (62, 44, -11), (65, 28, -11), (64, 8, -11)],
                    [(5, 4, 4), (7, 4, 5), (7, 6, 7), (3.2, 6, 5), (2.0, 6, 3.5), (2.0, 6, 3.0), (2.4, 6, 3)], 44),
              cortex, 1.2, spongy),  # zygoma and its arch
        Solid(np.vstack([one((25, 60, -7), sinus + 1.2), one((16, 74, -8), (5, 9, 17))]), 0.8 * cortex, 1.0, SOFT),  # maxilla
        Solid(one((25, 60, -7), sinus), AIR + 10),
        Solid(one((6.8, 63, -9), (6.6, 32, 16), -6), 0.55 * cortex, 0.8, AIR + 40),  # half of the nasal cavity
        Solid(one((6, 92, -8), (4.6, 12, 6), -25), AIR + 40),
        Solid(np.vstack(turbinates), SOFT),
        Solid(np.vstack([part * np.array([1, 1, 1, 0.3, 0.85, 0.3, 1]) for part in turbinates]), 320.0),
        Solid(one((7, 40, 0), (5.5, 12, 9)), AIR + 20),  # choana
        Solid(wall, 0.5 * cortex), Solid(ethmoid, AIR + 60),
        Solid(np.vstack([chain([(13, 37, -8), (12.5, 36, 6)], [(1.2, 4, 6)] * 2, 8),
                         chain([(15, 36, -8), (19, 33, 6)], [(1.3, 3, 6)] * 2, 8)]), 0.8 * cortex),  # pterygoid plates
        Solid(np.vstack([one((40, 62, 16), (6, 12, 12)), one((54, 55, -28), (3, 8, 13))]), FAT + 20),  # cheek, temple
        Solid(one((54, 24, 24), (5.5, 14, 22), 15), SOFT + 25),  # masseter
        Solid(one((22, 56, 34), (5, 26, 14), 5), SOFT + 12), Solid(one((31, 54, 38), (4.5, 24, 8), 5), FAT + 60),  # floor of the mouth
    ]


def _jaws(person, rng, cortex, spongy):
    arch = np.c_[ARCH, np.zeros(len(ARCH))]
    upper, lower = arch + (0, 0, 13), arch * (0.93, 0.99, 1) + (0, -1, 43)
    upper[:, 2] -= np.linspace(0, 1.5, len(arch))
    body = [(7, 90, 55), (16, 84, 56), (25, 72, 55), (32, 58, 53), (38, 42, 50), (42, 28, 46)]
    ramus = [(42, 30, 46), (45, 22, 34), (46.5, 19, 20), (48, 13, 4), (49, 8, -5)]
    solids = [
        Solid(chain(upper, [(5.0, 5.5, 9)] * len(arch), 32), cortex, 1.0, spongy),
        Solid(chain(body, [(5.5, 6, 11.5), (5.5, 7, 12), (5.5, 7, 12), (5.5, 7, 12), (5, 8, 12), (4.5, 10, 11)], 40), 1.2 * cortex,
              2.0, spongy),
        Solid(np.vstack([chain(ramus, [(4.2, 13, 9), (4.0, 14, 9), (3.6, 13, 8), (3.6, 6, 6), (7, 4.2, 4)], 24),
                         chain([(46, 28, 16), (45, 33, 2)], [(2.8, 6, 8), (2.2, 3, 6)], 8)]), 1.2 * cortex, 1.6, spongy),
    ]
    count = len(arch) if person.age_y >= 12 else len(arch) - 1
    wide = np.array([3.6, 3.0, 3.6, 3.5, 3.5, 5.0, 5.0])
    for row, way in ((upper + (0, 0, 12.5), -1), (lower - (0, 0, 8.0), 1)):
        roots, crowns = [], []
        for (across, ahead, down), w in zip(row[:count], wide, strict=False):
            lean = 18 * way * (1 if ahead > 84 else 0.2)
            roots.append([across, ahead - 1.5, down + way * 9, 0.62 * w, 0.75 * w, 9.0, lean])
            crowns.append([across, ahead, down, w, w * 1.05, 4.6, lean])
        solids += [Solid(np.array(roots), TOOTH * rng.uniform(0.85, 1.1)), Solid(np.array(crowns), ENAMEL * rng.uniform(0.9, 1.1), 1.3,
                                                                                  TOOTH)]
    return solids


def _neck(cortex, spongy):
    solids = [Solid(one((17, 2, 13), (7.5, 8.5, 6.5), -15), cortex, 1.0, spongy),  # lateral mass of the atlas
              Solid(chain([(24, 0, 14), (36, -2, 14)], [(5, 5, 4), (5, 4, 4)], 10), cortex, 1.0, spongy),
              Solid(chain([(17, -6, 13), (19, -18, 12), (12, -27, 14), (3, -31, 16)], [(3.5, 4, 3.5)] * 4, 22), cortex, 1.0, spongy),
              Solid(one((15, 0, 26), (7.5, 8, 6), 10), cortex, 1.0, spongy)]
    y = 39.0
    for level in range(7):  # articular pillars and laminae
        at = (y if level else 28, -9.5 if level else -8)
        lean = -0.12 * (at[0] - 8)
        solids += [Solid(one((19 + 0.4 * level, at[1] + lean, at[0]), (5.5, 6.5, 7.5), -30), cortex, 0.9, spongy),
                   Solid(chain([(17, at[1] - 6 + lean, at[0]), (9, -22 + lean, at[0] + 3), (2, -28 + lean, at[0] + 4)],
                               [(3.5, 3, 5)] * 3, 16), cortex, 0.9, spongy),
                   Solid(chain([(11, 1 + lean, at[0]), (20, 0 + lean, at[0])], [(3, 3.4, 3)] * 2, 8), cortex, 0.9, spongy)]
        y += 15.0 if level else 6.0
    muscle, fat = SOFT + 20, FAT + 40
    return [Solid(one((24, -44, 55), (14, 14, 60), 10), fat), Solid(one((22, -42, 55), (12, 10, 58), 10), muscle),
            Solid(one((42, -8, 75), (8, 15, 60), 12), fat), Solid(one((42, -8, 75), (6, 12, 58), 12), muscle), *solids]


def varied(solids: list[Solid], rng) -> list[Solid]:
    """The structures as one side of a person has them: smoothly displaced by a millimetre or two, some per cent larger or smaller;
    neighbours move together, so that walls stay whole."""
    waves, phases, gains = rng.normal(0, 2 * np.pi / 120, (3, 3)), rng.uniform(0, 2 * np.pi, 3), rng.normal(0, 1.0, (3, 3))
    scale = 1 + rng.normal(0, 0.03)
    sides = []
    for solid in solids:
        parts = solid.parts.copy()
        parts[:, :3] += np.sin(parts[:, :3] @ waves + phases) @ gains
        parts[:, 3:6] *= scale
        sides.append(replace(solid, parts=parts))
    return sides


def placed(solid: Solid, frame: Canvas, size: float) -> Solid:
    """The structure with X in mm, x and y in pixels of a canvas, radii scaled by `size`, the person's growth; ready for `paint`."""
    parts = solid.parts.copy()
    parts[:, 1:3] = frame.to_px(parts[:, 1:3])
    parts[:, [0, 3]] *= size
    parts[:, 4:6] *= size / frame.voxel_mm
    return replace(solid, parts=parts)


def paint(pen: ImageDraw.ImageDraw, solid: Solid, away: float, voxel_mm: float) -> None:
    """Paint what the sagittal slice `away` mm beside the midline cuts of a placed structure."""
    thick = solid.wall / np.array([1, voxel_mm, voxel_mm])
    for depth, tissue in ((0.0, solid.hard), (thick, solid.soft)) if solid.wall else ((0.0, solid.hard),):
        radii = np.maximum(solid.parts[:, 3:6] - depth, 0.05)  # (n, 3)
        share = 1 - ((away - solid.parts[:, 0]) / radii[:, 0]) ** 2
        cut = share > 0
        size = radii[cut, 1:] * np.sqrt(share[cut, None])  # (m, 2)
        tilt = np.deg2rad(solid.parts[cut, 6])
        long, high = np.stack([np.cos(tilt), np.sin(tilt)], 1), np.stack([-np.sin(tilt), np.cos(tilt)], 1)
        outlines = (solid.parts[cut, None, 1:3] + (size[:, :1] * long)[:, None] * CIRCLE[:, :1]
                    + (size[:, 1:] * high)[:, None] * CIRCLE[:, 1:])  # (m, 24, 2)
        for outline in outlines.reshape(len(size), 2 * len(CIRCLE)).tolist():
            pen.polygon(outline, fill=float(tissue))
