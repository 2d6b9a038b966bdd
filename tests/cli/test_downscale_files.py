"""Files of a climate model on the command line: joined, with the options for what their attributes do not say."""

import numpy as np
import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app


def run(*words):
    return CliRunner().invoke(app, ["downscale", *map(str, words)], env={"COLUMNS": "1000"})


@pytest.fixture
def job(tmp_path):
    """A model, and ten steps of 12 h in two files whose latitudes differ by rounding and lie half a cell off."""
    stack = make_stack(1, channels=(4, 3), kernels=(3, 1, 3))
    model = xdeepsd.StackedSRCNN(stack.stages, static=make_static(make_coarse(), 2))
    xdeepsd.save_model(model, tmp_path / "model")
    ds = make_coarse(days=10, nlat=8, nlon=10).to_dataset()
    ds = ds.assign_coords(
        lat=ds["lat"] + 1.5, lon=ds["lon"] - 1.5, time=xr.date_range("2005-12-30", periods=10, freq="12h")
    )
    del ds["pr"].attrs["units"]
    historical, scenario = ds.isel(time=slice(5)), ds.isel(time=slice(5, None))
    scenario = scenario.assign_coords(lat=scenario["lat"] * (1 + 1e-15))
    assert not np.array_equal(historical["lat"], scenario["lat"])
    historical.to_netcdf(tmp_path / "historical.nc")
    scenario.to_netcdf(tmp_path / "rcp85.nc")
    return tmp_path, ds, model


def test_files_that_follow_one_another(job):
    folder, ds, model = job
    files = [folder / "rcp85.nc", folder / "historical.nc"]  # in any order
    options = ["--units", "mm per step", "--day-ends", "12", "--chunk-days", "2", "--threads", "1"]
    result = run(*files, folder / "model", folder / "out.zarr", *options)
    assert result.exit_code == 0, result.output
    assert "out.zarr is complete: 4 days" in result.output
    assert "coarse cells with values" in result.output.split("Downscaling")[0], "the audit comes before the work"
    expected = xdeepsd.downscale(ds, model, units="mm per step", day_ends=12)
    found = xr.open_zarr(folder / "out.zarr", consolidated=False)
    np.testing.assert_allclose(found["pr"], expected["pr"], rtol=1e-5)
    np.testing.assert_array_equal(found["time"], expected["time"])
    assert "regridded conservatively from 8 x 10 cells" in found.attrs["xdeepsd_adapted"]
    written = {p: p.stat().st_mtime_ns for p in (folder / "out.zarr").rglob("*")}
    again = run(*files, folder / "model", folder / "out.zarr", *options)
    assert again.exit_code == 0
    assert "coarse cells" not in again.output, "nothing is left to look at"
    assert {p: p.stat().st_mtime_ns for p in (folder / "out.zarr").rglob("*")} == written, "it was complete"


def test_files_that_do_not(job):
    folder, ds, _ = job
    rest = [folder / "model", folder / "out.zarr"]
    files = [folder / "historical.nc", folder / "late.nc"]
    ds.isel(time=slice(4, 8)).to_netcdf(files[1])
    result = run(*files, *rest)
    assert result.exit_code
    assert "late.nc begins at 2006-01-01 00:00:00, before" in result.output
    ds.isel(time=slice(5, 8), lat=slice(1, None)).to_netcdf(folder / "smaller.nc")
    assert "smaller.nc lies on another grid than" in run(files[0], folder / "smaller.nc", *rest).output
    assert "or --units 'mm day-1'." in run(files[0], *rest).output


def test_a_part_of_the_domain(job):
    folder, ds, model = job
    part = ds.isel(lat=slice(0, 5)).assign_coords(time=xr.date_range("2001-01-01", periods=10))
    part["pr"].attrs["units"] = "mm day-1"
    part.to_netcdf(folder / "part.nc")
    rest = [folder / "part.nc", folder / "model", folder / "out.zarr"]
    assert "does not cover the model's domain" in run(*rest).output
    result = run(*rest, "--allow-partial", "--no-audit")
    assert result.exit_code == 0
    assert "coarse cells" not in result.output
    found = xr.open_zarr(folder / "out.zarr", consolidated=False)["pr"]
    np.testing.assert_allclose(found, xdeepsd.downscale(part, model, allow_partial=True)["pr"], rtol=1e-5)


def test_check_shows_what_is_found_and_writes_nothing(job):
    folder, ds, _ = job
    files = [folder / "historical.nc", folder / "rcp85.nc", folder / "model", folder / "out.zarr"]
    observed = ds["pr"].resample(time="1D").sum().rename("rr").assign_attrs(units="mm")
    observed.to_netcdf(folder / "observed.nc")
    result = run(*files, "--units", "mm per step", "--check", "--observed", folder / "observed.nc")
    assert result.exit_code == 0, result.output
    for text in ("'pr' in mm per step, each value of 12 h (by its steps)", "5, 2005-12-30 to 2006-01-03",
                 "sums of 12 h", "regridded conservatively", "correlation, observed +0 days", "1.00"):  # fmt: skip
        assert text in result.output, text
    assert not (folder / "out.zarr").exists()
    assert "--observed is looked at by --check only" in run(*files, "--observed", "a.nc").output
