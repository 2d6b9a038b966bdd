"""Losses over observed cells: against float64 by hand and scipy, gradients, missing cells, what they are lowest at."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, special

from xdeepsd.losses.masked import (
    TWEEDIE_OFFSET,
    masked_huber,
    masked_mae,
    masked_mse,
    masked_pinball,
    masked_tweedie,
)


def pinball(error, quantile):
    return np.where(error < 0, -quantile * error, (1 - quantile) * error)


def tweedie(pred, target, power):
    """Twice the difference of the quasi-log-likelihood, by quadrature of (y - t) / t**power from the mean to y."""
    y, mean = target + TWEEDIE_OFFSET, pred + TWEEDIE_OFFSET
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = np.log(mean), np.log(y)  # with t = exp(s)
    t = np.exp(low + (nodes[:, None] + 1) / 2 * (high - low))
    return 2 * (weights[:, None] * (y - t) * t ** (1 - power)).sum(0) * (high - low) / 2


LOSSES = {
    "mse": (masked_mse, lambda p, y: (p - y) ** 2),
    "mae": (masked_mae, lambda p, y: np.abs(p - y)),
    "huber": (masked_huber, lambda p, y: special.huber(1.0, p - y)),
    "pinball .7": (functools.partial(masked_pinball, quantile=0.7), lambda p, y: pinball(p - y, 0.7)),
    "pinball .1": (functools.partial(masked_pinball, quantile=0.1), lambda p, y: pinball(p - y, 0.1)),
    "tweedie 1.5": (masked_tweedie, lambda p, y: tweedie(p, y, 1.5)),
    "tweedie 1.1": (functools.partial(masked_tweedie, power=1.1), lambda p, y: tweedie(p, y, 1.1)),
    "tweedie 1.9": (functools.partial(masked_tweedie, power=1.9), lambda p, y: tweedie(p, y, 1.9)),
}
AMOUNTS = st.floats(0, 500, width=32)


def batch(seed=0, dtype=torch.float64):
    """Prediction and target ``(batch, 1, lat, lon)`` of at least 0, dry cells, missing values, and a mask."""
    rng = np.random.default_rng(seed)
    target = np.where(rng.random((4, 1, 6, 5)) < 0.4, 0.0, rng.gamma(0.7, 8.0, (4, 1, 6, 5)))
    pred = np.where(rng.random(target.shape) < 0.2, 0.0, rng.gamma(0.7, 8.0, target.shape))
    mask = rng.random(target.shape) < 0.7
    target[0, 0, 2] = np.nan
    return torch.tensor(pred, dtype=dtype), torch.tensor(target, dtype=dtype), torch.tensor(mask)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_an_independent_computation(name, dtype):
    loss, by_hand = LOSSES[name]
    for seed in range(5):
        pred, target, mask = batch(seed, dtype)
        valid = (mask & ~target.isnan()).numpy()
        expected = by_hand(pred.double().numpy()[valid], target.double().numpy()[valid]).mean()
        rtol = 1e-9 if dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(loss(pred, target, mask).item(), expected, rtol=rtol)


@pytest.mark.parametrize("name", LOSSES)
def test_cells_left_out_never_count(name):
    loss, _ = LOSSES[name]
    pred, target, mask = batch()
    pred.requires_grad_()
    value = loss(pred, target, mask)
    (gradient,) = torch.autograd.grad(value, pred)
    valid = mask & ~target.isnan()
    assert (gradient[~valid] == 0).all()
    assert gradient.isfinite().all()
    other, wrong = target.clone(), pred.detach().clone()
    other[~valid], wrong[~valid] = 1e9, torch.nan
    assert loss(wrong, other, valid).item() == value.item()
    assert loss(pred[valid], target[valid]).item() == pytest.approx(value.item(), rel=1e-12)
    for nothing in (torch.full_like(target, torch.nan), None):
        empty = loss(pred, target if nothing is None else nothing, torch.zeros(6, 5) if nothing is None else None)
        assert empty.item() == 0
        (gradient,) = torch.autograd.grad(empty, pred)
        assert (gradient == 0).all()
    with pytest.raises(ValueError, match="Needed: the same shape"):
        loss(pred[:2], target)
    with pytest.raises(ValueError, match="The mask has shape"):
        loss(pred, target, mask[:3])


@given(
    pred=hnp.arrays(np.float32, 12, elements=st.floats(-500, 500, width=32)),
    target=hnp.arrays(np.float32, 12, elements=st.one_of(st.just(0.0), AMOUNTS, st.just(np.float32(np.nan)))),
    name=st.sampled_from(sorted(LOSSES)),
)
def test_gradients_are_finite_everywhere(pred, target, name):
    """And they never push a prediction away from the target, which for Tweedie holds below 0, too."""
    pred = torch.tensor(pred, requires_grad=True)
    target = torch.tensor(target)
    value = LOSSES[name][0](pred, target)
    assert value.isfinite()
    assert value >= -1e-3
    (gradient,) = torch.autograd.grad(value, pred)
    assert gradient.isfinite().all()
    clear = (pred.detach() - target).abs() > 1e-2 * (1 + target)
    moved = gradient[clear] * (pred.detach() - target)[clear]
    assert (moved >= 0).all()
    assert (gradient[(pred < 0) & (target > 0.01)] < 0).all()


@settings(max_examples=60)
@given(values=st.lists(AMOUNTS, min_size=2, max_size=30), name=st.sampled_from(sorted(LOSSES)))
def test_the_best_constant_is_what_it_should_be(values, name):
    """The mean, the median, a quantile; for Huber a zero of the mean of differences cut at 1."""
    values = np.array(values, np.float64)
    target = torch.tensor(values)

    def cost(constant):
        return LOSSES[name][0](torch.full_like(target, float(constant)), target).item()

    best = optimize.minimize_scalar(cost, bounds=(0, values.max() + 1e-9), method="bounded", options={"xatol": 1e-9}).x
    if name in ("mae", "pinball .7", "pinball .1"):
        quantile = {"mae": 0.5, "pinball .7": 0.7, "pinball .1": 0.1}[name]
        expected = np.quantile(values, quantile, method="inverted_cdf")
    elif name == "huber":
        zero = optimize.brentq(lambda c: np.clip(c - values, -1, 1).mean(), values.min() - 1, values.max() + 1)
        expected = zero
    else:
        expected = values.mean()
    assert cost(expected) <= cost(best) * (1 + 1e-9) + 1e-12
    if name == "mse" or name.startswith("tweedie"):
        assert best == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_dry_prediction_of_rain():
    """Tweedie is finite, and costs more the farther below 0 the prediction lies; of a dry cell it costs nothing."""
    rain, dry = torch.tensor([20.0]), torch.tensor([0.0])
    costs = [masked_tweedie(torch.tensor([p]), rain).item() for p in (1.0, 0.0, -1.0, -2.0)]
    assert np.isfinite(costs).all()
    assert np.diff(costs).min() > 0
    assert np.diff(costs)[1] == pytest.approx(np.diff(costs)[2], rel=1e-5), "linear below 0"
    assert masked_tweedie(dry - 3, dry).item() == pytest.approx(0, abs=1e-6)
