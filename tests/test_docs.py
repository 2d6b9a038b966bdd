"""What the pages say about the code: every public name is listed, every documented call exists, examples run."""

import ast
import functools
import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import xarray as xr
from builders import make_coarse, make_stack, make_static

import xdeepsd
from xdeepsd.accessor import DeepSDAccessor

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.py")])


def blocks(page):
    """Python blocks of a page, and the line where each begins."""
    text = page.read_text()
    return {text[: m.start()].count("\n") + 2: m[1] for m in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)}


def test_every_public_name_is_on_the_page():
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", (ROOT / "docs/api.md").read_text(), re.M)))
    assert sorted(listed) == sorted(xdeepsd.__all__)
    assert "api.md" in (ROOT / "docs/index.md").read_text()


@pytest.mark.parametrize("name", sorted(set(xdeepsd.__all__) - {"__version__"}))
def test_every_public_name_has_a_worked_example(name):
    """A doctest, which runs with the others."""
    assert ">>> " in inspect.getdoc(getattr(xdeepsd, name))


def target(name, imported):
    """The object a dotted name refers to: in xdeepsd, the accessor, or imported from the package."""
    first, *rest = name.split(".")
    if "deepsd" in rest:
        found, rest = DeepSDAccessor, rest[rest.index("deepsd") + 1 :]
    elif first in imported:
        found = imported[first]
    else:
        return None
    for part in rest:
        if inspect.ismodule(found) and not hasattr(found, part) and find_spec(f"{found.__name__}.{part}"):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
        if not callable(found) and not inspect.ismodule(found):
            return None  # the value of an attribute
    return found


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def names_of_package(tree):
    imported = {"xdeepsd": xdeepsd}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xdeepsd":
            module = importlib.import_module(node.module)
            for alias in node.names:
                imported[alias.asname or alias.name] = getattr(module, alias.name)
    return imported


def wrong_calls(code, imported=None):
    """What the code uses from xdeepsd that does not exist, in words."""
    tree, found = ast.parse(code), []
    imported = (imported or {}) | names_of_package(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            try:
                target(dotted(node), imported)
            except AttributeError as error:
                found.append(f"{dotted(node)}: {error}")
        if isinstance(node, ast.Call):
            try:
                function = target(dotted(node.func), imported)
                if function is None:
                    continue
                keywords = {k.arg: None for k in node.keywords if k.arg}
                given = [None] * (1 if dotted(node.func).split(".")[-2:-1] == ["deepsd"] else 0)  # self
                stars = any(isinstance(a, ast.Starred) for a in node.args) or len(keywords) < len(node.keywords)
                signature = inspect.signature(function)
                arguments = given + [None] * len(node.args)
                (signature.bind_partial if stars else signature.bind)(*arguments, **keywords)
            except (AttributeError, TypeError) as error:
                found.append(f"{ast.unparse(node)}: {error}")
    return found


def test_what_is_planted_is_found():
    assert wrong_calls("xdeepsd.regrid(ds, target, method='nearest')\nds.deepsd.downscale(model, mask=land)") == []
    assert wrong_calls("xdeepsd.sweep.run_sweep(levels)")
    assert wrong_calls("xdeepsd.regrid(ds, target, methods='nearest')")
    assert wrong_calls("ds.deepsd.downscale(model, land=1)")
    assert wrong_calls("ds.deepsd.downscale()")
    assert wrong_calls("ds.deepsd.shrink")
    with pytest.raises(AttributeError):
        wrong_calls("from xdeepsd.evaluation.sweep import nothing")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_calls_exist(page):
    imported, wrong = {}, []
    for line, code in blocks(page).items():
        imported |= names_of_package(ast.parse(code))
        wrong += [f"{page.name}:{line}: {text}" for text in wrong_calls(code, imported)]
    spans = re.findall(r"`([^`\n]*\b(?:xdeepsd|deepsd)\.[^`\n]*)`", page.read_text())
    for span in spans:
        try:
            ast.parse(span)
        except SyntaxError:  # a command line, or a key of a file
            continue
        wrong += [f"{page.name}: {text}" for text in wrong_calls(span)]
    assert wrong == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_calls_of_the_scripts_exist(script):
    assert wrong_calls(script.read_text()) == []


# --- the pages run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small versions of the files and names that the pages assume; training takes a few steps."""
    monkeypatch.chdir(tmp_path)
    coarse = make_coarse(days=4)
    coarse.to_dataset(name="pr").chunk(time=2).to_zarr("coarse.zarr")
    stack = make_stack(2, channels=(4, 2), kernels=(3, 1, 3))
    xdeepsd.save_model(xdeepsd.StackedSRCNN(stack.stages, static=make_static(coarse, stack.scale)), "model/")
    climate = xdeepsd.make_climate(years=4, shape=(24, 24), start=2003)
    small = {"channels": (4, 2), "kernels": (3, 1, 3), "patch": 6, "stride": 4, "batch": 8, "steps": 2, "workers": 1,
             "min_land": 0.1, "validate_every": 1}  # fmt: skip
    monkeypatch.setattr(xdeepsd, "TrainConfig", functools.partial(xdeepsd.TrainConfig, **small))
    return {"xr": xr, "xdeepsd": xdeepsd, "fine": climate["precipitation"], "static": climate[["elevation"]]}


def run(page, names, skip=()):
    for line, code in blocks(ROOT / "docs" / page).items():
        if not any(word in code for word in skip):
            exec(compile("\n" * (line - 1) + code, page, "exec"), names)


def as_prism(files, monkeypatch):
    """The generated climate stands in for PRISM files."""
    monkeypatch.setattr(xdeepsd, "open_prism", lambda path, days=files["fine"]: days)
    files["static"].to_netcdf("elevation.nc")


def test_the_page_on_levels_runs(files, monkeypatch):
    as_prism(files, monkeypatch)
    run("howto/levels.md", files)
    assert len(files["levels"]) == 4


def test_the_page_on_members_runs(files):
    xdeepsd.build_levels(files["fine"], files["static"], (2, 2), "levels.zarr")
    coarse = xr.open_zarr("levels.zarr", group="level_0")[["precipitation"]].isel(time=slice(3))
    coarse.rename(precipitation="pr").load().drop_encoding().to_zarr("coarse.zarr", mode="w")
    for seed in range(2):
        stages = make_stack(2, seed, channels=(4, 2), kernels=(3, 1, 3)).stages
        xdeepsd.save_model(xdeepsd.StackedSRCNN(stages, static=files["static"]), f"seeds/seed_{seed}")
    page = (ROOT / "docs/howto/members.md").read_text()
    assert "`--statistics`" in page
    run("howto/members.md", files)
    assert files["both"]["pr_std"].dims == ("time", "lat", "lon")
    assert files["members"].sizes["member"] == 20


def write_a_prediction(files):
    """The stores of the pages on evaluation and on the report."""
    truth = files["fine"].sel(time="2005")
    coarse = xdeepsd.coarsen(truth, 4)
    for name, da in (("observed", truth), ("coarse", coarse), ("prediction", xdeepsd.interpolate(coarse, truth))):
        da.rename("pr").to_dataset().chunk(time=100).drop_encoding().to_zarr(f"{name}.zarr", mode="w")


def test_the_page_on_the_report_runs(files):
    write_a_prediction(files)
    run("howto/report.md", files)
    assert Path("day.png").stat().st_size > 10_000
    assert files["figure"].axes[0].get_xlabel() == "wavelength (km)"


def test_the_page_on_evaluation_runs(files):
    write_a_prediction(files)
    run("howto/evaluate.md", files)
    assert list(files["found"]["name"].values) == ["prediction", *files["beside"]]
    assert float(files["found"]["rmse"].sel(name="prediction")) == float(files["found"]["rmse"].sel(name="bilinear"))
    assert files["change"]["RX1day"].notnull().any()
    assert files["skill"].notnull().any()


def test_the_page_on_regridding_runs(files):
    run("howto/regrid.md", files)
    given, regular = files["ds"]["precipitation"], files["regular"]["precipitation"]
    assert regular.notnull().any()
    assert given.min() <= regular.min() <= regular.max() <= given.max()
    xr.testing.assert_identical(files["again"], xdeepsd.regrid(files["ds"], files["target"]))


def test_the_page_on_climate_models_runs(files):
    """On a coarser grid of its own, in two files."""
    days = make_coarse(days=4, nlat=5, nlon=6, spacing=1.5).to_dataset()
    for part in (slice(0, 2), slice(2, 4)):
        days.isel(time=part).to_netcdf(f"pr_day_{part.start}.nc")
    files["history"], files["observed"] = make_coarse(days=59), make_coarse(days=59, seed=3)
    run("howto/climate-models.md", files)
    assert files["found"].adapted
    assert "corrected by quantile delta mapping" in files["fine"].attrs["xdeepsd_adapted"]
    assert xr.open_zarr("fine.zarr", consolidated=False).attrs["xdeepsd_adapted"].startswith("regridded")


def test_the_page_on_clusters_runs(files):
    """On this machine: what needs a hub or Kubernetes is only defined there, and runs in tests/clusters."""
    run("howto/cluster.md", files)
    assert files["client"].status == "closed"
    xr.testing.assert_equal(
        xr.open_zarr("fine.zarr", consolidated=False), files["coarse"].deepsd.downscale(files["model"])
    )


def test_the_first_lines_of_the_readme_run_with_nothing_at_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(next(iter(blocks(ROOT / "README.md").values())), names)
    truth = names["climate"]["precipitation"].sel(time="2003")
    assert names["fine"].sizes == truth.sizes
    table = xdeepsd.compare({"fine": names["fine"], "bilinear": xdeepsd.interpolate(names["coarse"], truth)}, truth)
    assert table.loc["fine", "rmse"] < table.loc["bilinear", "rmse"] / 2
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_questions_runs(files):
    climate, coarse = files["fine"], xr.open_zarr("coarse.zarr")["pr"]
    files["elevation"] = make_static(coarse, 4)["elevation"]
    files["truth"] = climate.sel(time="2005")
    files["given"] = xdeepsd.coarsen(files["truth"], 4)
    files["prediction"] = xdeepsd.interpolate(files["given"], files["truth"])
    run("faq.md", files)
    assert files["fine"]["pr"].sizes["lat"] == 4 * coarse.sizes["lat"]
    assert files["table"].loc["xdeepsd", "rmse"] == files["table"].loc["bilinear", "rmse"]


def test_the_page_on_installing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    run("install.md", names)
    assert names["fine"].sizes["lat"] == 8 * names["coarse"].sizes["lat"]


def test_the_quickstart_runs(files, monkeypatch):
    """Without a cluster."""
    as_prism(files, monkeypatch)
    run("quickstart.md", files, skip=("Client(",))
    assert Path("fine.zarr").exists()
    assert xdeepsd.load_model("my_model/").scale == 8
