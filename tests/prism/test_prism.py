"""open_prism: files in every format become one lazy Dataset on exact cell centres."""

import pickle
import zipfile
from pathlib import Path
from typing import Literal

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from prism_server import NORTH, SHAPE, WEST, broken, day_zip, map_of, tif

from xdeepsd.grids import axes
from xdeepsd.prism import files as prism
from xdeepsd.prism.files import open_prism
from xdeepsd.prism.names import GRIDS, VARIABLES, PrismGrid, parse_name, snap

DAY = pd.Timestamp("2011-01-01")
FIRST_LAT = NORTH - np.arange(SHAPE[0]) / 24
FIRST_LON = WEST + np.arange(SHAPE[1]) / 24


def old_stem(day: pd.Timestamp, variable: str = "ppt", release: str = "stable", form: str = "bil") -> str:
    return f"PRISM_{variable}_{release}_4kmD2_{day:%Y%m%d}_{form}"


def bil_members(stem: str, values: np.ndarray, nodata: float = -9999.0, declare: bool = True) -> dict[str, bytes]:
    """A BIL file exactly as PRISM writes it: ULXMAP and ULYMAP are the centre of the first cell."""
    rows, columns = values.shape
    header = (
        f"BYTEORDER      I\nLAYOUT         BIL\nNROWS          {rows}\nNCOLS          {columns}\nNBANDS         1\n"
        f"NBITS          32\nBANDROWBYTES   {4 * columns}\nTOTALROWBYTES  {4 * columns}\nPIXELTYPE      FLOAT\n"
        f"ULXMAP         {WEST}\nULYMAP         {NORTH}\n"
        "XDIM           0.0416666666667\nYDIM           0.0416666666667\n"
    )
    if declare:
        header += f"NODATA         {nodata:g}\n"
    return {
        f"{stem}.bil": np.where(np.isnan(values), np.float32(nodata), values).astype("<f4").tobytes(),
        f"{stem}.hdr": header.encode(),
        f"{stem}.info.txt": b"PRISM_DATASET_VERSION: D2\n",
        f"{stem}.stx": b"1 0 1 0.5 0.1\n",
    }


def asc_members(stem: str, values: np.ndarray, nodata: float = -9999.0) -> dict[str, bytes]:
    rows, columns = values.shape
    text = (
        f"ncols {columns}\nnrows {rows}\nxllcorner {WEST - 1 / 48:.12f}\n"
        f"yllcorner {NORTH + 1 / 48 - rows / 24:.12f}\ncellsize 0.041666666667\nNODATA_value {nodata:g}\n"
    )
    lines = [" ".join(f"{nodata if np.isnan(v) else v:.3f}" for v in row) for row in values]
    return {f"{stem}.asc": (text + "\n".join(lines) + "\n").encode()}


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_files(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)


def netcdf(values: np.ndarray, form: Literal["NETCDF3_CLASSIC", "NETCDF4"]) -> bytes:
    """A netCDF file as GDAL writes it for the service: Band1 from south to north."""
    ds = xr.Dataset(
        {"Band1": (("lat", "lon"), values[::-1]), "crs": ((), b"")}, {"lat": FIRST_LAT[::-1], "lon": FIRST_LON}
    )
    ds["Band1"].encoding["_FillValue"] = np.float32(-9999)
    return bytes(ds.to_netcdf(format=form))


@pytest.fixture
def mixed(tmp_path):
    """Eight consecutive days, each in a different format, in one folder per year."""
    days = pd.date_range("2010-12-30", periods=9)
    d = [map_of(day) for day in days]
    (tmp_path / "2010").mkdir()
    (tmp_path / "2011" / "nested").mkdir(parents=True)
    y10, y11 = tmp_path / "2010", tmp_path / "2011"
    write_zip(y10 / f"{old_stem(days[0])}.zip", bil_members(old_stem(days[0]), d[0]))
    several = bil_members(old_stem(days[1]), d[1]) | bil_members(old_stem(days[2]), d[2])
    write_zip(y10 / "PRISM_ppt_stable_4kmD2_20101231_20110101_bil.zip", several)
    write_files(y11 / old_stem(days[3]), bil_members(old_stem(days[3]), d[3]))
    write_files(y11, asc_members(old_stem(days[4], form="asc"), d[4]))
    write_zip(y11 / "renamed (2) {x}.zip", asc_members(old_stem(days[5], form="asc"), d[5]))
    (y11 / "nested" / f"prism_ppt_us_25m_{days[6]:%Y%m%d}.zip").write_bytes(
        day_zip("ppt", days[6], d[6], 3, region="us")
    )
    (y11 / f"prism_ppt_us_25m_{days[7]:%Y%m%d}.nc").write_bytes(netcdf(d[7], "NETCDF3_CLASSIC"))
    name = f"prism_ppt_us_25m_{days[8]:%Y%m%d}"
    write_zip(
        y11 / f"{name}.zip",
        {f"{name}.nc": netcdf(d[8], "NETCDF4"), f"{name}.info.txt": b"PRISM_DATASET_RELEASE_NUMBER: 5\n"},
    )
    (y11 / "readme.txt").write_text("not a grid")
    return tmp_path, days, np.stack(d)


def test_a_folder_of_years_in_every_form(mixed, no_compute):
    folder, days, maps = mixed
    with no_compute():
        ds = open_prism(folder)
        assert ds["ppt"].chunks == ((1,) * 9, (SHAPE[0],), (SHAPE[1],))
    assert ds["ppt"].dims == ("time", "lat", "lon")
    assert ds["ppt"].dtype == np.float32
    np.testing.assert_array_equal(ds["ppt"].values, maps)
    np.testing.assert_array_equal(ds["time"].values, days.values)
    np.testing.assert_array_equal(ds["ppt_release"].values, [8, 8, 8, 8, 8, 8, 3, 0, 5])
    np.testing.assert_array_equal(ds["lat"].values, (528 - np.arange(SHAPE[0])) / 24)
    np.testing.assert_array_equal(ds["lon"].values, (-3840 + np.arange(SHAPE[1])) / 24)


def test_one_task_per_map(mixed):
    folder, days, _ = mixed
    ds = open_prism(folder)
    (optimised,) = dask.optimize(ds["ppt"])
    assert len(optimised.__dask_graph__()) == len(days)
    calls = []
    with dask.config.set(scheduler="sync"):
        reader, prism.read_map = prism.read_map, lambda source, grid: calls.append(source) or reader(source, grid)
        try:
            ds["ppt"].isel(time=[2]).compute()
        finally:
            prism.read_map = reader
    assert len(calls) == 1  # of the two maps in that zip, and of nine files


def test_maps_travel_to_other_processes_and_have_the_same_name_again(mixed):
    folder, _, maps = mixed
    ds = open_prism(folder)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ds))["ppt"].values, maps)
    assert open_prism(folder)["ppt"].data.name == ds["ppt"].data.name


def test_paths_lists_and_patterns(mixed):
    folder, _, maps = mixed
    ds = open_prism([str(folder / "2010" / "*.zip"), folder / "2011"])
    np.testing.assert_array_equal(ds["ppt"].values, maps)
    assert open_prism(f"{folder}/**/*20110105*", allow_missing=True)["time"].size == 1


def test_cf_metadata(mixed):
    ds = open_prism(mixed[0])
    found = axes.find(ds["ppt"])
    assert (found.lat, found.lon, found.time) == ("lat", "lon", "time")
    bounds = ds[ds["time"].attrs["bounds"]].values
    np.testing.assert_array_equal(bounds[:, 1], ds["time"].values + np.timedelta64(12, "h"))
    np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])
    assert ds["ppt"].attrs["units"] == "mm day-1"
    assert "Oregon State University" in ds.attrs["source"]
    assert set(VARIABLES) == {"ppt", "tmin", "tmax", "tmean", "tdmean", "vpdmin", "vpdmax"}


def test_what_is_opened_can_be_written_and_comes_back(mixed, tmp_path):
    ds = open_prism(mixed[0])
    ds.to_zarr(tmp_path / "again.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "again.zarr", consolidated=False)
    xr.testing.assert_identical(again.load(), ds.load())


@pytest.mark.parametrize("nodata", [-9999.0, -3.4e38, 1e20, -32768.0])
@pytest.mark.parametrize("declare", [True, False])
def test_nodata_whatever_its_value(tmp_path, nodata, declare):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY), nodata, declare))
    np.testing.assert_array_equal(open_prism(tmp_path)["ppt"].values[0], map_of(DAY))


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF4"])
@pytest.mark.parametrize("zipped", [True, False])
def test_netcdf_of_both_kinds(tmp_path, form, zipped):
    name = f"prism_ppt_us_25m_{DAY:%Y%m%d}"
    members = {f"{name}.nc": netcdf(map_of(DAY), form)}
    if zipped:
        write_zip(tmp_path / "any.zip", members)
    else:
        write_files(tmp_path, members)
    np.testing.assert_array_equal(open_prism(tmp_path)["ppt"].values[0], map_of(DAY))


def test_a_netcdf_of_many_days(tmp_path):
    days = pd.date_range("2011-01-01", periods=3)
    ds = xr.Dataset(
        {"ppt": (("time", "lat", "lon"), np.stack([map_of(day) for day in days]))},
        {"time": days + pd.Timedelta(hours=12), "lat": FIRST_LAT, "lon": FIRST_LON},
    )
    ds.to_netcdf(tmp_path / "ppt_2011.nc", engine="netcdf4")
    opened = open_prism(tmp_path)
    np.testing.assert_array_equal(opened["ppt"].values, ds["ppt"].values)
    np.testing.assert_array_equal(opened["time"].values, days.values)


def test_elevation_beside_the_days(tmp_path):
    write_zip(tmp_path / "day.zip", bil_members(old_stem(DAY), map_of(DAY)))
    elevation = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    write_zip(tmp_path / "PRISM_us_dem_4km_bil.zip", bil_members("PRISM_us_dem_4km_bil", elevation))
    ds = open_prism(tmp_path)
    np.testing.assert_array_equal(ds["elevation"].values, elevation)
    assert ds["elevation"].attrs["units"] == "m"
    assert "time" not in ds["elevation"].dims


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "variable", "date", "release", "region", "resolution"),
    [
        ("PRISM_ppt_stable_4kmD2_20110101_bil.bil", "ppt", "2011-01-01", 8, "us", "4km"),
        ("PRISM_tmin_provisional_4kmD2_20240131_bil.bil", "tmin", "2024-01-31", 2, "us", "4km"),
        ("PRISM_vpdmax_early_800mD1_20240229_asc.asc", "vpdmax", "2024-02-29", 1, "us", "800m"),
        ("prism_tdmean_us_25m_20251103.tif", "tdmean", "2025-11-03", 0, "us", "4km"),
        ("prism_tmax_hi_15s_19910101.nc", "tmax", "1991-01-01", 0, "hi", "400m"),
        ("prism_ppt_ak_30s_19810101.bil", "ppt", "1981-01-01", 0, "ak", "800m"),
    ],
)
def test_names(name, variable, date, release, region, resolution):
    source = parse_name(Path(name))
    assert source is not None
    assert (source.variable, source.day, source.release) == (variable, pd.Timestamp(date), release)
    assert (source.region, source.resolution) == (region, resolution)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PRISM_ppt_30yr_normal_4kmD1_0301_bil.bil", "is a normal"),
        ("PRISM_tmax_30yr_normal_800mM4_annual_bil.bil", "is a normal"),
        ("prism_ppt_us_25m_20200301_avg_30y.tif", "is a normal"),  # looks like a date but is not
        ("prism_ppt_us_25m_2020_avg_30y.tif", "is a normal"),
        ("PRISM_tmin_stable_4kmM3_198712_bil.bil", r"is a monthly grid \(198712\)"),
        ("prism_tmin_us_25m_2019.tif", r"is an annual grid \(2019\)"),
        ("prism_soltotal_us_25m_20200101.tif", "holds 'soltotal'. Needed: one of ppt"),
        ("prism_ppt_us_25m_20201301.tif", "20201301 is not a date"),
    ],
)
def test_names_refused(name, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        parse_name(Path(name))
    write_zip(tmp_path / "any.zip", {name: b""})
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    with pytest.raises(ValueError, match=f"({text}).*Leave it out of paths"):
        open_prism(tmp_path)


def test_other_names():
    assert parse_name(Path("Stage_IV_2011.tif")) is None
    assert parse_name(Path("prism.tif")) is None


# ------------------------------------------------------------------------------------------------------------ grids


def test_conus_grids():
    lon = np.array([float(k) / 24 for k in range(-3000, -3000 + 1405)])
    lat = np.array([float(k) / 24 for k in range(1198, 1198 - 621, -1)])
    np.testing.assert_array_equal(GRIDS["us", "4km"].lon, lon)
    np.testing.assert_array_equal(GRIDS["us", "4km"].lat, lat)
    fine = GRIDS["us", "800m"]
    # both cover the same box, from -125.0208333 to -66.4791667 E and from 24.0625 to 49.9375 N
    for grid in (GRIDS["us", "4km"], fine):
        half = 0.5 / grid.per_degree
        assert grid.lon[0] - half == pytest.approx(-125.0208333333, abs=1e-9)
        assert grid.lon[-1] + half == pytest.approx(-66.4791666667, abs=1e-9)
        assert grid.lat[0] + half == pytest.approx(49.9375, abs=1e-9)
        assert grid.lat[-1] - half == pytest.approx(24.0625, abs=1e-9)


@given(
    per_degree=st.sampled_from([24, 120, 240]),
    north=st.integers(-170, 170),
    west=st.integers(-360, 350),
    offset=st.integers(0, 500),
    shape=st.tuples(st.integers(2, 3200), st.integers(2, 7100)),
    digits=st.integers(8, 15),
)
def test_centres_are_exact_however_the_header_was_rounded(per_degree, north, west, offset, shape, digits):
    north, west = north * per_degree + offset, west * per_degree - offset
    step = round(1 / per_degree, digits)
    grid = snap(
        round(north / (2 * per_degree), digits), round(west / (2 * per_degree), digits), -step, step, shape, "x"
    )
    assert grid == PrismGrid(per_degree, north, west, shape)
    for k in (0, shape[1] // 2, shape[1] - 1):
        assert grid.lon[k] == (west + 2 * k) / (2 * per_degree)  # a quotient of two exact integers


@pytest.mark.parametrize(
    ("lat", "lon", "lat_step", "lon_step"),
    [
        (50, -125, 1 / 24, -1 / 24),
        (50, -125, 1 / 24, 1 / 24),
        (50, -125, -0.05, 0.041),
        (50.005, -125, -1 / 24, 1 / 24),
        (0, 0, -4000.0, 4000.0),
    ],
)
def test_other_grids_are_refused(lat, lon, lat_step, lon_step):
    with pytest.raises(ValueError, match=r"a\.tif: its grid starts at .* Needed: a PRISM grid"):
        snap(lat, lon, lat_step, lon_step, (621, 1405), "a.tif")


def test_grids_that_differ(tmp_path):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    day = DAY + pd.Timedelta(days=1)
    (tmp_path / "b.zip").write_bytes(day_zip("ppt", day, map_of(day), 8, region="us", west=WEST + 1 / 24))
    with pytest.raises(ValueError, match=r"is on another grid: 12 x 20 .* -159\.9583 E .*Needed: 12 x 20"):
        open_prism(tmp_path)


# ------------------------------------------------------------------------------------------------- twice and missing


def test_the_same_day_twice(tmp_path):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    (tmp_path / "x.zip").write_bytes(day_zip("ppt", DAY, map_of(DAY), 8, region="us"))
    ds = open_prism(tmp_path)
    assert ds["ppt_release"].values.tolist() == [8]
    np.testing.assert_array_equal(ds["ppt"].values[0], map_of(DAY))


def test_the_more_final_release_is_taken(tmp_path):
    early = map_of(DAY, 1)
    write_files(tmp_path, bil_members(old_stem(DAY, release="early"), early))
    (tmp_path / "x.zip").write_bytes(day_zip("ppt", DAY, map_of(DAY, 6), 6, region="us"))
    ds = open_prism(tmp_path)
    assert ds["ppt_release"].values.tolist() == [6]
    np.testing.assert_array_equal(ds["ppt"].values[0], map_of(DAY, 6))


@pytest.mark.parametrize("release", [8, 0])
def test_twice_with_different_data(tmp_path, release):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    name = f"prism_ppt_us_25m_{DAY:%Y%m%d}.tif"
    tags = {"PRISM_DATASET_RELEASE_NUMBER": str(release)} if release else {}
    (tmp_path / name).write_bytes(tif(map_of(DAY) + 1, tags))
    with pytest.raises(
        ValueError, match=r"ppt of 2011-01-01 is there twice with different data.*Leave one of them out"
    ):
        open_prism(tmp_path)


def test_missing_days_are_listed(tmp_path):
    for date in ("2011-01-01", "2011-01-02", "2011-01-06", "2011-01-08"):
        day = pd.Timestamp(date)
        write_files(tmp_path, bil_members(old_stem(day), map_of(day)))
    text = (
        r"ppt is missing on 4 of the 8 days from 2011-01-01 to 2011-01-08: 2011-01-03 to 2011-01-05 \(3 days\), "
        r"2011-01-07\. Needed: every day\..*allow_missing=True"
    )
    with pytest.raises(ValueError, match=text):
        open_prism(tmp_path)
    ds = open_prism(tmp_path, allow_missing=True)
    assert ds["time"].size == 4
    assert bool(ds["ppt"].notnull().any(("lat", "lon")).all())


def test_several_variables_of_different_days(tmp_path):
    days = pd.date_range("2011-01-01", periods=3)
    for day in days:
        write_files(tmp_path, bil_members(old_stem(day), map_of(day)))
    write_files(tmp_path, bil_members(old_stem(days[1], "tmax"), map_of(days[1]) - 5))
    with pytest.raises(ValueError, match="tmax is missing on 2 of the 3 days"):
        open_prism(tmp_path)
    ds = open_prism(tmp_path, allow_missing=True)
    assert ds["tmax"].attrs["units"] == "degC"
    assert ds["tmax_release"].values.tolist() == [0, 8, 0]
    assert ds["tmax"].isel(time=[0, 2]).isnull().all()
    np.testing.assert_array_equal(ds["tmax"].isel(time=1).values, map_of(days[1]) - 5)


# -------------------------------------------------------------------------------------------------------- bad files


def test_every_bad_file_is_listed(tmp_path):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    good = day_zip("ppt", DAY, map_of(DAY), 8, region="us")
    (tmp_path / "cut.zip").write_bytes(broken(good))
    (tmp_path / "text.zip").write_text("You have tried to download the file more than twice")
    (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    members = bil_members(old_stem(DAY), map_of(DAY))
    members[f"{old_stem(DAY)}.bil"] = members[f"{old_stem(DAY)}.bil"][:-40]
    write_zip(tmp_path / "short.zip", members)
    with pytest.raises(ValueError) as caught:
        open_prism(tmp_path)
    text = str(caught.value)
    assert "cut.zip is a broken zip" in text
    assert "text.zip is not a zip; it starts with 'You have tried" in text
    assert "empty.zip is an empty zip" in text
    assert "is truncated: 920 bytes of 960" in text
    assert text.count("Leave it out of paths") == 4


def test_a_day_that_is_another_inside(tmp_path):
    zipped = day_zip("ppt", DAY, map_of(DAY), 8, region="us", tag_day=DAY + pd.Timedelta(days=1))
    (tmp_path / "x.zip").write_bytes(zipped)
    with pytest.raises(ValueError, match=r"does not hold the day in its name.*20110102"):
        open_prism(tmp_path)


def test_broken_rasters(tmp_path):
    content = tif(map_of(DAY))
    (tmp_path / f"prism_ppt_us_25m_{DAY:%Y%m%d}.tif").write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"20110101\.tif cannot be read"):
        open_prism(tmp_path)
    (tmp_path / f"prism_ppt_us_25m_{DAY:%Y%m%d}.tif").unlink()
    (tmp_path / f"prism_ppt_us_25m_{DAY:%Y%m%d}.nc").write_bytes(b"not NetCDF")
    with pytest.raises(ValueError, match=r"20110101\.nc cannot be read as NetCDF"):
        open_prism(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file or folder .*nowhere"):
        open_prism(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No PRISM grid in"):
        open_prism(tmp_path)


def test_files_that_are_not_prisms(tmp_path, caplog):
    write_files(tmp_path, bil_members(old_stem(DAY), map_of(DAY)))
    (tmp_path / "stage4.tif").write_bytes(tif(map_of(DAY)))
    assert open_prism(tmp_path)["time"].size == 1
    assert "stage4.tif is skipped" in caplog.text
    with pytest.raises(ValueError, match=r"Neither .*stage4\.tif nor .* PRISM name"):
        open_prism(tmp_path / "stage4.tif")


# -------------------------------------------------------------------------------------------------------- real files

REAL = {
    "1981-01-01": ("PRISM_ppt_stable_4kmD2_19810101_bil.zip", 8),
    "1991-01-01": ("PRISM_ppt_stable_4kmD2_19910101_bil.zip", 8),
    "2011-01-01": ("PRISM_ppt_stable_4kmD2_20110101_bil.zip", 8),
    "2017-01-01": ("PRISM_ppt_stable_4kmD2_20170101_20170131_bil.zip", 8),
    "2017-01-02": ("PRISM_ppt_stable_4kmD2_20170101_20170131_bil.zip", 8),
    "2017-01-31": ("PRISM_ppt_stable_4kmD2_20170101_20170131_bil.zip", 8),
    "2025-11-03": ("prism_ppt_us_25m_20251103.zip", 1),
}


@pytest.mark.realdata
def test_real_files_against_the_statistics_beside_them(real_data):
    folder = real_data / "prism"
    ds = open_prism(
        {folder / name for name, _ in REAL.values()} | {folder / "prism_elevation_4km.nc"}, allow_missing=True
    )
    assert ds["ppt"].shape == (7, 621, 1405)
    assert ds["ppt_release"].values.tolist() == [release for _, release in REAL.values()]
    np.testing.assert_array_equal(ds["lon"].values, (np.arange(1405) - 3000) / 24)
    np.testing.assert_array_equal(ds["lat"].values, (1198 - np.arange(621)) / 24)
    for date, (name, _) in REAL.items():
        values = ds["ppt"].sel(time=date).values.squeeze()
        with zipfile.ZipFile(folder / name) as archive:
            (stx,) = [n for n in archive.namelist() if n.endswith(".stx") and date.replace("-", "") in n]
            _, low, high, mean, std = map(float, archive.read(stx).split())
            raw = [n for n in archive.namelist() if n.endswith(".bil") and date.replace("-", "") in n]
            if raw:  # the bytes themselves
                expected = np.frombuffer(archive.read(raw[0]), "<f4").reshape(621, 1405)
                np.testing.assert_array_equal(values, np.where(expected == -9999, np.nan, expected))
        assert np.isfinite(values).sum() == 481_631
        np.testing.assert_allclose(
            [np.nanmin(values), np.nanmax(values), np.nanmean(values, dtype=float), np.nanstd(values, dtype=float)],
            [low, high, mean, std],
            rtol=1e-4,
            atol=1e-4,
        )
    assert np.isfinite(ds["elevation"].values[np.isfinite(values)]).all()  # an elevation on every land cell


@pytest.mark.realdata
def test_real_files_as_unpacked(real_data, tmp_path):
    for name in ("PRISM_ppt_stable_4kmD2_20170101_20170131_bil.zip", "prism_ppt_us_25m_20251103.zip"):
        with zipfile.ZipFile(real_data / "prism" / name) as archive:
            archive.extractall(tmp_path / name.removesuffix(".zip"))
    unpacked = open_prism(tmp_path, allow_missing=True)
    zipped = open_prism([real_data / "prism" / "*2017*.zip", real_data / "prism" / "*2025*.zip"], allow_missing=True)
    xr.testing.assert_identical(unpacked.load(), zipped.load())


@pytest.mark.realdata
def test_real_normal_crop_and_bad_files(real_data):
    folder = real_data / "prism"
    with pytest.raises(ValueError, match=r"PRISM_ppt_30yr_normal_4kmD1_0301_bil\.bil is a normal"):
        open_prism(folder / "PRISM_ppt_30yr_normal_4kmD1_0301_bil.zip")
    crop = open_prism(folder / "small_PRISM_ppt_stable_4kmD2_20110101_bil.zip")
    whole = open_prism(folder / "PRISM_ppt_stable_4kmD2_20110101_bil.zip")
    # The crop's own coordinates were rounded; snapped, they select exactly its cells from the whole map.
    np.testing.assert_array_equal(crop["ppt"], whole["ppt"].sel(lat=crop["lat"], lon=crop["lon"]))
    assert crop["ppt"].isnull().any()
    with pytest.raises(ValueError) as caught:
        open_prism(real_data / "prism_bad")
    for text in ("is truncated: 3480082 bytes of 3490020", "more than twice in one day", "empty.zip is an empty zip"):
        assert text in str(caught.value)
