"""The distribution of fine precipitation that a stack with a Bernoulli-gamma head gives, and what follows from it.

A cell is wet with some chance; wet amounts are gamma distributed (Williams, NIPS 10, 1998; Cannon, J. Hydrometeorol.
2008). All functions are lazy where the distribution is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import gammaincc, gammaincinv

from xdeepsd.inference.downscale import label, lay_out, provenance
from xdeepsd.models.bernoulli_gamma import PARAMETERS
from xdeepsd.models.stack import StackedSRCNN

if TYPE_CHECKING:
    import os

    import torch

    from xdeepsd.inference.correction import Correction

_LONG_NAMES = {
    "wet_chance": "chance of rain",
    "shape": "shape of the gamma distribution of wet amounts",
    "scale": "scale of the gamma distribution of wet amounts",
}


def distribution(
    ds: xr.Dataset | xr.DataArray,
    model: StackedSRCNN,
    static: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str | None = None,
    mask: xr.DataArray | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    conserve: str | None = None,
    units: str | None = None,
    day_ends: float | None = None,
    allow_partial: bool = False,
    bias_correct: Correction | str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """The distribution of each fine cell and day, from a stack whose last stage has a Bernoulli-gamma head.

    Such a stack is trained with ``TrainConfig(loss="bernoulli_gamma")``; `xdeepsd.downscale` gives its `expectation`.
    The stages before the last one pass on their expectations, so the spread is that of the last stage alone.

    Parameters
    ----------
    ds, model, static, variable, mask, device, precision, batch_size
        As in `xdeepsd.downscale`.
    conserve, units, day_ends, allow_partial, bias_correct
        As in `xdeepsd.downscale`. ``conserve`` keeps the mean of the expectations, by the scale; chance and shape stay.

    Returns
    -------
    A Dataset on the target grid, float32, with the user's names and order, lazy if the input is: ``wet_chance`` (0 to
    1), ``shape`` (dimensionless) and ``scale`` (units of ``ds``). Chance and scale are 0 where the expectation is kept
    at 0. NaN and chunks as in `xdeepsd.downscale`. Observed amounts below 0.1 mm day-1 counted as dry in training. The
    attribute ``coarse_cells`` (fine cells per coarse cell, lowest latitude and longitude) says that means are kept.

    Raises
    ------
    ValueError, TypeError
        As `xdeepsd.downscale`; a list of models; a model that takes noise, or whose last stage gives values.

    Examples
    --------
    >>> import xdeepsd
    >>> climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(60))
    >>> levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], factors=(2,))
    >>> small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 8, "stride": 4, "batch": 4, "steps": 2}
    >>> config = xdeepsd.TrainConfig(loss="bernoulli_gamma", **small)
    >>> model = xdeepsd.train_stack(levels, config, progress=False)
    >>> list(xdeepsd.distribution(levels[0]["precipitation"], model))
    ['wet_chance', 'shape', 'scale']
    """
    _check(model)
    made = lay_out(
        ds, model, static, variable, mask, device=device, precision=precision, batch_size=batch_size,
        conserve=conserve, units=units, day_ends=day_ends, allow_partial=allow_partial, bias_correct=bias_correct,
        distribution=True,
    )  # fmt: skip
    fields = {name: label(made.data[i], made.prepared) for i, name in enumerate(PARAMETERS)}
    given = fields["scale"]
    fields["wet_chance"] = fields["wet_chance"].where(given != 0, 0)  # a dry coarse cell whose mean is kept
    attrs: dict[str, Any] = {"variable": str(given.name or made.prepared.values.name)}
    attrs |= provenance(made, ds.attrs, "distribution")
    last = model.stages[-1].config
    if conserve or last.conserve:  # what `sample` needs to keep the means, too
        first = [float(given[name].min()) for name in (made.prepared.names.lat, made.prepared.names.lon)]
        attrs["coarse_cells"] = [last.factor, *first]
    for name, field in fields.items():
        units = given.attrs["units"] if name == "scale" else "1"
        fields[name] = field.rename(name).assign_attrs(units=units)
        fields[name].attrs = {"long_name": _LONG_NAMES[name], "units": units}
    return xr.Dataset(fields, attrs=attrs)


def _check(model: Any) -> None:
    """ValueError where a model gives members or values, not a distribution; what is no model is left to `lay_out`."""
    if isinstance(model, list | tuple):
        raise ValueError(
            f"model is a list of {len(model)}, and each model gives a distribution of its own. Needed: one model. Type "
            "xdeepsd.distribution(ds, models[0])."
        )
    if not isinstance(model, StackedSRCNN):
        return
    if model.stages[-1].config.head == "value":
        raise ValueError(
            "The last stage of the model gives values, not a distribution. Needed: a stack trained with "
            "TrainConfig(loss='bernoulli_gamma'). Type xdeepsd.downscale(ds, model) for values."
        )
    if model.noise:
        raise ValueError(
            "A stage of the model takes noise, and each noise gives another distribution. Needed: a stack without "
            "noise. Type xdeepsd.downscale(ds, model, members=10) for members."
        )


def expectation(distribution: xr.Dataset) -> xr.DataArray:
    """Mean of each cell, ``wet_chance * shape * scale``, in the units of ``scale``: what `xdeepsd.downscale` gives.

    Parameters
    ----------
    distribution
        From `xdeepsd.distribution`. Lazy if it is; NaN stays NaN.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> given = xr.Dataset({"wet_chance": 0.5, "shape": 1.0, "scale": 8.0})  # of one cell and day
    >>> float(xdeepsd.expectation(given))
    4.0
    """
    return _of(distribution, _expectation, distribution.attrs.get("variable", "expectation"), "expectation")


def chance_above(distribution: xr.Dataset, threshold: float | xr.DataArray) -> xr.DataArray:
    """Chance of more than ``threshold``, 0 to 1; above 0 it is the chance of rain.

    Parameters
    ----------
    distribution
        From `xdeepsd.distribution`. Lazy if it is; NaN stays NaN.
    threshold
        In the units of ``scale``, at least 0: a number, or a field that broadcasts, such as a map of 99th percentiles.

    Raises
    ------
    ValueError
        A threshold below 0, or NaN.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> given = xr.Dataset({"wet_chance": 0.5, "shape": 1.0, "scale": 8.0})  # of one cell and day
    >>> round(float(xdeepsd.chance_above(given, 8)), 4)  # 0.5 exp(-1)
    0.1839
    """
    if not isinstance(threshold, xr.DataArray) and not threshold >= 0:
        raise ValueError(
            f"threshold is {threshold}; needed: an amount of at least 0 in {distribution['scale'].attrs.get('units')}."
        )
    text = "the threshold" if isinstance(threshold, xr.DataArray) else f"{threshold:g}"
    return _of(distribution, _chance_above, "chance", f"chance of more than {text}", threshold, units="1")


def quantile(distribution: xr.Dataset, q: float | Sequence[float]) -> xr.DataArray:
    """Amount that is not exceeded with the probability ``q``, in the units of ``scale``; 0 where it stays dry as often.

    Parameters
    ----------
    distribution
        From `xdeepsd.distribution`. Lazy if it is; NaN stays NaN.
    q
        From 0 to below 1. A sequence adds a dim ``quantile`` at the end.

    Raises
    ------
    ValueError
        A ``q`` outside that range: the gamma distribution has no largest value.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> given = xr.Dataset({"wet_chance": 0.5, "shape": 1.0, "scale": 8.0})  # of one cell and day
    >>> xdeepsd.quantile(given, [0.25, 0.75]).values.round(4)  # it is dry half of the time; then 8 log(2)
    array([0.    , 5.5452])
    """
    levels = xr.DataArray(np.asarray(q, np.float64), dims="quantile" if np.ndim(q) else ())
    if not bool(((levels >= 0) & (levels < 1)).all()):
        raise ValueError(f"q is {q}; needed: probabilities from 0 to below 1, such as 0.99.")
    if levels.ndim:
        levels = levels.assign_coords(quantile=levels)
    name = distribution.attrs.get("variable", "quantile")
    found = _of(distribution, _quantile, name, "quantile", levels)
    return found if levels.ndim else found.assign_coords(quantile=float(levels))


def parameters_in(distribution: xr.Dataset) -> list[xr.DataArray]:
    """Chance, shape and scale; ValueError where the Dataset lacks one."""
    missing = [parameter for parameter in PARAMETERS if parameter not in distribution]
    if missing:
        raise ValueError(
            f"The Dataset has no {missing[0]!r}: it has {sorted(map(str, distribution.data_vars))}. Needed: a "
            "distribution. Type xdeepsd.distribution(ds, model)."
        )
    return [distribution[parameter] for parameter in PARAMETERS]


def _of(
    distribution: xr.Dataset, function: Any, name: str, long_name: str, *more: Any, units: str | None = None
) -> xr.DataArray:
    """``function`` of the three parameters and ``more``, in float64, in the dtype of the distribution."""
    parameters = parameters_in(distribution)
    dtype = parameters[0].dtype
    result = xr.apply_ufunc(
        function, *parameters, *more, dask="parallelized", output_dtypes=[dtype], kwargs={"dtype": dtype}
    )
    given = distribution["scale"].attrs.get("units", "")
    return result.rename(name).assign_attrs(long_name=long_name, units=given if units is None else units)


def _expectation(chance: np.ndarray, shape: np.ndarray, scale: np.ndarray, dtype: Any) -> np.ndarray:
    return (np.asarray(chance, np.float64) * shape * scale).astype(dtype)


def _chance_above(chance: np.ndarray, shape: np.ndarray, scale: np.ndarray, threshold: Any, dtype: Any) -> np.ndarray:
    chance, shape, scale = (np.asarray(part, np.float64) for part in (chance, shape, scale))
    above = chance * gammaincc(shape, threshold / np.where(scale > 0, scale, 1.0))
    return np.where(scale == 0, 0.0, np.where(np.isnan(scale), np.nan, above)).astype(dtype)


def _quantile(chance: np.ndarray, shape: np.ndarray, scale: np.ndarray, q: Any, dtype: Any) -> np.ndarray:
    chance, shape, scale = (np.asarray(part, np.float64) for part in (chance, shape, scale))
    wet = q > 1 - chance
    among_wet = np.where(wet, (q - (1 - chance)) / np.where(wet, chance, 1.0), 0.0)
    return np.where(np.isnan(chance), np.nan, scale * gammaincinv(shape, among_wet)).astype(dtype)
