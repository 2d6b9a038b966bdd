"""The fused forward on a CPU: the numbers of the plain forward, many times faster.

``fused`` prepares and runs a stage, ``layout`` says where everything lies, ``compiled`` is what numba compiles;
``conserve`` gives the fine cells the mean of their coarse cell.
Without numba, or where compiling fails, the plain forward does the work. May import ``models.transform`` and nothing
else of the package.
"""
