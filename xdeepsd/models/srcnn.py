"""The network of one stage: a super-resolution CNN with 'valid' convolutions (tensors only).

Dong et al. (2014), stacked as in DeepSD (Vandal et al., KDD 2017, section 3): ``conv k1, ReLU, conv k2, ReLU,
conv k3`` on the interpolated precipitation and the fine static fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from xdeepsd.models import html
from xdeepsd.models.conserve import check as check_conserve

# What a stage gives for each fine cell, and the number of the network's outputs it takes.
HEADS = {"value": 1, "bernoulli_gamma": 3}


@dataclass(frozen=True)
class SRCNNConfig:
    """Architecture of one stage's network.

    Parameters
    ----------
    channels
        Output channels of each convolution except the last (64, 32 in the paper).
    kernels
        Odd kernel sizes, one more than ``channels`` (9, 1, 5 in the paper; 9, 3, 5 in deepsd's code).
    factor
        Fine cells per coarse cell along an axis.
    static
        Names of the static fields, in the order of the input channels after precipitation.
    residual
        The network predicts the difference from the interpolated input instead of the value itself.
    conserve
        "multiplicative", "additive" or "softmax": the mean of the fine cells is kept at the coarse value, see
        `xdeepsd.models.conserve.conserve`. None: means are not kept. With "softmax" the network gives exponents and is
        never residual.
    noise
        Channels of white noise (`xdeepsd.models.noise.white_noise`) that the network takes after the static fields: it
        then gives one member of an ensemble for each noise. 0: it gives one field.
    head
        "value": precipitation. "bernoulli_gamma": its distribution, the chance of rain and the shape and scale of wet
        amounts (`xdeepsd.models.bernoulli_gamma`), whose expectation is what later stages and `xdeepsd.downscale` see.

    Examples
    --------
    >>> import xdeepsd
    >>> config = xdeepsd.SRCNNConfig(static=("elevation", "climatology"), residual=True)
    >>> config.kernels, config.radius
    ((9, 1, 5), 6)
    """

    channels: tuple[int, ...] = (64, 32)
    kernels: tuple[int, ...] = (9, 1, 5)
    factor: int = 2
    static: tuple[str, ...] = ("elevation",)
    residual: bool = False
    conserve: str | None = None
    noise: int = 0
    head: str = "value"

    def __post_init__(self) -> None:
        for name in ("channels", "kernels", "static"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"{name} is the string {value!r}. Needed: a tuple, such as ({value!r},).")
            object.__setattr__(self, name, tuple(value))
        if len(self.kernels) != len(self.channels) + 1:
            raise ValueError(
                f"kernels {self.kernels} and channels {self.channels}. Needed: one more kernel than hidden channels, "
                "such as channels=(64, 32), kernels=(9, 1, 5)."
            )
        if any(int(k) != k or k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels {self.kernels}. Needed: odd sizes of at least 1, such as (9, 1, 5).")
        if any(int(c) != c or c < 1 for c in self.channels):
            raise ValueError(f"channels {self.channels}. Needed: whole numbers of at least 1.")
        if int(self.factor) != self.factor or self.factor < 1:
            raise ValueError(f"factor {self.factor}. Needed: a whole number of at least 1, such as 2.")
        if len(set(self.static)) != len(self.static):
            raise ValueError(f"static {self.static} names a field twice. Needed: each field once.")
        if int(self.noise) != self.noise or self.noise < 0:
            raise ValueError(f"noise {self.noise}. Needed: a whole number of at least 0, such as 2.")
        check_conserve(self.conserve)
        if self.conserve == "softmax" and self.residual:
            raise ValueError(
                "conserve='softmax' and residual=True: with 'softmax' the network gives exponents, to which the "
                "interpolated input cannot be added. Needed: only one of the two. Type residual=False."
            )
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}; needed: one of {', '.join(map(repr, HEADS))}.")
        if self.conserve == "softmax" and self.head != "value":
            raise ValueError(
                f"conserve='softmax' and head={self.head!r}: with 'softmax' the network gives exponents, not a "
                "distribution. Needed: only one of the two. Type conserve='multiplicative'."
            )
        if self.noise and self.head != "value":
            raise ValueError(
                f"noise={self.noise} and head={self.head!r}: the spread is either that of members, one for each "
                "noise, or that of a distribution. Needed: only one of the two. Type noise=0."
            )

    def _repr_html_(self) -> str:
        """The same as ``repr``, and what follows from it, as a table in a notebook."""
        reach = {"radius": f"{self.radius} fine cells", "halo": f"{self.halo} coarse cells"}
        return html.settings(self, reach)

    @property
    def radius(self) -> int:
        """Fine cells that the 'valid' convolutions remove on each side."""
        return sum((k - 1) // 2 for k in self.kernels)

    @property
    def halo(self) -> int:
        """Coarse cells needed around a cell: the reach of the convolutions and of bilinear interpolation together."""
        # The leftmost fine cell needed, -radius, lies at coarse index (-radius + 0.5) / factor - 0.5.
        return max(0, -math.floor((0.5 - self.radius) / self.factor - 0.5))


class SRCNN(nn.Module):
    """One stage's network: normalised channels in, one normalised channel out (three with a "bernoulli_gamma" head).

    ``parameters()`` yields the weight and bias of each layer in order: 13,313 numbers with 9-1-5 kernels, 64-32-1
    channels and two input channels.

    Examples
    --------
    >>> import xdeepsd
    >>> sum(weights.numel() for weights in xdeepsd.SRCNN().parameters())
    13313
    """

    def __init__(self, config: SRCNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or SRCNNConfig()
        widths = (1 + len(self.config.static) + self.config.noise, *self.config.channels, HEADS[self.config.head])
        self.layers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(self.config.kernels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1 + static + noise, lat + 2 radius, lon + 2 radius)`` to ``(batch, outputs, lat, lon)``.

        Both are normalised.
        """
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def upsample_tensor(x: Tensor, factor: int) -> Tensor:
    """Bilinear interpolation with half-pixel centres, edges replicated.

    ``(..., lat, lon)`` to ``(..., factor * lat, factor * lon)``; NaN spreads to the fine cells it touches.
    """
    lead, (nlat, nlon) = x.shape[:-2], x.shape[-2:]
    fine = F.interpolate(x.reshape(-1, 1, nlat, nlon), scale_factor=factor, mode="bilinear", align_corners=False)
    return fine.reshape(*lead, factor * nlat, factor * nlon)


def pad_edges(x: Tensor, width: int) -> Tensor:
    """Replicate the edges of ``(batch, channel, lat, lon)`` by ``width`` cells on each side."""
    return F.pad(x, (width, width, width, width), mode="replicate") if width else x
