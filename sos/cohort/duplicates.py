"""The same picture under several names, also exported again: compressed, reduced, windowed, cropped by a margin, mirrored, turned a little.

Mid-sagittal heads look alike, so that a perceptual hash alone does not do. It proposes: each picture, and crops of it, mirrored and not,
against all others. Then each proposed pair is laid one over the other (affine, coarse to fine; Baker & Matthews 2004) and must agree in
fine detail, noise included, after its contrast has been evened out: that differs between people, and between two scans of one.
Measured on virtual patients: tests/test_audit_duplicates.py.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter

from ..cores import spread

SIDE = 160  # pixels along the longer side of a small picture
HASH = 16  # 16 × 16 bits
MARGIN = 0.05  # of width or height, cut off at any sides of a picture before it is looked for
FAR_BITS, NEAREST = 52, 3  # hashes further apart are of other pictures; and only that many neighbours are looked at
#: Pixels along the longer side, sigma of the evened contrast, steps at most, and the likeness below which two pictures differ.
LEVELS = ((40, 3.0, 12, 0.65), (80, 4.0, 10, 0.60), (160, 5.0, 6, 0.68))
FLAT = 6  # grey values of 255: rows and columns that vary less are bars round a picture
OVERLAP = 0.5  # of a picture at least, which the other must cover


class Pair(NamedTuple):
    """Pictures number `first` < `second`, and how like they are after alignment: correlation of evened contrast, at most 1."""

    first: int
    second: int
    likeness: float


class _View(NamedTuple):
    code: np.ndarray  # (4,) uint64
    frame: tuple[int, int, int, int]  # x0, y0, x1, y1
    mirrored: bool


def small_picture(pixels: np.ndarray) -> np.ndarray:
    """Grey image (h, w) in [0, 1] as uint8, at most SIDE pixels along its longer side."""
    return _resized((pixels * 255).round().astype(np.uint8), SIDE)


def near_duplicates(pictures: Sequence[np.ndarray], owners: Sequence[frozenset], workers: int | None = 1) -> list[Pair]:
    """Pairs of small pictures (h, w) uint8 that show one exposure, though not by the same pixels.

    owners: the patients that each picture is said to be of; two pictures of the same single patient are no pair. Hashes are compared all
    with all (a thousand pictures: a second), and at most NEAREST alignments a picture are tried. workers: see `cores.spread`.
    """
    with spread(len(pictures), workers) as each:
        nearest = _proposals(list(each(_views, pictures)), owners)
        likeness = each(_compare, [(pictures[i], pictures[j], *nearest[i, j]) for i, j in nearest])
        return sorted(Pair(*pair, round(value, 3)) for pair, value in zip(nearest, likeness, strict=True) if value >= LEVELS[-1][-1])


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    scale = min(1.0, side / max(picture.shape))
    size = [max(8, round(scale * n)) for n in picture.shape[::-1]]
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


# ---- proposing ----


def _frames(picture: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The whole picture, and what is left of it without bars."""
    whole = (0, 0, picture.shape[1], picture.shape[0])
    ys, xs = (np.flatnonzero(np.ptp(picture, axis=axis) > FLAT) for axis in (1, 0))
    if min(len(ys), len(xs)) < 16:
        return [whole]
    return list(dict.fromkeys([whole, (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)]))


def _views(picture: np.ndarray) -> tuple[list[_View], list[_View]]:
    """Hashes of the frames of a picture, and those to look for it by: of each frame with every choice of margins cut, also mirrored."""
    plain, varied = [], []
    for x0, y0, x1, y1 in _frames(picture):
        w, h = x1 - x0, y1 - y0
        across, down = ([(round(low + near * size), round(high - far * size)) for near, far in product((0, MARGIN), repeat=2)]
                        for low, high, size in ((x0, x1, w), (y0, y1, h)))
        codes = _codes(picture, down, across)
        frames = [(left, top, right, bottom) for top, bottom in down for left, right in across]
        varied += [_View(code, frame, mirrored) for frame, both in zip(frames, codes, strict=True) for code, mirrored in zip(both, (False, True))]
        plain.append(_View(codes[0, 0], frames[0], False))
    return plain, varied


def _codes(picture: np.ndarray, down: Sequence[tuple[int, int]], across: Sequence[tuple[int, int]]) -> np.ndarray:
    """(n, 2, 4) uint64: perceptual hashes, as they are and mirrored, of a picture's crops from row to row and from column to column, all of `down`
    with all of `across`: which of a crop's lowest HASH × HASH cosine coefficients lie above their median.

    `imagehash.phash` does it crop by crop, reduced to 64 × 64 pixels first. Here all crops are two products of matrices, and a mirror image is
    but the odd coefficients' signs.
    """
    rows, columns = (np.concatenate([_waves(*part, size) for part in parts]) for parts, size in zip((down, across), picture.shape, strict=True))
    crops = (rows @ picture @ columns.T).reshape(len(down), HASH, len(across), HASH).swapaxes(1, 2)
    both = np.stack([crops, crops * (-1.0) ** np.arange(HASH)], 2).reshape(-1, 2, HASH * HASH)
    return np.packbits(both > np.median(both, -1, keepdims=True), -1).view(np.uint64)


@lru_cache(64)
def _waves(low: int, high: int, size: int) -> np.ndarray:
    """(HASH, size): the longest cosines between the pixels `low` and `high` of a line, zero outside."""
    place = (np.arange(size) + 0.5 - low) / (high - low)
    return np.cos(np.pi * np.arange(HASH)[:, None] * place) * ((place > 0) & (place < 1))


def _proposals(views, owners) -> dict[tuple[int, int], tuple[bool, _View, _View]]:
    """Pairs worth a comparison → (whether the second is the varied one, the plain view, the varied view)."""
    plain = [view for whole, _ in views for view in whole]
    codes, owner = np.array([view.code for view in plain]), np.repeat(np.arange(len(views)), [len(whole) for whole, _ in views])
    found = {}
    for i, (_, varied) in enumerate(views):
        bits = np.zeros((len(varied), len(codes)), np.uint16)
        for word in range(codes.shape[1]):
            bits += np.bitwise_count(np.array([view.code[word] for view in varied])[:, None] ^ codes[:, word])
        closest = bits.min(0)
        near = np.flatnonzero(closest <= FAR_BITS)
        others = {}
        for at in near[np.argsort(closest[near], kind="stable")]:
            j = int(owner[at])
            if j != i and not (owners[i] == owners[j] and len(owners[i]) == 1):
                others.setdefault(j, at)
        for j in list(others)[:NEAREST]:
            at = others[j]
            pair = (min(i, j), max(i, j))
            proposal = (int(closest[at]), (i == pair[1], plain[at], varied[int(bits[:, at].argmin())]))
            if pair not in found or proposal[0] < found[pair][0]:
                found[pair] = proposal
    return {pair: proposal for pair, (_, proposal) in found.items()}


# ---- confirming ----


def _compare(pair: tuple[np.ndarray, np.ndarray, bool, _View, _View]) -> float:
    """Likeness of two pictures, begun from the frames that had like hashes; that of the coarsest level where they already differ."""
    first, second, second_varied, plain, varied = pair
    a, b = (second, first) if second_varied else (first, second)
    (x0, y0, x1, y1), (u0, v0, u1, v1) = varied.frame, plain.frame
    if varied.mirrored:
        a = np.ascontiguousarray(a[:, ::-1])
        x0, x1 = a.shape[1] - x1, a.shape[1] - x0
    scale = np.array([(v1 - v0) / (y1 - y0), (u1 - u0) / (x1 - x0)])
    turn, shift, likeness = np.diag(scale), np.array([v0, u0]) - scale * (y0, x0), 0.0
    for side, sigma, steps, least in LEVELS:
        small_a, small_b = (_resized(picture, side) for picture in (a, b))
        to_a, to_b = (np.array(small.shape) / picture.shape for small, picture in ((small_a, a), (small_b, b)))
        small_a, small_b = _evened(small_a, sigma), _evened(small_b, sigma)
        placed = _aligned(small_a, small_b, to_b[:, None] * turn / to_a, to_b * shift, steps)
        if placed is None:
            return 0.0
        likeness = _likeness(small_a, _laid_over(small_b, *placed, small_a.shape))
        if likeness < least:
            return min(likeness, least / 2)  # surely below the last level's threshold
        turn, shift = placed[0] / to_b[:, None] * to_a, placed[1] / to_b
    return likeness


def _evened(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Grey values less their local mean, over their local spread: free of window and gamma."""
    grey = picture.astype(np.float32) / 255
    detail = grey - gaussian_filter(grey, sigma)
    return detail / np.sqrt(gaussian_filter(detail**2, sigma) + 0.02**2)  # 0.02: what JPEG makes of nothing


def _laid_over(b: np.ndarray, turn: np.ndarray, shift: np.ndarray, shape) -> np.ndarray:
    return affine_transform(b, turn, shift, output_shape=shape, order=1, cval=np.nan)


def _aligned(a: np.ndarray, b: np.ndarray, turn: np.ndarray, shift: np.ndarray, steps: int):
    """Refine (turn, shift) so that b at turn @ x + shift looks like a at x = (row, column): Gauss–Newton in the inverse compositional form.
    None where b covers too little of a."""
    dy, dx = np.gradient(gaussian_filter(a, 0.7))
    centre, reach = np.array(a.shape) / 2, max(a.shape) / 2
    y, x = ((grid - c) / reach for grid, c in zip(np.mgrid[:a.shape[0], :a.shape[1]], centre, strict=True))
    slope = np.stack([dy * y, dy * x, dx * y, dx * x, dy, dx]).reshape(6, -1)  # (6, h·w)
    for _ in range(steps):
        laid = _laid_over(b, turn, shift, a.shape)
        seen = np.isfinite(laid)
        if seen.mean() < OVERLAP:
            return None
        there = slope * seen.ravel()
        curvature = there @ slope.T
        curvature += (1e-3 * np.trace(curvature) / 6 + 1e-6) * np.eye(6)  # solvable also where a picture is blank
        step = np.linalg.solve(curvature, there @ np.where(seen, laid - a, 0).ravel())
        inverse = np.linalg.inv(np.eye(2) + step[:4].reshape(2, 2) / reach)
        moved = step[4:] - step[:4].reshape(2, 2) @ centre / reach
        turn, shift = turn @ inverse, shift - turn @ inverse @ moved
        if np.abs(step).max() < 0.02:  # pixels
            break
    return turn, shift


def _likeness(a: np.ndarray, laid: np.ndarray) -> float:
    seen = np.isfinite(laid)
    if seen.mean() < OVERLAP or min(a[seen].std(), laid[seen].std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(a[seen], laid[seen])[0, 1])
