"""A conversation with a model, turn by turn: what is said, what is remembered, how it looks."""
