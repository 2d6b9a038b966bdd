"""One trained stage: a network with its normalisers, and the plain forward that defines its numbers (torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xdeepsd.models import bernoulli_gamma
from xdeepsd.models import transform as transforms
from xdeepsd.models.conserve import conserve, transform_kept
from xdeepsd.models.normalize import Normalizer
from xdeepsd.models.srcnn import SRCNN, SRCNNConfig, pad_edges, upsample_tensor


def interpolated_input(coarse: Tensor, config: SRCNNConfig) -> Tensor:
    """The interpolated precipitation that the network of a stage sees: the fine map and `radius` cells around it.

    ``(batch, channel, lat, lon)`` to ``(batch, channel, factor * lat + 2 radius, factor * lon + 2 radius)``, edges
    replicated before the interpolation. The same in training and at inference.
    """
    fine = upsample_tensor(pad_edges(coarse, config.halo), config.factor)
    margin = config.halo * config.factor - config.radius
    return fine[..., margin:-margin, margin:-margin] if margin else fine


@dataclass(frozen=True, eq=False)
class Stage:
    """One network with its normalisers.

    Parameters
    ----------
    net
        The trained `SRCNN`.
    precipitation
        Normaliser of the interpolated input, in the units of the model (transformed, with ``transform``).
    static
        Normaliser of each static field by name: exactly those in ``net.config.static``.
    target
        Normaliser of the fine precipitation, or of its difference from the interpolated input if ``residual``.
    transform
        "sqrt" or "log1p": the coarse precipitation is transformed first, and the output is transformed back at the
        end; everything in between (interpolation, normalisers, residual) uses transformed values. None: no transform.

    Examples
    --------
    >>> import xdeepsd
    >>> net = xdeepsd.SRCNN(xdeepsd.SRCNNConfig(channels=(4, 2), kernels=(3, 1, 3)))
    >>> rain = xdeepsd.Normalizer(mean=2.0, std=5.0)  # mm day-1
    >>> stage = xdeepsd.Stage(net, rain, {"elevation": xdeepsd.Normalizer(mean=500.0, std=400.0)}, rain)
    >>> stage.config.factor
    2
    """

    net: SRCNN
    precipitation: Normalizer
    static: Mapping[str, Normalizer]
    target: Normalizer
    transform: str | None = None

    def __post_init__(self) -> None:
        transforms.check(self.transform)
        wanted, given = self.net.config.static, tuple(self.static)
        if sorted(wanted) != sorted(given):
            raise ValueError(
                f"The network takes the static fields {wanted}, but the normalisers are for {given}. "
                "Needed: one Normalizer for each, Stage(net, precipitation, {name: Normalizer(mean, std)}, target)."
            )
        object.__setattr__(self, "static", {name: self.static[name] for name in wanted})

    @property
    def config(self) -> SRCNNConfig:
        """Configuration of the network."""
        return self.net.config

    def __call__(
        self, coarse: Tensor, static: Tensor, weights: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Fine precipitation of a batch of days: the plain forward, which the fast forward must reproduce.

        Parameters
        ----------
        coarse
            ``(batch, lat, lon)``, in the units of the model, without NaN.
        static
            ``(static, factor * lat, factor * lon)`` from `xdeepsd.models.static.stage_channels`, not normalised.
        weights
            ``(factor * lat, factor * lon)``, the weight of each cell in the mean of its coarse cell, from
            `xdeepsd.models.conserve.cell_weights`. Used only with ``config.conserve``; None: all equal.
        noise
            ``(batch, noise, factor * lat + 2 radius, factor * lon + 2 radius)``, standard normal on the fine map and
            the `radius` cells around it, for networks that take noise.

        Returns
        -------
        ``(batch, factor * lat, factor * lon)``, same units, at least 0 (docs/method.md); the expectation, where the
        network gives a distribution.
        """
        fine = self._forward(coarse, static, weights, noise)
        return fine if self.config.head == "value" else bernoulli_gamma.expectation(fine)

    def distribution(self, coarse: Tensor, static: Tensor, weights: Tensor | None = None) -> Tensor:
        """Chance, shape and scale of a "bernoulli_gamma" head, ``(batch, 3, lat, lon)``; arguments as `__call__`."""
        return self._forward(coarse, static, weights)

    def _forward(
        self, coarse: Tensor, static: Tensor, weights: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Precipitation, or the parameters of its distribution."""
        config, radius = self.config, self.config.radius
        fine = interpolated_input(transforms.transform(coarse[:, None], self.transform), config)
        channels = [self.precipitation.apply(fine)]
        if config.static:
            normalized = torch.stack([n.apply(static[i]) for i, n in enumerate(self.static.values())])
            channels.append(pad_edges(normalized[None], radius).expand(len(coarse), -1, -1, -1))
        if noise is not None:
            channels.append(noise)
        output = self.net(torch.cat(channels, dim=1)).squeeze(1)
        interpolated = fine[:, 0, radius:-radius, radius:-radius] if radius else fine[:, 0]
        if config.conserve is None:
            return self.predicted(output, interpolated)
        if weights is None:
            weights = torch.ones(output.shape[-2:], dtype=output.dtype, device=output.device)
        return self.conserved(output, interpolated, coarse, weights)

    def predicted(self, output: Tensor, interpolated: Tensor) -> Tensor:
        """Precipitation, or the parameters of its distribution, that ``output`` stands for, before any mean is kept."""
        if self.config.head == "value":
            return self.precipitation_of(output, interpolated)
        output = output.to(interpolated.dtype)  # an exponential of eight bits would be far off
        first = self._transformed(output[:, 0], interpolated)
        return bernoulli_gamma.parameters_of(output, first, self.target.std, self.transform)

    def precipitation_of(self, output: Tensor, interpolated: Tensor) -> Tensor:
        """Precipitation that the network's ``output`` stands for, before any mean is kept; all ``(batch, lat, lon)``.

        ``interpolated`` is the transformed input on the cells of the output.
        """
        return transforms.invert(self._transformed(output, interpolated).clamp_min(0.0), self.transform)

    def predicted_for_loss(self, output: Tensor, interpolated: Tensor) -> Tensor:
        """`predicted` for losses in mm: precipitation goes on below 0, linearly, so that there is a gradient."""
        if self.config.head != "value":
            return self.predicted(output, interpolated)
        result = self._transformed(output, interpolated)
        return transforms.invert(result.clamp_min(0.0), self.transform) + result.clamp_max(0.0)

    def _transformed(self, output: Tensor, interpolated: Tensor) -> Tensor:
        result = self.target.invert(output)
        return result + interpolated if self.config.residual else result

    def conserved(self, output: Tensor, interpolated: Tensor, coarse: Tensor, weights: Tensor) -> Tensor:
        """`predicted` with the means of ``coarse`` kept as ``config.conserve`` says (a distribution: by its scale)."""
        kind = self.config.conserve
        assert kind is not None
        if self.config.head != "value":
            parameters = self.predicted(output, interpolated)
            mean = bernoulli_gamma.expectation(parameters)
            kept = conserve(mean, coarse, weights, self.config.factor, kind)
            return bernoulli_gamma.with_expectation(parameters, kept)
        fine = output if kind == "softmax" else self.precipitation_of(output, interpolated)
        return conserve(fine, coarse, weights, self.config.factor, kind)

    def normalized_target(self, fine: Tensor, interpolated: Tensor) -> Tensor:
        """The value the network should output for ``fine``: transformed, residual, normalised. For the loss."""
        target = transform_kept(fine, self.transform)
        return self.target.apply(target - interpolated if self.config.residual else target)


def copied(stage: Stage, conserve: str | None = None) -> Stage:
    """A copy of the stage with its own network, on the CPU: later changes to the original's weights do not affect it.

    ``conserve`` replaces the setting the network was trained with, see `SRCNNConfig`; None: no change.
    """
    net = SRCNN(stage.config if conserve is None else replace(stage.config, conserve=conserve))
    net.load_state_dict(stage.net.state_dict())
    return replace(stage, net=net.eval())
