"""The demo's honest end: where the model does not beat interpolation, it says so and the command fails."""

import dataclasses

import pytest
import xarray as xr
from typer.testing import CliRunner

import xdeepsd.demo
from xdeepsd.cli import app
from xdeepsd.stack_training import train_stack


@pytest.mark.slow
def test_a_model_that_does_not_beat_interpolation_is_named(tmp_path, monkeypatch):
    def too_wet(*arguments, **options):
        """A single step beats interpolation already: its first guess is the mean difference."""
        model = train_stack(*arguments, **options)
        wet = [dataclasses.replace(s, target=xdeepsd.Normalizer(s.target.mean + 1, s.target.std)) for s in model.stages]
        return dataclasses.replace(model, stages=wet)

    monkeypatch.setattr(xdeepsd.demo, "train_stack", too_wet)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert result.exit_code == 1, result.output
    assert "does not beat interpolation" in result.output
    for name in ("maps.png", "model/model.json", "levels.zarr"):
        assert (tmp_path / "demo" / name).exists()
    fine = xr.open_zarr(tmp_path / "demo" / "downscaled.zarr")
    assert dict(fine.sizes) == {"time": 365, "lat": 96, "lon": 128}
    again = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert "does not beat interpolation" in again.output, "the folder of an earlier demo is no obstacle"
