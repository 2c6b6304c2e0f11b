"""Sources: finding their files, reading lines, and making conversations of records.

No tokenizer here.
"""
