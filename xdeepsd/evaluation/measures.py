"""From the sums of `sums` to the measures of `xdeepsd.evaluate`; lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from xdeepsd.evaluation.members import crps, rank_parts
from xdeepsd.evaluation.sums import BINS, MILLIMETRES, NAMES, bin_of, cell_sums, lower_edges

GROUPS: dict[str, tuple[Any, ...]] = {"season": ("DJF", "MAM", "JJA", "SON"), "month": tuple(range(1, 13))}
PERCENTILE = 0.99
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)


def grouped(daily: xr.DataArray, by: str | None) -> xr.DataArray:
    """Sums of the days of each season or month, or of all."""
    if by is None:
        return daily.sum("time")
    labels = getattr(daily["time"].dt, by)
    groups = xr.DataArray(list(GROUPS[by]), dims=by)
    within_group = (labels.drop_vars("time") == groups).astype(np.float64).assign_coords({by: groups})
    found = xr.dot(daily.drop_vars("time"), within_group, dim="time")
    # Dask splits a product that is larger than its parts.
    return found if found.chunks is None else found.chunk(dict.fromkeys(found.dims, -1))


def _ratio(of: xr.DataArray, by: xr.DataArray) -> xr.DataArray:
    """NaN where the denominator is 0."""
    return of / by.where(by > 0)


def _of_sums(sums: xr.DataArray) -> dict[str, xr.DataArray]:
    """The errors that follow from the sums of `NAMES`."""
    s = {name: sums.isel(sum=k) for k, name in enumerate(NAMES)}
    found = {"bias": _ratio(s["error"], s["weight"]), "mae": _ratio(s["absolute"], s["weight"])}
    found["rmse"] = _ratio(s["squared"], s["weight"]) ** 0.5
    variances = {}
    for name in ("predicted", "observed"):
        square, mean = _ratio(s[f"{name}2"], s["weight"]), _ratio(s[name], s["weight"])
        # What rounding leaves of the variance of a constant is none.
        variances[name] = (square - mean**2).where(square - mean**2 > 1e-13 * square)
    covariance = _ratio(s["product"], s["weight"]) - _ratio(s["predicted"] * s["observed"], s["weight"] ** 2)
    found["correlation"] = covariance / (variances["predicted"] * variances["observed"]) ** 0.5
    for part in ("wet", "dry"):
        w, e, a, q = (
            s[f"wet_{name}"] if part == "wet" else s[name] - s[f"wet_{name}"]
            for name in ("weight", "error", "absolute", "squared")
        )
        w = w.where(w > 1e-12 * s["weight"], 0.0)
        found |= {f"{part}_bias": _ratio(e, w), f"{part}_mae": _ratio(a, w), f"{part}_rmse": _ratio(q, w) ** 0.5}
    return found | {"count": s["count"]}


def _of_events(
    predicted: xr.DataArray, observed: xr.DataArray, hits: xr.DataArray, enough: float = 0.0
) -> dict[str, xr.DataArray]:
    """Scores of the predicted and observed events and of their hits (Wilks, 2011, section 8.2)."""
    predicted, observed, hits = (da.where(da > enough, 0.0) for da in (predicted, observed, hits))
    return {
        "pod": _ratio(hits, observed), "far": 1 - _ratio(hits, predicted),
        "csi": _ratio(hits, predicted + observed - hits), "frequency_bias": _ratio(predicted, observed),
    }  # fmt: skip


def of_groups(sums: xr.DataArray, thresholds: Sequence[float]) -> dict[str, xr.DataArray]:
    """All measures over whole groups of days: errors, events, and the distributions."""
    at = np.cumsum([len(NAMES), BINS, BINS, BINS, MILLIMETRES, MILLIMETRES])
    of_p, of_y, of_both, mm_p, mm_y = (sums.isel(sum=slice(a, b)).rename(sum="bin") for a, b in pairwise(at))
    weight = sums.isel(sum=0)
    both = xr.where(mm_p < mm_y, mm_p, mm_y).sum("bin")
    edges, fixed = lower_edges(), [int(bin_of(np.asarray(t))) for t in thresholds]

    def events(p: np.ndarray, y: np.ndarray, h: np.ndarray) -> np.ndarray:
        above = [np.cumsum(v[..., ::-1], -1)[..., ::-1] for v in (p, y, h)]
        ends = np.cumsum(y, -1)
        rare = (ends < PERCENTILE * ends[..., -1:]).sum(-1)[..., None]
        bins = np.concatenate([np.broadcast_to(fixed, (*rare.shape[:-1], len(fixed))), rare], -1).clip(0, BINS - 1)
        amounts = np.where(ends[..., -1:] > 0, edges[bins], np.nan)
        return np.stack([amounts, *(np.take_along_axis(v, bins, -1) for v in above)], -1)

    def apply(function: Any, fields: Sequence[xr.DataArray], **sizes: int) -> xr.DataArray:
        return xr.apply_ufunc(
            function, *fields, input_core_dims=[["bin"]] * len(fields), output_core_dims=[list(sizes)],
            dask="parallelized", output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": sizes},
        )  # fmt: skip

    table = apply(events, (of_p, of_y, of_both), event=len(fixed) + 1, column=4)
    names = [f"{t:g} mm" for t in thresholds] + ["p99"]
    amount, predicted, observed, hits = (table.isel(column=k).assign_coords(event=names) for k in range(4))
    quantiles = {
        f"{which}_quantile": apply(_quantiles, (da,), quantile=len(QUANTILES)).assign_coords(quantile=list(QUANTILES))
        for which, da in (("predicted", of_p), ("observed", of_y))
    }
    return {
        **_of_sums(sums), "skill": _ratio(both, weight), "amount": amount,
        **_of_events(predicted, observed, hits, enough=1e-9),
        "wasserstein": apply(_wasserstein, (of_p, of_y)), **quantiles,
    }  # fmt: skip


def _middles() -> np.ndarray:
    """The amount that stands for each bin: 0 for the dry one, the middle of the others."""
    edges = lower_edges()
    return np.concatenate([[0.0], (edges[1:-1] + edges[2:]) / 2, edges[-1:]])


def _quantiles(histogram: np.ndarray) -> np.ndarray:
    """Middles of the bins where the quantiles lie, ``(..., quantile)``."""
    ends = np.cumsum(histogram, -1)[..., None, :]
    bins = (ends < np.array(QUANTILES)[:, None] * ends[..., -1:]).sum(-1).clip(0, BINS - 1)
    return np.where(ends[..., -1] > 0, _middles()[bins], np.nan)


def _wasserstein(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = np.full(p.shape[:-1], np.nan)
    for place in np.ndindex(out.shape):
        if p[place].sum() > 0:
            # Rounding may leave a dry bin that is less than empty.
            weights = (np.clip(p[place], 0, None), np.clip(y[place], 0, None))
            out[place] = stats.wasserstein_distance(_middles(), _middles(), *weights)
    return out


def of_days(sums: xr.DataArray) -> dict[str, xr.DataArray]:
    """Mean errors of each day ``(time,)``, and the area that counts, from `day_sums`."""
    names = ("weight", "error", "absolute", "squared")
    # Picked by a list, which copies: views would keep the histograms of all days in memory. Then put together, for what
    # follows would otherwise have some twenty tasks for each chunk of days, and the graph would be most of the memory.
    few = sums.isel(sum=[NAMES.index(name) for name in names])
    weight, *errors = (few if few.chunks is None else few.chunk(time=-1)).transpose("sum", "time")
    return {"daily_weight": weight} | {f"daily_{n}": _ratio(e, weight) for n, e in zip(names[1:], errors, strict=True)}


def of_cells(
    mean: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, wet: float, edges: tuple[float, ...]
) -> dict[str, xr.DataArray]:
    """Errors and events of each cell ``(lat, lon)``, all days together; ``edges``: the amounts of the events."""
    sums = cell_sums(mean, observed, area, wet, edges)
    names = [f"{edge:g} mm" for edge in edges]
    predicted, observed_, hits = (
        sums.isel(sum=slice(len(NAMES) + k, None, 3)).rename(sum="event").assign_coords(event=names) for k in range(3)
    )
    amount = xr.DataArray(list(edges), {"event": names}, "event")
    return {**_of_sums(sums), "amount": amount, **_of_events(predicted, observed_, hits)}


def of_members(
    members: xr.DataArray,
    observed: xr.DataArray,
    area: xr.DataArray,
    over: Callable[[xr.DataArray], xr.DataArray],
    found: Mapping[str, xr.DataArray],
    thresholds: Sequence[float],
) -> dict[str, xr.DataArray]:
    """CRPS, spread, ratio and ranks, over the same groups as the errors: ``over`` sums ``(..., time, lat, lon)`` up."""
    count = members.sizes["member"]
    variance = members.astype(np.float64).var("member", ddof=1, skipna=False).where(observed.notnull())
    weight = over(area * observed.notnull())
    spread = (_ratio(over(area * variance), weight) * (1 + 1 / count)) ** 0.5
    return {
        "crps": _ratio(over(area * crps(members, observed)), weight),
        "tail_crps": _tails([crps(members, observed, above=t) for t in thresholds], thresholds, area, over, weight),
        "spread": spread, "spread_skill_ratio": _ratio(spread, found["rmse"]),
        "rank_histogram": over(rank_parts(members, observed)),
    }  # fmt: skip


def of_one(
    mean: xr.DataArray,
    observed: xr.DataArray,
    area: xr.DataArray,
    over: Callable[[xr.DataArray], xr.DataArray],
    found: Mapping[str, xr.DataArray],
    thresholds: Sequence[float],
) -> dict[str, xr.DataArray]:
    """What `of_members` is of a single field: its CRPS is the absolute error."""
    tails = [abs(mean.clip(min=t) - observed.clip(min=t)) for t in thresholds]
    weight = over(area * observed.notnull())
    return {"crps": found["mae"], "tail_crps": _tails(tails, thresholds, area, over, weight)}


def _tails(
    scores: Sequence[xr.DataArray],
    thresholds: Sequence[float],
    area: xr.DataArray,
    over: Callable[[xr.DataArray], xr.DataArray],
    weight: xr.DataArray,
) -> xr.DataArray:
    """The mean of each score, by the events of the thresholds."""
    means = [_ratio(over(area * score), weight) for score in scores]
    return xr.concat(means, "event").assign_coords(event=[f"{t:g} mm" for t in thresholds])
