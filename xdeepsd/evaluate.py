"""Errors of downscaled precipitation beside the baselines, lazily."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import xarray as xr
import xskillscore as xs


def errors(predicted: xr.DataArray, observed: xr.DataArray) -> dict[str, xr.DataArray]:
    """RMSE, MAE, bias and correlation over all cells and days that both have.

    Both ``(..., lat, lon)`` in the same units on the same coordinates; NaN is left out. Scalars, lazy if the input is;
    units of the input (correlation: 1). Bias is predicted minus observed. Pearson's correlation over space and time
    together. Computed by xskillscore in float64.
    """
    dims = list(observed.dims)
    predicted, observed = (da.astype("float64") for da in (predicted, observed))
    return {
        "rmse": xs.rmse(predicted, observed, dim=dims, skipna=True),
        "mae": xs.mae(predicted, observed, dim=dims, skipna=True),
        "bias": xs.me(predicted, observed, dim=dims, skipna=True),
        "correlation": xs.pearson_r(predicted, observed, dim=dims, skipna=True),
    }


def compare(predictions: Mapping[str, xr.DataArray], observed: xr.DataArray) -> pd.DataFrame:
    """Table of `errors`, a row for each prediction (the model and its baselines); computes.

    All rows are over the same cells: those that every prediction and the observation have.
    """
    common = observed.notnull()
    for predicted in predictions.values():
        common = common & predicted.notnull()
    table = xr.Dataset(
        {
            f"{name}|{error}": value
            for name, predicted in predictions.items()
            for error, value in errors(predicted.where(common), observed.where(common)).items()
        }
    ).compute()
    rows = {
        name: {error: float(table[f"{name}|{error}"]) for error in ("rmse", "mae", "bias", "correlation")}
        for name in predictions
    }
    return pd.DataFrame(rows).T
