"""Carrying a build out: its plan, its chunks in this process, in others or on other machines, and their assembly."""
