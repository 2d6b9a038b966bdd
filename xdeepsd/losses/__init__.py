"""What training minimises: masked MSE, or DenseLoss with weights from a histogram over Dask chunks.

May import ``models`` (transforms and normalisers); nothing from levels, inference or training.
"""
