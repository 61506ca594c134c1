"""Places where text may be burned into the pixels. Says where, never what: nothing is read.

Letters are small patches of one grey value with sharp edges that stand side by side on a line. Bones and teeth are blurred by the scanner and
vary within; noise is too small; what is left of them seldom lies on one line. Rates on virtual patients: tests/test_audit_text.py.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, label

LARGEST = 1600  # pixels along the longer side; larger images are halved until they fit
#: Grey values above which patches are looked for, and those for dark letters on white, where the image is looked at as its negative.
LEVELS, NEGATIVE_LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97), (0.3, 0.7)
HEIGHTS = (5, 60)  # pixels of a letter
CONTRAST, FLATNESS = 0.18, 0.4  # of a letter against what lies 2 px outside it; share of its pixels within 0.1 of its own value
WHITE = 0.1  # at most, in the negative, round a dark letter
SURE_CONTRAST, SURE_SPREAD = 0.25, 0.03  # of three letters; four need less, for bones come in threes
EIGHT = np.ones((3, 3), bool)

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
              for level in levels for line in _lines(_letters(picture, level, most)) if (place := _place(line))]
    return [tuple(int(v) * factor for v in place) for place in _merged(places)]


def _letters(pixels: np.ndarray, level: float, most_around: float) -> list[_Letter]:
    """Patches above `level` that may be letters; most_around: grey value outside them at most."""
    patches, found = label(pixels >= level, EIGHT)[0], []
    for number, (rows, columns) in enumerate(find_objects(patches), 1):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if not HEIGHTS[0] <= h <= HEIGHTS[1] or w > 12 * h:
            continue
        window = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in (rows, columns))
        inside, values = patches[window] == number, pixels[window]
        area = int(inside.sum())
        if area < 6 or area > 0.9 * h * w and w > 0.5 * h:  # a speck; a filled block
            continue
        stroke = values[inside]
        if stroke.max() - values.min() < CONTRAST:  # what is asked for below can only be less; half of all patches end here
            continue
        value = _quantile(stroke, 0.9)
        if (stroke >= value - 0.1).mean() < FLATNESS:
            continue
        edge = _grown(inside)
        around = values[_grown(edge) & ~edge]
        if not around.size or value - (outside := _quantile(around, 0.75)) < CONTRAST or outside > most_around:
            continue
        strokes = 1
        if w > 2.5 * h:
            begins = np.diff(np.pad(inside, ((0, 0), (1, 0))).astype(np.int8), axis=1) > 0
            strokes = int(np.median(begins.sum(1)[3:-3]) / 2)
            if strokes < 0.5 * w / h or area > 0.75 * h * w:  # a block of noise has holes, too
                continue
        found.append(_Letter(columns.start, rows.start, columns.stop, rows.stop, value, value - outside, strokes))
    return found


def _quantile(values: np.ndarray, share: float) -> float:
    """numpy's quantile of a few values (n,), without its cost of 40 µs a call; an image has a thousand patches."""
    values, place = np.sort(values), share * (len(values) - 1)
    low, high = float(values[int(place)]), float(values[min(int(place) + 1, len(values) - 1)])
    return low + (place - int(place)) * (high - low)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A small mask (h, w) and its eight neighbours of each pixel."""
    wide = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    wide[1:-1, 1:-1] = mask
    tall = wide[:-2] | wide[1:-1] | wide[2:]
    return tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]


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
    height = float(np.median([letter.height for letter in line]))
    bottoms = np.array([letter.y1 for letter in line])
    on_line = (np.abs(bottoms - np.median(bottoms)) <= max(1.0, 0.12 * height)).mean()
    x0, y0, x1, y1 = (f(letter[k] for letter in line) for k, f in enumerate((min, min, max, max)))
    bars = sum(letter.x1 - letter.x0 <= 0.35 * letter.height for letter in line)  # as the marks of a ruler
    if len(line) < 2 or letters < 3 or on_line < 0.6 or x1 - x0 < 1.2 * height or bars > 0.7 * len(line):
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
