"""How good is it: errors, baselines, significance, pictures, and the sweep over alpha, which trains and compares.

May import everything but the command line.
"""
