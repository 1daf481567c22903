"""The paper's figures out of runs: `python -m tools.visualize --help`."""
