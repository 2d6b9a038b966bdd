"""A pair of levels to learn from: its checks, its reading by slabs of days, and the normalisers of a stage.

All of it stays lazy; `xdeepsd.levels.patches` cuts what training sees from it.
"""

from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import dask.array
import numpy as np
import torch
import xarray as xr

from xdeepsd.grids.blocks import block_mean
from xdeepsd.grids.missing import fill_nearest
from xdeepsd.levels.days import name_days
from xdeepsd.levels.splits import Split, within
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNNConfig
from xdeepsd.models.stage import interpolated_input
from xdeepsd.models.static import CLIMATOLOGY, stage_channels
from xdeepsd.models.transform import transform
from xdeepsd.models.variable import LOWEST, Values, fill_values

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pair:
    """What one stage learns from: precipitation of two neighbouring levels on the same days. Make it by `make_pair`.

    Parameters
    ----------
    coarse, fine
        ``(time, lat, lon)``, NaN where not observed; lazy if the input is.
    static
        ``(static, lat, lon)`` float32 on the fine grid, from `xdeepsd.models.static.stage_channels`, not normalised.
    mask
        ``(lat, lon)`` bool of the fine grid, True where values are wanted.
    config
        The network that will learn from it.
    transform
        Of precipitation, see `xdeepsd.Stage`.
    digests
        ``(time,)`` int64: checksum of the values of each day as they were first read, -1 before. A checkpoint keeps
        them.
    """

    coarse: xr.DataArray
    fine: xr.DataArray
    static: np.ndarray
    mask: np.ndarray
    config: SRCNNConfig
    transform: str | None = None
    digests: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", np.full(self.fine.sizes["time"], -1, np.int64))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the fine grid."""
        return self.mask.shape[0], self.mask.shape[1]

    def observed(self, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read some days, given as increasing positions along time.

        Returns
        -------
        coarse
            ``(day, lat, lon)``: coarse precipitation; missing cells filled from the nearest observed one.
        target
            ``(day, lat, lon)``: fine precipitation; NaN where the loss must not look: not observed, outside the
            mask, inside a missing coarse cell.

        Raises
        ------
        ValueError
            A day has other values than when it was first read.
        """
        factor = self.config.factor
        coarse, target = _values(self.coarse, days), _values(self.fine, days)
        self._check_digests(days, coarse, target)
        unusable = np.repeat(np.repeat(np.isnan(coarse), factor, axis=1), factor, axis=2) | ~self.mask
        return fill_nearest(coarse, self.config.halo), np.where(unusable, np.float32(np.nan), target)

    def _check_digests(self, days: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> None:
        found = np.array([zlib.crc32(f, zlib.crc32(c)) for c, f in zip(coarse, fine, strict=True)])
        before = self.digests[days]
        changed = days[(before >= 0) & (before != found)]
        if changed.size:
            raise ValueError(
                f"The precipitation of {changed.size} days is another one than when this training began: "
                f"{self.name(changed)}. Needed: the same data until it ends, also after resume=True. Give the levels "
                "as they were, or train anew in a new folder."
            )
        self.digests[days] = found

    def name(self, days: np.ndarray) -> str:
        """Days, given as positions along time, as text."""
        return name_days(self.fine["time"].to_index()[days])

    def read(self, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The network's input before normalisation, and the target, of some days.

        Returns
        -------
        interpolated
            ``(day, lat + 2 radius, lon + 2 radius)``, transformed, no NaN.
        target
            As `observed`; not transformed.
        """
        coarse, target = self.observed(days)
        interpolated = interpolated_input(transform(torch.from_numpy(coarse)[:, None], self.transform), self.config)
        return interpolated[:, 0].numpy(), target


def _values(da: xr.DataArray, days: np.ndarray) -> np.ndarray:
    """``days`` of a lazy array as float32, by one read of the range that holds them."""
    first, last = int(days[0]), int(days[-1])
    block = da.isel(time=slice(first, last + 1)).data
    if isinstance(block, dask.array.Array):
        # The threads of the loader are the parallelism; inside a Dask worker this must not ask the scheduler.
        block = block.compute(scheduler="synchronous")
    values = np.asarray(block, np.float32)[days - first]
    if np.isinf(values).any():
        raise ValueError(
            f"The precipitation holds infinite values on days from {str(da['time'].values[first])[:10]} to "
            f"{str(da['time'].values[last])[:10]}. Type ds['precipitation'].where(np.isfinite(ds['precipitation']))."
        )
    return values_of(da).clean(values)


def values_of(da: xr.DataArray) -> Values:
    """What the numbers of a level's precipitation mean."""
    return Values(str(da.name), lowest=LOWEST, fills=fill_values(da))


def make_pair(coarse: xr.Dataset, fine: xr.Dataset, config: SRCNNConfig, target_transform: str | None = None) -> Pair:
    """Check two levels against each other and put them together for training; precipitation stays lazy.

    Parameters
    ----------
    coarse, fine
        Levels as in docs/conventions.md: ``precipitation (time, lat, lon)``, ``mask (lat, lon)`` and the static
        fields that ``config`` names. Only ``climatology`` is read from ``coarse``.
    config
        The network; its factor must be the ratio of the two grids.
    target_transform
        None, "sqrt" or "log1p".

    Raises
    ------
    ValueError
        Levels of different days, shapes that do not divide, a grid of the other orientation or moved, a missing
        static field, no mask.
    """
    for name, level in (("coarse", coarse), ("fine", fine)):
        if "precipitation" not in level:
            raise ValueError(
                f"The {name} level has the variables {sorted(map(str, level.data_vars))}. Needed: 'precipitation'. "
                "Type level.rename(NAME='precipitation')."
            )
    low, high = (level["precipitation"].transpose("time", "lat", "lon") for level in (coarse, fine))
    _check_grids(low, high, config.factor)
    if not np.array_equal(low["time"].values, high["time"].values):
        raise ValueError(
            f"Levels of different days: the coarse one has {_days(low)}, the fine one {_days(high)}. Needed: the same "
            "days in the same order. Type xr.align(coarse, fine, join='inner', exclude=['lat', 'lon'])."
        )
    for name in config.static:
        if name not in fine:
            raise ValueError(
                f"The fine level has no {name!r} (it has {sorted(map(str, fine.data_vars))}), which the network takes "
                f"as a static field. Add level[{name!r}] (lat, lon), or leave it out: TrainConfig(static="
                f"{tuple(n for n in config.static if n in fine)!r})."
            )
    if "mask" not in fine:
        raise ValueError(
            "The fine level has no 'mask'. Needed: bool (lat, lon), True where values are wanted. Type "
            "level['mask'] = level['precipitation'].notnull().any('time')."
        )
    # Not by the cluster's scheduler: this may run inside one of its tasks.
    fine = fine[[*config.static, "mask"]].compute(scheduler="threads")
    maps = {name: np.asarray(fine[name].transpose("lat", "lon"), np.float64) for name in config.static}
    below = {}
    if CLIMATOLOGY in config.static:
        if CLIMATOLOGY not in coarse:
            raise ValueError("The coarse level has no 'climatology'. Add the block means of the fine one.")
        climatology = coarse[CLIMATOLOGY].transpose("lat", "lon").compute(scheduler="threads")
        below[CLIMATOLOGY] = np.asarray(climatology, np.float64)
    static = stage_channels(maps, below, config.static, config.factor)
    mask = np.asarray(fine["mask"].transpose("lat", "lon"), bool)
    return Pair(low, high, static, mask, config, target_transform)


def factor_between(coarse: xr.Dataset, fine: xr.Dataset) -> int:
    """Fine cells per coarse cell along an axis."""
    return max(1, round(fine.sizes["lat"] / max(coarse.sizes["lat"], 1)))


def with_climatology(
    coarse: xr.Dataset, fine: xr.Dataset, static: Sequence[str], split: Split
) -> tuple[xr.Dataset, xr.Dataset]:
    """Both levels with a climatology if the network wants one: the given one, else the mean of the training days.

    Its attribute ``origin`` says which. Raises ValueError where the given one is the mean of years (its attribute
    ``years``, as `make_levels` and `build_levels` leave it) with validation or test days among them: their errors would
    be too small. Where its years are not known, the log says so.
    """
    if CLIMATOLOGY not in static:
        return coarse, fine
    if CLIMATOLOGY not in fine:
        origin = f"mean of the training days ({_days(fine['time'][split.train])})"
        logger.info("No climatology given: taking the %s.", origin)
        mean = fine["precipitation"].isel(time=split.train).mean("time").compute(scheduler="threads")
        mean.attrs = {"units": fine["precipitation"].attrs.get("units", ""), "long_name": "mean of the training days"}
        fine = fine.assign({CLIMATOLOGY: mean.astype(np.float32)})
        coarse = coarse.drop_vars(CLIMATOLOGY, errors="ignore")
    else:
        origin = _check_climatology(fine, split)
    fine = fine.assign({CLIMATOLOGY: fine[CLIMATOLOGY].assign_attrs(origin=origin)})
    if CLIMATOLOGY not in coarse:
        # By threads, never by the cluster in whose task this may run
        field = np.asarray(fine[CLIMATOLOGY].transpose("lat", "lon").compute(scheduler="threads"))
        coarse = coarse.assign({CLIMATOLOGY: (("lat", "lon"), block_mean(field, factor_between(coarse, fine)))})
    return coarse, fine


def _check_climatology(fine: xr.Dataset, split: Split) -> str:
    """What the years of a given climatology are; ValueError where validation or test days are among them."""
    years = fine[CLIMATOLOGY].attrs.get("years")
    if not isinstance(years, str) or "/" not in years:
        logger.warning(
            "The climatology is a given map, and nothing is known of its years. If validation or test days are among "
            "them, the errors of these days are too small."
        )
        return "a given map, its years are not known"
    index, days = fine["time"].to_index(), within(fine["time"], years)
    parts = {name: np.intersect1d(days, part) for name, part in split._asdict().items() if name != "train"}
    found = [f"{len(part)} {name} days ({name_days(index[part])})" for name, part in parts.items() if len(part)]
    if found:
        raise ValueError(
            f"The climatology in the levels is the mean of {years}, with {' and '.join(found)}. Needed: one without "
            "them, or their errors would be too small. Type [level.drop_vars('climatology') for level in levels], and "
            "training takes the mean of its days; or build levels at another path with the climatology of the training "
            "years (xdeepsd prepare --climatology-years FIRST LAST --out NAME), or with none; or give other days for "
            "validation and test."
        )
    return f"mean of {years}"


def _days(da: xr.DataArray) -> str:
    if not da.sizes["time"]:
        return "no day"
    first, last = (str(da["time"].values[i])[:10] for i in (0, -1))
    return f"{da.sizes['time']} from {first} to {last}"


def _check_grids(coarse: xr.DataArray, fine: xr.DataArray, factor: int) -> None:
    sizes = [(da.sizes["lat"], da.sizes["lon"]) for da in (coarse, fine)]
    if sizes[1] != (factor * sizes[0][0], factor * sizes[0][1]):
        raise ValueError(
            f"The fine level has {sizes[1][0]} x {sizes[1][1]} cells, the coarse one {sizes[0][0]} x {sizes[0][1]}. "
            f"Needed: {factor} times as many along each axis. Type ds.isel(lat=slice(...), lon=slice(...)) to crop "
            "the finest grid to a multiple of the scale, and make the levels from it."
        )
    for name in ("lat", "lon"):
        if name in coarse.coords and name in fine.coords:
            low, high = (np.asarray(da[name], np.float64) for da in (coarse, fine))
            middle = high.reshape(-1, factor).mean(axis=1)
            cell = abs(high[-1] - high[0]) / max(high.size - 1, 1) * factor
            if np.abs(low - middle).max() > 0.02 * cell:
                raise ValueError(
                    f"The two levels do not lie on each other: {name} of the coarse one is {low[0]:g} to {low[-1]:g}, "
                    f"the middles of the fine one's blocks are {middle[0]:g} to {middle[-1]:g}. Needed: centres of "
                    f"the same cells in the same order. Type level.sortby({name!r}) where only the order differs."
                )


def chunk_edges(da: xr.DataArray) -> list[int]:
    """Where the chunks along time begin and end; the two ends only if the array has no chunks."""
    size = da.sizes["time"]
    if da.chunks is not None:
        chunks = list(da.chunks[da.get_axis_num("time")])
    else:
        preferred = da.encoding.get("preferred_chunks", {}).get("time", size)
        chunks = [preferred] * -(-size // preferred)
    return [min(int(edge), size) for edge in np.cumsum([0, *chunks])]


def slabs(pair: Pair, days: np.ndarray, limit: int) -> list[np.ndarray]:
    """Split ``days`` (increasing positions along time) at the chunks of the pair.

    Each slab is read at once. It holds whole chunks of both levels, unless they fit together so badly that a slab
    would be larger than ``limit`` days: then whole chunks of the fine one. Arrays in memory are cut into slabs of
    at most ``limit`` days.
    """
    if not len(days):
        return []
    fine = chunk_edges(pair.fine)
    common = sorted(set(fine) & set(chunk_edges(pair.coarse)))
    edges = common if max(b - a for a, b in pairwise(common)) <= limit else fine
    if len(edges) == 2 and pair.fine.chunks is None and "preferred_chunks" not in pair.fine.encoding:
        edges = [*range(0, edges[-1], limit), edges[-1]]
    parts = np.split(days, np.searchsorted(days, edges[1:-1]))
    return [part for part in parts if len(part)]


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations, to be merged exactly (Chan et al. 1979)."""

    size: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def merge(self, values: np.ndarray) -> Moments:
        """With more ``values`` (no NaN) taken in, float64."""
        if not values.size:
            return self
        values = values.astype(np.float64)
        mean = float(values.mean())
        deviations = float(np.square(values - mean).sum())
        size = self.size + values.size
        apart = mean - self.mean
        return Moments(
            size,
            self.mean + apart * values.size / size,
            self.deviations + deviations + apart**2 * self.size * values.size / size,
        )

    def normalizer(self) -> Normalizer:
        """Mean and standard deviation; 1 where all values are the same."""
        std = float(np.sqrt(self.deviations / max(self.size, 1)))
        return Normalizer(self.mean, std if std > 0 else 1.0)


@dataclass(frozen=True)
class Normalizers:
    """Those of a stage, as `xdeepsd.Stage` takes them."""

    precipitation: Normalizer
    static: Mapping[str, Normalizer]
    target: Normalizer


def fit_normalizers(pair: Pair, days: Sequence[np.ndarray], workers: int = 2) -> Normalizers:
    """Exact means and standard deviations over the cells that count in the loss, a slab of days at a time.

    Raises ValueError where the days hold no observed cell, or an infinite value. Days without one are named in the log.
    """
    radius, residual = pair.config.radius, pair.config.residual

    def read(slab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        interpolated, target = pair.read(slab)
        inner = interpolated[:, radius:-radius, radius:-radius] if radius else interpolated
        valid = ~np.isnan(target)
        wanted = transform(torch.from_numpy(target[valid]), pair.transform).numpy()
        return inner[valid], wanted - inner[valid] if residual else wanted, slab[~valid.any(axis=(1, 2))]

    moments = [Moments(), Moments()]
    empty: list[np.ndarray] = []
    with ThreadPoolExecutor(workers) as pool:
        for *values, without in _in_order(pool, read, days, ahead=workers):
            moments = [m.merge(v) for m, v in zip(moments, values, strict=True)]
            empty.append(without)
    if not moments[0].size:
        raise ValueError(
            f"The {sum(map(len, days))} training days have no observed cell inside the mask. Look at "
            "level['precipitation'].notnull() and level['mask'] (True is land)."
        )
    without = np.concatenate(empty)
    if without.size:
        logger.warning("%d of %d training days have no observed cell inside the mask and teach nothing: %s.",
                       without.size, sum(map(len, days)), pair.name(without))  # fmt: skip
    static = {
        name: Moments().merge(channel[pair.mask]).normalizer()
        for name, channel in zip(pair.config.static, pair.static, strict=True)
    }
    return Normalizers(moments[0].normalizer(), static, moments[1].normalizer())


def _in_order(pool: ThreadPoolExecutor, function, items, ahead: int) -> Iterator:  # type: ignore[no-untyped-def]
    """``map`` of a pool that runs at most ``ahead`` items before they are asked for, so that memory is bounded."""
    pending: deque[Future] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
