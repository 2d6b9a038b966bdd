"""The fused forward on a CPU: the numbers of the plain forward, many times faster.

``fused`` prepares and runs a stage, ``layout`` says where everything is stored, ``compiled`` is the code that numba
compiles; ``conserve`` keeps the coarse means. Without numba, or where compiling fails, the plain forward does the work.
May import ``models.transform`` and nothing else from the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdeepsd.models.srcnn import SRCNNConfig

NO_BFLOAT16 = (
    "precision='bfloat16' needs a processor with avx512_bf16 and numba 0.62 or newer; this machine does not have both. "
    "Type precision='float32'."
)


def why_not(config: SRCNNConfig) -> str | None:
    """What the networks have that are computed by the plain forward only, in words; None for all others."""
    if len(config.kernels) < 2:
        return "has no hidden layer"
    if config.noise:
        return "takes noise"
    return None if config.head == "value" else "gives a distribution"
