"""Does this grid lie on that one? Every such question is asked here, with one tolerance for each kind of it.

All take one-dimensional cell centres of latitude or longitude (``dim`` is "lat" or "lon"), degrees, ascending or
descending. Longitudes are compared modulo whole turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xdeepsd.grids.axes import spacing

# Of a cell: two sets of centres are those of one grid. float32 longitudes are off by 0.2 % of a cell of 1/240 degree.
SAME = 0.01
# Of a cell of the finer grid: a map lies on the cells of another one. Coordinates may be rounded to a few decimals.
LIES_ON = 0.05
# Of a step: the input has the spacing that a model was trained on.
SAME_STEP = 0.01


def _degrees(centres: Any) -> np.ndarray:
    return np.asarray(centres, np.float64)


def _apart(a: np.ndarray, b: np.ndarray, dim: str) -> np.ndarray:
    """Distance in degrees."""
    if dim == "lon":
        return np.abs((a - b + 180.0) % 360.0 - 180.0)
    return np.abs(a - b)


def _cell(centres: np.ndarray, dim: str) -> float:
    """Size of a cell; of a single one, 1 degree."""
    return abs(spacing(centres, dim)) if centres.size > 1 else 1.0


def same(a: Any, b: Any, dim: str) -> bool:
    """Whether two sets of centres are the same cells in the same order, within `SAME` of a cell.

    >>> same([0.5, 1.5], [360.505, 361.505], "lon"), same([0.5, 1.5], [0.52, 1.52], "lon")
    (True, False)
    """
    a, b = _degrees(a), _degrees(b)
    return a.shape == b.shape and bool((_apart(a, b, dim) <= SAME * _cell(b, dim)).all())


def cells_at(centres: Any, wanted: Any, dim: str) -> np.ndarray:
    """Positions along ``centres`` of the cells at ``wanted``; -1 where there is none within `LIES_ON` of a cell.

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
    """How far the middles of blocks of ``fine`` cells lie from ``coarse`` centres at most, in fine cells.

    They lie on each other up to `LIES_ON`.

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
