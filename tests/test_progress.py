"""Progress bars, on a terminal and in a notebook: what they show, and that they cost no widgets."""

import re
import sys
import types

import pytest
import rich.console
from builders import make_coarse, pair_of_levels

import xdeepsd
from xdeepsd._progress import Bar
from xdeepsd.training.watch import curve

SMALL = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 6, "stride": 4, "batch": 8, "steps": 4, "workers": 1,
         "min_land": 0.1, "validate_every": 2, "static": ("elevation",), "validation": 0.25}  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """A notebook: what each display shows, in order of its updates."""
    outputs = []

    def display(what, display_id):
        assert display_id is True
        outputs.append([what._repr_html_()])
        return types.SimpleNamespace(update=lambda new, at=outputs[-1]: at.append(new._repr_html_()))

    monkeypatch.setattr(rich, "_console", rich.console.Console(force_jupyter=True))
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    return outputs


def test_a_training_in_a_notebook_shows_a_bar_and_the_curve_of_its_errors(shown, capsys):
    trained = xdeepsd.train_stage(*pair_of_levels(days=12), xdeepsd.TrainConfig(**SMALL), progress=True, index=3)
    (states,) = shown
    assert "stage 3 <progress value='0' max='4'>" in states[0]
    last = states[-1]
    assert "4/4" in last
    for line in ("rmse", "rmse_interpolation"):
        name = "model" if line == "rmse" else "interpolation"
        assert f"{name} {trained.history[line].iloc[-1]:.3g}</text>" in last
    assert last.count("<circle") == 2 * 2, "two validations, two lines"
    assert capsys.readouterr().out == ""


def test_the_curve_rises_where_the_error_does():
    rows = [{"step": step, "rmse": value, "rmse_interpolation": 3.0} for step, value in ((1, 2.0), (2, 1.0), (4, 2.5))]
    first, second = re.findall(r"points='([^']*)'", curve(rows, 4))
    x, y = zip(*[map(float, point.split(",")) for point in first.split()], strict=True)
    assert x == (105, 210, 420)
    assert y[1] > y[0] > y[2], "downwards is up in SVG"
    assert {point.split(",")[1] for point in second.split()} == {"10.0"}
    assert "loss 0.5" in curve([{"step": 1, "loss": 0.5}], 4)


def test_a_store_is_written_under_a_bar(shown, tmp_path):
    coarse = make_coarse(days=4).chunk(time=1).to_dataset(name="pr")
    coarse.deepsd.to_zarr(tmp_path / "a&b.zarr", progress=True)
    assert "4/4" in shown[0][-1]
    assert "a&amp;b.zarr" in shown[0][-1]


def test_levels_are_built_under_a_bar(capsys, tmp_path):
    climate = xdeepsd.make_climate(years=1, shape=(8, 8))
    xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2,), tmp_path / "l.zarr", progress=True)
    assert "365/365" in capsys.readouterr().out


def test_time_left(shown, monkeypatch):
    now = iter([0.0, *[10.0] * 9])
    monkeypatch.setattr("xdeepsd._progress.time.perf_counter", lambda: next(now))
    with Bar("<days>", total=730) as bar:
        bar.update(1, 730, "1 & 2")
    assert "&lt;days&gt; <progress value='1' max='730'></progress> 1/730 1 &amp; 2 2:01:30 left" in shown[0][-1]


def test_the_accessor_completes_to_what_it_can_do():
    names = dir(make_coarse().deepsd)
    assert {"distribution", "downscale", "to_zarr"} <= set(names)
    assert not [name for name in names if name.startswith("_")]
