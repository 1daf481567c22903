"""One HTML page of a run: `python -m tools.report --help`."""
