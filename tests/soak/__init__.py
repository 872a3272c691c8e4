"""Long proofs, run by hand before a release, in `tests`: `python -m soak.flips`, `.kills`, `.power` and `.headers`.

The suite runs a few repeats of each.
"""
