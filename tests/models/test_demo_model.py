"""The model that comes with the package: small, better than every baseline, and never taken for the user's."""

import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from builders import make_stack
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.models.files import DEMO


def test_it_beats_interpolation_on_days_it_never_saw():
    model, climate = xdeepsd.load_model("demo"), xdeepsd.make_climate()
    truth = climate["precipitation"].sel(time="2003")
    coarse = xdeepsd.coarsen(truth, 8)
    assert all(stage["last_day"] < "2003" for stage in model.training["stages"])
    fields = {"xdeepsd": xdeepsd.downscale(coarse, model), "bilinear": xdeepsd.interpolate(coarse, truth)}
    wanted = climate["mask"].values
    rmse = {
        name: float(np.sqrt(np.mean((field.values.astype("float64") - truth.values)[:, wanted] ** 2)))
        for name, field in fields.items()
    }
    said = model.training["errors"]
    assert rmse == pytest.approx({name: said[name]["rmse"] for name in rmse}, abs=2e-3)
    assert rmse["xdeepsd"] < rmse["bilinear"] / 3
    assert said["xdeepsd"]["rmse"] == min(row["rmse"] for row in said.values())


def test_it_is_small_and_nothing_else_lies_beside_it():
    files = {file.name: file.stat().st_size for file in DEMO.iterdir()}
    assert sorted(files) == ["model.json", "model.safetensors"]
    assert sum(files.values()) < 200_000


@pytest.mark.parametrize("beside", [None, "thesis.txt", "model/model.json"])
def test_a_folder_named_demo_that_is_no_model_does_not_hide_it(tmp_path, monkeypatch, caplog, beside):
    """`xdeepsd demo` makes such a folder, with a model further down."""
    monkeypatch.chdir(tmp_path)
    if beside is not None:
        (tmp_path / "demo" / beside).parent.mkdir(parents=True)
        (tmp_path / "demo" / beside).write_text("{}")
    with caplog.at_level(logging.INFO, "xdeepsd"):
        assert xdeepsd.load_model("demo").fingerprint() == xdeepsd.load_model(DEMO).fingerprint()
    assert "Loading the demo model that comes with xdeepsd." in caplog.text
    for path in (Path("demo"), "./demo", "demo/"):
        with pytest.raises(FileNotFoundError, match=r"No model at demo|demo holds 1 models"):
            xdeepsd.load_model(path)


def test_a_model_of_yours_named_demo_is_loaded_as_ever(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    mine = make_stack(1, channels=(2,), kernels=(1, 1))
    xdeepsd.save_model(mine, "demo")
    with caplog.at_level(logging.INFO, "xdeepsd"):
        assert xdeepsd.load_model("demo").fingerprint() == mine.fingerprint()
    assert f"Loading your model in the folder {tmp_path / 'demo'}, not the demo model" in caplog.text
    (tmp_path / "demo" / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.json is missing"):  # yours, damaged: no other in its place
        xdeepsd.load_model("demo")


def test_on_the_command_line(tmp_path, monkeypatch):
    """Also beside the folder that `xdeepsd demo` makes."""
    monkeypatch.chdir(tmp_path)
    coarse = xdeepsd.coarsen(xdeepsd.make_climate(years=1)["precipitation"].isel(time=slice(5)), 8)
    coarse.to_dataset().to_zarr("coarse.zarr")
    (tmp_path / "demo" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "model" / "model.json").write_text("{}")
    for options, says in ((["--check"], "mm day-1"), (["out.zarr", "--check"], "mm day-1"), (["out.zarr"], "complete")):
        result = CliRunner().invoke(app, ["downscale", "coarse.zarr", "demo", *options, "--threads", "1"])
        assert result.exit_code == 0, result.output
        assert says in result.output
        assert (tmp_path / "out.zarr").exists() == (says == "complete")
    fine = xdeepsd.downscale(coarse, xdeepsd.load_model("demo"))
    np.testing.assert_array_equal(xr.open_zarr("out.zarr")["precipitation"], fine)
