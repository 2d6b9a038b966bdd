"""The generated climate of the demo, and its picture."""

import numpy as np
import xarray as xr

from xdeepsd.evaluation.plot import plot_maps
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


def test_maps(tmp_path):
    climate = make_climate(years=1, shape=(16, 24)).isel(time=slice(3))
    rain = climate["precipitation"]
    figure = plot_maps({"one": rain[0], "two": rain[1].chunk(), "three": rain[2]}, "title")
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 5000
    assert [ax.get_title() for ax in figure.axes[:3]] == ["one", "two", "three"]
    dry = plot_maps({"dry": rain[0] * 0})
    dry.savefig(tmp_path / "dry.png")
