"""How good a model is: errors, baselines, significance, figures, and the sweep over alpha, which trains and compares.

May import everything but the command line.
"""
