"""Bad input gets a clear error before any graph is built: each text says what arrived, what is needed, what to type."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd


@pytest.fixture(scope="module")
def case():
    model = make_stack(2, channels=(4, 3))
    coarse = make_coarse()
    return model, coarse, make_static(coarse, model.scale)["elevation"]


def refuse(match, ds, model, *args, error=ValueError, **options):
    with pytest.raises(error, match=match):
        xdeepsd.downscale(ds, model, *args, **options)


def test_no_lat_lon(case):
    model, coarse, elevation = case
    users = coarse.rename(lat="a", lon="b")
    for name in ("a", "b"):
        users[name].attrs = {}
    refuse(r"No latitude found among the coordinates \['a', 'b', 'time'\].*rename", users, model, elevation)
    refuse("No latitude found", coarse.drop_vars(["lat", "lon"]), model, elevation)
    metres = users.rename(a="y", b="x")
    for name in ("x", "y"):
        metres[name].attrs["units"] = "m"
    refuse("No latitude found", metres, model, elevation)


def test_two_candidates(case):
    model, coarse, elevation = case
    users = coarse.assign_coords(latitude=("lat", coarse.lat.values, coarse.lat.attrs))
    refuse(r"Several candidates for latitude: \['lat', 'latitude'\].*drop_vars\('latitude'\)", users, model, elevation)
    both = xr.Dataset({"pr": coarse, "tp": coarse})
    refuse(r"Several candidates for precipitation: \['pr', 'tp'\].*variable=NAME", both, model, elevation)
    assert xdeepsd.downscale(both, model, elevation, variable="tp")["tp"].shape == (5, 24, 32)


def test_missing_static(case):
    _, coarse, elevation = case
    model = make_stack(2, channels=(4, 3), static=("elevation", "climatology"))
    refuse(r"no grid of its own and no static fields.*\['elevation', 'climatology'\].*static=", coarse, model)
    refuse(r"static is one DataArray; the model needs.*xr\.Dataset", coarse, model, elevation)
    given = elevation.rename("elevation").to_dataset()
    refuse(r"static fields \['climatology'\] are missing: \['elevation'\]", coarse, model, given)
    refuse("static is a ndarray; needed: a DataArray", coarse, case[0], elevation.values, error=TypeError)


def test_static_grid_is_not_scale_times_the_input(case):
    model, coarse, elevation = case
    refuse(r"static grid is 23 x 32 cells; needed: a multiple of 4.*lat=slice\(20\)", coarse, model, elevation[:-1])
    shifted = elevation.assign_coords(lat=elevation.lat + 0.5)
    refuse(
        r"does not cover the model's domain: 8 of its 48.*lat 48.5 to 49.5 and lon -124 to -116", coarse, model, shifted
    )
    shifted = elevation.assign_coords(lon=elevation.lon + 90)
    refuse(r"do not overlap", coarse, model, shifted)


def test_static_with_time_or_other_units(case):
    model, coarse, elevation = case
    refuse(r"'elevation' has the dims \('time', 'lat', 'lon'\)", coarse, model, elevation.expand_dims(time=2))
    refuse(r"elevation has units 'ft'; needed: m", coarse, model, elevation.assign_attrs(units="ft"))
    both = make_stack(1, channels=(4, 3), static=("elevation", "climatology"))
    static = make_static(coarse, 2, names=("elevation", "climatology"))
    static["climatology"].attrs["units"] = "mm month-1"
    refuse(r"climatology has units 'mm month-1'; needed: 'mm day-1'", coarse, both, static)


def test_irregular_coordinates(case):
    """With a target grid they are regridded; without one there is nothing to put them on."""
    model, coarse, elevation = case
    bare = make_stack(2, channels=(4, 3), static=())
    lat = coarse.lat.values.copy()
    lat[2] += 0.3
    refuse(r"lat of the input is irregular.*regrid", coarse.assign_coords(lat=lat), bare)
    jump = coarse.assign_coords(lon=np.r_[176.5:180, -179.5:-176:1.0])
    refuse(r"lon of the input is irregular.*sortby", jump, bare)
    lat[2] = np.nan
    refuse(r"lat of the input has NaN", coarse.assign_coords(lat=lat), bare)
    refuse(r"lat has 1 NaN among its 6 values", coarse.assign_coords(lat=lat), model, elevation)


def test_columns_on_both_sides_of_the_date_line(case):
    model, coarse, _ = case
    east = coarse.assign_coords(lon=np.r_[176.5:180, 180.5:184])
    static = make_static(east, model.scale)["elevation"]
    expected = xdeepsd.downscale(east, model, static)
    jump = xdeepsd.downscale(east.assign_coords(lon=np.r_[176.5:180, -179.5:-176:1.0]), model, static)
    np.testing.assert_array_equal(jump.values, expected.values)
    np.testing.assert_allclose(jump["lon"] % 360, expected["lon"])


def test_two_dimensional_coordinates(case):
    """The same cells with 2-D coordinates give the same numbers, up to the edges of the cells."""
    model, coarse, elevation = case
    lat2, lon2 = xr.broadcast(coarse.lat, coarse.lon)
    users = coarse.rename(lat="rlat", lon="rlon").drop_vars(["rlat", "rlon"])
    users = users.assign_coords(
        lat=(("rlat", "rlon"), lat2.values, coarse.lat.attrs), lon=(("rlat", "rlon"), lon2.values, coarse.lon.attrs)
    )
    fine = xdeepsd.downscale(users, model, elevation, allow_partial=True)
    assert fine.dims == ("time", "lat", "lon")
    expected = xdeepsd.downscale(coarse, model, elevation)
    np.testing.assert_allclose(fine, expected, rtol=0.01, atol=0.05)
    refuse("is a single number, not a dimension", coarse.isel(lat=0), model, elevation)


@pytest.mark.parametrize("units", ["K", "mm month-1 kg", "1", "degC", "W m-2"])
def test_wrong_units(case, units):
    model, coarse, elevation = case
    users = coarse.assign_attrs(units=units)
    refuse(r"units '.*' are not units of precipitation\. Accepted: mm day-1.*kg m-2 s-1.*Type", users, model, elevation)


def test_missing_units(case):
    model, coarse, elevation = case
    users = coarse.copy()
    del users.attrs["units"]
    refuse(r"has no units\. Accepted: mm day-1.*Type ds\['NAME'\]\.attrs\['units'\]", users, model, elevation)


def test_amounts_need_daily_steps(case):
    model, coarse, elevation = case
    users = coarse.assign_attrs(units="mm")
    daily = users.deepsd.downscale(model, elevation)
    np.testing.assert_array_equal(daily.values, coarse.deepsd.downscale(model, elevation).values)
    monthly = users.assign_coords(time=xr.date_range("2001-01-01", periods=5, freq="MS"))
    refuse(r"'pr' stand for 30.5 days each \(by their steps\)\. Needed: days", monthly, model, elevation)
    with pytest.raises(ValueError, match=r"'mm' are an amount, and the time steps are 30.5 days"):
        xdeepsd.make_levels(monthly, None, (2,))
    calendar = users.assign_coords(
        time=xr.date_range("2001-01-01", periods=5, freq="2D", calendar="360_day", use_cftime=True)
    )
    refuse(r"time steps are 2 days", calendar, model, elevation)


def test_all_nan(case):
    model, coarse, elevation = case
    refuse(r"All 240 values of 'pr' are NaN", coarse * np.nan, model, elevation, variable="pr")
    lazy = (coarse * np.nan).assign_attrs(coarse.attrs).chunk()
    assert np.isnan(lazy.deepsd.downscale(model, elevation).compute()).all()  # not known before computing
    refuse(r"'pr' is empty", coarse.isel(time=slice(0)), model, elevation)


def test_wrong_spacing(case):
    bare, _, elevation = case
    model = xdeepsd.StackedSRCNN(bare.stages, static=elevation.to_dataset(name="elevation"))
    half = make_coarse(spacing=0.5)
    static = make_static(half, model.scale)
    refuse(
        r"spacing of the static grid in lat is 0\.125 degrees.*trained on 0\.25.*Leave static out", half, model, static
    )
    refuse(r"does not cover the model's domain", half, model)
    whole = make_coarse(nlat=12, nlon=16, spacing=0.5)
    assert "regridded" in whole.deepsd.downscale(model).attrs["xdeepsd_adapted"]


def test_another_variable(case):
    bare, coarse, elevation = case
    model = xdeepsd.StackedSRCNN(bare.stages, variable="ppt")
    snow = coarse.rename("prsn").assign_attrs(standard_name="snowfall_flux")
    refuse(r"No precipitation among.*snowfall_flux.*trained on 'ppt' in mm day-1", snow, model, elevation)
    refuse("No precipitation among", snow.to_dataset(), model, elevation, variable="prsn")
    other = coarse.rename("foo")  # nothing says that it is something else
    del other.attrs["standard_name"]
    assert other.deepsd.downscale(model, elevation).size
    assert other.to_dataset().deepsd.downscale(model, elevation, variable="foo")["foo"].size
    tmax = coarse.rename("tmax").assign_attrs(standard_name="air_temperature", units="degC")
    refuse("No precipitation among", tmax.to_dataset(), model, elevation)


def test_a_variable_that_is_not_there(case):
    model, coarse, elevation = case
    refuse(
        r"There is no variable='ppt'\. The Dataset has \['pr'\]", coarse.to_dataset(), model, elevation, variable="ppt"
    )
    refuse(r"There is no variable='ppt': the DataArray is named 'pr'", coarse, model, elevation, variable="ppt")


def test_non_float(case):
    model, coarse, elevation = case
    packed = coarse.astype("int16")
    refuse(r"'pr' has dtype int16.*mask_and_scale=True.*astype", packed, model, elevation, error=TypeError)


def test_mask(case):
    model, coarse, elevation = case
    refuse(r"mask has type float64; needed: a bool DataArray", coarse, model, elevation, mask=elevation)
    refuse(r"mask has type ndarray", coarse, model, elevation, mask=(elevation > 0).values)
    refuse(r"mask has .* does not lie on the target grid of 24 x 32", coarse, model, elevation, mask=elevation[1:] > 0)
    off = r"mask has .* does not lie on the target grid of"
    shifted = (elevation > 0).assign_coords(lat=elevation.lat + 9)
    refuse(off, coarse, model, elevation, mask=shifted)
    refuse(off, coarse, model, elevation, mask=(elevation > 0).expand_dims(day=3))
    part = {"lat": slice(0, 3 * model.scale), "lon": slice(0, 4 * model.scale)}
    refuse(off, coarse[:, :3, :4], model, elevation.isel(part), mask=elevation > 0)  # larger than the target


def test_other_objects_and_options(case):
    model, coarse, elevation = case
    refuse("downscale got a ndarray", coarse.values, model, elevation, error=TypeError)
    refuse(r"model is a str; needed: a StackedSRCNN.*load_model", coarse, "model/", elevation, error=TypeError)
    refuse(r"precision 'float16'; needed: one of 'float32'", coarse, model, elevation, precision="float16")
    refuse(r"batch_size 0; needed", coarse, model, elevation, batch_size=0)


def test_nothing_is_built_before_an_error(case, no_compute):
    model, coarse, elevation = case
    with no_compute():
        refuse("static grid is", coarse.chunk(time=1), model, elevation[:-1].chunk())


# --- what is taken for precipitation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("standard_name", ["pr", "precipitation amount", "Precipitation", None])
def test_standard_names_that_are_no_cf_names(case, standard_name):
    """gridMET has "pr", GPCP has "precipitation amount", MIROC has "Precipitation"."""
    model, coarse, elevation = case
    users = coarse.rename("precipitation_amount").assign_attrs(standard_name=standard_name)
    if standard_name is None:
        del users.attrs["standard_name"]
    for given, options in (
        (users, {}),
        (users.to_dataset(), {}),
        (users.to_dataset(), {"variable": "precipitation_amount"}),
    ):
        assert xdeepsd.downscale(given, model, elevation, **options)["lat"].size == 24


def test_only_other_cf_names_and_units_speak_against_what_is_named(case):
    model, coarse, elevation = case
    part = coarse.rename("prc").assign_attrs(standard_name="convective_precipitation_flux")
    refuse("No precipitation among", part.to_dataset(), model, elevation)
    assert xdeepsd.downscale(part.to_dataset(), model, elevation, variable="prc")["prc"].size
    other = coarse.rename("evspsbl").assign_attrs(standard_name="water_evaporation_flux")
    refuse("No precipitation among", other.to_dataset(), model, elevation, variable="evspsbl")
    cold = coarse.rename("x").assign_attrs(standard_name="x", units="K")
    refuse("not units of precipitation", cold.to_dataset(), model, elevation, variable="x")


def test_the_only_map_is_taken_and_the_log_says_so(case, caplog):
    model, coarse, elevation = case
    bare = coarse.copy(deep=True).rename("PREC_biasadju").to_dataset()
    bare = bare.assign(height=("lat", np.zeros(6)), flag=("time", np.zeros(5)))
    bare["PREC_biasadju"].attrs.pop("standard_name", None)
    with caplog.at_level("INFO", logger="xdeepsd"):
        assert bare.deepsd.downscale(model, elevation)["PREC_biasadju"].size
    assert "'PREC_biasadju' is taken as precipitation: it is the only map" in caplog.text
    refuse(
        r"Several candidates for precipitation: \['PREC_biasadju', 'b'\]",
        bare.assign(b=bare["PREC_biasadju"]), model, elevation,
    )  # fmt: skip


# --- amounts and their period -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["time", "valid_time", "t", "Time", "date", "anything"])
def test_amounts_of_an_hour_are_never_those_of_a_day(case, name):
    model, coarse, elevation = case
    users = coarse.assign_attrs(units="mm").assign_coords(time=xr.date_range("2001-01-01", periods=5, freq="h"))
    users = users.rename(time=name)
    users[name].attrs = {}
    refuse(r"No day of 'pr' is complete: 5 steps of 1 h", users, model, elevation)
    refuse(r"No day of 'pr' is complete: 5 steps of 1 h", users.to_dataset(), model, elevation)
    with pytest.raises(ValueError, match=r"time steps are 0\.0416667 days"):
        xdeepsd.make_levels(users, None, (2,))
    gap = np.arange(5) // 2 * np.timedelta64(5, "D")  # a gap does not hide the short steps
    mixed = users.assign_coords({name: users[name].values + gap})
    refuse(r"No day of 'pr' is complete: 5 steps of 1 h", mixed, model, elevation)
    daily = users.assign_coords({name: xr.date_range("2001-01-01", periods=5)})
    fine = daily.deepsd.downscale(model, elevation)
    assert fine.dims == daily.dims
    assert fine.attrs["units"] == "mm"


def test_lead_times_are_time(case):
    """With cfgrib the dim is ``step``, a lead time; ``time`` is the single start of the forecast."""
    model, coarse, elevation = case
    hours = np.arange(1, 6).astype("timedelta64[h]")
    users = coarse.assign_attrs(units="mm").drop_vars("time").rename(time="step")
    users = users.assign_coords(step=hours.astype("timedelta64[ns]"), time=np.datetime64("2001-01-01", "ns"))
    users = users.assign_coords(valid_time=("step", users.time.values + users.step.values))
    refuse("steps of 'step' are lead times of 1 h", users, model, elevation)
    daily = users.assign_coords(step=users.step.values * 24)
    fine = daily.deepsd.downscale(model, elevation)
    assert fine.dims == ("step", "lat", "lon")
    xr.testing.assert_equal(fine["time"], daily["time"])


def test_a_scalar_time_beside_the_day(case):
    model, coarse, elevation = case
    users = coarse.rename(time="day").assign_coords(time=np.datetime64("1999-01-01", "ns"))
    users["day"].attrs = {}
    fine = users.deepsd.downscale(model, elevation)
    assert fine.dims == ("day", "lat", "lon")
    xr.testing.assert_equal(fine.coords["time"], users.coords["time"])
    np.testing.assert_array_equal(fine.values, coarse.deepsd.downscale(model, elevation).values)


def test_an_amount_whose_period_is_not_known(case):
    model, coarse, elevation = case
    users = coarse.assign_attrs(units="mm")
    for one in (users.isel(time=[0]), users.isel(time=0), users.isel(time=0, drop=True)):
        refuse("an amount, and its period is unknown", one, model, elevation)
        assert one.assign_attrs(units="mm day-1").deepsd.downscale(model, elevation).size
    days = users.isel(time=[0]).to_dataset()
    assert days.assign_attrs(frequency="day").deepsd.downscale(model, elevation)["pr"].size
    days["time"].attrs["bounds"] = "time_bnds"
    for hours in (24, 6):
        bounds = days.time.values[:, None] + np.array([[0, hours]]).astype("timedelta64[h]")
        given = days.assign(time_bnds=(("time", "nv"), bounds))
        if hours == 24:
            assert given.deepsd.downscale(model, elevation)["pr"].size
        else:
            refuse("No day of 'pr' is complete: 1 steps of 6 h", given, model, elevation)


def test_latitudes_that_are_text(case):
    model, coarse, elevation = case
    users = coarse.assign_coords(lat=coarse.lat.values.astype(str))
    users["lat"].attrs = {"standard_name": "latitude"}
    refuse(r"latitude 'lat' has dtype <U.*astype\(float\)", users, model, elevation)
    again = users.assign_coords(lat=users["lat"].astype(float))
    assert again.deepsd.downscale(model, elevation).size


# --- values that are no rain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("lazy", [False, True])
def test_named_fill_values_are_missing(case, attribute, lazy):
    model, coarse, elevation = case
    missing = coarse.where(coarse["lat"] < 47)
    users = missing.fillna(-9999.0).assign_attrs({**coarse.attrs, attribute: -9999.0})
    expected = missing.deepsd.downscale(model, elevation)
    fine = (users.chunk(time=2) if lazy else users).deepsd.downscale(model, elevation)
    np.testing.assert_array_equal(fine.values, expected.values)
    assert attribute not in fine.attrs, "NaN means missing now"
    level = xdeepsd.make_levels(users, None, (2,))[0]["precipitation"]
    xr.testing.assert_equal(level, xdeepsd.make_levels(missing, None, (2,))[0]["precipitation"])


def test_clearly_negative_rain_is_refused(case):
    model, coarse, elevation = case
    users = coarse.copy(data=np.where(coarse > 10, np.float32(-999), coarse))
    share = float((users < 0).mean())
    text = rf"'pr' has values down to -999: {share:.2g} of them are below -0\.1.*ds\.where"
    refuse(text, users, model, elevation)
    lazy = users.chunk(time=5).deepsd.downscale(model, elevation)  # not known before computing
    with pytest.raises(ValueError, match=text):
        lazy.compute()
    for number in (-999, -9999):  # in training, an undeclared fill value too
        with pytest.raises(ValueError, match=f"'pr' has values down to {number}"):
            xdeepsd.make_levels(users.where(users >= 0, number).assign_attrs(users.attrs), None, (2,))
    seconds = users / 86400
    seconds.attrs = {**coarse.attrs, "units": "mm s-1"}
    refuse(r"'pr' has values down to -0\.011", seconds, model, elevation)


def test_negative_by_rounding_is_none(case):
    model, coarse, elevation = case
    users = coarse.where(coarse > 0, -1e-5)
    np.testing.assert_array_equal(
        users.deepsd.downscale(model, elevation).values, coarse.deepsd.downscale(model, elevation).values
    )
    assert float(xdeepsd.make_levels(users, None, (2,))[0]["precipitation"].min()) >= 0


# --- the mask of a part -----------------------------------------------------------------------------------------------


def test_a_part_of_the_domain_keeps_its_mask(case, caplog):
    bare, coarse, elevation = case
    rng = np.random.default_rng(4)
    mask = elevation.copy(data=rng.random(elevation.shape) < 0.6)
    model = xdeepsd.StackedSRCNN(bare.stages, static=elevation.to_dataset(name="elevation"), mask=mask)
    rows, cols = slice(1, 4), slice(2, 7)
    fine = {"lat": slice(4, 16), "lon": slice(8, 28)}
    part = coarse.isel(lat=rows, lon=cols).deepsd.downscale(model, elevation.isel(fine))
    np.testing.assert_array_equal(part.notnull().any("time"), mask.isel(fine))
    turned = coarse.isel(lat=rows, lon=cols)[:, ::-1].deepsd.downscale(model, elevation.isel(fine)[::-1])
    np.testing.assert_array_equal(turned.notnull().any("time"), mask.isel(fine)[::-1])
    east = coarse.isel(lat=rows, lon=cols)
    east = east.assign_coords(lon=east.lon + 360).deepsd.downscale(model, elevation.isel(fine))
    np.testing.assert_array_equal(east.notnull().any("time"), mask.isel(fine))
    with caplog.at_level("WARNING", logger="xdeepsd"):
        elsewhere = coarse.assign_coords(lat=coarse.lat - 9)
        moved = elevation.assign_coords(lat=elevation.lat - 9)
        assert elsewhere.deepsd.downscale(model, moved).notnull().all()
    assert "so the model's mask is not used" in caplog.text


@pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
def test_fill_values_of_static_fields_are_missing(attribute):
    coarse = make_coarse(days=2, nlat=4, nlon=6)
    model, height = make_stack(1, channels=(2,), kernels=(3, 3)), make_static(coarse, 2)["elevation"]
    filled = height.where(height.lat < 48, -9999.0).assign_attrs({attribute: -9999.0})
    wanted = xdeepsd.downscale(coarse, model, height.where(height.lat < 48))
    np.testing.assert_array_equal(xdeepsd.downscale(coarse, model, filled), wanted)
