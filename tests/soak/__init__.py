"""Long proofs, run by hand before a release: `cd tests && python -m soak.flips`, `python -m soak.kills`.

The suite runs a few repeats of each.
"""
