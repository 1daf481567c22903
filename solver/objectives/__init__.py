"""Training objectives: losses of image-text pairs (TAL and alternatives), and others."""
