"""A bias correction by quantile delta mapping: what was fitted, its file, and how it is applied. Lazy.

It is fitted by `xdeepsd.fit_correction`, and the ranks and the interpolation between quantiles are those of xsdba. The
loop over groups is our own because its interpolation over groups and quantiles at once triangulates every cell; so is
the frequency adaptation, because the noise of xsdba has no seed: no run could be resumed, and chunks would count.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtr

from xdeepsd._extras import require
from xdeepsd.grids import align, axes
from xdeepsd.inference.digests import digest
from xdeepsd.models.noise import day_keys, white_noise
from xdeepsd.stores.whole import write_whole

logger = logging.getLogger(__name__)

FORMAT = 1  # increase it when an older xdeepsd can no longer read the files
GROUP = "group"  # dim of the months, seasons or days of the year; of size 1 without groups
_VALUES_IN_BLOCK = 2**22  # 16 MB of float32; xsdba holds about ten arrays of the size
_FORMAT, _DIGEST = "xdeepsd_correction", "xdeepsd_sha256"


@dataclass(frozen=True)
class Correction:
    """Factors of a quantile delta mapping for each coarse cell, as `xdeepsd.fit_correction` makes them.

    Parameters
    ----------
    data
        ``factors`` ``(lat, lon, group, quantiles)``, NaN where both are dry; ``highest`` ``(lat, lon, group)``, the
        highest quantile of the history, mm day-1; where the frequency was adapted ``dry_observed``, ``dry_history``
        (shares) and ``wettest_added`` (mm day-1), all ``(lat, lon, group)``. Lazy if what it was fitted on is.
    options
        How it was fitted and is applied: the arguments of `xdeepsd.fit_correction`.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> observed = climate["precipitation"].fillna(0)
    >>> history = (1.5 * observed).assign_attrs(observed.attrs)
    >>> correction = xdeepsd.fit_correction(history, observed, group="time", nquantiles=20)
    >>> correction.data["factors"].dims
    ('lat', 'lon', 'group', 'quantiles')
    """

    data: xr.Dataset
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """What was fitted, on which days."""
        of = self.options
        return (
            f"quantile delta mapping by {of['group']}, fitted on {of['days']} days from {of['first']} to {of['last']}"
        )

    def fingerprint(self) -> str:
        """Changes with the factors and the options; reads no lazy data, whose name stands for them."""
        arrays = {str(name): digest(v.data) for name, v in self.data.variables.items()}
        return digest((sorted(arrays.items()), sorted(self.options.items())))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write it as a NetCDF file, whole or not at all; computes what is lazy.

        Raises FileExistsError if ``path`` exists and ``overwrite`` is False, or if it is not a correction; ValueError
        if no cell has a factor.
        """
        path = Path(path)
        if path.exists() and not is_correction(path):
            raise FileExistsError(
                f"{path} exists, but is not a correction of xdeepsd. It is left alone: type another path."
            )
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists. Type correction.save(path, overwrite=True) to replace it.")
        data = self.data.compute()
        if not np.isfinite(data["factors"]).any():
            raise ValueError(
                "The correction has no factor in any cell: the history and the observed field have no cell where both "
                "have values, or both are dry. Check their missing values, and that they lie in the same region."
            )
        if path.exists():
            logger.info("The correction at %s is replaced.", path)
        for name in ("factors", "highest"):
            data[name].encoding["_FillValue"] = np.nan
        options = json.dumps(dict(self.options))
        attrs = {_FORMAT: FORMAT, "options": options, _DIGEST: _content(data, options)}
        write_whole(path, bytes(data.assign_attrs(attrs).to_netcdf(engine="scipy")))

    def apply(self, da: xr.DataArray) -> xr.DataArray:
        """Correct a series on the grid of the correction.

        Parameters
        ----------
        da
            ``(..., time, lat, lon)``, mm day-1, NaN = missing, any days in any calendar; other dims are corrected one
            by one.

        Returns
        -------
        The same, float32 or as given, at least 0; lazy if ``da`` or the correction is, in the chunks of ``da``. A cell
        needs all its days to be corrected, since its quantiles are those of the whole series. Values where there is no
        factor stay as they are.

        Raises
        ------
        ValueError
            Another grid, no time, days of a group the correction was not fitted on, another length of the year.
        ImportError
            xsdba is not installed.
        """
        require("bias", "The bias correction")
        time = self._check_days(da)
        data = self._cells(da)
        whole = da
        if da.chunks is not None or data.chunks:
            whole = in_columns(da if da.chunks is not None else da.chunk(), da.sizes["time"])
            blocks = {dim: whole.chunksizes[dim] for dim in ("lat", "lon")}
            data = data.chunk(blocks | {GROUP: -1, "quantiles": -1})
        names = [
            name for name in ("factors", "highest", "dry_observed", "dry_history", "wettest_added") if name in data
        ]
        core = [[GROUP, "quantiles"] if name == "factors" else [GROUP] for name in names]
        labels = labels_of(da["time"], self.options["group"])
        groups = [str(label) for label in data[GROUP].values]
        at = np.array([groups.index(label) for label in labels])
        out = xr.apply_ufunc(
            _correct, whole, data["cell"], *(data[name] for name in names),
            input_core_dims=[["time"], [], *core], output_core_dims=[["time"]], dask="parallelized",
            kwargs={
                "at": at, "keys": time, "options": dict(self.options), "name": str(da.name),
                "quantiles": np.asarray(data["quantiles"]),
            },
            output_dtypes=[da.dtype],
        )  # fmt: skip
        out = out.transpose(*da.dims).assign_attrs(da.attrs).rename(da.name)
        return out.chunk(dict(zip(da.dims, da.chunks, strict=True))) if da.chunks is not None else out

    def _check_days(self, da: xr.DataArray) -> np.ndarray:
        """The dates as whole numbers; ValueError if they cannot be corrected."""
        if "time" not in da.dims or not axes.is_time(da["time"].values):
            raise ValueError(
                "The input has no dates, and its bias is corrected by its quantiles over time. Needed: days with "
                "dates. Leave bias_correct out."
            )
        group, calendar = self.options["group"], str(da["time"].dt.calendar)
        if group == "time.dayofyear" and _year(calendar) != _year(self.options["calendar"]):
            raise ValueError(
                f"The correction was fitted by day of the year on the calendar {self.options['calendar']}, and the "
                f"input has {calendar}. Needed: years of the same length. Type group='time.month' to fit_correction."
            )
        missing = set(labels_of(da["time"], group)) - {str(label) for label in self.data[GROUP].values}
        if missing:
            raise ValueError(
                f"The input has days of the {group.partition('.')[2]} {', '.join(sorted(missing))}, on which the "
                "correction was not fitted. Needed: a history with such days, or one group. Type group='time' to "
                "fit_correction."
            )
        return day_keys(da["time"].values)

    def _cells(self, da: xr.DataArray) -> xr.Dataset:
        """The factors of the cells of ``da``, in its order, with a number for each cell."""
        at = {dim: align.cells_at(self.data[dim], da[dim], dim) for dim in ("lat", "lon")}
        if any((index < 0).any() for index in at.values()):
            grids = (
                " x ".join(f"{grid[d].size} ({float(grid[d].min()):.6g}..{float(grid[d].max()):.6g})" for d in at)
                for grid in (self.data, da)
            )
            there, here = grids
            raise ValueError(
                f"The correction lies on another grid, {there} cells in lat and lon, than the model's coarse one, "
                f"{here}. Needed: one fitted on observations on the model's coarse grid. Type "
                "fit_correction(history, observed) with xdeepsd.regrid(observed, coarse) on that grid."
            )
        number = np.arange(self.data.sizes["lat"])[:, None] * 2**20 + np.arange(self.data.sizes["lon"])
        data = self.data.assign(cell=(("lat", "lon"), number)).isel(at)
        return data.assign_coords(lat=da["lat"], lon=da["lon"])


def load_correction(path: str | os.PathLike[str]) -> Correction:
    """Read a correction written by `Correction.save`.

    Raises FileNotFoundError if there is none, and ValueError if the file is something else, changed or truncated, or
    comes from a newer version of xdeepsd.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> observed = climate["precipitation"].fillna(0)
    >>> history = (1.5 * observed).assign_attrs(observed.attrs)
    >>> xdeepsd.fit_correction(history, observed, group="time", nquantiles=20).save("correction.nc")
    >>> xdeepsd.load_correction("correction.nc").options["group"]
    'time'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Needed: a file that correction.save(path) wrote.")
    again = "Type xdeepsd.fit_correction(history, observed).save(path) to make one."
    if not is_correction(path):
        raise ValueError(f"{path} is not a correction of xdeepsd. {again}")
    try:
        with xr.open_dataset(path, engine="scipy", decode_times=False) as ds:
            data, attrs = ds.load(), ds.attrs
        found, options = int(attrs[_FORMAT]), str(attrs["options"])
    except Exception as error:  # libraries raise all kinds of errors on damaged bytes
        raise ValueError(f"{path} is truncated or changed ({error}). {again}") from error
    if found > FORMAT:
        raise ValueError(f"{path} has format {found}, written by a newer xdeepsd. Type pip install -U xdeepsd.")
    data = _native(data.drop_attrs(deep=False))
    if found < 1 or attrs.get(_DIGEST) != _content(data, options):
        raise ValueError(f"{path} is truncated or changed: its checksum does not match what it holds. {again}")
    return Correction(data, json.loads(options))


def is_correction(path: str | os.PathLike[str]) -> bool:
    """Whether the file ``path`` is a correction, by its attributes."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(2**16)
    except OSError:
        return False
    return head.startswith(b"CDF") and _FORMAT.encode() in head


def as_correction(given: Any) -> Correction:
    """The correction itself, or that of a path."""
    if isinstance(given, Correction):
        return given
    if isinstance(given, str | os.PathLike):
        return load_correction(given)
    raise TypeError(
        f"bias_correct is a {type(given).__name__}; needed: a Correction, or the path of one. Type "
        "bias_correct=xdeepsd.fit_correction(history, observed)."
    )


def in_columns(da: xr.DataArray, days: int) -> xr.DataArray:
    """Rechunk to all days of some cells, which a correction needs; an array in memory stays as it is."""
    if da.chunks is None:
        return da
    nlat, nlon = da.sizes["lat"], da.sizes["lon"]
    rows = max(1, min(nlat, _VALUES_IN_BLOCK // max(1, days * nlon)))
    sizes = {"time": -1, "lat": rows, "lon": -1}
    return da.chunk({dim: sizes.get(str(dim), 1) for dim in da.dims})


def _native(data: xr.Dataset) -> xr.Dataset:
    """Numbers in the byte order of this machine, and text of a fixed width, as they were before they were written."""
    for name, variable in data.variables.items():
        dtype = np.dtype(str) if variable.dtype.kind in "OSU" else variable.dtype.newbyteorder("=")
        data = data.assign_coords({name: data[name].astype(dtype)}) if name in data.coords else data.assign(
            {name: data[name].astype(dtype)})  # fmt: skip
    return data


def _content(data: xr.Dataset, options: str) -> str:
    return digest((options, sorted((str(name), v.dims, digest(v.values)) for name, v in data.variables.items())))


def _year(calendar: str) -> str:
    return calendar if calendar in ("360_day", "noleap", "365_day", "all_leap", "366_day") else "standard"


def labels_of(time: xr.DataArray, group: str) -> list[str]:
    """For each day the name of its group."""
    part = group.partition(".")[2]
    return [str(label) for label in getattr(time.dt, part).values] if part else ["all"] * time.size


# --- numbers ----------------------------------------------------------------------------------------------------------


def adapt_frequency(
    values: np.ndarray,
    uniform: np.ndarray,
    threshold: float,
    dry_observed: np.ndarray,
    dry_history: np.ndarray,
    wettest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Make dry days wet where the climate model has more of them than were observed (Themessl et al. 2012).

    Parameters
    ----------
    values
        ``(cell, day)`` of one group, mm day-1.
    uniform
        ``(cell, day)`` numbers from 0 to 1: which of the dry days, and how wet.
    threshold
        mm day-1 up to which a day is dry.
    dry_observed, dry_history
        ``(cell,)`` shares of dry days.
    wettest
        ``(cell,)`` mm day-1: values between ``threshold`` and this are added; NaN: nothing is.

    Returns
    -------
    The values, and where some were added. The share of dry days falls by the factor ``dry_observed / dry_history``.
    """
    dry = values <= threshold  # False for NaN
    order = np.lexsort((uniform, np.where(dry, values, np.inf)), axis=-1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(values.shape[-1]), order.shape), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = dry.sum(axis=-1) * np.where(wettest > threshold, dry_observed / dry_history, 1.0)
    added = dry & (place >= np.round(kept)[:, None])
    # The wetter of the days that were dry become the wetter of those that are added.
    first = np.round(kept)[:, None]
    within = (place - first + uniform) / np.maximum(dry.sum(axis=-1)[:, None] - first, 1)
    return np.where(added, threshold + (wettest[:, None] - threshold) * within, values).astype(values.dtype), added


def uniform_noise(keys: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """``(cell, day)`` numbers from 0 to 1 that depend on the date and the cell alone, not on chunks."""
    return np.asarray(ndtr(white_noise(0, 0, keys, cells, [0])[:, 0, :, 0].T.astype(np.float64)))


def _correct(
    values: np.ndarray,
    cells: np.ndarray,
    *fitted: np.ndarray,
    at: np.ndarray,
    keys: np.ndarray,
    options: Mapping[str, Any],
    name: str,
    quantiles: np.ndarray,
) -> np.ndarray:
    """Correct a block ``(..., lat, lon, time)``; ``cells`` and ``fitted`` (see `Correction`) have no other dims."""
    from xsdba.utils import apply_correction, interp_on_quantiles, rank

    out = values.copy()
    (nlat, nlon, days), tails = values.shape[-3:], 0
    factors, highest, *frequency = (a.reshape(nlat * nlon, *a.shape[2:]) for a in fitted)
    noise = uniform_noise(keys, cells.ravel()) if frequency else np.zeros(0)
    nodes = xr.DataArray(quantiles, dims="quantiles")
    for series in out.reshape(-1, nlat * nlon, days):
        for group in np.unique(at):
            when = np.flatnonzero(at == group)
            where = np.flatnonzero(np.isfinite(factors[:, group]).any(axis=-1) & _vary(series[:, when]))
            part, added = series[np.ix_(where, when)], np.zeros((where.size, when.size), bool)
            if frequency:
                shares = (a[where, group] for a in frequency)
                part, added = adapt_frequency(part, noise[np.ix_(where, when)], options["adapt_freq_thresh"], *shares)
            if not _vary(part).any():
                continue
            table = xr.DataArray(part, dims=("cell", "time"))
            of_cell = xr.DataArray(factors[where, group], dims=("cell", "quantiles"))
            with np.errstate(invalid="ignore", divide="ignore"):  # a cell with one factor
                factor = interp_on_quantiles(
                    rank(table, "time", pct=True), nodes, of_cell, group="time", method=options["interp"],
                    extrapolation="constant",
                )  # fmt: skip
            if options["kind"] == "*":  # what was made wet here is not multiplied up as well
                factor = factor.where(~(added & (factor > 1)), 1)
            new = apply_correction(table, factor, options["kind"]).transpose("cell", "time").values
            limit = options["max_tail_factor"]
            beyond = np.zeros_like(added) if limit is None else part > limit * highest[where, group, None]
            tails += int(beyond.sum())
            new = np.where(np.isfinite(new) & ~beyond, new, part)
            series[np.ix_(where, when)] = np.where(new < 0, 0, new)
    if tails:
        logger.info(
            "%d of %d values of %r lie more than %g times above the highest quantile of the history: not corrected.",
            tails, values.size, name, options["max_tail_factor"],
        )  # fmt: skip
    return out


def _vary(series: np.ndarray) -> np.ndarray:
    """``(cell,)`` whether any two values differ: only then do they have ranks."""
    return np.asarray(np.fmax.reduce(series, axis=-1) > np.fmin.reduce(series, axis=-1))
