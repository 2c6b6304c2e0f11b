"""The run itself: starting its processes, its loop and steps, its validations, its ends."""
