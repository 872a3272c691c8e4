"""From examples to the windows of a run: in which order, how many at once, read ahead of their turn."""
