"""What may be wrong with the rows of a finished dataset: pure functions of ids, masks and texts, and their findings.

No files here but those of the dataset, and nothing that prints.
"""
