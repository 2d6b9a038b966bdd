"""xdeepsd/models/model.schema.json: what a model says of itself, for those who read it without xdeepsd."""

import copy
import json
from pathlib import Path

import pytest
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd.models import files
from xdeepsd.models.files import DEMO

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema (of the extra test) is missing")
SCHEMA = json.loads((Path(files.__file__).with_name("model.schema.json")).read_text())
DEMO_MODEL = json.loads((DEMO / "model.json").read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one_and_the_demo_model_follows_it():
    CHECK.check_schema(SCHEMA)
    CHECK.validate(DEMO_MODEL)
    assert SCHEMA["properties"]["format"]["const"] == files.FORMAT


@pytest.mark.parametrize("how", ["plain", "static", "noise", "bernoulli_gamma", "noted"])
def test_what_save_model_writes_follows_it(tmp_path, how):
    options = {"noise": {"noise": 2}, "bernoulli_gamma": {"head": "bernoulli_gamma"}}.get(how, {})
    model = make_stack(2, channels=(4,), kernels=(3, 3), **options)
    if how != "plain":
        static = make_static(make_coarse(), model.scale)
        notes = (
            {"data": "PRISM", "licence": "its owner's", "day_boundary": "12 UTC", "mine": 3} if how == "noted" else {}
        )
        model = xdeepsd.StackedSRCNN(model.stages, static=static, mask=static.elevation > 0, training=notes)
    xdeepsd.save_model(model, tmp_path / "model")
    CHECK.validate(json.loads((tmp_path / "model" / "model.json").read_text()))


def broken(**changes):
    return copy.deepcopy(DEMO_MODEL) | changes


@pytest.mark.parametrize(
    "description",
    [
        {},
        broken(format=99),
        broken(stages=[]),
        broken(sha256="abc"),
        broken(surprise=1),
        broken(units=None),
        broken(grids=[{"lat": {"size": 3, "first": 1.0}, "lon": {"size": 3, "first": 1.0, "step": 1.0}}]),
        broken(training={"errors": {"xdeepsd": {"rmse": "low"}}}),
        broken(training={"licence": 3}),
    ],
)
def test_what_does_not_follow_it(description):
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(description)
