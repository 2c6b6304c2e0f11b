"""How long what surrounds a program may take."""

START_SECONDS = 30
