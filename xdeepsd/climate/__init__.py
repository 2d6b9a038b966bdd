"""Climate model input: look at it before it is downscaled (``audit``), fit a correction of its bias (``correction``).

What every input passes through lies in ``inference``. May import ``inference``, ``models``, ``grids`` and ``stores``,
but nothing from training or the losses.
"""
