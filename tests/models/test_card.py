"""What a model and its settings show in a notebook: the facts of their ``repr`` as tables, escaped."""

import dataclasses
import html
import re

import numpy as np
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd import DenseWeight, SRCNNConfig, StackedSRCNN, TrainConfig

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
    assert names == ["distribution", "downscale", "to_zarr"]
    assert all(callable(getattr(xdeepsd, name)) for name in names)
