"""The paper's figures from runs: `python -m tools.visualize --help`."""
