"""Zarr stores that survive any interruption, and files that are written whole or not at all.

Knows nothing of networks or grids, and imports nothing else of the package.
"""
