"""Training objectives: losses of image-text pairs (TAL and its rivals), and others."""
