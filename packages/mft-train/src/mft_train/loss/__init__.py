"""The loss: one coefficient for each token, the chunked cross-entropy that they weigh, and the losses of tasks.

Task weights come from outside, and nothing here changes a weight of the model.
"""
