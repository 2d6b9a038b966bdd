"""How good a model is: errors, indices, spectra, baselines, significance, figures, and the sweep, which trains as well.

May import everything but the command line.
"""
