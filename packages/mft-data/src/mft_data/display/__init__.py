"""What a person sees: rows as text, lengths as a histogram, a dataset as a table."""
