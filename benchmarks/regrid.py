"""Applying conservative weights, 621 x 1405 to 39 x 88 cells: ours, scipy's CSR with the same matrix, xarray-regrid.

All run in one process, taking turns in each round; ours and CSR use one thread. Figures are ratios of medians of CPU
time. Peak memory is measured in a separate process. ``regrid_skipna_ratio`` is ours with the ocean missing against ours
without NaN. xarray-regrid needs some 250 MB per day, so it is compared on as many days as fit.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import dask
import numpy as np
import xarray as xr
from _report import figure, parser, peak, report
from scipy import sparse

from xdeepsd.grids.regrid import regrid, regrid_weights

SHAPE, FACTOR = (621, 1405), 16


def grids() -> tuple[xr.Dataset, xr.Dataset]:
    """PRISM's grid, and one with cells 16 times as large that covers it (39 x 88)."""
    lat, lon = 49.9166667 - np.arange(SHAPE[0]) / 24, -125 + np.arange(SHAPE[1]) / 24
    step = FACTOR / 24
    coarse = {
        "lat": lat[0] + 1 / 48 - step * (np.arange(-(-SHAPE[0] // FACTOR)) + 0.5),
        "lon": lon[0] - 1 / 48 + step * (np.arange(-(-SHAPE[1] // FACTOR)) + 0.5),
    }
    return xr.Dataset(coords={"lat": lat, "lon": lon}), xr.Dataset(coords=coarse)


def rain(days: int, ocean: bool, seed: int = 0) -> xr.DataArray:
    """Days of rain, three quarters dry; with ``ocean`` 45 % of the cells are NaN, in large pieces."""
    fine, _ = grids()
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.3, 8.0, (days, *SHAPE)).astype(np.float32) * (rng.random((days, *SHAPE)) < 0.25)
    if ocean:
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        values[:, np.sin(x / 130) + np.cos(y / 90) < -0.1] = np.nan
    return xr.DataArray(values.astype(np.float32), coords=fine.coords, dims=("time", "lat", "lon"))


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each function, called in turn; wall-clock time would include other load on the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def by_xarray_regrid(da: xr.DataArray, target: xr.Dataset) -> xr.DataArray:
    import xarray_regrid  # noqa: F401  (registers the accessor)

    out = da.regrid.conservative(target, latitude_coord="lat", skipna=True, nan_threshold=1.0).compute()
    return out.copy(data=out.data.todense()) if hasattr(out.data, "todense") else out


def peak_gib(kind: str, days: int) -> float:
    """Peak memory of a process above what it held before, GiB, sampled."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (kind, days))


def _peak(kind: str, days: int) -> float:
    _, target = grids()
    regrid(rain(1, True), target)  # imports and compilation
    da = rain(days, True)
    return peak(lambda: (regrid if kind == "xdeepsd" else by_xarray_regrid)(da, target))


def main() -> None:
    arguments = parser(__doc__).parse_args()
    days, few, rounds = (4, 1, 2) if arguments.quick else (120, 4, 9)
    fine, target = grids()
    start = time.perf_counter()
    weights = regrid_weights(fine, target)
    building = time.perf_counter() - start
    assert weights.lat is not None
    assert weights.lon is not None
    matrix = sparse.csr_array(sparse.kron(weights.lat, weights.lon, format="csr"))
    single = matrix.astype(np.float32)
    full, gaps = rain(days, False), rain(days, True)
    maps = full.values.reshape(days, -1)
    columns = np.ascontiguousarray(maps.T)  # the order that suits CSR best, not counted in its time

    # The same numbers first
    want = np.stack([matrix @ day for day in maps]).reshape(days, *weights.target.shape)
    got = regrid(full, target, weights=weights, skipna=False).values
    np.testing.assert_allclose(got[np.isfinite(got)], want[np.isfinite(got)], rtol=1e-5)
    ours, theirs = regrid(gaps[:1], target), by_xarray_regrid(gaps[:1], target).reindex_like(target)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)

    seconds = medians(
        {
            "xdeepsd": lambda: regrid(full, target, weights=weights, skipna=False),
            "csr": lambda: [single @ day for day in maps],
            "csr, float64": lambda: [matrix @ day for day in maps],
            "csr, all days at once": lambda: single @ columns,
            "xdeepsd, NaN": lambda: regrid(gaps, target, weights=weights),
        },
        rounds,
    )
    csr = min(seconds[name] for name in seconds if name.startswith("csr"))
    with dask.config.set(scheduler="synchronous"):
        pair = medians(
            {
                "xdeepsd": lambda: regrid(gaps[:few], target),
                "xarray-regrid": lambda: by_xarray_regrid(gaps[:few], target),
            },
            2,
        )
    figures = [
        figure("regrid_vs_csr", seconds["xdeepsd"] / csr, "ratio of times", 1.0, "lower"),
        figure("regrid_skipna_ratio", seconds["xdeepsd, NaN"] / seconds["xdeepsd"], "ratio of times", 2.0, "lower"),
        figure("regrid_skipna_vs_csr", seconds["xdeepsd, NaN"] / csr, "ratio of times", 2.0, "lower"),
        figure("regrid_vs_xarray_regrid", pair["xarray-regrid"] / pair["xdeepsd"], "times faster", 1.0, "higher"),
        figure("regrid_weights_seconds", building, "s", None, "lower"),
        figure("regrid_seconds_365_days", seconds["xdeepsd"] / days * 365, "s", None, "lower"),
        figure("regrid_peak_gib", peak_gib("xdeepsd", few), "GiB", None, "lower"),
        figure("xarray_regrid_peak_gib", peak_gib("xarray-regrid", few), "GiB", None, "lower"),
    ]
    notes = {
        "days": days,
        "days_against_xarray_regrid": few,
        "seconds": seconds,
        "seconds_few_days": pair,
        "weights": "ours and CSR apply weights made before (ours in whole calls of regrid, from xarray to xarray, CSR "
        "to bare arrays); the pair with xarray-regrid makes them each time",
    }
    packages = ("xdeepsd", "numpy", "scipy", "numba", "xarray", "xarray-regrid", "sparse", "opt-einsum", "dask")
    report(figures, arguments.json, packages, notes)


if __name__ == "__main__":
    main()
