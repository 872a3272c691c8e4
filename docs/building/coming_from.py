"""The listings of the coming-from pages, theirs and ours, really run: the same losses from the same start.

    make coming-from     # in an environment of its own, with Keras, Lightning and Accelerate

Prints the largest relative difference of a loss for each, with the versions, and fails above 1e-5.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import multibackend as mb

LISTINGS = Path(__file__).parents[1] / "coming_from"
TOLERANCE = 1e-5
# by page, whose name is the package's: our listing
OURS = {"keras": "keras", "lightning": "torch", "accelerate": "torch", "torch": "torch", "flax": "flax"}
EPOCHS = 5


def main() -> int:
    """Compare every pair whose library is installed; return the exit code."""
    worst = 0.0
    for name in OURS:
        if importlib.util.find_spec(name) is None:
            print(f"{name:12} not installed")
            continue
        difference = compare(name)
        worst = max(worst, difference)
        print(f"{name:12} {importlib.metadata.version(name):12} largest difference {difference:.1e}")
    return 0 if worst <= TOLERANCE else 1


def compare(name: str) -> float:
    """Run both listings of a page; return the largest difference of two losses, relative to the larger one."""
    theirs = run(f"{name}_theirs.py")
    ours = run(f"{OURS[name]}_ours.py")
    trainer = ours["trainer"]
    losses = ours["result"].history["loss"]
    if "start" in theirs:  # initial values of another law than the framework's own: trained again from them
        trainer = mb.Trainer(ours["experiment"], trainer.backend)
        trainer.load_parameters(from_keras(theirs["start"]))
        losses = trainer.fit(epochs=EPOCHS).history["loss"]
    expected = np.array(theirs["losses"])
    # as many of theirs stand for one of ours, or of ours for one of theirs
    shared = min(len(expected), len(losses))
    expected, losses = (np.reshape(values, (shared, -1)).mean(axis=1) for values in (expected, losses))
    return float(np.max(np.abs(losses - expected) / np.maximum(np.abs(losses), np.abs(expected))))


def run(listing: str) -> dict[str, Any]:
    """Run one listing after the page's data; what it defined."""
    names: dict[str, Any] = {"__name__": "page"}
    for file in ("data.py", listing):
        path = LISTINGS / file
        exec(compile(path.read_text(encoding="utf-8"), os.fspath(path), "exec"), names)
    return names


def from_keras(start: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return Keras' kernels and biases by our canonical names: a kernel is [in, out], a weight [out, in]."""
    kernel, bias, last_kernel, last_bias = start
    return {"0.weight": kernel.T, "0.bias": bias, "2.weight": last_kernel.T, "2.bias": last_bias}


if __name__ == "__main__":
    sys.exit(main())
