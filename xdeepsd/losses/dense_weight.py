"""Weights that are high where values are rare: DenseWeight.

Steininger, Kobs, Davidson, Krause, Hotho: Density-based weighting for imbalanced regression, Machine Learning 110
(2021).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from scipy.optimize import brentq

from xdeepsd.losses.density import Histogram, checked_array, fit_histogram
from xdeepsd.losses.histogram import look_up
from xdeepsd.models import html
from xdeepsd.models.transform import Transform, check, invert


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """Weights from the rarity of a value (Steininger et al. 2021).

    ``w*(y) = max(1 - alpha * p'(y), eps)`` and ``w(y) = w*(y) / mean of w* over the training values``, where ``p'``
    is the density of the training values, scaled to [0, 1].

    Parameters
    ----------
    alpha
        0: all weights are 1. 1: the most frequent value gets eps. Above 1: so do all values with ``p' > 1 / alpha``.
    bandwidth
        Standard deviation of the Gaussian kernel, in units of the (transformed) values. None: for each fit,
        ``1.06 * std * n**(-1/5)``.
    grid_points
        Number of grid points at which the density is computed; between them it is interpolated linearly.
    eps
        The smallest weight, before the weights are divided by their mean.
    wet_threshold
        In the units of the values. The density is computed from the values at or above it; those below (dry) have
        ``w* = 1``. None: no value is treated as dry.
    transform
        "log1p" or "sqrt": the density is computed from the transformed values, so that rates of 5 and 100 mm differ.
        None: from the values themselves.
    weight_cap
        The largest weight, as a multiple of the mean weight of the training values; ``w*`` is cut accordingly. None:
        as it comes, ``1 / mean of w*`` at most.
    histogram
        Set by `fit`.

    Raises
    ------
    ValueError
        For parameters out of range.

    Examples
    --------
    >>> rain = np.array([0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 12.0])
    >>> dw = DenseWeight(alpha=0.5).fit(rain)
    >>> dw.weights(np.array([0.0, 12.0, np.nan])).round(2)
    array([0.89, 1.63, 0.  ])
    """

    alpha: float = 1.0
    bandwidth: float | None = None
    grid_points: int = 4096
    eps: float = 1e-6
    wet_threshold: float | None = None
    transform: Transform | None = None
    weight_cap: float | None = None
    histogram: Histogram | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha is {self.alpha}; needed: a number of at least 0, such as alpha=1.0.")
        if self.bandwidth is not None and not (self.bandwidth > 0 and math.isfinite(self.bandwidth)):
            raise ValueError(
                f"bandwidth is {self.bandwidth}; needed: a number above 0 in the units of the values, or "
                "bandwidth=None to compute it from them."
            )
        if int(self.grid_points) != self.grid_points or self.grid_points < 16:
            raise ValueError(
                f"grid_points is {self.grid_points}; needed: a whole number of at least 16, such as grid_points=4096."
            )
        if not 0 < self.eps < 1:
            raise ValueError(f"eps is {self.eps}; needed: a number between 0 and 1, such as eps=1e-6.")
        if self.wet_threshold is not None and not math.isfinite(self.wet_threshold):
            raise ValueError(
                f"wet_threshold is {self.wet_threshold}; needed: a finite number in the units of the values, such as "
                "wet_threshold=0.1, or None."
            )
        if self.weight_cap is not None and not self.weight_cap > 1:
            raise ValueError(
                f"weight_cap is {self.weight_cap}; needed: a number above 1, the largest weight over the mean weight, "
                "such as weight_cap=3, or None."
            )
        check(self.transform)

    @property
    def _threshold(self) -> float:
        return -math.inf if self.wet_threshold is None else float(self.wet_threshold)

    @property
    def _fitted(self) -> Histogram:
        if self.histogram is None:
            raise ValueError(
                "This DenseWeight has seen no data. Needed: training values. Type dw = dw.fit(values) first: fit "
                "returns a new object and leaves the old one as it was."
            )
        return self.histogram

    def fit(
        self, values: xr.DataArray | da.Array | np.ndarray | Iterable[float], *, scheduler: str | None = None
    ) -> DenseWeight:
        """Return a fitted DenseWeight with the same parameters; ``self`` is left as it was.

        Parameters
        ----------
        values
            Training values of any shape, float or integer, in the units of ``wet_threshold``. NaN (ocean, missing) is
            never counted. A lazy array is computed chunk by chunk, twice: once for count, mean, std and extremes,
            once for the histogram. At most one chunk per worker and the histogram are in memory; all sums are
            float64, whatever the dtype.
        scheduler
            Dask scheduler; None: the current one. Inside a task of a cluster: "synchronous" or "threads".

        Raises
        ------
        ValueError
            If no value is finite, all are equal or all are dry, any is infinite, or, with a transform, any wet value
            is negative.

        Warns
        -----
        UserWarning
            If more than half of the training values get ``eps``, or the grid is coarser than the bandwidth.
        """
        histogram = fit_histogram(
            values, self.bandwidth, int(self.grid_points), self.wet_threshold, self.transform, scheduler
        )
        fitted = replace(self, histogram=histogram)
        fitted._warn_of_eps()
        return fitted

    def with_alpha(self, alpha: float) -> DenseWeight:
        """Return the same fit with another alpha, without another pass over the data (the histogram is shared)."""
        changed = replace(self, alpha=alpha)
        if self.histogram is not None:
            changed._warn_of_eps()
        return changed

    def _warn_of_eps(self) -> None:
        share = self.eps_share
        if share > 0.5:
            warnings.warn(
                f"{share:.0%} of the training values get the least weight, eps={self.eps:g}, with alpha="
                f"{self.alpha:g}: they hardly count in the loss. Type a lower alpha, or wet_threshold=0.1 (in mm "
                "day-1) if most of them are dry.",
                stacklevel=3,
            )

    def density(self, values: Any) -> Any:
        """Probability density of the training values at ``values``, per unit of the *transformed* values.

        Same shape and dtype (float32 or float64) as ``values``, lazy if they are. NaN for NaN and for values below
        ``wet_threshold``. Beyond the grid, the density at its end.
        """
        return _on_blocks(self._of_grid("density"), values, {"long_name": "density of the training values"})

    def weights(self, values: Any) -> Any:
        """Weight of each value, with mean 1 over the training values; 0 for NaN.

        Same shape and dtype (float32 or float64) as ``values``, dimensionless, lazy if they are. ``values`` are in the
        units of the training values; those beyond the grid get the weight at its end. For ``alpha <= 1`` the mean over
        the training values is 1 up to rounding; above, it is only as accurate as the grid resolves where ``p'`` crosses
        ``1 / alpha``.
        """
        density, limits = self._of_grid("scaled_density", dry=0.0), (self.eps, self.top)
        function = partial(_block_weights, density=density, alpha=self.alpha, limits=limits, mean=self.mean)
        return _on_blocks(function, values, {"long_name": "DenseWeight", "units": "1"})

    def _of_grid(self, table: str, dry: float = math.nan) -> Callable[[np.ndarray], np.ndarray]:
        """`look_up` in a table of the histogram."""
        grid, values = self._fitted.grid, getattr(self._fitted, table)
        return partial(look_up, grid=grid, table=values, threshold=self._threshold, transform=self.transform, dry=dry)

    @cached_property
    def _uncapped(self) -> np.ndarray:
        return np.maximum(1.0 - self.alpha * self._fitted.scaled_density, self.eps)

    @cached_property
    def top(self) -> float:
        """The largest ``w*``: 1, or with ``weight_cap`` that multiple of the mean of what is left of ``w*``."""

        def over(top: float) -> float:
            return top - (self.weight_cap or math.inf) * self._mean_of(np.minimum(self._uncapped, top), top)

        return 1.0 if over(1.0) <= 0 else float(brentq(over, self.eps, 1.0, xtol=1e-14))

    @cached_property
    def _unscaled(self) -> np.ndarray:
        """``w*`` on the grid."""
        return np.minimum(self._uncapped, self.top)

    def _mean_of(self, on_grid: np.ndarray, dry: float) -> float:
        """Mean over the training values of a function linear between grid points (binning is the adjoint)."""
        counts, n_dry = self._fitted.counts, self._fitted.dry
        return float(((counts * on_grid).sum() + n_dry * dry) / (counts.sum() + n_dry))

    @cached_property
    def mean(self) -> float:
        """Mean of ``w*`` over the training values (`top` for dry ones), by which the weights are divided."""
        return self._mean_of(self._unscaled, self.top)

    @cached_property
    def eps_share(self) -> float:
        """Share of the training values that get the smallest weight."""
        at_eps = self._unscaled <= self.eps
        between = at_eps[1:] & at_eps[:-1]  # a value gets eps if both neighbouring grid points do
        return self._mean_of((np.append(between, False) + np.append(False, between).astype(np.float64)) / 2, 0.0)

    def summary(self) -> dict[str, Any]:
        """The results of the fit as plain numbers (JSON), for the log and to be saved with a model.

        ``n`` finite training values; ``zeros_share`` and ``dry_share`` of them; ``bandwidth`` and ``grid_step`` in
        units of the transformed values; ``eps_share``, the share of values with the smallest weight;
        ``effective_sample``, which is ``(sum w)**2 / (n * sum w**2)``; ``weights``: value (in its units, to within a
        grid step) and weight at each decile and at the maximum of the wet values; ``dry_weight`` if a threshold is set.
        """
        histogram = self._fitted
        wet = histogram.n - histogram.dry
        cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
        at = {}
        for tenth in range(1, 10):
            transformed = histogram.grid[min(int(np.searchsorted(cumulative, tenth / 10)), histogram.grid.size - 1)]
            transformed = min(max(float(transformed), histogram.minimum), histogram.maximum)
            if histogram.minimum == 0.0 and tenth / 10 <= histogram.zeros / wet:
                transformed = 0.0  # known exactly
            at[f"{tenth}0%"] = transformed
        at["maximum"] = histogram.maximum
        values = {name: float(invert(transformed, self.transform)) for name, transformed in at.items()}
        weights = self.weights(np.array(list(values.values())))
        summary = {
            "n": histogram.n,
            "zeros_share": histogram.zeros / histogram.n,
            "dry_share": histogram.dry / histogram.n,
            "bandwidth": histogram.bandwidth,
            "grid_step": histogram.step,
            "eps_share": self.eps_share,
            "effective_sample": self.mean**2 / self._mean_of(self._unscaled**2, self.top**2),
            "weights": {
                name: {"value": value, "weight": float(weight)}
                for (name, value), weight in zip(values.items(), weights, strict=True)
            },
        }
        if self.wet_threshold is not None:
            summary["dry_weight"] = self.top / self.mean
        return summary

    def _repr_html_(self) -> str:
        """The same as ``repr``, and of a fit its `summary` without the weights, as a table in a notebook."""
        fit = {} if self.histogram is None else self.summary()
        return html.settings(self, {f"fit: {name}": f"{value:.6g}" for name, value in fit.items() if name != "weights"})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, text and lists (JSON) from which `from_dict` restores the object."""
        content = {name: getattr(self, name) for name in _PARAMETERS}
        histogram = None
        if self.histogram is not None:
            histogram = asdict(self.histogram) | {"counts": self.histogram.counts.tolist()}
        return content | {"histogram": histogram}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DenseWeight:
        """The inverse of `to_dict`. Raises ValueError where keys are missing or unknown."""
        wanted = {*_PARAMETERS, "histogram"}
        if {*content, "weight_cap"} != wanted:  # older versions had no cap
            raise ValueError(
                f"Cannot read a DenseWeight from the keys {sorted(content)}; needed: {sorted(wanted)}, as "
                "dw.to_dict() writes them."
            )
        histogram = content["histogram"]
        return cls(**{**content, "histogram": None if histogram is None else Histogram(**histogram)})


_PARAMETERS = ("alpha", "bandwidth", "grid_points", "eps", "wet_threshold", "transform", "weight_cap")


def _block_weights(
    block: np.ndarray,
    density: Callable[[np.ndarray], np.ndarray],
    alpha: float,
    limits: tuple[float, float],
    mean: float,
) -> np.ndarray:
    weights = density(block)  # a new array: the rest is done in place
    weights *= -alpha
    weights += 1.0
    np.clip(weights, *limits, out=weights)
    weights /= mean
    return np.nan_to_num(weights, copy=False, nan=0.0)


def _as_dtype(block: np.ndarray, function: Callable[[np.ndarray], np.ndarray], to: np.dtype) -> np.ndarray:
    return function(block).astype(to, copy=False)


def _on_blocks(function: Callable[[np.ndarray], np.ndarray], values: Any, attrs: dict[str, str]) -> Any:
    """``function`` of each block of numpy, dask or xarray values; float32 for floats of up to 32 bits, else float64."""
    array = checked_array(values)
    dtype = np.dtype(np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64)
    result: Any
    if isinstance(array, da.Array):
        meta = np.empty((0,) * array.ndim, dtype)
        result = da.map_blocks(_as_dtype, array, function=function, to=dtype, dtype=dtype, meta=meta)
    else:
        result = _as_dtype(array, function, dtype)
    if isinstance(values, xr.DataArray):
        return xr.DataArray(result, coords=values.coords, dims=values.dims, name=values.name, attrs=attrs)
    return result
