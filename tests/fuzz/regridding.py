"""`regrid` on any grids: same as a dense float64 matrix, NaN where too little is observed, the user's labels."""

import numpy as np
import xarray as xr

import xdeepsd

from . import Wrong, chance, pick


def make_edges(rng, low, high, most):
    """Ascending edges in hundredths of a degree, so that rounding leaves no slivers."""
    return np.sort(rng.choice(np.arange(round(low * 100), round(high * 100) + 1), rng.integers(3, most), False)) / 100


def make_axes(rng):
    """Edges of source and target, ``(lat, lon)`` each, that overlap; the source may go round the earth."""
    south, north = np.sort(rng.uniform(-90, 90, 2))
    south, north = max(-90, south - 3), min(90, north + 3)
    west, width = rng.uniform(-180, 120), pick(rng, [rng.uniform(3, 60), 360.0])
    source = make_edges(rng, south, north, 9), west + make_edges(rng, 0, width, 9)
    if width == 360:  # centres less than half a turn apart
        middle = np.sort(np.round(west + 90 * np.arange(1, 4) + rng.uniform(-25, 25, 3), 2))
        source = source[0], np.concatenate([[west], middle, [west + 360]])
    inner = [rng.uniform(e[0], e[-1]) for e in source]
    reach = rng.uniform(1, 30, 4)
    target = (make_edges(rng, max(-90, inner[0] - reach[0]), min(90, inner[0] + reach[1]), 8),
              np.round(inner[1] + make_edges(rng, -reach[2], reach[3], 8), 2)
              + pick(rng, [0, 0, -360, 360]))  # fmt: skip
    return source, target


def dataset(edges):
    """A Dataset with only the grid, its bounds given as edges."""
    coords = {n: (n, (e[1:] + e[:-1]) / 2) for n, e in zip(("lat", "lon"), edges, strict=True)}
    return xr.Dataset(coords=coords | {f"{n}_b": (f"{n}_b", e) for n, e in zip(("lat", "lon"), edges, strict=True)})


def shares(source, target):
    """``(target, source)``: fraction of each target interval that lies in each source interval."""
    low, high = (np.asarray(e, np.longdouble) for e in (source[:-1], source[1:]))
    start, end = (np.asarray(e, np.longdouble)[:, None] for e in (target[:-1], target[1:]))
    return np.maximum(np.minimum(high, end) - np.maximum(low, start), 0) / (end - start)


def linear(source, target):
    """``(target, source)``: weights of linear interpolation between centres, nothing beyond them."""
    matrix = np.zeros((target.size, source.size))
    for i, x in enumerate(target):
        for k in range(source.size - 1):
            if source[k] <= x <= source[k + 1]:
                w = (x - source[k]) / (source[k + 1] - source[k])
                matrix[i] = 0
                matrix[i, k], matrix[i, k + 1] = 1 - w, w
    return matrix


def unit(lat, lon):
    lat, lon = np.deg2rad(np.meshgrid(lat, lon, indexing="ij"))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1).reshape(-1, 3)


def dense(source, target, method):
    """Weights ``(target cells, source cells)`` from ascending edges, one turn of longitude after the other."""
    (lat, lon), (to_lat, to_lon) = ([(e[1:] + e[:-1]) / 2 for e in edges] for edges in (source, target))
    turns = [360.0 * t for t in range(-3, 4)]
    if method == "nearest":
        matrix = np.zeros((to_lat.size * to_lon.size, lat.size * lon.size))
        matrix[np.arange(len(matrix)), (unit(to_lat, to_lon) @ unit(lat, lon).T).argmax(1)] = 1
        return matrix
    if method == "bilinear":
        rows = linear(lat, to_lat)
        if abs(source[1][-1] - source[1][0] - 360) < 1e-3:
            around = np.append(lon, lon[0] + 360)
            cols = [linear(around + t, to_lon) for t in turns]
            cols = [np.column_stack([c[:, 0] + c[:, -1], c[:, 1:-1]]) for c in cols]
        else:
            cols = [linear(lon + t, to_lon) for t in turns]
        seen = np.zeros(to_lon.size, bool)
        for c in cols:  # a target on the seam counts once
            c[seen] = 0
            seen |= c.any(1)
        return np.kron(rows, sum(cols))
    sines = [np.sin(np.deg2rad(np.asarray(e, np.longdouble))) for e in (source[0], target[0])]
    rows, cols = shares(*sines), sum(shares(source[1] + t, target[1]) for t in turns)
    if method == "conservative_normed":
        rows, cols = (
            np.divide(m, s, out=m * 0, where=s > 0) for m, s in ((m, m.sum(1, keepdims=True)) for m in (rows, cols))
        )
    return np.kron(rows, cols).astype(float)


def far(source, target):
    """Whether all target centres are more than two of the longest source steps from every source centre."""
    (lat, lon), goal = ([(e[1:] + e[:-1]) / 2 for e in edges] for edges in (source, target))
    centres = unit(lat, lon)
    grid = centres.reshape(lat.size, lon.size, 3)
    steps = [np.linalg.norm(np.diff(grid, axis=axis), axis=-1).max(initial=0.0) for axis in (0, 1)]
    apart = np.linalg.norm(unit(*goal)[:, None] - centres, axis=-1).min()
    return len(centres) > 1 and apart > 2 * max(steps) * (1 - 1e-9)


def case(seed, folder):
    """Rectilinear grids against a dense matrix; one case in six on a bent grid, where the values have bounds."""
    rng = np.random.default_rng(seed)
    source, target = make_axes(rng)
    method = pick(rng, ["conservative", "conservative", "conservative_normed", "bilinear", "nearest"])
    days, (nlat, nlon) = int(rng.integers(1, 4)), [e.size - 1 for e in source]
    values = rng.gamma(0.5, 10, (days, nlat, nlon)).astype(pick(rng, ["f4", "f8"]))
    values[rng.random(values.shape) < pick(rng, [0, 0.3])] = np.nan
    options = {"skipna": chance(rng, 0.7), "na_thres": float(pick(rng, [1.0, 0.0, rng.random()]))}
    if chance(rng, 1 / 6):
        return bent(rng, source, target, values, method)
    ds = dataset(source).assign(pr=(("time", "lat", "lon"), values, {"units": "mm"}), mine=((), 1))
    to = dataset(target)
    expected = dense(source, target, method)
    for dim in ("lat", "lon"):
        flip = {dim: slice(None, None, -1), f"{dim}_b": slice(None, None, -1)}
        ds = ds.isel(flip) if chance(rng, 0.5) else ds
        to = to.isel(flip) if chance(rng, 0.5) else to
    ds = ds.transpose(*rng.permutation(["time", "lat", "lon"]).tolist(), ...)
    if chance(rng, 0.4):
        ds = ds.chunk(time=1)
    if chance(rng, 0.2):
        ds = ds.rename(lat="y", lon="x", lat_b="y_b", lon_b="x_b")
    try:
        if chance(rng, 0.2):
            weights = folder / "weights.npz"
            xdeepsd.regrid_weights(ds, to, method).save(weights)
            out = xdeepsd.regrid(ds, weights=weights, method=method, **options)
        else:
            out = xdeepsd.regrid(ds, to, method, **options)
    except ValueError as error:
        if "do not overlap" in str(error) and (far(source, target) if method == "nearest" else not expected.any()):
            return
        raise
    known = ~np.isnan(values.reshape(days, -1).T)
    weight, total = expected @ known, expected @ np.where(known, values.reshape(days, -1).T.astype(float), 0)
    if options["skipna"]:
        least = np.clip(1 - options["na_thres"], 1e-6, 1 - 1e-6)
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = np.where(weight >= least, total / weight, np.nan)
        unsure = np.abs(weight - least) < 1e-9
    else:
        wanted = np.where((expected @ ~known > 0) | ~expected.any(1)[:, None], np.nan, total)
        unsure = np.zeros(wanted.shape, bool)
    names = ("y", "x") if "y" in out.dims else ("lat", "lon")
    found = out.pr.transpose("time", *names).sortby(list(names)).values.reshape(days, -1).T
    if out.pr.dtype != values.dtype or out.pr.attrs != {"units": "mm"} or "mine" not in out:
        raise Wrong(f"{values.dtype} became {out.pr.dtype}, attributes {out.pr.attrs}, variables {list(out)}")
    off = np.abs(found - wanted) > (1e-6 if values.dtype == "f4" else 1e-9) * np.nanmax(values, initial=1)
    bad = (off | (np.isnan(found) != np.isnan(wanted))) & ~unsure
    if bad.any():
        raise Wrong(f"{method} {options}: {bad.sum()} of {bad.size} cells, {found[bad][:3]} for {wanted[bad][:3]}")


def bent(rng, source, target, values, method):
    """From a curvilinear grid: results stay within the range of the input, and a constant stays the same."""
    lat, lon = np.meshgrid(*[(e[1:] + e[:-1]) / 2 * 0.8 for e in source], indexing="ij")
    if np.ptp(lon) > 170:
        lon *= 0.4
    shear = rng.uniform(-0.1, 0.1, 2)
    lat, lon = lat + shear[0] * (lon - lon.mean()) * (90 - np.abs(lat)) / 90, lon + shear[1] * (lat - lat.mean())
    coords = {"lat": (("j", "i"), lat), "lon": (("j", "i"), lon)}
    ds = xr.Dataset({"pr": (("time", "j", "i"), values), "one": (("j", "i"), np.full(lat.shape, 7.5))}, coords)
    to = dataset((target[0] * 0.8, np.linspace(lon.min(), lon.max(), target[1].size)))
    try:
        out = xdeepsd.regrid(ds, to, method)
    except ValueError as error:
        if "do not overlap" in str(error) or "Bilinear interpolation on" in str(error):
            return
        raise
    found, tiny = out.pr.values[~np.isnan(out.pr)], 1e-6 * np.nanmax(values, initial=1)
    if found.size and not (np.nanmin(values) - tiny <= found.min() and found.max() <= np.nanmax(values) + tiny):
        raise Wrong(f"bent {method}: values beyond the source's, {found.min()} to {found.max()}")
    one = out.one.values[~np.isnan(out.one)]
    if not np.allclose(one, 7.5, rtol=1e-9):
        raise Wrong(f"bent {method}: a constant 7.5 became {one.min()} to {one.max()}")
