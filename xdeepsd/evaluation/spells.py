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
from xdeepsd.evaluation.space import TRUTH
from xdeepsd.models.conserve import cell_weights

KINDS = ("wet", "dry")
# The spells by length that begin and end inside some days; of each cell the first and the last run (0 wet, 1 dry, -1
# missing) and their lengths; whether they are one and the same
Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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
        return _end(_part(data, area, wet, longest), area)
    one, join, end = (dask.delayed(function, pure=True) for function in (_part, _join, _end))
    blocks, rows = data.to_delayed(optimize_graph=False), np.cumsum((0, *data.chunks[1]))
    columns = np.cumsum((0, *data.chunks[2]))
    ended = []
    for i, row in enumerate(blocks.transpose(1, 2, 0)):
        for j, column in enumerate(row):
            here = area[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            # Each chunk is put into a part at once, and can go; in turn, so that few parts wait for others.
            parts = [one(block, here, wet, longest) for block in column]
            whole = parts[0]
            for part in parts[1:]:
                whole = join(whole, part, here)
            ended.append(dask.array.from_delayed(end(whole, here), (2, longest), np.float64))
    return dask.array.stack(ended).sum(0)


def _part(days: np.ndarray, area: np.ndarray, wet: float, longest: int) -> Part:
    """Of days ``(time, lat, lon)``."""
    counts, kinds = np.zeros((2, longest)), np.where(np.isfinite(days), days < wet, -1).astype(np.int8)
    kind, lasts, alone = kinds[0], np.ones(area.shape, np.int32), np.ones(area.shape, bool)
    first = lasts
    for now in kinds[1:]:
        ended = now != kind
        _count(counts, kind, lasts, area, ended & ~alone)
        first = np.where(ended & alone, lasts, first)
        alone = alone & ~ended
        kind, lasts = now, np.where(ended, 1, lasts + 1)
    # Copies, for a view of the last day would keep all of them in memory.
    return counts, kinds[0].copy(), np.where(alone, lasts, first), kind.copy(), lasts, alone


def _join(before: Part, after: Part, area: np.ndarray) -> Part:
    """The part of successive days."""
    counts, kind, first, last_kind, last, alone = before
    more, next_kind, next_first, end_kind, end, next_alone = after
    counts, goes_on, both = counts + more, last_kind == next_kind, last + next_first
    _count(counts, last_kind, last, area, ~goes_on & ~alone)
    _count(counts, next_kind, next_first, area, ~goes_on & ~next_alone)
    _count(counts, next_kind, both, area, goes_on & ~alone & ~next_alone)
    first, last = np.where(goes_on & alone, both, first), np.where(goes_on & next_alone, both, end)
    return counts, kind, first, end_kind, last, goes_on & alone & next_alone


def _end(part: Part, area: np.ndarray) -> np.ndarray:
    """``(kind, length)``: the first and the last run count as they are."""
    counts, kind, first, last_kind, last, alone = part
    counts = counts.copy()
    _count(counts, kind, first, area, np.ones(area.shape, bool))
    _count(counts, last_kind, last, area, ~alone)
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
