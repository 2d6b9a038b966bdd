"""Missing is not dry: fill missing cells for the network from the nearest observed cell (numpy)."""

from __future__ import annotations

import numpy as np


def _offsets(reach: int) -> np.ndarray:
    """``(n, 2)`` steps in rows and columns within ``reach`` cells, nearest first; ties in row order."""
    steps = np.arange(-reach, reach + 1)
    rows, cols = (a.ravel() for a in np.meshgrid(steps, steps, indexing="ij"))
    order = np.lexsort((cols, rows, rows**2 + cols**2))
    return np.stack([rows[order], cols[order]], axis=1)[1:]


def nearest_observed(missing: np.ndarray, reach: int) -> np.ndarray:
    """Flat index of the nearest observed cell for every cell of a map.

    Parameters
    ----------
    missing
        ``(lat, lon)`` bool, True where the cell is missing.
    reach
        How many cells to search on each side. A missing cell without an observed one within ``reach`` keeps its own
        index: it cannot affect any valid output (docs/method.md, "Missing is not dry").

    Returns
    -------
    ``(lat, lon)`` intp. The distance is Euclidean in cells; ties go to the first cell in row order, so any window
    that contains the neighbourhood gives the same choice.
    """
    nlat, nlon = missing.shape
    source = np.arange(missing.size).reshape(missing.shape)
    rows, cols = np.nonzero(missing)
    for step_row, step_col in _offsets(reach):
        if rows.size == 0:
            break
        to_row, to_col = rows + step_row, cols + step_col
        inside = (to_row >= 0) & (to_row < nlat) & (to_col >= 0) & (to_col < nlon)
        found = np.zeros(rows.size, bool)
        found[inside] = ~missing[to_row[inside], to_col[inside]]
        source[rows[found], cols[found]] = to_row[found] * nlon + to_col[found]
        rows, cols = rows[~found], cols[~found]
    return source


def fill_nearest(values: np.ndarray, reach: int) -> np.ndarray:
    """Fill NaN in each map from the nearest observed cell within ``reach``.

    ``(n, lat, lon)`` in and out, same units and dtype. Cells without an observed cell in reach become 0: they cannot
    affect any valid output, and a NaN would spread through the network. Returns the input itself if nothing is missing.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values
    filled = values.copy()
    flat = filled.reshape(len(values), -1)
    # Maps with the same missing cells (the ocean, on every day) share one search.
    patterns: dict[bytes, list[int]] = {}
    for day, pattern in enumerate(np.packbits(missing.reshape(len(values), -1), axis=1)):
        patterns.setdefault(pattern.tobytes(), []).append(day)
    for days in map(np.array, patterns.values()):
        cells = np.flatnonzero(missing[days[0]])
        source = nearest_observed(missing[days[0]], reach).ravel()[cells]
        flat[np.ix_(days, cells)] = np.nan_to_num(flat[np.ix_(days, source)], copy=False, nan=0.0)
    return filled
