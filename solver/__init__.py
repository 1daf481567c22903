"""The learning rule: objectives, correspondence, optimizer and schedule."""
