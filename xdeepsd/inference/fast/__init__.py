"""The fused forward on a CPU and its compiled kernels: the numbers of the plain forward, many times faster.

Without numba, or where compiling fails, the plain forward does the work. May import ``models.transform`` and nothing
else of the package.
"""
