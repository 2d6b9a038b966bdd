"""Input of any kind: other names, units, periods, calendars and grids reach the model in the same call, lazily."""

import logging

import dask.array
import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd.inference.adapt import coarse_grid


@pytest.fixture(scope="module")
def model():
    """A model of 6 x 8 coarse cells of a degree, with its grid."""
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3))
    return xdeepsd.StackedSRCNN(stack.stages, static=make_static(make_coarse(), 2))


@pytest.fixture
def rain():
    return make_coarse().to_dataset()


def on_grid(lat, lon, days=4, **coords):
    """Rain that is different in every cell on a regular or gaussian grid."""
    rng = np.random.default_rng(0)
    values = rng.gamma(0.5, 8, (days, len(lat), len(lon))).astype("f4")
    attrs = {"lat": {"standard_name": "latitude"}, "lon": {"standard_name": "longitude"}}
    time = ("time", xr.date_range("2001-01-01", periods=days), {"standard_name": "time"})
    return xr.Dataset(
        {"pr": (("time", "lat", "lon"), values, {"units": "mm day-1"})},
        {"time": time, "lat": ("lat", lat, attrs["lat"]), "lon": ("lon", lon, attrs["lon"])} | coords,
    )


def rotated(spacing=0.5):
    """Rain on a rotated pole that covers the model's domain; 2-D coordinates only."""
    y, x = np.deg2rad(np.mgrid[-6:6.01:spacing, -8:8.01:spacing])
    tilt, turn = np.deg2rad(46), np.deg2rad(-120)
    up = np.sin(y) * np.cos(tilt) + np.cos(y) * np.cos(x) * np.sin(tilt)
    lat = np.arcsin(up)
    lon = np.arctan2(np.cos(y) * np.sin(x), np.cos(y) * np.cos(x) * np.cos(tilt) - np.sin(y) * np.sin(tilt)) + turn
    ds = on_grid(np.arange(len(y)), np.arange(y.shape[1])).rename(lat="rlat", lon="rlon").drop_vars(["rlat", "rlon"])
    ds = ds.assign_coords(
        lat=(("rlat", "rlon"), np.rad2deg(lat), {"standard_name": "latitude"}),
        lon=(("rlat", "rlon"), np.rad2deg(lon), {"standard_name": "longitude"}),
    )
    ds["pr"].attrs["grid_mapping"] = "rotated_pole"
    return ds.assign(rotated_pole=xr.DataArray(b"", attrs={"grid_mapping_name": "rotated_latitude_longitude"}))


def lambert():
    """Rain on a Lambert conformal grid: x and y in metres, 2-D latitudes and longitudes."""
    n, f = np.sin(np.deg2rad(46)), 1.0
    y, x = np.mgrid[-0.11:0.11:19j, -0.11:0.11:21j]
    rho0 = f / np.tan(np.pi / 4 + np.deg2rad(46) / 2) ** n
    rho, theta = np.hypot(x, rho0 - y), np.arctan2(x, rho0 - y)
    lat = np.rad2deg(2 * np.arctan((f / rho) ** (1 / n)) - np.pi / 2)
    ds = on_grid(y[:, 0] * 6.371e6, x[0] * 6.371e6).rename(lat="y", lon="x")
    for name in ("x", "y"):
        ds[name].attrs = {"units": "m", "standard_name": f"projection_{name}_coordinate"}
    return ds.assign_coords(
        latitude=(("y", "x"), lat, {"units": "degrees_north"}),
        longitude=(("y", "x"), np.rad2deg(theta / n) - 120, {"units": "degrees_east"}),
    )


GAUSSIAN = np.array([57.24, 54.41, 51.63, 48.84, 46.02, 43.26, 40.46, 37.67])
GRIDS = {
    "regular": on_grid(np.arange(40, 52, 1.5), np.arange(-127, -112, 1.25)),
    "gaussian, descending, 0 to 360": on_grid(GAUSSIAN, np.arange(0, 360, 2.8125)),
    "whole degrees, half a cell off": on_grid(np.arange(41.0, 51), np.arange(-126.0, -113)),
    "beyond 360": on_grid(np.arange(40, 52, 1.5), np.arange(590, 610, 1.25)),
    "across the date line of its own": on_grid(np.arange(40, 52, 1.5), np.arange(-340, 20, 2.5)),
    "finer": on_grid(np.arange(42, 50, 0.1), np.arange(-125, -115, 0.1)),
    "rotated pole": rotated(),
    "Lambert": lambert(),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("lazy", [True, False])
def test_any_grid_is_regridded_conservatively(name, lazy, model, no_compute):
    """The same as regridding by hand, to the centres and bounds of the model's coarse cells, and then downscaling."""
    ds = GRIDS[name]
    target = coarse_grid(model.static, model.scale)
    by_hand = xdeepsd.regrid(ds, target).transpose("time", "lat", "lon").assign_coords(lon=target["lon"])
    expected = xdeepsd.downscale(by_hand["pr"].assign_attrs(units="mm day-1"), model)
    if lazy:
        chunked = ds.assign(pr=ds["pr"].copy(data=dask.array.from_array(ds["pr"].values, (1, -1, -1))))
        with no_compute():
            fine = xdeepsd.downscale(chunked, model)
        assert fine["pr"].chunksizes["time"] == (1, 1, 1, 1)
    else:
        fine = xdeepsd.downscale(ds, model)
        assert fine["pr"].chunks is None
    found = fine["pr"].transpose("time", "lat", "lon").sortby("lat", ascending=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["lat"], model.static["lat"])
    np.testing.assert_allclose(found["lon"] % 360, model.static["lon"] % 360)
    assert "regridded conservatively from" in fine.attrs["xdeepsd_adapted"] == fine["pr"].attrs["xdeepsd_adapted"]
    assert fine["pr"].attrs["units"] == "mm day-1"
    assert not {"rotated_pole", "rlat", "rlon", "x", "y", "latitude", "longitude"} & set(fine.variables)
    assert "grid_mapping" not in fine["pr"].attrs


def test_the_rain_that_fell_is_kept(model):
    """Over the model's domain, the area mean of the input is that of the fine field of a model that keeps it."""
    ds = GRIDS["finer"]
    fine = xdeepsd.downscale(ds, model, conserve="multiplicative")["pr"]
    box = xr.Dataset(coords={"lat": [46.0], "lon": [-120.0]})
    for dim, edges in (("lat", [43.0, 49.0]), ("lon", [-124.0, -116.0])):
        box[f"{dim}_bnds"] = ((dim, "bnds"), [edges])
        box[dim].attrs["bounds"] = f"{dim}_bnds"
    np.testing.assert_allclose(xdeepsd.regrid(fine, box), xdeepsd.regrid(ds["pr"], box), rtol=1e-4)


def test_what_lies_on_the_grid_stays_bit_for_bit(model, rain):
    for ds in (rain, rain.isel(lat=slice(None, None, -1)), rain.assign_coords(lon=rain["lon"] + 360)):
        fine = xdeepsd.downscale(ds, model)
        assert "xdeepsd_adapted" not in fine.attrs
        expected = xdeepsd.downscale(rain, xdeepsd.StackedSRCNN(model.stages), model.static["elevation"])
        np.testing.assert_array_equal(fine["pr"].sortby("lat", ascending=False), expected["pr"])


def test_a_larger_map_on_the_same_cells_is_cut(model, rain, caplog):
    wide = on_grid(np.arange(-89.5, 90), np.arange(0.5, 360))
    with caplog.at_level("INFO", logger="xdeepsd"):
        fine = xdeepsd.downscale(wide, model)["pr"]
    assert "'pr' is cut to the model's domain" in caplog.text
    assert "xdeepsd_adapted" not in fine.attrs
    cut = wide.sel(lat=slice(43, 49), lon=slice(236, 244))
    np.testing.assert_array_equal(fine, xdeepsd.downscale(cut, model)["pr"])
    np.testing.assert_array_equal(fine["lon"], xdeepsd.downscale(cut, model)["lon"])
    seam = wide.roll(lon=-240, roll_coords=True)  # from 240.5 over 360 to 239.5: the domain lies across the seam
    np.testing.assert_array_equal(xdeepsd.downscale(seam, model)["pr"], fine)


def test_three_times_finer_cells_with_the_same_centres_are_regridded(model):
    """The coarse centres are among the fine ones, but the cells are not the same."""
    third = on_grid(43.5 + np.arange(-1, 17) / 3, -123.5 + np.arange(-1, 23) / 3)
    assert "regridded" in xdeepsd.downscale(third, model).attrs["xdeepsd_adapted"]


def test_coarser_input_is_warned_of(model, caplog):
    xdeepsd.downscale(GRIDS["gaussian, descending, 0 to 360"], model)
    assert "The cells of 'pr' are 2.79 degrees high, the model's coarse cells 1" in caplog.text
    caplog.clear()
    xdeepsd.downscale(GRIDS["finer"], model)
    assert "degrees high" not in caplog.text


@pytest.mark.parametrize("name", ["regular", "whole degrees, half a cell off", "rotated pole"])
def test_partial_coverage(name, model):
    """An error that names what is missing, or NaN there; not if nothing is wanted there."""
    ds = GRIDS[name]
    lat = ds["lat"] if ds["lat"].ndim == 1 else ds["lat"].isel(rlon=0)
    part = ds.isel({lat.dims[0]: (lat < 46.3).values})
    with pytest.raises(
        ValueError, match=r"does not cover the model's domain: \d+ of its 48.*lat 4[56] to 49 and lon -124"
    ):
        xdeepsd.downscale(part, model)
    fine, whole = xdeepsd.downscale(part, model, allow_partial=True)["pr"], xdeepsd.downscale(ds, model)["pr"]
    fine, whole = (da.transpose("time", "lat", "lon").sortby("lat").values for da in (fine, whole))
    assert np.isnan(fine[:, -6:]).all()
    np.testing.assert_allclose(fine[:, :2], whole[:, :2], rtol=1e-4, atol=1e-4)
    land = (model.static["elevation"] < np.inf) & (model.static["lat"] < 44)
    covered = xdeepsd.downscale(part, xdeepsd.StackedSRCNN(model.stages, static=model.static, mask=land))["pr"]
    np.testing.assert_array_equal(
        covered.notnull().any("time").transpose("lat", "lon").sortby("lat"), land.sortby("lat")
    )


def test_partial_coverage_by_coordinates_without_attributes(model):
    """They are found by their names."""
    part = GRIDS["regular"].isel({GRIDS["regular"]["lat"].dims[0]: (GRIDS["regular"]["lat"] < 46.3).values})
    bare = part.assign_coords({name: (part[name].dims, part[name].values) for name in ("lat", "lon")})
    xr.testing.assert_equal(
        xdeepsd.downscale(bare, model, allow_partial=True)["pr"],
        xdeepsd.downscale(part, model, allow_partial=True)["pr"],
    )


def test_fill_values_and_round_off_do_not_enter_the_means(model, caplog):
    """Regridding would spread them."""
    ds = GRIDS["finer"]
    gap = ds["pr"].where(ds["lat"] > 44)
    expected = xdeepsd.downscale(gap, model)
    dirty = gap.where(gap > 0, -1e-7).where(gap.notnull(), 1e20).assign_attrs(units="mm day-1")
    with caplog.at_level("INFO", logger="xdeepsd"):
        fine = xdeepsd.downscale(dirty, model)
    np.testing.assert_allclose(fine, expected, rtol=1e-5, atol=1e-6)
    assert "are 1e+20: taken as missing, though the file does not declare it" in caplog.text
    assert "values of 'pr' are below 0 by rounding: taken as 0" in caplog.text or not (gap <= 0).any()


def test_bounds_of_the_input_count(model):
    """Cells that are not half-way between their centres, and bounds repeated for every step by open_mfdataset."""
    ds = GRIDS["regular"]
    edges = np.concatenate([[39.0], (ds.lat.values[1:] + ds.lat.values[:-1]) / 2 + 0.3, [51.5]])
    ds = ds.assign(lat_bnds=(("lat", "bnds"), np.stack([edges[:-1], edges[1:]], 1)))
    ds["lat"].attrs["bounds"] = "lat_bnds"
    fine = xdeepsd.downscale(ds, model)
    assert not np.allclose(fine["pr"], xdeepsd.downscale(ds.drop_vars("lat_bnds"), model)["pr"])
    repeated = ds.assign(lat_bnds=ds["lat_bnds"].expand_dims(time=ds["time"]))
    np.testing.assert_array_equal(xdeepsd.downscale(repeated, model)["pr"], fine["pr"])


def test_maps_in_several_chunks(model):
    ds = GRIDS["finer"]
    fine = xdeepsd.downscale(ds.chunk(time=2, lat=30, lon=40), model)
    assert fine["pr"].chunksizes["lat"] == (12,)
    np.testing.assert_array_equal(fine["pr"], xdeepsd.downscale(ds, model)["pr"])


def test_a_model_without_grid_and_static_fields(caplog):
    """It takes any regular grid as it is; a curvilinear one it cannot know what to put on."""
    model = make_stack(2, channels=(4, 3), static=())
    ds = GRIDS["regular"]
    fine = xdeepsd.downscale(ds, model)
    assert fine["pr"].shape == (4, 32, 48)
    np.testing.assert_allclose(fine["lat"].values.reshape(-1, 4).mean(1), ds["lat"])
    np.testing.assert_allclose(fine["lon"].values.reshape(-1, 4).mean(1), ds["lon"])
    np.testing.assert_array_equal(fine["pr"], xdeepsd.downscale(ds, model, make_static(ds["pr"], 4))["pr"])
    with pytest.raises(ValueError, match=r"latitude 'lat' is 2-D.*xdeepsd.regrid"):
        xdeepsd.downscale(rotated(), model)


# --- days -------------------------------------------------------------------------------------------------------------


def hours(rain, freq="6h", units="mm day-1"):
    """Twelve steps of the rain with another frequency: three days of 6 h."""
    ds = make_coarse(days=12).assign_attrs(units=units).to_dataset()
    return ds.assign_coords(time=("time", xr.date_range("2001-01-01", periods=12, freq=freq), rain["time"].attrs))


@pytest.mark.parametrize("units", ["mm day-1", "mm/6h", "mm", "kg m-2", "inches", "mm per step"])
def test_hours_become_days(units, model, rain, no_compute):
    """Rates are averaged and amounts added up; the output says so and bounds its days."""
    ds = hours(rain, units=units)
    with no_compute():
        lazy = xdeepsd.downscale(ds.chunk(time=5), model)
    amount = units not in ("mm day-1", "mm/6h")
    grouped = ds["pr"].resample(time="1D")
    by_hand = (grouped.sum() if amount else grouped.mean()).assign_attrs(units=units)
    expected = xdeepsd.downscale(by_hand, model)
    fine = xdeepsd.downscale(ds, model)
    np.testing.assert_allclose(fine["pr"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lazy["pr"], expected, rtol=1e-4, atol=1e-5)
    assert fine.attrs["xdeepsd_adapted"].startswith("sums of 6 h steps" if amount else "means of 6 h steps")
    assert fine["pr"].attrs["units"] == units
    np.testing.assert_array_equal(fine["time"], by_hand["time"])
    np.testing.assert_array_equal(
        fine["time_bnds"].values[:, 1] - fine["time_bnds"].values[:, 0], np.timedelta64(1, "D")
    )
    assert fine["time"].attrs["bounds"] == "time_bnds"


def test_the_hour_at_which_days_end(model, rain):
    ds = hours(rain, units="mm")
    fine = xdeepsd.downscale(ds, model, day_ends=12)
    assert fine["time"].dt.day.values.tolist() == [2, 3]
    day = ds["pr"][2:6].sum("time").expand_dims(time=ds["time"][:1]).assign_attrs(units="mm day-1")
    np.testing.assert_allclose(fine["pr"][0], xdeepsd.downscale(day, model)[0], rtol=1e-4, atol=1e-5)
    assert str(fine["time_bnds"].values[0, 0])[:13] == "2001-01-01T12"
    assert "end at 12 UTC" in fine.attrs["xdeepsd_adapted"]
    with pytest.raises(ValueError, match=r"day_ends=12, and the values of 'pr' stand for 1 day.*Leave day_ends out"):
        xdeepsd.downscale(rain, model, day_ends=12)


@pytest.mark.parametrize("units", ["mm day-1", "mm", "kg m-2 s-1"])
def test_months_are_refused(units, model, rain):
    monthly = rain.assign_coords(time=xr.date_range("2001-01-01", periods=5, freq="MS"))
    monthly["pr"].attrs["units"] = units
    with pytest.raises(ValueError, match=r"stand for 30.5 days each \(by their steps\).*trained on single days"):
        xdeepsd.downscale(monthly, model)
    with pytest.raises(ValueError, match=r"by their frequency"):
        xdeepsd.downscale(monthly.isel(time=[0]).assign_attrs(frequency="mon"), model)
    assert xdeepsd.downscale(monthly.assign_attrs(frequency="day"), model)["pr"].size
    climatology = rain.copy()
    climatology["time"].attrs["climatology"] = "climatology_bounds"
    with pytest.raises(ValueError, match="are means over many years"):
        xdeepsd.downscale(climatology, model)


def test_points_are_no_map(model, rain):
    points = rain.stack(cell=("lat", "lon")).reset_index("cell")
    with pytest.raises(ValueError, match=r"'lat' and the longitude 'lon' both lie along the dim 'cell': points"):
        xdeepsd.downscale(points, model)


def test_months_that_xarray_cannot_decode(model, rain):
    months = ("time", np.arange(5), {"standard_name": "time", "units": "months since 1850-01-01"})
    with pytest.raises(ValueError, match=r"stand for 30.44 days each \(by their steps\)"):
        xdeepsd.downscale(rain.assign_coords(time=months), model)
    days = ("time", np.arange(5), {"standard_name": "time", "units": "days since 1850-01-01"})
    assert xdeepsd.downscale(rain.assign_coords(time=days), model)["pr"].size


def test_lead_times_of_hours_need_dates(model, rain):
    steps = hours(rain).assign_coords(time=np.arange(0, 72, 6).astype("m8[h]").astype("m8[ns]")).rename(time="step")
    with pytest.raises(ValueError, match=r"lead times of 6 h.*ds.assign_coords\(step=START \+ ds\['step'\]\)"):
        xdeepsd.downscale(steps, model)
    dates = steps.assign_coords(step=np.datetime64("2001-01-01", "ns") + steps["step"])
    assert xdeepsd.downscale(dates, model)["pr"].sizes["step"] == 3


# --- names, units, packing --------------------------------------------------------------------------------------------


def test_units_that_are_missing_or_wrong(model, rain):
    expected = xdeepsd.downscale(rain, model)["pr"]
    del rain["pr"].attrs["units"]
    np.testing.assert_array_equal(xdeepsd.downscale(rain, model, units="mm day-1")["pr"], expected)
    with pytest.raises(ValueError, match=r"has no units.*units='mm day-1'"):
        xdeepsd.downscale(rain, model)
    one = rain.isel(time=[0])
    one["pr"].attrs["units"] = "inches"
    with pytest.raises(ValueError, match=r"its period is unknown.*units='mm day-1'"):
        xdeepsd.downscale(one, model)
    fine = xdeepsd.downscale(one, model, units="inch day-1")["pr"]
    assert fine.attrs["units"] == "inch day-1"
    rate = (one["pr"] * 25.4).assign_attrs(units="mm day-1")
    np.testing.assert_allclose(fine * 25.4, xdeepsd.downscale(rate, model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian"])
def test_calendars_come_out_as_they_came_in(calendar, model, tmp_path):
    time = xr.date_range("2000-02-26", periods=5, calendar=calendar, use_cftime=calendar != "standard")
    make_coarse().assign_coords(time=time).to_netcdf(tmp_path / "in.nc")
    ds = xr.open_dataset(tmp_path / "in.nc")
    fine = xdeepsd.downscale(ds, model)
    xr.testing.assert_identical(fine["time"], ds["time"])
    xdeepsd.to_zarr(fine, tmp_path / "out.zarr")
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "out.zarr")["time"], ds["time"])


def test_packed_integers_with_their_packing(model, rain, tmp_path):
    encoding = {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -1}
    rain["pr"][0, 0, 0] = np.nan
    rain.to_netcdf(tmp_path / "a.nc", encoding={"pr": encoding})
    expected = xdeepsd.downscale(xr.open_dataset(tmp_path / "a.nc").load(), model)
    packed = xr.open_dataset(tmp_path / "a.nc", mask_and_scale=False).load()
    assert packed["pr"].dtype == np.int16
    np.testing.assert_array_equal(xdeepsd.downscale(packed, model)["pr"], expected["pr"])


@pytest.mark.parametrize("fill", [1e20, -3.4028235e38, -9999.0, 9.96921e36, 1e30])
def test_numbers_that_cannot_be_rain_are_missing(fill, model, rain, caplog):
    gap = rain["pr"].where(rain["lat"] < 47)
    expected = xdeepsd.downscale(gap, model)
    found = xdeepsd.downscale(gap.fillna(fill), model)
    np.testing.assert_array_equal(found, expected)
    assert "taken as missing, though the file does not declare it" in caplog.text
    np.testing.assert_array_equal(xdeepsd.downscale(gap.fillna(fill).chunk(time=1), model), expected)


def test_coordinates_in_another_form(model, rain):
    """WRF: latitudes for every step, a dim Time without values. RegCM: latitudes among the variables."""
    ds = rotated()
    expected = xdeepsd.downscale(ds, model)["pr"]
    wrf = ds.rename(time="Time", rlat="south_north", rlon="west_east", lat="XLAT", lon="XLONG")
    wrf = wrf.assign_coords(XTIME=("Time", wrf["Time"].values)).drop_vars(["Time", "rotated_pole"])
    for name, units in (("XLAT", "degree_north"), ("XLONG", "degree_east")):
        repeated = wrf[name].expand_dims(Time=4).assign_attrs(units=units)
        del repeated.attrs["standard_name"]
        wrf = wrf.assign_coords({name: repeated})
    found = xdeepsd.downscale(wrf.rename(pr="RAIN"), model)["RAIN"]
    np.testing.assert_array_equal(found, expected)
    assert found.dims == ("Time", "lat", "lon")
    hidden = ds.reset_coords(["lat", "lon"])
    np.testing.assert_array_equal(xdeepsd.downscale(hidden, model)["pr"], expected)


def test_the_only_map_of_a_curvilinear_grid(model):
    """Stage IV and forecasts of river centres: no standard name, 2-D latitudes, bounds of time among the variables."""
    ds = lambert().rename(pr="Total_precipitation_surface_24_Hour_Accumulation")
    edges = np.stack([ds["time"].values, ds["time"].values + np.timedelta64(1, "D")], axis=1)
    ds = ds.assign(time_bounds=(("time", "nv"), edges), orog=ds["latitude"] * 0)
    ds["time"].attrs["bounds"] = "time_bounds"
    found = xdeepsd.downscale(ds, model)["Total_precipitation_surface_24_Hour_Accumulation"]
    np.testing.assert_array_equal(found, xdeepsd.downscale(lambert(), model)["pr"])


def test_extra_dims_and_time_in_the_middle(model):
    ds = (
        GRIDS["regular"]
        .expand_dims(member=[1, 2], scenario=["rcp45"])
        .transpose("member", "lat", "time", "scenario", "lon")
    )
    fine = xdeepsd.downscale(ds, model)["pr"]
    assert fine.dims == ds["pr"].dims
    one = xdeepsd.downscale(GRIDS["regular"], model)["pr"]
    np.testing.assert_array_equal(fine.isel(member=1, scenario=0).transpose("time", "lat", "lon"), one)


def test_a_store_of_regridded_days_is_resumed(model, tmp_path, caplog):
    """Names of tasks are the same in the next process, so what is written is not written again."""
    ds = hours(make_coarse().to_dataset()).chunk(time=5)
    ds = ds.assign_coords(lat=(ds["lat"] + 0.3).assign_attrs(ds["lat"].attrs))
    names = {xdeepsd.downscale(ds, model, allow_partial=True)["pr"].data.name for _ in range(2)}
    assert len(names) == 1
    caplog.set_level(logging.INFO)
    xdeepsd.to_zarr(xdeepsd.downscale(ds, model, allow_partial=True), tmp_path / "a.zarr")
    xdeepsd.to_zarr(xdeepsd.downscale(ds, model, allow_partial=True), tmp_path / "a.zarr")
