"""What training minimises: density weights from a histogram over Dask chunks, DenseLoss, masked MSE.

May import ``models`` (transforms and normalisers); nothing of levels, inference or training.
"""
