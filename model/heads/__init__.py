"""Embeddings: tokens in, one named embedding out."""
