"""Members drawn from the distribution of each cell, coherent in space: a Gaussian field mapped through it.

The field is white noise, a function of seed, member, date and cell, smoothed over a few cells; so a member is the same
however the work is cut up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from scipy.ndimage import correlate1d
from scipy.special import gammainccinv, ndtr

from xdeepsd.grids import axes
from xdeepsd.grids.blocks import block_mean
from xdeepsd.inference.distribution import parameters_in
from xdeepsd.inference.members import MEMBER, check_count, check_no_members
from xdeepsd.models.conserve import conserve
from xdeepsd.models.noise import day_keys, white_noise

_REACH = 4  # standard deviations at which the smoothing kernel is cut off


def sample(distribution: xr.Dataset, members: int, *, seed: int = 0, length: float = 0.5) -> xr.DataArray:
    """Members of fine precipitation, drawn from the distribution of each cell and day.

    Each member is a Gaussian field in space (one after another in time they are independent), whose probability in each
    cell is looked up in the cell's distribution (a Gaussian copula). Over the members every cell has its own
    distribution, and neighbouring cells are wet or heavy together. Where the expectations keep coarse means
    (``distribution.attrs["coarse_cells"]``), each member is then scaled to keep them as well.

    Parameters
    ----------
    distribution
        From `xdeepsd.distribution`, on a regular grid of two cells or more along each axis; its days have dates.
    members
        How many, at least 1.
    seed
        Of the noise. Member ``m`` is the same for a cell and a date, whatever the chunks, the days, the part of the
        domain and the number of members. Other dims than time and space get the same noise.
    length
        Of the correlation of the field, in fine cells: ``exp(-distance**2 / (2 length**2))`` for lengths from 1, less
        below (between neighbours 0.25 at 0.7, 0.04 at 0.5, which fits factors of 2: docs/howto/losses.md). 0: none.

    Returns
    -------
    ``(member, ...)`` in the units of ``scale`` and its dtype, lazy if the distribution is, in chunks of one member. NaN
    where the distribution is.

    Raises
    ------
    ValueError
        ``members`` below 1, ``length`` below 0, a dim ``member`` that is there already, or a grid or chunks that cut
        coarse cells whose means are kept.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import xarray as xr
    >>> import xdeepsd
    >>> coords = {"time": pd.date_range("2001-01-01", periods=2), "lat": [44.0, 44.5], "lon": [2.0, 2.5]}
    >>> one = xr.DataArray(np.ones((2, 2, 2)), coords, dims=("time", "lat", "lon"))
    >>> members = xdeepsd.sample(xr.Dataset({"wet_chance": 0.5 * one, "shape": one, "scale": 8 * one}), 100)
    >>> dict(members.sizes), bool(abs(members.mean() - 4) < 1)
    ({'member': 100, 'time': 2, 'lat': 2, 'lon': 2}, True)
    """
    check_count(members)
    if not (math.isfinite(length) and length >= 0):
        raise ValueError(f"length is {length}; needed: a number of fine cells of at least 0, such as length=0.5.")
    given = parameters_in(distribution)
    check_no_members(given[0].dims, "distribution", "distribution")
    parameters, names = [axes.standardize(field)[0] for field in given], axes.find(given[0])
    factor = _check_coarse_cells(distribution, parameters[0])
    places = [xr.DataArray(_numbers(parameters[0], dim), dims=dim) for dim in ("lat", "lon")]
    places.append(xr.DataArray(np.cos(np.deg2rad(parameters[0]["lat"].values.astype(np.float64))), dims="lat"))
    if "time" in parameters[0].dims:
        places.append(xr.DataArray(day_keys(parameters[0]["time"].values), dims="time"))
    drawn = []
    for member in range(int(members)):
        how = {"member": member, "seed": seed, "length": length, "factor": factor, "dtype": given[0].dtype}
        field = xr.apply_ufunc(
            _draw, *parameters, *places, kwargs=how, dask="parallelized", output_dtypes=[given[0].dtype]
        )
        drawn.append(axes.restore(field, names))
    numbers = xr.Variable(MEMBER, np.arange(len(drawn)), {"standard_name": "realization"})
    result = xr.concat(drawn, numbers, coords="minimal", compat="override").assign_coords({MEMBER: numbers})
    name = distribution.attrs.get("variable", "sample")
    return result.rename(name).assign_attrs(units=given[-1].attrs.get("units", ""))


def _numbers(da: xr.DataArray, dim: str) -> np.ndarray:
    """Whole numbers of the cells along ``dim`` that are the same in any part of the grid."""
    step = axes.spacing(da[dim], f"The {dim} of the distribution")
    # Centres usually lie on whole or half steps, which must not be rounded now up and now down.
    first = math.floor(float(da[dim][0]) / abs(step) + 0.137)
    return first + int(math.copysign(1, step)) * np.arange(da.sizes[dim])


def _draw(
    chance: np.ndarray, shape: np.ndarray, scale: np.ndarray, rows: np.ndarray, columns: np.ndarray, area: np.ndarray,
    *days: np.ndarray, member: int, seed: int, length: float, factor: int | None, dtype: Any,
) -> np.ndarray:  # fmt: skip
    """One member of a block ``(..., lat, lon)``, with days as the last dim before if there are any.

    With a ``factor``, the means of the expectation over factor x factor cells are kept; ``area`` is that of a cell.
    """
    keys = days[0].ravel() if days else np.zeros(1, np.int64)
    exceeded = ndtr(-smooth_noise(seed, member, keys, rows.ravel(), columns.ravel(), length))  # chance of more
    exceeded = exceeded if days else exceeded[0]
    chance, shape, scale = (np.asarray(part, np.float64) for part in (chance, shape, scale))
    wet = exceeded < chance
    amount = scale * gammainccinv(shape, np.where(wet, exceeded / np.where(wet, chance, 1.0), 1.0))
    known = ~np.isnan(chance)
    if factor is not None and amount.size:
        weights, mean = area * known, np.where(known, chance * shape * scale, 0.0)
        held = block_mean(weights, factor)
        coarse = block_mean(weights * mean, factor) / np.where(held > 0, held, 1.0)
        amount = conserve(np.where(known, amount, 0.0), coarse, weights, factor, "multiplicative")
    return np.where(known, amount, np.nan).astype(dtype)


def _check_coarse_cells(distribution: xr.Dataset, da: xr.DataArray) -> int | None:
    """Fine cells per coarse cell whose mean is kept, along an axis; ValueError where one is cut."""
    if "coarse_cells" not in distribution.attrs:
        return None
    factor, *lowest = distribution.attrs["coarse_cells"]
    factor = int(factor)
    for dim, first in zip(("lat", "lon"), lowest, strict=True):
        step = abs(axes.spacing(da[dim], f"The {dim} of the distribution"))
        start = round((float(da[dim].min()) - first) / step)
        if start % factor or da.sizes[dim] % factor:
            raise ValueError(
                f"The means of {factor} x {factor} cells are kept, and the distribution begins in {dim} {start} cells "
                f"from its first one and has {da.sizes[dim]}: some would be cut. Needed: whole ones. Select from the "
                "members, or leave the means out: type distribution.drop_attrs(deep=False)."
            )
        if da.chunks is not None and any(size % factor for size in da.chunks[da.get_axis_num(dim)]):
            raise ValueError(
                f"The means of {factor} x {factor} cells are kept, and the chunks along {dim} are "
                f"{da.chunks[da.get_axis_num(dim)]}. Needed: multiples of {factor}. Type distribution.chunk(lat=-1, "
                "lon=-1)."
            )
    return factor


def smooth_noise(
    seed: int, member: int, days: np.ndarray, rows: np.ndarray, columns: np.ndarray, length: float
) -> np.ndarray:
    """Standard normal fields ``(day, lat, lon)`` float64, correlated by ``exp(-distance**2 / (2 length**2))`` in space.

    ``rows`` and ``columns`` are consecutive whole numbers, up or down. The same bits for any part of them.
    """
    reach = math.ceil(_REACH * length / math.sqrt(2))
    kernel = np.exp(-((np.arange(-reach, reach + 1) / length) ** 2)) if reach else np.ones(1)
    kernel /= np.sqrt((kernel**2).sum())
    noise = white_noise(seed, member, days, _wider(rows, reach), _wider(columns, reach))[:, 0].astype(np.float64)
    inner = slice(reach, -reach or None)
    return correlate1d(correlate1d(noise, kernel, axis=1)[:, inner], kernel, axis=2)[:, :, inner]


def _wider(numbers: np.ndarray, reach: int) -> np.ndarray:
    step = 1 if numbers.size < 2 else int(numbers[1] - numbers[0])
    return numbers[0] + step * np.arange(-reach, numbers.size + reach)
