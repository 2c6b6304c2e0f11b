"""What a run tells while it goes: metrics.jsonl, trackers, the display on a terminal.

Nothing here changes the run.
"""
