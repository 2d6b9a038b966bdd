"""Whether two sets of runs differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def significance(errors: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Whether the errors of some runs differ from those of reference runs with the same seeds, in the same order.

    Returns ``relative`` (mean error over mean reference error), ``p_mannwhitney`` (scipy's ``mannwhitneyu``: two
    independent groups) and ``p_wilcoxon`` (``wilcoxon``: pairs with the same seed; 1 where the two errors of every
    pair are equal, NaN for fewer than two pairs), both two-sided.
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
