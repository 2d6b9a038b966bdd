"""The forward of one stage on numpy days: the fast one where there is one, otherwise plain torch."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from xdeepsd.inference.fast import why_not
from xdeepsd.models.bernoulli_gamma import PARAMETERS
from xdeepsd.models.stage import Stage, copied
from xdeepsd.models.tf32 import no_tf32
from xdeepsd.models.threads import torch_threads

Runner = Callable[..., np.ndarray]  # days, and the noise of some of them where the stage takes any
NoiseOf = Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class Options:
    """How to compute."""

    device: str = "cpu"
    precision: str = "float32"
    batch_size: int | None = None

    @property
    def dtype(self) -> str:
        """Dtype of the days, input and output."""
        return "float64" if self.precision == "float64" else "float32"


class PlainStage:
    """The plain torch forward of one stage on numpy days, ``batch_size`` days at a time.

    With ``distribution``, what comes out has one more dim in front, for chance, shape and scale.
    """

    def __init__(
        self, stage: Stage, static: np.ndarray, weights: np.ndarray, options: Options, distribution: bool = False
    ) -> None:
        device = self.device = options.device
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():  # checked where it is computed
            raise ValueError(
                f"device={device!r}, but torch finds no CUDA on this machine. Leave device out for the CPU."
            )
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.batch_size = options.batch_size or (1 if device == "cpu" else 16)
        self.autocast = device != "cpu" and options.precision == "bfloat16"
        net = copied(stage).net.to(device=device, dtype=self.dtype)
        if device != "cpu":
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stage, self.distribution = replace(stage, net=net), distribution
        self.static, self.weights = (
            torch.from_numpy(np.ascontiguousarray(maps)).to(device=device, dtype=self.dtype)
            for maps in (static, weights)
        )

    def __call__(self, coarse: np.ndarray, noise_of: NoiseOf | None = None) -> np.ndarray:
        """``(days, lat, lon)`` to ``(days, factor * lat, factor * lon)``, in the model's units, without NaN."""
        factor = self.stage.config.factor
        count, nlat, nlon = coarse.shape
        first = (len(PARAMETERS),) if self.distribution else ()
        fine = np.empty((*first, count, nlat * factor, nlon * factor), coarse.dtype)
        forward = self.stage.distribution if self.distribution else self.stage
        mixed = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast)
        with torch_threads(1), no_tf32(), torch.inference_mode(), mixed:  # Dask's threads are the parallelism
            for start in range(0, count, self.batch_size):
                days = slice(start, start + self.batch_size)
                noise = () if noise_of is None else (self._there(noise_of(days)),)
                result = forward(self._there(coarse[days]), self.static, self.weights, *noise)
                result = result.to(self.dtype).cpu().transpose(0, -3)  # parameters first, if there are any
                fine[..., days, :, :] = result.numpy()
        return fine

    def _there(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=self.device, dtype=self.dtype)


_lock = threading.Lock()


@functools.cache
def _import_fast() -> Any:
    try:
        from xdeepsd.inference.fast import fused

        fused.try_out()
    except Exception as error:  # numba is missing or cannot compile here; LLVM raises many kinds of error
        warnings.warn(
            f"The fast forward is not available ({type(error).__name__}: {error}): plain torch gives the same numbers, "
            "several times more slowly. Type pip install xdeepsd[fast].",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return fused


def fast_forward() -> Any:
    """The module `fast.fused`; None, after one warning, where it is not available."""
    with _lock:  # compiled once, whichever thread comes first
        return _import_fast()


def has_bfloat16() -> bool:
    """Whether the fast forward has instructions for bfloat16 here."""
    fused = fast_forward()
    return fused is not None and fused.compiled.HAS_BFLOAT16


def runner_of(
    stage: Stage, static: np.ndarray, weights: np.ndarray, wanted: np.ndarray | None, options: Options,
    distribution: bool = False,
) -> Runner:  # fmt: skip
    """The forward of one stage for this device and precision: fast if possible, otherwise plain."""
    fast = options.device == "cpu" and options.precision != "float64" and options.batch_size is None
    if fast and why_not(stage.config) is None:
        fused = fast_forward()
        prepared = None if fused is None else fused.prepare(stage, static, wanted, options.precision, weights)
        if prepared is not None:
            return prepared
        if options.precision == "bfloat16":  # the machine that built the graph has it, this worker does not
            raise ValueError("precision='bfloat16' cannot be computed on this worker. Type precision='float32'.")
    return PlainStage(stage, static, weights, options, distribution)
