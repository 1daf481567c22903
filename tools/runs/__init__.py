"""A table of runs: `python -m tools.runs --help`."""
