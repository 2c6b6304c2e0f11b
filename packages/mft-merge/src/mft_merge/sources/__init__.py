"""What a merge reads: the adapter, the base model, and the live model that joins their names."""
