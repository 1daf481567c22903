"""Pretrained dual towers: images or token ids in, tokens out."""
