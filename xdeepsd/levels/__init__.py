"""The resolution ladder in memory and on disk, its days, pairs of levels, their climatology, normalisers and patches; a
generated climate.

May import ``models``, ``grids`` and ``stores``; nothing of inference, losses or training.
"""
