"""The fused forward on a CPU: the numbers of the plain forward, many times faster.

``fused`` prepares and runs a stage, ``layout`` says where everything is stored, ``compiled`` is the code that numba
compiles; ``conserve`` keeps the coarse means. Without numba, or where compiling fails, the plain forward does the work.
May import ``models.transform`` and nothing else from the package.
"""

NO_BFLOAT16 = (
    "precision='bfloat16' needs a processor with avx512_bf16 and numba 0.62 or newer; this machine does not have both. "
    "Type precision='float32'."
)
