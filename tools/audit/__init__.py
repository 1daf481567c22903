"""Which captions a run's CCD disbelieves: `python -m tools.audit --help`."""
