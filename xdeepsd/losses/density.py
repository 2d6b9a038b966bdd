"""The density of values: a histogram summed over the chunks of any array, and its Gaussian KDE as in FFTKDE."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from scipy.optimize import brentq
from scipy.signal import fftconvolve

from xdeepsd.losses.histogram import Moments, linear_binning, moments
from xdeepsd.models.transform import Transform, invert


def _reach(bandwidth: float) -> float:
    """Half-width of the kernel, in the units of the values.

    FFTKDE cuts off its kernel where the density falls to 1e-4 (in absolute units), and its grid reaches as far beyond
    the data; the same root finder here gives the same grid and numbers. A cut-off in absolute units fails for very
    large or small bandwidths (above 4000 units FFTKDE raises), so it is kept between 3 and 8 bandwidths.
    """
    peak = 1.0 / (bandwidth * math.sqrt(2.0 * math.pi))

    def above(distance: float) -> float:
        return math.exp(-0.5 * (distance / bandwidth) ** 2) * peak - 1e-4

    if above(0.0) <= 0.0:
        return 3.0 * bandwidth
    if above(8.0 * bandwidth) >= 0.0:
        return 8.0 * bandwidth
    cut = brentq(above, 0.0, 8.0 * bandwidth, xtol=1e-3) + 1e-3
    return min(max(cut, 3.0 * bandwidth), 8.0 * bandwidth)


@dataclass(frozen=True, eq=False)
class Histogram:
    """What a fit keeps: a linearly binned histogram of the training values, and their moments.

    Of the ``n`` finite values, ``zeros`` are 0 and ``dry`` are below the wet threshold. The others (wet) have, after
    the transform, ``minimum``, ``maximum`` and the Gaussian ``bandwidth``, and ``counts`` (float64, adding up to
    ``n - dry``) on an even grid from ``start`` to ``stop``.
    """

    n: int
    zeros: int
    dry: int
    minimum: float
    maximum: float
    bandwidth: float
    start: float
    stop: float
    counts: np.ndarray

    def __post_init__(self) -> None:
        counts = np.array(self.counts, np.float64)
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)

    @property
    def step(self) -> float:
        """Distance between grid points."""
        return (self.stop - self.start) / (self.counts.size - 1)

    @cached_property
    def grid(self) -> np.ndarray:
        """Grid points, as transformed values."""
        return np.linspace(self.start, self.stop, self.counts.size)

    @cached_property
    def density(self) -> np.ndarray:
        """Gaussian KDE of the wet values on the grid, per unit of the transformed values."""
        reach = int(min(math.floor(_reach(self.bandwidth) / self.step), self.counts.size))
        distance = np.arange(-reach, reach + 1) * self.step / self.bandwidth
        kernel = np.exp(-0.5 * distance**2) / (self.bandwidth * math.sqrt(2.0 * math.pi))
        density = fftconvolve(self.counts / (self.n - self.dry), kernel, mode="same")
        return np.maximum(density, 0.0)  # rounding in the FFT may give values below 0

    @cached_property
    def scaled_density(self) -> np.ndarray:
        """``(p - min p) / (max p - min p)`` on the grid, in [0, 1]."""
        low, high = self.density.min(), self.density.max()
        return (self.density - low) / (high - low)


def checked_array(values: Any) -> np.ndarray | da.Array:
    """``values`` as a numpy or dask array; refuse anything but real numbers."""
    if isinstance(values, xr.Dataset):
        raise ValueError(
            f"DenseWeight got a Dataset with the variables {sorted(map(str, values.data_vars))}. "
            "Needed: one variable. Type ds['NAME']."
        )
    array = values.data if isinstance(values, xr.DataArray) else values
    if not isinstance(array, da.Array | np.ndarray):
        array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"DenseWeight got values of dtype {array.dtype}. Needed: real numbers. Type values.astype('float32')."
        )
    return array


def fit_histogram(
    values: Any,
    bandwidth: float | None,
    grid_points: int,
    wet_threshold: float | None,
    transform: Transform | None,
    scheduler: str | None,
) -> Histogram:
    """Bin ``values`` on a grid that extends beyond them by the reach of the kernel; two passes over a lazy array.

    Arguments, errors and warnings are those of `DenseWeight` and its ``fit``.
    """
    array = checked_array(values)
    threshold = -math.inf if wet_threshold is None else float(wet_threshold)
    found = moments(array, threshold, transform, scheduler=scheduler)
    _check_moments(found, wet_threshold, transform)
    bandwidth = _bandwidth(found, bandwidth, grid_points)
    outside = max(0.05 * (found.maximum - found.minimum), _reach(bandwidth))
    grid = np.linspace(found.minimum - outside, found.maximum + outside, grid_points)
    counts = linear_binning(array, grid, threshold, transform, scheduler=scheduler)
    if not math.isclose(counts.sum(), found.n, rel_tol=1e-9):
        raise ValueError(
            f"The first pass over the values counted {found.n}, the second {counts.sum():.0f}: they changed in "
            "between. Needed: values that do not change. Write them to a file first, or type values.persist()."
        )
    histogram = Histogram(
        n=found.finite, zeros=found.zeros, dry=found.finite - found.n, minimum=found.minimum, maximum=found.maximum,
        bandwidth=bandwidth, start=float(grid[0]), stop=float(grid[-1]), counts=counts,
    )  # fmt: skip
    if histogram.step > bandwidth:
        enough = math.ceil(1.01 * grid_points * histogram.step / bandwidth)
        warnings.warn(
            f"The grid of the density has a step of {histogram.step:.3g}, wider than the bandwidth "
            f"{bandwidth:.3g}: it is inaccurate. Type DenseWeight(grid_points={enough}), a wider bandwidth= or "
            "transform='log1p'.",
            stacklevel=3,
        )
    return histogram


def _check_moments(found: Moments, wet_threshold: float | None, transform: Transform | None) -> None:
    """Refuse values that have no density."""
    if found.infinite:
        raise ValueError(
            f"{found.infinite} values are infinite, {found.finite} finite. Needed: finite values, NaN where "
            "missing. Type values.where(np.isfinite(values)) for a DataArray, np.where(np.isfinite(values), values, "
            "np.nan) for an array."
        )
    if not found.finite:
        raise ValueError(
            "No value is finite: nothing to fit. Needed: values that are not NaN. Check the mask in "
            "values.where(mask), and that the period selected is not empty."
        )
    if not found.n:
        raise ValueError(
            f"All {found.finite} finite values are below wet_threshold={wet_threshold}. Needed: some at or "
            "above it. Type a lower wet_threshold in the units of the values, or wet_threshold=None."
        )
    if transform is not None and found.negative:
        raise ValueError(
            f"{found.negative} of {found.n} values are negative. Needed for transform={transform!r}: values "
            "of at least 0. Type values.clip(min=0), wet_threshold=0, or transform=None."
        )
    if found.minimum == found.maximum:
        which = "finite" if wet_threshold is None else "wet"
        value = invert(found.minimum, transform)
        raise ValueError(
            f"All {found.n} {which} values are {value:g}: one value has no density. Needed: values that differ. For "
            "equal weights type DenseWeight(alpha=0) and fit it on any data, or leave DenseLoss out."
        )


def _bandwidth(found: Moments, given: float | None, grid_points: int) -> float:
    """The given bandwidth, or else the one from the moments; ValueError if float64 cannot resolve it."""
    std = math.sqrt(found.squares / found.n)
    bandwidth = 1.06 * std * found.n**-0.2 if given is None else float(given)
    step = (found.maximum - found.minimum) / grid_points
    last_digit = math.ulp(max(abs(found.minimum), abs(found.maximum)))
    if not (bandwidth > 0 and math.isfinite(bandwidth + 1 / bandwidth + step) and step > last_digit):
        raise ValueError(
            f"The values lie between {found.minimum:g} and {found.maximum:g} with std {std:g}: float64 cannot "
            "resolve their density. Needed: values nearer to 1, and farther apart. Type values * factor with a "
            "power of ten, or values - offset if only their last digits differ."
        )
    return bandwidth
