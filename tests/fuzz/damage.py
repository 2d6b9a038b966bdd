"""Damaged files: either the original contents are read, or an error message names the file."""

import atexit
import functools
import re
import resource
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from builders import make_coarse, make_correction, make_stack, make_static
from prism_server import PrismServer, day_zip, map_of, tif
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app, ini, toml
from xdeepsd.grids import regrid_weights as weights
from xdeepsd.training import checkpoints

from . import Wrong, kills, pick

TOLD = (ValueError, TypeError, OSError)  # what commands report in a sentence
DAYS = pd.date_range("2011-01-01", periods=4)
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """``make`` writes files into a folder; ``read`` returns their contents by name.

    ``sure``: damage that a reader can detect. Other damage may go unnoticed, since nothing checks the bytes: the values
    may then be anything, but there must be no traceback.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Values]
    sure: frozenset[str]


ALL = frozenset(("flip", "zero", "cut", "empty", "delete", "swap", "grow"))
LENGTH = frozenset(("cut", "empty", "delete"))


# --- files and how they are read --------------------------------------------------------------------------------------


def make_model(folder):
    coarse = make_coarse()
    model = make_stack(2, channels=(4,), kernels=(3, 3), static=("elevation", "climatology"), residual=True)
    static = make_static(coarse, model.scale, names=("elevation", "climatology"))
    xdeepsd.save_model(xdeepsd.StackedSRCNN(model.stages, static=static, mask=static.elevation > 500), folder / "model")


def read_model(folder):
    model = xdeepsd.load_model(folder / "model")
    return {"fingerprint": np.array(model.fingerprint()), "mask": model.mask, **dataset_values(model.static)}


def dataset_values(ds):
    return {str(name): v.values for name, v in ds.variables.items()} | {
        f"{name} units": np.array(str(v.attrs.get("units"))) for name, v in ds.variables.items()
    }


def make_levels(folder):
    fine = make_coarse(days=6, nlat=8, nlon=12).chunk(time=2)
    elevation = make_static(fine, 1)
    xdeepsd.build_levels(fine, elevation, (2, 2), folder / "levels.zarr", chunk_mb=0.001)


def read_levels(folder):
    levels = xdeepsd.open_levels(folder / "levels.zarr")
    return {f"{k} {n}": v for k, level in enumerate(levels) for n, v in dataset_values(level.load()).items()}


def make_checkpoints(folder):
    generator = torch.Generator().manual_seed(0)
    for step in (10, 20):
        net = {"layer.weight": torch.rand(8, 8, generator=generator), "layer.bias": torch.rand(8, generator=generator)}
        state = {"net": net, "losses": [0.5, 0.25], "sampler": {"seed": 1, "position": step}, "config": {"patch": 8}}
        checkpoints.write_checkpoint(folder / "stage_0", step, state)


def read_checkpoints(folder):
    state = checkpoints.read_checkpoint(folder / "stage_0")
    if state is None:
        return {}
    # The second newest may be used, so each step has its own name.
    flat, _ = torch.utils._pytree.tree_flatten(state)
    return {f"{state['step']} {i}": np.asarray(value) for i, value in enumerate(flat)}


def make_weights(folder):
    coarse = make_coarse()
    xdeepsd.regrid_weights(coarse, make_static(coarse, 3)).save(folder / "weights.npz")


def read_weights(folder):
    loaded = weights.load(folder / "weights.npz")
    found = {n: np.asarray(v) for g in (loaded.source, loaded.target) for n, v in vars(g).items() if v is not None}
    return found | {"method": np.array(loaded.method), "lat": loaded.lat.toarray(), "lon": loaded.lon.toarray()}


def make_saved_correction(folder):
    make_correction().save(folder / "correction.nc")


def read_correction(folder):
    loaded = xdeepsd.load_correction(folder / "correction.nc")
    found = {f"{name} {v.dims}": v.values for name, v in loaded.data.variables.items()}
    return found | {"options": np.array(repr(loaded.options))}


TOML = """preset = "paper"
[paths]
levels = "levels.zarr"
[data]
years = [1981, 2006]
factors = [2, 2]
[training]
channels = [8, 4]
learning_rate = 1e-3
validation = ["2004", 2005]
[[stages]]
[[stages]]
kernels = [5, 3, 5]
"""
INI = """[Paths]
prism: /data/prism
elevation: /data/elevation.bil
scratch: scratch
[DataOptions]
variable: ppt
min_year: 1981
max_year: 2015
max_train_year: 2005
[SRCNN]
layer_sizes: 64,32,1
kernel_sizes: 9,3,5
learning_rate: 0.001
training_iters: 50000
batch_size: 100
[Model-1]
model_name: ppt-016-032
[DeepSD]
model_name: ppt-016-032
low_resolution: 32
high_resolution: 16
upscale_factor: 2
"""


def make_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def read_toml(folder):
    return {"text": np.array(repr(toml.load_config(folder / "train.toml")))}


def read_ini(folder):
    return {"text": np.array(repr(ini.convert_ini(folder / "config.ini")))}


def netcdf(values):
    lat, lon = 22.0 - np.arange(values.shape[0]) / 24, -160 + np.arange(values.shape[1]) / 24
    ds = xr.Dataset({"Band1": (("lat", "lon"), values[::-1])}, {"lat": lat[::-1], "lon": lon})
    ds["Band1"].encoding["_FillValue"] = np.float32(-9999)
    return bytes(ds.to_netcdf(format="NETCDF3_CLASSIC"))


def rasters(day):
    """The members of a day's file in each format: {format: {name: content}}."""
    values = map_of(day)
    filled = np.where(np.isnan(values), np.float32(-9999), values).astype("<f4")
    rows, columns = values.shape
    header = {"BYTEORDER": "I", "LAYOUT": "BIL", "NROWS": rows, "NCOLS": columns, "NBANDS": 1, "NBITS": 32,
              "BANDROWBYTES": 4 * columns, "TOTALROWBYTES": 4 * columns, "PIXELTYPE": "FLOAT", "ULXMAP": -160.0,
              "ULYMAP": 22.0, "XDIM": 1 / 24, "YDIM": 1 / 24, "NODATA": -9999}  # fmt: skip
    corner = {"ncols": columns, "nrows": rows, "xllcorner": -160 - 1 / 48, "yllcorner": 22 + 1 / 48 - rows / 24,
              "cellsize": 1 / 24, "NODATA_value": -9999}  # fmt: skip
    old, new = f"PRISM_ppt_stable_4kmD2_{day:%Y%m%d}", f"prism_ppt_us_25m_{day:%Y%m%d}"
    text = "".join(f"{k} {v}\n" for k, v in corner.items()) + "\n".join(" ".join(map(str, r)) for r in filled) + "\n"
    return {
        "bil": {f"{old}_bil.bil": filled.tobytes(), f"{old}_bil.info.txt": b"PRISM_DATASET_VERSION: D2\n",
                f"{old}_bil.hdr": "".join(f"{k:<15}{v}\n" for k, v in header.items()).encode()},
        "asc": {f"{old}_asc.asc": text.encode()},
        "tif": {f"{new}.tif": tif(values, {"PRISM_DATASET_RELEASE_NUMBER": "8"})},
        "nc": {f"{new}.nc": netcdf(values)},
    }  # fmt: skip


def make_prism(zipped):
    def make(folder):
        for i, day in enumerate(DAYS):
            form, members = list(rasters(day).items())[i]
            if not zipped:
                for name, content in members.items():
                    (folder / name).write_bytes(content)
                continue
            with zipfile.ZipFile(folder / f"day{i}_{form}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)

    return make


def read_prism(folder):
    """Days by name: a missing file means one day less."""
    ds = xdeepsd.open_prism(folder, allow_missing=True).load()
    return {f"{t:%Y%m%d}": v for t, v in zip(pd.DatetimeIndex(ds.time), ds.ppt.values, strict=True)} | {
        n: ds[n].values for n in ("lat", "lon")
    }


def make_served(folder):
    for day in DAYS:
        (folder / f"{day:%Y%m%d}.zip").write_bytes(day_zip("ppt", day, map_of(day), 8))


def read_served(folder):
    """What `fetch_prism` makes of zips that the service sends: complete days, and a cause for each other day."""
    files = {f"ppt/{path.stem}": path.read_bytes() for path in folder.glob("*.zip")}
    with PrismServer(files=files) as server:
        server.publish(DAYS[0], DAYS[-1])
        report = xdeepsd.fetch_prism(folder / "store", "ppt", DAYS[0], DAYS[-1], region="hi", pace=0,
                                     base_url=server.url)  # fmt: skip
    there = {*report.fetched, *report.failed}
    if there != set(DAYS) and not report.stopped:
        raise Wrong(f"of {len(DAYS)} days {len(there)} are in the report: {report}")
    if report.failed and not all(report.failed.values()):
        raise Wrong(f"no cause: {report.failed}")
    if not report.fetched:
        return {}
    ds = xdeepsd.open_prism(folder / "store", allow_missing=True).load()
    return {f"{t:%Y%m%d}": v for t, v in zip(pd.DatetimeIndex(ds.time), ds.ppt.values, strict=True)}


def make_store(folder):
    make_served(folder)
    read_served(folder)
    for path in folder.glob("*.zip"):
        path.unlink()


def read_store(folder):
    ds = xdeepsd.open_prism(folder / "store", allow_missing=True)
    values = {f"{t:%Y%m%d}": v for t, v in zip(pd.DatetimeIndex(ds.time), ds.ppt.values, strict=True)}
    return values | {n: ds[n].values for n in ("lat", "lon")}


def make_input(name):
    def make(folder):
        coarse = make_coarse(days=4, nlat=4, nlon=6)
        model = make_stack(1, channels=(3,), kernels=(3, 3))
        static = make_static(coarse, model.scale)
        xdeepsd.save_model(xdeepsd.StackedSRCNN(model.stages, static=static), folder.parent / "model")
        ds = coarse.to_dataset()
        if name.endswith(".nc"):
            ds.to_netcdf(
                folder / name, engine="h5netcdf", encoding={"pr": {"fletcher32": True, "chunksizes": (1, 4, 6)}}
            )
        else:
            xdeepsd.to_zarr(ds.chunk(time=2), folder / name)

    return make


def read_input(name):
    def read(folder):
        out = folder / "out.zarr"
        arguments = ["downscale", str(folder / name), str(models()), str(out), "--threads", "1"]
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            raise ValueError(result.output)
        return dataset_values(xr.open_zarr(out))

    return read


@functools.cache
def models():
    """A model to downscale the damaged input with."""
    return pristine("zarr input").parent / "model"


SUBJECTS = {
    "model": Subject(make_model, read_model, ALL),
    "levels": Subject(make_levels, read_levels, frozenset()),
    "checkpoints": Subject(make_checkpoints, read_checkpoints, ALL),
    "weights": Subject(make_weights, read_weights, ALL),
    "correction": Subject(make_saved_correction, read_correction, ALL),
    "toml": Subject(make_text("train.toml", TOML), read_toml, frozenset()),
    "ini": Subject(make_text("config.ini", INI), read_ini, frozenset()),
    "prism zips": Subject(make_prism(True), read_prism, ALL),
    "prism files": Subject(make_prism(False), read_prism, LENGTH),
    "served zips": Subject(make_served, read_served, ALL),
    "prism store": Subject(make_store, read_store, frozenset()),
    "zarr input": Subject(make_input("coarse.zarr"), read_input("coarse.zarr"), frozenset()),
    "netcdf input": Subject(make_input("coarse.nc"), read_input("coarse.nc"), frozenset()),
}


@functools.cache
def pristine(name):
    """The folder with the intact files of a subject, made once per process."""
    root = Path(tempfile.mkdtemp(prefix="xdeepsd-fuzz-whole-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    (root / "whole").mkdir()
    SUBJECTS[name].make(root / "whole")
    return root / "whole"


@functools.cache
def values(name):
    """Contents of the intact files of a subject, read from a copy."""
    copy = pristine(name).parent / "copy"
    shutil.copytree(pristine(name), copy)
    found = SUBJECTS[name].read(copy)
    if name == "checkpoints":  # if the newest is damaged, the one before it is used
        (copy / "stage_0" / "step-000000020.pt").unlink()
        found |= SUBJECTS[name].read(copy)
    return found


# --- damage -----------------------------------------------------------------------------------------------------------


def harm(rng, files):
    """Damage one or two of the files; return what was done to which."""
    how, path = pick(rng, sorted(ALL)), pick(rng, files)
    content = bytearray(path.read_bytes())
    hurt = [path]
    if how == "delete":
        path.unlink()
    elif how == "swap":
        other = pick(rng, files)
        hurt.append(other)
        content, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(content)
    else:
        n = len(content)
        start, stop = np.sort(rng.integers(0, n + 1, 2)) if n else (0, 0)
        if how == "flip":
            for i in rng.integers(0, n, rng.integers(1, 9)) if n else ():
                content[i] ^= 1 << rng.integers(8)
        elif how == "zero":
            content[start:stop] = bytes(stop - start)
        elif how == "cut":
            content = content[:start]
        elif how == "empty":
            content = b""
        elif how == "grow":
            content += rng.bytes(rng.integers(1, 100))
        path.write_bytes(content)
    return how, hurt


def case(seed, folder):
    """One kind of file, damaged: it reads as the same values, or is refused by name."""
    rng = np.random.default_rng(seed)
    name = pick(rng, sorted(SUBJECTS))
    place = folder / "place"
    shutil.copytree(pristine(name), place)
    how, hurt = harm(rng, sorted(p for p in place.rglob("*") if p.is_file()))
    if name != "netcdf input":
        look(name, place, how, hurt, values(name))
        return
    # HDF5 crashes on some damaged files, or searches endlessly for the end of a list, whatever opens them; or it spoils
    # the memory of its process, which crashes later. So this happens elsewhere, and its crashes are not ours.
    if kills.Nursery.run(limited, name, place, how, hurt, values(name)) > 0:
        text = Path(f"{place}.error").read_text()
        raise Wrong(text) if f"{Wrong.__module__}.{Wrong.__name__}: " in text else RuntimeError(text)


def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    look(*arguments)


def look(name, place, how, hurt, before):
    """Read a damaged subject and judge what comes of it; ``before`` is what it held."""
    subject = SUBJECTS[name]
    story = f"{name}: {how} {', '.join(str(p.relative_to(place)) for p in hurt)}"
    try:
        after = subject.read(place)
    except TOLD as error:
        text = str(error)
        if "cannot reshape array" in text or "When changing to a larger dtype" in text:
            return  # as below: Zarr's own error about a chunk of another array, when a lazy value is computed
        # Errors about values name the coordinate or variable of the input, not the file.
        if str(place) not in text and "of the input" not in text and not any(path.name in text for path in hurt):
            raise Wrong(f"{story}: {type(error).__name__} names no file: {text[:300]}") from error
        return
    except Exception as error:
        if isinstance(error, RuntimeError | SystemError) and re.search(
            "decompress|zstd|blosc|PyBytes", str(error), re.IGNORECASE
        ):
            return  # a lazy value that the user computes: the error of the codec comes through unchanged
        error.add_note(story)
        raise
    if how not in subject.sure:
        return
    for key, value in after.items():
        if key not in before or not np.array_equal(value, before[key], equal_nan=np.asarray(value).dtype.kind == "f"):
            raise Wrong(f"{story}: {key} was {before.get(key)}, is {value}")
    lost = set(before) - set(after)
    if lost and not (how == "delete" or name in ("checkpoints", "served zips")):
        raise Wrong(f"{story}: {sorted(lost)} are not read any more")
