"""Commands beside train.py and test.py, run as `python -m tools.NAME`."""
