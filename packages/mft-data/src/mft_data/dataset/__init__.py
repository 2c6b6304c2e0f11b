"""The dataset directory: its names, shards and manifest, the rules for its rows, publishing it here or to a store.

Nothing here knows where rows come from.
"""
