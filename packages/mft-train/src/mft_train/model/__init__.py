"""The model that is trained: loading it, its adapter, its attention and fast layers, proof that packed rows stay apart.

Nothing here knows what is minimised, or what a task is.
"""
