"""Apply a model: check its input (``inputs``), compute it window by window (``windows``); ``downscale`` joins them.
``members`` has what several models, or several noises, need besides.

``fast`` is the fused forward for CPUs, which is optional. May import ``models``, ``grids`` and ``stores``, but nothing
from training or losses.
"""
