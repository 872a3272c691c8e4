"""Stopping and going on: what a run's state is, when it is saved, and how a run goes on from it."""
