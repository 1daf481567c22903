"""The learning rule: per-pair losses, confident consensus division, optimizer and schedule."""
