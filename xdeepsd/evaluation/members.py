"""How good the members of an ensemble are: CRPS, rank histogram, spread against skill; reduced chunk by chunk."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import xarray as xr


def crps(
    members: xr.DataArray, observed: xr.DataArray, dim: str = "member", *, above: float | None = None
) -> xr.DataArray:
    """Fair continuous ranked probability score of each cell and day; of a single field it would be the absolute error.

    ``mean |x_i - y| - sum over pairs |x_i - x_j| / (m (m - 1))`` (Ferro, Q. J. R. Meteorol. Soc. 2014, equation 8): its
    mean does not depend on the number of members ``m``, so that ensembles of different size can be compared.

    Parameters
    ----------
    members
        ``(member, ...)`` with two members or more, such as `xdeepsd.downscale` gives.
    observed
        ``(...)`` on the same coordinates, in the same units. NaN where it or a member is NaN.
    dim
        Name of the members' dim.
    above
        In the units of the input: the tail-weighted score, which looks only at what lies above this; the CRPS of
        ``max(x, above)`` (Gneiting and Ranjan, J. Bus. Econ. Stat. 2011, with a weight of 1 above and 0 below).

    Returns
    -------
    Dims of ``observed``, float64, in its units; lazy if the input is (all members of a chunk are then in memory).
    ValueError where there are not two members, or the coordinates differ.

    >>> members = xr.DataArray([[1.0, 0.0], [4.0, 0.0]], dims=("member", "time"))
    >>> crps(members, xr.DataArray([0.0, 0.0], dims="time")).values
    array([1., 0.])
    """
    members, observed = _checked(members, observed, dim)
    if above is not None:
        members, observed = members.clip(min=above, keep_attrs=True), observed.clip(min=above, keep_attrs=True)

    def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = np.sort(x.astype(np.float64), axis=-1)
        m = x.shape[-1]
        # The sum of x_i - x_j over pairs: the k-th smallest is the larger one of k - 1 pairs, the smaller of m - k.
        pairs = (x * (2 * np.arange(1, m + 1) - m - 1)).sum(-1)
        return np.abs(x - y[..., None]).mean(-1) - pairs / (m * (m - 1))

    return _reduced(score, members, observed, dim)


def rank_histogram(members: xr.DataArray, observed: xr.DataArray, dim: str = "member") -> xr.DataArray:
    """How often each rank of the observation among the members occurs; flat if they are alike (Hamill, MWR 2001).

    Parameters as in `crps`; computes. Where the observation equals some members (dry days), its rank may be any of
    several, and each of them counts the same part.

    Returns
    -------
    ``(rank,)`` float64: counts for 0 (below all members) to m (above all). NaN is left out.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import xdeepsd
    >>> observed = xr.DataArray(np.random.default_rng(0).normal(size=500), dims="time")
    >>> members = xr.DataArray(np.random.default_rng(1).normal(size=(9, 500)), dims=("member", "time"))
    >>> ranks = xdeepsd.rank_histogram(members, observed)  # members and truth are drawn from the same
    >>> dict(ranks.sizes), float(ranks.sum())
    ({'rank': 10}, 500.0)
    """
    members, observed = _checked(members, observed, dim)
    count = members.sizes[dim]

    def ranks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        known = np.isfinite(y) & np.isfinite(x).all(-1)
        below, part = _below_and_equal(x[known], y[known]), np.zeros(count + 2)
        np.add.at(part, below[0], 1 / (below[1] + 1))
        np.add.at(part, below[0] + below[1] + 1, -1 / (below[1] + 1))
        return part.cumsum()[:-1]

    blocks = _blocks(ranks, members, observed, dim)
    return xr.DataArray(sum(dask.compute(*blocks)), {"rank": np.arange(count + 1)}, "rank", name="rank_histogram")


def rank_parts(members: xr.DataArray, observed: xr.DataArray, dim: str = "member") -> xr.DataArray:
    """``(..., rank)``: the part that each cell and day has in `rank_histogram`; 0 where anything is missing. Lazy."""
    members, observed = _checked(members, observed, dim)
    count = members.sizes[dim]

    def parts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        below, equal = (field[..., None] for field in _below_and_equal(x, y))
        known, rank = np.isfinite(y) & np.isfinite(x).all(-1), np.arange(count + 1)
        return np.where((rank >= below) & (rank <= below + equal), 1 / (equal + 1), 0.0) * known[..., None]

    return xr.apply_ufunc(
        parts, members, observed, input_core_dims=[[dim], []], output_core_dims=[["rank"]], dask="parallelized",
        output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": {"rank": count + 1}},
    ).assign_coords(rank=np.arange(count + 1))  # fmt: skip


def _below_and_equal(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the members ``(..., member)`` are less than the observation ``(...)``, and how many equal it."""
    return (x < y[..., None]).sum(-1), (x == y[..., None]).sum(-1)


def spread_skill(members: xr.DataArray, observed: xr.DataArray, dim: str = "member") -> dict[str, float]:
    """Spread of the members against the error of their mean; the ratio of a reliable ensemble is 1, below: too sure.

    Parameters as in `crps`; computes. All over the cells and days that are observed and that all members have.

    Returns
    -------
    ``spread``: root of the mean variance (``m - 1`` in the denominator) times ``sqrt(1 + 1 / m)``, for the error of the
    mean of few members is larger (Fortin et al., J. Hydrometeorol. 2014, equation 15); ``rmse`` of the mean; ``ratio``,
    spread over RMSE; ``crps``, the mean of `crps`; ``mae`` of the mean. In the units of the input, the ratio without.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import xdeepsd
    >>> observed = xr.DataArray(np.random.default_rng(0).normal(size=500), dims="time")
    >>> members = xr.DataArray(np.random.default_rng(1).normal(size=(9, 500)), dims=("member", "time"))
    >>> found = xdeepsd.spread_skill(members, observed)
    >>> 0.9 < found["ratio"] < 1.1
    True
    """
    members, observed = _checked(members, observed, dim)
    count = members.sizes[dim]
    mean = members.astype("float64").mean(dim, skipna=False)
    variance = members.astype("float64").var(dim, ddof=1, skipna=False).where(observed.notnull())
    error = mean - observed
    scores = {
        "spread": variance.mean(), "rmse": (error**2).mean(), "crps": crps(members, observed, dim).mean(),
        "mae": abs(error).mean(),
    }  # fmt: skip
    found = {name: float(value) for name, value in zip(scores, dask.compute(*scores.values()), strict=True)}
    found["spread"] = float(np.sqrt(found["spread"] * (1 + 1 / count)))
    found["rmse"] = float(np.sqrt(found["rmse"]))
    return found | {"ratio": found["spread"] / found["rmse"] if found["rmse"] else float("nan")}


def reliability(members: xr.DataArray, observed: xr.DataArray, threshold: float, dim: str = "member") -> xr.Dataset:
    """How often it rains as much as ``threshold`` when so many members have it; reliable if it is their share.

    Murphy and Winkler (J. R. Stat. Soc. C 1977).

    Parameters
    ----------
    members, observed, dim
        As in `crps`.
    threshold
        In the units of the input: an event is as much or more.

    Returns
    -------
    ``(probability,)``, lazy if the input is: ``observed_frequency`` (NaN where no cell had that probability) and
    ``count``, the cells and days that had it; ``probability`` is the share of the members, 0 to 1. Errors as in `crps`.

    Examples
    --------
    >>> import xarray as xr
    >>> import xdeepsd
    >>> members = xr.DataArray([[0.0, 2.0, 2.0], [2.0, 2.0, 2.0]], dims=("member", "time"))
    >>> found = xdeepsd.reliability(members, xr.DataArray([0.0, 3.0, 0.0], dims="time"), threshold=1)
    >>> found["probability"].values, found["observed_frequency"].values
    (array([0. , 0.5, 1. ]), array([nan, 0. , 0.5]))
    """
    members, observed = _checked(members, observed, dim)
    count = members.sizes[dim]
    known = observed.notnull() & members.notnull().all(dim)
    share, event = (members >= threshold).sum(dim), observed >= threshold
    number = xr.DataArray(np.arange(count + 1), dims="probability")
    had = [(share == k) & known for k in range(count + 1)]
    counts, events = (
        xr.concat([field.sum() for field in fields], "probability") for fields in (had, [h & event for h in had])
    )
    frequency = events / counts.where(counts > 0)
    found = xr.Dataset({"observed_frequency": frequency, "count": counts}).drop_vars(list(frequency.coords))
    return found.assign_coords(probability=number / count)


def _checked(members: xr.DataArray, observed: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Both with the members last and chunked alike; ValueError where they do not fit."""
    if members.sizes.get(dim, 0) < 2 or dim in observed.dims:
        raise ValueError(
            f"members has the dims {dict(members.sizes)}, observed {dict(observed.sizes)}. Needed: two or more along "
            f"{dim!r} in the former, none in the latter. Type ds.deepsd.downscale(model, members=10), or dim=NAME."
        )
    try:
        members, observed = xr.align(members, observed, join="exact")
    except ValueError as error:
        raise ValueError(
            f"The coordinates of the members are not those of the observed values: {error}. Needed: the same cells and "
            "days. If they differ only by rounding, type members.assign_coords(observed.coords)."
        ) from error
    if members.chunks is not None:
        members = members.chunk({dim: -1})
    return members.transpose(*observed.dims, dim), observed


def _reduced(score: Any, members: xr.DataArray, observed: xr.DataArray, dim: str) -> xr.DataArray:
    return xr.apply_ufunc(
        score, members, observed, input_core_dims=[[dim], []], dask="parallelized", output_dtypes=[np.float64]
    ).assign_attrs({k: v for k, v in observed.attrs.items() if k == "units"})


def _blocks(part: Any, members: xr.DataArray, observed: xr.DataArray, dim: str) -> list[Any]:
    """``part`` of each chunk, lazily; of the whole where nothing is lazy."""
    if members.chunks is None and observed.chunks is None:
        return [part(members.values, observed.values)]
    members = members.chunk() if members.chunks is None else members
    observed = observed.chunk(dict(zip(observed.dims, members.chunks[:-1], strict=True)))  # type: ignore[index]
    xs, ys = members.data.to_delayed().ravel(), observed.data.to_delayed().ravel()
    return [dask.delayed(part)(x, y) for x, y in zip(xs, ys, strict=True)]
