"""Operations that write, replace or delete: no user's file beside or inside the target is lost or changed.

An operation sets up what exists beforehand, yields the paths it will write to, and then runs; in between, random
files, folders, links and Zarr stores of the user are scattered over the target. It may refuse with a message or do its
work.
The only exception: `to_zarr` with ``overwrite=True`` replaces a Zarr group with all Zarr in it, and nothing else.
"""

import contextlib
import functools

import dask.array
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from builders import make_coarse, make_correction, make_stack, make_static
from prism_server import PrismServer
from rich.console import Console
from typer.testing import CliRunner

import xdeepsd
from xdeepsd.cli import app, demo_run
from xdeepsd.stores.layout import BEGUN, STATUS

from . import Lost, Wrong, chance, listing, pick
from .damage import INI, TOLD

DAYS = pd.date_range("2011-01-01", periods=5)
# Names that a person or another program may choose; some are the same as our own files.
NAMES = (
    "notes.txt", "thesis/chapter.tex", ".hidden", "data.csv", "run.partial", "model.json", "metrics.parquet",
    "sweep.png",
    "zarr.json.bak", "old/model/model.safetensors", "c/0/0/0", "pr/readme", "level_0/map.png", "train.toml", "a.toml",
    "step-notes.pt", "lat.txt", ".table.parquet.bak", "store.lock", "weights", "checkpoints/notes.txt",
)  # fmt: skip


def command(*arguments):
    """Run a command; raise ValueError with its output if it fails."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code:
        raise ValueError(result.output)


def small(days=4):
    return make_coarse(days=days, nlat=8, nlon=8)


def lazy(name="pr"):
    return xr.Dataset({name: (("time", "lat"), dask.array.arange(12.0, chunks=4).reshape(6, 2))}, attrs={"title": name})


@functools.cache
def model(seed=0):
    net = make_stack(1, seed, channels=(3,), kernels=(3, 1))
    return xdeepsd.StackedSRCNN(net.stages, static=make_static(small(), net.scale))


# --- operations -------------------------------------------------------------------------------------------------------


def to_zarr(rng, place):
    path, group, options = (
        place / "a.zarr",
        pick(rng, [None, None, "g", "g/h"]),
        {"zarr_format": int(rng.integers(2, 4))},
    )
    options["overwrite"] = chance(rng, 0.6)
    before = pick(rng, ["nothing", "ours", "killed", "theirs"])
    if before in ("ours", "killed"):
        xdeepsd.to_zarr(lazy(pick(rng, ["pr", "old"])), path, group=group, zarr_format=options["zarr_format"])
        if before == "killed":  # while it laid out the arrays
            half = {STATUS: BEGUN, "xdeepsd_half": ["pr", "old"]}
            zarr.open_group(path, path=group or "", mode="r+").attrs.update(half)
    elif before == "theirs" and options["overwrite"]:
        xr.Dataset({"x": ("n", [1, 2])}).to_zarr(path, group=group)
    yield [path, path / group if group else path], options["overwrite"] and (path / (group or ""))
    xdeepsd.to_zarr(lazy(), path, group=group, **options)


def onto_its_input(rng, place):
    """`to_zarr` where the output is or contains the input, however that was opened."""
    paths = [place / "one.zarr", place / "two.zarr"]
    for i, path in enumerate(paths):
        ds = xr.Dataset({"pr": (("time", "lat"), np.full((4, 2), i + 1.0))}, {"time": np.arange(4) + 4 * i})
        ds.chunk(time=2).to_zarr(path, group=pick(rng, [None, "g"]) if False else None)
    user = listing(place)
    ds = pick(rng, [
        lambda: xr.open_zarr(paths[0]), lambda: xr.open_mfdataset(paths, engine="zarr"),
        lambda: xr.open_dataset(paths[0], engine="zarr", chunks={}),
    ])()  # fmt: skip
    ds = pick(rng, [lambda: ds, lambda: ds.map(lambda da: da * 2), lambda: ds["pr"], lambda: ds["pr"].to_dataset(),
                    lambda: xr.Dataset({"pr": ds["pr"].variable})])()  # fmt: skip
    yield [], False
    target = pick(rng, [paths[0], str(paths[0]), place / "link.zarr"])
    if target == place / "link.zarr":
        target.symlink_to(paths[0])
    with contextlib.suppress(*TOLD):
        xdeepsd.to_zarr(ds, target, overwrite=True)
    after = listing(place)
    gone = sorted(name for name in user if after.get(name) != user[name])
    if gone:
        raise Lost(f"the input: {gone[:5]}")


def save_model(rng, place):
    path, overwrite = place / "model", chance(rng, 0.7)
    if chance(rng, 0.5):
        xdeepsd.save_model(model(0), path)
    yield [path], False
    xdeepsd.save_model(model(1), path, overwrite=overwrite)
    if xdeepsd.load_model(path).fingerprint() != model(1).fingerprint():
        raise Wrong("another model is there than was saved")


def downscale(rng, place):
    path, out = place / "coarse.zarr", place / "fine.zarr"
    xdeepsd.save_model(model(), place / "model")
    small().to_dataset().to_zarr(path)
    options = (["--overwrite"] if chance(rng, 0.5) else []) + (["--out-group", "g"] if chance(rng, 0.3) else [])
    group = "g" if "g" in options else ""
    if chance(rng, 0.5):
        xdeepsd.to_zarr(lazy(), out, group=group or None)
    yield [out, out / group], "--overwrite" in options and out / group
    target = pick(rng, [out, out, out, path])  # the last one is itself the input
    if target == path:
        group = "g"  # nothing of the input may be lost
    command("downscale", path, place / "model", target, "--threads", 1, *options)


def build_levels(rng, place):
    path = place / "levels.zarr"
    if chance(rng, 0.6):
        xdeepsd.build_levels(small(), make_static(small(), 1), (2,), path)
        if chance(rng, 0.4):  # killed while it was made
            zarr.open_group(path, mode="r+").attrs["ready"] = False
    yield [path, path / "level_0", path / "level_1" / "precipitation"], False
    fine = small(pick(rng, [4, 6]))
    if chance(rng, 0.5):
        xdeepsd.build_levels(fine, make_static(fine, 1), (2,), path)
    else:
        fine.to_dataset().to_netcdf(place.parent / "fine.nc", engine="h5netcdf")
        make_static(fine, 1).to_netcdf(place.parent / "static.nc", engine="h5netcdf")
        command(
            "prepare",
            place.parent / "fine.nc",
            "--elevation",
            place.parent / "static.nc",
            "--factors",
            2,
            "--out",
            path,
        )


def fetch(rng, place):
    path = place / "prism.zarr"
    with PrismServer() as server:
        server.publish(DAYS[0], DAYS[-1])
        options = {"region": "hi", "pace": 0, "base_url": server.url}
        if chance(rng, 0.7):
            xdeepsd.fetch_prism(path, "ppt", DAYS[1], DAYS[2], **options)
        yield [path], False
        first, last = int(rng.integers(2)), int(rng.integers(2, 5))
        if chance(rng, 0.5):
            xdeepsd.fetch_prism(path, pick(rng, ["ppt", "tmax"]), DAYS[first], DAYS[last], **options)
        else:
            command("fetch", "--out", path, "--start", DAYS[first].date(), "--end", DAYS[last].date(), "--region", "hi",
                    "--pace", 0, "--base-url", server.url)  # fmt: skip


def training(rng, place):
    """`train`, `train --resume` and `sweep`, in the folders that the TOML file names."""
    path = place / "train.toml"
    fine = make_coarse(days=10, nlat=12, nlon=16)
    xdeepsd.build_levels(fine, make_static(fine, 1), (2,), place / "levels.zarr")
    path.write_text(
        "[training]\nchannels = [2]\nkernels = [3, 1]\npatch = 8\nstride = 4\nbatch = 2\nsteps = 4\nthreads = 1\n"
        'static = ["elevation"]\nworkers = 1\nmin_land = 0.1\ncheckpoint_every = 2\nvalidate_every = 2\ntest = '
        '["2001-01-09/2001-01-10"]\nvalidation = ["2001-01-07/2001-01-08"]\n'
    )
    sweep = chance(rng, 0.3)
    how = ["sweep", path, "--alpha", "0", "--seeds", 1, "--workers", 0] if sweep else ["train", path]
    if chance(rng, 0.5):
        with contextlib.suppress(ValueError):  # worse than interpolation
            command(*how)
        how += [] if sweep else ["--resume"]
    one = "sweep/runs/alpha-0-seed-0"
    if sweep and chance(rng, 0.5):  # killed before the run was done
        (place / one / "checkpoints" / "stage_0").mkdir(parents=True, exist_ok=True)
        (place / one / "validation.parquet").unlink(missing_ok=True)
    names = ("model", "checkpoints", "checkpoints/stage_0", "sweep", f"{one}/model", f"{one}/checkpoints/stage_0")
    yield [place / name for name in names], False
    command(*how)


def demo(rng, place):
    """The demo must refuse a folder with files it writes or once wrote; it removes only what it made itself.

    Running it would take too long here.
    """
    path = place / "demo"
    path.mkdir()
    if chance(rng, 0.5):
        demo_run._make_room(path, Console(quiet=True))
        xdeepsd.save_model(model(), path / "model")
        xdeepsd.to_zarr(lazy("precipitation"), path / "fine.zarr")
        yield [path, path / "model", path / "fine.zarr", path / "fine.zarr" / "precipitation"], False
        demo_run._make_room(path, Console(quiet=True))
        return
    (path / pick(rng, ["levels.zarr", "model", "fine.zarr", "coarse.zarr", "downscaled.zarr"])).mkdir()
    yield [path, *path.iterdir()], False
    (next(path.iterdir()) / "thesis.txt").write_text("mine")
    command("demo", "--out", path, "--steps", 1)


def from_ini(rng, place):
    (place / "a.ini").write_text(INI)
    yield [place], False
    command("config", "from-ini", place / "a.ini", *(["--out", place / pick(rng, NAMES)] if chance(rng, 0.5) else []))


def save_weights(rng, place):
    weights = xdeepsd.regrid_weights(small(), make_static(small(), 2))
    if chance(rng, 0.3):
        weights.save(place / "weights.npz")
    yield [place], False
    weights.save(place / pick(rng, ["weights.npz", "notes.txt", "thesis", "data.csv"]))


def save_correction(rng, place):
    if chance(rng, 0.5):
        make_correction(0).save(place / "correction.nc")
    yield [place, place / "correction.nc"], False
    target = place / pick(rng, ["correction.nc", "correction.nc", "notes.txt", "thesis"])
    make_correction(1).save(target, overwrite=chance(rng, 0.7))
    if xdeepsd.load_correction(target).fingerprint() != make_correction(1).fingerprint():
        raise Wrong("another correction is there than was saved")


def regrid(rng, place):
    weights = xdeepsd.regrid_weights(small(), make_static(small(), 2))
    weights.save(place / "weights.npz")
    yield [place], False
    xdeepsd.regrid(small(), weights=place / "weights.npz")


OPERATIONS = {
    to_zarr: 5, onto_its_input: 3, save_model: 4, downscale: 2, build_levels: 3, fetch: 3, training: 1, demo: 1,
    from_ini: 2, save_weights: 2, save_correction: 2,
    regrid: 1,
}  # fmt: skip

# --- the user's files -------------------------------------------------------------------------------------------------


def put(rng, folder, outside):
    """Put one random item of the user into a folder, at a path not taken yet."""
    path = folder / pick(rng, NAMES)
    if path.exists() or path.is_symlink() or any(p.is_file() for p in path.parents):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pick(rng, ["file", "file", "file", "folder", "link", "zarr"])
    if kind == "file":
        path.write_bytes(rng.bytes(20))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(pick(rng, [outside, outside / "letter.txt", "nowhere"]))
    elif chance(rng, 0.5):
        zarr.save_array(path, np.arange(3))
    else:
        xr.Dataset({"mine": ("n", [1.0, 2.0])}).to_zarr(path)


def scatter(rng, place, paths, outside):
    for path in paths:
        if not path.exists() and not path.is_symlink() and path.parent.is_dir():
            kind = rng.random()
            if kind < 0.15:
                path.mkdir()
            elif kind < 0.2:
                path.write_bytes(b"mine")
            elif kind < 0.25:
                path.symlink_to(outside)
    for folder in [place, *paths]:
        for _ in range(rng.integers(3)):
            if folder.is_dir():
                put(rng, folder, outside)


def zarr_of(path, root):
    """Whether ``path``, in ``root``, belongs to a Zarr node."""
    marks = {"zarr.json", ".zgroup", ".zarray"}
    return any((p / mark).exists() for p in (path, *path.parents) if p != root and root in p.parents for mark in marks)


def case(seed, folder):
    """One operation among the user's files."""
    rng = np.random.default_rng(seed)
    weights = np.array(list(OPERATIONS.values()))
    operation = list(OPERATIONS)[rng.choice(len(weights), p=weights / weights.sum())]
    place, outside = folder / "place", folder / "outside"
    place.mkdir()
    outside.mkdir()
    (outside / "letter.txt").write_text("dear")
    steps = operation(rng, place)
    paths, replaced = next(steps)
    ours = listing(folder)
    scatter(rng, place, paths, outside)
    users = {name: what for name, what in listing(folder).items() if name not in ours}
    users |= {name: what for name, what in ours.items() if name.startswith("outside")}
    if replaced:  # Zarr nodes in a replaced group may go
        users = {
            n: w for n, w in users.items() if replaced not in (folder / n).parents or not zarr_of(folder / n, replaced)
        }
    try:
        for _ in steps:
            pass
        told = "done"
    except TOLD as error:
        told = f"refused: {str(error)[:200]}"
    after = listing(folder)
    gone = {name: (what[:12], after.get(name, "gone")[:12]) for name, what in users.items() if after.get(name) != what}
    if gone:
        raise Lost(f"{operation.__name__} ({told}): {dict(list(gone.items())[:5])}")
