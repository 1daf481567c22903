"""Commands in addition to train.py and test.py, run as `python -m tools.NAME`."""
