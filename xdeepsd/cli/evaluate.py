"""``xdeepsd evaluate``."""

from __future__ import annotations

import json as _json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xdeepsd._extras import require
from xdeepsd.cli.terminal import consoles, logged, told

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_COLUMNS = ("bias", "rmse", "mae", "correlation", "skill", "wet_rmse", "dry_mae")


def evaluate(
    prediction: Annotated[str, typer.Argument(metavar="PREDICTION", help="Zarr store or file to judge.")],
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="Observed precipitation on the same grid.")],
    coarse: Annotated[
        str | None, typer.Option(help="Coarse precipitation of the same days, to be interpolated beside it.")
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(help="Observed precipitation of the training days: climatology ratio, BCSD, and a warning."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder of the model, to be warned of its training days.")] = None,
    variable: Annotated[str | None, typer.Option(help="Name of the precipitation in PREDICTION.")] = None,
    by: Annotated[str | None, typer.Option(help="season or month: the RMSE of each of them as well.")] = None,
    regions: Annotated[
        str | None, typer.Option(help="File with a map of labels, or a mask: the RMSE of each region as well.")
    ] = None,
    indices: Annotated[bool, typer.Option("--indices", help="Climate indices (spells, extremes ...) as well.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Judge a prediction against the truth, beside interpolation, with intervals; one pass over the stores."""
    import dask

    import xdeepsd
    from xdeepsd.cli.inputs import open_file

    console, errors = consoles()
    stops = (ValueError, TypeError, OSError, RuntimeError, ImportError)
    with logged(errors), told(errors, stops, "Nothing was written."):
        if by not in (None, "season", "month"):
            raise ValueError(f"--by is {by!r}. Needed: season or month.")
        if coarse is not None:
            require("evaluate", "The Diebold-Mariano test")  # before the pass over the stores, not after it
        if coarse is not None and training is not None:
            require("bias", "BCSD")
        predicted = _field(open_file(prediction), prediction, variable)
        observed = _field(open_file(truth), truth)
        observed = _on_days(observed, predicted)  # the truth is often longer
        past = None if training is None else _field(open_file(training), training)
        beside = {} if coarse is None else _baselines(_field(open_file(coarse), coarse), observed, past)
        options: dict[str, Any] = {
            "beside": beside, "model": None if model is None else xdeepsd.load_model(model),
            "training_days": None if past is None else past["time"],
        }  # fmt: skip
        asked = {"all": xdeepsd.evaluate(predicted, observed, **options)}
        if by is not None:
            asked[by] = xdeepsd.evaluate(predicted, observed, beside=beside, by=by)  # type: ignore[arg-type]
        if regions is not None:
            labels = _labels(open_file(regions), regions)
            asked["region"] = xdeepsd.evaluate(predicted, observed, beside=beside, by="region", regions=labels)
        if indices:
            asked["indices"] = xdeepsd.compare_indices(predicted, observed, beside=beside)[["relative_error"]]
        (found,) = dask.compute(asked)
        apart = xdeepsd.differences(found["all"]) if beside else None
        if json:
            typer.echo(_json.dumps(_content(found, apart), indent=2))
        else:
            _show(found, apart, console)


def _field(ds: Any, source: str, variable: str | None = None) -> xr.DataArray:
    """``(time, lat, lon)``, mm day-1, in chunks along time."""
    from xdeepsd.evaluation.fields import prepared
    from xdeepsd.grids.axes import chunk_unread, settle
    from xdeepsd.models.variable import find_variable

    ds = settle(ds)
    try:
        found = find_variable(ds, variable)
        return prepared(ds.assign({found.name: chunk_unread(found)})[[found.name]], source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _labels(ds: Any, source: str) -> xr.DataArray:
    """The one map in a file of regions."""
    maps = [da for da in ds.data_vars.values() if da.ndim == 2]
    if len(maps) != 1:
        raise ValueError(
            f"{source} has {len(maps)} maps of two dims, among {', '.join(map(str, ds.data_vars)) or 'nothing'}. "
            "Needed: a single one, of the labels of the regions."
        )
    return maps[0]


def _on_days(da: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """``da`` on the days of ``like``, whatever their hours; as it is where it lacks any of them."""
    from xdeepsd.evaluation.fields import days_of

    days = days_of(da)
    at = days.get_indexer(days_of(like)) if days.is_unique else [-1]
    return da if min(at, default=-1) < 0 else da.isel(time=at)


def _baselines(coarse: xr.DataArray, truth: xr.DataArray, past: xr.DataArray | None) -> dict[str, xr.DataArray]:
    """Everything in `xdeepsd.baselines`, in the chunks of the truth; the mask and what is fitted are computed first.

    The coarse field of the training days is that of ``coarse``, where it has them: its bias is then known. Otherwise it
    is taken to have none.
    """
    import dask

    import xdeepsd
    from xdeepsd.evaluation.fields import days_of
    from xdeepsd.levels.days import name_span

    whole, coarse = coarse, _on_days(coarse, truth)
    if not days_of(coarse).equals(days_of(truth)):
        raise ValueError(
            f"--coarse has {name_span(coarse)}, and the days to judge are {name_span(truth)}. Needed: each of these "
            "days."
        )
    coarse = coarse.assign_coords(time=truth["time"]).chunk(time=truth.chunksizes["time"], lat=-1, lon=-1)
    coarse = _turned(coarse, truth)
    # A lazy mask would wait for all days, and keep them in memory.
    (mask,) = dask.compute(truth.notnull().any("time"))
    if past is None:
        return xdeepsd.baselines(coarse, truth, mask=mask)
    past = _turned(past, truth)
    low = _turned(_on_days(whole, past), truth)
    if not days_of(low).equals(days_of(past)):
        low = xdeepsd.coarsen(past.chunk(lat=-1, lon=-1), truth.sizes["lat"] // coarse.sizes["lat"])
    low = low.assign_coords(time=past["time"])
    return xdeepsd.baselines(coarse, truth, mask=mask, past=(past, low))


def _turned(da: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """With latitude and longitude in the order of ``like``."""
    for dim in ("lat", "lon"):
        if (da[dim][0] < da[dim][-1]) != (like[dim][0] < like[dim][-1]):
            da = da.isel({dim: slice(None, None, -1)})
    return da


def _strongest(whole: xr.Dataset) -> dict[str, Any] | None:
    """The baseline with the least RMSE, and the part of it by which that of the prediction is larger."""
    rmse = whole["rmse"].to_series()
    others = rmse.drop("prediction").dropna()
    if not len(others):
        return None
    least = float(others.min())
    return {
        "name": str(others.idxmin()), "rmse": least, "prediction_above_it": float(rmse["prediction"] / least - 1)
        if least else None,
    }  # fmt: skip


def _content(found: dict[str, xr.Dataset], apart: pd.DataFrame | None) -> dict[str, Any]:
    """Everything found, for JSON: undefined is null."""
    content: dict[str, Any] = {}
    for part, ds in found.items():
        ds = ds.drop_dims("time", errors="ignore")
        content[part] = {str(name): _nested(da) for name, da in ds.data_vars.items()}
    if apart is not None:
        rows = apart.astype(object).where(apart.notna(), None)
        content["differences"] = rows.to_dict("records")
        content["strongest_baseline"] = _strongest(found["all"])
    return content


def _nested(da: xr.DataArray) -> Any:
    """A value, or one for each label of the first dim and so on."""
    import numpy as np

    if not da.ndim:
        return float(da) if np.isfinite(da) else None
    dim = da.dims[0]
    return {str(label): _nested(da.isel({dim: i})) for i, label in enumerate(da[dim].values)}


def _show(found: dict[str, xr.Dataset], apart: pd.DataFrame | None, console: Any) -> None:
    """The tables: errors and events of each method, its difference from the prediction; groups and indices below."""
    from rich.table import Table

    whole = found["all"]
    events = [str(event) for event in whole["event"].values]
    extra = [name for name in ("crps", "spread_skill_ratio") if name in whole]
    table = Table("mm day-1", *(name.replace("_", " ") for name in (*_COLUMNS, *extra)))
    rare = Table("POD / FAR", *(_event(whole, event) for event in events))
    for name in whole["name"].values:
        here = whole.sel(name=name)
        table.add_row(name, *(_number(here[column]) for column in (*_COLUMNS, *extra)))
        pairs = (f"{_number(here['pod'].sel(event=e))} / {_number(here['far'].sel(event=e))}" for e in events)
        rare.add_row(name, *pairs)
    console.print(table)
    console.print(rare)
    if apart is not None:
        table = Table("prediction less", "error", "difference", "95 % interval", "p (Diebold-Mariano)")
        for row in apart.to_dict("records"):
            interval = f"{_number(row['low'])} to {_number(row['high'])}"
            table.add_row(row["name"], row["error"], _number(row["difference"]), interval, _number(row["p"], ".2g"))
        console.print(table)
    for by in ("season", "month", "region"):
        if by in found:
            _rows(f"RMSE by {by}", found[by]["rmse"].transpose("name", by), console)
    if "indices" in found:
        _rows("mean error over mean", found["indices"]["relative_error"].transpose("name", "index"), console, down=True)
    if best := _strongest(whole):
        above = best["prediction_above_it"]
        says = (
            ""
            if above is None
            else f": that of the prediction is {abs(above):.1%} {'above' if above > 0 else 'below'} it"
        )
        console.print(f"The strongest baseline is {best['name']}, RMSE {best['rmse']:.3f}{says}.", markup=False)
    console.print(
        f"{whole.sizes['time']} days, {int(whole['count'])} values. Areas are weighted; all rows are over the same "
        "cells and days.", markup=False,
    )  # fmt: skip


def _event(whole: xr.Dataset, event: str) -> str:
    """An event with its amount, where that is not its name."""
    return event if event.endswith("mm") else f"{event} ({_number(whole['amount'].sel(event=event), '.3g')} mm)"


def _rows(title: str, da: xr.DataArray, console: Any, down: bool = False) -> None:
    from rich.table import Table

    da = da.T if down else da
    table = Table(title, *map(str, da[da.dims[1]].values))
    for label, row in zip(da[da.dims[0]].values, da.values, strict=True):
        table.add_row(str(label), *map(_number, row))
    console.print(table)


def _number(value: Any, form: str = ".3f") -> str:
    value = float(value)
    text = f"{value:{form}}"
    return "–" if value != value else text.removeprefix("-") if float(text) == 0 else text
