"""Networks, stages, stacks, and models on disk."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from builders import make_coarse, make_stack, make_static
from hypothesis import given
from hypothesis import strategies as st

import xdeepsd
from xdeepsd import SRCNN, Normalizer, SRCNNConfig, StackedSRCNN, Stage
from xdeepsd.models.variable import PRECIPITATION


def test_the_papers_network():
    net = SRCNN(SRCNNConfig())
    assert sum(p.numel() for p in net.parameters()) == 13_313
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes == [(64, 2, 9, 9), (64,), (32, 64, 1, 1), (32,), (1, 32, 5, 5), (1,)]
    assert SRCNNConfig().radius == 6
    assert SRCNNConfig().halo == 4
    assert net(torch.zeros(1, 2, 20, 22)).shape == (1, 1, 8, 10)


@given(st.lists(st.sampled_from([1, 3, 5, 7, 9]), min_size=1, max_size=4), st.integers(1, 4))
def test_the_halo_is_what_the_edge_cell_reaches(kernels, factor):
    config = SRCNNConfig((4,) * (len(kernels) - 1), tuple(kernels), factor)
    reached = []
    for fine in (-config.radius, factor - 1 + config.radius):  # around the coarse cell 0
        position = (fine + 0.5) / factor - 0.5
        left = int(np.floor(position))
        reached += [left] + ([left + 1] if position > left else [])
    assert config.halo == max(abs(r) for r in reached)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": (64,)}, "one more kernel than hidden"),
        ({"kernels": (9, 2, 5)}, "odd sizes"),
        ({"channels": (64, 0)}, "at least 1"),
        ({"factor": 0}, "factor 0"),
        ({"factor": 1.5}, "factor 1.5"),
        ({"static": "elevation"}, r"Needed: a tuple, such as \('elevation',\)"),
        ({"static": ("a", "a")}, "names a field twice"),
    ],
)
def test_bad_configs(options, match):
    with pytest.raises(ValueError, match=match):
        SRCNNConfig(**options)


@pytest.mark.parametrize(("mean", "std"), [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))])
def test_bad_normalizers(mean, std):
    with pytest.raises(ValueError, match="a finite mean and a std above 0"):
        Normalizer(mean, std)


def test_stage_and_stack_check_their_parts():
    with pytest.raises(ValueError, match=r"takes the static fields \('elevation',\), but the normalisers are for"):
        Stage(SRCNN(SRCNNConfig()), Normalizer(), {}, Normalizer())
    with pytest.raises(ValueError, match="The stack has no stages"):
        StackedSRCNN([])
    model = make_stack(3)
    assert (model.scale, model.factors) == (8, (2, 2, 2))
    assert model.halo == 4 + 2 + 1
    assert model.spacing is None
    assert model.static_names == ("elevation",)


def test_saved_and_loaded_gives_the_same_bits(tmp_path):
    coarse = make_coarse()
    bare = make_stack(2, channels=(4, 3), static=("elevation", "climatology"), residual=True)
    static = make_static(coarse, 4, names=("elevation", "climatology"))
    mask = static["elevation"] > 500
    model = StackedSRCNN(bare.stages, "mm day-1", "ppt", static, mask, {"seed": 3, "rmse": 1.5})
    xdeepsd.save_model(model, tmp_path / "model")
    again = xdeepsd.load_model(tmp_path / "model")
    np.testing.assert_array_equal(coarse.deepsd.downscale(again).values, coarse.deepsd.downscale(model).values)
    assert again.fingerprint() == model.fingerprint()
    assert (again.variable, again.units, again.training) == ("ppt", "mm day-1", {"seed": 3, "rmse": 1.5})
    assert again.spacing == pytest.approx((1, 1))
    assert again.static["elevation"].attrs["units"] == "m"
    xr.testing.assert_equal(again.mask, mask.drop_attrs())
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["grids"][0]["lat"] == {"size": 6, "first": 48.5, "step": -1.0}
    assert described["grids"][-1]["lon"] == {"size": 32, "first": -123.875, "step": 0.25}


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_saving_is_whole_or_not(tmp_path, monkeypatch, stop_at):
    """Stopped at any step, either the old or the new model is there, and the same call then succeeds."""
    model, other = make_stack(1, channels=(4, 3)), make_stack(1, seed=5, channels=(4, 3))
    path, fresh = tmp_path / "model", tmp_path / "fresh"
    xdeepsd.save_model(model, path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        xdeepsd.save_model(model, path)
    steps = 0

    def stopping(function):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise OSError("No space left on device")
            return function(*arguments, **options)

        return step

    for place in (path, fresh):
        steps = 0
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", stopping(os.fsync))
            patched.setattr(Path, "replace", stopping(Path.replace))
            with pytest.raises(OSError, match="No space left"):
                xdeepsd.save_model(other, place, overwrite=True)
    saved = {model.fingerprint(), other.fingerprint()}
    assert xdeepsd.load_model(path).fingerprint() in saved
    if stop_at == 5:  # the description is written, so the model is complete
        assert xdeepsd.load_model(fresh).fingerprint() == other.fingerprint()
    else:
        with pytest.raises(FileNotFoundError, match="No model at"):
            xdeepsd.load_model(fresh)
    for place in (path, fresh):
        xdeepsd.save_model(other, place, overwrite=place == path or stop_at == 5 or place.exists())
        assert xdeepsd.load_model(place).fingerprint() == other.fingerprint()
        assert sorted(p.name for p in place.iterdir()) == ["model.json", "model.safetensors"]


def test_only_a_model_is_replaced(tmp_path, caplog):
    model = make_stack(1, channels=(4, 3))
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.json").write_text('{"of": "another program"}')
    for place in (thesis, tmp_path / "file", tmp_path / "other"):
        with pytest.raises(FileExistsError, match="exists, but is not a model of xdeepsd"):
            xdeepsd.save_model(model, place, overwrite=True)
    assert (thesis / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "mine"
    path = tmp_path / "model"
    xdeepsd.save_model(model, path)
    (path / "notes.md").write_text("what I tried")
    (path / "checkpoints" / "stage_0").mkdir(parents=True)
    (path / "checkpoints" / "stage_0" / "step-000000001.pt").write_bytes(b"weights")
    other = make_stack(1, seed=5, channels=(4, 3))
    with caplog.at_level(logging.INFO):
        xdeepsd.save_model(other, path, overwrite=True)
    assert f"The model at {path} is replaced." in caplog.text
    assert xdeepsd.load_model(path).fingerprint() == other.fingerprint()
    assert (path / "notes.md").read_text() == "what I tried"
    assert (path / "checkpoints" / "stage_0" / "step-000000001.pt").read_bytes() == b"weights"


def test_a_few_lines_say_what_a_model_is():
    coarse = make_coarse()
    static = make_static(coarse, 4)
    bare = make_stack(2, residual=True)
    summary = {
        "first_day": "1981-01-01", "last_day": "2005-12-31", "days": {"train": 9131}, "rmse": 1.25,
        "rmse_interpolation": 1.75,
    }  # fmt: skip
    stages = [dataclasses.replace(s, transform="sqrt") for s in bare.stages]
    model = xdeepsd.StackedSRCNN(
        stages, variable="ppt", static=static.chunk(), mask=(static["elevation"] > 0).chunk(),
        training={"stages": [summary, {}]},
    )  # fmt: skip
    assert repr(model).splitlines() == [
        "StackedSRCNN of factor 2 x 2 = 4, ppt in mm day-1",
        "  coarse grid: 6 lat from 48.5 to 43.5, 8 lon from -123.5 to -116.5",
        "  fine grid: 24 lat from 48.875 to 43.125, 32 lon from -123.875 to -116.125",
        "  static fields: elevation; a mask of where values are wanted",
        "  stage 0: 9-1-5 kernels, 64-32-1 channels, residual, sqrt, 9131 training days, 1981-01-01 to 2005-12-31, "
        "validation RMSE 1.25 (1.75 by interpolation)",
        "  stage 1: 9-1-5 kernels, 64-32-1 channels, residual, sqrt",
    ]
    assert len(str(bare).splitlines()) == 4


def test_models_that_are_not_whole(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(
        FileNotFoundError, match=r"No model at .*Needed: a folder with model\.json and model\.safetensors"
    ):
        xdeepsd.load_model(path)
    xdeepsd.save_model(make_stack(1, channels=(4, 3)), path)
    tensors, description = path / "model.safetensors", path / "model.json"
    whole, text = tensors.read_bytes(), description.read_text()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or changed"):
        xdeepsd.load_model(path)
    tensors.write_bytes(whole)
    description.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"model\.json is truncated"):
        xdeepsd.load_model(path)
    newer = json.loads(text) | {"format": 99, "xdeepsd_version": "9.0"}
    description.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"written by a newer xdeepsd 9\.0.*pip install -U xdeepsd"):
        xdeepsd.load_model(path)
    older = {key: value for key, value in json.loads(text).items() if key != "sha256"} | {"format": 1}
    compact = json.dumps(older)
    description.write_text(compact)
    assert xdeepsd.load_model(path).fingerprint() == make_stack(1, channels=(4, 3)).fingerprint()
    for right, wrong in (('"stages"', '"steps"'), ('["elevation"]', '["elefation"]'), ('"kernels"', '"kerneln"')):
        assert right in compact
        description.write_text(compact.replace(right, wrong))
        with pytest.raises(ValueError, match=f"{path} is not a complete model"):
            xdeepsd.load_model(path)
    description.write_text(text)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        xdeepsd.load_model(path)


def test_a_changed_description_is_refused_and_never_another_model(tmp_path):
    model, rng = make_stack(1, channels=(4, 3)), np.random.default_rng(0)
    xdeepsd.save_model(model, tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    whole = file.read_bytes()
    refused = 0
    for at in rng.choice(len(whole), 150, replace=False):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(changed))
        try:
            found = xdeepsd.load_model(file.parent)
        except ValueError:
            refused += 1
        else:
            assert found.fingerprint() == model.fingerprint()
    assert refused > 75
    file.write_bytes(whole.replace(b'"mean": ', b'"mean": 1'))
    with pytest.raises(ValueError, match=r"model\.json is changed: its checksum does not match"):
        xdeepsd.load_model(file.parent)


def test_the_fingerprint_follows_the_weights():
    assert make_stack(2).fingerprint() == make_stack(2).fingerprint()
    assert make_stack(2, seed=1).fingerprint() != make_stack(2).fingerprint()


def test_a_model_carries_what_holds_for_its_variable(tmp_path):
    model = make_stack(1, channels=(2,), kernels=(1, 1))
    xdeepsd.save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    assert described.pop("kind") == "precipitation"
    del described["sha256"]
    path.write_text(json.dumps(described | {"format": 1}))  # as written by an earlier xdeepsd
    loaded = xdeepsd.load_model(tmp_path / "model")
    assert loaded.kind is model.kind is PRECIPITATION
    assert loaded.fingerprint() == model.fingerprint()
    wind = dataclasses.replace(PRECIPITATION, name="wind", standard_names=frozenset({"wind_speed"}), names=frozenset())
    rain = make_coarse(days=2)
    static = make_static(rain, 2)
    coarse = xr.Dataset({"pr": rain, "speed": rain})
    coarse["speed"].attrs["standard_name"] = "wind_speed"
    of_wind = dataclasses.replace(model, kind=wind)
    kept = make_stack(1, channels=(2,), kernels=(1, 1), conserve="additive")
    with pytest.raises(ValueError, match=r"conserve='additive'\. Needed for wind: .* and no mean kept"):
        dataclasses.replace(kept, kind=dataclasses.replace(wind, conserved=False))
    with pytest.raises(ValueError, match=r"transform=None and .* Needed for wind: a transform in \('sqrt',\)"):
        dataclasses.replace(model, kind=dataclasses.replace(wind, transforms=("sqrt",)))
    assert "speed" in xdeepsd.downscale(coarse, of_wind, static)
    with pytest.raises(ValueError, match="Needed: wind; the model was trained on 'wind'"):
        xdeepsd.downscale(coarse[["pr"]], of_wind, static)


@pytest.mark.parametrize("left", ["model.safetensors.new", ".model.json"])
def test_a_first_save_that_was_killed_is_done_again(tmp_path, left):
    """What it leaves: the new tensors, or half a file beside them."""
    (tmp_path / "model.safetensors.new").write_bytes(b"whole")
    if left.startswith("."):
        (tmp_path / f"{left}.{'0123' * 8}.partial").write_bytes(b"half")
    model = make_stack(1)
    xdeepsd.save_model(model, tmp_path)
    assert xdeepsd.load_model(tmp_path).fingerprint() == model.fingerprint()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
