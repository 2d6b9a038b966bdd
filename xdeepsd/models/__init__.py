"""What a model is: its networks, transforms, normalisers and static fields, the stack, and its files.

``variable`` says what holds for precipitation alone. May import ``grids`` and ``stores``; knows nothing of how a
model is trained or applied.
"""
