"""How long wet and dry spells last: the distribution of their lengths; lazily, chunk after chunk of days."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
from scipy import stats

from xdeepsd.evaluation.fields import alike, dated
from xdeepsd.models.conserve import cell_weights

TRUTH = "truth"
KINDS = ("wet", "dry")
# The state of each cell (of the day before: 0 wet, 1 dry, -1 missing), the days that it lasts; the spells by length
State = tuple[np.ndarray, np.ndarray, np.ndarray]


def compare_spells(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
    wet: float = 1.0,
    longest: int = 30,
) -> xr.Dataset:
    """Distribution of the lengths of wet and dry spells over all cells, and how far it is from that of the truth.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`, with dates. Of members, all spells count.
    wet
        mm day-1: a day with as much or more is wet, another one dry. A missing day, and one that is left out, ends a
        spell; those that go on at either end of the period count as they are.
    longest
        The last length stands for as many days or more.

    Returns
    -------
    Lazy if the input is, float64, with "truth" as the last name: ``wet_spells`` and ``dry_spells`` ``(name, length)``,
    the share of the spells that last so many days, weighted by area; ``wet_distance`` and ``dry_distance`` ``(name)``,
    days: the Wasserstein distance of that distribution from the one of the truth. NaN where there is no spell. Errors
    as in `xdeepsd.evaluate`; ValueError for a ``longest`` below 2.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> found = xdeepsd.compare_spells(bilinear, truth, longest=10)
    >>> round(float(found["dry_spells"].sel(name="truth").sum()), 6)  # shares of the lengths 1 to 10
    1.0
    """
    if longest < 2:
        raise ValueError(f"longest is {longest}; needed: a whole number of 2 or more.")
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    area = cell_weights(observed["lat"].values, observed.sizes["lon"])
    counts = []
    for da in (*fields.values(), observed):
        members = [da.isel(member=i, drop=True) for i in range(da.sizes["member"])] if "member" in da.dims else [da]
        parts = [_spells(dated(one), area, wet, longest) for one in members]
        counts.append(sum(parts[1:], parts[0]))
    names = [*fields, TRUTH]
    dims = ("name", "kind", "length")
    spells = xr.concat([xr.DataArray(part, dims=dims[1:]) for part in counts], "name")
    spells = spells.assign_coords(name=names, length=np.arange(1, longest + 1))
    total = spells.sum("length")
    share = spells / total.where(total > 0)
    apart = xr.apply_ufunc(
        _distance, share, share.isel(name=-1, drop=True), input_core_dims=[["length"]] * 2, dask="parallelized",
        output_dtypes=[np.float64], dask_gufunc_kwargs={"allow_rechunk": True},
    )  # fmt: skip
    found = {}
    for k, kind in enumerate(KINDS):
        found[f"{kind}_spells"] = share.isel(kind=k).assign_attrs(long_name=f"share of the {kind} spells", units="1")
    for k, kind in enumerate(KINDS):
        attrs = {"long_name": f"distance of the lengths of {kind} spells", "units": "days"}
        found[f"{kind}_distance"] = apart.isel(kind=k).assign_attrs(attrs)
    return xr.Dataset(found)


def _spells(da: xr.DataArray, area: np.ndarray, wet: float, longest: int) -> Any:
    """``(kind, length)``: the area of the spells of each length, over all days and cells. Lazy if ``da`` is."""
    data = da.transpose("time", "lat", "lon").data
    if not isinstance(data, dask.array.Array):
        return _end(_go_on(None, data, area, wet, longest), area)
    go_on, end = (dask.delayed(function, pure=True) for function in (_go_on, _end))
    blocks, rows = data.to_delayed(optimize_graph=False), np.cumsum((0, *data.chunks[1]))
    columns = np.cumsum((0, *data.chunks[2]))
    ended = []
    for i, row in enumerate(blocks.transpose(1, 2, 0)):
        for j, column in enumerate(row):
            part, state = area[rows[i] : rows[i + 1], columns[j] : columns[j + 1]], None
            for block in column:  # one after the other: only the state is kept
                state = go_on(state, block, part, wet, longest)
            ended.append(dask.array.from_delayed(end(state, part), (2, longest), np.float64))
    return dask.array.stack(ended).sum(0)


def _go_on(state: State | None, days: np.ndarray, area: np.ndarray, wet: float, longest: int) -> State:
    """The state after further days ``(time, lat, lon)``."""
    if state is None:
        kind, lasts = np.full(area.shape, -1, np.int8), np.zeros(area.shape, np.int32)
        counts = np.zeros((2, longest))
    else:
        kind, lasts, counts = state[0].copy(), state[1].copy(), state[2].copy()
    for day in days:
        now = np.where(np.isfinite(day), np.where(day >= wet, 0, 1), -1).astype(np.int8)
        _count(counts, kind, lasts, area, now != kind)
        lasts = np.where(now == kind, lasts + 1, 1)
        kind = now
    return kind, lasts, counts


def _end(state: State, area: np.ndarray) -> np.ndarray:
    kind, lasts, counts = state
    counts = counts.copy()
    _count(counts, kind, lasts, area, np.ones(area.shape, bool))
    return counts


def _count(counts: np.ndarray, kind: np.ndarray, lasts: np.ndarray, area: np.ndarray, ended: np.ndarray) -> None:
    """Add the spells that have ended to ``counts`` ``(kind, length)``."""
    here = ended & (kind >= 0)
    length = np.minimum(lasts[here], counts.shape[1]) - 1
    flat = kind[here] * counts.shape[1] + length
    counts += np.bincount(flat, area[here], minlength=counts.size).reshape(counts.shape)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    theirs = np.broadcast_to(theirs, ours.shape)
    out, lengths = np.full(ours.shape[:-1], np.nan), np.arange(1, ours.shape[-1] + 1)
    for place in np.ndindex(out.shape):
        if np.isfinite(ours[place]).all() and np.isfinite(theirs[place]).all():
            out[place] = stats.wasserstein_distance(lengths, lengths, ours[place], theirs[place])
    return out
