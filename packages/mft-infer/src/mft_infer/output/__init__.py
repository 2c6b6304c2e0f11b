"""Generations on disk and on pipes: records, appending, resuming; nothing here knows how they were made."""
