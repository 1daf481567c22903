"""Reproducing the paper's tables: the runs behind each row, training them, and comparing with the paper's numbers."""
