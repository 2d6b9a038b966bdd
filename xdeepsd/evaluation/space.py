"""Whether the maps of a prediction have the right structure: power, skill and correlation by scale; lazily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr
from scipy import fft

from xdeepsd.evaluation.fields import alike

TRUTH = "truth"
KM_PER_DEGREE = 6371.0 * np.pi / 180


def compare_spectra(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
) -> xr.Dataset:
    """Radially averaged power spectra of the maps, and how far they are from that of the truth.

    By the discrete cosine transform, for maps are not periodic (Denis et al., Mon. Weather Rev. 2002); distances are
    counted in cells. Missing cells, the same in all, get the mean of the day's map.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`, with whole maps in each chunk. Of members, the mean of their spectra is taken.

    Returns
    -------
    Lazy if the input is: ``spectrum`` ``(name, wavenumber)``, mm2 day-2, float64, with "truth" as the last name: the
    part of the variance of a map at that scale, the mean over the days with any value; their sum is the variance.
    ``wavelength`` ``(wavenumber)``, in cells; the last scale holds all shorter waves too, of which there are many along
    the diagonals. ``log_distance`` ``(name)``, dB: the root mean square over the scales of
    ``10 log10(spectrum / spectrum of the truth)``; NaN where a spectrum is 0 at some scale. Errors as in
    `xdeepsd.evaluate`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> found = xdeepsd.compare_spectra(bilinear, truth)
    >>> finest = found["spectrum"].isel(wavenumber=-1)
    >>> bool(finest.sel(name="prediction") < finest.sel(name="truth"))  # interpolation has no small scales
    True
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    shape = observed.sizes["lat"], observed.sizes["lon"]
    bands, wavelength = _bands(shape)

    def power(maps: np.ndarray) -> np.ndarray:
        days = maps.reshape(-1, *shape).astype(np.float64)
        known = np.isfinite(days)
        number = known.sum((1, 2), keepdims=True)
        mean = np.where(known, days, 0.0).sum((1, 2), keepdims=True) / np.maximum(number, 1)
        squares = fft.dctn(np.where(known, days - mean, 0.0), axes=(1, 2), norm="ortho") ** 2 / np.prod(shape)
        out = np.stack([np.bincount(bands.ravel(), day.ravel(), wavelength.size + 1)[1:] for day in squares])
        return np.where(number[:, 0] > 0, out, np.nan).reshape(*maps.shape[:-2], -1)

    spectra = []
    for da in (*fields.values(), observed):
        of_days = xr.apply_ufunc(
            power, da, input_core_dims=[["lat", "lon"]], output_core_dims=[["wavenumber"]], dask="parallelized",
            output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": {"wavenumber": wavelength.size}},
        )  # fmt: skip
        days = of_days.notnull().sum([dim for dim in of_days.dims if dim != "wavenumber"])
        spectra.append(of_days.sum([dim for dim in of_days.dims if dim != "wavenumber"]) / days.where(days > 0))
    spectrum = xr.concat(spectra, "name").assign_coords(
        name=[*fields, TRUTH], wavenumber=np.arange(1, wavelength.size + 1)
    )
    ratio = spectrum.isel(name=slice(-1)) / spectrum.isel(name=-1, drop=True).where(lambda da: da > 0)
    distance = (((10 * np.log10(ratio.where(ratio > 0))) ** 2).mean("wavenumber", skipna=False)) ** 0.5
    distance = distance.reindex(name=[*fields, TRUTH])
    return xr.Dataset(
        {
            "spectrum": spectrum.assign_attrs(long_name="power spectrum", units="mm2 day-2"),
            "log_distance": distance.assign_attrs(long_name="distance of the spectra", units="dB"),
        },
        {"wavelength": ("wavenumber", wavelength, {"long_name": "wavelength in cells"})},
    )


def _bands(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The band of each coefficient ``(lat, lon)``, 0 for the mean, and the wavelength of each band from 1 on."""
    rows, columns = (np.arange(size) / size for size in shape)
    most = min(shape) if min(shape) > 1 else max(shape)
    # A band holds the coefficients from its number on: 2 cells are the shortest wave.
    bands = np.floor(np.hypot(rows[:, None], columns) * most + 1e-9).astype(int)
    bands = np.clip(bands, 1, max(most - 1, 1))
    bands[0, 0] = 0
    numbers = np.arange(1, bands.max() + 1)
    return bands, 2 * most / numbers


def fractions_skill(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
    thresholds: Sequence[float] = (1.0, 10.0, 50.0),
    windows: Sequence[int] = (1, 3, 5, 9, 17, 33),
) -> xr.DataArray:
    """Fractions skill score: whether as much of a neighbourhood gets heavy rain, by the size of the neighbourhood.

    Roberts and Lean (Mon. Weather Rev. 2008), all days together, over the neighbourhoods that lie inside the map. The
    numbers of `scores.spatial.fss_2d`, which can put days together only in memory.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`, with whole maps in each chunk. Missing cells, the same in all, hold no event.
    thresholds
        mm day-1; an event is as much or more.
    windows
        Sides of the square neighbourhoods, in cells; those larger than the map are left out.

    Returns
    -------
    ``(name, event, window)``, 0 to 1, float64, lazy if the input is; NaN where there is no event at all. The members
    of an ensemble count as so many predictions. Errors as in `xdeepsd.evaluate`.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> skill = xdeepsd.fractions_skill(bilinear, truth, windows=(1, 5)).sel(name="prediction", event="10 mm")
    >>> bool(skill[1] > skill[0])  # rain that is in the wrong cell is often in the next
    True
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    sides = [side for side in windows if side <= min(observed.sizes["lat"], observed.sizes["lon"])]

    sizes = {"event": len(thresholds), "window": len(sides), "part": 2}

    def parts(p: np.ndarray, y: np.ndarray) -> np.ndarray:
        out = np.zeros((*np.broadcast_shapes(p.shape[:-2], y.shape[:-2]), *sizes.values()))
        for i, threshold in enumerate(thresholds):
            for j, side in enumerate(sides):
                predicted, known = (_fractions(field >= threshold, side) for field in (p, y))
                out[..., i, j, 0] = ((predicted - known) ** 2).sum((-2, -1))
                out[..., i, j, 1] = (predicted**2).sum((-2, -1)) + (known**2).sum((-2, -1))
        return out

    def score(da: xr.DataArray) -> xr.DataArray:
        of_days = xr.apply_ufunc(
            parts, da, observed, input_core_dims=[["lat", "lon"]] * 2, output_core_dims=[list(sizes)],
            dask="parallelized", output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": sizes},
        )  # fmt: skip
        apart, most = (of_days.isel(part=k).sum([d for d in of_days.dims if d not in sizes]) for k in (0, 1))
        return 1 - apart / most.where(most > 0)

    by_name = [score(da) for da in fields.values()]
    names = [f"{threshold:g} mm" for threshold in thresholds]
    found = xr.concat(by_name, "name").assign_coords(name=list(fields), event=names, window=sides)
    return found.rename("fractions_skill").assign_attrs(long_name="fractions skill score", units="1")


def decorrelation_length(
    prediction: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    beside: Mapping[str, xr.Dataset | xr.DataArray] | None = None,
) -> xr.Dataset:
    """Distance at which rain is no longer alike: where the spatial autocorrelation of the maps falls below 1/e.

    Of the differences from the mean of each day's map, all days together, by all pairs of cells that are known, through
    Fourier transforms; degrees of longitude have the length that they have in the middle of the region.

    Parameters
    ----------
    prediction, truth, beside
        As in `xdeepsd.evaluate`, with whole maps in each chunk. The members of an ensemble count as so many days.

    Returns
    -------
    Lazy if the input is, float64, with "truth" as the last name: ``autocorrelation`` ``(name, distance)``, in rings as
    wide as a cell up to half the shorter side of the region, whose mean distance (km) is the coordinate; ``length``
    ``(name)``, km, between rings linearly, NaN where it does not fall that low, or all maps are constant. Errors as in
    `xdeepsd.evaluate`; ValueError where the region is narrower than 4 cells.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> bilinear = xdeepsd.interpolate(xdeepsd.coarsen(truth, 4), truth).where(truth.notnull())
    >>> found = xdeepsd.decorrelation_length(bilinear, truth)
    >>> found["length"].dims, found["name"].values.tolist()
    (('name',), ['prediction', 'truth'])
    """
    observed, fields = alike(truth, {"prediction": prediction, **(beside or {})})
    shape = observed.sizes["lat"], observed.sizes["lon"]
    if min(shape) < 4:
        raise ValueError(f"The maps have {shape[0]} x {shape[1]} cells; needed: 4 or more along each side.")
    steps = [abs(float(np.diff(a).mean())) for a in plane(observed["lat"].values, observed["lon"].values)]
    size = [fft.next_fast_len(2 * n - 1, real=True) for n in shape]
    lags = [np.minimum(np.arange(n), n - np.arange(n)) * step for n, step in zip(size, steps, strict=True)]
    away = np.hypot(lags[0][:, None], lags[1])
    width = max(steps)
    rings = np.floor(away / width + 0.5).astype(int)
    count = int(min(n * step for n, step in zip(shape, steps, strict=True)) / 2 / width) + 1
    rings = np.minimum(rings, count)

    def sums(maps: np.ndarray) -> np.ndarray:
        """``(..., ring, 2)``: the products of the pairs that are so far apart, and how many pairs there are."""
        out = np.zeros((*maps.shape[:-2], count, 2))
        for place in np.ndindex(maps.shape[:-2]):
            known = np.isfinite(maps[place])
            if not known.any():
                continue
            apart = np.where(known, maps[place].astype(np.float64), 0.0)
            apart = np.where(known, apart - apart.sum() / known.sum(), 0.0)
            for k, field in enumerate((apart, known.astype(np.float64))):
                pairs = fft.irfft2(np.abs(fft.rfft2(field, size)) ** 2, size)
                out[(*place, slice(None), k)] = np.bincount(rings.ravel(), pairs.ravel(), count + 1)[:count]
        return out

    found = []
    for da in (*fields.values(), observed):
        of_days = xr.apply_ufunc(
            sums, da, input_core_dims=[["lat", "lon"]], output_core_dims=[["distance", "part"]], dask="parallelized",
            output_dtypes=[np.float64], dask_gufunc_kwargs={"output_sizes": {"distance": count, "part": 2}},
        )  # fmt: skip
        products, pairs = (of_days.isel(part=k).sum([d for d in da.dims if d not in ("lat", "lon")]) for k in (0, 1))
        covariance = products / pairs.where(pairs > 0.5)  # whole numbers, but for rounding
        variance = covariance.isel(distance=0)
        found.append(covariance / variance.where(variance > 0))
    # In the middle of each ring, as far as all pairs of the region are concerned.
    all_pairs = fft.irfft2(np.abs(fft.rfft2(np.ones(shape), size)) ** 2, size).ravel()
    weights = np.bincount(rings.ravel(), all_pairs, count + 1)[:count]
    distance = np.bincount(rings.ravel(), all_pairs * away.ravel(), count + 1)[:count] / np.maximum(weights, 1)
    whole = xr.concat(found, "name").assign_coords(
        name=[*fields, TRUTH], distance=("distance", distance, {"units": "km"})
    )
    length = xr.apply_ufunc(
        partial(_first_below, at=distance, level=np.exp(-1)), whole, input_core_dims=[["distance"]],
        dask="parallelized", output_dtypes=[np.float64],
    )  # fmt: skip
    return xr.Dataset(
        {
            "autocorrelation": whole.assign_attrs(long_name="spatial autocorrelation", units="1"),
            "length": length.assign_attrs(long_name="decorrelation length", units="km"),
        }
    )


def _first_below(values: np.ndarray, at: np.ndarray, level: float) -> np.ndarray:
    """Where ``values`` ``(..., distance)`` first fall below the level, linearly between two of them; NaN: nowhere."""
    below = values < level
    after = np.maximum(below.argmax(-1), 1)
    high, low = (np.take_along_axis(values, k[..., None], -1)[..., 0] for k in (after - 1, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (high - level) / (high - low)
    return np.where(below.any(-1), at[after - 1] + part * (at[after] - at[after - 1]), np.nan)


def plane(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (km) along the meridian and the middle parallel: a map of the region as a plane."""
    return np.asarray(lat) * KM_PER_DEGREE, np.asarray(lon) * KM_PER_DEGREE * np.cos(np.deg2rad(np.mean(lat)))


def _fractions(events: np.ndarray, side: int) -> np.ndarray:
    """Share of events in each square ``(..., lat, lon)`` of that side inside the map, by a summed-area table."""
    table = np.zeros((*events.shape[:-2], events.shape[-2] + 1, events.shape[-1] + 1))
    table[..., 1:, 1:] = events.cumsum(-2).cumsum(-1)
    rows = table[..., side:, :] - table[..., :-side, :]
    return (rows[..., side:] - rows[..., :-side]) / side**2
