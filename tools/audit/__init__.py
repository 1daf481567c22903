"""Which captions a run's CCD doubts: `python -m tools.audit --help`."""
