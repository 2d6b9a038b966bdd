"""Training: its configuration, the ladder it reads, a stage and its loop, the stack, checkpoints, validation, and what
is shown meanwhile.

May import ``levels``, ``losses``, ``models``, ``grids`` and ``stores``; nothing of evaluation.
"""
