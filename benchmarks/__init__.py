"""How fast and how large: our way against a plain one, side by side. `python -m benchmarks` measures, see README.md."""
