"""Training rows: the dataset directory, the order in which a run draws its rows, and the batches that they make.

No model and no loss: what is made of a batch is the business of later rooms.
"""
