"""Losses of a stage: masked mean squared error, and DenseLoss, which weights it by the rarity of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xdeepsd.models.transform import transform

if TYPE_CHECKING:
    from xdeepsd.losses.dense_weight import DenseWeight
    from xdeepsd.models.normalize import Normalizer


def _squared_error(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared differences (0 where not valid), and which pixels are valid."""
    if pred.shape != target.shape:
        raise ValueError(
            f"The prediction has shape {tuple(pred.shape)}, the target {tuple(target.shape)}. Needed: the same shape. "
            "Type pred.reshape(target.shape), or crop the target by the network's radius."
        )
    valid = ~torch.isnan(target)
    if mask is not None:
        try:
            wanted = mask.bool().expand_as(target)
        except RuntimeError as error:
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)}, the target {tuple(target.shape)}. Needed: a shape that "
                "broadcasts to the target's, such as (batch, 1, lat, lon) or (lat, lon)."
            ) from error
        valid = valid & wanted
    # Selected before squaring: pixels left out then have gradient 0, whereas NaN * 0 would give NaN.
    return torch.where(valid, pred - target, 0.0).square(), valid


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``(pred - target)**2`` over the pixels in ``mask`` whose target is not NaN; 0 if there are none.

    Parameters
    ----------
    pred, target
        Normalised, of the same shape, usually ``(batch, 1, lat, lon)``.
    mask
        True where the target counts; any shape that broadcasts to the target's. None: everywhere.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    >>> float(masked_mse(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, torch.nan])))
    2.5
    """
    squares, valid = _squared_error(pred, target, mask)
    return squares.sum() / valid.sum().clamp(min=1)


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

    Notes
    -----
    The table of the density and its slopes are buffers (float64, so that weights equal ``dense_weight.weights``) that
    move with ``loss.to(device)``; for a device without float64, use ``loss.float().to(device)``. They are not part of
    ``state_dict``: save ``loss.dense_weight.to_dict()``.

    Raises
    ------
    ValueError
        If ``dense_weight`` is not fitted.
    """

    table: Tensor
    slope: Tensor

    def __init__(self, dense_weight: DenseWeight, normalizer: Normalizer | None = None) -> None:
        super().__init__()
        mean = dense_weight.mean  # if not fitted, raises before anything is built
        histogram = dense_weight.histogram
        assert histogram is not None
        self.dense_weight, self.normalizer = dense_weight, normalizer
        self.alpha, self.eps, self.mean = float(dense_weight.alpha), float(dense_weight.eps), mean
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
        weights = density.mul_(-self.alpha).add_(1.0).clamp_(min=self.eps).div_(self.mean)
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
        squares, valid = _squared_error(pred, target, mask)
        if values is None:
            values = target if self.normalizer is None else self.normalizer.invert(target)
        if values.shape != target.shape:
            raise ValueError(
                f"The values have shape {tuple(values.shape)}, the target {tuple(target.shape)}. Needed: the value in "
                "mm day-1 of each pixel of the target."
            )
        weights = self.weights(values).to(squares.dtype)
        return (weights * squares).sum() / valid.sum().clamp(min=1)
