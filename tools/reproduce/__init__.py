"""Reproducing the paper's tables: which runs their rows are, running them, and a report beside the paper's numbers."""
