"""Speed and memory of the library beside hand-written loops: `python -m benchmarks`, `python -m benchmarks.program`."""
