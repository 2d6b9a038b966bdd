"""Draw the pictures of denseloss.md from generated rain: ``python docs/howto/denseloss.py [FOLDER]``."""

import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from xdeepsd import DenseWeight
from xdeepsd.levels.climate import make_climate

KINDS = {
    "all values": {},
    "wet_threshold=0.1": {"wet_threshold": 0.1},
    "transform='log1p'": {"transform": "log1p"},
    "both": {"wet_threshold": 0.1, "transform": "log1p"},
}
COLORS = dict(zip(KINDS, ("#404040", "#2a78b5", "#d4872a", "#3d9a50"), strict=True))
MM = np.concatenate([np.linspace(0.0, 1.0, 400), np.geomspace(1.0, 200.0, 600)])


def axis_of_rain(ax: plt.Axes) -> None:
    """Zero, and then powers of ten: rain has both."""
    ax.set_xscale("symlog", linthresh=0.1, linscale=0.4)
    ax.set_xlim(0, 200)
    ax.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    ax.set_xlabel("precipitation, mm day$^{-1}$")
    ax.grid(alpha=0.3)


def density(rain: np.ndarray, folder: Path) -> None:
    """The density of daily rain: all values, and the logarithm of the wet ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    fit = DenseWeight().fit(rain)
    left.hist(rain, bins=np.arange(-0.5, 60.5), density=True, color="#c8d8e4", label="histogram, 1 mm bins")
    at = np.linspace(-3, 60, 2000)
    left.plot(at, fit.density(at), color=COLORS["all values"], label=f"density, h = {fit.histogram.bandwidth:.2f} mm")
    left.set(yscale="log", ylim=(1e-5, 5), xlim=(-3, 60), xlabel="precipitation, mm day$^{-1}$")
    left.set(ylabel="per mm day$^{-1}$", title=f"all values: {fit.summary()['zeros_share']:.0%} are 0")
    fit = DenseWeight(wet_threshold=0.1, transform="log1p").fit(rain)
    wet = np.log1p(rain[rain >= 0.1])
    right.hist(wet, bins=60, density=True, color="#c8d8e4", label="histogram of wet values")
    at = np.linspace(0.1, 200.0, 20_000)
    label = f"density, h = {fit.histogram.bandwidth:.2f}"
    right.plot(np.log1p(at), fit.density(at), color=COLORS["both"], label=label)
    right.set(xlim=(0, 5), xlabel="log(1 + mm day$^{-1}$)", ylabel="per unit of log1p")
    right.set(title="wet_threshold=0.1, transform='log1p'")
    for ax in (left, right):
        ax.legend(frameon=False)
        ax.grid(alpha=0.3)
    figure.savefig(folder / "denseloss_density.png")


def alphas(rain: np.ndarray, folder: Path) -> None:
    """Weights for several alpha."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for ax, parameters in ((left, KINDS["all values"]), (right, KINDS["both"])):
        fit = DenseWeight(**parameters).fit(rain)
        for alpha, color in zip((0.0, 0.5, 0.9, 1.0, 1.5), plt.cm.viridis(np.linspace(0, 0.85, 5)), strict=True):
            ax.plot(MM, fit.with_alpha(alpha).weights(MM), color=color, label=f"alpha = {alpha:g}")
        axis_of_rain(ax)
        ax.set_title(", ".join(f"{k}={v!r}" for k, v in parameters.items()) or "all values")
    left.set(ylabel="weight", ylim=(0, None))
    left.legend(frameon=False)
    figure.savefig(folder / "denseloss_alpha.png")


def kinds(rain: np.ndarray, folder: Path) -> None:
    """What wet_threshold and transform change."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for name, parameters in KINDS.items():
        fit = DenseWeight(alpha=1.0, **parameters).fit(rain)
        ax.plot(MM, fit.weights(MM), color=COLORS[name], label=name)
    axis_of_rain(ax)
    ax.set(ylabel="weight", title="alpha = 1", ylim=(0, None))
    ax.legend(frameon=False)
    figure.savefig(folder / "denseloss_kinds.png")


def at_eps(rain: np.ndarray, folder: Path) -> None:
    """How much of the data the loss still sees, as alpha grows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    alpha = np.linspace(0, 4, 81)
    for name, parameters in KINDS.items():
        fit = DenseWeight(**parameters).fit(rain)
        summaries = [fit.with_alpha(a).summary() for a in alpha]
        left.plot(alpha, [s["eps_share"] for s in summaries], color=COLORS[name])
        right.plot(alpha, [s["effective_sample"] for s in summaries], color=COLORS[name], label=name)
    left.axhline(0.5, color="#b03030", ls="--", lw=1)
    left.text(3.98, 0.515, "above: a warning", color="#b03030", ha="right")
    left.set(title="share of values with weight eps", ylim=(0, 1))
    right.legend(frameon=False, loc="lower right")
    right.set(title="effective sample size / n", ylim=(0, 1.02))
    for ax in (left, right):
        ax.set(xlabel="alpha", xlim=(0, 4))
        ax.grid(alpha=0.3)
    figure.savefig(folder / "denseloss_eps.png")


def main(folder: Path) -> None:
    """Draw all pictures into ``folder``."""
    rain = make_climate(seed=0, years=2).precipitation.values
    rain = rain[np.isfinite(rain)]
    plt.rcParams.update({"font.size": 9, "savefig.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the page is about them
        for draw in (density, alphas, kinds, at_eps):
            draw(rain, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "img")
