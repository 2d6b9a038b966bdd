"""Training: its configuration, the ladder it reads, a stage and its loop, the stack, checkpoints, validation, and the
progress display.

May import ``levels``, ``losses``, ``models``, ``grids`` and ``stores``; nothing from evaluation.
"""
