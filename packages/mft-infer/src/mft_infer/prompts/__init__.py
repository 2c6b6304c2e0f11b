"""Prompts as people write them: JSONL records, read and judged; nothing here knows a model."""
