"""Real files of climate models and products go through the call as they are; each test names its file's oddity."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd

pytestmark = pytest.mark.realdata


def model_at(north, west, nlat=6, nlon=8, spacing=1.0, conserve="multiplicative"):
    """A model whose coarse cells lie here, and which keeps their means."""
    coarse = make_coarse(nlat=nlat, nlon=nlon, spacing=spacing)
    lat, lon = north - spacing * (np.arange(nlat) + 0.5), west + spacing * (np.arange(nlon) + 0.5)
    static = make_static(coarse.assign_coords(lat=lat, lon=lon), 2)
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3), conserve=conserve)
    return xdeepsd.StackedSRCNN(stack.stages, static=static)


def open_real(folder, name, variable=None):
    """A file, lazily; its variables in chunks of a hundred days or steps."""
    ds = xr.open_dataset(folder / name, decode_timedelta=False)
    if variable is not None:
        da = ds[variable]
        ds[variable] = da.chunk({da.dims[da.dims.index("time")]: 400}) if "time" in da.dims else da
    return ds


def coarse_means(fine, model):
    """Coarse cells of a fine field, for a model that keeps its means."""
    return xdeepsd.coarsen(fine.sortby("lat", ascending=False), model.scale)


def test_a_global_360_day_model_cut_out_with_longitudes_to_360(real_data, no_compute, tmp_path):
    """ECHO-G (CMIP3): calendar 360_day, 0..360, gaussian latitudes with bounds, kg m-2 s-1; days 30 and 31 differ."""
    ds = open_real(real_data / "gcm", "pr.sresa2.miub_echo_g.run1.atm.da.nc", "pr")
    model = model_at(60, -75)
    with no_compute():
        fine = xdeepsd.downscale(ds, model)
    assert fine["pr"].sizes == {"time": 7200, "lat": 12, "lon": 16}
    assert fine["time"].dt.calendar == "360_day"
    assert ((fine["time"].dt.month == 2) & (fine["time"].dt.day == 30)).sum() == 20
    assert fine["pr"].attrs["units"] == "kg m-2 s-1"
    assert {"time_bnds"} < set(fine.variables)
    assert not {"lat_bnds", "lon_bnds"} & set(fine.variables)
    assert float(fine["lon"].min()) > 180
    # A coarse cell inside one cell of the model's has its value: 58..59 N in 55.7..59.4, 287..288 E in 286.9..290.6.
    some = fine["pr"].isel(time=slice(0, 400)).compute()
    found = coarse_means(some, model).sel(lat=58.5, lon=287.5 + np.arange(3))
    source = ds["pr"].isel(time=slice(0, 400)).sel(lat=57.52, lon=288.75, method="nearest")
    np.testing.assert_allclose(found, np.broadcast_to(source.values[:, None], found.shape), rtol=1e-4)
    xdeepsd.to_zarr(fine.isel(time=slice(0, 400)), tmp_path / "a.zarr")
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "a.zarr")["pr"].compute(), some)


def test_a_rotated_pole_in_two_files_of_five_years(real_data):
    """CRCM5 (CORDEX): rotated pole, every hundredth cell, 365_day; open_mfdataset repeats what has no time."""
    files = sorted((real_data / "gcm").glob("pr_NAM-22_*.nc"))
    ds = xr.open_mfdataset(files, data_vars="all")
    assert len(files) == 2
    model = model_at(50, -110)
    fine = xdeepsd.downscale(ds, model)
    assert fine["pr"].sizes == {"time": 3650, "lat": 12, "lon": 16}
    assert fine["time"].dt.calendar == "noleap"
    assert not {"rlat", "rlon", "rotated_pole"} & set(fine.variables)
    assert "from 3 x 4 cells" in fine.attrs["xdeepsd_adapted"]
    target = xdeepsd.coarsen(model.static, 2)
    by_hand = xdeepsd.regrid(xr.open_dataset(files[1])[["pr"]], target)["pr"].isel(time=slice(5))
    np.testing.assert_allclose(
        coarse_means(fine["pr"].isel(time=slice(1825, 1830)).compute(), model), by_hand, rtol=1e-3, atol=1e-9
    )


def test_a_bias_corrected_file_with_another_variable_in_front(real_data):
    """CanESM2 at 1/12 degree: `mm s-1`, noleap, descending latitudes, `time_vectors` on (time, ts, lon, lat) first."""
    ds = open_real(real_data / "gcm", "pr_day_CanESM2_rcp85_r1i1p1_na10kgrid_qm-moving-50bins-detrend_2095.nc", "pr")
    model = model_at(44.5, -74.5, nlat=8, nlon=8, spacing=0.25)
    fine = xdeepsd.downscale(ds, model)["pr"]
    assert fine.sizes == {"time": 365, "lat": 16, "lon": 16}
    assert fine.attrs["units"] == "mm s-1"
    assert float(fine["lat"][0]) > float(fine["lat"][-1])
    # Three by three of its cells make one of the model's, up to the rounding of their float32 coordinates.
    near = ds["pr"].sel(lat=slice(44.5, 44.25), lon=slice(-74.5, -74.25)).isel(time=slice(50))
    assert near.shape == (50, 3, 3)
    weights = np.cos(np.deg2rad(near["lat"]))
    by_hand = near.weighted(weights).mean(("lat", "lon"))
    found = coarse_means(fine.isel(time=slice(50)).compute(), model).isel(lat=0, lon=0)
    np.testing.assert_allclose(found, by_hand, rtol=0.02, atol=1e-8)


def test_an_extra_dim_of_length_one(real_data):
    """LOCA: `projection` without values in front of time, stamps at noon, `mm/d`, no standard name."""
    ds = open_real(real_data / "messy", "Extraction_pr.nc", "pr")
    model = model_at(36.22, -118.9, nlat=3, nlon=4, spacing=0.0625)
    fine = xdeepsd.downscale(ds, model)["pr"]
    assert fine.dims == ("projection", "time", "lat", "lon")
    assert fine.shape == (1, 3652, 6, 8)
    assert str(fine["time"].values[0]) == "2050-01-01T12:00:00.000000000"


def test_a_rotated_pole_whose_bounds_are_named_like_their_dim(real_data):
    """HIRHAM: `time_bnds` is variable, coordinate and dim; 190 x 174 cells, of which those around the domain count."""
    ds = open_real(real_data / "messy", "small_rotPole_precipitation.nc")
    model = model_at(56, 5)
    fine = xdeepsd.downscale(ds, model)["pr"]
    assert fine.sizes == {"time": 4, "lat": 12, "lon": 16}
    assert "from 190 x 174 cells" in fine.attrs["xdeepsd_adapted"]
    by_hand = xdeepsd.regrid(ds[["pr"]], xdeepsd.coarsen(model.static, 2), na_thres=0.0)["pr"]
    np.testing.assert_allclose(coarse_means(fine, model), by_hand, rtol=1e-3, atol=1e-9)
    with pytest.raises(
        ValueError, match=r"does not cover the model's domain: \d+ of its 48.*lat 4\d to 48 and lon -18 to"
    ):
        xdeepsd.downscale(ds, model_at(48, -18))


def test_temperature_is_refused(real_data):
    """HadCM3 `tasmin`, 360_day: a fine grid and calendar, but no precipitation."""
    with pytest.raises(ValueError, match=r"No precipitation among the variables.*'air_temperature'"):
        xdeepsd.downscale(open_real(real_data / "messy", "tiny_gcm_360_day_cal.nc"), model_at(-60, 34))


def test_a_geotiff_in_a_projection_without_units_and_nodata(real_data, caplog):
    """Stage IV: HRAP (polar stereographic) with x and y in metres only, inches, -3.4e38 without a nodata tag."""
    rioxarray = pytest.importorskip("rioxarray")
    da = rioxarray.open_rasterio(real_data / "messy" / "nws_precip_1day_20190516_conus.tif")
    model = model_at(55, -98)
    with pytest.raises(ValueError, match=r"has no units.*units='mm day-1'"):
        xdeepsd.downscale(da, model, variable=da.name)
    fine = xdeepsd.downscale(da, model, units="inch day-1").compute()
    assert fine.sizes == {"band": 1, "lat": 12, "lon": 16}
    assert "spatial_ref" not in fine.coords
    assert "-3.40282e+38: taken as missing, though the file does not declare it" in caplog.text
    # It rained some tenths of an inch in Manitoba that day; far into Canada there are no radars.
    assert 0.01 < float(fine.max()) < 6
    assert fine.sel(lat=slice(51, 49)).notnull().any()
    assert fine.sel(lat=slice(55, 54)).isnull().all()


def test_days_in_a_dim_of_another_name(real_data):
    """gridMET: `day` is time, the standard name is "pr", a scalar map of the projection as a dim, `mm` a day."""
    ds = open_real(real_data / "minnesota_jan2000", "gridmet_pr_2000_mn__14-day.nc")
    model = model_at(49, -97, nlat=5, nlon=7)
    fine = xdeepsd.downscale(ds, model)["precipitation_amount"]
    assert fine.sizes == {"day": 14, "lat": 10, "lon": 14}
    other = open_real(real_data / "minnesota_jan2000", "nclimgrid-prcp-200001-grd-scaled_mn__14-day.nc")
    ascending = xdeepsd.downscale(other, model)["prcp"]  # `millimeter`, ascending float32 latitudes
    assert float(ascending["lat"][0]) < float(ascending["lat"][-1])
    assert np.isfinite(ascending).all()


def test_a_reanalysis_with_negative_round_off(real_data, caplog):
    """NCEP over Iberia: gaussian 1.9 degrees, winters only (gaps of nine months), kg m-2 s-1 a little below 0."""
    ds = open_real(real_data / "iberia", "reanalysis_ncep_19deg.nc", "pr")
    assert float(ds["pr"].min()) < 0
    observed = xr.open_dataset(real_data / "iberia" / "obs_eobs_05deg.nc")
    model = model_at(44, -9, nlat=8, nlon=12)
    with caplog.at_level("INFO", logger="xdeepsd"):
        fine = xdeepsd.downscale(ds, model)["pr"].compute()
    assert float(fine.min()) >= 0
    assert "are below 0 by rounding: taken as 0" in caplog.text
    np.testing.assert_array_equal(fine["time"], observed["time"])
    mean, seen = (da.mean(("lat", "lon")) * factor for da, factor in ((fine, 86400), (observed["rr"], 1)))
    assert np.corrcoef(mean, seen)[0, 1] > 0.8
