"""Speed and memory of our implementation against a plain baseline. `python -m benchmarks`, see README.md."""
