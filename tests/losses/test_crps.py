"""The fair CRPS: against its definition in float64, its fairness, its gradient, and cells that do not count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeepsd.losses.crps import fair_crps, masked_crps


def by_hand(members, y):
    """Ferro (2014), equation 8, loop by loop."""
    m = len(members)
    near = sum(abs(x - y) for x in members) / m
    apart = sum(abs(a - b) for a in members for b in members) / (2 * m * (m - 1))
    return near - apart


numbers = st.floats(-100, 100, width=32)


@settings(deadline=None)
@given(st.lists(numbers, min_size=2, max_size=6), numbers)
def test_equals_the_definition(members, y):
    found = fair_crps(torch.tensor(members, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))
    assert float(found) == pytest.approx(by_hand(members, y), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_true_distribution_has_the_lowest_expectation_for_any_number_of_members(count):
    """For N(0, 1) against N(0, 1) it is 1 / sqrt(pi), the CRPS of the distribution; too narrow or wide is worse."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(200_000, generator=rng)
    members = torch.randn(count, 200_000, generator=rng)
    scores = {spread: float(fair_crps(spread * members, y).mean()) for spread in (0.6, 1.0, 1.5)}
    assert scores[1.0] == pytest.approx(1 / np.sqrt(np.pi), abs=0.005)
    assert min(scores, key=scores.get) == 1.0


def test_cells_that_do_not_count():
    members = torch.tensor([[1.0, 5.0], [3.0, 7.0]], requires_grad=True)
    loss = masked_crps(members, torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    assert loss.item() == by_hand([1.0, 3.0], 0.0) == 1.0
    loss.backward()
    assert members.grad[:, 1].tolist() == [0.0, 0.0]
    assert float(masked_crps(members, torch.zeros(2), torch.zeros(2, dtype=torch.bool))) == 0.0


def test_equal_members_have_finite_gradients():
    members = torch.zeros(2, 3, requires_grad=True)
    masked_crps(members, torch.zeros(3), torch.ones(3, dtype=torch.bool)).backward()
    assert bool(members.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(1, 3), (2, 4)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"Needed: two members or more.*Type torch.stack"):
        fair_crps(torch.zeros(shape), torch.zeros(3))
