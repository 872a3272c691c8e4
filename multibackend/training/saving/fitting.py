"""Whether the arrays and places of a saved run fit the run that is to go on from it.

A checkpoint whose digests are right may still hold anything: another tool may have written it, or
somebody who means harm. What is passed here is handed to a backend, which would raise its own
framework's errors, or none.
"""

from __future__ import annotations

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.protocol import PartialWindow, Snapshot
from multibackend.training.saving.saved_run import SavedRun

__all__ = ["array_problems"]


def array_problems(
    saved: SavedRun, initial: Snapshot, *, terms: int, is_averaged: bool, is_written_here: bool
) -> list[str]:
    """Say what does not fit, a sentence for each array.

    Args:
        saved: in the names and layouts of the program that goes on.
        initial: that program's state at its beginning.
        terms: of the loss.
        is_averaged: whether the saved run and this one keep a moving average.
        is_written_here: whether this backend wrote it, and so has saved all of its state.
    """
    snapshot = saved.snapshot
    problems = _misfits("parameters", snapshot.parameters, initial.parameters)
    if snapshot.ema or (is_averaged and initial.ema):
        problems += _misfits("ema", snapshot.ema, initial.parameters)
    # what one framework alone counts is not in the other's checkpoint, and begins anew
    problems += _misfits("model_state", snapshot.model_state, initial.model_state, all_needed=is_written_here)
    for slot in sorted(snapshot.optimizer.keys() & initial.optimizer.keys()):
        problems += _misfits(f"optimizer {slot}", snapshot.optimizer[slot], initial.optimizer[slot])
    if saved.partial is not None:
        problems += _partial_problems(saved.partial, initial, terms)
    return problems


def _partial_problems(partial: PartialWindow, initial: Snapshot, terms: int) -> list[str]:
    """Say what of a begun window does not fit; a parameter that it did not use may be absent."""
    problems = _misfits("window accumulator", partial.accumulator, initial.parameters, all_needed=False)
    problems += _misfits("window model_state", partial.model_state, initial.model_state, all_needed=False)
    for name, array in (("totals", partial.totals), ("weights", partial.weights)):
        if array.shape[1] != terms:
            problems.append(f"window {name}: of {array.shape[1]} terms in the checkpoint, the loss has {terms} here")
    return problems


def _misfits(part: str, saved: Arrays, here: Arrays, *, all_needed: bool = True) -> list[str]:
    """Say which arrays are missing, unknown, of another shape or no numbers of the same sort."""
    problems = []
    if all_needed:
        problems += [f"{part}: {name} is missing in the checkpoint" for name in here if name not in saved]
    for name, array in saved.items():
        if name not in here:
            problems.append(f"{part}: {name} is in the checkpoint, and nothing has that name here")
        elif array.shape != here[name].shape:
            problems.append(f"{part}: {name} has the shape {array.shape} in the checkpoint, {here[name].shape} here")
        elif _sort(array) != _sort(here[name]):
            problems.append(f"{part}: {name} is {array.dtype} in the checkpoint, {here[name].dtype} here")
    return problems


def _sort(array: np.ndarray) -> str:
    """Return "f" for every floating type, numpy's or of another package; whole numbers and booleans are one sort."""
    return "i" if array.dtype.kind in "iub" else "f"
