"""Which captions a run classifies as noisy: `python -m tools.audit --help`."""
