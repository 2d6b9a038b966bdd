"""Whether two sets of runs, or two methods over the same days, differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from xdeepsd._extras import require

# Bootstrap samples at a time, and the share of them inside an interval.
_AT_ONCE, _INSIDE = 100, 0.95


def significance(errors: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Whether the errors of some runs differ from those of reference runs with the same seeds, in the same order.

    Returns ``relative`` (mean error over mean reference error), ``p_mannwhitney`` (scipy's ``mannwhitneyu``: two
    independent groups) and ``p_wilcoxon`` (``wilcoxon``: pairs with the same seed; 1 where the two errors of every
    pair are equal, NaN for fewer than two pairs), both two-sided.

    Examples
    --------
    >>> import xdeepsd
    >>> found = xdeepsd.significance([1.0, 1.1, 1.2, 1.0, 1.1, 1.2], [2.0, 2.1, 2.2, 2.0, 2.1, 2.2])
    >>> round(found["relative"], 3), found["p_wilcoxon"] <= 0.05
    (0.524, True)
    """
    ours, theirs = np.asarray(errors, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(
            f"There are {ours.shape} errors, and {theirs.shape} of the reference. Needed: one of each for every seed, "
            "in the same order."
        )
    result = {"relative": float(ours.mean() / theirs.mean()), "p_mannwhitney": np.nan, "p_wilcoxon": np.nan}
    if ours.size > 1:
        same = bool((ours == theirs).all())
        result["p_mannwhitney"] = float(stats.mannwhitneyu(ours, theirs).pvalue)
        result["p_wilcoxon"] = 1.0 if same else float(stats.wilcoxon(ours, theirs).pvalue)
    return result


def differences(evaluated: xr.Dataset, *, block: int = 10, samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How much smaller the errors of a prediction are than those of what stands beside it, and how sure that is.

    Parameters
    ----------
    evaluated
        From ``xdeepsd.evaluate(prediction, truth, beside=...)``, whose daily errors are used; computes them.
    block
        Successive days that are drawn together: longer than the weather remembers.
    samples, seed
        Draws of the bootstrap, and the seed of its random numbers.

    Returns
    -------
    A row for each method in ``beside`` and each ``error`` ("rmse", "mae"): ``difference`` (mm day-1, of the prediction
    less the other's: below 0 is better), ``low`` and ``high`` (95 % interval by a circular block bootstrap of the days,
    Politis and Romano 1992) and ``p``, of the two-sided Diebold-Mariano test that the daily squared or absolute errors
    are alike (as modified by Hering and Genton, Technometrics 2011). The interval is NaN for fewer than two blocks of
    days, ``p`` for fewer than three days and where the two are the same.

    Raises
    ------
    ImportError
        The package `scores` is missing.
    ValueError
        No daily errors, as from ``by="season"``; ``block`` or ``samples`` below 1.

    Examples
    --------
    >>> import xdeepsd
    >>> truth = xdeepsd.make_climate(years=1, shape=(16, 16))["precipitation"]
    >>> coarse = xdeepsd.coarsen(truth, 4)
    >>> bicubic, bilinear = (xdeepsd.interpolate(coarse, truth, method=method) for method in ("cubic", "linear"))
    >>> table = xdeepsd.differences(xdeepsd.evaluate(bicubic, truth, beside={"bilinear": bilinear}))
    >>> bool((table["high"] < 0).all())  # bicubic is better, beyond chance
    True
    """
    require("evaluate", "The Diebold-Mariano test")
    for name, given in (("block", block), ("samples", samples)):
        if given < 1:
            raise ValueError(f"{name} is {given}; needed: a whole number of at least 1.")
    if "daily_weight" not in evaluated:
        raise ValueError(
            f"There are no daily errors, only {sorted(map(str, evaluated))[:3]} and the like. Needed: those over all "
            "days. Type by=None to evaluate."
        )
    daily = evaluated[["daily_weight", "daily_squared", "daily_absolute"]].compute()
    daily = daily.isel(time=np.flatnonzero(daily["daily_weight"] > 0))
    weight, rows = daily["daily_weight"].values, []
    starts = np.random.default_rng(seed).integers(len(weight) or 1, size=(samples, -(-len(weight) // block)))
    for name in daily["name"].values[1:]:
        for error, losses, root in (("rmse", "daily_squared", 0.5), ("mae", "daily_absolute", 1.0)):
            ours, theirs = (daily[losses].sel(name=method).values for method in ("prediction", name))
            sums = np.stack([weight, weight * ours, weight * theirs])
            low = high = np.nan
            if len(weight) >= 2 * block:
                drawn = _drawn(sums, starts, block)
                apart = (drawn[1] / drawn[0]) ** root - (drawn[2] / drawn[0]) ** root
                low, high = np.quantile(apart, [(1 - _INSIDE) / 2, (1 + _INSIDE) / 2])
            total = sums.sum(-1)
            difference = np.diff((total[:0:-1] / total[0]) ** root)[0] if len(weight) else np.nan
            rows.append({"name": name, "error": error, "difference": difference, "low": low, "high": high,
                         "p": _diebold_mariano(ours - theirs)})  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "error", "difference", "low", "high", "p"])


def _drawn(sums: np.ndarray, starts: np.ndarray, block: int) -> np.ndarray:
    """``(sum, sample)``: sums ``(sum, day)`` over blocks from the days ``starts`` ``(sample, block)`` on, going round.

    `scores.processing.block_bootstrap` draws the same, but keeps every day of every sample.
    """
    days = sums.shape[1]
    ends = np.cumsum(np.concatenate([np.zeros((len(sums), 1)), sums, sums[:, :block]], axis=1), axis=1)
    of_blocks = ends[:, block : block + days] - ends[:, :days]
    parts = (starts[first : first + _AT_ONCE] for first in range(0, len(starts), _AT_ONCE))
    return np.concatenate([of_blocks[:, part].sum(-1) for part in parts], axis=1)


def _diebold_mariano(apart: np.ndarray) -> float:
    from scores.stats.statistical_tests import diebold_mariano

    if len(apart) < 3 or not apart.any():
        return float("nan")
    series = xr.DataArray(apart[None], {"ahead": ("pair", [1])}, ("pair", "day"))
    above = float(diebold_mariano(series, "pair", "ahead")["confidence_gt_0"].values[0])
    return 2 * min(above, 1 - above)
