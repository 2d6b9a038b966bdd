"""Processes killed at any moment: nothing half-written passes as complete, and the same call gives the same bits."""

import functools
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import dask.array
import numpy as np
import pandas as pd
import torch
import xarray as xr
from builders import make_coarse, make_correction, make_stack, make_static
from prism_server import PrismServer, map_of

import xdeepsd
from xdeepsd.grids import regrid_weights as weights
from xdeepsd.training import checkpoints

from . import Wrong, chance, listing, pick

# Audit events that Python raises before it acts; the kill comes at one of them.
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree", "tempfile.mkstemp"}
DAYS = pd.date_range("2011-01-01", periods=6)


def watched(folder, strike):
    """From now on ``strike(number, event, arguments)`` comes before each action on ``folder``; returns the counter."""
    counted = itertools.count(1)
    place = str(folder)

    def watch(event, arguments):
        if event in EVENTS and (text := str(arguments[0])).startswith(place) and text[len(place) :][:1] in ("", os.sep):
            strike(next(counted), event, arguments)

    sys.addaudithook(watch)
    return counted


def nothing(*_):
    """The strike of a run that nothing stops."""


def die(at, delay, number, event, arguments):
    """Killed at the ``at``-th action, or ``delay`` seconds later."""
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    if number == at:
        threading.Timer(delay, kill).start() if delay else kill()


def victim(name, folder, variant, strike):
    """Run an operation under a strike; leaves the number of its actions beside the folder."""
    counted = watched(folder, strike)
    OPERATIONS[name].run(folder, variant)
    Path(f"{folder}.count").write_text(str(next(counted) - 1))


class Nursery:
    """A process without threads, from which the victims are forked."""

    pipe = None

    @classmethod
    def start(cls):
        cls.pipe, there = multiprocessing.Pipe()
        if os.fork():
            there.close()
            return
        cls.pipe.close()
        while True:
            try:
                call, *arguments = there.recv()
            except EOFError:
                os._exit(0)
            child = os.fork()
            if not child:
                try:
                    call(*arguments)
                    os._exit(0)
                except BaseException as error:
                    told = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
                    Path(f"{arguments[1]}.error").write_text(told)
                    os._exit(1)
            there.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    @classmethod
    def run(cls, *arguments):
        """Exit status of a call; negative if a signal ended it."""
        cls.pipe.send(arguments)
        return cls.pipe.recv()


# --- operations: ``prepare`` the starting state, ``run``, ``check`` what a kill left, ``result`` when done ------------


class Store:
    """`to_zarr`, to a new path or over an older store; Zarr 2 or 3; root or group."""

    def variants(rng):
        return {
            "zarr_format": int(rng.integers(2, 4)),
            "group": pick(rng, [None, "a/b"]),
            "overwrite": chance(rng, 0.5),
        }

    def data(name="pr", days=6):
        data = dask.array.from_array(np.arange(days * 6.0).reshape(days, 2, 3), chunks=(1, 2, 3)) + 0.5
        return xr.Dataset({name: (("time", "lat", "lon"), data)}, {"lat": [1.0, 2.0]}, {"title": name})

    def prepare(folder, variant):
        if variant["overwrite"]:
            xdeepsd.to_zarr(Store.data("old", 3), folder / "a.zarr", group=variant["group"])

    def run(folder, variant):
        xdeepsd.to_zarr(Store.data(), folder / "a.zarr", **variant)

    def check(folder, variant):
        try:
            ds = xr.open_zarr(folder / "a.zarr", group=variant["group"], consolidated=False)
        except (FileNotFoundError, KeyError):
            return
        if "pr" in ds:
            missing = np.isnan(ds.pr.values)
            if not (missing | (ds.pr.values == Store.data().pr.values)).all():
                raise Wrong("a region is neither whole nor missing")
            if ds.attrs.get("xdeepsd_status") == "complete" and missing.any():
                raise Wrong("marked complete, and is not")

    def result(folder):
        return listing(folder)


class Levels:
    """`build_levels` for a new ladder, or with days to append, some of which may replace older releases."""

    def variants(rng):
        return {"append": (append := chance(rng, 0.6)), "renew": append and chance(rng, 0.5)}

    def data(days, renew):
        fine = make_coarse(days=days, nlat=4, nlon=8)
        fine[1] += 5 * renew
        numbers = np.where(np.arange(days) == renew, 8, 7) if renew else np.full(days, 7)
        dates = np.full(days, "2020-01-01", "M8[ns]") + renew * (np.arange(days) == 1).astype("m8[D]")
        ds = xr.Dataset({"pr": fine, "pr_release": ("time", numbers), "pr_release_date": ("time", dates)})
        return ds.chunk(time=2), make_static(fine, 1)

    def build(folder, days, renew=False):
        fine, static = Levels.data(days, renew)
        years = slice("2001-01-01", "2001-01-03")
        xdeepsd.build_levels(fine, static, (2, 2), folder / "levels.zarr", climatology=years, chunk_mb=0.0003)

    def prepare(folder, variant):
        if variant["append"]:
            Levels.build(folder, 4)

    def run(folder, variant):
        Levels.build(folder, 8, variant["renew"])

    def check(folder, variant):
        try:
            levels = xdeepsd.open_levels(folder / "levels.zarr")
        except ValueError:
            if variant["append"]:
                raise Wrong("the ladder that was there cannot be read any more") from None
            return
        versions = [Levels.result(reference("levels", tuple(variant.items()))[0])]
        if variant["append"]:
            versions.append(Levels.result(before_growth()))
        for day in levels[0].time.values:
            maps = [level.precipitation.sel(time=day).load() for level in levels]
            known = [[level.precipitation.sel(time=day) for level in v] for v in versions if day in v[0].time]
            if not any(all(a.identical(b) for a, b in zip(maps, one, strict=True)) for one in known):
                raise Wrong(f"{day} is not that of one release in all levels")
        if any(not level.time.identical(levels[0].time) for level in levels):
            raise Wrong("levels of different days")
        if variant["append"] and levels[0].sizes["time"] < 4 - variant["renew"]:
            raise Wrong("days that were there are gone")

    def result(folder):
        return [level.load() for level in xdeepsd.open_levels(folder / "levels.zarr")]


@functools.cache
def before_growth():
    """The folder of a ladder before anything is appended."""
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-fuzz-whole-"))
    Levels.build(folder, 4)
    return folder


class Model:
    """`save_model`, to a new path or over an older model."""

    def variants(rng):
        return {"overwrite": chance(rng, 0.5)}

    def data(seed):
        model = make_stack(1, seed, channels=(3,), kernels=(3, 1))
        return xdeepsd.StackedSRCNN(model.stages, static=make_static(make_coarse(), model.scale))

    def prepare(folder, variant):
        if variant["overwrite"]:
            xdeepsd.save_model(Model.data(0), folder / "model")

    def run(folder, variant):
        if variant["overwrite"] or not (folder / "model" / "model.json").exists():
            xdeepsd.save_model(Model.data(1), folder / "model", overwrite=variant["overwrite"])

    def check(folder, variant):
        if (folder / "model" / "model.json").exists():
            found = xdeepsd.load_model(folder / "model").fingerprint()
            if found not in (Model.data(0).fingerprint(), Model.data(1).fingerprint()):
                raise Wrong("a model that nobody saved")

    def result(folder):
        return xdeepsd.load_model(folder / "model").fingerprint()


class Weights:
    """`Weights.save`."""

    def variants(rng):
        return {}

    def prepare(folder, variant):
        pass

    def run(folder, variant):
        coarse = make_coarse()
        xdeepsd.regrid_weights(coarse, make_static(coarse, 3)).save(folder / "weights.npz")

    def check(folder, variant):
        if (folder / "weights.npz").exists():
            weights.load(folder / "weights.npz")

    def result(folder):
        return weights.load(folder / "weights.npz").lat.toarray()


class Correction:
    """`Correction.save`, to a new path or over an older one."""

    def variants(rng):
        return {"overwrite": chance(rng, 0.5)}

    def prepare(folder, variant):
        if variant["overwrite"]:
            make_correction(0).save(folder / "correction.nc")

    def run(folder, variant):
        make_correction(1).save(folder / "correction.nc", overwrite=True)

    def check(folder, variant):
        if variant["overwrite"] or (folder / "correction.nc").exists():
            found = xdeepsd.load_correction(folder / "correction.nc").fingerprint()
            if found not in (make_correction(0).fingerprint(), make_correction(1).fingerprint()):
                raise Wrong("a correction that nobody saved")

    def result(folder):
        return xdeepsd.load_correction(folder / "correction.nc").data


class Training:
    """`train_stage` with checkpoints."""

    def variants(rng):
        return {"loss": pick(rng, ["mse", "denseloss", "pinball", "tweedie", "bernoulli_gamma"])}

    def prepare(folder, variant):
        pass

    def run(folder, variant):
        coarse, fine = ladder()
        chosen = xdeepsd.TrainConfig(
            channels=(3,), kernels=(3, 3), patch=10, stride=6, batch=4, steps=10, learning_rate=1e-2, threads=1,
            validation=0.3, validate_every=4, checkpoint_every=2, workers=1, loss=variant["loss"], min_land=0.1,
        )  # fmt: skip
        xdeepsd.train_stage(coarse, fine, chosen, checkpoint_dir=folder / "stage_0", resume=True)

    def check(folder, variant):
        checkpoints.read_checkpoint(folder / "stage_0")

    def result(folder):
        state = checkpoints.read_checkpoint(folder / "stage_0")
        history = [{k: v for k, v in row.items() if k in ("step", "loss", "rmse")} for row in state["history"]]
        flat, _ = torch.utils._pytree.tree_flatten([state[k] for k in ("step", "net", "optimizer", "best", "losses")])
        return [np.asarray(value) for value in flat] + [repr(history)]


@functools.cache
def ladder():
    fine = make_coarse(days=10, nlat=12, nlon=16)
    return [level.load() for level in xdeepsd.make_levels(fine, make_static(fine, 1), (2,))]


class Fetch:
    """`fetch_prism` for a new store, or for one whose period grows."""

    def variants(rng):
        return {"grow": chance(rng, 0.5)}

    def get(folder, first, last):
        with PrismServer() as server:
            server.publish(DAYS[0], DAYS[-1])
            return xdeepsd.fetch_prism(folder / "store", "ppt", DAYS[first], DAYS[last], region="hi", pace=0,
                                       base_url=server.url)  # fmt: skip

    def prepare(folder, variant):
        if variant["grow"]:
            Fetch.get(folder, 2, 3)

    def run(folder, variant):
        Fetch.get(folder, 0, 5)

    def check(folder, variant):
        if not (folder / "store" / "zarr.json").exists():
            if variant["grow"]:
                raise Wrong("the store that was there is gone")
            return
        ds = xr.open_zarr(folder / "store")  # by its consolidated metadata, which are written last
        if "ppt" not in ds and not variant["grow"]:
            return
        for time, number, values in zip(ds.time.values, ds.ppt_release.values, ds.ppt.values, strict=True):
            whole = np.array_equal(values, map_of(pd.Timestamp(time)), equal_nan=True)
            if not whole and (number or not np.isnan(values).all()):
                raise Wrong(f"{time}: release {number}, and the map is not whole")
        if variant["grow"] and not (ds.ppt_release.sel(time=DAYS[2:4]) == 8).all():
            raise Wrong("days that were there are gone")

    def result(folder):
        return listing(folder / "store")


class Inference:
    """A model and a Zarr store read from disk, downscaled to Zarr: a region of days after another."""

    def variants(rng):
        return {}

    def input(days=6):
        return make_coarse(days=days, nlat=4, nlon=6).to_dataset()

    def prepare(folder, variant):
        stages = make_stack(2, channels=(3,), kernels=(3, 3)).stages
        model = xdeepsd.StackedSRCNN(stages, static=make_static(make_coarse(nlat=4, nlon=6), 4))
        xdeepsd.save_model(model, folder / "model")
        Inference.input().chunk(time=1).to_zarr(folder / "coarse.zarr", consolidated=False)

    def run(folder, variant):
        coarse = xr.open_zarr(folder / "coarse.zarr", consolidated=False)
        xdeepsd.to_zarr(coarse.deepsd.downscale(xdeepsd.load_model(folder / "model")), folder / "fine.zarr")

    def check(folder, variant):
        try:
            there = xr.open_zarr(folder / "fine.zarr", consolidated=False).load()
        except (FileNotFoundError, KeyError):
            return
        if "pr" in there:
            whole = xr.open_zarr(reference("inference", ())[0] / "fine.zarr").pr.values
            held = np.isfinite(there.pr.values).any(axis=(1, 2))
            if not np.array_equal(there.pr.values[held], whole[held]):
                raise Wrong("a day is neither whole nor missing")
            if there.attrs.get("xdeepsd_status") == "complete" and not held.all():
                raise Wrong("marked complete, and is not")

    def result(folder):
        values = xr.open_zarr(folder / "fine.zarr").load()  # attributes hold the date, and the paths of the input
        return [v.values for v in values.variables.values()]


class Chain:
    """Levels, training of all stages with checkpoints, the model and its maps: each continues where it was stopped."""

    def variants(rng):
        return {}

    def prepare(folder, variant):
        pass

    def run(folder, variant):
        fine = make_coarse(days=10, nlat=12, nlon=16).chunk(time=2)
        levels = xdeepsd.build_levels(fine, make_static(fine, 1), (2, 2), folder / "levels.zarr", chunk_mb=0.0012)
        chosen = xdeepsd.TrainConfig(
            channels=(3,), kernels=(3, 1), patch=6, stride=3, batch=4, steps=4, threads=1, workers=1, min_land=0.1,
            validation=0.3, validate_every=2, checkpoint_every=2, static=("elevation",), learning_rate=1e-2,
        )  # fmt: skip
        if not (folder / "model" / "model.json").exists():
            model = xdeepsd.train_stack(levels, chosen, checkpoint_dir=folder / "checkpoints", resume=True)
            xdeepsd.save_model(model, folder / "model")
        model = xdeepsd.load_model(folder / "model")
        xdeepsd.to_zarr(levels[0]["precipitation"].deepsd.downscale(model), folder / "fine.zarr")

    def check(folder, variant):
        if (folder / "model" / "model.json").exists():
            xdeepsd.load_model(folder / "model")

    def result(folder):
        levels = [level.load() for level in xdeepsd.open_levels(folder / "levels.zarr")]
        return [*levels, Model.result(folder), *Inference.result(folder)]


OPERATIONS = {
    "store": Store,
    "levels": Levels,
    "model": Model,
    "weights": Weights,
    "correction": Correction,
    "training": Training,
    "fetch": Fetch,
    "inference": Inference,
    "chain": Chain,
}


@functools.cache
def reference(name, variant):
    """The folder of an uninterrupted run, and its number of actions on files."""
    folder = Path(tempfile.mkdtemp(prefix="xdeepsd-fuzz-whole-"), "whole")
    folder.mkdir()
    OPERATIONS[name].prepare(folder, dict(variant))
    if Nursery.run(victim, name, folder, dict(variant), nothing):
        raise RuntimeError(Path(f"{folder}.error").read_text())
    return folder, int(Path(f"{folder}.count").read_text())


def case(seed, folder):
    """One operation killed one to three times, checked after each kill, and then run to its end."""
    rng = np.random.default_rng(seed)
    name = pick(rng, list(OPERATIONS))
    operation, variant = OPERATIONS[name], OPERATIONS[name].variants(rng)
    whole, count = reference(name, tuple(variant.items()))
    place = folder / "whole"  # the same name as the reference's, since the output may contain it
    place.mkdir()
    operation.prepare(place, variant)
    story = f"{name} {variant}"
    for _ in range(rng.integers(1, 4)):
        at, delay = int(rng.integers(1, count + 1)), pick(rng, [0, float(rng.uniform(0, 0.01))])
        code = Nursery.run(victim, name, place, variant, functools.partial(die, at, delay))
        story += f", killed at file {at} of {count} + {1000 * delay:.1f} ms"
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{story}: {Path(f'{place}.error').read_text()}")
        try:
            operation.check(place, variant)
        except Exception as error:
            error.add_note(story)
            raise (Wrong(f"{story}: {error}") if isinstance(error, Wrong) else error) from None
    operation.run(place, variant)
    same(operation.result(place), operation.result(whole), story)


def same(found, wanted, story):
    """Raise if the results of two runs differ."""
    if isinstance(wanted, dict):
        different = {k for k in set(found) | set(wanted) if found.get(k) != wanted.get(k)}
        if different:
            raise Wrong(f"{story}: {sorted(different)} differ from those of a run that nothing stopped")
    elif isinstance(wanted, list):
        if len(found) != len(wanted):
            raise Wrong(f"{story}: {len(found)} parts for {len(wanted)}")
        for one, other in zip(found, wanted, strict=True):
            same(one, other, story)
    elif not (found.identical(wanted) if isinstance(wanted, xr.Dataset) else np.array_equal(found, wanted)):
        raise Wrong(f"{story}: the result is not that of a run that nothing stopped")
