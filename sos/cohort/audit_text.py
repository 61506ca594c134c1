"""Places where text may be burned into the pixels. Says where, never what: nothing is read.

Letters are small patches of one grey value with sharp edges that stand side by side on a line. Bones and teeth are blurred by the scanner and
vary within; noise is too small; what is left of them seldom lies on one line. Rates on virtual patients: tests/test_audit_text.py.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

LARGEST = 1600  # pixels along the longer side; larger images are halved until they fit
#: Grey values above which patches are looked for, and those for dark letters on white, where the image is looked at as its negative.
LEVELS, NEGATIVE_LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97), (0.3, 0.7)
HEIGHTS = (5, 60)  # pixels of a letter
CONTRAST, FLATNESS = 0.18, 0.4  # of a letter against what lies 2 px outside it; share of its pixels within 0.1 of its own value
WHITE = 0.1  # at most, in the negative, round a dark letter
SURE_CONTRAST, SURE_SPREAD = 0.25, 0.03  # of three letters; four need less, for bones come in threes

Place = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image


class _Letter(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int
    value: float
    contrast: float
    strokes: int  # letters that touch count as one patch of several

    @property
    def height(self) -> int:
        return self.y1 - self.y0


def suspected_text(pixels: np.ndarray) -> list[Place]:
    """Where lines of text may stand in the grey image (h, w) in [0, 1], from top to bottom."""
    factor = 1
    while max(pixels.shape) / factor > LARGEST:
        factor *= 2
    if factor > 1:
        size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    places = [place for picture, levels, most in ((pixels, LEVELS, 1.0), (1 - pixels, NEGATIVE_LEVELS, WHITE))
              for letters in _letters(picture, levels, most) for line in _lines(letters) if (place := _place(line))]
    return [tuple(int(v) * factor for v in place) for place in _merged(places)]


class _Patches(NamedTuple):
    """Patches as runs of pixels along rows: what is asked of one patch is asked of all at once, an image has hundreds."""

    boxes: np.ndarray  # (n, 4) x0, y0, x1, y1
    area: np.ndarray  # (n,)
    level: np.ndarray  # (n,) number of the level above which it was found
    runs: np.ndarray  # (3, m) y, x0, x1, those of a patch one after the other
    owner: np.ndarray  # (m,) number of the patch that a run is part of

    def those(self, kept: np.ndarray) -> "_Patches":
        """The patches for which `kept` (n,) holds."""
        runs = kept[self.owner]
        return _Patches(self.boxes[kept], self.area[kept], self.level[kept], self.runs[:, runs], (np.cumsum(kept) - 1)[self.owner[runs]])


def _letters(pixels: np.ndarray, levels: tuple[float, ...], most_around: float) -> list[list[_Letter]]:
    """Patches above each level that may be letters; most_around: grey value outside them at most."""
    patches = _together([_patches(pixels >= level, number) for number, level in enumerate(levels)])
    y, x0, x1 = patches.runs
    owner, strokes = np.repeat(patches.owner, x1 - x0), pixels[np.repeat(y, x1 - x0), _ranges(x0, x1)]
    value = _quantiles(strokes, owner, patches.area, 0.9)
    close = strokes >= (value - 0.1).astype(pixels.dtype)[owner]
    flat = np.bincount(owner, close, len(value)) / patches.area >= FLATNESS
    patches, value = patches.those(flat), value[flat]
    outside = _outside(patches, pixels)
    letters = [[] for _ in levels]
    for i in np.flatnonzero((value - outside >= CONTRAST) & (outside <= most_around)):
        if strokes := _strokes(patches, i, len(pixels)):
            letters[patches.level[i]].append(_Letter(*patches.boxes[i].tolist(), float(value[i]), float(value[i] - outside[i]), strokes))
    return letters


def _patches(mask: np.ndarray, level: int) -> _Patches:
    """The patches of a mask (h, w), corners touching, that are of the size of letters."""
    wide = mask.shape[1] + 1
    padded = np.zeros((len(mask) + 1, wide), bool)  # a gap before each row
    padded[:-1, 1:] = mask
    begin, end = np.flatnonzero(padded.ravel()[1:] != padded.ravel()[:-1]).astype(np.int32).reshape(-1, 2).T + 1
    first, last = np.searchsorted(end, begin + wide), np.searchsorted(begin, end + wide, "right")  # runs of the next row that one touches
    below = _ranges(first, last)
    links = csr_array((np.ones(len(below)), below, np.append(0, np.cumsum(last - first))), (len(begin), len(begin)))
    owner = connected_components(links, directed=False)[1]
    order = np.argsort(owner, kind="stable")
    y = begin // wide
    owner, (y, x0, x1) = owner[order], (runs := np.stack([y, begin - y * wide - 1, end - y * wide - 1])[:, order])
    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    tails = np.append(heads, len(owner))[1:] - 1
    boxes = np.stack([np.minimum.reduceat(x0, heads), y[heads], np.maximum.reduceat(x1, heads), y[tails] + 1], 1)
    area, (w, h) = np.add.reduceat(x1 - x0, heads), (boxes[:, 2:] - boxes[:, :2]).T
    sized = (HEIGHTS[0] <= h) & (h <= HEIGHTS[1]) & (w <= 12 * h)
    speck, block = area < 6, (area > 0.9 * h * w) & (w > 0.5 * h)
    return _Patches(boxes, area, np.full(len(area), level), runs, owner).those(sized & ~speck & ~block)


def _together(found: list[_Patches]) -> _Patches:
    """Those of all levels, numbered on."""
    boxes, area, level, runs, owner = zip(*found, strict=True)
    before = np.cumsum([0, *map(len, area)])
    return _Patches(*map(np.concatenate, (boxes, area, level)), np.concatenate(runs, 1),
                    np.concatenate([numbers + n for numbers, n in zip(owner, before)]))


def _outside(patches: _Patches, pixels: np.ndarray) -> np.ndarray:
    """(n,) grey value 2 px outside each patch: the upper quartile; infinite where all of that is outside the image or the patch."""
    (y, x0, x1), owner = patches.runs, patches.owner
    left, top = patches.boxes[:, :2].T - 2
    w, h = (patches.boxes[:, 2:] - patches.boxes[:, :2]).T + 4
    after = np.cumsum(w * h)  # the surroundings of all patches in one line of cells
    row, begin, end = y - top[owner], x0 - left[owner], x1 - left[owner]

    def grown(by):
        at = (after - w * h)[owner] + (row + np.arange(-by, by + 1)[:, None]) * w[owner]
        begins, ends = (np.bincount(edge.ravel(), minlength=(w * h).sum() + 1) for edge in (at + begin - by, at + end + by))
        return np.cumsum(begins - ends) > 0

    cells = np.flatnonzero(grown(2) & ~grown(1))
    owner = np.repeat(np.arange(len(w)), w * h)[cells]
    y, x = np.divmod(cells - (after - w * h)[owner], w[owner])
    y, x = y + top[owner], x + left[owner]
    seen = (y >= 0) & (x >= 0) & (y < pixels.shape[0]) & (x < pixels.shape[1])
    return _quantiles(pixels[y[seen], x[seen]], owner[seen], np.bincount(owner[seen], minlength=len(w)), 0.75)


def _strokes(patches: _Patches, i: int, height: int) -> int:
    """How many letters patch i of an image of `height` rows is, 0 where it is none."""
    x0, y0, x1, y1 = patches.boxes[i].tolist()
    w, h = x1 - x0, y1 - y0
    if w <= 2.5 * h:
        return 1
    begins = np.bincount(patches.runs[0, patches.owner == i] - y0)
    strokes = int(np.median(begins[max(3 - y0, 0):h - max(y1 + 3 - height, 0)]) / 2)
    return 0 if strokes < 0.5 * w / h or patches.area[i] > 0.75 * h * w else strokes  # a block of noise has holes, too


def _ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """All whole numbers of several ranges, one range after the other."""
    sizes = end - begin
    return np.arange(sizes.sum()) + np.repeat(end - np.cumsum(sizes), sizes)


def _quantiles(values: np.ndarray, group: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """numpy's quantile of each group of values, in double precision, infinite for an empty one. group: (m,) from 0 upwards; sizes: (n,)."""
    order = np.argsort(values)
    order = order[np.argsort(group[order].astype(np.min_scalar_type(len(sizes))), kind="stable")]  # small whole numbers are sorted in no time
    values = np.append(values[order], 0).astype(float)
    first, place = np.cumsum(sizes) - sizes, share * (sizes - 1)
    below = place.astype(np.int64)
    low, high = values[first + below], values[first + np.minimum(below + 1, sizes - 1)]
    return np.where(sizes > 0, low + (place - below) * (high - low), np.inf)


def _lines(letters: list[_Letter]) -> list[list[_Letter]]:
    """Letters in groups that stand side by side, of like height and value."""
    letters = sorted(letters)
    group = list(range(len(letters)))

    def head(i):
        while group[i] != i:
            i = group[i]
        return i

    for i, a in enumerate(letters):
        for j in range(i + 1, len(letters)):
            b = letters[j]
            if b.x0 - a.x1 > HEIGHTS[1]:
                break
            tall, short = max(a.height, b.height), min(a.height, b.height)
            if (b.x0 - a.x1 <= 0.9 * tall and short > 0.45 * tall and abs(a.y0 + a.y1 - b.y0 - b.y1) < tall
                    and abs(a.value - b.value) < 0.12):
                group[head(i)] = head(j)
    lines = {}
    for i, letter in enumerate(letters):
        lines.setdefault(head(i), []).append(letter)
    return list(lines.values())


def _place(line: list[_Letter]) -> Place | None:
    """The box round a line of letters, None where it is no line of text."""
    letters = sum(letter.strokes for letter in line)
    if len(line) < 2 or letters < 3:
        return None
    height = float(np.median([letter.height for letter in line]))
    bottoms = np.array([letter.y1 for letter in line])
    on_line = (np.abs(bottoms - np.median(bottoms)) <= max(1.0, 0.12 * height)).mean()
    x0, y0, x1, y1 = (f(letter[k] for letter in line) for k, f in enumerate((min, min, max, max)))
    bars = sum(letter.x1 - letter.x0 <= 0.35 * letter.height for letter in line)  # as the marks of a ruler
    if on_line < 0.6 or x1 - x0 < 1.2 * height or bars > 0.7 * len(line):
        return None
    sure = min(letter.contrast for letter in line) >= SURE_CONTRAST and np.ptp([letter.value for letter in line]) <= SURE_SPREAD
    return (x0, y0, x1, y1) if letters > 3 or sure else None


def _merged(places: list[Place]) -> list[Place]:
    """Boxes that overlap as one, sorted from top to bottom."""
    merged = []
    for x0, y0, x1, y1 in sorted(places):
        while touched := [box for box in merged if box[0] <= x1 and x0 <= box[2] and box[1] <= y1 and y0 <= box[3]]:
            merged = [box for box in merged if box not in touched]
            x0, y0, x1, y1 = (f([v, *(box[k] for box in touched)]) for k, (v, f) in enumerate(zip((x0, y0, x1, y1), (min, min, max, max))))
        merged.append((x0, y0, x1, y1))
    return sorted(merged, key=lambda box: (box[1], box[0]))
