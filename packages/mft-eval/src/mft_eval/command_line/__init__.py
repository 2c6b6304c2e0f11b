"""What the commands are called with and what they write; each imports its use-case when it is called."""
