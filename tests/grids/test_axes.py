"""Coordinates by CF metadata; units of precipitation."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse

from xdeepsd.grids import axes
from xdeepsd.grids.units import is_amount, precipitation_factor


def test_standardize_and_restore_are_inverse():
    da = make_coarse().rename(lat="nav_lat", lon="nav_lon", time="day").transpose("nav_lon", "day", "nav_lat")
    standard, names = axes.standardize(da)
    assert standard.dims == ("time", "lat", "lon")
    xr.testing.assert_identical(axes.restore(standard, names), da)


def test_cf_attributes_win_over_names():
    da = make_coarse().rename(lat="x", lon="y")  # misleading names, clear attributes
    names = axes.find(da)
    assert (names.lat, names.lon) == ("x", "y")


def test_bounds_are_no_candidates():
    da = make_coarse().rename(lat="lat_0", lon="lon_0")
    da["lat_0"].attrs, da["lon_0"].attrs = {}, {}
    ds = da.to_dataset().assign_coords(lat_0_bnds=(("lat_0", "bnds"), np.zeros((6, 2))))
    assert axes.find(ds).lat == "lat_0"


def test_two_plain_names_are_two_candidates():
    da = make_coarse()
    da["lat"].attrs = {}
    with pytest.raises(ValueError, match=r"Several candidates for latitude: \['lat', 'latitude'\]"):
        axes.find(da.assign_coords(latitude=("lat", da.lat.values)))


def test_other_dims_stay_in_front():
    da = make_coarse().expand_dims(member=2).transpose("lat", "member", "lon", "time")
    standard, _ = axes.standardize(da)
    assert standard.dims == ("member", "time", "lat", "lon")


def test_spacing_takes_float32_coordinates():
    lon = (-125 + np.arange(1405) / 24).astype("float32")
    assert axes.spacing(lon, "lon") == pytest.approx(1 / 24, rel=1e-5)
    assert axes.spacing(lon[::-1], "lon") < 0
    with pytest.raises(ValueError, match="lon has 1 value: its spacing is unknown"):
        axes.spacing(lon[:1], "lon")
    for step in (0.25, -2.0):  # a hundredth of a step off, and a little more
        centres = 10 + step * np.arange(6)
        near, far = centres.copy(), centres.copy()
        near[2] += 0.0098 * step
        far[2] += 0.0102 * step
        assert axes.spacing(near, "lat") == pytest.approx(step)
        with pytest.raises(ValueError, match="lat is irregular: steps from"):
            axes.spacing(far, "lat")


def test_wrap_longitude_goes_by_whole_turns():
    near = np.array([-10.0, 10.0])
    np.testing.assert_array_equal(axes.wrap_longitude(np.array([350.0, 370.0]), near), near)
    np.testing.assert_array_equal(axes.wrap_longitude(near, near), near)


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm day-1", 1),
        ("mm/day", 1),
        ("mm d-1", 1),
        ("mm", 1),
        ("kg m-2", 1),
        ("kg m-2 day-1", 1),
        ("kg m-2 s-1", 86400),
        ("kg/m^2/s", 86400),
        ("mm s-1", 86400),
        ("mm h-1", 24),
        ("m s-1", 86.4e6),
        ("m", 1000),
        ("inch day-1", 25.4),
        ("inches", 25.4),
    ],
)
def test_precipitation_factor(units, factor):
    assert precipitation_factor(units) == pytest.approx(factor, rel=1e-12)
    assert precipitation_factor("mm day-1", units) == pytest.approx(1 / factor, rel=1e-12)


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        *[
            (units, 8)
            for units in ("mm/3h", "mm/3hr", "mm/3 hours", "mm (3h)-1", "mm 3h-1", "mm per 3 hours", "kg m-2 3h-1")
        ],
        ("mm/24h", 1),
        ("mm/5 days", 0.2),
        ("mm/da", 1),  # not a tenth of a year
        ("Inches", 25.4),
        ("MM/DAY", 1),
        ("0.1 mm", 0.1),
        ("1e-3 m", 1),
    ],
)
def test_units_as_files_write_them(units, factor):
    assert precipitation_factor(units) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    "units", ["mm/step", "mm per time step", "m of water equivalent", "mm w.e.", "lwe mm", "kg m**-2", "0.01 inches"]
)
def test_amounts_as_files_write_them(units):
    assert is_amount(units)


@pytest.mark.parametrize("units", ["K", "", None, "not a unit", "m2", "kg", "3 h", "2", "mm/3", "mm 3"])
def test_not_precipitation(units):
    with pytest.raises(ValueError, match=r"Accepted: mm day-1"):
        precipitation_factor(units)


def test_amounts():
    assert is_amount("inch")
    assert is_amount("kg m-2")
    assert not is_amount("kg m-2 s-1")
