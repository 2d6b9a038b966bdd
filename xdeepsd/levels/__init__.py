"""The resolution ladder: in memory, on disk, which days are for what, pairs of levels, patches; a generated climate.

May import ``models``, ``grids`` and ``stores``; nothing of inference, losses or training.
"""
