"""The loss of networks that take noise: the fair continuous ranked probability score of a few members."""

from __future__ import annotations

import torch
from torch import Tensor

from xdeepsd.losses.masked import mean_of


def fair_crps(members: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS of each cell: ``mean |x_i - y| - sum over pairs |x_i - x_j| / (m (m - 1))``, in its units.

    Its expectation is smallest for members drawn from the distribution of the target, whatever their number ``m``
    (Ferro, Q. J. R. Meteorol. Soc. 2014, equation 8).

    Parameters
    ----------
    members
        ``(member, ...)``, two or more.
    target
        ``(...)``, the shape of one member.

    >>> fair_crps(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0]))
    tensor([0.])
    """
    count = len(members)
    if members.shape[1:] != target.shape or count < 2:
        raise ValueError(
            f"The members have shape {tuple(members.shape)}, the target {tuple(target.shape)}. Needed: two members or "
            "more, each of the target's shape. Type torch.stack([member, ...])."
        )
    pairs = sum((members[i] - members[j]).abs() for i in range(count) for j in range(i))
    return (members - target).abs().mean(0) - pairs / (count * (count - 1))


def masked_crps(members: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of `fair_crps` over the cells in ``mask`` (the target's shape); 0 if there are none."""
    return mean_of(torch.where(mask, fair_crps(members, target), 0.0), mask)
