"""What training minimises: masked MSE, and DenseLoss with its weights from a histogram over Dask chunks.

May import ``models`` (transforms and normalisers); nothing of levels, inference or training.
"""
