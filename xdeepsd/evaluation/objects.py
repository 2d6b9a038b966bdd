"""Whether the rain areas of a map have the right structure, amount and place: SAL; lazily, day by day.

`pysteps` has a SAL, whose objects are thunderstorms in radar images rather than the contours of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy import ndimage

from xdeepsd.evaluation.fields import alike
from xdeepsd.evaluation.space import plane
from xdeepsd.models.conserve import cell_weights

# Wernli et al. (Weather Forecast. 2009): a 15th of the 95th percentile of the wet cells.
PART, PERCENTILE, WET = 1 / 15, 0.95, 0.1


def sal(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
) -> xr.Dataset:
    """Structure, amplitude and location of the rain of each day (Wernli et al., Mon. Weather Rev. 2008, section 2).

    An object is a set of cells that touch along an edge, with at least a 15th of the 95th percentile of the cells with
    0.1 mm or more.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`, with whole maps in each chunk; missing cells, the same in all, are dry. Of members,
        the mean of their scores is taken.

    Returns
    -------
    ``(name, time)``, float64, lazy if the input is. ``structure`` (-2 to 2): above 0 objects are too large or too flat,
    below 0 too small or too peaked; ``amplitude`` (-2 to 2): above 0 too much rain over the region, weighted by area;
    ``location`` (0 to 2): distance of the centres of mass, and of the scatter about them. 0 is perfect. NaN on days
    without an object in both (of structure and amplitude) or in one (of location). Errors as in `xdeepsd.evaluate`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> found = xdeepsd.sal(truth, truth)
    >>> float(abs(found["structure"]).max()), float(abs(found["location"]).max())  # the truth is perfect
    (0.0, 0.0)
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    area = cell_weights(observed["lat"].values, observed.sizes["lon"])
    north, east = plane(observed["lat"].values, observed["lon"].values)
    y, x = np.meshgrid(north, east, indexing="ij")
    farthest = np.hypot(np.ptp(north), np.ptp(east))

    def features(maps: np.ndarray) -> np.ndarray:
        days = maps.reshape(-1, *maps.shape[-2:])
        out = (
            np.stack([_features(day.astype(np.float64), area, x, y) for day in days]) if len(days) else np.zeros((0, 5))
        )
        return out.reshape(*maps.shape[:-2], 5)

    def of(da: xr.DataArray) -> list[xr.DataArray]:
        found = xr.apply_ufunc(
            features, da, input_core_dims=[["lat", "lon"]], output_core_dims=[["feature"]], dask="parallelized",
            output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": {"feature": 5}},
        )  # fmt: skip
        return [found.isel(feature=k) for k in range(5)]

    known = of(observed)
    parts = []
    for da in fields.values():
        ours = of(da)
        away = ((ours[2] - known[2]) ** 2 + (ours[3] - known[3]) ** 2) ** 0.5 + 2 * abs(ours[4] - known[4])
        part = {
            "structure": _relative(ours[1], known[1]), "amplitude": _relative(ours[0], known[0]),
            "location": away / (farthest or np.nan),
        }  # fmt: skip
        parts.append(xr.Dataset({k: v.mean("member") if "member" in v.dims else v for k, v in part.items()}))
    found = xr.concat(parts, "name").assign_coords(name=list(fields))
    for name in found:
        found[name].attrs = {"long_name": f"{name} of SAL", "units": "1"}
    return found


def _relative(ours: xr.DataArray, theirs: xr.DataArray) -> xr.DataArray:
    mean = (ours + theirs) / 2
    return (ours - theirs) / mean.where(mean > 0)


def _features(rain: np.ndarray, area: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of one map: mean, volume of the scaled objects, centre of mass (x, y), and scatter of the objects about it."""
    known = np.isfinite(rain)
    if not known.any():
        return np.full(5, np.nan)
    rain = np.where(known, rain, 0.0)
    mass = rain * area
    mean = mass.sum() / area[known].sum()
    if not (rain >= WET).any():
        return np.array([mean, 0.0, np.nan, np.nan, np.nan])
    centre = (mass * x).sum() / mass.sum(), (mass * y).sum() / mass.sum()
    labels, count = ndimage.label(rain >= PART * np.quantile(rain[rain >= WET], PERCENTILE))
    total, sums = np.arange(1, count + 1), ndimage.sum_labels
    masses, highest = sums(mass, labels, total), ndimage.maximum(rain, labels, total)
    at = [sums(mass * part, labels, total) / masses for part in (x, y)]
    scatter = (masses * np.hypot(at[0] - centre[0], at[1] - centre[1])).sum() / masses.sum()
    volume = (masses * (masses / highest)).sum() / masses.sum()
    return np.array([mean, volume, *centre, scatter])
