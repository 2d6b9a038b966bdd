"""What `audit` says of input: against counts by hand, and on two products whose days are a day apart."""

import dask
import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app


@pytest.fixture(scope="module")
def model():
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3))
    return xdeepsd.StackedSRCNN(stack.stages, static=make_static(make_coarse(), 2))


@pytest.mark.parametrize("lazy", [False, True])
def test_counts_by_hand(model, lazy):
    ds = make_coarse(days=40).to_dataset()
    ds["pr"][3, :, 2] = np.nan
    ds["pr"][:, 5, 7] = np.nan
    ds["pr"][1, 1, 1] = 0.4
    ds["pr"][2, 2, 2] = -1e-6
    seconds = (ds / 86400).assign(pr=(ds["pr"] / 86400).assign_attrs(units="mm s-1"))
    seconds = seconds.isel(time=np.delete(np.arange(40), [10, 11, 30]))
    found = xdeepsd.audit(seconds.chunk(time=7) if lazy else seconds, model)
    values = ds["pr"].isel(time=np.delete(np.arange(40), [10, 11, 30])).clip(min=0).values
    cells = np.isfinite(values).any(axis=0)
    seen = values[np.isfinite(values)]
    assert (found.variable, found.units, found.period) == ("pr", "mm s-1", "1 day (by its steps)")
    assert (found.days, found.first, found.last, found.missing_days) == (37, "2001-01-01", "2001-02-09", 3)
    assert found.covered == pytest.approx(47 / 48)
    assert found.missing == pytest.approx(1 - seen.size / (cells.sum() * 37))
    assert found.dry == pytest.approx((seen == 0).mean())
    assert found.drizzle == pytest.approx(((seen > 0) & (seen < 1)).mean())
    assert found.mean == pytest.approx(seen.mean(), rel=1e-5)
    assert found.largest == pytest.approx(seen.max(), rel=1e-5)
    assert found.largest_sd == pytest.approx((seen.max() - 2.5) / 6, rel=1e-4)
    assert found.adapted == ()
    assert "3 dates between 2001-01-01 and 2001-02-09 are not there" in str(found)
    assert "2.1% of the coarse cells that are wanted have no value" in str(found)


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_hours_of_another_calendar_on_another_grid(model, calendar):
    ds = make_coarse(days=16, nlat=8, nlon=10).to_dataset()
    time = xr.date_range("2000-02-27", periods=16, freq="6h", calendar=calendar, use_cftime=True)
    ds = ds.assign_coords(lat=ds["lat"] + 0.5, lon=ds["lon"] - 0.5, time=time)
    found = xdeepsd.audit(ds, model)
    assert found.calendar == calendar
    assert found.days == 4
    assert found.missing_days == 0
    assert found.period == "6 h (by its steps)"
    assert [text.split()[0] for text in found.adapted] == ["means", "regridded"]
    assert found.last == ("2000-03-02" if calendar == "noleap" else "2000-02-30")


def test_drizzle_and_what_is_not_covered(model):
    ds = make_coarse(days=3).to_dataset()
    ds["pr"] = ds["pr"] * 0 + np.float32(0.3)
    ds["pr"].attrs["units"] = "mm day-1"
    found = xdeepsd.audit(ds.isel(lat=slice(0, 3)), model)
    assert found.covered == 0.5
    assert "100% of the values are drizzle" in str(found)
    with pytest.raises(ValueError, match="does not cover the model's domain"):
        xdeepsd.audit(ds.isel(lat=slice(0, 3)), model, allow_partial=False)


@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_a_shift_is_found(model, shift):
    ds = make_coarse(days=30).to_dataset()
    noise = np.random.default_rng(5).gamma(1, 1, ds["pr"].shape).astype("f4")
    observed = (ds["pr"] + noise).assign_attrs(units="mm").rename("rr")
    observed = observed.assign_coords(time=ds["time"] + np.timedelta64(shift, "D"))
    found = xdeepsd.audit(ds, model, observed=observed)
    assert max(found.lags, key=found.lags.get) == shift
    assert ("fits better" in str(found)) == (shift != 0)
    with pytest.raises(ValueError, match="no date of the input"):
        xdeepsd.audit(ds, model, observed=observed.assign_coords(time=ds["time"] + np.timedelta64(900, "D")))


def test_what_training_saw(tmp_path):
    """The largest rain of the coarsest level, on the training days alone, goes with the model."""
    climate = xdeepsd.make_climate(years=1, shape=(16, 16), start=2001).isel(time=slice(60)).load()
    levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2,))
    config = xdeepsd.TrainConfig(
        channels=(4,), kernels=(3, 3), static=("elevation",), patch=10, stride=6, batch=4, steps=2, validate_every=2,
        validation=0.5, threads=1, workers=1,
    )  # fmt: skip
    trained = xdeepsd.train_stack(levels, config, progress=False)
    xdeepsd.save_model(trained, tmp_path / "model")
    stack = xdeepsd.load_model(tmp_path / "model")
    coarse = levels[0]["precipitation"].load()
    days = config.split(coarse["time"]).train
    largest = float(coarse.isel(time=days).max())
    assert stack.training["largest"] == pytest.approx(largest, rel=1e-6)
    found = xdeepsd.audit(coarse.isel(time=days), stack)
    assert (found.largest_trained, found.above_trained) == (pytest.approx(largest), 0)
    wetter = (coarse * 1.5).assign_attrs(coarse.attrs)
    found = xdeepsd.audit(wetter, stack)
    assert found.above_trained == int((wetter > largest).sum())
    assert f"{found.above_trained} values are larger than any of the training days" in str(found)
    heights = stack.static["elevation"]
    assert f"{float(heights.min()):.0f} to {float(heights.max()):.0f} m" in str(found)
    old = xdeepsd.StackedSRCNN(stack.stages, static=stack.static)
    assert xdeepsd.audit(wetter, old).largest_trained is None
    assert "of training" not in str(xdeepsd.audit(wetter, old))


def test_amounts_since_the_start_of_a_run(model):
    """WRF's RAINNC and the like: nothing in the attributes says that they are accumulated."""
    coarse = make_coarse(days=6)
    assert not xdeepsd.audit(coarse, model).accumulated
    total = coarse.cumsum("time", keep_attrs=True).assign_coords(coarse.coords)
    for given in (total, total.chunk(time=1)):
        found = xdeepsd.audit(given, model)
        assert found.accumulated
        assert "'pr' seems to be accumulated since the start of the run" in str(found)
    assert not xdeepsd.audit(total.diff("time", label="lower"), model).accumulated
    assert not xdeepsd.audit(total.isel(time=slice(2)), model).accumulated
    assert not xdeepsd.audit(xr.zeros_like(coarse) + 1, model).accumulated


def test_the_log_says_what_is_downscaled(model, caplog):
    caplog.set_level("INFO")

    def never(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=never):
        xdeepsd.downscale(make_coarse(days=4).isel(time=[0, 1, 3]).chunk(), model)
    assert "'pr' in mm day-1, each value of 1 day (by its steps); days: 3, 2001-01-01 to 2001-01-04" in caplog.text
    assert "dates that are not there: 1; elevation: -" in caplog.text


def test_check_needs_no_output(model, tmp_path):
    xdeepsd.save_model(model, tmp_path / "model")
    for number, part in enumerate((slice(0, 3), slice(3, 6))):
        make_coarse(days=6).isel(time=part).to_netcdf(tmp_path / f"{number}.nc", engine="h5netcdf")

    def run(*arguments):
        line = ["downscale", *map(str, arguments)]
        return CliRunner().invoke(app, line, env={"COLUMNS": "200"})

    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    for given, days in [((files[0],), 3), (files, 6)]:
        for out in ((), (tmp_path / "out.zarr",)):
            result = run(*given, tmp_path / "model", *out, "--check")
            assert result.exit_code == 0, result.output
            assert f"{days}, 2001-01-01 to" in result.output
    assert not (tmp_path / "out.zarr").exists()
    (tmp_path / "rain.grib2").write_bytes(b"GRIB" + bytes(100))
    assert "pip install 'xdeepsd[grib]'" in run(tmp_path / "rain.grib2", tmp_path / "model", "--check").output
    assert "INPUT, MODEL or OUTPUT is missing" in " ".join(run(files[0], tmp_path / "model").output.split())


@pytest.mark.realdata
def test_gridmet_and_nclimgrid_are_a_day_apart(real_data):
    """Minnesota in January 2000: correlation .7 at a day's lag, .25 without."""
    folder = real_data / "minnesota_jan2000"
    coarse = make_coarse(nlat=5, nlon=7)
    coarse = coarse.assign_coords(lat=48.5 - np.arange(5), lon=-96.5 + np.arange(7))
    model = xdeepsd.StackedSRCNN(make_stack(1, channels=(2,), kernels=(3, 3)).stages, static=make_static(coarse, 2))
    one = xr.open_dataset(folder / "gridmet_pr_2000_mn__14-day.nc")
    other = xr.open_dataset(folder / "nclimgrid-prcp-200001-grd-scaled_mn__14-day.nc")
    found = xdeepsd.audit(one, model, observed=other)
    assert found.lags[1] > 0.65
    assert found.lags[0] < 0.4
    assert "fits better 1 day later" in str(found)
    assert "fits better 1 day earlier" in str(xdeepsd.audit(other, model, observed=one))
