"""Plumbing that knows nothing of re-identification: options, logging, seeding, checkpoints, figures."""
