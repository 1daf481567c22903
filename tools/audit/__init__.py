"""The captions that a run classifies as noisy: `python -m tools.audit --help`."""
