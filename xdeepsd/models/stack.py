"""A trained model: stages in order, and what they were trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xdeepsd.grids.axes import spacing
from xdeepsd.models import card
from xdeepsd.models.stage import Stage
from xdeepsd.models.static import COARSE_PRODUCT, is_learned
from xdeepsd.models.variable import PRECIPITATION, Variable

LARGEST = "largest"  # in ``training``: see `StackedSRCNN`


@dataclass(frozen=True, eq=False, repr=False)
class StackedSRCNN:
    """Stages applied one after another, each to the output of the previous one (DeepSD, KDD 2017, section 3.2).

    Parameters
    ----------
    stages
        From the coarsest level to the finest.
    units
        Precipitation units that the stages were trained in.
    variable
        Name of the variable that the model was trained on; None: unknown.
    static
        Static fields on the finest grid: a Dataset with dims ``lat, lon`` whose coordinates are the target grid. None:
        the grid comes from the ``static`` passed to `xdeepsd.downscale`.
    mask
        ``(lat, lon)`` bool on the same grid, True where values are wanted; None: everywhere.
    training
        Facts worth knowing about the training: years, errors, seed; under ``coarse_product`` the name of the
        independent product that the first stage takes, whose means are never kept; under ``largest`` the largest
        precipitation of the coarsest level on the training days, in ``units``.
    kind
        Properties of the variable: `xdeepsd.models.variable.PRECIPITATION`, so far the only one.

    Examples
    --------
    >>> import xdeepsd
    >>> net = xdeepsd.SRCNN(xdeepsd.SRCNNConfig(channels=(4, 2), kernels=(3, 1, 3)))
    >>> rain = xdeepsd.Normalizer(mean=2.0, std=5.0)  # mm day-1
    >>> stage = xdeepsd.Stage(net, rain, {"elevation": xdeepsd.Normalizer(mean=500.0, std=400.0)}, rain)
    >>> model = xdeepsd.StackedSRCNN([stage, stage])
    >>> model.scale, model.factors
    (4, (2, 2))
    """

    stages: Sequence[Stage]
    units: str = PRECIPITATION.units
    variable: str | None = None
    static: xr.Dataset | None = None
    mask: xr.DataArray | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    kind: Variable = PRECIPITATION

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("The stack has no stages. Needed: StackedSRCNN([stage, ...]), coarsest first.")
        for stage in self.stages:
            kept = stage.config.conserve
            if stage.transform not in self.kind.transforms or (kept and not self.kind.conserved):
                raise ValueError(
                    f"A stage has transform={stage.transform!r} and conserve={kept!r}. Needed for {self.kind.name}: a "
                    f"transform in {self.kind.transforms}, and {'any' if self.kind.conserved else 'no'} mean kept."
                )
        for part in (self.static, self.mask):
            if part is not None and not {"lat", "lon"} <= set(part.coords):
                raise ValueError(
                    f"The model's static fields and mask need the coordinates lat and lon; got {list(part.coords)}."
                )

    @property
    def factors(self) -> tuple[int, ...]:
        """Factor of each stage."""
        return tuple(stage.config.factor for stage in self.stages)

    @property
    def scale(self) -> int:
        """Fine cells per coarse cell along an axis, over all stages."""
        return math.prod(self.factors)

    @property
    def halo(self) -> int:
        """Coarsest cells needed around a cell to compute the finest cells inside it."""
        halo = 0
        for stage in reversed(self.stages):
            halo = stage.config.halo + math.ceil(halo / stage.config.factor)
        return halo

    @property
    def static_names(self) -> tuple[str, ...]:
        """Static fields that any stage needs, in order of first use, without those it learned."""
        names = dict.fromkeys(name for stage in self.stages for name in stage.config.static)
        return tuple(name for name in names if name not in self.learned_names)

    @property
    def learned_names(self) -> tuple[str, ...]:
        """Static fields that the stages learned on their own grids: the coefficients of "regression"."""
        return tuple(name for stage in self.stages for name in stage.config.static if is_learned(name))

    @property
    def noise(self) -> bool:
        """Whether any stage takes noise, so that the model gives members of an ensemble."""
        return any(stage.config.noise for stage in self.stages)

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Size of the coarsest cells in latitude and longitude, degrees; None if the grid is unknown."""
        if self.static is None:
            return None
        steps = (abs(spacing(self.static[name], name)) for name in ("lat", "lon"))
        lat, lon = (step * self.scale for step in steps)
        return lat, lon

    def __repr__(self) -> str:
        """A few lines: stages, grids, units, and what is known about the training."""
        return card.as_text(self)

    def _repr_html_(self) -> str:
        """The same as tables, in a notebook."""
        return card.as_html(self)

    def card(self) -> str:
        """A model card in Markdown: what the model is, its data, its errors beside the baselines', its limits.

        It says what the model knows, and "not recorded" of the rest. Plain facts of ``training`` are listed under their
        names: ``dataclasses.replace(model, training={**model.training, "data": "PRISM", "licence": ..., "day_boundary":
        "12 UTC"})``. So are, as a table, ``errors`` of the whole stack, such as ``compare(...).to_dict("index")``, with
        the days they are for as ``errors_on``. Lazy static fields are not computed.
        """
        return card.as_markdown(self)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change if any weight or normaliser, the units or the variable change.

        The static fields and the mask are left out, since they may be lazy.
        """
        digest = hashlib.sha256(json.dumps(describe(self), sort_keys=True, default=str).encode())
        for name, array in sorted(weights(self).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]


# Models that do without fields added since keep their fingerprint.
_LATER = {"noise": 0, "head": "value"}


def describe(model: StackedSRCNN) -> dict[str, Any]:
    """What `fingerprint` covers besides the weights, in the form it is saved in."""
    return {
        "units": model.units,
        "variable": model.variable,
        "stages": [
            {
                "config": {k: v for k, v in asdict(stage.config).items() if (k, v) not in _LATER.items()},
                "precipitation": asdict(stage.precipitation),
                "static": {name: asdict(n) for name, n in stage.static.items()},
                "target": asdict(stage.target),
                "transform": stage.transform,
            }
            for stage in model.stages
        ],
    } | {key: model.training[key] for key in (COARSE_PRODUCT,) if key in model.training}


def weights(model: StackedSRCNN) -> dict[str, np.ndarray]:
    """Weights and biases of all stages by name."""
    return {
        f"stages.{i}.{name}": tensor.detach().cpu().numpy()
        for i, stage in enumerate(model.stages)
        for name, tensor in stage.net.state_dict().items()
    }
