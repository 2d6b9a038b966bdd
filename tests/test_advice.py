"""The advice in every error message is followed once, and must solve the problem.

A case provokes an error, types exactly what the message says, and calls again. The sources are searched for messages
with advice ("Type ...", "Leave ... out"); a message without a case fails, so every new message needs one. The cases
are grouped by the module that raises the error.
"""

import ast
import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import types
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import dask.array
import filelock
import fsspec  # noqa: F401  (its registry)
import icechunk
import numpy as np
import pandas as pd
import pooch
import pytest
import torch
import typer.main
import xarray as xr
import zarr
from builders import make_coarse, make_stack, make_static
from distributed import Client
from model_server import ModelServer
from prism_server import PrismServer, day_zip, map_of
from rich.console import Console
from typer.testing import CliRunner

import xdeepsd
from xdeepsd import Normalizer, TrainConfig
from xdeepsd.cli import app, demo_run, inputs
from xdeepsd.cli.inputs import open_file
from xdeepsd.cli.terminal import check_writable
from xdeepsd.cli.toml import load_config, read_levels
from xdeepsd.clusters import cluster as clusters
from xdeepsd.clusters.manifests import check_image
from xdeepsd.evaluation import report, sweep
from xdeepsd.evaluation.baselines import map_quantiles
from xdeepsd.evaluation.errors import bin_edges, compare
from xdeepsd.grids.blocks import block_mean
from xdeepsd.inference import correction, forward
from xdeepsd.inference.fast import compiled, fused
from xdeepsd.levels.pairs import make_pair
from xdeepsd.losses.crps import fair_crps
from xdeepsd.losses.dense_weight import DenseWeight
from xdeepsd.models import files
from xdeepsd.models.static import regression_names
from xdeepsd.stores import whole, write
from xdeepsd.training import checkpoints

PACKAGE = Path(xdeepsd.__file__).parent

# Advice that is followed elsewhere or nowhere, identified by part of its message, and why.
ELSEWHERE = {
    "look through it, then type xdeepsd train": "no error: test_what_from_ini_says_leads_on",
    "Add the other static fields to static": "no error: what from-ini leaves to be done by hand",
    "seems to be accumulated since": "no error: test_amounts_since_the_start_of_a_run follows it",
    "check their order": "no error: what from-ini leaves to be done by hand",
    "Everything is in": "no error: where the pictures are",
    "Use another elevation": "PRISM has none",
    "Run this in the image of the cluster, or give one": "needs another image: tests/clusters/test_kubernetes.py",
    "Type kubectl delete daskcluster": "the connection to a Kubernetes was lost",
    "more time. Type a larger timeout=": "nodes are added: tests/clusters/test_kubernetes.py has a missing one",
    "Type export KUBECONFIG=FILE": "tests/clusters/test_kubernetes.py has one that works",
    "Type address='https://HUB/services/dask-gateway'": "tests/clusters/test_gateway.py has one that works",
    "added first. Type a larger timeout=": "the nodes of a hub are added",
    "A Gateway has one kind of worker": "what a hub offers for a GPU is its own",
    "there is no such bucket": "test_s3.py, on an S3 server",
    "cannot be reached ({})": "test_s3.py, on an S3 server",
    "Needed: credentials that may list": "test_s3.py, on an S3 server",
    "Use xdeepsd.regrid for other grids": "open_prism reads PRISM's own grids; test_regrid.py has the others",
}


# --- what a case is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed:
    """The advice as written in the message, and the Python statement a user turns it into."""

    said: str
    code: str


@dataclass(frozen=True)
class Case:
    """A message, the call that raises it, and what the user then types.

    ``message`` is a part of the literal text that distinguishes this advice from others. ``given`` makes fresh
    arguments for ``call`` in an empty folder. Each piece of advice is followed separately from the same start: its
    statement changes or adds arguments. ``has`` holds other objects the user has at hand. ``machine`` patches the
    machine, for example no CUDA or a missing package; "pip install" is then ``patch.undo()``.
    """

    message: str
    call: Callable[..., Any]
    given: Callable[[Path], dict[str, Any]]
    typed: tuple[Typed, ...]
    has: Mapping[str, Any]
    machine: Callable[[pytest.MonkeyPatch], None]


def case(message, call, given, *typed, has=None, machine=lambda patch: None):
    typed = tuple(t if isinstance(t, Typed) else filled(t) for t in typed)
    return Case(message, call, given, typed, has or {}, machine)


def filled(statement: str, /, **names: str) -> Typed:
    """Advice given as code: ``ds = ds.sortby('lat')`` for ``ds.sortby('lat')``. NAME and the like are filled in."""
    code = statement
    for name, value in names.items():
        code = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _, value=value: value, code)
    return Typed(re.sub(r"^\w+(, \w+)* = ", "", statement), code)


def meaning(said: str, code: str) -> Typed:
    """Advice given in words, and what it means here."""
    return Typed(said, code)


class RefusedError(Exception):
    """A command that ends with an error."""


def command(line: str) -> str:
    """Run ``xdeepsd LINE``; raise RefusedError with its output if it fails."""
    result = CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "1000"})
    if result.exit_code:
        raise RefusedError(result.output) from result.exception
    return result.output


def aloud(function):
    """``function`` with logged warnings as errors."""

    def call(**given):
        class Raise(logging.Handler):
            def emit(self, record):
                raise RefusedError(record.getMessage())

        handler = Raise(logging.WARNING)
        logging.getLogger("xdeepsd").addHandler(handler)
        try:
            return function(**given)
        finally:
            logging.getLogger("xdeepsd").removeHandler(handler)

    return call


def strictly(function):
    """``function`` with our own warnings as errors."""

    def call(**given):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The grid of the density|.* of the training values")
            warnings.filterwarnings("error", "The fast forward is not available")
            return function(**given)

    return call


def without(module):
    """A machine without a package."""
    return lambda patch: patch.setitem(sys.modules, module, None)


# --- small things to call with ----------------------------------------------------------------------------------------

COARSE = make_coarse(days=3, nlat=4, nlon=6)
STATIC = make_static(COARSE, 2)
MAPS = dict(make_static(COARSE, 2, names=("elevation", "climatology")).items())
TINY = {"channels": (2,), "kernels": (3, 3)}
MODEL = make_stack(1, **TINY)
NO_STATIC = make_stack(1, **TINY, static=())
TWO_STATIC = make_stack(1, **TINY, static=("elevation", "climatology"))


def rain(**coords):
    """A coarse Dataset."""
    return COARSE.to_dataset().copy(deep=True).assign_coords(coords)


def to_downscale(ds=None, model=MODEL, static=STATIC, **more):
    return {"ds": rain() if ds is None else ds, "model": model, "static": static, **more}


def fine(days=4, nlat=8, nlon=12, start="2001-01-01", seed=0):
    """Daily rain on a fine grid."""
    values = np.random.default_rng(seed).gamma(0.5, 8.0, (days, nlat, nlon)).astype("float32")
    time = xr.date_range(start, periods=days)
    coords = {"time": time, "lat": 45 - np.arange(nlat) / 24, "lon": -120 + np.arange(nlon) / 24}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name="ppt", attrs={"units": "mm day-1"})


def height(like):
    """Elevation on the grid of ``like``."""
    values = np.random.default_rng(1).uniform(0, 2000, (like.sizes["lat"], like.sizes["lon"]))
    return xr.Dataset({"elevation": (("lat", "lon"), values)}, {"lat": like.lat, "lon": like.lon})


FINE = fine()
LOW, HIGH = (level.load() for level in xdeepsd.make_levels(fine(6, 16, 16), height(fine(1, 16, 16)), (2,)))
QUICK = TrainConfig.paper(
    **TINY, patch=8, stride=4, batch=2, steps=1, validation=None, threads=1, workers=1, validate_every=1,
    checkpoint_every=1,
)  # fmt: skip


def to_train(**changes):
    return {"coarse": LOW.copy(deep=True), "fine": HIGH.copy(deep=True), "config": QUICK, **changes}


def grid(lat, lon):
    return xr.Dataset(coords={"lat": np.asarray(lat, float), "lon": np.asarray(lon, float)})


def field(lat, lon):
    """A Dataset of one variable on a grid."""
    where = grid(lat, lon)
    shape = where.sizes["lat"], where.sizes["lon"]
    return where.assign(v=(("lat", "lon"), np.random.default_rng(0).random(shape)))


def curvilinear(ny=5, nx=6):
    """A Dataset of one variable on a rotated grid."""
    rows, cols = np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij")
    coords = {
        "latitude": (("y", "x"), 45 + rows + 0.2 * cols, {"standard_name": "latitude", "units": "degrees_north"}),
        "longitude": (("y", "x"), -120 + cols - 0.2 * rows, {"standard_name": "longitude", "units": "degrees_east"}),
    }
    return xr.Dataset({"v": (("y", "x"), rows + 1.0, {"units": "mm"})}, coords)


CASES: dict[str, list[Case]] = {}

# --- axes -------------------------------------------------------------------------------------------------------------


def bare(ds):
    """``ds`` without the attributes by which coordinates are found."""
    for name in ds.coords:
        ds[name].attrs = {}
    return ds


def without_first_latitude():
    return rain(lat=COARSE["lat"].where(COARSE["lat"] < 48))


def latitude_as_variable():
    ds = bare(rain()).rename(lat="y").drop_vars("y")
    return ds.assign(phi=("y", COARSE["lat"].values))


def two_latitudes(name="geolat", dims=("lat",)):
    """A Dataset with a second latitude."""
    values = COARSE["lat"].broadcast_like(COARSE[0]) if len(dims) == 2 else COARSE["lat"]
    return rain(**{name: (dims, values.values, COARSE["lat"].attrs)})


def at_date_line():
    """Columns on both sides of the date line, for a model without a grid."""
    east = 177.5 + np.arange(6.0)
    return {"ds": rain(lon=("lon", (east + 180) % 360 - 180, COARSE["lon"].attrs)), "model": NO_STATIC}


CASES["axes"] = [
    case("for the coordinate that holds it, or", xdeepsd.downscale,
         lambda tmp: to_downscale(bare(rain().rename(lat="phi"))),
         filled("ds['NAME'].attrs['standard_name'] = 'latitude'", NAME="phi"),
         filled("ds = ds.rename(NAME='lat')", NAME="phi"),
         meaning("ds.set_coords('NAME')", "ds = ds.rename(phi='lat')")),
    case("for the coordinate that holds it, or", xdeepsd.downscale, lambda tmp: to_downscale(latitude_as_variable()),
         meaning("ds['NAME'].attrs['standard_name'] = 'latitude'",
                 "ds = ds.set_coords('phi'); ds['phi'].attrs['standard_name'] = 'latitude'"),
         meaning("ds.rename(NAME='lat')", "ds = ds.set_coords('phi').rename(phi='lat')"),
         meaning("ds.set_coords('NAME')", "ds = ds.set_coords('phi').rename(phi='lat')")),
    case("to leave one of them out", xdeepsd.downscale,
         lambda tmp: to_downscale(two_latitudes()), "ds = ds.drop_vars('geolat')"),
    case("to leave one of them out", xdeepsd.downscale,
         lambda tmp: to_downscale(two_latitudes("LAT_OF_CELL", ("lat", "lon"))), "ds = ds.drop_vars('LAT_OF_CELL')"),
    case("a curvilinear grid (rotated pole, Lambert, ...)", lambda ds: xdeepsd.make_levels(ds, None, (2,)),
         lambda tmp: {"ds": curvilinear().expand_dims(time=FINE.time)},
         "ds = xdeepsd.regrid(ds, target)", has={"target": grid(46 + np.arange(4), -119 + np.arange(4))}),
    case("is a single number, not a dimension", xdeepsd.downscale,
         lambda tmp: to_downscale(rain().isel(lat=0), static=STATIC.isel(lat=slice(0, 2))),
         "ds = ds.expand_dims('lat')",
         meaning("ds.isel(lat=[i])", "ds = rain().isel(lat=[0])")),
    case("has NaN among its", xdeepsd.downscale,
         lambda tmp: {"ds": without_first_latitude(), "model": NO_STATIC},
         "ds = ds.isel(lat=np.isfinite(ds['lat'].values))"),
    case("has NaN among its", xdeepsd.downscale,
         lambda tmp: {"ds": without_first_latitude().rename_dims(lat="y"), "model": NO_STATIC},
         "ds = ds.isel(y=np.isfinite(ds['lat'].values))"),
    case("is irregular: steps from", xdeepsd.downscale,
         lambda tmp: {"ds": rain().isel(lon=[3, 4, 5, 0, 1, 2]), "model": NO_STATIC},
         "ds = ds.sortby('lon')",
         meaning("xdeepsd.regrid(ds, target)", "ds = xdeepsd.regrid(ds.sortby('lon'), COARSE)")),
    case("is irregular: steps from", xdeepsd.downscale,
         lambda tmp: {"ds": rain(lon=COARSE["lon"] + [0, 0, 0, 0.1, 0, 0]), "model": NO_STATIC},
         meaning("ds.sortby('lon')", "ds = xdeepsd.regrid(ds, COARSE)"),
         "ds = xdeepsd.regrid(ds, target)", has={"target": COARSE}),
    case("is irregular: steps from", xdeepsd.downscale, lambda tmp: at_date_line(),
         "ds = ds.assign_coords(lon=ds['lon'].copy(data=(ds['lon'].values -0) % 360 +0)).sortby('lon')",
         "ds = xdeepsd.regrid(ds, target)", has={"target": COARSE.assign_coords(lon=177.5 + np.arange(6))}),
    case("is irregular: steps from", xdeepsd.downscale,
         lambda tmp: {"ds": rain().rename(lon="longitude").isel(longitude=[3, 4, 5, 0, 1, 2]), "model": NO_STATIC},
         "ds = ds.sortby('longitude')", meaning("xdeepsd.regrid(ds, target)",
                                                "ds = xdeepsd.regrid(ds.sortby('longitude'), COARSE)")),
    case("Needed: numbers in degrees", xdeepsd.downscale, lambda tmp: to_downscale(rain(lat=COARSE["lat"].astype(str))),
         "ds = ds.assign_coords(lat=ds['lat'].astype(float))"),
]  # fmt: skip

# --- correction -------------------------------------------------------------------------------------------------------

SERIES = make_coarse(days=100, nlat=4, nlon=6)
SEEN = make_coarse(days=100, nlat=4, nlon=6, seed=3)
CORRECTION = xdeepsd.fit_correction(SERIES, SEEN, nquantiles=5)


def to_fit(**changes):
    return {"history": SERIES, "observed": SEEN, "nquantiles": 5, **changes}


def to_save(tmp):
    CORRECTION.save(tmp / "correction.nc")
    return {"path": tmp / "correction.nc"}


def newer_correction(tmp):
    with pytest.MonkeyPatch.context() as later:
        later.setattr(correction, "FORMAT", correction.FORMAT + 1)
        return to_save(tmp)


def to_correct(**changes):
    return {"ds": SERIES, "model": MODEL, "static": STATIC, "bias_correct": CORRECTION, **changes}


def by_day_of_year():
    time = xr.date_range("2001-01-01", periods=100, calendar="360_day", use_cftime=True)
    return to_fit(history=SERIES.assign_coords(time=time), nquantiles=1, group="time.dayofyear")


CASES["correction"] = [
    case("days in common", xdeepsd.fit_correction,
         lambda tmp: to_fit(history=SERIES.isel(time=slice(60)), nquantiles=50), "nquantiles=1", "group='time'"),
    case("Needed: a single series of days with dates on", xdeepsd.fit_correction,
         lambda tmp: to_fit(history=SERIES.expand_dims(member=2)), "history = history.isel(member=0)"),
    case("Needed: a single series of days with dates on", xdeepsd.fit_correction,
         lambda tmp: to_fit(history=SERIES.to_dataset().assign_coords(
             time=("time", np.arange(100), {"units": "days since 2001-01-01"}))),
         filled("history = xr.decode_cf(ds)", ds="history")),
    case("to make one.", xdeepsd.load_correction, lambda tmp: {"path": saved(tmp) / "model.json"},
         meaning("xdeepsd.fit_correction(history, observed).save(path)",
                 "path = path.with_name('c.nc'); xdeepsd.fit_correction(SERIES, SEEN, nquantiles=5).save(path)")),
    case("written by a newer xdeepsd. Type pip", xdeepsd.load_correction, newer_correction,
         meaning("pip install -U xdeepsd", "patch.setattr(correction, 'FORMAT', correction.FORMAT + 1)")),
    case("exists. Type correction.save(path, overwrite=True)", CORRECTION.save, to_save,
         meaning("correction.save(path, overwrite=True)", "overwrite=True")),
    case("Check their missing values, and that they lie in the same region", lambda path, **given:
         xdeepsd.fit_correction(**given).save(path), lambda tmp:
         to_fit(history=SERIES.chunk().where(SERIES < 0), path=tmp / "c.nc"),
         meaning("Check their missing values", "history = SERIES")),
    case("needed: a Correction, or the path of one", xdeepsd.downscale,
         lambda tmp: to_correct(bias_correct=3),
         meaning("bias_correct=xdeepsd.fit_correction(history, observed)", "bias_correct = CORRECTION")),
    case("by its quantiles over time. Needed: days with dates", xdeepsd.downscale,
         lambda tmp: to_correct(ds=SERIES.isel(time=0, drop=True)),
         meaning("Leave bias_correct out", "bias_correct = None")),
    case("Needed: years of the same length", lambda ds, **given: xdeepsd.fit_correction(**given).apply(ds),
         lambda tmp: {"ds": SERIES, **by_day_of_year()}, "group='time.month'"),
    case("on which the correction was not fitted", lambda ds, **given: xdeepsd.fit_correction(**given).apply(ds),
         lambda tmp: {"ds": make_coarse(days=300, nlat=4, nlon=6), **to_fit()}, "group='time'"),
    case("The correction lies on another grid", xdeepsd.downscale,
         lambda tmp: to_correct(bias_correct=xdeepsd.fit_correction(
             SERIES, SEEN.assign_coords(lon=SEEN.lon + 0.5), nquantiles=5)),
         meaning("fit_correction(history, observed)",
                 "bias_correct = xdeepsd.fit_correction(SERIES, xdeepsd.regrid(SEEN, COARSE), nquantiles=5)"),
         meaning("xdeepsd.regrid(observed, coarse)",
                 "bias_correct = xdeepsd.fit_correction(SERIES, xdeepsd.regrid(SEEN, COARSE), nquantiles=5)")),
]  # fmt: skip

# --- inputs -----------------------------------------------------------------------------------------------------------


def water(**attrs):
    """Rain under another name, with other attributes; standard_name=None removes it."""
    ds = rain().rename(pr="water")
    ds["water"].attrs |= attrs
    ds["water"].attrs = {k: v for k, v in ds["water"].attrs.items() if v is not None}
    return ds


def six_hourly():
    ds = make_coarse(days=8, nlat=4, nlon=6).to_dataset()
    ds["pr"].attrs["units"] = "mm"
    return ds.assign_coords(time=ds["time"].values[0] + np.arange(8) * np.timedelta64(6, "h"))


def monthly():
    ds = rain(time=xr.date_range("2001-01-01", periods=3, freq="MS"))
    ds["pr"].attrs["units"] = "mm"
    return ds


def on_two_grids():
    """Elevation, and a climatology with other coordinate names, slightly offset."""
    other = MAPS["climatology"].rename(lat="latitude", lon="longitude")
    other = other.assign_coords(latitude=other["latitude"] + 0.01)
    return xr.Dataset({"elevation": MAPS["elevation"], "climatology": other})


def packed_file(tmp):
    encoding = {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -1}
    COARSE.to_dataset().to_netcdf(tmp / "a.nc", encoding={"pr": encoding})
    return tmp / "a.nc"


def a_part():
    """The model's grid, and rain on a part of it."""
    model = xdeepsd.StackedSRCNN(MODEL.stages, static=STATIC)
    return {"ds": rain().isel(lat=slice(0, 2), lon=slice(0, 3)), "model": model}


def on_half_degrees():
    """A model that was trained on whole degrees, and static fields for half of them."""
    model = xdeepsd.StackedSRCNN(MODEL.stages, static=STATIC)
    return {"ds": rain(), "model": model, "static": make_static(make_coarse(nlat=4, nlon=6, spacing=0.5), 2)}


def in_months():
    return rain(time=xr.date_range("2001-01-01", periods=3, freq="MS"))


def lead_times():
    ds = six_hourly()
    return ds.assign_coords(time=ds["time"] - ds["time"][0])


def joined_files(tmp, **options):
    """Two files whose latitudes differ by rounding."""
    ds = make_coarse(days=2, nlat=6, nlon=8).to_dataset().isel(lat=slice(None, None, -1))
    ds = ds.assign_coords(lat=ds["lat"] + 0.2)
    if not (tmp / "files").exists():
        (tmp / "files").mkdir()
        ds.isel(time=[0]).to_netcdf(tmp / "files" / "a.nc")
        ds.isel(time=[1]).assign_coords(lat=ds["lat"] * (1 + 1e-15)).to_netcdf(tmp / "files" / "b.nc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = sorted((tmp / "files").glob("*.nc"))
        return xr.open_mfdataset(files, combine="nested", concat_dim="time", **options)


def in_numbers():
    """Six-hourly steps whose time is not decoded."""
    ds = six_hourly()
    time = ("time", np.arange(8) * 6, {"standard_name": "time", "units": "hours since 2001-01-01"})
    return ds.assign_coords(time=time)


def elsewhere():
    """A model with a mask, and a grid it was not trained on."""
    model = xdeepsd.StackedSRCNN(MODEL.stages, static=STATIC, mask=STATIC["elevation"].notnull())
    east = STATIC.assign_coords(lon=STATIC["lon"] + 20)
    return to_downscale(rain(lon=COARSE["lon"] + 20), model=model, static=east)


LEARNED = xdeepsd.SRCNNConfig((2,), (3, 3), 2, ("elevation", *regression_names(0)))


def learned():
    """A stage with a regression of its own grid."""
    one = xdeepsd.Normalizer()
    stage = xdeepsd.Stage(xdeepsd.SRCNN(LEARNED), one, dict.fromkeys(LEARNED.static, one), one)
    return xdeepsd.StackedSRCNN([stage], static=xr.Dataset(dict.fromkeys(LEARNED.static, STATIC["elevation"])))


CASES["inputs"] = [
    case(": the DataArray is named", xdeepsd.downscale,
         lambda tmp: to_downscale(rain()["pr"], variable="rain"),
         "ds = da.rename('rain')", meaning("Leave variable out", "del variable"), has={"da": COARSE}),
    case("with one of them.", xdeepsd.downscale, lambda tmp: to_downscale(variable="rain"),
         filled("variable=NAME", NAME="'pr'")),
    case("Several candidates for precipitation", xdeepsd.downscale,
         lambda tmp: to_downscale(rain().assign(prec=COARSE)), filled("variable=NAME", NAME="'prec'")),
    case("needed: floating point numbers", xdeepsd.downscale, lambda tmp: to_downscale(rain().astype("int16")),
         "ds = ds['pr'].astype('float32')",
         meaning("da.astype('float32')", "ds = ds['pr']; ds = ds.astype('float32')"),
         meaning("xr.open_dataset(..., mask_and_scale=True)",
                 "ds = xr.open_dataset(packed_file(folder), mask_and_scale=True)")),
    case("are NaN. Needed: observed cells", xdeepsd.downscale, lambda tmp: to_downscale(rain() * np.nan),
         meaning("Check the file, its _FillValue, and how the data were selected", "ds = rain()")),
    case("The model has no grid of its own", xdeepsd.downscale, lambda tmp: {"ds": rain(), "model": MODEL},
         meaning("ds.deepsd.downscale(model, static=elevation)", "static=elevation"), has=MAPS),
    case("The model has no grid of its own", xdeepsd.downscale, lambda tmp: {"ds": rain(), "model": TWO_STATIC},
         meaning("ds.deepsd.downscale(model, static=xr.Dataset({'elevation': elevation, 'climatology': climatology}))",
                 "static=xr.Dataset({'elevation': elevation, 'climatology': climatology})"), has=MAPS),
    case("static is one DataArray", xdeepsd.downscale,
         lambda tmp: to_downscale(model=TWO_STATIC, static=MAPS["elevation"]),
         "static=xr.Dataset({'elevation': elevation, 'climatology': climatology})", has=MAPS),
    case("static is one DataArray", xdeepsd.downscale,
         lambda tmp: to_downscale(model=NO_STATIC, static=MAPS["elevation"]),
         "static=xr.Dataset({'elevation': elevation})", has=MAPS),
    case("with all of them.", xdeepsd.downscale, lambda tmp: to_downscale(model=TWO_STATIC),
         meaning("static=xr.Dataset({'climatology': ...})",
                 "static=xr.Dataset({'climatology': climatology, 'elevation': elevation})"), has=MAPS),
    case("needed: latitude and longitude only", xdeepsd.downscale,
         lambda tmp: to_downscale(static=STATIC.expand_dims(month=2)),
         meaning("static['elevation'].isel(...)", "static = static['elevation'].isel(month=0)"),
         meaning(".mean(...) over the others", "static = static['elevation'].mean('month')")),
    case("lie on different grids. ", xdeepsd.downscale,
         lambda tmp: to_downscale(model=TWO_STATIC, static=on_two_grids()),
         meaning("xdeepsd.regrid(field, target)",
                 "static = xr.Dataset({'elevation': static['elevation'], 'climatology': "
                 "xdeepsd.regrid(static['climatology'], static['elevation'])})")),
    case("The elevation has units", xdeepsd.downscale,
         lambda tmp: to_downscale(static=MAPS["elevation"].assign_attrs(units="ft")),
         meaning("elevation * FACTOR with units 'm'", "static = (static * 0.3048).assign_attrs(units='m')")),
    case("The climatology has units", xdeepsd.downscale,
         lambda tmp: to_downscale(model=TWO_STATIC, static=xr.Dataset(
             {**MAPS, "climatology": MAPS["climatology"].assign_attrs(units="kg m-2 s-1")})),
         meaning("Convert it and set its units",
                 "static['climatology'] = (static['climatology'] * 86400).assign_attrs(units='mm day-1')")),
    case("A model cannot be applied to another spacing", xdeepsd.downscale, lambda tmp: on_half_degrees(),
         meaning("Leave static out", "del static"),
         "static=xdeepsd.regrid(static, target)", has={"target": STATIC.isel(lat=slice(0, 4), lon=slice(0, 6))}),
    case("of them make a coarse cell", xdeepsd.downscale, lambda tmp: to_downscale(static=STATIC.isel(lat=slice(0, 5))),
         "static = static.isel(lat=slice(4), lon=slice(12))"),
    case("does not cover the model's domain", xdeepsd.downscale, lambda tmp: a_part(),
         "allow_partial=True",
         meaning("static=model.static.sel(lat=slice(...), lon=slice(...))",
                 "static = model.static.sel(lat=slice(49, 47), lon=slice(-124, -121))")),
    case("no day can be made of it", xdeepsd.downscale, lambda tmp: to_downscale(in_months()),
         "ds.attrs['frequency'] = 'day'"),
    case("can be put together to days. Leave", xdeepsd.downscale, lambda tmp: to_downscale(day_ends=12),
         meaning("Leave day_ends out", "del day_ends")),
    case("put them together to days. Type xr.decode_cf", xdeepsd.downscale, lambda tmp: to_downscale(in_numbers()),
         "ds = xr.decode_cf(ds)"),
    case("files were joined whose coordinates differ", xdeepsd.downscale,
         lambda tmp: to_downscale(joined_files(tmp)),
         meaning("xr.open_mfdataset(FILES, join='override')", "ds = joined_files(folder, join='override')")),
    case("the days they belong to are not known", xdeepsd.downscale, lambda tmp: to_downscale(lead_times()),
         filled("ds = ds.assign_coords(time=START + ds['time'])", START="np.datetime64('2001-01-01', 'ns')")),
    case("needed: a bool DataArray, True where values are wanted", xdeepsd.downscale,
         lambda tmp: to_downscale(mask=MAPS["elevation"]),
         "mask = elevation.notnull()", "mask = land_fraction > 0",
         has={**MAPS, "land_fraction": MAPS["climatology"] * 0 + 0.5}),
    case("does not lie on the target grid of", xdeepsd.downscale,
         lambda tmp: to_downscale(mask=make_static(make_coarse(nlat=6, nlon=8), 2)["elevation"].notnull()),
         meaning("mask.sel(...)", "mask = mask.sel(lat=STATIC.lat, lon=STATIC.lon)"),
         "mask = xdeepsd.regrid(mask.astype(float), target) > 0.5", has={"target": STATIC}),
    case("and the target grid is not part of it", xdeepsd.downscale,
         lambda tmp: elsewhere() | {"model": learned()},
         meaning("Leave static out to downscale its whole domain", "ds = rain(); del static"),
         meaning("TrainConfig(static=('elevation',))", "model = MODEL")),
    case("model's mask is not used", aloud(xdeepsd.downscale), lambda tmp: elsewhere(),
         filled("mask=...", **{"...": "static['elevation'].notnull()"})),
]  # fmt: skip

# --- variable ---------------------------------------------------------------------------------------------------------


CASES["variable"] = [
    case("for precipitation under another name", xdeepsd.downscale,
         lambda tmp: to_downscale(water(standard_name="convective_precipitation_flux")),
         filled("variable=NAME", NAME="'water'"),
         filled("ds['NAME'].attrs['standard_name'] = 'precipitation_flux'", NAME="water")),
    case("If the standard name is wrong", xdeepsd.downscale,
         lambda tmp: to_downscale(water(standard_name="air_temperature")),
         filled("ds['NAME'].attrs['standard_name'] = 'precipitation_flux'", NAME="water")),
    case("If the standard name is wrong", xdeepsd.downscale,
         lambda tmp: to_downscale(water(standard_name="rate_of_water"), variable="water"),
         filled("ds['NAME'].attrs['standard_name'] = 'precipitation_flux'", NAME="water")),
    case("its period is unknown", xdeepsd.downscale,
         lambda tmp: to_downscale(in_units("mm").isel(time=[0])),
         filled("ds['NAME'].attrs['units'] = 'mm day-1'", NAME="pr"),
         meaning("units='mm day-1' to downscale", "units='mm day-1'")),
    case("are an amount, and the time steps are", lambda ds: make_levels(ds, None, (2,)),
         lambda tmp: {"ds": six_hourly()},
         "ds = ds.resample(time='1D').sum()",
         meaning("ds['NAME'] / days with units 'mm day-1'",
                 "ds['pr'] = (ds['pr'] / 0.25).assign_attrs(units='mm day-1')")),
    case("are an amount, and the time steps are", lambda ds: make_levels(ds, None, (2,)),
         lambda tmp: {"ds": monthly()},
         meaning("ds['NAME'] / days with units 'mm day-1'",
                 "ds['pr'] = (ds['pr'] / ds['time'].dt.days_in_month).assign_attrs(units='mm day-1')"),
         meaning("ds.resample(time='1D').sum() for steps shorter than a day", "ds = in_units('mm')")),
    case("has values down to", xdeepsd.downscale, lambda tmp: to_downscale(rain().where(rain().lat < 48, -999)),
         filled("ds = ds.where(ds['NAME'] != VALUE)", NAME="pr", VALUE="-999"), "ds = ds.clip(min=0)"),
    case("has values down to", lambda **given: make_levels(**given),
         lambda tmp: to_levels(FINE.where(FINE.lat < 44.9, -9999).to_dataset()),
         filled("ds = ds.where(ds['NAME'] != VALUE)", NAME="ppt", VALUE="-9999"), "ds = ds.clip(min=0)"),
]  # fmt: skip

# --- units, normalize, splits -----------------------------------------------------------------------------------------


def in_units(units):
    ds = rain()
    ds["pr"].attrs["units"] = units
    return ds


def split(ds, **days):
    return replace(QUICK, **days).split(ds["time"])


CASES["units"] = [
    case("The precipitation has no units", xdeepsd.downscale, lambda tmp: to_downscale(in_units("")),
         filled("ds['NAME'].attrs['units'] = 'mm day-1'", NAME="pr"),
         meaning("units='mm day-1' to downscale", "units='mm day-1'")),
    case("are not units of precipitation", xdeepsd.downscale, lambda tmp: to_downscale(in_units("K")),
         filled("ds['NAME'].attrs['units'] = 'mm day-1'", NAME="pr"),
         meaning("units='mm day-1' to downscale", "units='mm day-1'")),
]  # fmt: skip

CASES["normalize"] = [
    case("A constant field has std 0", Normalizer, lambda tmp: {"mean": 3.0, "std": 0.0},
         meaning("Normalizer(mean, 1.0)", "std = 1.0")),
]  # fmt: skip

CASES["days"] = [
    case("does not consist of whole steps", xdeepsd.downscale, lambda tmp: to_downscale(six_hourly(), day_ends=8),
         "day_ends=0", meaning("pass daily data", "ds = rain(); del day_ends")),
    case("is out of order", xdeepsd.downscale,
         lambda tmp: to_downscale(six_hourly().isel(time=[1, 0, *range(2, 8), 2])),
         "ds = ds.sortby('time').drop_duplicates('time')"),
    case("is complete: ", xdeepsd.downscale,
         lambda tmp: to_downscale(six_hourly().isel(time=slice(2, 6))),
         filled("day_ends=...", **{"...": "12"}), meaning("pass daily data", "ds = rain()")),
]  # fmt: skip

CASES["splits"] = [
    case("days are not in order, or a day occurs twice", split, lambda tmp: {"ds": HIGH.isel(time=[1, 0, 2, 2])},
         "ds = ds.sortby('time').drop_duplicates('time')"),
    case("No day is left for training", split, lambda tmp: {"ds": HIGH, "validation": 0.5, "test": 0.5},
         meaning("smaller validation=... and test=....", "validation=0.2; test=0.2")),
    case("Take these days out of", split, lambda tmp: {"ds": HIGH, "train": (2001,), "test": ("2001-01-06",)},
         meaning("Take these days out of train", "train=('2001-01-01/2001-01-05',)"),
         meaning("or test", "test=None")),
]  # fmt: skip

# --- config, config_ini -----------------------------------------------------------------------------------------------

OLD_INI = """
[Paths]
scratch: {scratch}
[DataOptions]
variable: ppt
min_year: 2001
max_year: 2001
max_train_year: 2001
[SRCNN]
layer_sizes: 2,1
kernel_sizes: 3,3
training_iters: 1
batch_size: 2
training_input_size: 8
aux_depth: {depth}
[Model-1]
model_name: ppt-004-008
[DeepSD]
model_name: deepsd
low_resolution: 8
high_resolution: 4
upscale_factor: 2
"""


def old_ini(tmp, depth=1):
    (tmp / "config.ini").write_text(OLD_INI.format(scratch=tmp, depth=depth))
    return tmp / "config.ini"


def prepare(tmp, factors="2", days=6, start="2001-01-01"):
    """The command that builds levels.zarr."""
    if not (tmp / "fine.nc").exists():
        fine(days, 16, 16, start).to_netcdf(tmp / "fine.nc")
        height(fine(1, 16, 16)).to_netcdf(tmp / "height.nc")
    return f"prepare {tmp}/fine.nc --out {tmp}/levels.zarr --elevation {tmp}/height.nc --factors {factors}"


TRAINING = 'static = ["elevation"]\nchannels = [2]\nkernels = [3, 3]\npatch = 8\nstride = 4\nbatch = 2\nsteps = 1\n'


@functools.cache
def prepared_once():
    folder = tempfile.TemporaryDirectory()
    command(prepare(Path(folder.name)))
    return folder


def toml(tmp, text="", preset="paper", **training):
    """A configuration file beside its levels."""
    if not (tmp / "levels.zarr").exists():
        shutil.copytree(prepared_once().name, tmp, dirs_exist_ok=True)
    more = "".join(f"{name} = {value!r}\n" for name, value in {"validation": "none", "workers": 1, **training}.items())
    first = "" if preset is None else f"preset = {preset!r}\n"
    (tmp / "config.toml").write_text(f"{first}[training]\n{TRAINING}{more}{text}")
    return tmp / "config.toml"


def levels_of(path):
    """The stage configurations of a TOML file, for its levels."""
    config = load_config(path)
    return config.stage_configs(len(read_levels(config)) - 1)


CASES["config"] = [
    case("do not fit each other: needed for this loss", lambda **given: vars(TrainConfig(**given)),
         lambda tmp: {"head": "bernoulli_gamma", "loss": "mae"}, meaning("Leave head out", "del head")),
    case("to make one from an old config.ini", load_config, lambda tmp: {"path": old_ini(tmp).with_suffix(".toml")},
         meaning("xdeepsd config from-ini config.ini", "command(f'config from-ini {folder}/config.ini')")),
    case("An old config.ini? Type", load_config, lambda tmp: {"path": old_ini(tmp)},
         meaning("xdeepsd config from-ini ", "command(f'config from-ini {path}'); path = path.with_suffix('.toml')")),
    case("to train all stages alike", levels_of, lambda tmp: {"path": toml(tmp, "[[stages]]\n[[stages]]\n")},
         meaning("Leave [[stages]] out", "toml(folder)")),
    case("or make the levels again with xdeepsd prepare", levels_of,
         lambda tmp: {"path": toml(tmp, "[data]\nfactors = [4]\n")},
         meaning("Correct the file", "toml(folder, '[data]\\nfactors = [2]\\n')"),
         meaning("make the levels again with xdeepsd prepare", "again(folder)")),
    case("Leave it out for the recommended settings", levels_of, lambda tmp: {"path": toml(tmp, preset="best")},
         meaning("Leave it out", "toml(folder, preset=None)")),
]  # fmt: skip


def again(folder):
    """Replace the existing levels with levels of another factor."""
    (folder / "levels.zarr").rename(folder / "old.zarr")
    command(prepare(folder, "4"))


# --- density, losses --------------------------------------------------------------------------------------------------


def rain_values(n=400, dry=0.0):
    """Rain in memory, float64."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(n) < dry, 0.0, rng.gamma(0.7, 8.0, n))


def changing():
    """A Dask array that gives other values each time it is computed."""
    rng = np.random.default_rng(0)

    def block():
        return np.where(rng.random(400) < 0.3, np.nan, rng.gamma(0.7, 8.0, 400))

    return dask.array.from_delayed(dask.delayed(block, pure=False)(), (400,), float)


def fit(values, **parameters):
    return DenseWeight(**parameters).fit(values)


CASES["density"] = [
    case("DenseWeight got a Dataset", lambda ds: fit(ds),
         lambda tmp: {"ds": rain()}, filled("ds = ds['NAME']", NAME="pr")),
    case("Needed: real numbers", fit, lambda tmp: {"values": rain_values().astype(str)},
         "values = values.astype('float32')"),
    case("This DenseWeight has seen no data", lambda dw: dw.weights(rain_values()), lambda tmp: {"dw": DenseWeight()},
         Typed("dw = dw.fit(values)", "dw = dw.fit(values)"), has={"values": rain_values()}),
    case("they changed in between", fit, lambda tmp: {"values": changing()},
         "values = values.persist()", meaning("Write them to a file first", "values = values.compute()")),
    case("wider than the bandwidth", strictly(fit),
         lambda tmp: {"values": np.append(rain_values(20_000), 1e6), "alpha": 0.5, "grid_points": 256},
         meaning("DenseWeight(grid_points=", "grid_points = said_number(said, 'grid_points=')"),
         "transform='log1p'", meaning("a wider bandwidth=", "bandwidth=1e4")),
    case("values are infinite", fit, lambda tmp: {"values": np.append(rain_values(), np.inf)},
         "values = np.where(np.isfinite(values), values, np.nan)",
         meaning("values.where(np.isfinite(values)) for a DataArray",
                 "values = xr.DataArray(values); values = values.where(np.isfinite(values))")),
    case("Check the mask in", fit, lambda tmp: {"values": np.full(9, np.nan)},
         meaning("Check the mask in values.where(mask), and that the period selected is not empty",
                 "values = rain_values()")),
    case("finite values are below wet_threshold", fit, lambda tmp: {"values": rain_values(), "wet_threshold": 1e4},
         "wet_threshold=None", meaning("a lower wet_threshold in the units of the values", "wet_threshold=0.1")),
    case("values are negative. Needed for transform=", fit,
         lambda tmp: {"values": rain_values() - 0.5, "transform": "log1p"},
         "values = values.clip(min=0)", "wet_threshold=0", "transform=None"),
    case("one value has no density", fit, lambda tmp: {"values": np.ones(50)},
         meaning("DenseWeight(alpha=0) and fit it on any data", "values = rain_values(); alpha=0"),
         meaning("leave DenseLoss out", "values = rain_values()")),
    case("float64 cannot resolve their density", fit, lambda tmp: {"values": rain_values() * 1e-310},
         filled("values = values * factor", factor="1e308 * 100"),
         meaning("values - offset", "values = rain_values()")),
    case("float64 cannot resolve their density", fit, lambda tmp: {"values": 1e16 + np.arange(0, 40, 2.0)},
         filled("values = values - offset", offset="1e16"), meaning("values * factor", "values = values - 1e16")),
    case("they hardly count in the loss", strictly(fit),
         lambda tmp: {"values": rain_values(20_000, dry=0.74), "alpha": 2.0},
         meaning("a lower alpha", "alpha=1.0"), "wet_threshold=0.1"),
]  # fmt: skip


def said_number(said, after):
    return int(re.search(rf"{re.escape(after)}(\d+)", said)[1])


def crps_of(members, target):
    return fair_crps(members, target).numpy()


CASES["losses"] = [
    case("Needed: two members or more, each of the target's shape", crps_of,
         lambda tmp: {"members": torch.ones(4, 4), "target": torch.ones(4, 4)},
         Typed("torch.stack([member, ...])", "members = torch.stack([members, members])")),
    case("the CRPS is that of members", lambda **given: vars(TrainConfig(**given)), lambda tmp: {"loss": "crps"},
         meaning("TrainConfig(loss='crps', noise=2)", "noise=2"),
         meaning("noise=0 with another loss", "noise=0; loss='mse'")),
    case("or crop the target by the network's radius", xdeepsd.masked_mse,
         lambda tmp: {"pred": torch.ones(2, 1, 4, 4), "target": torch.ones(2, 4, 4)},
         "pred = pred.reshape(target.shape)",
         meaning("crop the target by the network's radius", "pred = pred[:, 0]")),
    case("or crop the target by the network's radius", xdeepsd.masked_mse,
         lambda tmp: {"pred": torch.ones(2, 1, 4, 4), "target": torch.ones(2, 1, 8, 8)},
         meaning("crop the target by the network's radius", "target = target[..., 2:-2, 2:-2]"),
         meaning("pred.reshape(target.shape)", "target = target[..., 2:-2, 2:-2]")),
]  # fmt: skip

# --- patches, evaluate ------------------------------------------------------------------------------------------------


def ocean(columns):
    """The fine level with this many columns of land."""
    level = HIGH.copy(deep=True)
    level["mask"][:] = np.arange(16) < columns
    return level


CASES["patches"] = [
    case("or a smaller patch, if the level's mask ", xdeepsd.train_stage, lambda tmp: to_train(fine=ocean(1)),
         meaning("TrainConfig(min_land=0.25)", "config = replace(config, min_land=0.25)"),
         meaning("a smaller patch", "config = replace(config, patch=6, stride=2)"),
         meaning("if the level's mask (True is land) is right", "fine = HIGH")),
    case("no cell is True", xdeepsd.train_stage, lambda tmp: to_train(fine=ocean(0)),
         meaning("Look at the level's mask (True is land)", "fine = HIGH")),
]  # fmt: skip

CASES["evaluate"] = [
    case("If they differ only by rounding", lambda predicted, observed: compare({"model": predicted}, observed),
         lambda tmp: {"predicted": COARSE.assign_coords(lat=COARSE.lat + 1e-9), "observed": COARSE},
         "predicted = predicted.assign_coords(observed.coords)"),
    case("If they differ only by rounding", xdeepsd.crps,
         lambda tmp: {"members": xr.concat([COARSE, COARSE + 1], "member").assign_coords(lat=COARSE.lat + 1e-9),
                      "observed": COARSE},
         "members = members.assign_coords(observed.coords)"),
    case("in the former, none in the latter", xdeepsd.crps, lambda tmp: {"members": COARSE, "observed": COARSE},
         meaning("ds.deepsd.downscale(model, members=10)",
                 "members = xr.concat([COARSE, COARSE + 1], 'member')"),
         filled("dim=NAME", NAME="'lat'; observed = COARSE.isel(lat=0, drop=True)")),
    case("one truth; members are for the prediction", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE.expand_dims(member=[0, 1])},
         "truth = truth.isel(member=0)"),
    case("Select one of the others, such as", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE.expand_dims(height=[0, 1]), "truth": COARSE},
         meaning("Select one of the others, such as .isel(height=0)", "prediction = prediction.isel(height=0)")),
    case("Needed: the same cells. Type xdeepsd.regrid", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE.isel(lat=slice(1, None))},
         "prediction = xdeepsd.regrid(prediction, truth)",
         meaning("give a truth on this grid", "truth = COARSE")),
    case("or select the days that both have", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE.isel(time=slice(1, None)), "truth": COARSE},
         "truth = truth.sel(time=prediction['time'])",
         meaning("select the days that both have", "truth = truth.isel(time=slice(1, None))")),
    case("from which the years", xdeepsd.climate_indices,
         lambda tmp: {"precipitation": COARSE.to_dataset().assign_coords(time=np.arange(COARSE.sizes["time"]))},
         filled("precipitation = ds.assign_coords(time=xr.date_range('2001-01-01', periods=ds.sizes['time']))"),
         has={"ds": COARSE.to_dataset()}),
    case("Needed: those over all days", lambda by: xdeepsd.differences(xdeepsd.evaluate(COARSE, COARSE, by=by)),
         lambda tmp: {"by": "season"}, "by=None"),
    case("on that grid, ", lambda past, observed: map_quantiles(observed, past, observed),
         lambda tmp: {"past": COARSE, "observed": COARSE.isel(time=slice(1, None))},
         "past = past.sel(time=observed['time'])"),
    case("but none among the training days",
         lambda group: map_quantiles(COARSE.assign_coords(time=COARSE["time"] + np.timedelta64(90, "D")), COARSE,
                                     COARSE, group=group),
         lambda tmp: {"group": "time.month"}, "group='time'"),
    case("a map of labels on the grid of the truth", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "by": "region", "regions": np.ones((4, 6))},
         "regions=truth.isel(time=0, drop=True).copy(data=labels)", has={"labels": np.ones((4, 6))}),
    case("and regions is not given", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "by": "region"}, "regions=mask",
         has={"mask": COARSE[0] > 1}),
    case("Needed: a map of latitude and longitude. Select", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "by": "region", "regions": COARSE > 1},
         meaning("Select one of the others, such as .isel(time=0)", "regions = regions.isel(time=0)")),
    case("True, in some cells", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "by": "region", "regions": COARSE[0] * np.nan},
         meaning("Look at the map", "regions = COARSE[0] > 1")),
    case("Needed: both or neither", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "regions": COARSE[0] > 1}, "by='region'"),
    case("and the factors, or neither", xdeepsd.evaluate,
         lambda tmp: {"prediction": COARSE, "truth": COARSE, "by": "level"},
         meaning("by='level', factors=(2, 2)", "factors = (1,)")),
    case("Give days with rain", bin_edges, lambda tmp: {"observed": COARSE * 0},
         meaning("Give days with rain", "observed = COARSE")),
]  # fmt: skip

# --- layout, store ----------------------------------------------------------------------------------------------------


def lazy(**chunks):
    return rain().chunk(chunks or {"time": 2, "lat": -1, "lon": -1})


def to_store(tmp, ds=None, **options):
    return {"ds": lazy() if ds is None else ds, "store": tmp / "a.zarr", **options}


CASES["layout"] = [
    case("The DataArray has no name", xdeepsd.to_zarr, lambda tmp: to_store(tmp, COARSE.rename(None)),
         "ds = da.rename('precipitation')", has={"da": COARSE.rename(None)}),
    case("needed: equal ones, except ", xdeepsd.to_zarr, lambda tmp: to_store(tmp, lazy(time=(1, 2))),
         "ds = ds.chunk(time=2)"),
    case("no dtype to pack into", xdeepsd.to_zarr, lambda tmp: to_store(tmp, encoding={"pr": {"scale_factor": 0.1}}),
         "encoding={'pr': {'dtype': 'int16', 'scale_factor': 0.1, '_FillValue': -32768}}"),
    case("a value that does not occur", xdeepsd.to_zarr, lambda tmp: to_store(tmp, encoding={"pr": {"dtype": "int16"}}),
         filled("encoding={'pr': {..., '_FillValue': 32767}}", **{"...": "'dtype': 'int16'"})),
    case("tasks would write to one of them", xdeepsd.to_zarr,
         lambda tmp: to_store(tmp, encoding={"pr": {"chunks": (3, 4, 6)}}),
         "ds = ds.chunk(time=3)", filled("encoding={'pr': {'chunks': ...}}", **{"...": "(1, 4, 6)"})),
    case("tasks would write to one of them", xdeepsd.to_zarr,
         lambda tmp: to_store(tmp, encoding={"pr": {"chunks": (1, 4, 6), "shards": (3, 4, 6)}}),
         "ds = ds.chunk(time=3)",
         filled("encoding={'pr': {'shards': ...}}", **{"...": "(2, 4, 6), 'chunks': (1, 4, 6)"})),
]  # fmt: skip


def begun(tmp, ds=None, **options):
    """A store that `to_zarr` wrote."""
    xdeepsd.to_zarr(lazy() if ds is None else ds, tmp / "a.zarr", **options)
    return tmp / "a.zarr"


def of_a_file(path):
    COARSE.to_dataset().to_netcdf(path)
    return xr.open_dataset(path, chunks={"time": 2})


def by_xarray(tmp):
    rain().to_zarr(tmp / "a.zarr", consolidated=False)
    return lazy()


def thesis(tmp):
    (tmp / "a.zarr").mkdir()
    (tmp / "a.zarr" / "thesis.txt").touch()
    return lazy()


def with_notes(path):
    (path / "notes.txt").write_text("mine")
    return path


def interrupted(path):
    """A call was interrupted while it laid out the store, and then somebody put a group into it."""
    xr.Dataset({"x": 1.0}).to_zarr(path, group="mine", consolidated=False)
    zarr.open_group(path, mode="r+").attrs["xdeepsd_status"] = "begun"
    return path


def without_filesystems(patch):
    """A machine where fsspec cannot find the package for a URL."""
    registry = sys.modules["fsspec.registry"]
    patch.setitem(registry.known_implementations, "memory", {"class": "absent.FileSystem", "err": "absent"})
    patch.delitem(registry._registry, "memory", raising=False)


def to_zarr_while(ds, store, busy):
    with filelock.FileLock(busy) if busy else contextlib.nullcontext():
        xdeepsd.to_zarr(ds, store)


def repository(folder):
    where = icechunk.local_filesystem_storage(str(folder / "repository"))
    return icechunk.Repository.open_or_create(where)


def read_only(tmp):
    repo = repository(tmp)
    return repo.readonly_session("main").store


def uncommitted(tmp):
    session = repository(tmp).writable_session("main")
    xdeepsd.to_zarr(lazy(), session.store, group="one")
    return session


def on_cluster(ds, store):
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None):
        xdeepsd.to_zarr(ds, store, group="two")


def packed(tmp, **changes):
    return to_store(tmp, encoding={"pr": {"dtype": "uint8", "scale_factor": 0.01, "_FillValue": 255, **changes}})


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def cut_short(store):
    """Metadata that were cut, as by a copy that broke off."""
    (store / "zarr.json").write_bytes((store / "zarr.json").read_bytes()[:-50])
    return store


def another(name="path"):
    return meaning("another path", f"{name} = folder / 'b.zarr'")


CASES["store"] = [
    case("No space left for", xdeepsd.to_zarr, to_store,
         meaning("free some space and give the same command again", "patch.undo()"),
         machine=lambda patch: patch.setattr(write, "compute", no_space)),
    case("cannot write to a MemoryStore", on_cluster, lambda tmp: {"ds": lazy(), "store": zarr.storage.MemoryStore()},
         meaning("a path", "store = folder / 'a.zarr'"), meaning("a URL", "store = f'file://{folder}/a.zarr'")),
    case("Type the path as the workers see it", xdeepsd.to_zarr, to_store,  # workers that write elsewhere
         meaning("the path as the workers see it", "patch.undo()"),
         meaning("a URL", "patch.undo(); store = f'file://{store}'"),
         machine=lambda patch: patch.setattr(write, "compute", lambda *_: None)),
    case("storage_options are for URLs", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy(), "store": str(tmp / "a.zarr"), "storage_options": {"skip_instance_cache": True}},
         meaning("Leave them out", "del storage_options"), meaning("a URL such as s3://", "store = 'memory://a.zarr'")),
    case("may write local files in place: a kill", xdeepsd.to_zarr, to_store, filled("zarr.config.reset()"),
         machine=lambda patch: zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})),
    case("is read-only. With Icechunk", xdeepsd.to_zarr, lambda tmp: {"ds": lazy(), "store": read_only(tmp)},
         meaning("repo.writable_session('main').store", "store = repository(folder).writable_session('main').store")),
    case("cannot be resumed: it cannot delete or list", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy(), "store": zarr.storage.ZipStore(tmp / "a.zip", mode="w")},
         meaning("to_zarr('out.zarr')", "store = folder / 'out.zarr'")),
    case("writes local files in place: a kill", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy(), "store": zarr.storage.FsspecStore.from_url(f"local://{tmp}/a.zarr")},
         meaning("to_zarr('/path/out.zarr')", "store = f'{folder}/out.zarr'")),
    case("is or contains the input", xdeepsd.to_zarr,
         lambda tmp: to_store(tmp, xr.open_zarr(begun(tmp)), overwrite=True), another("store")),
    case("The Icechunk session has uncommitted changes", lambda session, ds: on_cluster(ds, session.store),
         lambda tmp: {"session": uncommitted(tmp), "ds": lazy()},
         meaning("session.commit('...') and take a new session",
                 "session.commit('...'); session = repository(folder).writable_session('main')"),
         "session.discard_changes()"),
    case("It is left alone: type another path", xdeepsd.to_zarr,
         lambda tmp: to_store(tmp, thesis(tmp)), another("store")),
    case(" is damaged: ", xdeepsd.to_zarr, lambda tmp: {"ds": lazy(), "store": cut_short(begun(tmp))},
         meaning("Move it away", "store.rename(folder / 'away.zarr')"), another("store")),
    case("Another to_zarr is writing to", to_zarr_while,
         lambda tmp: {"ds": lazy(), "store": tmp / "a.zarr", "busy": tmp / ".a.zarr.lock"},
         meaning("Wait for it", "busy = None"), another("store")),
    case("also holds something that is not Zarr", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy(), "store": with_notes(begun(tmp)), "overwrite": True},
         meaning("Move it away", "(store / 'notes.txt').rename(folder / 'notes.txt')"), another("store")),
    case("which that call did not write", xdeepsd.to_zarr, lambda tmp: {"ds": lazy(), "store": interrupted(begun(tmp))},
         "overwrite=True"),
    case("needs a package that is not installed", xdeepsd.to_zarr, lambda tmp: {"ds": lazy(), "store": "memory://a.zarr"},
         meaning("pip install s3fs for s3://, gcsfs for gs://, adlfs for az://", "patch.undo()"),
         machine=without_filesystems),
    case("to continue it, or overwrite=True to replace it", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy(), "store": begun(tmp), "resume": False}, "resume=True", "overwrite=True"),
    case("was not written by xdeepsd.to_zarr, so it cannot be resumed", xdeepsd.to_zarr,
         lambda tmp: to_store(tmp, by_xarray(tmp)), "overwrite=True", another("store")),
    case("If you know that the input is the same", xdeepsd.to_zarr,
         lambda tmp: {"ds": of_a_file(tmp / "b.nc"), "store": begun(tmp, of_a_file(tmp / "a.nc"))},
         "same_input=True", "overwrite=True", another("store")),
    case("was begun with something else", xdeepsd.to_zarr,
         lambda tmp: {"ds": lazy().isel(lon=slice(0, 4)), "store": begun(tmp)}, "overwrite=True", another("store")),
    case("with a larger scale_factor or dtype", xdeepsd.to_zarr, packed,
         meaning("overwrite=True with a larger scale_factor",
                 "overwrite=True; encoding = packed(folder, scale_factor=0.2)['encoding']"),
         meaning("or dtype", "overwrite=True; encoding = packed(folder, dtype='uint16')['encoding']")),
]  # fmt: skip

# --- inference, blocks, fused -----------------------------------------------------------------------------------------


def without_bfloat16(patch):
    patch.setattr(compiled, "HAS_BFLOAT16", False)


def without_cuda(patch):
    patch.setattr(torch.cuda, "is_available", lambda: False)


def with_bfloat16(patch):
    patch.setattr(compiled, "HAS_BFLOAT16", True)


def without_numba(patch):
    """A machine without the packages the fast forward needs."""
    patch.setitem(sys.modules, "xdeepsd.inference.fast", None)
    forward._import_fast.cache_clear()


def laid_out(ds, **given):
    """Build only the graph: this machine may lack the instructions."""
    return sorted(xdeepsd.downscale(ds.chunk(time=1), **given).sizes.items())


def computed_elsewhere(ds, **given):
    """A graph built where the fast forward is available and computed where it is not."""
    fine = xdeepsd.downscale(ds.chunk(time=1), **given)
    with pytest.MonkeyPatch.context() as patch:
        without_numba(patch)
        try:
            return fine.compute()
        finally:
            forward._import_fast.cache_clear()


SHALLOW = make_stack(1, channels=(), kernels=(3,))
NOISY = make_stack(1, **TINY, noise=1)
OF_CHANCE = make_stack(1, gain=1.0, **TINY, head="bernoulli_gamma")
NOISE_THEN_CHANCE = xdeepsd.StackedSRCNN([
    *make_stack(1, **TINY, noise=1, static=(), factor=1).stages,
    *make_stack(1, gain=1.0, **TINY, head="bernoulli_gamma").stages,
])  # fmt: skip
KEPT = xdeepsd.distribution(rain(), OF_CHANCE, STATIC, conserve="multiplicative")


def called(function, **given):
    """Any function, so that another one can be typed."""
    return function(**given)


CASES["inference"] = [
    case("needed: a StackedSRCNN", xdeepsd.downscale, lambda tmp: to_downscale(model=saved(tmp)),
         filled("model = xdeepsd.load_model('model/')", **{"'model/'": "model"})),
    # For a lazy array, a missing device is noticed and reported only where the array is computed.
    case("needs a processor with avx512_bf16", xdeepsd.downscale, lambda tmp: to_downscale(precision="bfloat16"),
         "precision='float32'", machine=without_bfloat16),
    case("needed: a device that can compute", xdeepsd.downscale, lambda tmp: to_downscale(device="meta"),
         meaning("Leave device out", "del device")),
    case("precision='bfloat16' with batch_size=", laid_out,
         lambda tmp: to_downscale(precision="bfloat16", batch_size=2),
         meaning("Leave batch_size out", "del batch_size"), "precision='float32'", machine=with_bfloat16),
    case("precision='bfloat16' with a stage that", laid_out,
         lambda tmp: to_downscale(model=SHALLOW, precision="bfloat16"), "precision='float32'", machine=with_bfloat16),
    case("precision='bfloat16' with a stage that", laid_out,
         lambda tmp: to_downscale(model=NOISY, members=2, precision="bfloat16"), "precision='float32'",
         machine=with_bfloat16),
    case("and so would the output", xdeepsd.downscale,
         lambda tmp: to_downscale(rain().expand_dims(member=[0]), model=[MODEL]),
         "ds = ds.rename(member='realization')"),
    case("needed: a whole number of at least 1. Type members=10", xdeepsd.downscale,
         lambda tmp: to_downscale(model=NOISY, members=0), "members=10"),
    case("members is missing. Needed: how many", xdeepsd.downscale, lambda tmp: to_downscale(model=NOISY),
         meaning("members=10;", "members=10"), meaning("members=10, statistics=True", "members=10; statistics=True")),
    case("and the model takes no noise", xdeepsd.downscale, lambda tmp: to_downscale(members=2),
         meaning("Leave members out", "del members")),
    case("which has no spread", xdeepsd.downscale, lambda tmp: to_downscale(statistics=True), "statistics=False"),
    case("of the list differ", xdeepsd.downscale, lambda tmp: to_downscale(model=[MODEL, NO_STATIC]),
         meaning("Leave models[1] out", "del model[1]")),
    case("the noise of the members is that of a date", xdeepsd.downscale,
         lambda tmp: to_downscale(rain().drop_vars("time").rename(time="z"), model=NOISY, members=2),
         filled("ds = ds.rename(DIM='time').assign_coords(time=xr.date_range('2000-01-01', periods=N))",
                DIM="z", N="3")),
    case("of which the noise is a function", xdeepsd.downscale,
         lambda tmp: to_downscale(rain(time=("time", np.arange(3), {"axis": "T"})), model=NOISY, members=2),
         filled("ds = ds.assign_coords(time=xr.date_range('2000-01-01', periods=N))", N="3")),
    case("precision='bfloat16' with a stage that", laid_out,
         lambda tmp: to_downscale(model=OF_CHANCE, precision="bfloat16"), "precision='float32'", machine=with_bfloat16),
    case("The last stage of the model gives values", called,
         lambda tmp: {"function": xdeepsd.distribution, **to_downscale()},
         meaning("xdeepsd.downscale(ds, model)", "function = xdeepsd.downscale")),
    case("each model gives a distribution of its own", xdeepsd.distribution,
         lambda tmp: to_downscale(model=[OF_CHANCE, OF_CHANCE]),
         meaning("xdeepsd.distribution(ds, models[0])", "model = model[0]")),
    case("each noise gives another distribution", called,
         lambda tmp: {"function": xdeepsd.distribution, **to_downscale(model=NOISE_THEN_CHANCE)},
         meaning("xdeepsd.downscale(ds, model, members=10)", "function = xdeepsd.downscale; members = 10")),
    case("the spread is either that of members", lambda **given: vars(xdeepsd.SRCNNConfig(**given)),
         lambda tmp: {"noise": 1, "head": "bernoulli_gamma"}, "noise=0"),
    case("some would be cut", xdeepsd.sample, lambda tmp: {"members": 1, "distribution": KEPT.isel(lat=slice(1, 8))},
         meaning("Select from the members", "distribution = KEPT"),
         "distribution = distribution.drop_attrs(deep=False)"),
    case(", and the chunks along", xdeepsd.sample, lambda tmp: {"members": 1, "distribution": KEPT.chunk(lat=3)},
         "distribution = distribution.chunk(lat=-1, lon=-1)"),
    case("and so would the output", xdeepsd.sample,
         lambda tmp: {"members": 2, "distribution": xdeepsd.distribution(rain(), OF_CHANCE, STATIC)
                      .expand_dims("member")},
         meaning("distribution.rename(member='realization')",
                 "distribution = distribution.rename(member='realization')")),
    case("Needed: a distribution", xdeepsd.expectation, lambda tmp: {"distribution": rain()},
         meaning("xdeepsd.distribution(ds, model)",
                 "distribution = xdeepsd.distribution(rain(), OF_CHANCE, STATIC)")),
    case("The fast forward is not available", strictly(xdeepsd.downscale), lambda tmp: to_downscale(),
         meaning("pip install xdeepsd[fast]", "patch.undo(); forward._import_fast.cache_clear()"),
         machine=without_numba),
    case("cannot be computed on this worker", computed_elsewhere, lambda tmp: to_downscale(precision="bfloat16"),
         "precision='float32'", machine=with_bfloat16),
]  # fmt: skip

CASES["conserve"] = [
    case("but the model was trained with", xdeepsd.downscale, lambda tmp: to_downscale(conserve="softmax"),
         meaning("Leave conserve out", "del conserve")),
    case("conserve='softmax' and residual=True", lambda **given: vars(xdeepsd.SRCNNConfig(**given)),
         lambda tmp: {"conserve": "softmax", "residual": True}, "residual=False"),
    case("with 'softmax' the network gives exponents, not a", lambda **given: vars(xdeepsd.SRCNNConfig(**given)),
         lambda tmp: {"conserve": "softmax", "head": "bernoulli_gamma"}, "conserve='multiplicative'"),
    case("no mean can be kept", xdeepsd.downscale,
         lambda tmp: to_downscale(conserve="additive", mask=xr.zeros_like(STATIC["elevation"], bool)),
         meaning("Look at the mask", "mask = STATIC['elevation'].notnull()")),
    case("output cells along each side, and a coarse cell takes", xdeepsd.train_stage,
         lambda tmp: to_train(config=replace(QUICK, conserve="multiplicative", patch=5, stride=1)),
         meaning("patch=6", "config = replace(config, patch=6)"),
         meaning("conserve=None", "config = replace(config, conserve=None)")),
]  # fmt: skip

CASES["blocks"] = [
    case("Leave device out for the CPU", xdeepsd.downscale, lambda tmp: to_downscale(device="cuda"),
         meaning("Leave device out", "del device"), machine=without_cuda),
]  # fmt: skip

CASES["fused"] = [
    case("needs a processor with avx512_bf16",
         lambda precision: fused.prepare(MODEL.stages[0], STATIC["elevation"].values[None], None, precision),
         lambda tmp: {"precision": "bfloat16"}, "precision='float32'", machine=without_bfloat16),
]  # fmt: skip

# --- stack, static ----------------------------------------------------------------------------------------------------


def saved(tmp):
    xdeepsd.save_model(MODEL, tmp / "model")
    return tmp / "model"


@contextlib.contextmanager
def newer(module):
    """The next version of xdeepsd, with another file format."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FORMAT", module.FORMAT + 1)
        yield


def saved_by_a_newer(tmp):
    with newer(files):
        return saved(tmp)


def cut(tmp):
    path = saved(tmp) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return tmp / "model"


def at_an_address(tmp):
    """A model on a server, and what the user knows of it."""
    xdeepsd.save_model(MODEL, tmp / "rain")
    return {"path": f"{ModelServer(tmp).url}/rain"}


CASES["hub"] = [
    case("from somebody you trust", xdeepsd.load_model, at_an_address,
         meaning("load_model(address, sha256='...')",
                 "sha256 = hashlib.sha256(urllib.request.urlopen(path + '/model.json').read()).hexdigest()"),
         has={"hashlib": hashlib, "urllib": urllib},
         machine=lambda patch: patch.setattr(pooch, "os_cache", lambda name: Path(tempfile.mkdtemp()))),
]  # fmt: skip

CASES["stack"] = [
    case("exists. Type save_model(model, path, overwrite=True)", xdeepsd.save_model,
         lambda tmp: {"model": MODEL, "path": saved(tmp)},
         meaning("save_model(model, path, overwrite=True)", "overwrite=True")),
    case("reads up to format", xdeepsd.load_model, lambda tmp: {"path": saved_by_a_newer(tmp)},
         meaning("pip install -U xdeepsd", "patch.setattr(files, 'FORMAT', files.FORMAT + 1)")),
    case("Copy the model again, or save it again", xdeepsd.load_model, lambda tmp: {"path": cut(tmp)},
         meaning("xdeepsd.save_model(model, path)", "xdeepsd.save_model(MODEL, path, overwrite=True)"),
         meaning("Copy the model again", "path = saved(folder / 'b')")),
    case("models, an ensemble. Type", lambda path, models=(): list(models) or xdeepsd.load_model(path),
         lambda tmp: {"path": saved(tmp).parent}, "models = xdeepsd.load_models(path)"),
    case("for models that lie elsewhere", lambda path, models=(): list(models) or xdeepsd.load_models(path),
         lambda tmp: {"path": saved(tmp)},
         meaning("[xdeepsd.load_model('FOLDER'), ...]", "models = [xdeepsd.load_model(path)]")),
    case("exists, but is not a model of xdeepsd", xdeepsd.save_model,
         lambda tmp: {"model": MODEL, "path": with_notes(tmp), "overwrite": True}, another()),
]  # fmt: skip

CASES["static"] = [
    case("A field of", lambda field: block_mean(field.values, 3), lambda tmp: {"field": FINE[0]},
         "field = field.isel(lat=slice(6), lon=slice(12))"),
]  # fmt: skip

# --- grid, weights, regrid --------------------------------------------------------------------------------------------

TARGET = grid([1.0, 3.0], [1.0, 3.0])


def regrid(ds, target=TARGET, **more):
    return xdeepsd.regrid(ds, target, **more)


def square(lat=4, lon=4):
    return field(np.arange(lat) + 0.5, np.arange(lon) + 0.5)


def with_bounds(name="lat_bnds", low=0.0, width=1.0, count=4):
    """A Dataset with bounds of latitude."""
    south = low + np.arange(count)
    ds = square().assign({name: ((f"{name}_lat", "bnds"), np.stack([south, south + width], 1))})
    ds["lat"].attrs["bounds"] = name
    return ds


def strip():
    """A row of a curvilinear grid."""
    return curvilinear(1, 6)


def displaced(shape=4, by=9.0, width=0.5, order=(0, 1, 2, 3)):
    """A curvilinear grid whose bounds belong to other cells or corners, or are too small."""
    ds = curvilinear()
    for name, corners in (("latitude", [-1, -1, 1, 1]), ("longitude", [-1, 1, 1, -1])):
        around = [ds[name].values + by + width * corners[i] for i in order[:shape]]
        ds[f"{name}_vertices"] = (("y", "x", "corner"), np.stack(around, -1))
        ds[name].attrs["bounds"] = f"{name}_vertices"
    return ds


def crossed():
    """A curvilinear grid whose cells cross themselves."""
    return displaced(by=0, order=(0, 2, 1, 3))


BESIDE = grid([45.2, 46.1], [-118, -117])
CORNERS = filled(
    "ds['latitude_bnds'] = (('y', 'x', 'corner'), LATITUDE_OF_FOUR_CORNERS); ds['latitude'].attrs['bounds'] = "
    "'latitude_bnds'; ds['longitude_bnds'] = (('y', 'x', 'corner'), LONGITUDE_OF_FOUR_CORNERS); "
    "ds['longitude'].attrs['bounds'] = 'longitude_bnds'",
    LATITUDE_OF_FOUR_CORNERS="displaced(by=0)['latitude_vertices'].values[:1]",
    LONGITUDE_OF_FOUR_CORNERS="displaced(by=0)['longitude_vertices'].values[:1]",
)
DROP = "ds = ds.drop_vars('lat_bnds')"
CORRECT = meaning("Correct them", "ds = with_bounds()")
CASES["grid"] = [
    case("so the size of its cell is unknown", regrid, lambda tmp: {"ds": square(1)},
         filled("ds['lat_bnds'] = (('lat', 'bnds'), [[LOW, HIGH]]); ds['lat'].attrs['bounds'] = 'lat_bnds'",
                LOW="0", HIGH="2")),
    case("Needed: ascending or descending values", regrid, lambda tmp: {"ds": square().isel(lat=[0, 1, 3, 2])},
         "ds = ds.sortby('lat')"),
    case("Needed: ascending or descending values", lambda ds: regrid(ds, grid([1, 2], [179, 180])),
         lambda tmp: {"ds": field([0.5, 1.5, 2.5], [-179.5, -178.5, 178.5, 179.5])},
         "ds = ds.assign_coords(lon=ds['lon'].copy(data=(ds['lon'].values -0) % 360 +0)).sortby('lon')"),
    case("have the shape", regrid, lambda tmp: {"ds": with_bounds(count=3)}, DROP, CORRECT),
    case("disagree with its centres", regrid, lambda tmp: {"ds": with_bounds(low=9)}, DROP, CORRECT),
    case("have gaps or overlaps", regrid, lambda tmp: {"ds": with_bounds(width=0.8)}, DROP, CORRECT),
    case("to have them inferred from the centres", regrid, lambda tmp: {"ds": with_bounds(width=1.2)}, DROP, CORRECT),
    case("Check that latitude and longitude are not swapped", regrid,
         lambda tmp: {"ds": square().rename(lat="lon", lon="lat").assign_coords(lat=100 + np.arange(4.0))},
         meaning("Check that latitude and longitude are not swapped and that the units are degrees",
                 "ds = square()")),
    case("Select the part of the grid that has them", lambda ds: regrid(ds, BESIDE),
         lambda tmp: {"ds": with_a_gap()}, meaning("ds.isel", "ds = ds.isel(x=slice(1, None))")),
    case("more than the whole circle", regrid, lambda tmp: {"ds": field([0.5, 1.5, 2.5], np.arange(0.0, 361.0, 10.0))},
         "ds = ds.isel(lon=slice(None, -1))"),
    case("Needed: the centre of every cell. Type ds.isel(", regrid, lambda tmp: {"ds": with_a_gap_in_the_north()},
         "ds = ds.isel(lat=np.isfinite(ds['lat'].values))"),
    case("has repeated values", regrid, lambda tmp: {"ds": square().isel(lat=[0, 1, 1, 2, 3])},
         "ds = ds.isel(lat=np.delete(range(5), [2]))"),
    case("cells has no bounds, so the size", lambda ds: regrid(ds, BESIDE), lambda tmp: {"ds": strip()}, CORNERS),
    case("Correct them, or type ds.drop_vars(", lambda ds: regrid(ds, BESIDE), lambda tmp: {"ds": displaced()},
         "ds = ds.drop_vars(['latitude_vertices', 'longitude_vertices'])",
         meaning("Correct them", "ds = displaced(by=0)")),
    case("Correct them, or type ds.drop_vars(", lambda ds: regrid(ds, BESIDE), lambda tmp: {"ds": displaced(shape=3)},
         "ds = ds.drop_vars(['latitude_vertices', 'longitude_vertices'])",
         meaning("Correct them", "ds = displaced(by=0)")),
    case("do not share", regrid, lambda tmp: {"ds": displaced(by=0, width=0.3), "target": BESIDE, "engine": "xesmf"},
         meaning("Leave engine out", "del engine"),
         machine=lambda patch: patch.setitem(sys.modules, "xesmf", types.SimpleNamespace(Regridder=None))),
    case("do not form a polygon on the sphere", regrid, lambda tmp: {"ds": crossed(), "target": BESIDE},
         filled("ds = ds.drop_vars(NAMES_OF_THE_BOUNDS)",
                NAMES_OF_THE_BOUNDS="['latitude_vertices', 'longitude_vertices']"),
         meaning("Correct the bounds", "ds = displaced(by=0)")),
    case("reach halfway round the earth", regrid, lambda tmp: {"ds": field([-45, 45], [0, 180]), "engine": "spherely"},
         meaning("Leave engine out", "del engine"), "method='nearest'"),
]  # fmt: skip


def with_a_gap_in_the_north():
    ds = square(5)
    return ds.assign_coords(lat=ds["lat"].where(ds["lat"] < 4))


def with_a_gap():
    ds = curvilinear()
    values = ds["latitude"].values.astype(float)
    values[0, 0] = np.nan
    ds["latitude"] = (("y", "x"), values, ds["latitude"].attrs)
    return ds


def a_link(tmp):
    """The name of the file is a link to weights elsewhere."""
    xdeepsd.regrid_weights(square(), TARGET).save(tmp / "elsewhere.npz")
    (tmp / "link.npz").symlink_to(tmp / "elsewhere.npz")
    return {"path": tmp / "link.npz"}


CASES["weights"] = [
    case("The method is", regrid, lambda tmp: {"ds": square(), "method": "linear"}, "method='conservative'"),
    case("The grids do not overlap", regrid, lambda tmp: {"ds": square(), "target": grid([60, 61], [0, 1])},
         meaning("xdeepsd.regrid(ds, target)", "target = TARGET")),
    case("Bilinear interpolation on", regrid, lambda tmp: {"ds": square(1), "method": "bilinear"},
         "method='nearest'"),
    case("exists, but holds no weights", lambda path: xdeepsd.regrid_weights(square(), TARGET).save(path),
         lambda tmp: {"path": with_notes(tmp) / "notes.txt"}, another()),
    case("is a link. It is left alone", lambda path: xdeepsd.regrid_weights(square(), TARGET).save(path), a_link,
         meaning("remove it", "path.unlink()"), another()),
]  # fmt: skip

CASES["regrid"] = [
    case("No target was given", regrid, lambda tmp: {"ds": square(), "target": None},
         meaning("xdeepsd.regrid(ds, target)", "target = TARGET"),
         meaning("weights=FILE", "weights = folder / 'w.npz'; xdeepsd.regrid_weights(ds, TARGET).save(weights)")),
    case("The engine is", regrid,
         lambda tmp: {"ds": square(), "engine": "esmf"}, meaning("Leave engine out", "del engine")),
    case("conda install -c conda-forge xesmf", regrid, lambda tmp: {"ds": square(), "engine": "xesmf"},
         meaning("leave engine out", "del engine"), machine=lambda patch: patch.setitem(sys.modules, "xesmf", None)),
    case("Needed: the same cells in the same order. Type", regrid,
         lambda tmp: {"ds": square(), "target": TARGET, "weights": xdeepsd.regrid_weights(square(5), TARGET)},
         "weights=xdeepsd.regrid_weights(ds, target)"),
    case("Needed: the same. Type ", regrid,
         lambda tmp: {"ds": square(), "target": TARGET, "method": "nearest",
                      "weights": xdeepsd.regrid_weights(square(), TARGET, "bilinear")},
         "method='bilinear'", "weights=xdeepsd.regrid_weights(ds, target, 'nearest')"),
    case("Needed: whole", regrid, lambda tmp: {"ds": square().chunk(lat=2)}, "ds = ds.chunk({'lat': -1, 'lon': -1})"),
    case("Needed: numbers. Type", regrid, lambda tmp: {"ds": square().assign(name=square()["v"].astype(str))},
         "ds = ds.drop_vars('name')"),
    case("the blocks of a curvilinear grid", lambda ds: xdeepsd.coarsen(ds, 2), lambda tmp: {"ds": curvilinear()},
         "ds = xdeepsd.regrid(ds, target)", has={"target": grid(46 + np.arange(4), -119 + np.arange(4))}),
    case("A grid of", lambda ds: xdeepsd.coarsen(ds, 3), lambda tmp: {"ds": square()},
         "ds = ds.isel(lat=slice(3), lon=slice(3))"),
    case("Type xdeepsd.coarsen(ds,", xdeepsd.coarsen, lambda tmp: {"obj": square(), "factor": 9},
         meaning("xdeepsd.coarsen(ds, 2)", "factor = 2")),
    case("Type xdeepsd.coarsen(ds,", xdeepsd.coarsen, lambda tmp: {"obj": square(1), "factor": 0},
         meaning("xdeepsd.coarsen(ds, 1)", "obj = square(1).assign_coords(lat=[1.0]); obj['lat_bnds'] = (('lat', 'b'), "
                 "[[0, 2]]); obj['lat'].attrs['bounds'] = 'lat_bnds'; factor = 1")),
    case("Type pip install 'xdeepsd[", regrid, lambda tmp: {"ds": curvilinear(), "target": BESIDE},
         meaning("pip install 'xdeepsd[regrid]'", "patch.undo()"), machine=without("spherely")),
]  # fmt: skip

# --- ladder, levels ---------------------------------------------------------------------------------------------------


def make_levels(ds, static, factors=(2, 2), **more):
    return xdeepsd.make_levels(ds, static, factors, **more)


def to_levels(ds=None, static=None, **more):
    return {"ds": FINE if ds is None else ds, "static": height(FINE) if static is None else static, **more}


def two_variables():
    return xr.Dataset({"ppt": FINE, "snow": FINE})


NEAR_THE_POLE = FINE.assign_coords(lat=82.5 + np.arange(8))

CASES["ladder"] = [
    case("Needed: 'crop', 'pad' or 'error'", make_levels, lambda tmp: to_levels(edges="drop"), "edges='pad'"),
    case("to drop the last cells or edges='pad'", make_levels, lambda tmp: to_levels(factors=(5,), edges="error"),
         "edges='crop'", "edges='pad'"),
    case("Cropping would leave nothing", make_levels,
         lambda tmp: to_levels(factors=(10,), edges="crop"), "edges='pad'"),
    case("Padding would take it beyond the pole", make_levels,
         lambda tmp: to_levels(NEAR_THE_POLE, height(NEAR_THE_POLE), factors=(3,)), "edges='crop'"),
    case("steps. Needed: one map", make_levels, lambda tmp: to_levels(static=height(FINE).expand_dims(time=3)),
         meaning("ds['elevation'].mean('time')", "static = static['elevation'].mean('time')"),
         meaning(".isel(time=0)", "static = static['elevation'].isel(time=0)")),
    case("Needed: lat and lon. Select one map", make_levels,
         lambda tmp: to_levels(static=height(FINE).expand_dims(month=3)),
         meaning("ds.isel", "static = static.isel(month=0)")),
    case("Type xdeepsd.regrid(static, fine) first", make_levels,
         lambda tmp: to_levels(static=height(FINE.assign_coords(lat=FINE.lat + 0.01))),
         "static = xdeepsd.regrid(static, fine)", has={"fine": FINE}),
    case("Needed: the training years", make_levels, lambda tmp: to_levels(climatology=slice("1981", "1982")),
         filled("climatology=slice('YEAR', 'YEAR')", YEAR="2001")),
    case("Needed: one. Type climatology=", make_levels,
         lambda tmp: to_levels(climatology=xr.Dataset({"a": FINE.mean("time"), "b": FINE.mean("time")})),
         meaning("climatology=ds['NAME']", "climatology = climatology['a']")),
    case("whole numbers of 2 or more", make_levels, lambda tmp: to_levels(factors=(2, 1)), "factors=(2, 2, 2)"),
    case("others with ds.isel, or type", make_levels, lambda tmp: to_levels(FINE.expand_dims(member=2)),
         meaning("Select one value of the others with ds.isel", "ds = ds.isel(member=0)"),
         meaning("ds.expand_dims('time')", "ds = ds.isel(member=0)")),
    case("others with ds.isel, or type", make_levels, lambda tmp: to_levels(FINE[0]), "ds = ds.expand_dims('time')"),
]  # fmt: skip


def from_product(ds, coarse):
    return xdeepsd.make_levels(ds, factors=(2, 2), coarse=coarse)


def product(days=4):
    """A coarse product of the days of FINE, on a grid around it."""
    da = make_coarse(days=days, nlat=5, nlon=6, spacing=0.25)
    return da.assign_coords(lat=45.25 - 0.25 * np.arange(5), lon=-120.25 + 0.25 * np.arange(6))


CASES["coarse product"] = [
    case("The coarse product has the calendar", from_product,
         lambda tmp: {"ds": FINE, "coarse": product().convert_calendar("noleap", use_cftime=True)},
         "coarse = coarse.convert_calendar('standard', use_cftime=False)"),
    case("Select one of the others with coarse.isel", from_product,
         lambda tmp: {"ds": FINE, "coarse": product().expand_dims(member=2)},
         meaning("Select one of the others with coarse.isel", "coarse = coarse.isel(member=0)"),
         meaning("coarse.expand_dims('time')", "coarse = product()")),
    case("Select one of the others with coarse.isel", from_product,
         lambda tmp: {"ds": FINE.isel(time=slice(1)), "coarse": product().isel(time=0)},
         "coarse = coarse.expand_dims('time')"),
    case("Needed: cells over all of it", from_product,
         lambda tmp: {"ds": FINE, "coarse": product().isel(lon=slice(3))},
         meaning("fine.sel(lat=slice(FIRST, LAST), lon=slice(FIRST, LAST))",
                 "ds = ds.sel(lat=slice(45, 44.7), lon=slice(-120, -119.66))")),
]  # fmt: skip


def build_levels(ds, static, path, factors=(2,), **more):
    return xdeepsd.build_levels(ds, static, factors, path, **more)


def to_build(tmp, ds=None, **more):
    return to_levels(ds, **{"path": tmp / "a.zarr", **more})


@functools.cache
def built_once():
    folder = tempfile.TemporaryDirectory()
    build_levels(**to_build(Path(folder.name)))
    return folder


def built(tmp, **more):
    """Arguments for levels that already exist."""
    shutil.copytree(built_once().name, tmp, dirs_exist_ok=True)
    return to_build(tmp, **more)


def twice(hours=0):
    """The first day again with other data, ``hours`` later."""
    times = [FINE.time.values[0], FINE.time.values[0] + np.timedelta64(hours, "h"), *FINE.time.values[1:]]
    return FINE.isel(time=[0, 1, 1, 2, 3]).assign_coords(time=times)


def of_its_own_levels(tmp):
    given = built(tmp)
    return given | {"ds": xdeepsd.open_levels(given["path"])[-1]}


def half_built(tmp):
    """Levels whose writing was interrupted, with a user's file among them."""
    given = built(tmp)
    zarr.open_group(given["path"], mode="r+").attrs["ready"] = False
    with_notes(given["path"])
    return given


def emptied(tmp):
    """Levels of which a power failure has left a mask without its bytes."""
    given = built(tmp)
    mask = given["path"] / "level_0" / "mask" / "c" / "0" / "0"
    mask.rename(tmp / "mask")
    mask.touch()
    return given


CASES["levels"] = [
    case("to build the levels anew", build_levels, emptied,
         meaning("Copy it back", "(folder / 'mask').replace(path / 'level_0/mask/c/0/0')"), another()),
    case("Needed: ascending days", build_levels, lambda tmp: to_build(tmp, FINE[::-1]), "ds = ds.sortby('time')"),
    case("for data at several times a day", build_levels, lambda tmp: to_build(tmp, twice()),
         "ds = ds.drop_duplicates('time', keep='last')", "ds = ds.resample(time='1D').mean()"),
    case("for data at several times a day", build_levels, lambda tmp: to_build(tmp, twice(hours=12)),
         "ds = ds.isel(time=~ds.indexes['time'].floor('D').duplicated(keep='last'))",
         "ds = ds.resample(time='1D').mean()"),
    case("Needed: the first and the last training year", build_levels,
         lambda tmp: to_build(tmp, climatology=slice(None, "2005")), "climatology=slice('1981', '2005')"),
    case("would overwrite", build_levels, of_its_own_levels, another()),
    case("reads a copy of it from anywhere", build_levels,
         lambda tmp: to_build(tmp, path="s3://bucket/levels.zarr"), "path='levels.zarr'",
         meaning("copy the finished store", "path = folder / 'levels.zarr'")),
    case("which build_levels did not write", build_levels, half_built,
         meaning("Move them", "(path / 'notes.txt').rename(folder / 'notes.txt')"), another()),
    case("for a new store;", build_levels, lambda tmp: built(tmp, factors=(4,)), another()),
    case("for a new store;", build_levels, lambda tmp: built(tmp, static=height(FINE) + 10), another()),
    case("Needed: the data that the store was built from", build_levels,
         lambda tmp: built(tmp, ds=fine(seed=7)), another()),
    case("Needed: days along time", build_levels, lambda tmp: to_build(tmp, FINE[0]),
         meaning("ds.expand_dims", "ds = ds.expand_dims('time')")),
    case("to build the store anew", build_levels, lambda tmp: built(tmp, ds=fine(5, start="2000-12-31")), another()),
    case("to go on without", build_levels, lambda tmp: to_build(tmp, FINE[[0, 1, 3]]),
         "allow_missing=True", meaning("Fetch them", "ds = FINE")),
    case("Fetch them and run this again", build_levels,
         lambda tmp: to_build(tmp, FINE.where(FINE.time != FINE.time[2]), chunk_mb=1e-4),
         "allow_missing=True", meaning("Fetch them and run this again", "ds = FINE")),
    case("exists, but is not a store of levels", build_levels, lambda tmp: to_build(tmp, path=begun(tmp)), another()),
    case("No store of levels at", xdeepsd.open_levels, lambda tmp: {"path": tmp / "levels.zarr"},
         meaning("xdeepsd.build_levels(fine, static, factors, path)", "build_levels(FINE, height(FINE), path)"),
         meaning("xdeepsd prepare", "command(prepare(folder))")),
]  # fmt: skip

# --- pairs, stack_training, train, checkpoints, watch -----------------------------------------------------------------


def infinite(level):
    level = level.copy(deep=True)
    level["precipitation"][2, 3, 3] = np.inf
    return level


def narrow():
    return HIGH.isel(lon=slice(0, 15))


def cropped(level):
    return xdeepsd.make_levels(level["precipitation"].isel(lon=slice(0, 14)), level["elevation"], (2,))


def with_climatology():
    return HIGH.assign(climatology=HIGH["precipitation"].mean("time"))


def paired(coarse, fine):
    make_pair(coarse, fine, WITH_CLIMATOLOGY.network(2))


def unitless(level):
    level = level.copy(deep=True)
    del level["precipitation"].attrs["units"]
    return level


def levels_of_years(first, last):
    """Levels with the climatology of the given years."""
    given = fine(6, 16, 16), height(fine(1, 16, 16)), (2,)
    return [level.load() for level in xdeepsd.make_levels(*given, climatology=slice(first, last))]


def rain_changed():
    """The same days with other rain."""
    return {"coarse": LOW.assign(precipitation=2 * LOW["precipitation"]),
            "fine": HIGH.assign(precipitation=2 * HIGH["precipitation"])}  # fmt: skip


def to_stack(*levels, **changes):
    return {"levels": list(levels) or [LOW, HIGH], "config": QUICK, "progress": False, **changes}


WITH_CLIMATOLOGY = replace(QUICK, static=("elevation", "climatology"))
CLIMATIC = levels_of_years("2001-01-01", "2001-01-06")
NO_MASK = "level['mask'] = level['precipitation'].notnull().any('time')"
CASES["pairs"] = [
    case("Needed: 'precipitation'. ", xdeepsd.train_stage, lambda tmp: to_train(fine=HIGH.rename(precipitation="ppt")),
         meaning("level.rename(NAME='precipitation')", "fine = fine.rename(ppt='precipitation')")),
    case("The levels have different days", xdeepsd.train_stage,
         lambda tmp: to_train(coarse=LOW.isel(time=slice(1, None))),
         "coarse, fine = xr.align(coarse, fine, join='inner', exclude=['lat', 'lon'])"),
    case("(lat, lon), or leave it out: TrainConfig(static=", xdeepsd.train_stage,
         lambda tmp: to_train(fine=HIGH.drop_vars("elevation")),
         meaning("Add level['elevation'] (lat, lon)", "fine['elevation'] = HIGH['elevation']"),
         meaning("leave it out: TrainConfig(static=())", "config = replace(config, static=())")),
    case("level has no 'mask'", xdeepsd.train_stage, lambda tmp: to_train(fine=HIGH.drop_vars("mask")),
         meaning(NO_MASK, NO_MASK.replace("level", "fine"))),
    case("The coarse level has no 'climatology'", paired, lambda tmp: {"coarse": LOW, "fine": with_climatology()},
         meaning("Add the block means of the fine one",
                 "coarse = coarse.assign(climatology=fine['climatology'].coarsen(lat=2, lon=2).mean().drop_vars("
                 "['lat', 'lon']))")),
    case("to crop the finest grid to a multiple of the scale", xdeepsd.train_stage,
         lambda tmp: to_train(fine=narrow()),
         meaning("ds.isel(lat=slice(...), lon=slice(...))", "coarse, fine = cropped(fine)")),
    case("The two levels do not lie on each other", xdeepsd.train_stage,
         lambda tmp: to_train(fine=HIGH.isel(lat=slice(None, None, -1))),
         meaning("level.sortby('lat')", "coarse, fine = (level.sortby('lat') for level in (coarse, fine))")),
    case("have no observed cell inside the mask", xdeepsd.train_stage,
         lambda tmp: to_train(fine=HIGH.assign(precipitation=HIGH["precipitation"] * np.nan)),
         meaning("level['precipitation'].notnull()", "fine = HIGH"),
         meaning("level['mask'] (True is land)", "fine = HIGH")),
    case("The climatology in the levels is the mean of", xdeepsd.train_stack,
         lambda tmp: to_stack(*CLIMATIC, config=replace(WITH_CLIMATOLOGY, validation=("2001-01-05",))),
         meaning("[level.drop_vars('climatology') for level in levels]",
                 "levels = [level.drop_vars('climatology') for level in levels]"),
         meaning("build levels at another path, with the climatology of the training years, build_levels(..., "
                 "climatology=slice('FIRST', 'LAST'))", "levels = levels_of_years('2001-01-01', '2001-01-04')"),
         meaning("or with none", "levels = [LOW, HIGH]"),
         meaning("give other days for validation and test", "config = replace(config, validation=None)")),
    case("has changed since this training began", xdeepsd.train_stage,
         lambda tmp: trained(tmp, steps=2) | rain_changed() | {"resume": True},
         meaning("Give the levels as they were", "coarse, fine = LOW, HIGH"),
         meaning("train anew in a new folder", "checkpoint_dir = folder / 'b'")),
    case("holds infinite values", xdeepsd.train_stage, lambda tmp: to_train(fine=infinite(HIGH)),
         meaning("ds['precipitation'].where(np.isfinite(ds['precipitation']))",
                 "fine['precipitation'] = fine['precipitation'].where(np.isfinite(fine['precipitation']))")),
]  # fmt: skip


CASES["stack_training"] = [
    case("Needed: two or more, coarsest first", xdeepsd.train_stack, lambda tmp: to_stack(HIGH),
         meaning("xdeepsd.make_levels(...)", "levels = make_levels(FINE, height(FINE), (2,))")),
    case("(lat, lon), or leave it out: TrainConfig(static=", xdeepsd.train_stack,
         lambda tmp: to_stack(LOW, HIGH.drop_vars("elevation")),
         meaning("Add level['elevation'] (lat, lon)", "levels[-1]['elevation'] = HIGH['elevation']"),
         meaning("leave it out: TrainConfig(static=())", "config = replace(config, static=())")),
    case("level has no 'mask'", xdeepsd.train_stack, lambda tmp: to_stack(LOW, HIGH.drop_vars("mask")),
         meaning(NO_MASK, NO_MASK.replace("level", "levels[-1]"))),
    case("Crop the finest grid to a multiple of the scale and make", xdeepsd.train_stack,
         lambda tmp: to_stack(LOW, narrow()),
         meaning("Crop the finest grid to a multiple of the scale and make the levels from it",
                 "levels = cropped(narrow())")),
    case("The precipitation of the finest level has no units", xdeepsd.train_stack,
         lambda tmp: to_stack(LOW, unitless(HIGH)),
         meaning("level['precipitation'].attrs['units'] = 'mm day-1'",
                 "levels[-1]['precipitation'].attrs['units'] = 'mm day-1'")),
    case("and the levels have no climatology", xdeepsd.train_stack,
         lambda tmp: to_stack(*make_levels(fine(6, 16, 16), height(fine(1, 16, 16))),
                              config=[WITH_CLIMATOLOGY, replace(WITH_CLIMATOLOGY, train=(2001,))]),
         meaning("build_levels(..., climatology=slice('YEAR', 'YEAR'))",
                 "levels = build_levels(fine(6, 16, 16), height(fine(1, 16, 16)), folder / 'a.zarr', (2, 2), "
                 "climatology=slice('2001', '2001'))")),
    case("validation days that are used", xdeepsd.train_stage,
         lambda tmp: to_train(fine=HIGH.where(HIGH.time != HIGH.time[4]).assign(HIGH.drop_vars("precipitation")),
                              config=replace(QUICK, validation=("2001-01-05",))),
         meaning("validation=[...]", "config = replace(config, validation=['2001-01-06'])"),
         meaning("level['precipitation'].notnull()", "fine = HIGH"), meaning("level['mask']", "fine = HIGH")),
]  # fmt: skip


def trained(tmp, **changes):
    """Arguments of a training run whose checkpoints exist."""
    given = to_train(checkpoint_dir=tmp / "a", config=replace(QUICK, **changes))
    xdeepsd.train_stage(**given)
    return given


def with_metrics(tmp):
    """A folder with a user's table that has the same name as ours."""
    pd.DataFrame({"mine": [1.0]}).to_parquet(tmp / "metrics.parquet")
    return tmp


def diverging(tmp):
    """A training run that stops after some checkpoints."""
    config = replace(QUICK, steps=30, learning_rate=1e9, validate_every=30)
    return to_train(config=config, checkpoint_dir=tmp / "a")


CASES["train"] = [
    case("Needed: a lower learning rate", xdeepsd.train_stage, diverging,
         meaning("TrainConfig(learning_rate=...) with a tenth of it, and give another folder",
                 "config = replace(config, learning_rate=1e8); checkpoint_dir = folder / 'b'")),
    case("torch finds no CUDA on this machine. Type device", xdeepsd.train_stage,
         lambda tmp: to_train(config=replace(QUICK, device="cuda")),
         meaning("device='cpu'", "config = replace(config, device='cpu')"), machine=without_cuda),
    case("holds checkpoints of an earlier run", xdeepsd.train_stage, trained,
         "resume=True", meaning("give another folder", "checkpoint_dir = folder / 'b'")),
    case("but no training run wrote it", xdeepsd.train_stage, lambda tmp: to_train(checkpoint_dir=with_metrics(tmp)),
         meaning("give another folder", "checkpoint_dir = folder / 'b'")),
    case("needs a folder of checkpoints", xdeepsd.train_stage, lambda tmp: to_train(resume=True),
         filled("checkpoint_dir='FOLDER'", **{"'FOLDER'": "folder / 'a'"})),
    case("was written with another configuration", xdeepsd.train_stage,
         lambda tmp: {**trained(tmp), "config": replace(QUICK, steps=2), "resume": True},
         meaning("the same configuration to resume", "config = QUICK"),
         meaning("give another folder to start anew", "checkpoint_dir = folder / 'b'")),
    case("is of a stage trained on other levels", xdeepsd.train_stage,
         lambda tmp: trained(tmp) | {"resume": True, "coarse": LOW[{"time": [0, 1]}], "fine": HIGH[{"time": [0, 1]}]},
         meaning("Give the same levels", "coarse, fine = LOW, HIGH"),
         meaning("or a new folder", "checkpoint_dir = folder / 'b'")),
]  # fmt: skip


def by_a_newer(tmp):
    with newer(checkpoints):
        return trained(tmp) | {"resume": True}


def damaged(tmp):
    given = trained(tmp) | {"resume": True}
    for path in (tmp / "a").glob("step-*.pt"):
        path.write_bytes(b"half")
    return given


CASES["checkpoints"] = [
    case("could not be written", xdeepsd.train_stage, lambda tmp: to_train(checkpoint_dir=tmp / "a"),
         meaning("Free some space", "patch.undo(); resume=True"),
         meaning("train again with resume=True", "patch.undo(); resume=True"),
         machine=lambda patch: patch.setattr(whole.os, "fsync", no_space)),
    case("was written by a newer xdeepsd", xdeepsd.train_stage, by_a_newer,
         meaning("pip install -U xdeepsd", "patch.setattr(checkpoints, 'FORMAT', checkpoints.FORMAT + 1)")),
    case("Remove them to start again", xdeepsd.train_stage, damaged,
         meaning("Remove them", "for path in checkpoint_dir.glob('step-*'): path.unlink()\ndel path")),
]  # fmt: skip


CASES["watch"] = [
    case("TensorBoard events need tensorboard", xdeepsd.train_stage,
         lambda tmp: to_train(config=replace(QUICK, tensorboard=True), checkpoint_dir=tmp / "a"),
         meaning("pip install xdeepsd[tensorboard]", "patch.undo()"), machine=without("torch.utils.tensorboard")),
]  # fmt: skip

# --- plot, sweep ------------------------------------------------------------------------------------------------------


def to_sweep(tmp, **changes):
    config = replace(QUICK, validation=("2001-01-05",), test=("2001-01-06",))
    return {"levels": [LOW, HIGH], "config": config, "alphas": [0.0], "seeds": 1, "folder": tmp / "sweep", **changes}


def swept(tmp):
    sweep.run_sweep(**to_sweep(tmp))
    return to_sweep(tmp, config=replace(to_sweep(tmp)["config"], steps=2))


class NoFigure:
    def savefig(self, *_, **__):
        pass


def without_figures(patch):
    patch.setattr(sweep, "plot_sweep", lambda *_: NoFigure())


def with_a_picture(tmp):
    (tmp / "sweep").mkdir()
    (tmp / "sweep" / "sweep.png").write_bytes(b"mine")
    return to_sweep(tmp)


CASES["plot"] = [
    case("Needed: a day that all fields have", xdeepsd.plot.compare,
         lambda tmp: {"prediction": FINE, "truth": FINE, "day": "1999-01-01"}, "day='2001-01-01'"),
    case("Needed: a map, of latitude and longitude", lambda rain: xdeepsd.plot.maps({"rain": rain}),
         lambda tmp: {"rain": FINE}, meaning(".isel(time=0)", "rain = rain.isel(time=0)")),
    case("Needed: a table of bin_errors", xdeepsd.plot.bins, lambda tmp: {"errors": pd.DataFrame({"name": ["model"]})},
         filled("errors = xdeepsd.bin_errors({'model': prediction}, truth)"),
         has={"prediction": FINE + 1, "truth": FINE}),
    case("Needed: a table of differences", xdeepsd.plot.differences, lambda tmp: {"table": pd.DataFrame({"p": []})},
         filled("table = xdeepsd.differences(evaluated)"),
         has={"evaluated": xdeepsd.evaluate(FINE + 1, FINE, beside={"other": FINE + 2})}),
    case("Needed: step and loss, a row for each validation", xdeepsd.plot.training,
         lambda tmp: {"metrics": pd.DataFrame({"name": ["model"]})},
         filled("metrics = pandas.read_parquet('checkpoints/stage_0/metrics.parquet')",
                **{"pandas.read_parquet('checkpoints/stage_0/metrics.parquet')":
                   "xdeepsd.train_stage(LOW, HIGH, QUICK).history"})),
    case("Needed: the result for all days and cells",
         lambda by: xdeepsd.plot.quantiles(xdeepsd.evaluate(FINE, FINE, by=by)), lambda tmp: {"by": "season"},
         meaning("Leave by out", "by = None")),
    case("without dates. Needed: time with dates", lambda da: xdeepsd.plot.seasonal_cycle({"truth": da}),
         lambda tmp: {"da": FINE.drop_vars("time")},
         "da = da.assign_coords(time=xr.date_range('2001-01-01', periods=da.sizes['time']))"),
]  # fmt: skip

CASES["sweep"] = [
    case("which no sweep wrote", sweep.run_sweep, with_a_picture,
         meaning("Give another folder", "folder = folder.with_name('b')"), machine=without_figures),
    case("days has an observed cell inside the mask", sweep.run_sweep,
         lambda tmp: to_sweep(tmp, levels=[LOW, HIGH.assign(
             precipitation=HIGH["precipitation"].where(HIGH.time != HIGH.time[4]))]),
         meaning("Give other validation days",
                 "config = replace(config, validation=('2001-01-04',))"), machine=without_figures),
    case("The configuration names no", sweep.run_sweep, lambda tmp: to_sweep(tmp, config=QUICK),
         meaning("Give both, such as validation=[2004, 2005] and test=[2006]",
                 "config = to_sweep(folder)['config']"), machine=without_figures),
    case("holds the runs of another configuration", sweep.run_sweep, swept,
         meaning("Give another folder", "folder = folder.with_name('b')"),
         machine=without_figures),
]  # fmt: skip

# --- prism, prism_store, fetch ----------------------------------------------------------------------------------------


def prism_file(folder, day="20110101", of_release=8, **grid):
    """The zip of a day as the service sends it: release 8, with the map of ``of_release``."""
    when = pd.Timestamp(day)
    folder.mkdir(exist_ok=True)
    path = folder / f"{day}.zip"
    path.write_bytes(day_zip("ppt", when, map_of(when, of_release), 8, **grid))
    return path


def prism_days(tmp, *days):
    return {"paths": [prism_file(tmp, day) for day in days]}


def broken_day(tmp):
    given = prism_days(tmp, "20110101", "20110102")
    given["paths"][1].write_bytes(b"<html>maintenance</html>")
    return given


def read(paths, reader):
    return reader(paths)


CASES["prism"] = [
    case("Leave it out of paths", xdeepsd.open_prism, broken_day,
         meaning("Leave it out of paths", "paths = paths[:1]"),
         meaning("fetch it again if it is broken", "prism_file(folder, '20110102')")),
    case("Open them separately", xdeepsd.open_prism,
         lambda tmp: {"paths": [prism_file(tmp), prism_file(tmp, "20110102", west=-159.0)]},
         meaning("Open them separately", "paths = paths[:1]")),
    case("is not a store of xdeepsd fetch: no variable", read,
         lambda tmp: {"paths": begun(tmp), "reader": xdeepsd.open_prism},
         meaning("Use xr.open_zarr", "reader = xr.open_zarr")),
    case("Fetch them, or go on with allow_missing=True", xdeepsd.open_prism,
         lambda tmp: prism_days(tmp, "20110101", "20110103"),
         "allow_missing=True", meaning("Fetch them", "paths.append(prism_file(folder, '20110102'))")),
    case("Leave one of them out of paths", xdeepsd.open_prism,
         lambda tmp: {"paths": [prism_file(tmp), prism_file(tmp / "b", of_release=7)]},
         meaning("Leave one of them out of paths", "paths = paths[:1]")),
]  # fmt: skip


def fetch(out, region="hi", variable="ppt", end="2011-01-02"):
    """Fetch two days or more from a service on loopback."""
    with PrismServer(region=region) as server:
        server.publish("2011-01-01", "2011-01-03")
        return xdeepsd.fetch_prism(
            out, variable, "2011-01-01", end, region=region, pace=0, timeout=30, base_url=server.url
        )


def fetched(tmp, with_own=None):
    """A store of two days, perhaps with a user's array along its time axis."""
    fetch(tmp / "a.zarr")
    if with_own is not None:
        root = zarr.open_group(tmp / "a.zarr", mode="r+", use_consolidated=False)
        root.create_array(with_own, shape=root["time"].shape, dtype="float32", dimension_names=("time",))
    return tmp / "a.zarr"


def of_an_early_state(tmp):
    """A store whose time axis begins at its first day."""
    root = zarr.open_group(fetched(tmp), mode="r+", use_consolidated=False)
    root["time"][:] += 24 * 365 * 40
    zarr.consolidate_metadata(tmp / "a.zarr")
    return tmp / "a.zarr"


def claims_to_be_us(tmp):
    zarr.open_group(fetched(tmp), mode="r+").attrs["prism_region"] = "us"
    return tmp / "a.zarr"


def fetch_while(out, busy):
    with filelock.FileLock(busy) if busy else contextlib.nullcontext():
        return fetch(out)


def without_bytes(tmp):
    """A store of which a power failure has left the latitudes without their bytes."""
    store = fetched(tmp)
    (store / "lat/c/0").rename(tmp / "lat")
    (store / "lat/c/0").touch()
    return store


CASES["prism_store"] = [
    case("Copy it back, or type another out", fetch, lambda tmp: {"out": without_bytes(tmp)},
         meaning("Copy it back", "(folder / 'lat').replace(out / 'lat/c/0')"),
         meaning("another out", "out = folder / 'b.zarr'")),
    case("a store that fetch wrote; type another out", fetch, lambda tmp: {"out": begun(tmp)},
         meaning("another out", "out = folder / 'b.zarr'")),
    case("one region and ", fetch, lambda tmp: {"out": fetched(tmp), "region": "pr"},
         meaning("another out", "out = folder / 'b.zarr'")),
    case("is on another grid", fetch, lambda tmp: {"out": claims_to_be_us(tmp), "region": "us"},
         meaning("another out", "out = folder / 'b.zarr'; region = 'hi'")),
    case("Wait for it, or use another", fetch_while, lambda tmp: {"out": tmp / "a.zarr", "busy": tmp / ".a.zarr.lock"},
         meaning("Wait for it", "busy = None"), meaning("another out", "out = folder / 'b.zarr'")),
    case("grows only at its end", fetch, lambda tmp: {"out": of_an_early_state(tmp)},
         meaning("another out", "out = folder / 'b.zarr'")),
    case("It is left alone: type another out", fetch, lambda tmp: {"out": fetched(tmp, with_own="tmax")} | {
         "variable": "tmax"}, meaning("another out", "out = folder / 'b.zarr'")),
    case("it would no longer fit", fetch, lambda tmp: {"out": fetched(tmp, with_own="mine"), "end": "2011-01-03"},
         meaning("Move it to a group of the store",
                 "(out / 'group').mkdir(); (out / 'mine').rename(out / 'group' / 'mine')"),
         meaning("or to another store", "(out / 'mine').rename(folder / 'mine')"),
         meaning("another out", "out = folder / 'b.zarr'")),
    case("Needed: a place that can be written to", fetch, lambda tmp: {"out": with_notes(tmp) / "notes.txt" / "a.zarr"},
         meaning("another out", "out = folder / 'b.zarr'")),
]  # fmt: skip

CASES["fetch"] = [
    case("Needed: both. Type start=", fetch, lambda tmp: {"out": tmp / "a.zarr", "end": None},
         meaning("start='2014-01-01', end='2015-12-31'", "end = '2011-01-02'")),
    case("Copy the store there when it is complete", fetch, lambda tmp: {"out": "s3://bucket/a.zarr"},
         meaning("Copy the store there when it is complete", "out = folder / 'a.zarr'")),
]  # fmt: skip

# --- cli, cli_training ------------------------------------------------------------------------------------------------


def fetch_command(tmp, broken):
    """A fetch of two days, one of which the service does not deliver the first time."""
    with PrismServer() as server:
        days = server.publish("2011-01-01", "2011-01-02")
        server.mischief = {days[1]: ["404"]} if broken else {}
        line = f"fetch --out {tmp}/a.zarr --start 2011-01-01 --end 2011-01-02 --region hi --pace 0"
        return command(f"{line} --base-url {server.url}")


def trained_by_command(tmp, options=""):
    line = f"train {toml(tmp)}{options}"
    command(line)
    return line


def converted(tmp):
    line = f"config from-ini {old_ini(tmp)}"
    command(line)
    return line


def downscaled(tmp, group="level_0"):
    """The command that downscales a group of a store."""
    xdeepsd.save_model(xdeepsd.StackedSRCNN(MODEL.stages, static=STATIC), tmp / "model")
    xdeepsd.to_zarr(lazy(), tmp / "a.zarr", group="level_0")
    return f"downscale {tmp}/a.zarr {tmp}/model {tmp}/out.zarr --threads 1 --group {group}"


def tiny_demo(patch):
    """A demo with a climate of a few cells, which the user stops."""
    patch.setattr(demo_run, "make_climate", functools.partial(demo_run.make_climate, shape=(32, 32)))
    patch.setattr(demo_run, "downscale", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))


def demo(line):
    """The demo: after one step the model may be worse than interpolation, which is the last thing it reports."""
    try:
        command(line)
    except RefusedError as error:
        if "The model does not beat the best baseline" not in str(error):
            raise


def a_demo_with_notes(tmp):
    """A folder made by a demo, with the user's notes in its model."""
    demo_run._make_room(tmp / "demo", Console(quiet=True))
    (tmp / "demo" / "model").mkdir()
    with_notes(tmp / "demo" / "model")
    return {"out": tmp / "demo", "console": Console(quiet=True)}


CASES["demo"] = [
    case("Give the same command again: it starts from the beginning", demo,
         lambda tmp: {"line": f"demo --out {tmp}/demo --steps 1"},
         meaning("Give the same command again", "patch.setattr(demo_run, 'downscale', xdeepsd.downscale)"),
         machine=tiny_demo),
    case("is a file. Needed: a folder.", demo_run._make_room,
         lambda tmp: {"out": with_notes(tmp) / "notes.txt", "console": Console(quiet=True)},
         meaning("--out NAME", "out = folder / 'new'")),
    case("was not made by the demo: it holds", demo_run._make_room,
         lambda tmp: {"out": with_notes(tmp), "console": Console()}, meaning("--out NAME", "out = folder / 'new'")),
    case("was not made by the demo. It is left alone. Move it", demo_run._make_room, lambda tmp: a_demo_with_notes(tmp),
         meaning("Move it", "(out / 'model' / 'notes.txt').rename(folder / 'notes.txt')"),
         meaning("--out NAME", "out = folder / 'new'")),
]  # fmt: skip


def computed(**options):
    """Something computed on a cluster."""
    with xdeepsd.cluster(**options) as client:
        return client.submit(sum, [1, 2]).result()


CASES["clusters"] = [
    case("No image is given", check_image, lambda tmp: {"image": None},
         meaning("image='REGISTRY/xdeepsd:TAG'", "image = 'ghcr.io/me/xdeepsd:1.0'"),
         machine=lambda patch: patch.delenv("JUPYTER_IMAGE_SPEC", raising=False)),
    case("has no tag, so", check_image, lambda tmp: {"image": "me/xdeepsd"},
         meaning("image='me/xdeepsd:TAG'", "image = 'me/xdeepsd:1.0'")),
    case("on this machine needs distributed", computed, lambda tmp: {"kind": "local", "workers": 1},
         meaning("pip install distributed", "patch.undo()"),
         machine=lambda patch: patch.setattr(clusters, "find_spec", lambda name: None)),
]  # fmt: skip

CASES["terminal"] = [
    case(" is a file. Type another path.", check_writable, lambda tmp: {"path": with_notes(tmp) / "notes.txt" / "b"},
         another()),
    case("no permission to write to", check_writable, lambda tmp: {"path": tmp / "a.zarr"},
         meaning("another path", "patch.undo(); path = folder / 'b.zarr'"),
         machine=lambda patch: patch.setattr(os, "access", lambda *_: False)),
]  # fmt: skip


def grib_file(tmp):
    rain().to_netcdf(tmp / "rain.grib", engine="h5netcdf")
    return {"path": str(tmp / "rain.grib")}


def grib_is_netcdf(patch):
    """Until the advice is followed, a file of GRIB on a machine without cfgrib; afterwards, one that can be read."""
    patch.setattr(inputs, "_is_grib", lambda path: True)
    patch.setattr(inputs, "find_spec", lambda name: None)


CASES["cli"] = [
    case("has no group", command, lambda tmp: {"line": downscaled(tmp, "level_9")},
         meaning("--group NAME", "line = line.replace('level_9', 'level_0')")),
    case("needs a package that is not installed", lambda path: open_file(path), lambda tmp: {"path": "memory://b.zarr"},
         meaning("pip install s3fs for s3://, gcsfs for gs://, adlfs for az://",
                 "patch.undo(); xdeepsd.to_zarr(lazy(), path)"), machine=without_filesystems),
    case("is a GRIB file, which needs cfgrib", lambda path: open_file(path), grib_file,
         meaning("pip install 'xdeepsd[grib]'", "patch.undo()"), machine=grib_is_netcdf),
    case("Needed: days, rows and columns", command, lambda tmp: {"line": f"{downscaled(tmp)} --chunks 30,100"},
         meaning("--chunks 30,100,100", "line += ',100'")),
    case("Needed: whole numbers. Type --factors 2,2,2", command, lambda tmp: {"line": prepare(tmp, "two")},
         meaning("--factors 2,2,2", "line += ' --factors 2,2,2'")),
    case("Run the same command again to fetch what is missing", fetch_command, lambda tmp: {"tmp": tmp, "broken": True},
         meaning("Run the same command again", "broken = False")),
]  # fmt: skip

CASES["cli_training"] = [
    case("to continue training and replace it", command, lambda tmp: {"line": trained_by_command(tmp)},
         meaning("--resume", "line += ' --resume'"),
         meaning("remove it and the checkpoints in",
                 "(folder / 'model').rename(folder / 'old'); (folder / 'checkpoints').rename(folder / 'older')")),
    case("is a single model. Type --seeds N with another model", command,
         lambda tmp: {"line": f"{trained_by_command(tmp)} --seeds 2 --resume"},
         meaning("--seeds N with another model under [paths]",
                 "toml(folder, '[paths]\\nmodel = \"other\"\\ncheckpoints = \"others\"\\n')")),
    case("holds the models of an ensemble. Type --seeds N", command,
         lambda tmp: {"line": f"{trained_by_command(tmp, ' --seeds 2').split(' --')[0]} --resume"},
         meaning("--seeds N to go on with it", "line += ' --seeds 2'")),
    case("exists. Remove it, or type --out NAME", command, lambda tmp: {"line": converted(tmp)},
         meaning("--out NAME", "line += f' --out {folder}/b.toml'"),
         meaning("Remove it", "(folder / 'config.toml').unlink()")),
]  # fmt: skip

# --- report -----------------------------------------------------------------------------------------------------------

DAYS = {"validation": ["2001-01-05"], "test": ["2001-01-06"]}


def train_it(folder, **days):
    with contextlib.suppress(RefusedError):  # it does not beat interpolation after one step
        command(f"train {toml(folder, **days)} --resume")


@functools.cache
def a_run(named=("validation", "test")):
    folder = tempfile.TemporaryDirectory()
    train_it(Path(folder.name), **{name: DAYS[name] for name in named})
    return folder


def reported(tmp, what="run", out="r.html", named=("validation", "test")):
    """The command that reports on a run in ``tmp / "run"``."""
    shutil.copytree(a_run(named).name, tmp / "run")
    return {"line": f"report {tmp / what} --out {tmp / out}"}


def of_other_days(tmp):
    reported(tmp)
    shutil.rmtree(tmp / "run" / "levels.zarr")
    (tmp / "run" / "fine.nc").unlink()
    command(prepare(tmp / "run", days=9))
    return {"line": f"report {tmp / 'run'} --out {tmp / 'r.html'}"}


def unfinished(tmp):
    line = reported(tmp)
    shutil.rmtree(tmp / "run" / "model")
    return line


def without_test(tmp):
    return reported(tmp, named=())


def unobserved(levels):
    model = xdeepsd.load_model(f"{a_run().name}/model")
    report.make_report(levels, [model], [TrainConfig(**model.training["config"][0])])


def with_a_page(tmp):
    (tmp / "r.html").write_text("mine")
    return reported(tmp)


def no_page(patch):
    """Judging a model takes seconds, and no advice here is about what is found."""
    patch.setattr(report, "make_report", lambda *_, **__: "<html>")


CASES["report"] = [
    case("Needed: the folder with the TOML file of a training", command, lambda tmp: reported(tmp, "rum"),
         meaning("xdeepsd report FOLDER", "line = line.replace('/rum', '/run')"),
         machine=no_page),
    case("Needed: the TOML file that xdeepsd train was given", command, lambda tmp: reported(tmp, "run/model"),
         meaning("xdeepsd report FILE.toml", "line = line.replace('run/model', 'run/config.toml')"),
         machine=no_page),
    case("Needed: an HTML file", command, lambda tmp: reported(tmp, out="run"),
         meaning("--out report.html", "line += '/report.html'"),
         machine=no_page),
    case("and no report wrote it", command, with_a_page,
         meaning("--out OTHER.html", "line = line.replace('r.html', 'other.html')"),
         machine=no_page),
    case("or a single stage was trained", command, unfinished,
         meaning("xdeepsd train CONFIG.toml --resume", "train_it(folder / 'run', **DAYS)"),
         machine=no_page),
    case("neither test nor validation days", command, without_test,
         meaning("test=[...] in the configuration and train again",
                 "shutil.rmtree(folder / 'run' / 'checkpoints'); train_it(folder / 'run', test=DAYS['test'])"),
         machine=no_page),
    case("or days that it has seen would be judged", command, of_other_days,
         meaning("Give the levels that it was trained on",
                 "shutil.rmtree(folder / 'run' / 'levels.zarr'); shutil.copytree(a_run().name + '/levels.zarr', "
                 "folder / 'run' / 'levels.zarr')"),
         meaning("train again", "shutil.rmtree(folder / 'run' / 'checkpoints'); train_it(folder / 'run', **DAYS)"),
         machine=no_page),
    case("Give the levels other days", unobserved,
         lambda tmp: {"levels": [level.assign(precipitation=level["precipitation"].where(level.time != level.time[-1]))
                                 for level in xdeepsd.open_levels(f"{prepared_once().name}/levels.zarr")]},
         meaning("Give the levels other days",
                 "levels = xdeepsd.open_levels(f'{prepared_once().name}/levels.zarr')")),
]  # fmt: skip


def test_what_from_ini_says_leads_on(tmp_path):
    """ "Look through it, then type xdeepsd train config.toml" """
    said = command(f"config from-ini {old_ini(tmp_path)}")
    command(prepare(tmp_path, days=9, start="2001-10-28"))  # validation begins in November
    line = re.search(r"then type xdeepsd (train .*)", said)[1]
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace("patch = 8", "patch = 8\nstride = 4\nworkers = 1"))
    with contextlib.suppress(RefusedError):  # it does not beat interpolation after one step
        command(line)
    assert (tmp_path / "deepsd" / "model.json").exists()


# --- the tests --------------------------------------------------------------------------------------------------------

VERBS = (
    "add|check|conda install|convert|copy|correct|crop|drop them|fetch|free|give|leave|look|open them|remove|run|"
    "select|take|use|wait"
)
# "Type ..." anywhere in a message; other imperatives at the start of a sentence or after "or"
ADVICE = re.compile(rf"\b[Tt]ype (?=\S)|(?:^|[.:;?] |\bor )(?=(?:{VERBS}|go on with)\b)", re.IGNORECASE)
# Code in the rest of the advice: an alternative that no case follows
CODE = re.compile(r"[\w\]]\(|\w=[^\s=]|\w\['|\w\.\w+\(")


def messages():
    """``(place, text)`` of every literal text with advice; parts to be filled in are ``{}``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        left_out = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        left_out |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        left_out |= {id(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg == "help"}
        for node in nodes:
            if id(node) in left_out:
                continue
            text = None
            if isinstance(node, ast.JoinedStr):
                text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            if text is not None and " " in text.strip() and ADVICE.search(text):
                yield f"{path.name}:{node.lineno}", text


def flags():
    """Every option of every command."""
    groups, found = [typer.main.get_command(app)], set()
    while groups:
        one = groups.pop()
        groups += getattr(one, "commands", {}).values()
        found |= {option for parameter in one.params for option in parameter.opts}
    return found


def parameters():
    for module, cases in CASES.items():
        counts: dict[str, int] = {}
        for one in cases:
            for typed in one.typed:
                name = f"{module}: {one.message} -> {typed.said}"
                counts[name] = counts.get(name, 0) + 1
                again = f" ({counts[name]})" if counts[name] > 1 else ""
                yield pytest.param(one, typed, id=name + again)


def test_every_advice_has_a_case():
    known = [*(one.message for cases in CASES.values() for one in cases), *ELSEWHERE]
    without_case = [f"{place}: {text}" for place, text in messages() if not any(part in text for part in known)]
    assert not without_case, "\n".join(["No case in tests/test_advice.py:", *without_case])


def test_every_case_has_an_advice():
    texts = [text for _, text in messages()]
    known = [*(one.message for cases in CASES.values() for one in cases), *ELSEWHERE]
    assert not [part for part in known if not any(part in text for text in texts)]


def test_every_flag_is_there():
    named = {flag for _, text in messages() for flag in re.findall(r"--[a-z][a-z-]*", text)}
    assert named
    assert not named - flags()


def assert_holds_something(result):
    if isinstance(result, xr.Dataset):
        assert any(bool(np.isfinite(v).any()) for v in result.data_vars.values() if v.dtype.kind == "f")
    elif isinstance(result, xr.DataArray):
        assert bool(np.isfinite(result).any())
    elif isinstance(result, np.ndarray):
        assert result.size
    elif isinstance(result, list) and result and isinstance(result[0], xr.Dataset):
        for level in result:
            assert_holds_something(level)


@pytest.fixture
def patch(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):  # threads take longer here
        yield patch
    zarr.config.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("one", "typed"), list(parameters()))
def test_advice_leads_on(one, typed, tmp_path, patch):
    arguments = one.given(tmp_path)
    one.machine(patch)
    with pytest.raises(Exception, match=re.escape(one.message)) as error:
        one.call(**arguments)
    said = str(error.value)
    names = globals() | dict(one.has) | {"folder": tmp_path, "patch": patch, "said": said}

    assert typed.said in said
    rest = said[ADVICE.search(said).start() :]
    for other in one.typed:
        rest = rest.replace(other.said, "")
    assert not CODE.search(rest), f"an advice that no case follows: {rest}"
    exec(typed.code, names, arguments)
    assert_holds_something(one.call(**arguments))
