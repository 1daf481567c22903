"""Architecture and pretrained weights: images and token ids in, named embeddings out, never a loss."""
