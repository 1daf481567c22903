"""All checks that need a GPU in one command: that it computes the same, and how fast."""
