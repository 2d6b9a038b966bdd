"""Maps side by side on one colour scale, and what they are apart on a scale around 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xdeepsd._extras import require
from xdeepsd.evaluation.fields import days_of, mean_of_members, on_grid, prepared
from xdeepsd.grids import axes
from xdeepsd.grids.interpolate import interpolate
from xdeepsd.levels.splits import within

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# Both are ColorBrewer's, which the colour-blind can read; brown to green is how the field draws drier to wetter.
RAIN, APART = "YlGnBu", "BrBG"
MISSING = "0.85"
_WIDTH, _COLUMNS, _SHARE = 9.6, 3, 0.995


def maps(
    fields: Mapping[str, xr.DataArray],
    title: str = "",
    *,
    apart: Mapping[str, xr.DataArray] | None = None,
    mask: xr.DataArray | None = None,
    label: str = "precipitation",
    projection: Any = None,
) -> Figure:
    """Maps on one colour scale, and differences on another that is centred at 0.

    Parameters
    ----------
    fields
        Title and ``(lat, lon)`` map of each panel, all in the same units, by any names of latitude and longitude; grids
        may differ. Lazy maps are computed. NaN is grey, less than the first step of the scale white.
    title
        Above all panels.
    apart
        Maps of differences in the same units, drawn after the others.
    mask
        ``(lat, lon)``, True where values are wanted: the line around it is the coast. None: around the cells where the
        finest map has a value.
    label
        What the colours mean, above the units.
    projection
        A projection of cartopy, such as ``cartopy.crs.LambertConformal()``. None: longitude against latitude, as wide
        as they are at the middle latitude; cartopy is not needed.

    Returns
    -------
    A matplotlib Figure. The scale has steps that grow with the amount, up to the 99.5th percentile of what is wet, for
    drizzle and downpours are on the same map. Without matplotlib, raises an ImportError that says what to type;
    ValueError where there is no map, or no latitude and longitude.
    """
    require("plot", "A picture")
    from matplotlib.colors import BoundaryNorm, Normalize
    from matplotlib.figure import Figure

    if not fields:
        raise ValueError("There is no map to draw. Needed: a title and a (lat, lon) map for each panel.")
    shown = {name: _map(da, name) for name, da in fields.items()}
    differ = {name: _map(da, name) for name, da in (apart or {}).items()}
    finest = max(shown.values(), key=lambda da: da.size)
    coast = finest.notnull() if mask is None else _map(mask, "mask").astype(bool)
    aspect = 1 / np.cos(np.deg2rad(float(finest["lat"].mean())))
    height = float(np.ptp(finest["lat"].values) / max(np.ptp(finest["lon"].values), 1e-6) * aspect)
    count = len(shown) + len(differ)
    columns = min(_COLUMNS if count != 4 else 2, count)
    rows = -(-count // columns)
    wide = (_WIDTH - 0.6 - 0.85 * (2 if differ else 1)) / columns - 0.15  # of a panel, without axes and bars
    tall = 0.7 + rows * (wide * min(max(height, 0.3), 2.0) + 0.4)
    figure = Figure(figsize=(_WIDTH, tall), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False,
                             subplot_kw={"projection": projection} if projection is not None else {})  # fmt: skip
    flat = list(panels.ravel())
    steps = _steps(np.concatenate([da.values.ravel() for da in shown.values()]))
    scale = BoundaryNorm(steps, 256, extend="both")
    most = _top(np.concatenate([abs(da.values).ravel() for da in differ.values()])) if differ else 1.0
    colours = dict.fromkeys(shown, (RAIN, scale)) | {name: (APART, Normalize(-most, most)) for name in differ}
    drawn = {}
    for ax, (name, da) in zip(flat, (shown | differ).items(), strict=False):
        drawn[name] = _panel(ax, name, da, coast, *colours[name], aspect=aspect, projection=projection)
    for k, ax in enumerate(flat[count:], start=count):
        ax.remove()
        flat[k - columns].tick_params(labelbottom=True)
    units = next((str(da.attrs["units"]) for da in shown.values() if da.attrs.get("units")), "")
    of = f" ({units})" if units else ""
    # The last one lies next to the panels.
    for text, part, ticks in (("difference", differ, None), (label, shown, steps)):
        if part:
            bar = figure.colorbar(drawn[next(iter(part))], ax=flat[:count], extend="both", shrink=0.9, aspect=30,
                                  pad=0.02, label=text + of, ticks=ticks)  # fmt: skip
            bar.ax.tick_params(labelsize=8)
            if ticks is not None:
                bar.ax.set_yticklabels([f"{step:g}" for step in ticks])
    if projection is None:
        figure.supxlabel("longitude (degrees east)", fontsize=9)
        figure.supylabel("latitude (degrees north)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def compare(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    coarse: xr.Dataset | xr.DataArray | None = None,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
    day: str | None = None,
    mask: xr.DataArray | None = None,
    title: str | None = None,
    projection: Any = None,
) -> Figure:
    """One day side by side: coarse, interpolated, downscaled and the truth, and how far each is from the truth.

    Parameters
    ----------
    prediction, truth
        Precipitation ``(time, lat, lon)`` on the same grid, as in `xdeepsd.evaluate`, or a single map. Of members, the
        mean is drawn. Only the chunks of the day are computed.
    coarse
        What was downscaled. It is drawn, and so is its bilinear interpolation where nothing stands ``beside``.
    beside
        Other methods by name, as from `xdeepsd.baselines`.
    day
        Date, such as "2003-01-15"; None: the first day of the truth.
    mask, projection
        As in `maps`.
    title
        Above all panels; None: the date.

    Returns
    -------
    A matplotlib Figure, in mm day-1.

    Raises
    ------
    ValueError
        Another grid than the truth's; a day that is not there; what is no precipitation.
    ImportError
        No matplotlib.
    """
    require("plot", "A picture")
    observed = _of_day(truth, "truth", day)
    date = days_of(observed)[0]
    at = date if isinstance(date, str) else None
    fine = {name: _of_day(da, name, at) for name, da in (beside or {}).items()}
    shown = {}
    if coarse is not None:
        shown["coarse"] = _of_day(coarse, "coarse", at)
        low = shown["coarse"]
        if beside is None:
            for dim in ("lat", "lon"):
                if (low[dim][0] < low[dim][-1]) != (observed[dim][0] < observed[dim][-1]):
                    low = low.isel({dim: slice(None, None, -1)})
            fine["interpolated"] = interpolate(low, observed).assign_coords(time=observed["time"])
    fine["prediction"] = _of_day(prediction, "prediction", at)
    dated = {name: da.assign_coords(time=observed["time"]) for name, da in fine.items()}
    shown |= {name: on_grid(da, observed, name) for name, da in dated.items()} | {"truth": observed}
    loaded = {name: mean_of_members(da).isel(time=0, drop=True).compute() for name, da in shown.items()}
    if mask is None:
        mask = loaded["truth"].notnull()
    else:
        mask = _map(mask, "mask").astype(bool)
        wanted = mask.assign_coords(lat=observed["lat"], lon=observed["lon"])
        loaded = {name: da if name == "coarse" else da.where(wanted) for name, da in loaded.items()}
    loaded = {name: da.assign_attrs(units="mm day-1") for name, da in loaded.items()}
    judged = [name for name in ("interpolated", "prediction") if name in loaded]
    differ = {f"{name} less truth": loaded[name] - loaded["truth"] for name in judged}
    return maps(loaded, (at or "") if title is None else title, apart=differ, mask=mask, projection=projection)


def _of_day(field: xr.Dataset | xr.DataArray, name: str, day: str | None) -> xr.DataArray:
    """``([member,] time, lat, lon)`` in mm day-1, lazily, with the one day."""
    if axes.find_time(field) is None and "time" not in field.dims:  # a single map: of its date, if it has one
        field = field.expand_dims("time" if "time" in field.coords else {"time": [0]})
    da = prepared(field, name)
    try:
        at = np.arange(da.sizes["time"]) if day is None or da.sizes["time"] == 1 else within(da["time"], day)
    except (ValueError, KeyError, TypeError):
        at = np.array([], int)
    if not len(at):
        ends = [str(da["time"].values[k])[:10] for k in (0, -1)] if da.sizes["time"] else ["none", "none"]
        raise ValueError(
            f"{name} has no day {day!r}: its days go from {ends[0]} to {ends[1]}. Needed: a day that all fields have. "
            f"Type day={ends[0]!r}."
        )
    return da.isel(time=at[:1])


def _map(da: xr.DataArray, name: str) -> xr.DataArray:
    """``(lat, lon)`` in memory."""
    found = axes.standardize(axes.as_map(da))[0]
    if found.dims != ("lat", "lon"):
        raise ValueError(
            f"{name!r} has the dims {dict(da.sizes)}. Needed: a map, of latitude and longitude. Type .isel(time=0)."
        )
    return found.compute()


def _top(values: np.ndarray) -> float:
    """Where a scale ends: the largest values would leave no colours for the rest."""
    known = values[np.isfinite(values) & (values > 0)]
    return float(np.quantile(known, _SHARE)) if known.size else 1.0


def _steps(values: np.ndarray) -> np.ndarray:
    """Round bounds of colours up to the top of the values: fine ones in the upper decade, coarse ones below it.

    None lies below nearly all of the values: it would stand for nothing on the map.

    >>> _steps(np.array([0.0, 0.1, 3.0, 42.0])).tolist()
    [0.5, 1.0, 2.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 40.0]
    """
    positive = values[np.isfinite(values) & (values > 1e-12)]
    top = _top(positive[positive > 1e-3 * positive.max()]) if positive.size else 1.0
    decade = 10.0 ** np.floor(np.log10(top))
    upper = [m * p for p in (decade / 10, decade) for m in (1, 1.5, 2, 3, 4, 5, 7) if 0.1 * top < m * p <= top]
    lower = [m * p for p in (decade / 1000, decade / 100, decade / 10) for m in (1, 2, 5)
             if 0.002 * top < m * p <= 0.1 * top]  # fmt: skip
    steps = np.array([float(f"{step:.3g}") for step in lower + upper])
    least = np.quantile(positive, 0.02) if positive.size else 0.0
    return steps[min(int((steps < least).sum()), len(steps) - 3) :]


def _panel(
    ax: Axes, name: str, da: xr.DataArray, coast: xr.DataArray, colours: str, scale: Normalize, *, aspect: float,
    projection: Any,
) -> Any:  # fmt: skip
    import matplotlib

    ramp = matplotlib.colormaps[colours].with_extremes(bad=MISSING)
    if colours == RAIN:
        ramp = ramp.with_extremes(bad=MISSING, under="white")
    moved: dict[str, Any] = {}
    if projection is not None:
        from cartopy.crs import PlateCarree

        moved = {"transform": PlateCarree()}
    drawn = ax.pcolormesh(da["lon"], da["lat"], da, cmap=ramp, norm=scale, rasterized=True, **moved)
    if not bool(coast.all()) and bool(coast.any()) and min(coast.shape) > 1:
        ax.contour(
            coast["lon"], coast["lat"], coast.astype(float), levels=[0.5], colors="0.25", linewidths=0.6, **moved
        )
    ax.set_title(name, fontsize=10)
    ax.tick_params(labelsize=8)
    if projection is None:
        ax.set_facecolor(MISSING)
        ax.locator_params(axis="x", nbins=5)
        ax.set_aspect(aspect)
    else:
        ax.gridlines(draw_labels=False, linewidth=0.4, color="0.6")  # type: ignore[attr-defined]
    return drawn
