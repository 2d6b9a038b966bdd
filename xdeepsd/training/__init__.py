"""Training: its configuration, one stage, the stack, checkpoints, validation, and what is shown meanwhile.

May import ``levels``, ``losses``, ``models``, ``grids`` and ``stores``; nothing of evaluation.
"""
