"""Telling what each layer did, `multibackend.protocol.Traceable`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from multibackend.errors import MatchError
from multibackend.experiment import Experiment
from multibackend.protocol import Position
from multibackend.protocol.tracing import Forced, Trace
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.reference import linear_gradient
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW
from multibackend.testing.variant import Variant
from multibackend.training.input.feed import Feed
from multibackend.training.trainer import Trainer

__all__ = ["TraceConformance"]


def _micro_batches(trainer: Trainer) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, tuple[int, int, int]]]:
    """Of the window that the trainer would run next, if it is the run's first: fields, factors and stamps."""
    experiment: Experiment = trainer.experiment
    stack = Feed(experiment).next(Position(), 0, 1, trainer.program.info.output_shape, most=1, epochs=None)
    found = list(stack.micro_batches(0))
    for index, (batch, factors) in enumerate(found):
        yield batch, factors, (0, index, len(found))


def _traces(trainer: Trainer, **options: Any) -> list[Trace]:
    """The first window's micro-batches, each from the state at the beginning."""
    program: Any = trainer.program
    state = program.restore(trainer.snapshot())
    return [program.trace(state, batch, f, stamp=stamp, **options) for batch, f, stamp in _micro_batches(trainer)]


class TraceConformance:
    """A traced micro-batch. Needs "linear", and "batch_norm" and "dropout" as their own parts of the suite do.

    For programs that are `multibackend.protocol.Traceable`; do not inherit it for others.
    """

    options: Mapping[str, Any] = {"gradient_accumulation_steps": 4}

    def test_a_window_is_the_sum_of_its_micro_batches(self, variant: Variant) -> None:
        """Terms and gradients are the formula's, with the factors of the window."""
        data = regression(12)
        trainer = variant.trainer(variant.experiment(data, **self.options), START)
        for index, trace in enumerate(_traces(trainer)):
            rows = {name: array[3 * index : 3 * index + 3] for name, array in data.items()}
            total, _, gradient = linear_gradient(START, rows)
            expected = {name: array / 24 for name, array in gradient.items()}
            assert_arrays_match(trace.terms, np.array([total / 24]), relative=FORMULA, what="terms")
            assert_arrays_match(dict(trace.gradients), expected, relative=FORMULA, what="gradients")

    def test_the_call_of_a_layer(self, variant: Variant) -> None:
        """The whole model comes first, the layer's inputs are the examples, its outputs the formula's."""
        data = regression(12)
        trainer = variant.trainer(variant.experiment(data, **self.options), START)
        trace = _traces(trainer)[1]
        outputs = data["x"][3:6] @ START["weight"].T + START["bias"]
        root = trace.layers[0]
        if root.name or root.depth or root.call:
            raise MatchError(f"the first call is {root.name!r}, number {root.call}, at depth {root.depth}")
        layer = next(call for call in trace.layers if call.leaf)
        assert_arrays_match(layer.inputs[0], data["x"][3:6], relative=0.0, what="inputs")
        for found in (layer.outputs[0], root.outputs[0], trace.outputs[0]):
            assert_arrays_match(found, outputs, relative=FORMULA, what="outputs")
        if set(layer.parameters) != set(START):
            raise MatchError(f"the layer's parameters are {layer.parameters}")

    def test_the_state_stays(self, variant: Variant) -> None:
        """A run that was traced on the way goes on to the bits of one that was not."""
        experiment = variant.experiment(regression(24), model="batch_norm", **self.options)
        traced, plain = variant.trainer(experiment), variant.trainer(experiment)
        plain.restore(traced.snapshot())
        program: Any = traced.program
        for updates in (1, 2):
            for batch, factors, stamp in _micro_batches(traced):
                before = traced.snapshot()
                program.trace(traced.state.program_state, batch, factors, stamp=stamp)
                program.trace(traced.state.program_state, batch, factors, stamp=stamp, train=False)
                assert_snapshots_identical(traced.snapshot(), before)
            traced.fit(updates=updates)
            plain.fit(updates=updates)
        assert_snapshots_identical(traced.snapshot(), plain.snapshot())

    def test_batch_statistics_after_the_pass(self, variant: Variant) -> None:
        """They are what a window of that one micro-batch leaves."""
        experiment = variant.experiment(regression(3), model="batch_norm")
        trainer = variant.trainer(experiment)
        trace = _traces(trainer)[0]
        trainer.fit(updates=1)
        name = "norm.running_mean"
        after = trainer.snapshot().model_state[name]
        assert_arrays_match(trace.model_state[name], after, relative=FORMULA, what=name)

    def test_masks_are_those_of_training(self, variant: Variant) -> None:
        """The traced gradients of a window with dropout are its update; another stamp draws other masks."""
        for dropout in ("native", "portable"):
            experiment = variant.experiment(regression(12), model="dropout", dropout=dropout, **self.options)
            trainer = variant.trainer(experiment)
            before, traces = trainer.parameters(), _traces(trainer)
            trainer.fit(updates=1)
            moved = {name: (before[name] - array) / 0.1 for name, array in trainer.parameters().items()}
            summed = {name: np.sum([trace.gradients[name] for trace in traces], axis=0) for name in moved}
            assert_arrays_match(summed, moved, relative=ONE_WINDOW, what="gradients")
            program: Any = trainer.program
            state, (batch, factors, _) = program.restore(trainer.snapshot()), next(_micro_batches(trainer))
            seen = [program.trace(state, batch, factors, stamp=(u, 0, 4)).outputs[0] for u in (0, 1, 2)]
            if all(np.array_equal(seen[0], other) for other in seen[1:]):
                raise MatchError(f"{dropout} dropout draws the same masks at every update")

    def test_forced_inputs_and_outputs(self, variant: Variant) -> None:
        """What is forced goes on; what arrived and what the layer made of it is told."""
        data = regression(3)
        trainer = variant.trainer(variant.experiment(data), START)
        plain = _traces(trainer)[0]
        layer = next(call for call in plain.layers if call.leaf)
        inputs, outputs = np.full((3, 3), 0.5), np.full((3, 2), 7.0)
        forced = {(layer.name, layer.call): Forced((inputs,), (outputs,))}
        trace = _traces(trainer, forced=forced, gradients=False)[0]
        found = next(call for call in trace.layers if call.leaf)
        assert_bit_identical(found.inputs[0], layer.inputs[0], what="what arrived")
        made = inputs @ START["weight"].T + START["bias"]
        assert_arrays_match(found.outputs[0], made, relative=FORMULA, what="what the layer made")
        assert_arrays_match(trace.outputs[0], outputs, relative=0.0, what="what went on")
        squares = np.array([((outputs - data["y"]) ** 2).mean()])
        assert_arrays_match(trace.terms, squares, relative=FORMULA, what="terms")
        if trace.gradients:
            raise MatchError("gradients that nobody asked for")

    def test_evaluation_mode(self, variant: Variant) -> None:
        """With train=False nothing is dropped and the terms are those of the outputs without masks."""
        data = regression(3)
        trainer = variant.trainer(variant.experiment(data, model="dropout"))
        parameters = trainer.parameters()
        outputs = data["x"] @ parameters["head.weight"].T + parameters["head.bias"]
        trace = _traces(trainer, train=False)[0]
        assert_arrays_match(trace.outputs[0], outputs, relative=FORMULA, what="outputs")
