"""Tokens from a loaded model: choice, batches, caches, text; nothing here reads or writes a file."""
