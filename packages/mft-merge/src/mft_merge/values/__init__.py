"""The arithmetic: from the plan of one tensor to its new values, tile by tile."""
