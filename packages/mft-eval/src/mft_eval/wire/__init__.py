"""What crosses the pipe between judge and program: a closed codec and its frames; standard library only."""
