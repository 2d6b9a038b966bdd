"""What a model says of itself: the facts of its ``repr`` as tables in a notebook, and its card in Markdown; escaped."""

import dataclasses
import html
import re

import numpy as np
from builders import make_coarse, make_stack, make_static
from typer.testing import CliRunner

import xdeepsd
from xdeepsd import DenseWeight, SRCNNConfig, StackedSRCNN, TrainConfig
from xdeepsd.cli import app

SUMMARY = {
    "first_day": "1981-01-01", "last_day": "2005-12-31", "days": {"train": 9131}, "rmse": 1.25,
    "rmse_interpolation": 1.75,
}  # fmt: skip


def trained(**changes):
    """A stack of two stages of which the first says what it was trained on; its maps are lazy."""
    static = make_static(make_coarse(), 4).chunk()
    options = {"variable": "ppt", "static": static, "training": {"stages": [SUMMARY, {}]}}
    return StackedSRCNN(make_stack(2, residual=True).stages, **options | changes)


def cells(markup):
    """The text of all cells, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [[html.unescape(text) for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_a_model_shows_what_its_repr_says(no_compute):
    model = trained()
    with no_compute():
        shown = model._repr_html_()
    title, *lines = repr(model).splitlines()
    assert f"<b>{title}</b>" in shown
    rows = [row for row in cells(shown) if row[0] != "stage"]
    assert [f"  {name}: {', '.join(filter(None, words))}" for name, *words in rows] == lines
    assert cells(shown)[-2][2:] == [
        "9131 training days, 1981-01-01 to 2005-12-31", "validation RMSE 1.25 (1.75 by interpolation)",
    ]  # fmt: skip
    assert cells(shown)[-1][2:] == ["", ""]


def test_text_of_the_user_is_escaped():
    bad = "<script>alert('x')</script>"
    summary = SUMMARY | {"first_day": bad}
    model = trained(variable=bad, training={"stages": [summary], "coarse_product": bad})
    for shown in (model._repr_html_(), SRCNNConfig(static=(bad,))._repr_html_()):
        assert "<script" not in shown
        assert html.escape(bad)[:20] in shown


def rows_of(text, section):
    """The rows of the Markdown tables below a heading."""
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_card_says_what_the_model_knows(no_compute):
    errors = {"xdeepsd": {"rmse": 1.0, "bias": -0.01}, "bilinear": {"rmse": 2.0, "bias": 0.0}}
    noted = {"data": "PRISM", "licence": "see the PRISM terms", "day_boundary": "12 UTC", "errors_on": "2006"}
    worse = SUMMARY | {"rmse": 2.0}
    model = trained(training={"stages": [SUMMARY, worse], "errors": errors, **noted})
    with no_compute():
        text = model.card()
    title, *lines = repr(model).splitlines()
    assert text.startswith(f"# Model card: {title}\n")
    for line in lines[:3]:
        name, fact = line.strip().split(": ", 1)
        assert f"| {name} | {fact} |" in text
    assert [f"  {name}: {', '.join(words)}" for name, *words in rows_of(text, "Stages")[1:]] == lines[3:]
    assert dict(rows_of(text, "Data")[1:]) == {
        "data": "PRISM", "licence": "see the PRISM terms", "day boundary": "12 UTC", "days, stage 0": "9131 train",
        "days, stage 1": "9131 train",
    }  # fmt: skip
    assert rows_of(text, "Errors")[1:] == [["xdeepsd", "1.000", "-0.010"], ["bilinear", "2.000", "0.000"]]
    assert "Days: 2006." in text
    assert "**Stage 1 does not beat interpolation**" in text
    assert "Stage 0 does not" not in text
    assert model.fingerprint() in text


def test_the_card_of_a_model_of_unknown_origin_invents_nothing():
    text = make_stack(1).card()
    data = dict(rows_of(text, "Data")[1:])
    assert data == dict.fromkeys(("data", "licence", "day boundary"), "not recorded")
    assert "Of the stack: not recorded." in text
    assert "The error of stage 0: not recorded." in text
    assert rows_of(text, "Stages")[1][2:] == ["not recorded", "not recorded"]


def test_the_limits_follow_from_the_model():
    assert "bias of the coarse input goes through" in make_stack(1, conserve="additive").card()
    assert "bias of the coarse input" not in make_stack(1).card()
    assert "extremes are damped" in make_stack(1).card()
    assert "extremes are damped" not in make_stack(1, noise=1).card()


def test_text_of_the_user_cannot_break_the_card():
    noted = {"data": "a|b\n# <script>x</script>", "n|ame": "&"}
    data = rows_of(trained(training=noted).card(), "Data")
    assert ["data", "a\\|b # &lt;script>x&lt;/script>"] in data
    assert ["n\\|ame", "&amp;"] in data


def test_the_command_prints_the_card_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xdeepsd.save_model(trained(), "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    def said(*arguments):
        result = CliRunner().invoke(app, ["card", *arguments])
        return result.exit_code, result.output

    assert said("model") == (0, trained().card())
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    code, text = said("nothing")
    assert code == 1
    assert "No model at nothing" in text
    for seed in range(2):
        xdeepsd.save_model(make_stack(1, seed), f"seeds/seed_{seed}")
    assert said("seeds") == (0, "\n".join(make_stack(1, seed).card() for seed in range(2)))
    assert said("demo") == (0, xdeepsd.load_model("demo").card())


def test_settings_show_first_what_is_not_at_its_default():
    config = TrainConfig(steps=500, validation=[2004])
    above, below = config._repr_html_().split("<details>")
    assert "<b>TrainConfig</b>" in above
    assert cells(above) == [["steps", "500"], ["validation", "(2004,)"]]
    rest = dict(cells(below)) | dict(cells(above))
    assert rest == {field.name: repr(getattr(config, field.name)) for field in dataclasses.fields(config)}
    assert "<summary>8 at their defaults" in SRCNNConfig()._repr_html_()
    assert dict(cells(SRCNNConfig(factor=3)._repr_html_().split("<details>")[0])) == {
        "factor": "3", "radius": "6 fine cells", "halo": "3 coarse cells",
    }  # fmt: skip


def test_a_fitted_weight_shows_its_fit():
    values = np.random.default_rng(0).gamma(1, 5, 1000)
    weight = DenseWeight(alpha=0.5)
    assert dict(cells(weight._repr_html_())) == {
        f.name: repr(getattr(weight, f.name)) for f in dataclasses.fields(weight) if f.repr
    }
    fitted = weight.fit(values)
    shown = dict(cells(fitted._repr_html_()))
    assert (shown["alpha"], shown["fit: n"]) == ("0.5", "1000")
    assert float(shown["fit: bandwidth"]) == float(f"{1.06 * values.std() * 1000**-0.2:.6g}")
    assert "histogram" not in shown


def test_the_accessor_completes_to_what_it_can_do():
    names = [name for name in dir(make_coarse().deepsd) if not name.startswith("_")]
    assert names == ["distribution", "downscale", "plot", "to_zarr"]
    assert all(callable(getattr(xdeepsd, name)) for name in names if name != "plot")
    assert xdeepsd.plot.compare.__name__ in dir(make_coarse().deepsd.plot)
