"""Everything that a GPU has to show, in one command: that it computes the same, and how fast."""
