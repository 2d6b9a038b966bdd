"""The core does what it promises without any extra, and for a missing part the message has the line to type."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from xdeepsd._extras import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def import_names(requirements):
    return {re.match(r"[\w.-]+", line)[0].replace("-", "_") for line in requirements}


CORE = import_names(PROJECT["dependencies"])
EXTRAS = {name: import_names(lines) for name, lines in PROJECT["optional-dependencies"].items() if name != "all"}

WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
"""
DOWNSCALE_AND_TRAIN = """
import tempfile
import warnings
from pathlib import Path
import xarray as xr
import xdeepsd

folder = Path(tempfile.mkdtemp())
climate = xdeepsd.make_climate(years=1, shape=(16, 16)).isel(time=slice(120))
levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2,))
config = xdeepsd.TrainConfig(channels=(4, 2), kernels=(3, 1, 3), static=("elevation",), patch=10, stride=6, batch=8,
                             steps=4, validate_every=2, checkpoint_every=2, validation=0.2, workers=1)
trained = xdeepsd.train_stage(*levels, config, checkpoint_dir=folder / "stage", progress=True)
assert len(trained.history) == 2
model = xdeepsd.train_stack(levels, config)
xdeepsd.save_model(model, folder / "model")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    coarse = levels[0]["precipitation"].chunk(time=60)
    fine = coarse.deepsd.downscale(xdeepsd.load_model(folder / "model"))
    fine.deepsd.to_zarr(folder / "fine.zarr")
texts = [str(w.message) for w in seen if "fast forward" in str(w.message)]
assert len(texts) == 1 and "pip install xdeepsd[fast]" in texts[0], texts
written = xr.open_zarr(folder / "fine.zarr")["precipitation"]
table = xdeepsd.compare({"xdeepsd": written}, levels[-1]["precipitation"])
assert table.notnull().any(axis=None)
regular = xr.Dataset(coords={"lat": [48.0, 48.5], "lon": [-124.0, -123.5]})
xdeepsd.regrid(written, climate.isel(lat=slice(0, 8)), "bilinear")
"""
USE = {
    "bias": """
import xdeepsd
rain = xdeepsd.make_climate(years=1, shape=(4, 4))["precipitation"].load()
assert xdeepsd.fit_correction(rain, rain, nquantiles=5).apply(rain).equals(rain)
""",
    "cli": "import sys; sys.argv = ['xdeepsd', '--help']; from xdeepsd.cli import app; app(standalone_mode=False)",
    "evaluate": """
import xarray as xr, xdeepsd
xr.set_options(keep_attrs=True)  # the default of newer versions
rain = xr.DataArray([[[0.0, 3.0]], [[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 9.0]]], dims=("time", "lat", "lon"), name="pr",
                    coords={"time": xr.date_range("2001-01-01", periods=4), "lat": [50.0], "lon": [5.0, 6.0]},
                    attrs={"units": "mm day-1"})
found = xdeepsd.evaluate(rain + 1, rain, beside={"other": rain ** 2})
assert 0 < xdeepsd.differences(found)["p"][0] < 1
""",
    "fast": """
import numpy as np, xdeepsd
from xdeepsd.inference.forward import fast_forward
xdeepsd.DenseWeight().fit(np.arange(100.0))
assert fast_forward() is not None
""",
    "gateway": """
import xdeepsd
try:
    with xdeepsd.cluster("gateway", address="http://127.0.0.1:1"):
        pass
except ConnectionError as error:
    assert "No Dask Gateway answers" in str(error)
""",
    "hub": """
from xdeepsd import load_model
try:
    load_model("http://127.0.0.1:1/rain", sha256=64 * "0")
except OSError as error:
    assert "was not fetched" in str(error)
""",
    "kubernetes": """
import os, xdeepsd
os.environ.update(KUBECONFIG="/none", HOME="/none")
try:
    with xdeepsd.cluster("kubernetes", image="xdeepsd:1.0"):
        pass
except ConnectionError as error:
    assert "Kubernetes cannot be reached" in str(error)
""",
    "plot": """
import numpy as np, xarray as xr
from xdeepsd.evaluation.plot import maps
maps({"rain": xr.DataArray(np.ones((2, 2)), {"lat": [0.0, 1], "lon": [0.0, 1]}, ("lat", "lon"))})
""",
    "prism": """
import numpy as np, tempfile, pathlib
from xdeepsd import fetch_prism, open_prism
try:
    open_prism(tempfile.mkdtemp())
except ValueError as error:
    assert "No PRISM grid" in str(error)
""",
    "report": """
import xdeepsd
from xdeepsd.evaluation.report import make_report
climate = xdeepsd.make_climate(years=1, shape=(24, 24)).isel(time=slice(60))
levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], (2,))
config = xdeepsd.TrainConfig(channels=(4, 2), kernels=(3, 1, 3), static=("elevation",), patch=10, stride=6, batch=8,
                             steps=2, validate_every=2, validation=0.2, test=0.2, workers=1)
assert "</html>" in make_report(levels, [xdeepsd.train_stack(levels, config, progress=False)], [config])
""",
    "regrid": """
import numpy as np, xarray as xr, xdeepsd
coords = {"lat": [0.0, 1, 2], "lon": [0.0, 1, 2]}
rain = xr.DataArray(np.ones((3, 3)), coords, ("lat", "lon"))
assert float(xdeepsd.regrid(rain, rain.isel(lat=slice(2)), engine="spherely").mean()) > 0.99
""",
}


def run(code, blocked):
    code = WITHOUT.format(blocked=sorted(blocked)) + code
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


def without(*kept):
    """Packages to block: those of all extras except these, unless the core needs them.

    And except sphinx: where sys.modules has its name, scipy takes it for imported.
    """
    needed = set().union(CORE, {"sphinx"}, *(EXTRAS[name] for name in kept))
    needed |= {"psutil"} if "distributed" in needed else set()  # which imports it
    return set().union(*(EXTRAS[name] for name in EXTRAS)) - needed


def test_extras_are_those_of_the_project():
    """What a message calls missing is what pip installs for that extra."""
    assert set(USE) == set(PACKAGES)
    for extra, packages in PACKAGES.items():
        assert set(packages) <= EXTRAS[extra], extra
        assert not set(packages) & CORE
    # The clients of clusters bring a lot that most people never use.
    included = sorted(set(PACKAGES) - {"gateway", "kubernetes"})
    assert re.search(r"\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])[1].split(",") == included


def test_the_core_downscales_and_trains():
    result = run(DOWNSCALE_AND_TRAIN, without())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("extra", sorted(USE))
def test_each_extra_is_enough_for_its_part(extra):
    result = run(USE[extra], without(extra))
    assert result.returncode == 0, result.stderr


def test_a_missing_extra_is_told():
    code = f"""
for code in {list(USE.values())!r}:
    try:
        exec(code)
    except (ImportError, SystemExit) as error:
        print(error)
"""
    result = run(code, without())
    assert result.returncode == 0, result.stderr
    told = result.stdout.splitlines()
    assert len(told) == len(USE)
    for extra, text in zip(USE, told, strict=True):
        missing = ", ".join(PACKAGES[extra])
        assert re.fullmatch(rf".+ needs {missing}\. Type pip install 'xdeepsd\[{extra}\]'\.", text), text
