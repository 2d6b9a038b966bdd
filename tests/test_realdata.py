"""The whole job on real PRISM days: read, coarsen, train, downscale a held-out day, beat interpolation."""

import numpy as np
import pytest
import xarray as xr

import xdeepsd
from xdeepsd.evaluation.errors import compare
from xdeepsd.grids.interpolate import interpolate
from xdeepsd.prism.files import open_prism

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

HELD_OUT = "2011-01-01"


@pytest.fixture(scope="module")
def levels(real_data):
    """Four levels of the seven days, coarsened conservatively, with the real elevation."""
    folder = real_data / "prism"
    files = sorted(folder.glob("PRISM_ppt_stable_4kmD2_*_bil.zip")) + sorted(folder.glob("prism_ppt_us_25m_*.zip"))
    fine = open_prism(files, allow_missing=True)["ppt"]
    elevation = xr.open_dataset(folder / "prism_elevation_4km.nc")
    return [level.load() for level in xdeepsd.make_levels(fine, elevation[["elevation"]], factors=(2, 2, 2))]


def test_a_held_out_day_beats_interpolation(levels, tmp_path):
    assert levels[-1].sizes["time"] == 7
    seen = [level.drop_sel(time=np.datetime64(HELD_OUT)) for level in levels]
    config = xdeepsd.TrainConfig(static=("elevation",), steps=300, batch=16, validation=("2017-01-31",))
    xdeepsd.save_model(xdeepsd.train_stack(seen, config, progress=False), tmp_path / "model")

    day = levels[0][["precipitation"]].sel(time=[HELD_OUT])
    fine = day.chunk(time=1).deepsd.downscale(xdeepsd.load_model(tmp_path / "model"))
    truth = levels[-1]["precipitation"].sel(time=[HELD_OUT])
    table = compare({"xdeepsd": fine["precipitation"], "bilinear": interpolate(day["precipitation"], truth)}, truth)
    print(f"\n{HELD_OUT}, land cells of CONUS, mm day-1\n{table.round(3)}")  # noqa: T201
    assert int(truth.notnull().sum()) == 481_631
    np.testing.assert_array_equal(np.isnan(fine["precipitation"]), np.isnan(truth))
    assert table.loc["xdeepsd", "rmse"] < table.loc["bilinear", "rmse"]
