"""Grids: axes, units, cells and their bounds, alignment, missing cells, blocks, interpolation, regridding.

Plain functions on arrays and xarray objects. May import ``stores`` (for the sources of lazy arrays), but nothing
that knows about networks.
"""
