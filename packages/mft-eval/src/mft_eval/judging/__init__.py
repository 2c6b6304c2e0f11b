"""From a program and a problem to a verdict, in trusted processes outside of the sandbox."""
