"""What a model wrote: samples read from files, and the program in each."""
