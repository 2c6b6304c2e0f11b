"""The page that shows results: what is on it and how it is written; nothing here judges or scores."""
