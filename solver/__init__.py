"""What is optimised and how: objectives, correspondence, optimizer and schedule."""
