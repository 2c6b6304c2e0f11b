"""One module for each command: settings in, answers out."""
