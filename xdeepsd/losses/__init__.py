"""What training minimises: the losses over observed cells (`masked`), or DenseLoss with weights from a histogram
over Dask chunks.

May import ``models`` (transforms and normalisers); nothing from levels, inference or training.
"""
