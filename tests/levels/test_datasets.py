"""The generated climate of the demo, and its picture."""

import numpy as np
import pytest
import xarray as xr

from xdeepsd.evaluation.plot import maps
from xdeepsd.levels.climate import make_climate


def test_the_climate_is_seeded_and_plausible():
    climate = make_climate(seed=4, years=1)
    xr.testing.assert_identical(climate, make_climate(seed=4, years=1))
    assert not np.array_equal(climate.elevation, make_climate(seed=5, years=1).elevation)
    rain = climate["precipitation"]
    assert rain.sizes == {"time": 365, "lat": 96, "lon": 128}
    np.testing.assert_array_equal(rain.notnull().all("time"), climate["mask"])
    assert 0.5 < climate["mask"].mean() < 0.95, "an ocean and land"
    assert 0.3 < float((rain == 0).where(rain.notnull()).mean()) < 0.8, "dry days"
    assert 1 < float(rain.mean()) < 8
    assert float(rain.min()) == 0
    assert (climate["elevation"].where(~climate["mask"]).fillna(0) == 0).all()
    mean = rain.mean("time")
    assert float(xr.corr(mean, climate["elevation"].where(climate["mask"]))) > 0.3, "orographic"


SMALL = {"years": 2, "shape": (40, 56)}
JUDGE = {"storms": 8, "seasons": 1, "shadow": 1, "warming": 3, "gaps": 0.05}


@pytest.fixture(scope="module")
def plain():
    return make_climate(**SMALL)["precipitation"]


def changed(**options):
    return make_climate(**SMALL, **options)["precipitation"]


def test_without_options_it_is_what_it_was(plain):
    """The climate that the demo, the docs and other tests are based on."""
    assert float(plain.astype(float).mean()) == pytest.approx(6.02112, rel=1e-5)
    assert float(plain.max()) == pytest.approx(347.945, rel=1e-5)
    xr.testing.assert_identical(plain, changed(storms=0, seasons=0, shadow=0, warming=0, gaps=0))


@pytest.mark.parametrize("options", [{}, JUDGE])
def test_lazy_days_are_the_same_in_any_chunks(no_compute, options):
    with no_compute():
        lazy = {n: make_climate(seed=3, years=1, shape=(24, 32), chunks=n, **options) for n in (1, 50, 400)}
    rain = {n: ds["precipitation"] for n, ds in lazy.items()}
    assert [da.chunksizes["time"][0] for da in rain.values()] == [1, 50, 365]
    whole = rain[400].compute()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(rain[50], whole)
    for day in (0, 49, 200, 364):
        np.testing.assert_array_equal(rain[1][day], whole[day])
    assert 0.2 < float((whole == 0).where(whole.notnull()).mean()) < 0.8
    other = make_climate(seed=4, years=1, shape=(24, 32), chunks=50, **options)["precipitation"]
    assert not np.array_equal(other[100], whole[100], equal_nan=True)


def test_lazy_weather_is_like_that_in_memory():
    """The same distribution and the same day-to-day persistence, from other random numbers."""

    def told(rain):
        mean = rain.mean(("lat", "lon"))
        yesterday = xr.corr(mean, mean.shift(time=1))
        return {"mean": rain.mean(), "wet": (rain > 0).where(rain.notnull()).mean(), "memory": yesterday}

    years = {"seed": 2, "years": 4, "shape": (24, 32)}
    one, other = told(make_climate(**years)["precipitation"]), told(make_climate(**years, chunks=365)["precipitation"])
    for name in one:
        assert float(one[name]) == pytest.approx(float(other[name]), rel=0.25), name


def test_storms_have_heavy_tails(plain):
    def hill(rain, count=200):
        """Tail index of the largest values (Hill 1975): the heavier the tail, the larger; 0 for a light tail."""
        largest = np.sort(rain.values[np.isfinite(rain.values)])[-count - 1 :]
        return np.log(largest[1:] / largest[0]).mean()

    stormy = changed(storms=8)
    more = (stormy - plain).where(plain.notnull())
    assert float(more.min()) > -1e-4
    assert 0.01 < float((more > 1).mean()) < 0.2, "rare"
    assert float(stormy.mean()) < 1.2 * float(plain.mean())
    assert hill(more) > 1.5 * hill(plain)
    summer = stormy["time"].dt.month.isin([6, 7, 8])  # the largest of winter is rain on ridges, which has a light tail
    assert hill(changed(storms=40)[summer]) > 1.5 * hill(plain[summer])


def test_seasons(plain):
    def summer(rain):
        season = rain.groupby("time.season").mean(...)
        return float(season.sel(season="JJA") / season.sel(season="DJF"))

    assert summer(changed(seasons=1)) < 0.85 * summer(plain) < 0.85
    both, calm = changed(seasons=1, storms=20), changed(seasons=1)
    storms = (both - calm).groupby("time.season").mean(...)
    assert float(storms.sel(season="JJA")) > 3 * float(storms.sel(season="DJF"))


def test_rain_shadow(plain):
    """Behind the first ridge it is drier than in front of it at the same height, and drier still with the option."""
    height = make_climate(**SMALL)["elevation"]
    ridge = height.isel(lon=slice(0, 32)).argmax("lon")
    column = xr.DataArray(np.arange(height.sizes["lon"]), dims="lon")
    hills = (height > 300) & (height < 1200)
    before, behind = hills & (column < ridge), hills & (column > ridge) & (column < ridge + 15)

    def ratio(rain):
        mean = rain.mean("time")
        return float(mean.where(behind).mean() / mean.where(before).mean())

    shaded = changed(shadow=1)
    assert ratio(shaded) < 0.75 * ratio(plain) < 0.75
    assert float((shaded - plain).max()) <= 1e-4


def test_a_warmer_second_half_has_more_extremes_and_fewer_wet_days(plain):
    warm, half = changed(warming=3), plain.sizes["time"] // 2
    np.testing.assert_array_equal(warm[:half], plain[:half])
    before, after = plain[half:], warm[half:]
    grown = float(after.quantile(0.999) / before.quantile(0.999))
    assert 1.1 < grown < 1.07**3
    assert float((after > 0).sum()) < 0.98 * float((before > 0).sum())


def test_gaps_are_areas_that_last_a_month(plain):
    climate = make_climate(**SMALL, gaps=0.1)
    rain, land = climate["precipitation"], climate["mask"]
    missing = rain.isnull() & land
    np.testing.assert_array_equal(rain.where(~missing), plain.where(~missing))
    assert rain.where(~land).isnull().all()
    assert 0.05 < float(missing.where(land).mean()) < 0.15
    assert (missing[:30] == missing[0]).all()
    assert not (missing[:60] == missing[0]).all()
    assert missing.any("time").sum() > 0.3 * land.sum(), "other areas each time"
    beside = missing[:, :, 1:] & missing[:, :, :-1].values
    assert beside.sum() > 0.5 * missing.sum(), "areas, not single cells"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"storms": -1}, "storms is -1; needed: a number of at least 0"),
        ({"gaps": 0.7}, "gaps is 0.7; needed: a number of at least 0 and at most 0.5"),
        ({"warming": float("nan")}, "warming is nan; needed: a finite number"),
        ({"chunks": 0}, "chunks is 0; needed: the number of days in a chunk, or None"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_climate(**options)


def test_maps(tmp_path):
    climate = make_climate(years=1, shape=(16, 24)).isel(time=slice(3))
    rain = climate["precipitation"]
    figure = maps({"one": rain[0], "two": rain[1].chunk(), "three": rain[2]}, "title")
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 5000
    assert [ax.get_title() for ax in figure.axes[:3]] == ["one", "two", "three"]
    dry = maps({"dry": rain[0] * 0})
    dry.savefig(tmp_path / "dry.png")
