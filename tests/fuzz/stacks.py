"""Any stack on any input: same as a slow float64 forward, NaN where nothing is known, the user's labels."""

import dask
import numpy as np
import oracle
import torch
import xarray as xr

import xdeepsd

from . import Wrong, chance, pick

# Relative to the heaviest rain (at least 1 mm day-1). A float32 sum of n products is off by about sqrt(n) * 6e-8 of the
# terms; a layer here adds up to 973 of them, and the error of a stage goes through the next ones: about 1e-6 was seen.
BOUND = 1e-5
MM_DAY = {
    "mm day-1": 1, "mm/day": 1, "mm d-1": 1, "mm h-1": 24, "mm s-1": 86400, "m s-1": 86400e3, "m day-1": 1000,
    "inch day-1": 25.4, "kg m-2 s-1": 86400, "kg m-2 day-1": 1, "mm": 1, "inch": 25.4, "m": 1000, "kg m-2": 1,
}  # fmt: skip
AMOUNTS = ("mm", "inch", "m", "kg m-2")
MISSING = -9999.0


def make_model(rng):
    """A stack of up to three stages; activations stay near 1 in size, so that the bound is meaningful."""
    while True:
        factors = rng.integers(1, 5, rng.integers(1, 4))
        if factors.prod() <= 12:
            break
    fields = ["elevation", "climatology", "slope"][: rng.integers(4)]
    units = pick(rng, ["mm day-1", "mm day-1", "kg m-2 s-1", "inch day-1"])
    size = 1 / MM_DAY[units]  # of 1 mm day-1
    stages = []
    for factor in factors:
        hidden = rng.integers(1, 13, rng.integers(3))
        config = xdeepsd.SRCNNConfig(
            channels=tuple(int(n) for n in hidden),
            kernels=tuple(int(k) for k in rng.choice([1, 3, 5, 7, 9], len(hidden) + 1, p=[0.2, 0.3, 0.2, 0.15, 0.15])),
            factor=int(factor),
            static=tuple(rng.permutation([name for name in fields if chance(rng, 0.7)]).tolist()),
            residual=chance(rng, 0.5),
        )
        net = xdeepsd.SRCNN(config)
        gain = rng.uniform(1, 2.5)
        with torch.no_grad():
            for p in net.parameters():
                bound = gain / np.sqrt(p[0].numel() if p.ndim > 1 else 4)
                p.copy_(torch.from_numpy(rng.uniform(-bound, bound, p.shape)))
        transform = pick(rng, [None, "sqrt", "log1p"])
        mean, std = {None: (3 * size, 6 * size), "sqrt": (1.2 * size**0.5, 1.5 * size**0.5),
                     "log1p": (float(np.log1p(3 * size)), float(np.log1p(6 * size)))}[transform]  # fmt: skip
        normalizer = xdeepsd.Normalizer(mean * rng.uniform(0.5, 1.5), std * rng.uniform(0.7, 1.5))
        target = xdeepsd.Normalizer(0.1 * mean if config.residual else mean, (0.3 if config.residual else 0.8) * std)
        static = {"elevation": (800, 600), "climatology": (0.1, 0.4), "slope": (0, 1)}
        static = {name: xdeepsd.Normalizer(*static[name]) for name in config.static}
        stages.append(xdeepsd.Stage(net, normalizer, static, target, transform))
    return xdeepsd.StackedSRCNN(stages, units=units, variable=pick(rng, [None, "pr", "precipitation"]))


def shape_for(rng, model):
    """Coarse rows and columns whose forward in Python loops takes a fraction of a second."""
    scale, least = model.scale, 2 if model.scale == 1 else 1
    while True:
        nlat, nlon = rng.integers(least, 9, 2)
        work, at = 0.0, 1
        for stage in model.stages:
            config, at = stage.config, at * stage.config.factor
            widths = (1 + len(config.static), *config.channels, 1)
            pairs = zip(widths, widths[1:], config.kernels, strict=False)
            work += nlat * nlon * at**2 * sum(a * b * k**2 for a, b, k in pairs)
        if nlat * nlon * scale**2 <= 1200 and work <= 1e7:
            return int(nlat), int(nlon)
        if nlat * nlon == least**2:
            return least, least


def centres(rng, nlat, nlon, scale):
    """Fine and coarse centres of a random regular grid: {"lat": (fine, coarse), "lon": ...}, both in one order."""
    step = pick(rng, [0.25, 1.0, 1 / 3, 2.5])
    south, west = rng.uniform(-80, 80 - nlat * step), rng.uniform(-179, 178 - nlon * step)
    both = {}
    for dim, first, n in (("lat", south, nlat), ("lon", west, nlon)):
        coarse, fine = first + step * (np.arange(n) + 0.5), first + step / scale * (np.arange(n * scale) + 0.5)
        both[dim] = (fine[::-1], coarse[::-1]) if chance(rng, 0.5) else (fine, coarse)
    return both


def label(rng, values, lat, lon, free):
    """``(..., lat, lon)`` with other names, perhaps flipped, in another longitude convention or dim order.

    Returns the DataArray, the names of its latitude and longitude, and whether each was flipped.
    """
    lon = lon + pick(rng, [0, 0, 360])
    turned = [bool(free and chance(rng, 0.5) and a.size > 1) for a in (lat, lon)]
    lat, lon = lat[:: -1 if turned[0] else 1], lon[:: -1 if turned[1] else 1]
    values = values[..., :: -1 if turned[0] else 1, :: -1 if turned[1] else 1]
    names, cf = pick(rng, [
        (("lat", "lon"), False), (("latitude", "longitude"), False), (("y", "x"), False), (("north", "east"), True),
        (("lat", "lon"), True),
    ])  # fmt: skip
    dims = ("j", "i") if chance(rng, 0.2) else names
    attrs = [{"standard_name": s, "units": u, "note": "mine"} if cf else {"note": "mine"}
             for s, u in (("latitude", "degrees_north"), ("longitude", "degrees_east"))]  # fmt: skip
    kind = pick(rng, ["f8", "f8", "f4"])
    coords = {n: (d, c.astype(kind), a) for n, d, c, a in zip(names, dims, (lat, lon), attrs, strict=True)}
    return xr.DataArray(values, coords, ("a", "b", "c", "d")[: values.ndim - 2] + dims), names, turned


def make_input(rng, model, rain):
    """Rain ``(member, time, lat, lon)`` in mm day-1 as values in random units, with missing values of every kind.

    Returns the input values, what they mean in the model's units, and attributes.
    """
    units = pick(rng, list(MM_DAY))
    values = (rain / MM_DAY[units]).astype(pick(rng, ["f4", "f4", "f8"]))
    attrs = {"units": units, "comment": "mine"}
    gaps = np.zeros(rain.shape, bool)
    if chance(rng, 0.6):
        gaps |= rng.random(rain.shape[-2:]) < rng.uniform(0, 0.5)  # an ocean
    if chance(rng, 0.4):
        gaps |= rng.random(rain.shape) < rng.uniform(0, 0.5)  # on single days
    if chance(rng, 0.1):
        gaps[:, 0] = True
    gaps[(0,) * 4] = False
    means = np.where(gaps, np.nan, values.astype("f8") * (MM_DAY[units] / MM_DAY[model.units]))
    what = rng.random()
    if what < 0.6:
        values[gaps] = np.nan
    elif what < 0.85:
        values[gaps] = rng.choice([np.nan, np.inf, -np.inf], gaps.sum())
    else:
        values[gaps] = MISSING
        attrs[pick(rng, ["_FillValue", "missing_value"])] = values.dtype.type(MISSING)
    return values, means, attrs


def times(rng, n, amounts):
    name = pick(rng, ["time", "time", "valid_time", "t", "day"])
    if not amounts and chance(rng, 0.2):
        return name, None, {}
    start, calendar = pick(
        rng, [("2001-01-01", "standard"), ("1999-12-31T12:00", "standard"), ("2000-02-27", "noleap")]
    )
    return name, xr.date_range(start, periods=n, calendar=calendar), {"long_name": "when"}


def chunked(rng, da, lat_dim, lon_dim):
    """``da`` as numpy or in chunks of time, space or both; and whether only along time."""
    how = pick(rng, ["numpy", "time", "space", "both"])
    if how == "numpy":
        return da, how
    space = {lat_dim, lon_dim}
    chunks = {}
    for dim, n in da.sizes.items():
        if (dim in space and how == "time") or (dim not in space and how == "space"):
            chunks[dim] = -1
        else:
            cuts = np.unique(rng.integers(1, n, rng.integers(0, 3))) if n > 1 else []
            chunks[dim] = tuple(int(c) for c in np.diff([0, *cuts, n]))
    # Non-dim coordinates would become lazy too, but `downscale` reads coordinates.
    return da.chunk(chunks).assign_coords(da.coords), how


def case(seed, folder):
    """`downscale` on a random stack and input: values, NaN, labels, chunks, and nothing computed too early."""
    rng = np.random.default_rng(seed)
    model = make_model(rng)
    nlat, nlon = shape_for(rng, model)
    scale = model.scale
    grid = centres(rng, nlat, nlon, scale)
    members, days = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    rain = np.where(rng.random((members, days, nlat, nlon)) < 0.4, 0, rng.gamma(0.8, 8, (members, days, nlat, nlon)))
    values, means, attrs = make_input(rng, model, rain)
    shape = (nlat * scale, nlon * scale)
    static = {"elevation": rng.normal(800, 600, shape), "slope": rng.normal(size=shape),
              "climatology": rng.gamma(2, 2, shape) * (rng.random(shape) < pick(rng, [1.0, 0.3]))}  # fmt: skip
    mask = rng.random(shape) < rng.uniform(0.2, 1) if chance(rng, 0.5) else None

    # What the model knows about the grid, and what is given beside the input
    fine = (grid["lat"][0], grid["lon"][0])
    maps = xr.Dataset({n: (("lat", "lon"), v) for n, v in static.items()}, dict(zip(("lat", "lon"), fine, strict=True)))
    own = chance(rng, 0.5)
    wanted = None if mask is None else xr.DataArray(mask, maps.coords, ("lat", "lon"))
    own_mask = own and wanted is not None and chance(rng, 0.5)
    model = xdeepsd.StackedSRCNN(model.stages, model.units, model.variable, maps if own else None,
                                 wanted if own_mask else None)  # fmt: skip
    if own and chance(rng, 0.2):
        xdeepsd.save_model(model, folder / "model")
        model = xdeepsd.load_model(folder / "model")
    given = None
    if not own or chance(rng, 0.3):
        # A grid unknown to the model is taken in the order given.
        look = np.random.default_rng(rng.integers(2**32))
        state = look.bit_generator.state
        given = {}
        for name in model.static_names or ("elevation",):
            look.bit_generator.state = state  # the same labels for every field
            given[name] = label(look, static[name], *fine, free=own)[0]
        given = xr.Dataset(given)
        if len(model.static_names) == 1 and chance(rng, 0.5):
            given = given[model.static_names[0]]
    if mask is not None and not own_mask:
        wanted = label(rng, mask, *fine, free=True)[0]

    da, names, turned = label(rng, values, grid["lat"][1], grid["lon"][1], free=True)
    lat_dim, lon_dim = da.dims[-2:]
    time, axis, time_attrs = times(rng, days, attrs["units"] in AMOUNTS)
    da = da.rename(a="member", b=time).assign_attrs(attrs)
    if axis is not None:
        da = da.assign_coords({time: (time, axis, time_attrs)})
    da = da.assign_coords(height=2.0, label=("member", [f"m{i}" for i in range(members)]))
    if chance(rng, 0.5):
        da, means = da.isel(member=0), means[:1]
    da = da.transpose(*rng.permutation(da.dims).tolist()) if chance(rng, 0.4) else da
    name, variable = pick(rng, [("pr", None), ("precipitation", None), ("RAIN", None), ("mine", "mine"), ("cf", None)])
    da = da.rename(name)
    if name == "cf":
        da.attrs["standard_name"] = "precipitation_flux"
    da, how = chunked(rng, da, lat_dim, lon_dim)
    ds = da
    if chance(rng, 0.5):
        ds = da.to_dataset().assign(tas=da.assign_attrs(standard_name="air_temperature", units="K").rename("tas"),
                                    crs=((), 1), weight=("member2", [1.0])).assign_attrs(title="mine")  # fmt: skip
    options = {"variable": variable, "precision": "float64" if chance(rng, 0.1) else "float32",
               "batch_size": int(rng.integers(1, 4)) if chance(rng, 0.2) else None}  # fmt: skip
    given_mask = None if own_mask else wanted

    def refuse(*_, **__):
        raise Wrong("building the graph computes")

    with dask.config.set(scheduler=refuse) if how != "numpy" else dask.config.set():
        out = ds.deepsd.downscale(model, given, mask=given_mask, **options)
    result = out[name] if isinstance(out, xr.Dataset) else out

    expected = np.stack([oracle.downscale(model, one, static, mask) for one in means])
    expected = expected[..., :: -1 if turned[0] else 1, :: -1 if turned[1] else 1]
    to_user = MM_DAY[model.units] / MM_DAY[attrs["units"]]
    unit = 1 / MM_DAY[attrs["units"]]
    order = [d for d in ("member", time, lat_dim, lon_dim) if d in result.dims]

    def plainly(precision):
        """The plain torch forward."""
        fine = ds.deepsd.downscale(model, given, mask=given_mask, variable=variable, batch_size=2, precision=precision)
        fine = (fine[name] if isinstance(fine, xr.Dataset) else fine).compute().transpose(*order)
        return fine.values.reshape(expected.shape)

    def as_torch(off):
        """For stacks with differences of large numbers: within what float32 can do, and right in float64."""
        exact, plain = (distance(plainly(p), expected * to_user, unit) for p in ("float64", "float32"))
        return off < 5 * plain and plain < 10 * BOUND and exact < BOUND

    found = result.compute().transpose(*order).values
    compare(found.reshape(expected.shape), expected * to_user, unit, as_torch)
    check_labels(ds, da, out, result, grid, names, scale, turned)
    if how != "numpy":
        if result.chunks is None or any(
            np.multiply(c, scale if d in (lat_dim, lon_dim) else 1).tolist() != list(r)
            for d, c, r in zip(da.dims, da.chunks, result.chunks, strict=True)
        ):
            raise Wrong(f"chunks {da.chunks} became {result.chunks}")
        eager = ds.compute().deepsd.downscale(model, given, mask=given_mask, **options)
        eager = (eager[name] if isinstance(eager, xr.Dataset) else eager).transpose(*result.dims)
        if how == "time" and options["batch_size"] is None:
            np.testing.assert_array_equal(eager, result)
        else:
            compare(result.values, eager.values, unit)
    elif not isinstance(result.data, np.ndarray):
        raise Wrong(f"numpy went in, {type(result.data)} came out")


def distance(found, expected, unit):
    """The largest difference relative to the largest value, or to 1 mm day-1."""
    return np.nanmax(np.abs(found - expected), initial=0) / max(unit, np.nanmax(expected, initial=0))


def compare(found, expected, unit, as_good_as_it_gets=lambda off: False):
    if (np.isnan(found) != np.isnan(expected)).any():
        both = int(np.isnan(expected).sum()), int(np.isnan(found).sum())
        raise Wrong(f"NaN in other places: {both[0]} cells expected, {both[1]} found")
    off = distance(found, expected, unit)
    if not (off <= BOUND or as_good_as_it_gets(off)):
        raise Wrong(f"values are off by {off:.3g} of {max(unit, np.nanmax(expected, initial=0)):.4g}")


def check_labels(ds, da, out, result, grid, names, scale, turned):
    """The user's names, order, attributes and coordinates on the target grid; nothing of the coarse grid is left."""
    if type(out) is not type(ds) or result.dims != da.dims or result.name != da.name:
        raise Wrong(f"{type(ds).__name__} {da.name} {da.dims} became {type(out).__name__} {result.name} {result.dims}")
    lost = {k: v for k, v in da.attrs.items() if result.attrs.get(k) != v and k not in ("_FillValue", "missing_value")}
    if lost:
        raise Wrong(f"attributes {lost} became { ({k: result.attrs.get(k) for k in lost}) }")
    for coord, dim, turn in zip(names, ("lat", "lon"), turned, strict=True):
        fine = grid[dim][0][:: -1 if turn else 1]
        fine = fine + 360 * np.round((float(da[coord].mean()) - fine.mean()) / 360)
        if not np.allclose(result[coord], fine, rtol=0, atol=1e-4) or result[coord].attrs != da[coord].attrs:
            raise Wrong(f"{coord} is {result[coord].values} {result[coord].attrs}; expected {fine} {da[coord].attrs}")
    for coord in set(da.coords) - set(names):
        if not result[coord].identical(da[coord].drop_vars(set(da[coord].coords) - set(result[coord].coords))):
            raise Wrong(f"the coordinate {coord} was {da[coord]}, is {result[coord]}")
    if isinstance(ds, xr.Dataset) and (
        set(out.data_vars) != {da.name, "crs", "weight"} or out.attrs["title"] != "mine"
    ):
        raise Wrong(f"of {list(ds.data_vars)} came {list(out.data_vars)}, attributes {out.attrs}")
