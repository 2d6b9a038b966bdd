"""The demo's honest end: where the model does not beat every baseline, it says so and the command fails."""

import dataclasses
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from rich.console import Console
from typer.testing import CliRunner

import xdeepsd.cli.demo_run
from xdeepsd.cli import app, demo_run
from xdeepsd.training.stack import train_stack


@pytest.mark.slow
def test_a_model_that_does_not_beat_the_baselines_is_named(tmp_path, monkeypatch):
    def too_wet(*arguments, **options):
        """A single step beats interpolation already: its first guess is the mean difference."""
        model = train_stack(*arguments, **options)
        wet = [dataclasses.replace(s, target=xdeepsd.Normalizer(s.target.mean + 1, s.target.std)) for s in model.stages]
        return dataclasses.replace(model, stages=wet)

    monkeypatch.setattr(xdeepsd.cli.demo_run, "train_stack", too_wet)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert result.exit_code == 1, result.output
    assert "does not beat the best baseline" in result.output
    for name in ("maps.png", "model/model.json", "levels.zarr", "checkpoints/stage_2/metrics.parquet"):
        assert (tmp_path / "demo" / name).exists()
    page = tmp_path / "demo" / "report.html"
    assert result.output.splitlines()[-1] == page.as_uri()
    assert "<strong>The model does not beat the strongest baseline</strong>" in page.read_text()
    fine = xr.open_zarr(tmp_path / "demo" / "downscaled.zarr")
    assert dict(fine.sizes) == {"time": 365, "lat": 96, "lon": 128}
    (tmp_path / "demo" / "notes.md").write_text("mine")
    monkeypatch.setattr(demo_run, "write_report", lambda *_: None)  # it takes seconds, and is there already
    again = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--steps", "1"], terminal_width=120)
    assert "does not beat the best baseline" in again.output, "the folder of an earlier demo is no obstacle"
    assert "Replacing what an earlier demo made: fine.zarr, levels.zarr, model" in again.output
    assert (tmp_path / "demo" / "notes.md").read_text() == "mine"


def test_a_file_of_the_user_among_the_checkpoints_is_left_alone(tmp_path):
    out, mine = tmp_path / "demo", tmp_path / "demo" / "checkpoints" / "stage_0" / "notes.md"
    demo_run._make_room(out, Console(quiet=True))
    mine.parent.mkdir(parents=True)
    (mine.parent / "step-000000400.pt").write_bytes(b"ours")
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.md was not made by the demo"):
        demo_run._make_room(out, Console(quiet=True))
    mine.unlink()
    demo_run._make_room(out, Console(quiet=True))
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("name", ["levels.zarr", "model", "fine.zarr", "coarse.zarr", "thesis.tex"])
def test_a_folder_of_the_user_is_left_alone(tmp_path, name):
    file = tmp_path / name / "years-of-work" if "." not in name or name.endswith("zarr") else tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "was not made by the demo" in result.stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]
    result = CliRunner().invoke(app, ["demo", "--out", str(file)])
    assert result.exit_code == 1
    assert "is a file" in result.stderr


@pytest.mark.parametrize("name", ["fine.zarr/thesis", "levels.zarr/level_0/thesis", "fine.zarr/precipitation/mine"])
def test_zarr_of_the_user_in_an_earlier_demo_is_left_alone(tmp_path, name):
    out, console = tmp_path / "demo", Console(quiet=True)
    demo_run._make_room(out, console)
    ds = xr.Dataset({"precipitation": ("n", [1.0, 2.0])})
    ds.to_zarr(out / "fine.zarr")
    ds.to_zarr(out / "levels.zarr", group="level_0")
    zarr.save_array(out / name, np.arange(3))
    with pytest.raises(FileExistsError, match=f"{name.rpartition('/')[2]} was not made by the demo"):
        demo_run._make_room(out, console)
    assert zarr.open_array(out / name)[2] == 2
    shutil.rmtree(out / name)
    demo_run._make_room(out, console)
    assert not (out / "fine.zarr").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, f"link to {what}") for name in ("fine.zarr", "model", "maps.png") for what in ("a store", "nothing")),
        ("fine.zarr", "file"), ("model", "file"), ("maps.png", "folder"), ("report.html", "folder"),
        ("config.toml", "folder"), ("checkpoints", "file"),
    ],
)  # fmt: skip
def test_what_has_a_name_of_the_demo_but_another_kind_is_left_alone(tmp_path, name, kind):
    out, mine = tmp_path / "demo", tmp_path / "mine.zarr"
    demo_run._make_room(out, Console(quiet=True))
    xr.Dataset({"precipitation": ("n", [1.0, 2.0])}).to_zarr(mine)
    if kind.startswith("link"):
        (out / name).symlink_to(mine if kind == "link to a store" else tmp_path / "nothing")
    elif kind == "file":
        (out / name).write_text("mine")
    else:
        (out / name).mkdir()
    with pytest.raises(FileExistsError, match=f"{name} was not made by the demo"):
        demo_run._make_room(out, Console(quiet=True))
    assert (out / name).is_symlink() or (out / name).exists()
    assert xr.open_zarr(mine)["precipitation"][1] == 2
