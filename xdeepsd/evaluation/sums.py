"""The sums from which the errors of any group of days follow: of each day, or of each cell; one pass, chunk by chunk.

`scores` has most of the errors, but takes one pass over the fields for each of them and each group of days, keeps all
days in memory for the correlation, and computes contingency tables at once. Here each chunk is read once; the errors
are made of the sums, lazily, and the tests compare them with those of `scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dask.array
import numpy as np
import xarray as xr

# Weighted sums: of the weights, of both fields and their products, of the errors; then of the errors where it is wet.
NAMES = (
    "weight", "predicted", "observed", "predicted2", "observed2", "product", "error", "absolute", "squared",
    "wet_weight", "wet_error", "wet_absolute", "wet_squared", "count",
)  # fmt: skip
# Bins of both fields and of the smaller of the two, which holds the hits at every edge. The first bin is below 0.1 mm;
# then 64 for every doubling, by the leading bits of ten times the amount in float32, so that 0.1 mm, and whole
# millimetres such as 1, 10, 20 and 50, are edges.
BITS = 6
BINS = 1 + (14 << BITS)
# Perkins et al. (J. Climate 2007) compare distributions in bins of 1 mm.
MILLIMETRES = 500
WIDTH = len(NAMES) + 3 * BINS + 2 * MILLIMETRES
# Values at a time: enough to make numpy's overhead small, few enough for the copies in float64.
_AT_ONCE = 1 << 20


def bin_of(amount: np.ndarray) -> np.ndarray:
    """The bin of each amount (mm day-1), int32: 0 below 0.1 mm, the last one without an upper end.

    >>> int(bin_of(np.array(0.09999))), int(bin_of(np.array(0.1))), int(bin_of(np.array(0.2)))
    (0, 1, 65)
    """
    tenths = (np.asarray(amount) * 10).astype(np.float32)
    return np.clip((tenths.view(np.int32) >> (23 - BITS)) - (127 << BITS) + 1, 0, BINS - 1)


def lower_edges() -> np.ndarray:
    """Lower edges ``(bin,)`` of the bins, mm day-1; the first is 0."""
    bits = (np.arange(BINS - 1, dtype=np.int32) + (127 << BITS)) << (23 - BITS)
    return np.concatenate([[0.0], bits.view(np.float32).astype(np.float64) / 10])


def _of_days(predicted: np.ndarray, observed: np.ndarray, area: np.ndarray, wet: float) -> np.ndarray:
    """``(time, 1, 1, WIDTH)`` of a chunk ``(time, lat, lon)``."""
    days, cells = len(predicted), area.size
    step, weights = max(1, _AT_ONCE // cells), area.ravel()
    out = np.empty((days, WIDTH))
    for first in range(0, days, step):
        part = slice(first, first + step)
        out[part] = _of_few(predicted[part].reshape(-1, cells), observed[part].reshape(-1, cells), weights, wet)
    return out[:, None, None]


def _of_few(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray, wet: float) -> np.ndarray:
    """``(time, WIDTH)`` of ``(time, cell)``."""
    there = np.isfinite(predicted) & np.isfinite(observed)
    p, y = (np.where(there, field, 0.0).astype(np.float64) for field in (predicted, observed))
    w = weights * there
    error = p - y

    def total(*fields: np.ndarray) -> np.ndarray:
        return np.einsum(",".join(["tc"] * len(fields)) + "->t", *fields)

    wp, wy, we = w * p, w * y, w * error
    wa, rains = np.abs(we), np.where(there & (observed >= wet), 1.0, 0.0)
    sums = [
        total(w), total(wp), total(wy), total(wp, p), total(wy, y), total(wp, y), total(we), total(wa),
        total(we, error), total(w, rains), total(we, rains), total(wa, rains), total(we * rains, error), there.sum(-1),
    ]  # fmt: skip
    out = np.zeros((len(p), WIDTH))
    out[:, : len(NAMES)] = np.stack(sums, axis=-1)
    # Most cells are dry in both: their bin is what the others leave.
    of_p, of_y = bin_of(p), bin_of(y)
    day, cell = np.nonzero((of_p > 0) | (of_y > 0))
    weight, of_p, of_y = w[day, cell], of_p[day, cell], of_y[day, cell]
    at = len(NAMES)
    whole = [np.clip(field[day, cell], 0, MILLIMETRES - 1).astype(np.int32) for field in (p, y)]
    for which, size in ((of_p, BINS), (of_y, BINS), (np.minimum(of_p, of_y), BINS), *((v, MILLIMETRES) for v in whole)):
        found = np.bincount(day * size + which, weight, minlength=len(p) * size).reshape(-1, size)
        found = found.astype(np.float64)  # of nothing, numpy counts in integers
        found[:, 0] += sums[0] - found.sum(-1)
        out[:, at : at + size] = found
        at += size
    return out


def day_sums(predicted: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, wet: float) -> xr.DataArray:
    """``(time, sum)`` float64: the sums of `NAMES`, then the three histograms, then two in millimetres.

    Parameters
    ----------
    predicted, observed
        ``(time, lat, lon)``, mm day-1, on the same coordinates; NaN in either: does not count.
    area
        ``(lat, lon)``, the weight of each cell.
    wet
        From this observed amount on (mm day-1) a cell is wet.

    Returns
    -------
    Lazy if the input is; the chunks of ``observed`` are each read once.
    """
    out = _blockwise(_of_days, "tijk", {"k": WIDTH}, {"i": 1, "j": 1}, predicted, observed, [area], wet)
    return xr.DataArray(out.sum((1, 2)), {"time": observed["time"]}, ("time", "sum"))


def _of_regions(
    predicted: np.ndarray, observed: np.ndarray, area: np.ndarray, codes: np.ndarray, wet: float, count: int
) -> np.ndarray:
    """``(time, 1, 1, count, WIDTH)`` of a chunk ``(time, lat, lon)``."""
    out = np.zeros((len(predicted), 1, 1, count, WIDTH))
    for code in range(count):
        here = codes == code
        if here.any():
            part = _of_days(predicted[:, here][:, None], observed[:, here][:, None], area[here][None], wet)
            out[:, :, :, code] = part
    return out


def region_sums(
    predicted: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, codes: xr.DataArray, count: int, wet: float
) -> xr.DataArray:
    """``(time, region, sum)`` float64: those of `day_sums` over the cells of each region, whose number ``codes`` has.

    Parameters and laziness as in `day_sums`; each cell is looked at once.
    """
    new, shrunk = {"r": count, "k": WIDTH}, {"i": 1, "j": 1}
    out = _blockwise(_of_regions, "tijrk", new, shrunk, predicted, observed, [area, codes], wet, count)
    return xr.DataArray(out.sum((1, 2)), {"time": observed["time"]}, ("time", "region", "sum"))


def _of_cells(
    predicted: np.ndarray, observed: np.ndarray, area: np.ndarray, wet: float, edges: tuple[float, ...]
) -> np.ndarray:
    """``(1, lat, lon, len(NAMES) + 3 * len(edges))`` of a chunk ``(time, lat, lon)``; ``area`` does not count."""
    out = np.zeros((*area.shape, len(NAMES) + 3 * len(edges)))
    for p, y in zip(predicted, observed, strict=True):
        there = np.isfinite(p) & np.isfinite(y)
        p, y = (np.where(there, field, 0.0).astype(np.float64) for field in (p, y))
        error, rains = p - y, there & (y >= wet)
        fields = [there, p, y, p * p, y * y, p * y, error, np.abs(error), error * error, rains]
        fields += [rains * field for field in fields[6:9]] + [there]
        for edge in edges:
            above, observed_above = there & (p >= edge), there & (y >= edge)
            fields += [above, observed_above, above & observed_above]
        for k, field in enumerate(fields):
            out[..., k] += field
    return out[None]


def cell_sums(
    predicted: xr.DataArray, observed: xr.DataArray, area: xr.DataArray, wet: float, edges: tuple[float, ...]
) -> xr.DataArray:
    """``(lat, lon, sum)`` float64: those of `NAMES` over the days, then how often each is above each edge, and both.

    Parameters and laziness as in `day_sums`; each day counts the same.
    """
    width = len(NAMES) + 3 * len(edges)
    out = _blockwise(_of_cells, "tijk", {"k": width}, {"t": 1}, predicted, observed, [area], wet, edges)
    coords = {dim: observed[dim] for dim in ("lat", "lon")}
    return xr.DataArray(out.sum(0), coords, ("lat", "lon", "sum"))


def _blockwise(
    function: Callable[..., np.ndarray], dims: str, new: dict[str, int], shrunk: dict[str, int],
    predicted: xr.DataArray, observed: xr.DataArray, maps: Sequence[xr.DataArray], *options: object,
) -> np.ndarray | dask.array.Array:  # fmt: skip
    """``function`` of each chunk of ``(time, lat, lon)`` and of the maps; of the whole where nothing is lazy."""
    p, y = (da.transpose("time", "lat", "lon").data for da in (predicted, observed))
    flat = [da.transpose("lat", "lon").values for da in maps]
    if not any(isinstance(data, dask.array.Array) for data in (p, y)):
        return function(p, y, *flat, *options)
    pairs = [(dask.array.asarray(data), "tij") for data in (p, y)] + [(dask.array.asarray(m), "ij") for m in flat]
    return dask.array.blockwise(
        function, dims, *(x for pair in pairs for x in pair), *(x for option in options for x in (option, None)),
        new_axes=new, adjust_chunks=shrunk, dtype=np.float64, meta=np.empty((0,) * len(dims)), align_arrays=True,
    )  # fmt: skip
