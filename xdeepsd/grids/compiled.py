"""The weighted sums of regridding, compiled with numba."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True)
def sum_axes(values, lat_start, lat_col, lat_share, lon_start, lon_col, lon_share, skipna, least, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """``out[n, i, j] = sum lat[i, a] * lon[j, b] * values[n, a, b]``, over lat first, one whole row after another.

    With ``skipna`` the sum runs over the values that are not NaN and is divided by their weight; NaN where that weight
    is below ``least``.
    """
    nlon = values.shape[2]
    total = np.empty(nlon)
    valid = np.empty(nlon)
    for n in range(values.shape[0]):
        for i in range(out.shape[1]):
            total[:] = 0.0
            valid[:] = 0.0
            for k in range(lat_start[i], lat_start[i + 1]):
                row = values[n, lat_col[k]]
                share = lat_share[k]
                if skipna:
                    for b in range(nlon):
                        seen = row[b] == row[b]
                        total[b] += share * row[b] if seen else 0.0
                        valid[b] += share if seen else 0.0
                else:
                    for b in range(nlon):
                        total[b] += share * row[b]
            for j in range(out.shape[2]):
                above = 0.0
                below = 0.0
                for k in range(lon_start[j], lon_start[j + 1]):
                    above += lon_share[k] * total[lon_col[k]]
                    below += lon_share[k] * valid[lon_col[k]]
                if skipna:
                    above = above / below if below >= least else np.nan
                out[n, i, j] = above


@numba.njit(nogil=True)
def sum_matrix(values, start, col, share, skipna, least, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """``out[n, i] = sum matrix[i, a] * values[n, a]``; ``skipna`` and ``least`` as above."""
    for n in range(values.shape[0]):
        for i in range(out.shape[1]):
            above = 0.0
            below = 0.0
            for k in range(start[i], start[i + 1]):
                value = values[n, col[k]]
                if value == value:
                    below += share[k]
                    above += share[k] * value
                elif not skipna:
                    above = np.nan
            if skipna:
                above = above / below if below >= least else np.nan
            out[n, i] = above
