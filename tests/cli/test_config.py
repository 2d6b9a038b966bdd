"""The TOML file, and the converter for old config.ini files."""

import dataclasses
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from xdeepsd import TrainConfig
from xdeepsd.cli import app
from xdeepsd.cli.ini import convert_ini
from xdeepsd.cli.toml import load_config, parse_config

WHOLE = """
[paths]
levels = "scratch/levels.zarr"
model = "/models/mine"

[data]
years = [1981, 2015]
factors = [2, 2]

[training]
steps = 500
learning_rate = 1e-3
kernels = [9, 3, 5]
train = ["1981/2003"]
validation = [2004, 2005]
test = [2006-01-01, "2007/2015"]
loss = "denseloss"
alpha = 1

[[stages]]

[[stages]]
steps = 900
"""


def write(tmp_path, text, name="config.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path):
    config = load_config(write(tmp_path, WHOLE))
    assert config.paths.levels == tmp_path / "scratch" / "levels.zarr"
    assert str(config.paths.model) == "/models/mine"
    assert config.data.years == (1981, 2015)
    first, second = config.stage_configs(2)
    assert first == TrainConfig(
        steps=500, learning_rate=1e-3, kernels=(9, 3, 5), train=("1981/2003",), validation=(2004, 2005),
        test=("2006-01-01", "2007/2015"), loss="denseloss", alpha=1.0,
    )  # fmt: skip
    assert second == dataclasses.replace(first, steps=900)
    with pytest.raises(ValueError, match=r"2 \[\[stages\]\], but the levels at .* give 3"):
        config.stage_configs(3)


def test_an_empty_file_is_what_we_recommend(tmp_path):
    assert load_config(write(tmp_path, "")).stage_configs(3) == [TrainConfig()] * 3
    assert load_config(write(tmp_path, 'preset = "paper"')).stage_configs(3) == [TrainConfig.paper()] * 3
    assert load_config(write(tmp_path, "")).training == TrainConfig()


def test_every_field_of_trainconfig_can_be_said(tmp_path):
    """The file mirrors the dataclass: a configuration written out reads back unchanged."""
    wanted = TrainConfig(test=0.2, patience=4, threads=2, target_transform="sqrt", clip_gradient=None)
    values = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    text = "[training]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    read = load_config(write(tmp_path, 'preset = "paper"\n' + text)).training
    assert read == wanted
    # Settings from a preset can be undone.
    text = '[training]\ntarget_transform = "none"\nclip_gradient = "none"'
    read = load_config(write(tmp_path, text)).training
    assert read == TrainConfig(target_transform=None, clip_gradient=None)


BAD = {
    "[training]\nlearning_rat = 1": r"\[training\]: unknown key 'learning_rat'. Did you mean 'learning_rate'\?",
    "[training]\ntraining_iters = 1": "unknown key 'training_iters'. Did you mean 'steps'",
    "[training]\nxyzzy = 1": "unknown key 'xyzzy'. Known: channels, kernels",
    "[path]\nmodel = 'x'": "unknown key 'path'. Did you mean 'paths'",
    "[paths]\nlevel = 'x'": r"\[paths\]: unknown key 'level'. Did you mean 'levels'",
    "[data]\nmin_year = 1981": r"\[data\]: unknown key 'min_year'. Did you mean 'years'",
    "[training]\nsteps = 'many'": r"\[training\]: steps is 'many'; input should be a valid integer",
    "[training]\nsteps = 0": r"\[training\]: steps is 0; needed: a whole number of at least 1",
    "[training]\nloss = 'l1'": r"loss is 'l1'; needed: one of 'mse', 'denseloss'",
    "[training]\nkernels = [9, 1]": "Needed: one more kernel than hidden channels",
    "[training]\npatch = 10": "patch 10 leaves no output",
    "[[stages]]\nstep = 3": r"\[\[stages\]\] number 1: unknown key 'step'. Did you mean 'steps'",
    "preset = 'large'": "preset is 'large'. Needed: 'paper'. Leave it out",
    "[data]\nyears = [2015, 1981]": r"years is \[2015, 1981\]. Needed: the first and the last year",
    "[data]\nyears = 2015": r"\[data\]: years is 2015; input should be a valid tuple",
    "[data]\nfactors = [2]\n[[stages]]\n[[stages]]": r"2 \[\[stages\]\], but factors \[2\]",
    "training = 3": r"training is 3. Needed: a table, \[training\]",
    "[training": "is not valid TOML",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files(tmp_path, text):
    with pytest.raises(ValueError, match=BAD[text]) as error:
        load_config(write(tmp_path, text))
    assert str(tmp_path / "config.toml") in str(error.value)


def test_files_that_are_not_there_or_old(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Type xdeepsd config from-ini config\.ini"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"An old config\.ini"):
        load_config(write(tmp_path, "[Paths]\nscratch: x", "config.ini"))


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12))
def test_any_unknown_key_is_refused_with_the_known_ones(key):
    if key in {f.name for f in dataclasses.fields(TrainConfig)}:
        return
    with pytest.raises(ValueError, match=r"unknown key .* Known: channels"):
        parse_config({"training": {key: 1}})


# The old files, as distributed by the projects.
OLD = """\
[Paths]
elevation: data/wcs_4km_prism.nc
scratch: scratch/
prism: data/prism

[DataOptions]
variable: ppt
min_year: 1981
max_year: 2015
max_train_year: 2005

[SRCNN]
scratch: scratch/
layer_sizes: 64,32,1
kernel_sizes: 9,3,5
learning_rate: 0.001
training_iters: 50000
batch_size: 100
training_input_size: 38
training_input_depth: 1
aux_depth: 1
save_step: 1000
test_step: 50
dropout_prob: 0.0

[Model-1]
data_dir: scratch/ppt_016_032/
model_name: ppt-016-032

[Model-2]
data_dir: scratch/ppt_008_016/
model_name: ppt-008-016

{header}
data_dir: scratch/ppt_004_008/
model_name: ppt-004-008

[DeepSD]
model_name: ppt-004-032
low_resolution: 32
high_resolution: 4
upscale_factor: 2
"""


def convert(tmp_path, text):
    converted, notes = convert_ini(write(tmp_path, text, "config.ini"))
    return parse_config(tomllib.loads(converted), tmp_path / "config.toml"), notes


@pytest.mark.parametrize("header", ["[Model-3]", "[Model-2]", "Model-2]", "[Model-2", "Model-3]"])
def test_whole_and_broken_headers_give_the_same(tmp_path, header):
    config, notes = convert(tmp_path, OLD.format(header=header))
    assert config.stages is None, "all alike"
    assert config.data.factors == (2, 2, 2)
    assert config.training == TrainConfig.paper(
        kernels=(9, 3, 5), learning_rate=1e-3, batch=100, steps=50_000, validate_every=50, checkpoint_every=1000,
        schedule="exponential", train=("1981/2003",), validation=("2004/2005",), test=("2006/2015",),
    )  # fmt: skip
    text = " ".join(notes)
    assert ("broken section header" in text) == (header.count("[") + header.count("]") == 1)
    assert ("another section [Model-2]" in text) == (header == "[Model-2]")
    assert "The old code had no validation days" in text


def test_characters_that_toml_does_not_take_as_they_are(tmp_path):
    text = OLD.format(header="[Model-3]").replace("data/prism", "data\x0f\U0001f327\x7f")
    converted, _ = convert_ini(write(tmp_path, text, "config.ini"))
    assert "\x0f" not in converted
    parse_config(tomllib.loads(converted), tmp_path / "config.toml")


def test_what_cannot_be_kept_is_said(tmp_path):
    text = OLD.format(header="[Model-3]").replace(
        "dropout_prob: 0.0", "dropout_prob: 0.5\nweighted_loss: False\nalpha: 2.0\nverbose: 1"
    )
    text = text.replace("aux_depth: 1", "aux_depth: 2").replace("max_year: 2015", "max_year: 2005")
    config, notes = convert(tmp_path, text)
    assert config.training.test is None
    for part in (
        "dropout_prob 0.5 is not kept", "alpha 2.0 is not kept: weighted_loss is off", "verbose = 1 is not kept",
        "aux_depth 2: only elevation is kept", "so there are no test days", "The folders of patch files",
    ):  # fmt: skip
        assert any(part in note for note in notes), part


def test_weighted_loss_becomes_denseloss(tmp_path):
    text = OLD.format(header="[Model-3]").replace("dropout_prob: 0.0", "weighted_loss: True\nalpha: 1.4")
    config, _ = convert(tmp_path, text)
    assert (config.training.loss, config.training.alpha) == ("denseloss", 1.4)


def test_models_that_do_not_fit_the_resolutions(tmp_path):
    config, notes = convert(tmp_path, OLD.format(header="[Other]"))
    assert config.stages is None
    assert any("3 stages, but 2 models are listed" in note for note in notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low_resolution: 32", "low_resolution: 24", "24 km is not 4 km times a power of 2"),
        ("max_train_year: 2005", "max_train_year: 2025", "max_train_year 2025"),
        ("batch_size: 100", "batch_size: many", r"\[SRCNN\] batch_size is 'many'. Needed: a number"),
        ("layer_sizes: 64,32,1", "layer_sizes: 64,32", "Needed: 1 as the last"),
        ("[SRCNN]", "[CNN]", r"Needed: a config.ini of deepsd or DenseLoss"),
        ("kernel_sizes: 9,3,5", "kernel_sizes: 8,3,5", "Needed: odd sizes"),
        ("[Paths]\n", "", "is not a config.ini"),
    ],
)
def test_old_files_that_cannot_be_used(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, OLD.format(header="[Model-3]").replace(old, new))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "stages", "repaired"), [("deepsd", 2, 0), ("deepsd-large", 5, 1), ("denseloss", 1, 0)]
)
def test_the_originals_files(real_data, tmp_path, name, stages, repaired):
    text, notes = convert_ini(real_data / "legacy_config" / f"{name}.ini")
    config = load_config(write(tmp_path, text))
    assert len(config.stage_configs(stages)) == len(config.data.factors) == stages
    assert "# xdeepsd prepare " in text
    assert sum("broken section header" in note for note in notes) == repaired
    assert sum("another section" in note for note in notes) == 2 * repaired


def test_from_ini_on_the_command_line(tmp_path):
    ini = write(tmp_path, OLD.format(header="Model-3]"), "old.ini")
    result = CliRunner().invoke(app, ["config", "from-ini", str(ini)])
    assert result.exit_code == 0, result.output
    assert "broken section header" in result.output.replace("\n", " ")
    assert load_config(tmp_path / "old.toml").data.factors == (2, 2, 2)
    command = "xdeepsd prepare data/prism --elevation data/wcs_4km_prism.nc --variable ppt --factors 2,2,2 --out "
    assert command in (tmp_path / "old.toml").read_text()
    again = CliRunner().invoke(app, ["config", "from-ini", str(ini)])
    assert again.exit_code == 1
    assert "exists" in again.output
    other = CliRunner().invoke(app, ["config", "from-ini", str(ini), "--out", str(tmp_path / "b.toml")])
    assert other.exit_code == 0
    assert (tmp_path / "b.toml").read_text() == (tmp_path / "old.toml").read_text()
