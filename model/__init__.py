"""Architecture and pretrained weights: images and token ids in, named BGE and TSE embeddings out, never a loss."""
