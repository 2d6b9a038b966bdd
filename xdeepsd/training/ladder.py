"""The resolution ladder as training takes it: opened once, with the static fields that the stages learn from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids.blocks import block_mean
from xdeepsd.levels.climatology import coarse_bias, with_climatology
from xdeepsd.levels.coarse import product_of
from xdeepsd.levels.disk import open_levels
from xdeepsd.levels.pairs import check_fields, factor_between
from xdeepsd.models.static import CLIMATOLOGY, COARSE_BIAS
from xdeepsd.training.config import TrainConfig

logger = logging.getLogger(__name__)

# What users may pass; `check_levels` makes it a list.
Levels = str | os.PathLike[str] | Sequence[xr.Dataset]


def check_levels(levels: Levels) -> list[xr.Dataset]:
    """Levels, coarsest first, lazy; ValueError unless there are at least two, whose shapes divide, with units."""
    where = "the sequence"
    if isinstance(levels, str | os.PathLike):
        where, levels = str(levels), open_levels(levels)
    if len(levels) < 2:
        raise ValueError(
            f"{len(levels)} level(s) in {where}. Needed: two or more, coarsest first. Type xdeepsd.make_levels(...)."
        )
    finest = levels[-1]
    for k, level in enumerate(levels):
        factor = factor_between(level, finest)
        if any(finest.sizes[dim] != factor * level.sizes[dim] for dim in ("lat", "lon")):
            raise ValueError(
                f"The finest level has {finest.sizes['lat']} x {finest.sizes['lon']} cells, which level {k} with "
                f"{level.sizes['lat']} x {level.sizes['lon']} does not divide. Needed: a whole factor, the same along "
                "both axes. Crop the finest grid to a multiple of the scale and make the levels from it."
            )
    if not finest["precipitation"].attrs.get("units"):
        raise ValueError(
            "The precipitation of the finest level has no units. Type level['precipitation'].attrs['units'] = "
            "'mm day-1' with its true units."
        )
    return list(levels)


@dataclass(frozen=True, eq=False)
class Ladder:
    """The levels, and what the stages take from the finest one. Made by `Ladder.of`.

    Parameters
    ----------
    levels
        As `check_levels` returns them.
    static
        Static fields and mask of the finest grid, in memory; the keys (`static_key`) are what they depend on.
    """

    levels: Sequence[xr.Dataset]
    static: Mapping[tuple[Any, ...], xr.Dataset]

    @classmethod
    def of(cls, levels: Sequence[xr.Dataset], configs: Iterable[TrainConfig]) -> Ladder:
        """The ladder for stages that are trained with ``configs``; reads the static fields of all of them."""
        kinds = {static_key(config): config for config in configs}
        return cls(levels, {key: _static_fields(levels, config) for key, config in kinds.items()})

    @property
    def units(self) -> str:
        """Units of the precipitation."""
        return str(self.levels[-1]["precipitation"].attrs["units"])

    def fields(self, config: TrainConfig) -> xr.Dataset:
        """Static fields of ``config`` and the mask on the finest grid, in memory."""
        return self.static[static_key(config)]

    def stage_levels(self, k: int, config: TrainConfig) -> tuple[xr.Dataset, xr.Dataset]:
        """Input and output level of stage ``k``, with static fields that are block means of the finest ones.

        Inference takes the fields in the same way. Precipitation stays lazy.
        """
        static = self.fields(config).drop_vars("mask")
        coarse, fine = (
            level.drop_vars(static.data_vars, errors="ignore").assign(
                {
                    str(name): (("lat", "lon"), block_mean(np.asarray(field), factor_between(level, static)))
                    for name, field in static.data_vars.items()
                }
            )
            for level in self.levels[k : k + 2]
        )
        return coarse, fine


def for_product(config: TrainConfig, coarse: xr.Dataset, index: int = 0) -> TrainConfig:
    """The configuration of a stage, changed where its ``coarse`` level is an independent product.

    The means of the product are not kept, since its bias is what the stage is to correct; ``climatology`` becomes
    `COARSE_BIAS`, the ratio of the observed mean to the product's.
    """
    if product_of(coarse) is None:
        return config
    static = tuple(dict.fromkeys(COARSE_BIAS if name == CLIMATOLOGY else name for name in config.static))
    if config.conserve is not None:
        logger.info(
            "Stage %d learns from an independent product (%s): its coarse means are not kept, they may be biased.",
            index, product_of(coarse),
        )  # fmt: skip
    return replace(config, static=static, conserve=None)


def static_key(config: TrainConfig) -> tuple[Any, ...]:
    """What the static fields depend on."""
    return config.given_static, config.train, config.validation, config.test


def _static_fields(levels: Sequence[xr.Dataset], config: TrainConfig) -> xr.Dataset:
    """Static fields of ``config`` and the mask of the finest level, in memory.

    A climatology that is asked for but not given is the mean of the finest level's training days; see
    `with_climatology` for a given one. The bias of a product is that of the first stage.
    """
    finest = levels[-1]
    split = config.split(finest["time"])
    if COARSE_BIAS in config.static and COARSE_BIAS not in finest and product_of(levels[0]) is not None:
        bias = coarse_bias(levels[0], levels[1], split)
        side = factor_between(levels[1], finest)  # constant inside the cells of the stage's output
        finest = finest.assign({COARSE_BIAS: (("lat", "lon"), bias.repeat(side, axis=0).repeat(side, axis=1))})
    check_fields(finest, config.given_static, "finest", later=[CLIMATOLOGY])
    _, finest = with_climatology(finest, finest, config.given_static, split)
    fields = finest[[*config.given_static, "mask"]].transpose("lat", "lon")
    return fields.drop_vars([name for name in fields.coords if name not in fields.dims]).compute(scheduler="threads")
