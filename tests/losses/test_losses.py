"""DenseLoss and masked MSE: values by hand, gradients, missing targets, the table against DenseWeight."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xdeepsd import DenseLoss, DenseWeight, Normalizer, masked_mse

RAIN = np.where(np.random.default_rng(0).random(20_000) < 0.6, 0.0, np.random.default_rng(1).gamma(0.8, 8.0, 20_000))
FITS = {
    "plain": DenseWeight(alpha=1.0).fit(RAIN),
    "alpha 1.2": DenseWeight(alpha=1.2).fit(np.random.default_rng(2).gamma(4.0, 8.0, 5000)),
    "wet": DenseWeight(alpha=1.0, wet_threshold=0.1).fit(RAIN),
    "log1p": DenseWeight(alpha=0.9, transform="log1p").fit(RAIN),
    "wet sqrt": DenseWeight(alpha=1.5, wet_threshold=0.1, transform="sqrt").fit(RAIN),
    "capped": DenseWeight(alpha=1.0, transform="log1p", weight_cap=1.5).fit(RAIN),
}


def _batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction and target ``(batch, 1, lat, lon)`` in mm day-1 with missing values, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(4, 1, 6, 5, generator=generator, dtype=dtype).mul(60.0).sub(25.0).clamp(min=0.0)
    pred = target + torch.randn(target.shape, generator=generator, dtype=dtype)
    target[0, 0, 2] = torch.nan
    mask = torch.rand(target.shape, generator=generator) < 0.7
    return pred, target, mask


def _by_definition(pred, target, mask, dw, values=None):
    """The loss of docs/method.md, in numpy, pixel by pixel."""
    values = target if values is None else values
    total, n = 0.0, 0
    for p, y, m, v in zip(*(a.double().numpy().ravel() for a in (pred, target, mask, values)), strict=True):
        if m and not np.isnan(y):
            total += float(dw.weights(np.float64(v))) * (p - y) ** 2
            n += 1
    return total / n


@pytest.mark.parametrize("name", FITS)
def test_weights_equal_dense_weight(name):
    values = np.concatenate([np.linspace(-20.0, 300.0, 5001), [np.nan, np.inf, -np.inf, 0.0, 0.1, 1e30]])
    loss = DenseLoss(FITS[name])
    for dtype in (np.float64, np.float32):
        given_ = values.astype(dtype)
        found = loss.weights(torch.from_numpy(given_)).numpy()
        np.testing.assert_allclose(found, FITS[name].weights(given_.astype(np.float64)), rtol=1e-12)
    # as float32, for devices without float64
    np.testing.assert_allclose(
        loss.float().weights(torch.from_numpy(values.astype(np.float32))).numpy(),
        FITS[name].weights(values.astype(np.float32).astype(np.float64)),
        rtol=1e-3,
        atol=1e-4,
    )


@given(values=hnp.arrays(np.float32, st.integers(0, 200), elements=st.floats(-1e3, 1e3, width=32)))
@settings(max_examples=50)
def test_weights_equal_dense_weight_anywhere(values):
    for fit in FITS.values():
        found = DenseLoss(fit).weights(torch.from_numpy(values)).numpy()
        np.testing.assert_allclose(found, fit.weights(values.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize("name", FITS)
def test_loss_by_definition(name):
    pred, target, mask = _batch()
    expected = _by_definition(pred, target, mask, FITS[name])
    assert float(DenseLoss(FITS[name])(pred, target, mask)) == pytest.approx(expected, rel=1e-5)


def test_normalised_targets_are_inverted_for_the_weights():
    pred, target, mask = _batch()
    n = Normalizer(mean=3.0, std=7.0)
    expected = _by_definition(pred, target, mask, FITS["plain"]) / 7.0**2
    found = DenseLoss(FITS["plain"], n)(n.apply(pred), n.apply(target), mask)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_values_give_the_weights_of_a_residual_target():
    pred, target, mask = _batch()
    interpolated = torch.rand(target.shape) * 20.0
    n = Normalizer(mean=0.1, std=2.0)
    residual, residual_pred = n.apply(target - interpolated), n.apply(pred - interpolated)
    expected = _by_definition(residual_pred, residual, mask, FITS["plain"], values=target)
    # values go before the normaliser
    for loss in (DenseLoss(FITS["plain"]), DenseLoss(FITS["plain"], n)):
        assert float(loss(residual_pred, residual, mask, values=target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mask", [None, "all", "land"])
def test_alpha_zero_is_masked_mse(mask):
    pred, target, land = _batch()
    mask = {None: None, "all": torch.ones_like(land), "land": land}[mask]
    pred.requires_grad_()
    loss = DenseLoss(DenseWeight(alpha=0.0).fit(RAIN))(pred, target, mask)
    mse = masked_mse(pred, target, mask)
    assert loss.item() == mse.item()
    (by_loss,) = torch.autograd.grad(loss, pred)
    (by_mse,) = torch.autograd.grad(mse, pred)
    assert torch.equal(by_loss, by_mse)


def test_masked_mse_by_numpy():
    pred, target, mask = _batch()
    wanted = mask.numpy() & ~np.isnan(target.numpy())
    expected = ((pred.numpy() - target.numpy())[wanted] ** 2).mean()
    assert float(masked_mse(pred, target, mask)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", FITS)
def test_gradient(name):
    pred, target, mask = _batch(dtype=torch.float64)
    loss = DenseLoss(FITS[name])
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), pred.requires_grad_())
    assert torch.autograd.gradcheck(lambda p: masked_mse(p, target, mask), pred)


@pytest.mark.parametrize("loss", [masked_mse, DenseLoss(FITS["plain"]), DenseLoss(FITS["wet sqrt"])])
def test_missing_targets_contribute_nothing(loss):
    pred, target, mask = _batch()
    pred[0, 0, 2, 0] = torch.nan  # also where the network itself gives NaN
    pred.requires_grad_()
    value = loss(pred, target, mask)
    value.backward()
    missing = torch.isnan(target) | ~mask
    assert torch.isfinite(value)
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad[missing] == 0).all()
    assert (pred.grad[~missing] != 0).all()
    # the same as without the missing pixels
    assert loss(pred[~missing], target[~missing]).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [masked_mse, DenseLoss(FITS["plain"])])
def test_nothing_valid_is_zero_with_zero_gradient(loss):
    pred = torch.randn(2, 1, 3, 3, requires_grad=True)
    for target, mask in [(torch.full_like(pred, torch.nan), None), (torch.zeros_like(pred), torch.zeros(3, 3))]:
        value = loss(pred, target.detach(), mask)
        assert value.item() == 0.0
        (gradient,) = torch.autograd.grad(value, pred)
        assert (gradient == 0).all()


def test_masks_broadcast():
    pred, target, _ = _batch()
    land = torch.rand(6, 5) < 0.5
    loss = DenseLoss(FITS["plain"])
    whole = land.expand(4, 1, 6, 5)
    assert loss(pred, target, land) == loss(pred, target, whole) == loss(pred, target, whole.float())


def test_rare_rain_counts_more():
    pred, target = torch.zeros(2, 1, 1, 1), torch.tensor([0.0, 50.0]).reshape(2, 1, 1, 1)
    pred = target + 1.0  # the same error
    loss = DenseLoss(FITS["plain"])
    assert loss(pred[1:], target[1:]) > 50 * loss(pred[:1], target[:1])


def test_it_is_a_module():
    loss = DenseLoss(FITS["log1p"])
    assert [name for name, _ in loss.named_buffers()] == ["table", "slope"]
    assert list(loss.parameters()) == []
    assert loss.dense_weight is FITS["log1p"]
    pred, target, mask = _batch()
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again(pred, target, mask) == loss(pred, target, mask)
    assert loss(pred, target, mask).dtype == torch.float32
    assert loss(pred.double(), target.double(), mask).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    pred, target, mask = _batch()
    loss = DenseLoss(FITS["wet sqrt"])
    expected = float(loss(pred, target, mask))
    found = loss.to("cuda")(pred.cuda(), target.cuda(), mask.cuda(), values=target.cuda())
    assert found.device.type == "cuda"
    assert float(found) == pytest.approx(expected, rel=1e-5)


# --- Bad input ------------------------------------------------------------------------------------------------------


def test_not_fitted():
    with pytest.raises(ValueError, match=r"has seen no data\. Needed: training values\. Type dw = dw\.fit\(values\)"):
        DenseLoss(DenseWeight())


@pytest.mark.parametrize("loss", [masked_mse, DenseLoss(FITS["plain"])])
def test_shapes_that_do_not_fit(loss):
    pred, target, mask = _batch()
    # (4, 1, 6, 5) and (4, 6, 5) would broadcast to (4, 4, 6, 5)
    with pytest.raises(ValueError, match=r"shape \(4, 1, 6, 5\), the target \(4, 6, 5\). Needed: the same"):
        loss(pred, target[:, 0], mask[:, 0])
    with pytest.raises(ValueError, match=r"The mask has shape \(7, 5\), the target \(4, 1, 6, 5\)"):
        loss(pred, target, torch.ones(7, 5))
    with pytest.raises(ValueError, match=r"The mask has shape \(2, 4, 1, 6, 5\)"):
        loss(pred, target, torch.ones(2, 4, 1, 6, 5))


def test_values_of_another_shape():
    pred, target, mask = _batch()
    with pytest.raises(ValueError, match=r"The values have shape \(6, 5\), the target \(4, 1, 6, 5\)"):
        DenseLoss(FITS["plain"])(pred, target, mask, values=target[0, 0])
