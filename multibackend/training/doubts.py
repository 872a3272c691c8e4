"""Doubts about a model's outputs, before it trains on them: probabilities where a loss takes logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.paths import pick
from multibackend.experiment import Experiment
from multibackend.protocol import Predicts, Program

__all__ = ["doubts_about_outputs"]


def doubts_about_outputs(experiment: Experiment, program: Program, state: Any, example: Arrays) -> Iterator[str]:
    """Iterate over sentences about outputs that are not what their loss takes, with the figures that say so.

    The model runs only where the program tells that an output ends in more than a sum or a product of matrices:
    for a model that ends in a linear layer this costs nothing.
    """
    if not isinstance(program, Predicts):
        return
    suspects = program.info.nonlinear_outputs
    losses = [loss for loss in experiment.loss_terms.values() if loss.takes_logits and (loss.output or "") in suspects]
    if not losses:
        return
    outputs = program.predict(state, example)
    for loss in losses:
        sentence = loss.doubt(np.asarray(pick(outputs, loss.output), np.float64))
        if sentence:
            yield sentence
