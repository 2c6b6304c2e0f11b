"""A model with its tokenizer, from whatever directory holds it; how it is talked to is told elsewhere."""
