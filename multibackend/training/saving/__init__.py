"""Saving a run and going on with it: in another process, on another backend, from inside a window."""
