"""DenseLoss: the mean squared error, weighted by the rarity of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xdeepsd.losses.masked import differences, mean_of
from xdeepsd.models.transform import transform

if TYPE_CHECKING:
    from xdeepsd.losses.dense_weight import DenseWeight
    from xdeepsd.models.normalize import Normalizer


class DenseLoss(nn.Module):
    """Mean squared error in normalised space, each pixel weighted by the rarity of its target.

    ``sum over valid pixels of w(value) * (pred - target)**2 / number of valid pixels`` (Steininger et al. 2021), with
    the weights of a fitted `DenseWeight`. Weights are a function of the value in its units (mm day-1), whereas
    ``target`` is normalised; so the value is either given as ``values`` or computed by ``normalizer``.

    Parameters
    ----------
    dense_weight
        Fitted on training values in mm day-1. Available as ``loss.dense_weight``; its ``summary()`` is worth logging.
    normalizer
        Undoes the normalisation of ``target`` where ``forward`` gets no ``values``. None: the target is in the units
        of the weights. For a residual stage, whose target is a difference, ``values`` are required.

    Raises
    ------
    ValueError
        If ``dense_weight`` is not fitted.

    Notes
    -----
    The table of the density and its slopes are buffers (float64, so that weights equal ``dense_weight.weights``) that
    move with ``loss.to(device)``; for a device without float64, use ``loss.float().to(device)``. They are not part of
    ``state_dict``: save ``loss.dense_weight.to_dict()``.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> import xdeepsd
    >>> rain = np.concatenate([np.zeros(900), np.linspace(0, 50, 100)])
    >>> loss = xdeepsd.DenseLoss(xdeepsd.DenseWeight(alpha=1.0).fit(rain))
    >>> target = torch.tensor([0.0, 40.0])
    >>> missed = [float(loss(target + torch.tensor(error), target)) for error in ([1.0, 0.0], [0.0, 1.0])]
    >>> missed[1] > 100 * missed[0]  # an error of 1 mm counts where it rains hard
    True
    """

    table: Tensor
    slope: Tensor

    def __init__(self, dense_weight: DenseWeight, normalizer: Normalizer | None = None) -> None:
        super().__init__()
        mean = dense_weight.mean  # if not fitted, raises before anything is built
        histogram = dense_weight.histogram
        assert histogram is not None
        self.dense_weight, self.normalizer = dense_weight, normalizer
        self.alpha, self.mean = float(dense_weight.alpha), mean
        self.limits = float(dense_weight.eps), dense_weight.top
        self.wet_threshold, self.transform = dense_weight.wet_threshold, dense_weight.transform
        self.start, self.step = histogram.start, histogram.step
        table = torch.tensor(histogram.scaled_density)
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("slope", table.diff(append=table[-1:]), persistent=False)

    @torch.no_grad()
    def weights(self, values: Tensor) -> Tensor:
        """Weight of each value (mm day-1, any shape), as `DenseWeight.weights`: 0 for NaN. Has the table's dtype."""
        values = values.to(self.table.dtype)
        missing = values.isnan()
        # In place, on new tensors, for speed: this runs in every step.
        position = values.nan_to_num(0.0)
        if self.transform is not None:
            position = transform(position, self.transform)
        position = position.sub_(self.start).div_(self.step).clamp_(0.0, self.table.numel() - 1.0)
        left = position.long()
        density = self.table[left].addcmul_(position.sub_(left), self.slope[left])
        if self.wet_threshold is not None:
            density.masked_fill_(values < self.wet_threshold, 0.0)
        weights = density.mul_(-self.alpha).add_(1.0).clamp_(*self.limits).div_(self.mean)
        return weights.masked_fill_(missing, 0.0)

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """Loss of a batch, a scalar with the dtype of ``pred``; 0 if no pixel is valid.

        Parameters
        ----------
        pred, target
            Normalised, of the same shape, usually ``(batch, 1, lat, lon)``. NaN in the target contributes nothing.
        mask
            True where the target counts; any shape that broadcasts to the target's. None: everywhere.
        values
            The values that determine the weights, mm day-1, in the target's shape. None: computed from the target.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        apart, valid = differences(pred, target, mask)
        if values is None:
            values = target if self.normalizer is None else self.normalizer.invert(target)
        if values.shape != target.shape:
            raise ValueError(
                f"The values have shape {tuple(values.shape)}, the target {tuple(target.shape)}. Needed: the value in "
                "mm day-1 of each pixel of the target."
            )
        weights = self.weights(values).to(apart.dtype)
        return mean_of(weights * apart.square(), valid)
