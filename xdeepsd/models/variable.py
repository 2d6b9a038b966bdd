"""Everything specific to precipitation: how it is found, its units, which of its values are valid.

Defined once for `downscale`, the resolution ladder and training; other modules deal with fields and values in general.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids import axes
from xdeepsd.grids.days import period
from xdeepsd.grids.units import is_amount, precipitation_factor
from xdeepsd.models.transform import TRANSFORMS, Transform

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variable:
    """The properties of a daily variable. A model stores those of the variable it was trained on.

    Parameters
    ----------
    name
        Our name for it, in levels, model.json and messages.
    units
        Units of levels, and of models unless they say otherwise.
    standard_names, names
        CF standard names and common variable names by which it is found, in lower case.
    parts
        Regular expression that matches the standard names of its components (convective precipitation, say).
    lowest
        In ``units``. The variable is at least 0: values between this and 0 are rounding errors and count as 0, lower
        values are refused.
    transforms
        Transforms that its networks may work with, see `xdeepsd.models.transform`.
    conserved
        Whether a coarse value is the mean of the fine values inside it, so that it can be kept.
    """

    name: str
    units: str
    standard_names: frozenset[str]
    names: frozenset[str]
    parts: str
    lowest: float
    transforms: tuple[Transform | None, ...]
    conserved: bool


PRECIPITATION = Variable(
    "precipitation",
    "mm day-1",
    frozenset(
        {
            "precipitation_flux",
            "precipitation_amount",
            "lwe_precipitation_rate",
            "lwe_thickness_of_precipitation_amount",
            "rainfall_flux",
            "rainfall_rate",
            "thickness_of_rainfall_amount",
        }
    ),
    frozenset({"precipitation", "precip", "pr", "ppt", "prcp", "prec", "tp", "pre", "rain", "rainfall"}),
    parts="precipitation|rain",
    lowest=-0.1,  # the least a rain gauge can detect; errors of rounding and packing are far smaller
    transforms=TRANSFORMS,
    conserved=True,
)
VARIABLES = {variable.name: variable for variable in (PRECIPITATION,)}

# Numbers that stand for missing in files that do not say so: what no precipitation reaches in any units (1e20,
# -3.4e38, 9.97e36 ...), and the commonest of the others.
HUGE = 1e15
UNDECLARED_FILL = -9999.0

# Attributes with the values that stand for missing.
FILL_ATTRIBUTES = ("_FillValue", "missing_value")


def _meaning(da: xr.DataArray, trained_on: str | None, kind: Variable) -> bool | None:
    """True if the metadata say that it is of this ``kind``, False if something else, None if they do not say."""
    standard_name = str(da.attrs.get("standard_name", "")).strip().lower().replace(" ", "_")
    if standard_name in kind.standard_names | kind.names:
        return True
    # CF standard names are words joined by underscores; some files have "pr", "Rain rate" and the like instead.
    if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", standard_name) and " " not in str(da.attrs["standard_name"]):
        return False
    known = str(da.name).lower() in kind.names or (trained_on is not None and da.name == trained_on)
    return True if known else None


def _named_something_else(da: xr.DataArray, kind: Variable) -> bool:
    """True if the standard name is a CF name of anything but the ``kind`` or a component of it (convective, say)."""
    return _meaning(da, None, kind) is False and not re.search(kind.parts, str(da.attrs["standard_name"]))


def _has_units(da: xr.DataArray) -> bool:
    try:
        precipitation_factor(da.attrs.get("units"))
    except ValueError:
        return False
    return True


def find_variable(
    ds: xr.Dataset | xr.DataArray,
    variable: str | None = None,
    trained_on: str | None = None,
    wanted: str = "daily precipitation",
    kind: Variable = PRECIPITATION,
) -> xr.DataArray:
    """The field of this ``kind`` in ``ds``; reads metadata only.

    Parameters
    ----------
    ds
        A Dataset, or the DataArray itself.
    variable
        Its name. Accepted unless its standard name is a CF name of something else.
    trained_on
        Name of the variable that a model was trained on: preferred where several could be meant.
    wanted
        Description of what is needed, for messages.
    kind
        The kind of variable to look for.

    Returns
    -------
    The variable named; otherwise the one identified by its standard name or name; otherwise the only map there is, and
    the log says so.

    Raises
    ------
    ValueError
        If none or several could be meant, or if ``variable`` does not exist or is something else.
    """
    candidates = _candidates(ds, variable)
    if variable is not None or isinstance(ds, xr.DataArray):
        found = {name: da for name, da in candidates.items() if not _named_something_else(da, kind)}
    else:
        found = {name: da for name, da in candidates.items() if _meaning(da, trained_on, kind)}
        if not found:
            found = _only_map(
                ds, {name: da for name, da in candidates.items() if _meaning(da, trained_on, kind) is None}, kind
            )
        if len(found) > 1 and trained_on in found:
            found = {trained_on: found[trained_on]}
    if not found:
        described = {name: da.attrs.get("standard_name") for name, da in candidates.items()}
        by_name = variable is None and not all(_named_something_else(da, kind) for da in candidates.values())
        other = "Type variable=NAME for precipitation under another name. " if by_name else ""
        raise ValueError(
            f"No precipitation among the variables (with their standard names) {described}. Needed: {wanted}. {other}"
            "If the standard name is wrong, type ds['NAME'].attrs['standard_name'] = 'precipitation_flux'."
        )
    if len(found) > 1:
        names = sorted(map(str, found))
        raise ValueError(f"Several candidates for precipitation: {names}. Needed: {wanted}. Type variable=NAME.")
    return next(iter(found.values()))


def _only_map(ds: xr.Dataset, silent: dict[Hashable, xr.DataArray], kind: Variable) -> dict[Hashable, xr.DataArray]:
    """Of variables whose metadata leave it open: those on latitude, longitude and time, best in suitable units."""
    try:
        dims = set(axes.map_dims(ds))
    except ValueError:  # the code that needs the coordinates reports what is wrong with them
        return silent
    time = axes.find_time(ds)
    maps = {name: da for name, da in silent.items() if dims <= set(da.dims)}
    maps = {name: da for name, da in maps.items() if time in da.dims} or maps
    if len(maps) > 1:
        maps = {name: da for name, da in maps.items() if _has_units(da)} or maps
    if len(maps) == 1:
        logger.info("%r is taken as %s: it is the only map.", next(iter(maps)), kind.name)
    return maps


def _candidates(ds: xr.Dataset | xr.DataArray, variable: str | None) -> dict[Hashable, xr.DataArray]:
    """Variables that could be meant, by name: the one named, or all maps."""
    if isinstance(ds, xr.DataArray):
        if variable is not None and variable != ds.name:
            raise ValueError(
                f"There is no variable={variable!r}: the DataArray is named {ds.name!r}. "
                f"Leave variable out, or type da.rename({variable!r})."
            )
        return {ds.name: ds}
    if variable is None:
        return {name: da for name, da in ds.data_vars.items() if da.ndim >= 2}
    if variable not in ds.data_vars:
        raise ValueError(
            f"There is no variable={variable!r}. The Dataset has {sorted(map(str, ds.data_vars))}. "
            "Type variable=NAME with one of them."
        )
    return {variable: ds[variable]}


# --- units ------------------------------------------------------------------------------------------------------------


def rate_factor(
    da: xr.DataArray, units: str = PRECIPITATION.units, ds: xr.Dataset | xr.DataArray | None = None
) -> float:
    """Factor that converts ``da`` to ``units``. Amounts (``mm``) must be daily.

    Parameters
    ----------
    da
        Precipitation after `axes.standardize`.
    units
        Units to convert to; an amount means a daily amount.
    ds
        Where ``da`` comes from: its time bounds or its ``frequency`` give the period if there is only one step.

    Raises
    ------
    ValueError
        If the units are missing or not for precipitation, or an amount is not for one day or its period is unknown.
    """
    given = da.attrs.get("units")
    factor = precipitation_factor(given, units)
    if not is_amount(str(given)):
        return factor
    days = period(da, ds).days
    if days is None:
        raise ValueError(
            f"The units {given!r} are an amount, and its period is unknown: there are fewer than two time steps. "
            "Needed: two days or more, or a rate. Type ds['NAME'].attrs['units'] = 'mm day-1' if it is the amount of "
            "a day, or units='mm day-1' to downscale."
        )
    if not math.isclose(days, 1.0, rel_tol=1e-6):
        raise ValueError(
            f"The units {given!r} are an amount, and the time steps are {days:g} days. Needed: daily data, or "
            "a rate. Type ds.resample(time='1D').sum() for steps shorter than a day; else ds['NAME'] / days with units "
            "'mm day-1'."
        )
    return factor


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """What the numbers of a field mean.

    Parameters
    ----------
    name
        Name of the variable, for messages.
    factor
        Number that converts them to the units wanted.
    lowest
        In their own units: values from here to 0 are rounding errors and count as 0.
    fills
        Numbers that stand for missing according to the attributes.
    lenient
        Whether numbers that cannot be rain and are not declared count as missing (`HUGE`, `UNDECLARED_FILL`). Not in
        training, whose levels are our own: there they are an error.
    """

    name: str = "precipitation"
    factor: float = 1.0
    lowest: float = -math.inf
    fills: tuple[float, ...] = ()
    lenient: bool = field(default=False, repr=False)  # not in the names of tasks

    @classmethod
    def of(
        cls,
        da: xr.DataArray,
        units: str = PRECIPITATION.units,
        ds: xr.Dataset | xr.DataArray | None = None,
        kind: Variable = PRECIPITATION,
    ) -> Values:
        """`Values` of ``da``, to be converted to ``units``; arguments and errors as in `rate_factor`. Reads no data."""
        factor = rate_factor(da, units, ds)
        lowest = kind.lowest / precipitation_factor(da.attrs["units"], kind.units)
        return cls(str(da.name), factor, lowest, fill_values(da))

    def clean(self, values: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Precipitation fit for a network: at least 0, NaN where missing; still in its own units.

        Returns ``values`` itself if there is nothing to do. Raises ValueError for values below `lowest`.
        """
        with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and so missing
            values = np.ascontiguousarray(values, dtype)
        if not values.size:
            return values
        low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)  # these ignore NaN
        if (
            low >= 0
            and high < (HUGE if self.lenient else np.inf)
            and not any(low <= fill <= high for fill in self.fills)
        ):
            return values
        values = values.copy()
        for fill in self.fills:
            values[values == values.dtype.type(fill)] = np.nan
        infinite = np.isinf(values)
        if infinite.any():
            count = int(infinite.sum())
            logger.warning("%d of %d values of %r are infinite and count as missing.", count, values.size, self.name)
            values[infinite] = np.nan
        undeclared = (np.abs(values) >= HUGE) | (values == UNDECLARED_FILL) if self.lenient else infinite & False
        if undeclared.any():
            found = ", ".join(f"{number:g}" for number in np.unique(values[undeclared])[:3])
            logger.warning(
                "%d of %d values of %r are %s: taken as missing, though the file does not declare it.",
                int(undeclared.sum()), values.size, self.name, found,
            )  # fmt: skip
            values[undeclared] = np.nan
        too_low = values < self.lowest
        if too_low.any():
            raise ValueError(
                f"{self.name!r} has values down to {np.nanmin(values):g}: {too_low.mean():.2g} of them are below "
                f"{self.lowest:.3g}. Needed: precipitation of at least 0, NaN where it is missing. Type "
                "ds.where(ds['NAME'] != VALUE) if VALUE stands for missing; else ds.clip(min=0)."
            )
        below = values < 0
        if below.any():
            logger.info(
                "%d of %d values of %r are below 0 by rounding: taken as 0.", below.sum(), values.size, self.name
            )
            values[below] = 0
        return values


def fill_values(da: xr.DataArray) -> tuple[float, ...]:
    """Numbers that stand for missing according to the attributes or the encoding of ``da``."""
    named = [a[key] for a in (da.attrs, da.encoding) for key in FILL_ATTRIBUTES if key in a]
    numbers = [np.asarray(value).ravel() for value in named]
    return tuple({float(n) for array in numbers if array.dtype.kind in "fiu" for n in array if np.isfinite(n)})


def without_fills(da: xr.DataArray) -> xr.DataArray:
    """Replace the numbers in a map that stand for missing, by its attributes, with NaN. Lazy if the map is."""
    for fill in fill_values(da) if da.dtype.kind == "f" else ():
        da = da.where(da != da.dtype.type(fill))
    return da


def clean(da: xr.DataArray, values: Values) -> xr.DataArray:
    """`Values.clean` for a DataArray; lazy if it is."""
    if da.chunks is None:
        return da.copy(data=values.clean(da.values))
    data = da.data.map_blocks(values.clean, dtype=da.dtype, meta=np.empty((0,) * da.ndim, da.dtype))
    return da.copy(data=data)
