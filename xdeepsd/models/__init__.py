"""The parts of a model: networks, transforms, normalisers, static fields, the stack, and its files.

``variable`` holds what is specific to precipitation. May import ``grids`` and ``stores``; knows nothing about how a
model is trained or applied.
"""
