"""``xdeepsd report``: the page says what the library finds, stands alone, and shows as it should in a real browser."""

import dataclasses
import html
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app
from xdeepsd.cli.report import check_own, find_config
from xdeepsd.evaluation.judged import judged_days
from xdeepsd.evaluation.report import MADE_BY, make_report
from xdeepsd.levels.disk import open_levels
from xdeepsd.training.config import TrainConfig

CONFIG = """
[training]
channels = [4, 2]
kernels = [3, 1, 3]
patch = 10
stride = 6
batch = 8
steps = 20
validate_every = 10
min_land = 0.1
workers = 1
validation = ["2001-10"]
test = ["2001-11/2001-12"]
"""


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "1000"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training: levels, model and checkpoints beside the TOML file."""
    folder = tmp_path_factory.mktemp("run")
    climate = xdeepsd.make_climate(years=1, shape=(24, 32), start=2001)
    xdeepsd.build_levels(climate["precipitation"], climate[["elevation"]], (2,), folder / "levels.zarr")
    (folder / "config.toml").write_text(CONFIG)
    result = run("train", folder / "config.toml")
    assert result.exit_code in (0, 2), result.output
    return folder


@pytest.fixture(scope="module")
def page(trained):
    out = trained / "report.html"
    result = run("report", trained, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == out.as_uri()
    return out


class Outline(HTMLParser):
    """Tags that are open, the rows of the tables, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.refers, self.images, self.ids, self.links = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.refers += [attrs[name] for name in ("src", "href") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another tag"

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def test_the_page_stands_alone(page):
    text = page.read_text()
    found = Outline(text)
    assert found.open == []
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert re.search(r"<title>Report: StackedSRCNN of factor 2 = 2, precipitation in mm day-1</title>", text)
    assert MADE_BY in text[:1000]
    assert "<script" not in text
    assert all(ref.startswith(("data:", "#")) for ref in found.refers)
    assert {ref[1:] for ref in found.refers if ref.startswith("#")} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert len(found.images) == 9
    assert all(len(image["alt"]) > 20 and image["width"] and image["height"] for image in found.images)
    assert str(page.parent.parent) not in text, "no path of this machine"
    assert len(text) < 3e6


def test_the_tables_are_what_the_library_finds(trained, page):
    levels = open_levels(trained / "levels.zarr")
    model = xdeepsd.load_model(trained / "model")
    days = slice("2001-11", "2001-12")
    truth = levels[-1]["precipitation"].where(levels[-1]["mask"]).sel(time=days).load()
    coarse = levels[0][["precipitation"]].sel(time=days).load()
    train = slice("2001-01", "2001-09")
    means = [level["precipitation"].sel(time=train).mean("time").load() for level in (levels[-1], levels[0])]
    beside = xdeepsd.baselines(coarse["precipitation"], truth, *means, mask=levels[-1]["mask"].load())
    known = xdeepsd.evaluate(xdeepsd.downscale(coarse, model), truth, beside=beside)
    tables = Outline(page.read_text()).tables
    errors = {row[0].removesuffix("strongest baseline"): row[1:] for row in tables[0][1:]}
    assert list(errors) == ["model", *beside]
    for name, row in errors.items():
        here = known.sel(name="prediction" if name == "model" else name)
        for text, key in zip(row, ("rmse", "mae", "bias", "correlation", "skill", "wet_rmse", "dry_mae"), strict=True):
            assert abs(float(text.replace("\u2212", "-")) - float(here[key])) < 0.0006, (name, key)
    strongest = known["rmse"].to_series().drop("prediction").idxmin()
    assert [row[0] for row in tables[0] if row[0].endswith("strongest baseline")] == [f"{strongest}strongest baseline"]
    apart = xdeepsd.differences(known)
    assert [row[0] for row in tables[1][1:]] == list(apart["name"])
    np.testing.assert_allclose(
        [float(row[2].replace("\u2212", "-")) for row in tables[1][1:]], apart["difference"], atol=6e-4
    )
    assert len(tables[2]) == 1 + len(errors)
    assert [row[0] for row in tables[3][1:]] == ["DJF", "SON"]
    facts = {row[0]: row[1] for table in tables[5:] for row in table if len(row) == 2}
    assert facts["training days"] == "273: 2001-01-01..2001-09-30"
    assert facts["validation days"] == "31: 2001-10-01..2001-10-31"
    assert facts["test days"] == "61: 2001-11-01..2001-12-31"
    assert facts["steps"] == "20"
    assert facts["model"] == f"fingerprint {model.fingerprint()}"
    assert facts["xdeepsd"] == xdeepsd.__version__


def test_bcsd_stands_beside_a_model_of_another_product(page):
    """Whose bias it corrects; beside the mean of the truth it would be the climatology ratio."""
    assert "BCSD" not in [row[0] for row in Outline(page.read_text()).tables[0]]
    climate = xdeepsd.make_climate(years=1, shape=(24, 32))
    product = xdeepsd.coarsen(climate["precipitation"].fillna(0), 2) * 0.5
    levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2,), coarse=product)
    config = TrainConfig(
        channels=(4, 2),
        kernels=(3, 1, 3),
        static=("elevation",),
        patch=10,
        stride=6,
        batch=8,
        steps=2,
        validate_every=2,
        workers=1,
        validation=("2001-10",),
        test=("2001-11/2001-12",),
    )
    text = make_report(levels, [xdeepsd.train_stack(levels, config, progress=False)], [config])
    rows = {row[0].split("strongest")[0].strip(): row[1:] for row in Outline(text).tables[0][1:]}
    rmse = {name: float(row[0].split()[0]) for name, row in rows.items() if row and row[0].strip()}
    assert rmse["BCSD"] < rmse["bilinear"]


def test_what_was_chosen_on_which_days_is_said(page):
    text = " ".join(html.unescape(page.read_text()).split())
    assert "Weights, normalisers and climatology: on the 273 training days." in text
    assert "the lowest RMSE on 31 of the 31 validation days" in text
    assert "Nothing on the 61 test days" in text


def test_only_an_earlier_report_is_replaced(trained, page, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<html>my thesis</html>")
    link = tmp_path / "link.html"
    link.symlink_to(page)
    for out, text in ((mine, "no report wrote it"), (link, "no report wrote it"), (tmp_path, "is a folder")):
        result = run("report", trained, "--out", out)
        assert result.exit_code == 1
        assert text in result.stderr
        assert "--out" in result.stderr
    assert mine.read_text() == "<html>my thesis</html>"
    assert link.is_symlink()
    check_own(page)


def test_what_is_not_a_run_is_told_before_any_work(trained, tmp_path):
    for folder, text in ((tmp_path, "is not a run: it holds no TOML file"), (tmp_path / "x", "There is no folder")):
        result = run("report", folder, "--out", tmp_path / "r.html")
        assert result.exit_code == 1
        assert text in result.stderr
    (tmp_path / "a.toml").write_text(CONFIG)
    result = run("report", tmp_path, "--out", tmp_path / "r.html")
    assert "There is no model at" in result.stderr
    (tmp_path / "b.toml").write_text("")
    result = run("report", tmp_path, "--out", tmp_path / "r.html")
    assert "it holds a.toml, b.toml" in result.stderr
    assert "Type xdeepsd report FILE.toml" in result.stderr
    assert find_config(tmp_path / "a.toml") == tmp_path / "a.toml"
    shutil.copytree(trained / "model", tmp_path / "model")
    result = run("report", tmp_path / "a.toml", "--out", tmp_path / "r.html")
    assert result.exit_code == 1, "no levels"
    assert not (tmp_path / "r.html").exists()


def test_days_that_it_was_not_trained_with_are_refused(trained):
    model = xdeepsd.load_model(trained / "model")
    config = TrainConfig(**model.training["config"][-1])
    levels = open_levels(trained / "levels.zarr")
    assert judged_days(levels, [model], config).part == "test"
    fewer = [level.isel(time=slice(10, None)) for level in levels]
    with pytest.raises(ValueError, match=r"was trained with .*'train': 273.* days that it has seen would be judged"):
        judged_days(fewer, [model], config)
    with pytest.raises(ValueError, match=r"factors \[4\], the model \[2\]"):
        judged_days([levels[0].coarsen(lat=2, lon=2).mean(), levels[-1]], [model], config)
    none = dataclasses.replace(config, validation=None, test=None)
    with pytest.raises(ValueError, match="neither test nor validation days"):
        judged_days(levels, [model], none)


@pytest.mark.slow
def test_an_ensemble_on_validation_days_with_a_sweep(trained, tmp_path):
    for name in ("levels.zarr",):
        shutil.copytree(trained / name, tmp_path / name)
    (tmp_path / "run.toml").write_text(CONFIG.replace('test = ["2001-11/2001-12"]', 'train = ["2001-01/2001-09"]'))
    assert run("train", tmp_path / "run.toml", "--seeds", 2).exit_code in (0, 2)
    bins = pd.DataFrame({"rank": [0, 1], "low": 0.0, "high": [9.0, 5.0], "count": 7, "rmse": 1.0, "mae": 0.5})
    parts = [
        bins.assign(part=part, name=name, alpha=alpha, seed=seed, chosen=alpha == 1)
        for part in ("validation", "test") for name, alpha, seed in
        (("model", 0.0, 0), ("model", 0.0, 1), ("model", 1.0, 0), ("model", 1.0, 1), ("bilinear", np.nan, -1))
    ]  # fmt: skip
    (tmp_path / "sweep").mkdir()
    pd.concat(parts).to_parquet(tmp_path / "sweep" / "sweep.parquet")
    result = run("report", tmp_path, "--out", tmp_path / "deep" / "r.html")
    assert result.exit_code == 0, result.output
    text = " ".join(html.unescape((tmp_path / "deep" / "r.html").read_text()).split())
    assert "These are not test days" in text
    assert "CRPS" in text
    assert "spread / error" in text
    assert text.count("fingerprint") == 2
    assert "alpha = 1 was chosen" in text
    assert len(Outline(text).images) == 10, "no seasonal cycle of a single month"
    assert "<h3>Members</h3>" in text


def test_days_without_observations_are_told(trained, tmp_path):
    model = xdeepsd.load_model(trained / "model")
    levels = open_levels(trained / "levels.zarr")
    config = TrainConfig(**model.training["config"][-1])
    empty = [level.assign(precipitation=level["precipitation"].where(level["time"] < np.datetime64("2001-11-01")))
             for level in levels]  # fmt: skip
    with pytest.raises(ValueError, match="None of the 61 test days has an observed cell"):
        make_report(empty, [model], [config])


# --- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("javascript", [True, False])
def test_in_a_browser(browser, page, width, javascript):
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=javascript)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()], "nothing from outside"
    assert tab.title().startswith("Report: ")
    images = tab.locator("img")
    assert images.count() == 9
    for k in range(images.count()):
        loaded = images.nth(k).evaluate("image => image.complete && image.naturalWidth > 0")
        assert loaded, images.nth(k).get_attribute("alt")
        assert images.nth(k).bounding_box()["width"] >= 300, "large enough to be read"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scroll"
    beyond = "[...document.querySelectorAll('table, img')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert tab.evaluate(f"{beyond}.every(e => e.closest('.box'))"), "wide tables scroll in their own box"
    sizes = "[...document.querySelectorAll('p, td, th, figcaption')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(tab.evaluate(sizes)) >= 12
    context.close()
