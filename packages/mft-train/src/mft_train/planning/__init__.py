"""What a run will need before it starts: steps, tokens and memory, and what to change when memory is short."""
