"""What training minimises: losses of image-text pairs (TAL and its rivals), and objectives of other kinds."""
