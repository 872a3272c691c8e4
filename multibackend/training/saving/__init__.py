"""Saving a run and going on with it: elsewhere, on another backend, from inside a window."""
