"""Listeners that show or keep what happens in a run."""
