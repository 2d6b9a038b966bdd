"""What `audit` says of input: against counts by hand, and on two products whose days are a day apart."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd


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
