"""The sweep over alpha: choice by validation days, restart, report; and training from a TOML file."""

import dataclasses
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from rich.console import Console
from typer.testing import CliRunner

import xdeepsd
from xdeepsd import TrainConfig
from xdeepsd.cli import app
from xdeepsd.cli.sweep import parse_alphas, report
from xdeepsd.evaluation import sweep
from xdeepsd.evaluation.errors import bin_errors
from xdeepsd.evaluation.significance import significance
from xdeepsd.evaluation.sweep import choose_alpha, run_sweep, summarize
from xdeepsd.levels.climate import make_climate
from xdeepsd.training import stack as stack_training
from xdeepsd.training import stage as train
from xdeepsd.training.checkpoints import checkpoints

SMALL = {"channels": (6, 4), "kernels": (3, 1, 3), "patch": 16, "stride": 8, "batch": 8, "steps": 12, "workers": 1}
DAYS = {"validation": ("2001-03-01/2001-03-20",), "test": ("2001-03-21/2001-04-09",)}


@pytest.fixture(scope="module")
def climate():
    return make_climate(years=1, shape=(24, 32)).isel(time=slice(0, 99))


@pytest.fixture(scope="module")
def levels(climate):
    made = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2, 2))
    return [level.load() for level in made]


@pytest.fixture(scope="module")
def config():
    return TrainConfig(**SMALL, **DAYS)


@pytest.fixture(scope="module")
def swept(levels, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return run_sweep(levels, config, [0.5, 1.0], 2, folder), folder


def test_alphas():
    assert parse_alphas("0:4:0.2") == [round(0.2 * i, 1) for i in range(21)]
    assert parse_alphas("0.5") == [0.5]
    assert parse_alphas("0,0.5,1") == [0.0, 0.5, 1.0]
    for text in ("0:4", "4:0:0.2", "0:1:0", "a", "-1,0", "0:inf:1", "nan", ""):
        with pytest.raises(ValueError, match=r"Needed: start:stop:step such as 0:4:0\.2"):
            parse_alphas(text)


def test_the_table(swept, levels, config):
    table, folder = swept
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "sweep.parquet"), table)
    validation = table[(table["part"] == "validation") & (table["name"] == "model")]
    assert set(zip(validation["alpha"], validation["seed"], strict=True)) == {
        (alpha, seed) for alpha in (0.0, 0.5, 1.0) for seed in (0, 1)
    }
    # Alpha 0 is included without being asked for; test days are used only for it and for the chosen alpha.
    best = choose_alpha(validation)
    assert set(table.loc[(table["part"] == "test") & (table["name"] == "model"), "alpha"]) == {0.0, best}
    assert set(table.loc[table["chosen"], "alpha"]) == {best}
    assert set(table["rank"]) >= {0, 1, 2}
    interpolation = table[table["name"] == "bilinear"]
    assert set(interpolation["part"]) == {"validation", "test"}
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert not list(folder.glob("runs/*/checkpoints"))


def test_rows_are_those_of_the_saved_models(swept, levels, config):
    table, folder = swept
    days = config.split(levels[-1]["time"]).validation
    model = xdeepsd.load_model(folder / "runs" / "alpha-0.5-seed-1" / "model")
    assert model.training["config"][0]["alpha"] == 0.5
    assert model.training["config"][1]["seed"] == 1
    predicted = xdeepsd.downscale(levels[0][["precipitation"]].isel(time=days), model)["precipitation"]
    truth = levels[-1]["precipitation"].isel(time=days)
    expected = bin_errors({"model": predicted.assign_coords(truth.coords)}, truth)
    rows = table[(table["part"] == "validation") & (table["alpha"] == 0.5) & (table["seed"] == 1)]
    np.testing.assert_allclose(rows["rmse"], expected["rmse"], rtol=1e-6)
    np.testing.assert_array_equal(rows["count"], expected["count"])


def test_alpha_0_is_the_mse(swept, levels, config):
    _, folder = swept
    one = xdeepsd.load_model(folder / "runs" / "alpha-0-seed-0" / "model")
    other = xdeepsd.train_stack(levels, config, progress=False)
    for a, b in zip(one.stages, other.stages, strict=True):
        for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True):
            np.testing.assert_allclose(p.detach(), q.detach(), rtol=1e-3, atol=1e-5)


def test_the_density_is_fitted_once_for_all_runs(levels, config, monkeypatch):
    fits = []
    original = train.fit_density
    for module in (train, stack_training):  # for one run, for several
        monkeypatch.setattr(module, "fit_density", lambda *a: fits.append(a) or original(*a))
    wet = dataclasses.replace(config, wet_threshold=0.5)
    configs = [
        dataclasses.replace(c, loss=loss, alpha=alpha, seed=seed)
        for c, loss, alpha, seed in [
            (config, "denseloss", 1.0, 0),
            (config, "denseloss", 0.5, 1),
            (config, "mse", 1.0, 0),
            (wet, "denseloss", 1.0, 0),
        ]
    ]
    models = dict(stack_training.train_stacks(levels, configs, progress=False))
    # One fit per stage for the first two, one per stage for the other threshold, and none for the MSE.
    assert len(fits) == 4
    alone = stack_training.train_stack(levels, configs[1], progress=False)
    for a, b in zip(models[1].stages, alone.stages, strict=True):
        for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True):
            assert torch.equal(p, q)
    assert models[1].training["stages"] == alone.training["stages"]


def test_what_is_done_is_not_done_again(swept, levels, config, tmp_path, monkeypatch, caplog):
    table, folder = swept
    copy = tmp_path / "sweep"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "runs" / "alpha-1-seed-1")
    asked = []
    original = sweep.train_stacks
    monkeypatch.setattr(
        sweep, "train_stacks", lambda levels, plans, **k: asked.extend(plans) or original(levels, plans, **k)
    )
    with caplog.at_level(logging.INFO):
        again = run_sweep(levels, config, [0.5, 1.0], 2, copy)
    assert [(plan[0].alpha, plan[0].seed, plan[0].loss) for plan in asked] == [(1.0, 1, "denseloss")]
    assert "5 of 6 runs are already done" in caplog.text
    pd.testing.assert_frame_equal(again, table)


def test_another_configuration_is_refused(swept, levels, config):
    _, folder = swept
    other = TrainConfig(**{**SMALL, "steps": 13}, **DAYS)
    with pytest.raises(ValueError, match=r"steps of stage 0 was 12, is 13.*Give another folder"):
        run_sweep(levels, other, [0.5], 1, folder)
    with pytest.raises(ValueError, match="bins was 5, is 4"):
        run_sweep(levels, config, [0.5], 1, folder, bins=4)


def test_other_precipitation_on_the_same_days_is_refused(swept, levels, config, tmp_path):
    _, folder = swept
    wet = [level.assign(precipitation=level["precipitation"] * 50) for level in levels]
    with pytest.raises(ValueError, match=r"the precipitation of the same days has changed.*Give another folder"):
        run_sweep(wet, config, [0.5], 1, folder)
    renewed = [level.assign(precipitation=level["precipitation"].copy(deep=True)) for level in levels]
    renewed[-1]["precipitation"][7] += 0.1  # a training day
    with pytest.raises(ValueError, match="the precipitation of the same days has changed"):
        run_sweep(renewed, config, [0.5], 1, folder)
    copy = tmp_path / "sweep"  # from an xdeepsd that did not record it
    shutil.copytree(folder, copy)
    about = json.loads((copy / "sweep.json").read_text())
    del about["precipitation"]
    (copy / "sweep.json").write_text(json.dumps(about))
    run_sweep([level.chunk(time=9) for level in levels], config, [0.5, 1.0], 2, copy)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_days_without_an_observation(levels, config, tmp_path, part, caplog, monkeypatch):
    """They are reported by name, before hours of training."""
    monkeypatch.setattr(sweep, "train_stacks", lambda *a, **k: pytest.fail("trained"))
    days = getattr(config.split(levels[-1]["time"]), part)
    gone = [level.where(~level["time"].isin(level["time"][days])) for level in levels]
    with pytest.raises(
        ValueError, match=rf"None of the 20 {part} days has an observed .*: 2001-03-.*Give other {part} days"
    ):
        run_sweep(gone, config, [0.5], 1, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    few = [level.where(~level["time"].isin(level["time"][days[3:5]])) for level in levels]
    with pytest.raises(pytest.fail.Exception):
        run_sweep(
            [level.assign(mask=levels[i]["mask"]) for i, level in enumerate(few)], config, [0.5], 1, tmp_path / "few"
        )
    assert f"Some {part} days have no observed cell inside the mask and do not count: 2001-03-" in caplog.text
    dry = [level.assign(precipitation=level["precipitation"] * 0) for level in levels]
    with pytest.raises(ValueError, match=r"range from 0\.0 to 0\.0"):
        run_sweep(dry, config, [0.5], 1, tmp_path / "dry")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": TrainConfig(**SMALL, validation=0.2)}, "names no test days"),
        ({"config": TrainConfig(**SMALL, validation=None, test=0.2)}, "names no validation days"),
        ({"choose": "best"}, r"choose is 'best'\. Needed: one of 'bins', 'rarest', 'all'"),
        ({"alphas": [-1.0]}, "Needed: alphas of 0 or more"),
        ({"seeds": 0}, "one seed or more"),
    ],
)
def test_bad_input(levels, config, tmp_path, changes, message):
    options = {"config": config, "alphas": [1.0], "seeds": 1, **changes}
    with pytest.raises(ValueError, match=message):
        run_sweep(levels, folder=tmp_path, **options)
    assert not list(tmp_path.glob("runs/*"))


def made(relative, seeds=6, seed=0):
    """A table with the given RMSE relative to alpha 0, by alpha and rank, and a little noise between seeds."""
    rng = np.random.default_rng(seed)
    rows = []
    for part in ("validation", "test"):
        for rank, (low, count) in {0: (0, 1000), 1: (20, 10), 2: (0, 990)}.items():
            common = {"part": part, "rank": rank, "low": low, "high": low + 20, "count": count}
            rows.append({**common, "name": "bilinear", "alpha": np.nan, "seed": -1, "rmse": 2.0, "mae": 1.5})
            for alpha, ratios in relative.items():
                for run in range(seeds):
                    error = ratios[rank] * (1 + 0.001 * rng.normal())
                    rows.append(
                        {**common, "name": "model", "alpha": alpha, "seed": run, "rmse": error, "mae": error / 2}
                    )
    return pd.DataFrame(rows)


def test_the_choice():
    table = made({0.0: (1, 1, 1), 0.5: (1.05, 0.85, 1.05), 1.0: (1.3, 0.8, 1.3), 2.0: (0.99, 1.2, 0.98)})
    validation = table[(table["part"] == "validation") & (table["name"] == "model")]
    assert choose_alpha(validation, "bins") == 0.5
    assert choose_alpha(validation, "rarest") == 1.0
    assert choose_alpha(validation, "all") == 2.0


def test_the_summary_is_tested_by_scipy():
    table = made({0.0: (1, 1, 1), 0.5: (1.05, 0.85, 1.05)}).assign(chosen=False)
    summary = summarize(table).set_index(["part", "alpha", "rank", "error"])
    row = summary.loc[("test", 0.5, 1, "rmse")]
    runs = table[(table["part"] == "test") & (table["rank"] == 1) & (table["name"] == "model")]
    expected = significance(*(runs.loc[runs["alpha"] == alpha, "rmse"].to_numpy() for alpha in (0.5, 0.0)))
    assert {k: row[k] for k in expected} == expected
    assert row["relative"] == pytest.approx(0.85, abs=0.01)
    assert row["p_wilcoxon"] == pytest.approx(2 / 2**6)
    assert row["interpolation"] == 2.0
    assert (summary.xs(0.0, level="alpha")["relative"] == 1).all()


@pytest.mark.parametrize(
    ("relative", "words"),
    [
        ({0.0: (1, 1, 1), 0.5: (1.05, 0.85, 1.05)}, "alpha 0.5 lowers the RMSE"),
        ({0.0: (1, 1, 1), 0.5: (1.2, 1.3, 1.1)}, "the plain MSE (alpha 0) stays"),
        ({0.0: (3, 3, 1)}, "Not better than interpolation in all cells together, the bin of rank 1"),
    ],
)
def test_the_report_says_what_is_so(relative, words, capsys):
    table = made(relative)
    best = choose_alpha(table[(table["part"] == "validation") & (table["name"] == "model")])
    report(table.assign(chosen=table["alpha"] == best), Path("out"), "bins", Console(width=200))
    assert words in capsys.readouterr().out


def test_the_report_fits_a_narrow_terminal(capsys):
    table = made({0.0: (1, 1, 1), 3.8: (1.5, 0.85, 2.05)}, seeds=20)
    table.loc[table["rank"] != 1, "count"] *= 700_000  # as many cells as years of a continent have
    report(table.assign(chosen=table["alpha"] == 3.8), Path("out"), "bins", Console(width=80))
    shown = capsys.readouterr().out
    assert "…" not in shown
    summary = summarize(table.assign(chosen=False)).set_index(["part", "alpha", "rank", "error"])
    relative, *p = summary.loc[("test", 3.8, 0, "rmse"), ["relative", "p_mannwhitney", "p_wilcoxon"]]
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["all"])
    assert row.split()[:5] == ["all", "0", "to", "20", "700,000,000"]
    assert row.split()[5:] == ["2.00", "1.00", "1.50", f"{relative - 1:+.1%}", *(f"{value:.2g}" for value in p)]


@pytest.fixture
def project(climate, tmp_path):
    """A TOML file beside a ladder on disk."""
    xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2, 2), tmp_path / "levels.zarr")
    text = '[training]\nvalidation = ["2001-03-01/2001-03-20"]\ntest = ["2001-03-21/2001-04-09"]\n'
    text += "\n".join(f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in SMALL.items())
    (tmp_path / "config.toml").write_text(text)
    return tmp_path / "config.toml"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_train_leaves_a_folder_of_the_user_alone(project):
    """Checked before training, not after; only the files of an earlier model itself are replaced."""
    folder = project.parent
    model = folder / "model"
    model.mkdir()
    (model / "thesis.tex").write_text("years of work")
    for words in ((), ("--resume",)):
        refused = invoke("train", project, *words)
        assert refused.exit_code == 1
        assert "model exists" in refused.output
        assert not (folder / "checkpoints").exists()
    assert "is not a model of xdeepsd. It is left alone" in refused.output
    (model / "thesis.tex").rename(folder / "thesis.tex")
    result = invoke("train", project, "--resume")
    assert result.exit_code in (0, 2), result.output
    (folder / "thesis.tex").rename(model / "thesis.tex")
    result = invoke("train", project, "--resume")
    assert result.exit_code in (0, 2), result.output
    assert f"The model at {model} is replaced." in result.output
    assert sorted(p.name for p in model.iterdir()) == ["model.json", "model.safetensors", "thesis.tex"]


def test_train_from_a_file(project, climate):
    folder = project.parent
    for stage in (0, 1):
        result = invoke("train", project, "--stage", stage)
        assert result.exit_code in (0, 2), result.output
        assert (folder / "checkpoints" / f"stage_{stage}" / "metrics.parquet").exists()
        assert not (folder / "model").exists()
    again = invoke("train", project)
    assert again.exit_code == 1
    assert "holds checkpoints" in again.output
    result = invoke("train", project, "--resume")
    assert result.exit_code in (0, 2), result.output
    assert ("NOT BETTER" in result.output) == (result.exit_code == 2)
    model = xdeepsd.load_model(folder / "model")
    assert model.factors == (2, 2)
    assert model.training["config"][0]["test"] == ["2001-03-21/2001-04-09"]
    refused = invoke("train", project)
    assert refused.exit_code == 1
    assert "model exists" in refused.output
    assert "stages 0 to 1" in invoke("train", project, "--stage", "2").output


def test_train_many_seeds(project, climate):
    folder = project.parent
    refused = invoke("train", project, "--seeds", 2, "--stage", 0)
    assert refused.exit_code == 1
    assert "--stage and --seeds cannot be combined" in refused.output
    result = invoke("train", project, "--seeds", 2)
    assert result.exit_code in (0, 2), result.output
    models = xdeepsd.load_models(folder / "model")
    assert [m.training["stages"][0]["seed"] for m in models] == [0, 1]
    assert models[0].fingerprint() != models[1].fingerprint()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["seed_0", "seed_1"]
    again = invoke("train", project, "--seeds", 3)
    assert again.exit_code == 1
    assert "model exists. Type --resume" in again.output.replace("\n", "")
    result = invoke("train", project, "--seeds", 3, "--resume")
    assert result.exit_code in (0, 2), result.output
    more = xdeepsd.load_models(folder / "model")
    assert [m.fingerprint() for m in more[:2]] == [m.fingerprint() for m in models]
    assert len(more) == 3
    refused = invoke("train", project, "--resume")
    assert "holds the models of an ensemble. Type --seeds N" in refused.output.replace("\n", " ")
    members = xdeepsd.downscale(xdeepsd.open_levels(folder / "levels.zarr")[0].isel(time=slice(2)), more)
    assert members.sizes["member"] == 3


def test_seeds_do_not_go_into_a_single_model(project):
    folder = project.parent
    xdeepsd.save_model(xdeepsd.StackedSRCNN([stage_of_one()]), folder / "model")
    refused = invoke("train", project, "--seeds", 2, "--resume")
    assert refused.exit_code == 1
    assert "model is a single model. Type --seeds N with another" in refused.output.replace("\n", " ")


def stage_of_one():
    config = xdeepsd.SRCNNConfig((), (1,), static=())
    return xdeepsd.Stage(xdeepsd.SRCNN(config), xdeepsd.Normalizer(), {}, xdeepsd.Normalizer())


def test_train_and_sweep_say_what_is_wrong(project):
    text = project.read_text()
    project.write_text(text + "\n[data]\nfactors = [4]\n")
    assert "factors is [4], but the levels" in invoke("train", project).output
    project.write_text(text + "\n[data]\nyears = [1990, 1995]\n")
    assert "Needed: years in that period" in invoke("sweep", project).output
    project.write_text(text.replace("steps", "setps"))
    result = invoke("train", project)
    assert (result.exit_code, "Did you mean 'steps'" in result.output) == (1, True)
    project.write_text('[paths]\nlevels = "none.zarr"')
    assert "xdeepsd prepare" in invoke("train", project).output
    assert "none below 0" in invoke("sweep", project, "--alpha", "-1").output


def test_sweep_of_one_stage_from_a_file(project):
    result = invoke("sweep", project, "--alpha", "0:1:1", "--seeds", 2, "--stage", 1, "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "Chosen on the validation days" in result.output
    assert "Rank 1 is the rarest bin" in result.output
    table = pd.read_parquet(project.parent / "sweep" / "sweep.parquet")
    assert set(table["alpha"].dropna()) == {0.0, 1.0}
    model = xdeepsd.load_model(project.parent / "sweep" / "runs" / "alpha-1-seed-0" / "model")
    assert model.factors == (2,)


@pytest.mark.slow
def test_a_cluster_gives_the_same_table(levels, config, swept, tmp_path):
    from distributed import Client, LocalCluster

    table, _ = swept
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        other = run_sweep(levels, config, [0.5, 1.0], 2, tmp_path / "sweep", client=client)
    numbers = ["rmse", "mae"]
    pd.testing.assert_frame_equal(other.drop(columns=numbers), table.drop(columns=numbers))
    np.testing.assert_allclose(other[numbers], table[numbers], rtol=1e-4)


def test_levels_without_a_mask_are_fine(levels, config, tmp_path):
    """Two levels made by hand, as `train_stack` takes them."""
    bare = [xr.Dataset({name: level[name] for name in ("precipitation", "mask", "elevation")}) for level in levels[-2:]]
    table = run_sweep(bare, TrainConfig.paper(**SMALL, **DAYS), [1.0], 1, tmp_path)
    assert set(table["seed"]) == {0, -1}
    assert table["rmse"].notna().all()


@pytest.mark.slow
def test_stopped_by_hand(project):
    project.write_text(project.read_text().replace("steps = 12", "steps = 100000\ncheckpoint_every = 5"))
    command = [sys.executable, "-m", "xdeepsd", "train", str(project)]
    # A shell starts background jobs with SIGINT ignored, and the tests may run in one.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        stage = project.parent / "checkpoints" / "stage_0"
        give_up = time.monotonic() + 120
        while not checkpoints(stage):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert err.strip() == "Stopped. --resume continues from the last checkpoint."
