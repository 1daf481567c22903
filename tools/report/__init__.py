"""A run's report as one HTML page: `python -m tools.report --help`."""
