"""Applying a model: its input and whether it fits (``inputs``), windows of the map (``windows``), ``downscale``.

``fast`` is the fused forward for CPUs, which may be missing. May import ``models``, ``grids`` and ``stores``; nothing
of training or losses.
"""
