"""The resolution ladder, in memory and on disk: its days, pairs of levels, their climatology, normalisers and patches;
also a generated climate.

May import ``models``, ``grids`` and ``stores``; nothing from inference, losses or training.
"""
