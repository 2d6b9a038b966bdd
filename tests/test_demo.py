"""The demo's honest end: where the model does not beat interpolation, it says so and the command fails."""

import pytest
import xarray as xr
from typer.testing import CliRunner

from xdeepsd.cli import app


@pytest.mark.slow
def test_a_model_that_does_not_beat_interpolation_is_named(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert result.exit_code == 1, result.output
    assert "does not beat interpolation" in result.output
    for name in ("maps.png", "model/model.json", "levels.zarr"):
        assert (tmp_path / "demo" / name).exists()
    fine = xr.open_zarr(tmp_path / "demo" / "downscaled.zarr")
    assert dict(fine.sizes) == {"time": 365, "lat": 96, "lon": 128}
    again = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert "does not beat interpolation" in again.output, "the folder of an earlier demo is no obstacle"
