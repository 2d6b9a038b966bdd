"""``xdeepsd evaluate``: what the library finds, on stores and files, beside every baseline."""

import json

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two years of a generated climate: the second one predicted, coarse and fine, the first for training."""
    folder = tmp_path_factory.mktemp("stores")
    fine = xdeepsd.make_climate(years=2, shape=(12, 16))["precipitation"]
    past, truth = (fine.sel(time=str(year)) for year in sorted(set(fine["time"].dt.year.values)))
    truth = truth.isel(time=slice(0, 90))
    coarse = xdeepsd.coarsen(truth, 4)
    prediction = xdeepsd.interpolate(coarse, truth) * 1.1
    for name, da in (("past", past), ("coarse", coarse)):
        da.to_dataset(name="pr").to_netcdf(folder / f"{name}.nc")
    for name, da in (("truth", fine), ("prediction", prediction)):
        da.assign_attrs(units="mm day-1").to_dataset(name="pr").chunk(time=30).drop_encoding().to_zarr(
            folder / f"{name}.zarr"
        )
    return folder


def test_the_tables(stores):
    options = ["--coarse", stores / "coarse.nc", "--training", stores / "past.nc", "--by", "season", "--indices"]
    result = run(stores / "prediction.zarr", stores / "truth.zarr", *options)
    assert result.exit_code == 0, result.output
    for name in (
        "bilinear",
        "bicubic",
        "climatology ratio",
        "climatology ratio, means kept",
        "bicubic, means kept",
        "BCSD",
    ):
        assert name in result.output
    for word in ("POD / FAR", "p99", "Diebold-Mariano", "RMSE by season", "CWD", "90 days"):
        assert word in result.output


def test_json_is_what_the_library_finds(stores):
    result = run(stores / "prediction.zarr", stores / "truth.zarr", "--coarse", stores / "coarse.nc", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    prediction, coarse = xr.open_zarr(stores / "prediction.zarr")["pr"], xr.open_dataset(stores / "coarse.nc")["pr"]
    truth = xr.open_zarr(stores / "truth.zarr")["pr"].sel(time=prediction["time"]).load()
    known = xdeepsd.evaluate(prediction, truth, beside=xdeepsd.baselines(coarse, truth)).compute()
    for name in known["name"].values:
        here = known.sel(name=name)
        assert found["all"]["rmse"][name] == pytest.approx(float(here["rmse"]))
        assert found["all"]["pod"][name]["10 mm"] == pytest.approx(float(here["pod"].sel(event="10 mm")), nan_ok=True)
    assert [row["name"] for row in found["differences"]][::2] == list(known["name"].values[1:])
    rmse = known["rmse"].to_series()
    best = found["strongest_baseline"]
    assert best["name"] == rmse[1:].idxmin()
    assert best["prediction_above_it"] == pytest.approx(rmse["prediction"] / rmse[1:].min() - 1)
    assert best["prediction_above_it"] > 0


def test_the_strongest_baseline_is_named(stores):
    prediction = xr.open_zarr(stores / "prediction.zarr")
    (prediction / 1.1).assign_attrs(prediction.attrs).map(lambda da: da.assign_attrs(units="mm day-1")).to_netcdf(
        stores / "interpolated.nc"
    )
    result = run(stores / "interpolated.nc", stores / "truth.zarr", "--coarse", stores / "coarse.nc")
    assert "The strongest baseline is bilinear, means kept, RMSE " in result.output
    assert "% above it" in result.output


def test_the_bias_of_a_coarse_file_is_known_where_it_has_the_training_days(stores):
    """Half the rain in all of a coarse file: BCSD finds it; with the days to judge alone, there is nothing to learn."""
    fine = xr.open_zarr(stores / "truth.zarr")["pr"].load()
    low = (xdeepsd.coarsen(fine, 4) / 2).assign_attrs(units="mm day-1").to_dataset(name="pr")
    low.to_netcdf(stores / "biased.nc")
    low.isel(time=slice(365, None)).to_netcdf(stores / "biased_late.nc")
    options = ["--training", stores / "past.nc", "--json"]
    found = {}
    for name in ("biased", "biased_late"):
        result = run(stores / "prediction.zarr", stores / "truth.zarr", "--coarse", stores / f"{name}.nc", *options)
        found[name] = json.loads(result.stdout)["all"]["bias"]
    assert abs(found["biased"]["BCSD"]) < 0.1 * abs(found["biased_late"]["BCSD"])
    assert found["biased_late"]["BCSD"] == pytest.approx(found["biased_late"]["climatology ratio"], rel=1e-3)


def test_regions_of_a_file(stores):
    truth = xr.open_zarr(stores / "truth.zarr")["pr"].isel(time=0, drop=True).load()
    mask = (truth["lat"] > float(truth["lat"].mean())) & truth["lon"].notnull()
    mask.astype("int8").to_dataset(name="state").to_netcdf(stores / "regions.nc")
    options = [stores / "prediction.zarr", stores / "truth.zarr", "--regions", stores / "regions.nc"]
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert "RMSE by region" in result.output
    found = json.loads(run(*options, "--json").stdout)
    assert list(found["region"]["rmse"]["prediction"]) == ["0", "1"]
    mask.to_dataset(name="one").assign(two=mask).to_netcdf(stores / "two.nc")
    result = run(*options[:-1], stores / "two.nc")
    assert result.exit_code == 1
    assert "has 2 maps of two dims, among one, two" in result.stderr


def test_training_days_are_told(stores):
    with pytest.warns(UserWarning, match="90 of 90 days are days of the training"):
        run(stores / "prediction.zarr", stores / "truth.zarr", "--training", stores / "truth.zarr")


def test_errors_are_one_sentence(stores):
    result = run(stores / "prediction.zarr", stores / "coarse.nc")
    assert result.exit_code == 1
    assert "Needed: the same cells" in result.stderr
    result = run(stores / "prediction.zarr", stores / "truth.zarr", "--by", "year")
    assert result.exit_code == 1
    assert "Needed: season or month" in result.stderr
    few = xr.open_dataset(stores / "coarse.nc").isel(time=slice(5, None))
    few.to_netcdf(stores / "few.nc")
    result = run(stores / "prediction.zarr", stores / "truth.zarr", "--coarse", stores / "few.nc")
    assert result.exit_code == 1
    assert "--coarse has 85 from" in result.stderr
    few = xr.open_dataset(stores / "coarse.nc")
    few.assign_coords(time=few["time"] + np.timedelta64(5, "D")).to_netcdf(stores / "shifted.nc")
    result = run(stores / "prediction.zarr", stores / "truth.zarr", "--coarse", stores / "shifted.nc")
    assert result.exit_code == 1, "as many days, but others"
    assert "--coarse has 90 from" in result.stderr


def test_days_are_days_whatever_their_hours(stores):
    coarse = xr.open_dataset(stores / "coarse.nc")
    coarse.assign_coords(time=coarse["time"] + np.timedelta64(12, "h")).to_netcdf(stores / "noon.nc")
    noon, midnight = (
        run(stores / "prediction.zarr", stores / "truth.zarr", "--coarse", stores / name, "--json").stdout
        for name in ("noon.nc", "coarse.nc")
    )
    assert json.loads(noon) == json.loads(midnight)
