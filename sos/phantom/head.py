"""A whole virtual head: the mid-sagittal section of one person carried to both sides, with what lies beside the midline.

Head coordinates in mm: X to the patient's left, x forward and y down as in `anatomy`. Nothing here is drawn twice: the section is
the painter's own. Each of its pixels keeps its tissue up to a half-width (a clivus is about 25 mm wide, a dens 12 mm); beyond
that comes the shell of skin and vault, which is the section's own, seen through an ellipsoid; and on it are painted the paired
structures: orbits, sinuses, jaws with teeth, petrous bones, upper neck. Left and right differ a little, as they do in people.
"""

import copy
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, map_coordinates

from .anatomy import SOFT, Section, draw_section, make_warp
from .canvas import Canvas, inset
from .cranial_base import CORTICAL, draw_base
from .paired import draw_paired, paint, placed, varied
from .population import Person

#: What the head's grid covers round the joint's centre, in mm: backward, forward, up, down, and to each side.
BACK, FRONT, UP, DOWN, SIDE = 140.0, 112.0, 140.0, 124.0, 92.0
#: Centre of the upper head, a level ellipsoid's, and its half-breadth over the skin there (mm, a girl of 13).
VAULT_CENTRE, VAULT_BREADTH = (-2.0, -50.0), 78.0
#: Half-breadth of face and neck by height: (y, mm).
BREADTH = (-75, -60, -45, -20, 5, 25, 50, 75, 150), (75, 77.5, 77, 72, 66, 60, 54, 55, 60)
GRAIN_SIZE = 96  # voxels of the periodic cube of bone texture
CAP_MM = 1.2  # cortex at the sides of clivus and vertebrae


@dataclass(frozen=True)
class Head:
    """hu: (n, h, w) int16 in Hounsfield units over X (to the left), y (down), x (forward); `section` is the drawing of its middle
    and `centre` the index (i, row, column) of the joint's centre, `step_mm` the edges of a voxel along the three axes."""

    hu: np.ndarray
    section: Section
    centre: np.ndarray
    step_mm: np.ndarray


@dataclass(frozen=True)
class Middle:
    """A level mid-sagittal section, a canvas of the same frame and growth, and the outline (n, 2) of its cranial base in mm."""

    section: Section
    frame: Canvas
    outline: np.ndarray


def draw_middle(person: Person, rng, voxel_mm: float) -> Middle:
    """The mid-sagittal section of `person` on the head's grid, head level.

    `rng` is used as `draw_section` uses it, so that the same numbers give the same person as in the two-dimensional phantom."""
    shape = tuple(int(round(mm / voxel_mm)) for mm in (UP + DOWN, BACK + FRONT))
    joint_px = (BACK / voxel_mm, UP / voxel_mm)
    again = copy.deepcopy(rng)
    base = draw_base(again, person, 0.0)
    frame = Canvas(shape, voxel_mm, make_warp(person, again), 0.0, base.centre, joint_px)
    return Middle(draw_section(person, rng, shape, voxel_mm, 0.0, joint_px), frame, base.outline)


def draw_head(person: Person, middle: Middle, rng, blur_mm: float) -> Head:
    """The head round a section from `draw_middle`, blurred by the scanner's point spread `blur_mm`.

    Sagittal slices lie two voxels apart. Memory: the head as int16, about 150 MB at 0.4 mm.
    """
    section, frame = middle.section, middle.frame
    voxel_mm, (h, w) = frame.voxel_mm, frame.shape
    step = 2 * voxel_mm
    half = int(np.ceil(SIDE / step))
    hu = np.empty((2 * half + 1, h, w), np.int16)
    size = np.linalg.norm(frame.warp(np.array([[0.0, -100.0]])) - frame.warp(np.zeros((1, 2)))) / 100  # of this person's skull
    smooth, grain, width, shell = _layers(middle, size)
    grid = _grid(frame, shell)
    cube = _grain(rng, voxel_mm)
    solids = draw_paired(person, rng)
    sides = {side: [placed(solid, frame, size) for solid in varied(solids, rng)] for side in (-1, 1)}
    breadth = {side: size * (1 + rng.normal(0, 0.012)) for side in (-1, 1)}  # one half is a little broader
    bone = (section.hu > 130) & (section.hu < 750) & (width > 5)
    round_ = np.sqrt(np.clip(distance_transform_edt(section.sinus) * voxel_mm / 3, 0.1, 0.9))
    hollow = np.where(section.sinus, np.maximum(width * round_, 3.0), np.inf)
    for i in range(2 * half + 1):
        lateral = (i - half) * step
        side, away = (1 if lateral >= 0 else -1), abs(lateral)
        image = Image.fromarray(_through(shell, grid, away / breadth[side]))
        pen = ImageDraw.Draw(image)
        for solid in sides[side]:
            paint(pen, solid, away, voxel_mm)
        beyond = np.array(image)
        struts = np.tile(cube[i % GRAIN_SIZE], (h // GRAIN_SIZE + 1, w // GRAIN_SIZE + 1))[:h, :w]
        beyond += struts * (90 * ((beyond > 150) & (beyond < 750)))
        keep = np.exp(-away / 1.5)  # the section's own texture fades into that of its neighbours
        core = smooth + grain * np.float32(keep) + struts * np.float32(70 * np.sqrt(1 - keep**2)) * bone
        core[away > hollow] = 320  # the sphenoid sinus ends before its bone does
        core[(bone & (away > width - CAP_MM)) | (abs(away - hollow) < 0.7 * CAP_MM)] = 0.8 * CORTICAL
        share = np.clip((width - away) / np.float32(step) + 0.5, 0, 1)
        hu[i] = np.rint(gaussian_filter(beyond + share * (core - beyond), blur_mm / voxel_mm, truncate=3))
    centre = np.array([half, section.landmarks["joint"][1], section.landmarks["joint"][0]])
    return Head(hu, section, centre, np.array([step, voxel_mm, voxel_mm]))


def _layers(drawn: Middle, size: float):
    """The section without and with only its bone texture, the half-width of its tissues in mm, and what is left of it where only
    skin and vault are: four (h, w) float32."""
    section, frame, middle = drawn.section, drawn.frame, drawn.section.hu
    spongy = ((middle > 130) & (middle < 750)).astype(np.float32)
    spongy[gaussian_filter(section.joint.astype(np.float32), 1.0 / frame.voxel_mm) > 0.02] = 0
    sigma = 0.9 / frame.voxel_mm
    mean = gaussian_filter(middle * spongy, sigma) / np.maximum(gaussian_filter(spongy, sigma), 1e-3)
    smooth = np.where(spongy > 0, mean, middle)

    def region(image, points, value):
        ImageDraw.Draw(image).polygon(frame.to_px(points).ravel().tolist(), fill=float(value))

    width = Image.new("F", (frame.shape[1], frame.shape[0]), 2.0)
    for points, mm in HALF_WIDTHS:
        region(width, points, mm * size)
    region(width, inset(drawn.outline, -2.0), 12.5 * size)  # clivus and sphenoid body
    width = np.array(width)
    y, x = (int(v + 6 / frame.voxel_mm) for v in section.landmarks["dorsum"][::-1])
    width[:y, :x] = np.minimum(width[:y, :x], 8 * size)  # dorsum sellae
    teeth = middle > 1400
    width[teeth] = np.minimum(width[teeth], 5 * size)
    solid = middle > -400
    solid[-1] = True  # the airway ends at the edge
    inside = binary_fill_holes(solid)
    air = inside & (middle < -400) & (width > 5) & ~section.sinus
    depth = np.where(air, distance_transform_edt(air) / 4.0, distance_transform_edt(inside) / 12.0) * frame.voxel_mm
    width = np.maximum(width * np.sqrt(np.clip(depth, 0, 1)), 2.0)  # air spaces and nose are round, bones a little
    bone = binary_fill_holes(gaussian_filter(middle, 0.6 / frame.voxel_mm) > 180)
    width *= np.where(bone, 0.78 + 0.22 * np.sqrt(np.clip(distance_transform_edt(bone) * frame.voxel_mm / 4, 0, 1)), 1)
    width = gaussian_filter(width, 1.0 / frame.voxel_mm)
    shell = Image.fromarray(middle)
    region(shell, INSIDE, SOFT)
    column, row = np.rint(frame.to_px((-20, -60))[0]).astype(int)
    region(shell, BRAIN, middle[row, column])
    region(shell, NOSE, -1000.0)
    face = Image.new("F", shell.size, 0.0)
    region(face, [(20, -28), (130, -28), (130, 150), (20, 150)], 1.0)
    shell, face = np.array(shell), np.array(face) > 0
    shell[face & (shell > 150)] = SOFT
    shell[binary_fill_holes(shell > -400) & (shell < -200)] = 420  # frontal sinus, solid at the sides
    return smooth, middle - smooth, width, shell


#: Half-widths in mm of what the midline shows, by region of the section (mm); later ones lie on earlier ones.
HALF_WIDTHS = (
    ([(-9, 38), (14, 38), (16, 150), (-30, 150)], 11.0),  # C3 downward
    ([(-9, 22), (10, 22), (12, 38), (-12, 38)], 9.5),  # axis
    ([(-8, 3), (6, 3), (6, 22), (-8, 22)], 5.5),  # dens
    ([(5.5, 5), (14, 5), (14, 19), (5.5, 19)], 11.0),  # anterior arch of the atlas
    ([(-21, 10), (-21, 150), (-60, 150), (-52, 10)], 3.0),  # spinous processes
    ([(24, -9), (42, -4), (45, 8), (33, 25), (30, 60), (26, 150), (-2, 150), (2, 90), (5, 65), (9, 40), (12, 20), (18, 2)],
     13.0),  # airway
    ([(30, 54), (43, 54), (43, 74), (30, 74)], 13.0),  # hyoid
    ([(40, 2), (60, 0), (80, -6), (84, -5), (84, 16), (72, 14), (58, 12), (42, 12)], 16.0),  # hard palate
    ([(80, -6), (95, -6), (97, 8), (101, 24), (101, 40), (84, 40), (82, 22)], 5.0),  # incisors
    ([(76, 37), (97, 37), (101, 62), (96, 74), (74, 74)], 10.0),  # symphysis
    ([(93, -40), (98, -36), (130, -8), (130, 10), (101, 11), (98, 0), (94, -20)], 17.0),  # nose
    ([(100, 10), (120, 10), (120, 46), (101, 46)], 24.0),  # lips
    ([(74, -37), (100, -38), (100, -60), (92, -75), (76, -75)], 16.0),  # frontal sinus
)
#: What the shell does not hold: everything between skin, vault and base, and the nose.
INSIDE = [(-32, 4), (-8, -20), (10, -42), (30, -52), (60, -48), (75, -52), (82, -51), (87, -38), (92, -28), (97, 0), (99.5, 12), (98.5, 28),
          (98, 45), (99, 60), (88, 68), (60, 70), (40, 78), (34, 105), (36, 150), (-60, 150), (-58, 80), (-54, 40), (-48, 12)]
BRAIN = [(-32, 4), (-8, -20), (10, -42), (30, -52), (60, -48), (75, -52), (82, -51), (84, -40), (60, -34), (40, -26), (8, -10),
         (-14, 2)]
NOSE = [(94.5, -40), (96, -20), (98.5, 0), (100.5, 12), (101, 30), (103, 50), (130, 50), (130, -40)]


def _grid(frame: Canvas, shell):
    """What `_through` needs of each pixel, in mm of this person: offset (x, y) from the vault's centre, its length, the length to the
    skin in that direction, the head's length over its breadth in that row, and the share of the lower head in that row."""
    mm = np.float32(frame.voxel_mm)
    centre = frame.to_px(VAULT_CENTRE)[0].astype(np.float32)
    y, x = np.mgrid[:frame.shape[0], :frame.shape[1]].astype(np.float32)
    x, y = (x - centre[0]) * mm, (y - centre[1]) * mm
    skin = shell > -400
    angle = np.deg2rad(np.arange(-180, 1.0))  # over the upper half, forward is 0
    ray = np.arange(0, 150, 0.5)[:, None] / mm
    seen = map_coordinates(skin.astype(np.float32), [centre[1] + ray * np.sin(angle), centre[0] + ray * np.cos(angle)], order=1)
    radius = np.interp(np.arctan2(np.minimum(y, 0), x), angle, gaussian_filter((seen > 0.5).sum(0) * 0.5, 4)).astype(np.float32)
    reach = [np.where(skin.any(1), r, 1) for r in (x[0, ::-1][skin[:, ::-1].argmax(1)], -x[0][skin.argmax(1)])]
    reach = [gaussian_filter(np.maximum(r, 20), 2 / mm)[:, None] for r in reach]
    down = y[:, :1] + np.float32(VAULT_CENTRE[1])
    slim = (np.where(x > 0, *reach) / np.interp(down, *BREADTH)).astype(np.float32)
    share = np.clip((down[:, 0] + 74) / 18, 0, 1)
    return centre, mm, x, y, np.sqrt(x * x + y * y) + np.float32(1e-3), radius, slim, share


def _through(shell, grid, away):
    """The shell `away` mm beside the midline, (h, w) float32: the vault seen through an ellipsoid, row by row below it through
    ellipses."""
    centre, mm, x, y, far, radius, slim, share = grid
    away = np.float32(away)
    start, stop = np.flatnonzero(share > 0)[0], np.flatnonzero(share < 1)[-1] + 1

    def sample(to_x, to_y):
        return map_coordinates(shell, np.stack([to_y / mm + centre[1], to_x / mm + centre[0]]), order=1, mode="nearest",
                               output=np.float32)

    grow = np.sqrt(1 + (radius[:stop] * (away / np.float32(VAULT_BREADTH)) / far[:stop]) ** 2)
    upper = sample(x[:stop] * grow, y[:stop] * grow)
    lower = sample(np.copysign(np.hypot(x[start:], slim[start:] * away), x[start:]), y[start:])
    both = share[start:stop, None].astype(np.float32)
    mixed = upper[start:] + both * (lower[:stop - start] - upper[start:])
    return np.vstack([upper[:start], mixed, lower[stop - start:]])


def _grain(rng, voxel_mm: float) -> np.ndarray:
    """Trabecular texture with unit variance, periodic: (GRAIN_SIZE, GRAIN_SIZE, GRAIN_SIZE) float32 over X in two voxels, y, x."""
    noise = rng.standard_normal((GRAIN_SIZE,) * 3, dtype=np.float32)
    scale = np.array([0.5, 1, 1]) / voxel_mm
    fine = gaussian_filter(noise, 0.45 * scale, mode="wrap") - gaussian_filter(noise, 1.1 * scale, mode="wrap")
    lakes = gaussian_filter(noise[::-1], 1.5 * scale, mode="wrap")
    grain = 0.75 * fine / fine.std() + 0.65 * lakes / lakes.std()
    return grain / grain.std()
