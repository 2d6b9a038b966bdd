"""Apply a stack to arrays of coarse days, chunk by chunk: numpy and Dask, no labels.

The graph has one task that prepares the stack (weights, static channels of every level) and one task per chunk.
A chunk that covers part of the map is computed on a window: the chunk and the surrounding cells it depends on.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dask
import dask.array
import numpy as np
from scipy import ndimage

from xdeepsd.grids.blocks import block_mean
from xdeepsd.grids.missing import fill_nearest
from xdeepsd.inference.digests import digest
from xdeepsd.inference.forward import NoiseOf, Options, Runner, runner_of
from xdeepsd.inference.members import Spread
from xdeepsd.models.bernoulli_gamma import PARAMETERS
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.noise import white_noise
from xdeepsd.models.stack import StackedSRCNN
from xdeepsd.models.stage import Stage
from xdeepsd.models.static import stage_channels
from xdeepsd.models.variable import Values


@dataclass(frozen=True)
class Job:
    """What a worker needs besides the static maps; small, sent once."""

    model: StackedSRCNN
    values: Values
    options: Options
    lat: np.ndarray  # latitudes of the finest grid, for its cell areas
    seed: int = 0  # of the noise
    origin: tuple[int, int] = (0, 0)  # row and column of the first coarse cell on the model's grid, for the noise
    distribution: bool = False  # the last stage's parameters come out, in place of their expectation


@dataclass(frozen=True)
class _Levels:
    """Static channels and cell weights of each stage on the whole domain, and where its output is wanted."""

    channels: list[np.ndarray]
    weights: list[np.ndarray]  # see `cell_weights`
    wanted: list[np.ndarray] | None


@dataclass(frozen=True)
class _Window:
    """Rows and columns of the coarse grid: ``core`` is the part wanted, ``outer`` the part computed for it."""

    core: tuple[slice, slice]
    outer: tuple[slice, slice]

    def trim(self, scale: int) -> tuple[slice, slice]:
        """The core's fine cells within the outer window's."""
        rows, cols = (
            slice((c.start - o.start) * scale, (c.stop - o.start) * scale)
            for c, o in zip(self.core, self.outer, strict=True)
        )
        return rows, cols


def _wanted(mask: np.ndarray, stages: Sequence[Stage]) -> list[np.ndarray]:
    """Where each stage must be computed for the output of the last one to be right on ``mask``."""
    wanted = [np.asarray(mask, bool)]
    for stage in reversed(stages[1:]):
        factor, halo = stage.config.factor, stage.config.halo
        nlat, nlon = wanted[0].shape
        coarse = wanted[0].reshape(nlat // factor, factor, nlon // factor, factor).any(axis=(1, 3))
        size = 2 * halo + 1
        wanted.insert(0, ndimage.maximum_filter(coarse, size=size, mode="constant", cval=False))
    return wanted


def _static_levels(
    job: Job, maps: Mapping[str, np.ndarray], mask: np.ndarray | None, shape: tuple[int, int]
) -> _Levels:
    """Static channels of each stage, block means of the finest maps, for the whole domain of coarse ``shape``."""
    model = job.model
    scale = model.scale
    finest = np.broadcast_to(1.0, (shape[0] * scale, shape[1] * scale))
    keeps = any(stage.config.conserve for stage in model.stages)
    if keeps:
        finest = cell_weights(job.lat, shape[1] * scale, None if mask is None else np.asarray(mask))
    channels, weights = [], []
    coarse = {name: block_mean(np.asarray(field), scale) for name, field in maps.items()}
    for stage in model.stages:
        scale //= stage.config.factor
        fine = {name: block_mean(np.asarray(field), scale) for name, field in maps.items()}
        if stage.config.static:
            channels.append(stage_channels(fine, coarse, stage.config.static, stage.config.factor))
        else:
            factor = model.scale // scale
            channels.append(np.zeros((0, shape[0] * factor, shape[1] * factor), np.float32))
        weights.append(block_mean(finest, scale) if keeps else finest[::scale, ::scale])  # else nobody looks at them
        coarse = fine
    return _Levels(channels, weights, None if mask is None else _wanted(np.asarray(mask), model.stages))


@dataclass(frozen=True)
class _Ready:
    """Everything needed to turn coarse days of one window into fine ones."""

    job: Job
    window: _Window
    runners: list[Runner]
    mask: np.ndarray | None


def _get_ready(job: Job, levels: _Levels, window: _Window) -> _Ready:
    runners, scale = [], 1
    for i, stage in enumerate(job.model.stages):
        scale *= stage.config.factor
        rows, cols = (slice(s.start * scale, s.stop * scale) for s in window.outer)
        wanted = None if levels.wanted is None else levels.wanted[i][rows, cols]
        channels, weights = levels.channels[i][:, rows, cols], levels.weights[i][rows, cols]
        distribution = job.distribution and i == len(job.model.stages) - 1
        runners.append(runner_of(stage, channels, weights, wanted, job.options, distribution))
    mask = None
    if levels.wanted is not None:
        rows, cols = (slice(s.start * scale, s.stop * scale) for s in window.core)
        mask = levels.wanted[-1][rows, cols]
    return _Ready(job, window, runners, mask)


# One task for all jobs: with a task for each, Dask would finish one member for all days before the next, and keep the
# whole input meanwhile.
def _all_levels(
    jobs: Sequence[Job], maps: Mapping[str, np.ndarray], mask: np.ndarray | None, shape: tuple[int, int]
) -> list[_Levels]:
    return [_static_levels(job, maps, mask, shape) for job in jobs]


def _all_ready(jobs: Sequence[Job], levels: Sequence[_Levels], window: _Window) -> list[_Ready]:
    return [_get_ready(job, level, window) for job, level in zip(jobs, levels, strict=True)]


def _all_ready_at_once(
    jobs: Sequence[Job], maps: Mapping[str, np.ndarray], mask: np.ndarray | None, window: _Window
) -> list[_Ready]:
    shape = (window.outer[0].stop, window.outer[1].stop)
    return _all_ready(jobs, _all_levels(jobs, maps, mask, shape), window)


def _run(block: np.ndarray, keys: np.ndarray | None, ready: _Ready, member: int) -> np.ndarray:
    """Fine precipitation of one chunk ``(..., lat, lon)`` of a window, in the user's units.

    The parameters of a distribution come in front, ``(3, ..., lat, lon)``. ``keys``: `day_keys` of the maps of the
    block, needed by stages that take noise.
    """
    job, scale = ready.job, ready.job.model.scale
    lead = block.shape[:-2]
    days = job.values.clean(block, job.options.dtype).reshape(-1, *block.shape[-2:])
    missing = np.isnan(days)
    factor = np.asarray(job.values.factor, days.dtype)
    if factor != 1:
        days = days * factor
    fine = fill_nearest(days, job.model.halo)
    for number, runner in enumerate(ready.runners):
        if job.model.stages[number].config.noise:
            assert keys is not None
            fine = runner(fine, _noise_of(ready, number, keys.ravel(), member))
        else:
            fine = runner(fine)
    window = ready.window
    if window.core != window.outer:
        rows, cols = window.trim(scale)
        fine = fine[..., rows, cols].copy()  # a view would keep the whole window in memory
        missing = missing[:, rows.start // scale : rows.stop // scale, cols.start // scale : cols.stop // scale]
    if factor != 1:
        amounts = fine[PARAMETERS.index("scale")] if job.distribution else fine
        amounts /= factor
    if missing.any():
        np.copyto(fine, np.nan, where=missing.repeat(scale, axis=1).repeat(scale, axis=2))
    if ready.mask is not None:
        np.copyto(fine, np.nan, where=~ready.mask)
    return fine.reshape(*fine.shape[:-3], *lead, *fine.shape[-2:])


def _noise_of(ready: _Ready, number: int, keys: np.ndarray, member: int) -> NoiseOf:
    """The noise of some of the days of a chunk, for one stage: on the stage's output and `radius` cells around it."""
    job, stages = ready.job, ready.job.model.stages
    config, scale = stages[number].config, math.prod(stage.config.factor for stage in stages[: number + 1])
    rows, columns = (
        np.arange((first + part.start) * scale - config.radius, (first + part.stop) * scale + config.radius)
        for first, part in zip(job.origin, ready.window.outer, strict=True)
    )
    return lambda days: white_noise(job.seed, member, keys[days], rows, columns, stage=number, channels=config.noise)


def _run_one(
    block: np.ndarray, keys: np.ndarray | None, readies: Sequence[_Ready], member: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """One member, given by the position of its job and its number; see `_run`."""
    which, number = member
    return _run(block, keys, readies[which], number)


def _run_all(
    block: np.ndarray, keys: np.ndarray | None, readies: Sequence[_Ready], members: Sequence[tuple[int, int]]
) -> np.ndarray:
    """``(2, ..., lat, lon)``: mean and standard deviation of all members of one chunk, none of which is kept."""
    spread = Spread()
    for member in members:
        spread.add(_run_one(block, keys, readies, member))
    return spread.result(readies[0].job.options.dtype)


def _run_in_threads(run: Callable[..., np.ndarray], block: np.ndarray, keys: Any, device: str) -> np.ndarray:
    """Call ``run`` on all cores, groups of days in parallel, with the same bits as in Dask tasks."""
    days = block.reshape(-1, *block.shape[-2:])
    workers = min(os.cpu_count() or 1, len(days)) if device == "cpu" else 1
    groups = np.array_split(days, workers)
    of_groups = [None] * workers if keys is None else np.array_split(keys.ravel(), workers)
    with ThreadPoolExecutor(workers) as pool:
        fine = np.concatenate(list(pool.map(run, groups, of_groups)), axis=-3)
    return fine.reshape(*fine.shape[:-3], *block.shape[:-2], *fine.shape[-2:])


def apply(
    data: Any, jobs: Sequence[Job], maps: Mapping[str, Any], mask: Any, token: str,
    members: Sequence[tuple[int, int]] | None = None, keys: np.ndarray | None = None, statistics: bool = False,
) -> Any:  # fmt: skip
    """Numpy in, numpy out; dask in, dask out: one task per chunk, after one that prepares.

    The parameters of a distribution come in front, ``(3, ..., lat, lon)``.

    Parameters
    ----------
    data
        ``(..., lat, lon)``: coarse days.
    jobs
        One for each model.
    maps, mask
        Static fields and mask on the finest grid.
    token
        Names the tasks. It is the same in every process for the same models, options and maps, so that `to_zarr` can
        tell whether a store was begun with them.
    members
        Of each member the position of its job, and its number. They come first in the result, in chunks of one. None:
        a single field.
    keys
        `day_keys` in the shape of ``data`` without its last two dims, where a model takes noise.
    statistics
        ``(2, ..., lat, lon)``, mean and standard deviation, in place of the members.
    """
    nlat, nlon = data.shape[-2:]
    everything = (slice(0, nlat), slice(0, nlon))
    options = jobs[0].options
    if not dask.is_dask_collection(data):
        maps, mask = dask.compute(dict(maps), mask)
        readies = _all_ready_at_once(jobs, maps, mask, _Window(everything, everything))
        data = jobs[0].values.clean(data, options.dtype)  # here, so warnings count all days
        runs = [functools.partial(_run_one, readies=readies, member=member) for member in members or [(0, 0)]]
        if statistics:
            runs = [functools.partial(_run_all, readies=readies, members=members or [])]
        parts = [_run_in_threads(run, data, keys, options.device) for run in runs]
        return parts[0] if statistics or members is None else np.stack(parts)

    if keys is not None:
        keys = dask.array.from_array(keys[..., None, None], (*data.chunks[:-2], 1, 1), name=f"days-{digest(keys)}")
    how = _How(members, keys, statistics)
    if data.numblocks[-2:] == (1, 1):
        window = _Window(everything, everything)
        readies = dask.delayed(_all_ready_at_once)(jobs, dict(maps), mask, window, dask_key_name=f"prepare-{token}")
        return _map_window(data, readies, jobs[0], how)
    # A cell may be filled from as far away as the halo, and the networks reach that far again.
    reach = 2 * max(job.model.halo for job in jobs)
    levels = dask.delayed(_all_levels)(jobs, dict(maps), mask, (nlat, nlon), dask_key_name=f"levels-{token}")
    rows = _slices(data.chunks[-2], reach, nlat)
    cols = _slices(data.chunks[-1], reach, nlon)
    blocks = []
    for core_row, outer_row in rows:
        line = []
        for core_col, outer_col in cols:
            window = _Window((core_row, core_col), (outer_row, outer_col))
            key = f"prepare-{token}-{digest((window, data.shape))}"
            readies = dask.delayed(_all_ready)(jobs, levels, window, dask_key_name=key)
            outer = data[..., outer_row, outer_col]
            outer = outer.rechunk({outer.ndim - 2: -1, outer.ndim - 1: -1})
            line.append(_map_window(outer, readies, jobs[0], how, core=(core_row, core_col)))
        blocks.append(dask.array.concatenate(line, axis=-1))
    return dask.array.concatenate(blocks, axis=-2)


@dataclass(frozen=True)
class _How:
    """The last three arguments of `apply`, the days as a lazy array."""

    members: Sequence[tuple[int, int]] | None
    keys: Any
    statistics: bool


def _slices(sizes: Sequence[int], reach: int, total: int) -> list[tuple[slice, slice]]:
    """Each chunk along an axis, and the same widened by ``reach`` cells on each side, within the domain."""
    ends = np.cumsum(sizes).tolist()
    return [
        (slice(end - size, end), slice(max(0, end - size - reach), min(total, end + reach)))
        for size, end in zip(sizes, ends, strict=True)
    ]


def _map_window(data: Any, readies: Any, job: Job, how: _How, core: tuple[slice, slice] | None = None) -> Any:
    """One task per chunk (and member) of ``data``, which is not split along latitude or longitude."""
    nlat, nlon = data.shape[-2:] if core is None else (s.stop - s.start for s in core)
    chunks = (*data.chunks[:-2], (nlat * job.model.scale,), (nlon * job.model.scale,))

    def call(run: Callable[..., np.ndarray], first: tuple[Any, ...] = (), **arguments: Any) -> Any:
        return dask.array.map_blocks(
            run, data, how.keys, chunks=(*first, *chunks), new_axis=0 if first else None, dtype=job.options.dtype,
            meta=np.empty((0,) * (data.ndim + len(first)), job.options.dtype), **arguments,
        )  # fmt: skip

    if how.statistics:
        return call(_run_all, ((2,),), readies=readies, members=how.members)
    if how.members is None:
        return call(_run_one, ((len(PARAMETERS),),) if job.distribution else (), readies=readies)
    return dask.array.stack([call(_run_one, readies=readies, member=member) for member in how.members])
