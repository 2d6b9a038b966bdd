"""A coarse product on the command line: ``xdeepsd prepare --coarse``, and ``[data] coarse`` for ``xdeepsd train``."""

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.cli.toml import load_config, read_levels
from xdeepsd.levels.coarse import product_of

TRAINING = """
[training]
channels = [4]
kernels = [3, 3]
static = ["climatology"]
patch = 10
stride = 4
batch = 4
steps = 4
validate_every = 4
validation = ["2001-02"]
threads = 1
workers = 1
"""


@pytest.fixture
def files(tmp_path):
    """A generated climate, and a product made of it: another grid, biased, noisy, in other units."""
    climate = xdeepsd.make_climate(years=1, shape=(16, 24), start=2001).isel(time=slice(50)).load()
    climate[["precipitation"]].to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    rain = climate["precipitation"]
    step = 4.4 * abs(float(rain["lat"][1] - rain["lat"][0]))
    lat = float(rain["lat"].max()) + step / 4 - step * np.arange(-1, 6)
    lon = float(rain["lon"].min()) - step / 4 + step * np.arange(-1, 8)
    grid = xr.Dataset(coords={"lat": lat, "lon": lon})
    product = xdeepsd.regrid(rain.fillna(0.0), grid, method="nearest") * 0.7 / 86400
    noise = np.random.default_rng(0).gamma(4.0, 0.25, product.shape)
    product = (product * noise).astype("float32").assign_attrs(units="kg m-2 s-1", standard_name="precipitation_flux")
    product.rename("pr").to_dataset().assign(other=product * 2).to_netcdf(tmp_path / "coarse.nc", engine="h5netcdf")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_prepare_and_train(files):
    levels = files / "levels.zarr"
    given = ("prepare", files / "fine.nc", "--out", levels, "--factors", "1,2,2", "--coarse", files / "coarse.nc")
    assert run(*given).exit_code != 0  # two variables could be meant
    assert not levels.exists()
    for _ in range(2):  # the second time there is nothing left to do
        result = run(*given, "--coarse-variable", "pr")
        assert result.exit_code == 0, result.output
    assert "50 days in 4 levels of 4 x 6, 4 x 6, 8 x 12, 16 x 24 cells" in result.output
    result = run("prepare", files / "fine.nc", "--out", levels, "--factors", "1,2,2")
    assert result.exit_code == 1
    assert "whole numbers of 2 or more" in result.output
    (files / "config.toml").write_text("[data]\nfactors = [1, 2, 2]\n" + TRAINING)
    result = run("train", files / "config.toml")
    assert result.exit_code in (0, 2), result.output
    model = xdeepsd.load_model(files / "model")
    assert model.training["coarse_product"] == "pr of coarse.nc"
    assert model.factors == (1, 2, 2)
    assert [stage.config.conserve for stage in model.stages] == [None, "multiplicative", "multiplicative"]


def test_a_product_named_in_the_file(files):
    """The levels are those of the observations, and the product comes in for the training."""
    assert run("prepare", files / "fine.nc", "--out", files / "levels.zarr", "--factors", "2,2").exit_code == 0
    data = '[data]\nfactors = [{}]\ncoarse = "coarse.nc"\ncoarse_variable = "pr"\n'
    (files / "two.toml").write_text(data.format("2, 2") + TRAINING)
    (files / "three.toml").write_text(data.format("1, 2, 2") + TRAINING)
    rain, coarse = (xr.open_dataset(files / name) for name in ("fine.nc", "coarse.nc"))
    for name, factors in (("two", (2, 2)), ("three", (1, 2, 2))):
        found = read_levels(load_config(files / f"{name}.toml"))
        wanted = xdeepsd.make_levels(rain, factors=factors, coarse=coarse, coarse_variable="pr")
        assert [product_of(level) for level in found] == ["pr of coarse.nc", *[None] * len(factors)]
        assert found[0]["precipitation"].chunks is not None
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one["precipitation"], other["precipitation"], rtol=1e-5, atol=1e-5)
    result = run("train", files / "two.toml", "--stage", 0)
    assert result.exit_code in (0, 2), result.output
    result = run("train", files / "two.toml", "--resume")
    assert result.exit_code in (0, 2), result.output
    two = xdeepsd.load_model(files / "model")
    assert two.training["coarse_product"] == "pr of coarse.nc"
    memory = xdeepsd.train_stack(
        xdeepsd.make_levels(rain, factors=(2, 2), coarse=coarse, coarse_variable="pr"),
        load_config(files / "two.toml").training, progress=False,
    )  # fmt: skip
    assert memory.stages[0].config == two.stages[0].config


def test_what_does_not_fit_is_said(files):
    assert run("prepare", files / "fine.nc", "--out", files / "levels.zarr", "--factors", "2,2").exit_code == 0
    with xr.open_dataset(files / "coarse.nc") as ds:
        ds.isel(lon=slice(3)).to_netcdf(files / "small.nc", engine="h5netcdf")
    for name, text in (("none.nc", "none.nc does not exist"), ("small.nc", "does not cover the fine grid: lon")):
        (files / "c.toml").write_text(f'[data]\ncoarse = "{name}"\ncoarse_variable = "pr"\n' + TRAINING)
        result = run("train", files / "c.toml")
        assert result.exit_code == 1
        assert text in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert not (files / "model").exists()
