"""The settings of a run: their types, reading and writing them as YAML, making them from those of MFTCoder.

Nothing here looks at a model, a dataset or this machine.
"""
