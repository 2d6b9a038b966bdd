"""A pair of levels to learn from: checking it, and reading it in slabs of days.

The pair stays lazy; `xdeepsd.levels.patches` cuts the patches for training from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import dask.array
import numpy as np
import torch
import xarray as xr

from xdeepsd.grids import align
from xdeepsd.grids.missing import fill_nearest
from xdeepsd.levels.days import name_days, name_span
from xdeepsd.models.conserve import cell_weights
from xdeepsd.models.srcnn import SRCNNConfig
from xdeepsd.models.stage import interpolated_input
from xdeepsd.models.static import CLIMATOLOGY, stage_channels
from xdeepsd.models.transform import transform
from xdeepsd.models.variable import PRECIPITATION, Values, fill_values


@dataclass(frozen=True, eq=False)
class Pair:
    """What one stage learns from: precipitation of two neighbouring levels on the same days. Made by `make_pair`.

    Parameters
    ----------
    coarse, fine
        ``(time, lat, lon)``, NaN where not observed; lazy where the input is.
    static
        ``(static, lat, lon)`` float32 on the fine grid, from `xdeepsd.models.static.stage_channels`, not normalised.
    mask
        ``(lat, lon)`` bool on the fine grid, True where values are wanted.
    weights
        ``(lat, lon)`` float32: the weight of each fine cell in the mean of its coarse cell, see `cell_weights`; the
        mask where ``config`` does not keep coarse means.
    config
        The network to be trained on the pair.
    transform
        Transform of precipitation, see `xdeepsd.Stage`.
    digests
        ``(time,)`` int64: checksum of the values of each day when they were first read, -1 until then. Checkpoints keep
        them.
    """

    coarse: xr.DataArray
    fine: xr.DataArray
    static: np.ndarray
    mask: np.ndarray
    weights: np.ndarray
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
            ``(day, lat, lon)``: coarse precipitation; missing cells filled from the nearest observed cell.
        target
            ``(day, lat, lon)``: fine precipitation; NaN where it does not enter the loss: not observed, outside the
            mask or inside a missing coarse cell.

        Raises
        ------
        ValueError
            The values of a day have changed since it was first read.
        """
        factor = self.config.factor
        coarse, target = read_days(self.coarse, days), read_days(self.fine, days)
        self._check_digests(days, coarse, target)
        unusable = np.repeat(np.repeat(np.isnan(coarse), factor, axis=1), factor, axis=2) | ~self.mask
        return fill_nearest(coarse, self.config.halo), np.where(unusable, np.float32(np.nan), target)

    def _check_digests(self, days: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> None:
        found = np.array([zlib.crc32(f, zlib.crc32(c)) for c, f in zip(coarse, fine, strict=True)])
        before = self.digests[days]
        changed = days[(before >= 0) & (before != found)]
        if changed.size:
            raise ValueError(
                f"The precipitation of {changed.size} days has changed since this training began: "
                f"{self.name(changed)}. Needed: the same data until it ends, also after resume=True. Give the levels "
                "as they were, or train anew in a new folder."
            )
        self.digests[days] = found

    def name(self, days: np.ndarray) -> str:
        """Days, given as positions along time, as text."""
        return name_days(self.fine["time"].to_index()[days])

    def read(self, days: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The network's input before normalisation, the precipitation it is made from, and the target, on some days.

        Returns
        -------
        coarse
            As `observed`; not transformed.
        interpolated
            ``(day, lat + 2 radius, lon + 2 radius)``, transformed, no NaN.
        target
            As `observed`; not transformed.
        """
        coarse, target = self.observed(days)
        interpolated = interpolated_input(transform(torch.from_numpy(coarse)[:, None], self.transform), self.config)
        return coarse, interpolated[:, 0].numpy(), target


def read_days(da: xr.DataArray, days: np.ndarray) -> np.ndarray:
    """``days`` of a lazy array as float32, read in one go with the days between them."""
    first, last = int(days[0]), int(days[-1])
    block = da.isel(time=slice(first, last + 1)).data
    if isinstance(block, dask.array.Array):
        # The loader's threads already work in parallel, and inside a Dask worker this must not go to the scheduler.
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
    return Values(str(da.name), lowest=PRECIPITATION.lowest, fills=fill_values(da))


def make_pair(coarse: xr.Dataset, fine: xr.Dataset, config: SRCNNConfig, target_transform: str | None = None) -> Pair:
    """Check that two levels belong together and pair them for training; precipitation stays lazy.

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
        The levels have different days, their shapes do not divide, a grid is shifted or in another order, or a static
        field or the mask is missing.
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
            f"The levels have different days: the coarse one has {name_span(low)}, the fine one {name_span(high)}. "
            "Needed: the same days in the same order. Type "
            "xr.align(coarse, fine, join='inner', exclude=['lat', 'lon'])."
        )
    check_fields(fine, config.static)
    # Not with the cluster's scheduler: this may run inside one of its tasks.
    fine = fine[[*config.static, "mask", *{"land_fraction"} & set(fine)]].compute(scheduler="threads")
    maps = {name: np.asarray(fine[name].transpose("lat", "lon"), np.float64) for name in config.static}
    below = {}
    if CLIMATOLOGY in config.static:
        if CLIMATOLOGY not in coarse:
            raise ValueError("The coarse level has no 'climatology'. Add the block means of the fine one.")
        climatology = coarse[CLIMATOLOGY].transpose("lat", "lon").compute(scheduler="threads")
        below[CLIMATOLOGY] = np.asarray(climatology, np.float64)
    static = stage_channels(maps, below, config.static, config.factor)
    mask = np.asarray(fine["mask"].transpose("lat", "lon"), bool)
    weights = mask.astype(np.float32) if config.conserve is None else _weights(fine, mask)
    return Pair(low, high, static, mask, weights, config, target_transform)


def _weights(fine: xr.Dataset, mask: np.ndarray) -> np.ndarray:
    """`cell_weights` of the fine level, from the observed share of each cell; equal areas if there are no latitudes."""
    share = mask * np.asarray(fine["land_fraction"].transpose("lat", "lon")) if "land_fraction" in fine else mask
    if not share.any():  # reported later, where patches or days are looked for
        return np.zeros(mask.shape, np.float32)
    lat = fine["lat"].values if "lat" in fine.coords else np.linspace(-1e-3, 1e-3, mask.shape[0])
    return cell_weights(lat, mask.shape[1], share).astype(np.float32)


def check_fields(level: xr.Dataset, static: Sequence[str], which: str = "fine", later: Sequence[str] = ()) -> None:
    """ValueError where a level lacks the mask or a static field, except those that are made ``later``."""
    missing = [name for name in static if name not in level and name not in later]
    if missing:
        raise ValueError(
            f"The {which} level has no {missing[0]!r} (it has {sorted(map(str, level.data_vars))}), which the network "
            f"takes as a static field. Add level[{missing[0]!r}] (lat, lon), or leave it out: TrainConfig(static="
            f"{tuple(n for n in static if n not in missing)!r})."
        )
    if "mask" not in level:
        raise ValueError(
            f"The {which} level has no 'mask'. Needed: bool (lat, lon), True where values are wanted. Type "
            "level['mask'] = level['precipitation'].notnull().any('time')."
        )


def factor_between(coarse: xr.Dataset, fine: xr.Dataset) -> int:
    """Fine cells per coarse cell along an axis."""
    return max(1, round(fine.sizes["lat"] / max(coarse.sizes["lat"], 1)))


def _check_grids(coarse: xr.DataArray, fine: xr.DataArray, factor: int) -> None:
    """ValueError where the cells of ``coarse`` are not blocks of ``factor`` x ``factor`` fine cells."""
    sizes = [(da.sizes["lat"], da.sizes["lon"]) for da in (coarse, fine)]
    if sizes[1] != (factor * sizes[0][0], factor * sizes[0][1]):
        raise ValueError(
            f"The fine level has {sizes[1][0]} x {sizes[1][1]} cells, the coarse one {sizes[0][0]} x {sizes[0][1]}. "
            f"Needed: {factor} times as many along each axis. Type ds.isel(lat=slice(...), lon=slice(...)) to crop "
            "the finest grid to a multiple of the scale, and make the levels from it."
        )
    for name in ("lat", "lon"):
        if name in coarse.coords and name in fine.coords:
            low, middle = coarse[name].values, np.asarray(fine[name], np.float64).reshape(-1, factor).mean(axis=1)
            if align.off_blocks(fine[name], low, name) > align.LIES_ON:
                raise ValueError(
                    f"The two levels do not lie on each other: {name} of the coarse one runs from {low[0]:g} to "
                    f"{low[-1]:g}, the centres of the fine one's blocks from {middle[0]:g} to {middle[-1]:g}. Needed: "
                    f"the same centres in the same order. Type level.sortby({name!r}) if only the order differs."
                )


def chunk_edges(da: xr.DataArray) -> list[int]:
    """Where the chunks along time begin and end; only the two ends if the array has no chunks."""
    size = da.sizes["time"]
    if da.chunks is not None:
        chunks = list(da.chunks[da.get_axis_num("time")])
    else:
        preferred = da.encoding.get("preferred_chunks", {}).get("time", size)
        chunks = [preferred] * -(-size // preferred)
    return [min(int(edge), size) for edge in np.cumsum([0, *chunks])]


def slabs(pair: Pair, days: np.ndarray, limit: int) -> list[np.ndarray]:
    """Split ``days`` (increasing positions along time) at the chunks of the pair.

    Each slab is read in one go. It holds whole chunks of both levels, or only of the fine level where their common
    edges are more than ``limit`` days apart. Arrays in memory are cut into slabs of at most ``limit`` days.
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
