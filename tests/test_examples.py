"""The examples run, in their quick form: on real data if available, otherwise on a generated climate."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xdeepsd.levels.climate import make_climate

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(script, *arguments):
    """Exit status and output. A model trained for a few steps may do worse than interpolation: status 1."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "examples" / script), *map(str, arguments)],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode in (0, 1), result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def gridmet(tmp_path_factory):
    """A generated climate in gridMET's form: packed, latitude descending, a dimension named day, a larger elevation."""
    folder = tmp_path_factory.mktemp("gridmet")
    climate = make_climate(years=1, shape=(40, 56), start=2000)
    packed = {"precipitation_amount": {"dtype": "uint16", "scale_factor": 0.1, "_FillValue": 32767}}

    def write(days, name):
        rain = climate["precipitation"].sel(time=days).isel(lat=slice(0, 32), lon=slice(12, 48))
        rain = rain.rename(time="day").rename("precipitation_amount").assign_attrs(units="mm")
        rain.to_netcdf(folder / name, encoding=packed)

    write(slice("2000-01-01", "2000-09-30"), "pr_2000_jan_sep.nc")
    write(slice("2000-10-01", "2000-10-20"), "further.nc")
    climate[["elevation"]].to_netcdf(folder / "metdata_elevationdata.nc")
    return folder


def check_stacks(folder):
    table = pd.read_csv(folder / "stacks.csv").set_index(["stack", "method"])
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["x2", "x2-x2", "x2-x2-x2", "x4"]
    plain = {"bilinear", "bicubic", "climatology ratio", "BCSD"}
    kept = {f"{name}, means kept" for name in plain}
    assert set(table.loc["x4"].index) == plain | kept | {"paper preset", "default preset"}
    assert np.isfinite(table).all().all()
    # One ladder has two factors of 2, the other one factor of 4: the same coarse grid and the same baselines.
    for method in plain | kept:
        assert table.loc[("x2-x2", method), "rmse"] == pytest.approx(table.loc[("x4", method), "rmse"], rel=0.05)
    # The coarse input is perfect: BCSD has no bias to correct.
    for stack, rows in table["rmse"].groupby("stack"):
        assert rows[stack, "BCSD"] == pytest.approx(rows[stack, "climatology ratio"], rel=1e-4)
    return table


def test_oregon(gridmet, tmp_path):
    output = run("oregon.py", "--data", gridmet, "--out", tmp_path, "--steps", 5)
    check_stacks(tmp_path)
    assert "x4: the default preset" in output


def test_oregon_with_further_months(gridmet, tmp_path):
    run("oregon.py", "--data", gridmet, "--out", tmp_path, "--steps", 5, "--further", gridmet / "further.nc")
    check_stacks(tmp_path)


def test_oregon_denseloss(gridmet, tmp_path):
    arguments = ("oregon.py", "--data", gridmet, "--out", tmp_path, "--steps", 4, "--denseloss")
    run(*arguments, "--seeds", 1)
    output = run(*arguments, "--seeds", 2)  # continues: the first seed is not repeated
    assert "8 of 8" in output
    assert "in the rarest bin" in output
    table = pd.read_csv(tmp_path / "denseloss.csv")
    assert set(table["part"]) == {"validation", "test"}
    assert table.loc[table["name"] == "MSE", "relative"].eq(1).all()


@pytest.mark.realdata
def test_oregon_on_the_real_year(real_data, tmp_path):
    run("oregon.py", "--data", real_data / "gridmet_oregon", "--out", tmp_path, "--steps", 3)
    table = check_stacks(tmp_path)
    assert table.loc[("x2", "bilinear"), "rmse"] == pytest.approx(0.219, abs=0.001)
    assert table.loc[("x4", "bicubic"), "rmse"] == pytest.approx(0.349, abs=0.001)
    assert table.loc[("x2", "climatology ratio, means kept"), "rmse"] == pytest.approx(0.172, abs=0.001)
    assert table.loc[("x4", "bicubic, means kept"), "rmse"] == pytest.approx(0.332, abs=0.001)


@pytest.mark.realdata
def test_prism_days(real_data, tmp_path):
    output = run("prism_days.py", "--data", real_data / "prism", "--out", tmp_path, "--steps", 3, "--folds", 1)
    table = pd.read_csv(tmp_path / "errors.csv").set_index(["stack", "method"])
    plain = {"bilinear", "bicubic"}
    assert set(table.loc["x2-x2-x2"].index) == plain | {f"{name}, means kept" for name in plain} | {"xdeepsd"}
    for name in plain:
        assert (table["rmse"].xs(f"{name}, means kept", level=1) < table["rmse"].xs(name, level=1)).all()
    assert table.loc[("x2-x2-x2", "bilinear"), "rmse"] > table.loc[("x2", "bilinear"), "rmse"] > 0.1
    assert "x2-x2-x2: the model" in output


@pytest.mark.realdata
def test_reanalysis(real_data, tmp_path):
    arguments = ("--data", real_data, "--out", tmp_path, "--steps", 2, "--seeds", 2)
    output = run("reanalysis.py", *arguments, "--tries", "x2-x2, 5-5-5", "x1-x2-x2, 5-5-5", "--members", 3)
    assert "6 members, test days" in output
    assert "crps" in output
    assert "input: an independent product, pr of reanalysis_ncep_19deg.nc" in output
    rmse = pd.read_csv(tmp_path / "errors.csv").set_index("method")["rmse"]
    assert len(rmse) == 4 + 2 * 3, "two seeds and their mean"
    assert np.isfinite(rmse).all()
    # The baselines, against another program: numpy.polyfit and scipy's RegularGridInterpolator for two of them.
    for name, value in (("training mean", 6.230), ("interpolated", 4.873), ("regression of each cell", 4.508)):
        assert rmse[name] == pytest.approx(value, abs=1e-3), name
    assert rmse["ridge regression on all 48 values"] == pytest.approx(4.158, abs=1e-3)


@pytest.mark.realdata
def test_skill(real_data, tmp_path):
    output = run("skill.py", "--data", real_data, "--out", tmp_path, "--steps", 2, "--seeds", 2)
    assert "iberia x2-x2, test days" in output
    rows = pd.read_csv(tmp_path / "skill.csv")
    model = rows[rows["method"] == "TrainConfig()"]
    assert len(model) == 2 * (3 + 2), "two seeds of every stack"
    assert np.isfinite(rows.drop(columns=["region", "stack", "method", "validation"])).all().all()
    assert rows.loc[rows["method"] == "TrainConfig()", "validation"].gt(0).all(), "baselines have none"
    rmse = rows[rows["method"].str.endswith("means kept")].groupby(["region", "stack"])["rmse"].min()
    best = {("oregon", "x2"): 0.1720, ("oregon", "x2-x2"): 0.3317, ("oregon", "x2-x2-x2"): 0.5659}
    best |= {("iberia", "x2"): 0.8220, ("iberia", "x2-x2"): 1.8533}
    for where, value in best.items():
        assert rmse[where] == pytest.approx(value, abs=2e-4), where


@pytest.mark.realdata
def test_losses(real_data, tmp_path):
    some = ("MAE", "DenseLoss 0.5", "Bernoulli-gamma")
    arguments = ("--steps", 2, "--seeds", 2, "--regions", "iberia", "--losses", *some)
    output = run("losses.py", "--data", real_data, "--out", tmp_path, *arguments)
    assert "iberia x2, test days" in output
    assert "heavy days for each observed one by its chances" in output
    assert "iberia x2, validation days" in output
    rows = pd.read_csv(tmp_path / "seeds.csv")
    assert list(rows["days"].unique()) == ["validation", "test"]
    rows = rows[rows["days"] == "test"]
    assert list(rows["loss"]) == [loss for loss in ("MSE", *some) for _ in range(2)]
    table = pd.read_csv(tmp_path / "losses.csv").set_index(["days", "loss"]).loc["test"]
    columns = ["rmse", "mae", *(f"rank {rank}" for rank in range(1, 6)), "misses", "false_alarms", "heavy"]
    assert np.isfinite(table[columns]).all().all()
    for name in columns:
        np.testing.assert_allclose(table.loc["MAE", name], rows[name][rows["loss"] == "MAE"].mean())
    assert (table.filter(like="p ").drop("MSE") <= 1).all().all()
    assert table.filter(like="count").iloc[0].is_monotonic_increasing


def test_losses_of_rare_values_at_a_large_factor(tmp_path):
    output = run("losses.py", "--regions", "generated", "--factor", 8, "--steps", 2, "--seeds", 1, "--out", tmp_path,
                 "--losses", "MSE", "DenseLoss 1, capped, annealed", "--small")  # fmt: skip
    assert "generated x8, test days" in output
    rows = pd.read_csv(tmp_path / "seeds.csv")
    assert np.isfinite(rows[["rmse", *(f"rank {rank}" for rank in range(1, 6)), "misses"]]).all().all()


@pytest.mark.realdata
def test_climate_model(real_data, tmp_path):
    output = run("climate_model.py", "--data", real_data, "--out", tmp_path, "--steps", 3)
    assert "36 x 36 cells" in output
    means = {line[:22].strip(): float(line.split("mean ")[1].split(",")[0]) for line in output.splitlines()
             if line[23:27] == "mean"}  # fmt: skip
    assert means["observed"] == pytest.approx(1.24 * means["the file"], rel=0.01)
    assert means["corrected, downscaled"] == pytest.approx(means["observed"], rel=0.05)
    assert means["downscaled"] == pytest.approx(means["the file"], rel=0.05)
    assert (tmp_path / "wettest_day.png").stat().st_size > 10000


@pytest.mark.realdata
def test_real_coarse_input(real_data, tmp_path):
    output = run("real_coarse.py", "--data", real_data, "--out", tmp_path, "--steps", 2, "--regions", "iberia")
    assert "iberia, test days" in output
    table = pd.read_csv(tmp_path / "iberia.csv").set_index("method")
    assert np.isfinite(table.drop(columns="far_10mm")).all().all()
    # Weighted by area, unlike the table of reanalysis.py: 4.873 and 4.158 there
    for name, value in (("interpolated", 4.860), ("ridge regression on all 48 values", 4.149)):
        assert table.loc[name, "rmse"] == pytest.approx(value, abs=1e-3), name
    perfect = table.index.str.startswith("perfect input")
    assert table["rmse"][perfect].max() < 0.5 * table["rmse"][~perfect].min()
    assert abs(table.loc["BCSD", "bias"]) < abs(table.loc["interpolated", "bias"])


def test_out_of_range(gridmet, tmp_path):
    output = run("out_of_range.py", "--data", gridmet, "--out", tmp_path, "--steps", 2)
    assert "beyond the training maximum of their cell" in output
    table = pd.read_csv(tmp_path / "out_of_range.csv").set_index(["held_out", "method"])
    assert len(table) == 2 * (8 + 2 * 2), "baselines and two losses, without means kept and with"
    for _, rows in table.groupby("held_out"):
        assert rows["count_1"].nunique() == 1
        assert rows["count_1"].iloc[0] > rows["count_1.5"].iloc[0]
        assert rows["part_1"].between(0.2, 1.5).all()
    assert table["rmse_1"].gt(table["rmse"]).all(), "errors are larger out of range"
