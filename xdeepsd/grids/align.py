"""Do two grids match? Every such question is answered here, with one tolerance for each kind of question.

Centres are one-dimensional latitudes or longitudes (``dim`` is "lat" or "lon") in degrees, ascending or descending;
longitudes are compared modulo 360 degrees. Points ``(..., 3)`` lie on the unit sphere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Fraction of a cell within which two sets of centres are the same grid. float32 longitudes are off by 0.2 % of a cell
# of 1/240 degree.
SAME = 0.01
# Fraction of a cell of the finer grid within which a map lies on the cells of another. Coordinates may be rounded to a
# few decimals.
LIES_ON = 0.05
# Fraction of a step within which the input has the spacing that a model was trained on.
SAME_STEP = 0.01
# Share of a coarse cell from which on it counts as covered by the input: great circles and parallels differ a little.
COVERED = 0.99
# Fraction of a cell within which the bounds of neighbours are one edge, and a centre outside its bounds still counts as
# inside.
SAME_EDGE = 1e-3
# Fraction of the smallest cell within which edges are half-way between the centres, so they need not be written.
INFERRED = 1e-6
# Degrees within which two edges, or an edge and a centre, differ only by rounding: 35 roundings at 180 degrees.
ROUNDING = 1e-12
# Degrees within which columns go round the earth, so that the last is the neighbour of the first.
WHOLE_TURN = 1e-3
# In largest steps along a row of a curvilinear grid: how close the last column is to the first to be its neighbour.
NEXT_COLUMN = 1.5
# In largest steps of the source: how far its nearest centre may be and still mean something for the target.
OVERLAPS = 2.0


def _degrees(centres: Any) -> np.ndarray:
    return np.asarray(centres, np.float64)


def _apart(a: np.ndarray, b: np.ndarray, dim: str) -> np.ndarray:
    """Distance in degrees."""
    if dim == "lon":
        return np.abs((a - b + 180.0) % 360.0 - 180.0)
    return np.abs(a - b)


def _cell(centres: np.ndarray, dim: str) -> float:
    """The smallest step between neighbours, degrees; 1 degree for a single cell."""
    return float(_apart(centres[1:], centres[:-1], dim).min(initial=np.inf)) if centres.size > 1 else 1.0


def same(a: Any, b: Any, dim: str) -> bool:
    """Whether two sets of centres are the same cells in the same order, within `SAME` cells.

    >>> same([0.5, 1.5], [360.505, 361.505], "lon"), same([0.5, 1.5], [0.52, 1.52], "lon")
    (True, False)
    """
    a, b = _degrees(a), _degrees(b)
    return a.shape == b.shape and bool((_apart(a, b, dim) <= SAME * _cell(b, dim)).all())


def cells_at(centres: Any, wanted: Any, dim: str) -> np.ndarray:
    """Positions along ``centres`` of the cells at ``wanted``; -1 where there is none within `LIES_ON` cells.

    >>> cells_at([2.5, 1.5, 0.5], [0.5, 1.52, 2.54, 3.56], "lat")
    array([ 2,  1,  0, -1])
    """
    have, need = _degrees(centres), _degrees(wanted)
    if dim == "lon":
        have = have + 360.0 * np.round((need.mean() - have) / 360.0)
    order = np.argsort(have)
    right = np.searchsorted(have[order], need).clip(0, have.size - 1)
    left = (right - 1).clip(0)
    nearer_left = np.abs(have[order[left]] - need) < np.abs(have[order[right]] - need)
    nearest = order[np.where(nearer_left, left, right)]
    on = _apart(have[nearest], need, dim) <= LIES_ON * _cell(need, dim)
    return np.where(on, nearest, -1)


def off_blocks(fine: Any, coarse: Any, dim: str) -> float:
    """The largest distance between the middles of blocks of ``fine`` cells and ``coarse`` centres, in fine cells.

    Up to `LIES_ON` the two grids match.

    >>> off_blocks([0.25, 0.75, 1.25, 1.75], [0.5, 1.5], "lat")
    0.0
    """
    fine, coarse = _degrees(fine), _degrees(coarse)
    middles = fine.reshape(coarse.size, -1).mean(axis=1)
    return float(_apart(middles, coarse, dim).max() / _cell(fine, dim))


def same_step(a: float, b: float) -> bool:
    """Whether two spacings are the same, within `SAME_STEP` of the second.

    >>> same_step(1.009, 1.0), same_step(1.011, 1.0)
    (True, False)
    """
    return abs(a - b) <= SAME_STEP * abs(b)


def same_points(a: np.ndarray, b: np.ndarray) -> bool:
    """`same` for centres ``(ny, nx, 3)`` of curvilinear grids; the median step along a dim is the size of a cell."""
    axis = 1 if b.shape[1] > 1 else 0
    steps = np.linalg.norm(np.diff(b, axis=axis), axis=-1)
    cell = float(np.median(steps)) if steps.size else np.deg2rad(1.0)
    return a.shape == b.shape and bool((np.linalg.norm(a - b, axis=-1) <= SAME * cell).all())


def same_edge(apart: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Where edges or corners this far ``apart`` are one, within `SAME_EDGE` cells (``cell`` in the same units)."""
    return np.asarray(apart <= SAME_EDGE * cell)


def inferred(edges: np.ndarray, half_way: np.ndarray) -> bool:
    """Whether ``edges`` are ``half_way`` between the centres, within `INFERRED` of the smallest cell."""
    return bool((np.abs(edges - half_way) <= INFERRED * np.abs(np.diff(edges)).min()).all())


def snap(values: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Move ``values`` onto the nearest of ``onto`` (ascending, two or more) where they are equal within `ROUNDING`.

    >>> snap(np.array([0.1 + 0.2, 0.4]), np.array([0.3, 0.5])).tolist()
    [0.3, 0.4]
    """
    right = np.clip(np.searchsorted(onto, values), 1, onto.size - 1)
    nearest = np.where(values - onto[right - 1] < onto[right] - values, onto[right - 1], onto[right])
    return np.where(np.abs(values - nearest) < ROUNDING, nearest, values)


def goes_round(edges: np.ndarray) -> bool:
    """Whether columns between these unwrapped longitude edges go round the earth, within `WHOLE_TURN`.

    >>> goes_round(np.array([0.0, 120.0, 240.0, 360.0005])), goes_round(np.array([0.0, 120.0, 240.0, 359.0]))
    (True, False)
    """
    return bool(abs(abs(edges[-1] - edges[0]) - 360.0) <= WHOLE_TURN)


def rows_close(points: np.ndarray) -> bool:
    """Whether each row of centres ``(ny, nx, 3)`` ends next to its start, within `NEXT_COLUMN` of its largest step."""
    if points.shape[1] < 3:
        return False
    step = np.linalg.norm(np.diff(points, axis=1), axis=-1).max(axis=1)
    return bool((np.linalg.norm(points[:, -1] - points[:, 0], axis=-1) <= NEXT_COLUMN * step + 1e-9).all())


def meets(source: np.ndarray, nearest: np.ndarray, target: np.ndarray) -> bool:
    """Whether any ``target`` point ``(n, 3)`` has its ``nearest`` source centre within `OVERLAPS` of the largest step.

    ``source`` is ``(ny, nx, 3)``, ``nearest`` ``(n, 3)``.
    """
    steps = [np.linalg.norm(np.diff(source, axis=axis), axis=-1) for axis in (0, 1)]
    cell = max((float(step.max()) for step in steps if step.size), default=2.0 / OVERLAPS)  # a single centre: any
    return bool(np.linalg.norm(target - nearest, axis=1).min() <= OVERLAPS * cell)
