"""Which conversations are left out: duplicates, and those that repeat a benchmark."""
