"""Annotation formats, noise injection, augmentation, sampling and loading."""
