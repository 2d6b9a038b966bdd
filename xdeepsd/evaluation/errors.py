"""Errors of downscaled precipitation and of baselines, over all cells and by bins of the target; lazily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import dask
import dask.array
import numpy as np
import pandas as pd
import xarray as xr

BINS = 5


def errors(predicted: xr.DataArray, observed: xr.DataArray) -> dict[str, xr.DataArray]:
    """RMSE, MAE, bias and correlation over all cells and days present in both.

    Both are ``(..., lat, lon)``, in the same units and on the same coordinates; NaN is left out. The results are
    float64 scalars in the units of the input (correlation: 1), lazy if the input is, and reduced chunk by chunk. Bias
    is predicted minus observed. The correlation is Pearson's, over space and time together.
    """
    predicted, observed = predicted.astype("float64"), observed.astype("float64")
    error = predicted - observed
    return {
        "rmse": (error**2).mean() ** 0.5,
        "mae": abs(error).mean(),
        "bias": error.mean(),
        "correlation": xr.corr(predicted, observed),
    }


def compare(predictions: Mapping[str, xr.DataArray], observed: xr.DataArray) -> pd.DataFrame:
    """Table of `errors`, with a row for each prediction (the model and its baselines); computes.

    All rows are over the same cells: those present in every prediction and in the observations.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> table = xdeepsd.compare({"bilinear": bilinear, "truth": truth}, truth)
    >>> float(table.loc["truth", "rmse"]), list(table.columns)
    (0.0, ['rmse', 'mae', 'bias', 'correlation'])
    """
    observed = _common(predictions, observed)
    lazy = {name: errors(da.where(observed.notnull()), observed) for name, da in predictions.items()}
    (rows,) = dask.compute(lazy)
    return pd.DataFrame({name: {error: float(v) for error, v in row.items()} for name, row in rows.items()}).T


def _common(predictions: Mapping[str, xr.DataArray], observed: xr.DataArray) -> xr.DataArray:
    """``observed``, NaN wherever a prediction is missing. Lazy. ValueError where the coordinates differ."""
    for name, predicted in predictions.items():
        try:
            xr.align(observed, predicted, join="exact")
        except ValueError as error:
            raise ValueError(
                f"The coordinates of {name!r} differ from those of the observed values: {error}. Needed: the same "
                "cells and days. If they differ only by rounding, type predicted.assign_coords(observed.coords)."
            ) from error
        observed = observed.where(predicted.notnull())
    return observed


def bin_edges(observed: xr.DataArray, bins: int = BINS, *, scheduler: str | None = None) -> np.ndarray:
    """Edges ``(bins + 1,)`` of equal-width bins over the range of the observed values, in their units; computes.

    ``scheduler`` as in `bin_errors`. Raises ValueError where no value is finite or all are equal.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> xdeepsd.bin_edges(xr.DataArray([0.0, 3.0, 10.0]))
    array([ 0.,  2.,  4.,  6.,  8., 10.])
    """
    low, high = (float(v) for v in dask.compute(observed.min(), observed.max(), scheduler=scheduler))
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(
            f"The observed values range from {low} to {high}: bins of equal width cannot be made. Needed: finite "
            "values that differ. Give days with rain."
        )
    return np.linspace(low, high, bins + 1)


def bin_errors(
    predictions: Mapping[str, xr.DataArray],
    observed: xr.DataArray,
    bins: int = BINS,
    edges: Sequence[float] | None = None,
    *,
    rank_by: Literal["count", "density"] = "count",
    scheduler: str | None = None,
) -> pd.DataFrame:
    """RMSE and MAE in equal-width bins of the observed value, ranked by how rare these values are; computes.

    Steininger et al. (Machine Learning 2021, section 5.3): errors over all cells hide how well a model does on rare
    values.

    Parameters
    ----------
    predictions
        Name and ``(..., lat, lon)`` field of each model and baseline, in the units and on the grid of ``observed``.
    observed
        ``(..., lat, lon)``; NaN is left out, and so are cells where any prediction is NaN.
    bins
        Number of bins over the range of the observed values.
    edges
        Edges of the bins, instead of ``bins``; values outside them are left out.
    rank_by
        "count", or "density", the count over the width: they differ for ``edges`` of different widths.
    scheduler
        Dask scheduler; None: the current one. Inside a task of a cluster: "synchronous" or "threads".

    Returns
    -------
    One row per prediction and bin: ``name``, ``rank`` (1 = the rarest bin that holds anything), ``low``, ``high``,
    ``count``, ``rmse``, ``mae``; then one row per prediction with ``rank`` 0 for all bins together. Empty bins have no
    row.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> observed = xr.DataArray([[0.0, 0.0, 0.0, 10.0]], dims=("lat", "lon"))
    >>> xdeepsd.bin_errors({"dry": 0 * observed}, observed, bins=2)
      name  rank  low  high  count  rmse   mae
    0  dry     1  5.0  10.0      1  10.0  10.0
    1  dry     2  0.0   5.0      3   0.0   0.0
    2  dry     0  0.0  10.0      4   5.0   2.5
    """
    if rank_by not in ("count", "density"):
        raise ValueError(f"rank_by is {rank_by!r}; needed: 'count' or 'density'.")
    common = _common(predictions, observed)
    limits = bin_edges(common, bins, scheduler=scheduler) if edges is None else np.asarray(edges, np.float64)
    values = common.astype(np.float64).data
    sums = {"count": _histogram(values, limits, None)}
    for name, predicted in predictions.items():
        apart = (predicted.transpose(*common.dims).astype(np.float64) - common.astype(np.float64)).fillna(0.0).data
        sums[f"{name}|rmse"] = _histogram(values, limits, apart**2)
        sums[f"{name}|mae"] = _histogram(values, limits, abs(apart))
    (sums,) = dask.compute(sums, scheduler=scheduler)
    count = sums["count"]
    filled = np.flatnonzero(count)
    # Rarest first; of bins that are alike, the one with larger values first.
    rare = count / np.diff(limits) if rank_by == "density" else count
    order = sorted(filled, key=lambda i: (rare[i], -i))
    rows = []
    for name in predictions:
        squares, absolute = sums[f"{name}|rmse"], sums[f"{name}|mae"]
        parts = [(rank, [i]) for rank, i in enumerate(order, start=1)] + [(0, list(range(len(count))))]
        for rank, which in parts:
            n = count[which].sum()
            rows.append(
                {
                    "name": name, "rank": rank, "low": limits[which[0]], "high": limits[which[-1] + 1], "count": int(n),
                    "rmse": float(np.sqrt(squares[which].sum() / n)), "mae": float(absolute[which].sum() / n),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _histogram(values: np.ndarray | dask.array.Array, edges: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sums of the weights in each bin (counts without weights); NaN falls into no bin. Lazy if ``values`` is."""
    if isinstance(values, np.ndarray):
        return np.histogram(values.ravel(), edges, weights=None if weights is None else np.asarray(weights).ravel())[0]
    if weights is not None:
        weights = dask.array.asarray(weights).rechunk(values.chunks)
    return dask.array.histogram(values, edges, weights=weights)[0]
