"""Checkpoints: writing and reading one, which there are, which is the best."""
