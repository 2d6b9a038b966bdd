"""How good a model is: errors, indices, spectra, baselines, significance, figures, and the sweep, which trains as well.

May import everything but the command line.
"""

import lazy_loader as _lazy

# `xdeepsd.plot` is found here; nothing else is imported before it is used.
__getattr__, __dir__, _ = _lazy.attach(__name__, submodules=["plot"])
