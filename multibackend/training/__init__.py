"""The run: its loop, what it reads, what it measures, what it saves."""
