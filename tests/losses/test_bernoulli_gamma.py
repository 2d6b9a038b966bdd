"""The Bernoulli-gamma likelihood: against scipy, gradients, missing cells, and what it is lowest at."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, stats

from xdeepsd.losses.bernoulli_gamma import bernoulli_gamma
from xdeepsd.models.bernoulli_gamma import WET, expectation, parameters_of, with_expectation


def by_scipy(chance, shape, scale, y):
    """Mean negative log-likelihood in float64."""
    wet = y >= WET
    density = stats.gamma.logpdf(np.where(wet, y, 1.0), shape, scale=scale)
    return -np.where(wet, np.log(chance) + density, np.log1p(-chance)).mean()


def batch(seed=0, dtype=torch.float64):
    """Parameters ``(batch, 3, lat, lon)``, targets with dry and missing cells, and a mask."""
    rng = np.random.default_rng(seed)
    size = (4, 6, 5)
    target = np.where(rng.random(size) < 0.4, rng.choice([0.0, 0.05], size), WET + rng.gamma(0.7, 8.0, size))
    parameters = np.stack([rng.uniform(0.01, 0.99, size), rng.uniform(0.2, 30, size), rng.uniform(0.5, 20, size)], 1)
    mask = rng.random(size) < 0.7
    target[0, 2] = np.nan
    return torch.tensor(parameters, dtype=dtype), torch.tensor(target, dtype=dtype), torch.tensor(mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_scipy(dtype):
    for seed in range(5):
        parameters, target, mask = batch(seed, dtype)
        valid = (mask & ~target.isnan()).numpy()
        chosen = [part.double().numpy()[valid] for part in (*parameters.unbind(1), target)]
        rtol = 1e-11 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(bernoulli_gamma(parameters, target, mask).item(), by_scipy(*chosen), rtol=rtol)


def test_cells_left_out_never_count():
    parameters, target, mask = batch()
    parameters.requires_grad_()
    value = bernoulli_gamma(parameters, target, mask)
    (gradient,) = torch.autograd.grad(value, parameters)
    valid = mask & ~target.isnan()
    assert gradient.isfinite().all()
    assert (gradient[~valid[:, None].expand_as(gradient)] == 0).all()
    wrong, other = parameters.detach().clone(), target.clone()
    wrong[~valid[:, None].expand_as(wrong)], other[~valid] = torch.nan, 1e9
    assert bernoulli_gamma(wrong, other, valid).item() == value.item()
    nothing = bernoulli_gamma(parameters, torch.full_like(target, torch.nan))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, parameters)[0] == 0).all()
    with pytest.raises(ValueError, match="Needed: the same shape"):
        bernoulli_gamma(parameters, target[:2])


@given(
    output=hnp.arrays(np.float32, (1, 3, 2, 3), elements=st.floats(-60, 60, width=32)),
    target=hnp.arrays(
        np.float32, (1, 2, 3), elements=st.one_of(st.just(0.0), st.floats(0, 500, width=32), st.just(np.nan))
    ),
    transform=st.sampled_from([None, "sqrt", "log1p"]),
    kept=st.sampled_from([None, 0.0, 1e-6, 3.0]),
)
def test_links_and_likelihood_are_finite_everywhere(output, target, transform, kept):
    """Whatever the network gives, the parameters make a distribution and the gradients are finite, kept means too."""
    output = torch.tensor(output, requires_grad=True)
    first = output[:, 0] / (8 if transform == "log1p" else 1)
    parameters = parameters_of(output, first, 1.5, transform)
    chance, shape, scale = parameters.unbind(1)
    assert ((chance > 0) & (chance < 1) & (shape > 0) & (scale > 0)).all()
    assert parameters.isfinite().all()
    assert (shape * scale >= WET * (1 - 1e-5)).all()
    if kept is not None:
        parameters = with_expectation(parameters, torch.full_like(chance, kept))
        torch.testing.assert_close(expectation(parameters), torch.full_like(chance, kept), rtol=1e-5, atol=0)
    value = bernoulli_gamma(parameters, torch.tensor(target))
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, output)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_lowest_at_the_maximum_likelihood_estimate(seed):
    """The share of wet values, and scipy's own fit of a gamma distribution to them."""
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(3000) < 0.6, 0.0, WET + rng.gamma(0.5 + seed, 6.0, 3000))
    target = torch.tensor(y)[None, None]

    def cost(logs):
        chance, shape, scale = 1 / (1 + np.exp(-logs[0])), np.exp(logs[1]), np.exp(logs[2])
        constant = torch.tensor([chance, shape, scale])[None, :, None, None].expand(1, 3, 1, y.size)
        return bernoulli_gamma(constant, target).item()

    found = optimize.minimize(cost, [0.0, 0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12}).x
    shape, _, scale = stats.gamma.fit(y[y >= WET], floc=0)
    assert 1 / (1 + np.exp(-found[0])) == pytest.approx((y >= WET).mean(), rel=1e-3)
    assert np.exp(found[1]) == pytest.approx(shape, rel=1e-3)
    assert np.exp(found[2]) == pytest.approx(scale, rel=1e-3)
