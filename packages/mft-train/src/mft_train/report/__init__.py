"""The report about a finished or running run, read from its directory alone: tables, curves, one HTML page.

No torch here.
"""
