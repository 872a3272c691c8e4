"""Telling what each layer did, `multibackend.protocol.Traceable`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields, rows
from multibackend.errors import MatchError
from multibackend.experiment import Experiment
from multibackend.protocol import Position
from multibackend.protocol.tracing import Forced, LayerCall, Trace
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, linear_trainer, moved_by_gradient, regression
from multibackend.testing.reference import linear_gradient
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW
from multibackend.testing.variant import Variant
from multibackend.training.input.feed import Feed
from multibackend.training.trainer import Trainer

__all__ = ["TraceConformance"]


def _micro_batches(trainer: Trainer) -> Iterator[tuple[Fields, np.ndarray, tuple[int, int, int]]]:
    """Yield fields, divisors and stamps of the run's first window."""
    experiment: Experiment = trainer.experiment
    stack = Feed(experiment).next(Position(), 0, 1, trainer.program.info, most=1, epochs=None)
    micro_batches = list(stack.micro_batches(0))
    for index, (batch, divisors) in enumerate(micro_batches):
        yield batch, divisors, (0, index, len(micro_batches))


def _traces(trainer: Trainer, **options: Any) -> list[Trace]:
    """Trace the first window's micro-batches, each from the trainer's state."""
    program: Any = trainer.program
    state = program.restore(trainer.snapshot())
    traces = []
    for batch, divisors, stamp in _micro_batches(trainer):
        traces.append(program.trace(state, batch, divisors, stamp=stamp, **options))
    return traces


def _first_leaf(trace: Trace) -> LayerCall:
    """Return the first call of a layer that holds no others."""
    return next(call for call in trace.layers if call.leaf)


class TraceConformance:
    """A traced micro-batch. Needs "linear", "batch_norm" and "dropout" of the suite's parts.

    For programs that are `multibackend.protocol.Traceable`; do not inherit it for others.
    """

    options: Mapping[str, Any] = {"gradient_accumulation_steps": 4}

    def test_a_window_is_the_sum_of_its_micro_batches(self, variant: Variant) -> None:
        """Terms and gradients are the formula's, with the factors of the window."""
        data = regression(12)
        trainer = linear_trainer(variant, data, **self.options)
        for index, trace in enumerate(_traces(trainer)):
            examples = rows(data, slice(3 * index, 3 * index + 3))
            total, _, gradient = linear_gradient(START, examples)
            for name in gradient:
                gradient[name] = gradient[name] / 24  # 12 examples with 2 outputs each
            assert_arrays_match(trace.terms, np.array([total / 24]), relative=FORMULA, what="terms")
            assert_arrays_match(dict(trace.gradients), gradient, relative=FORMULA, what="gradients")

    def test_the_call_of_a_layer(self, variant: Variant) -> None:
        """The whole model comes first; the layer makes the formula's values of the examples."""
        data = regression(12)
        trainer = linear_trainer(variant, data, **self.options)
        trace = _traces(trainer)[1]
        outputs = data["x"][3:6] @ START["weight"].T + START["bias"]
        root = trace.layers[0]
        if root.name or root.depth or root.call:
            place = f"number {root.call}, at depth {root.depth}"
            raise MatchError(f"the first call is {root.name!r}, {place}")
        layer = _first_leaf(trace)
        assert_arrays_match(layer.inputs[0], data["x"][3:6], relative=0.0, what="inputs")
        for traced in (layer.outputs[0], root.outputs[0], trace.outputs[0]):
            assert_arrays_match(traced, outputs, relative=FORMULA, what="outputs")
        if set(layer.parameters) != set(START):
            raise MatchError(f"the layer's parameters are {layer.parameters}")

    def test_the_state_stays(self, variant: Variant) -> None:
        """A run that was traced on the way goes on to the bits of one that was not."""
        experiment = variant.experiment(regression(24), model="batch_norm", **self.options)
        traced = variant.trainer(experiment)
        plain = variant.trainer(experiment)
        plain.restore(traced.snapshot())
        program: Any = traced.program
        for updates in (1, 2):  # before any update, and between two
            for batch, divisors, stamp in _micro_batches(traced):
                before = traced.snapshot()
                program.trace(traced.state.program_state, batch, divisors, stamp=stamp)
                program.trace(traced.state.program_state, batch, divisors, stamp=stamp, train=False)
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
        """Traced gradients of a window with dropout are its update; another stamp, other masks."""
        for dropout in ("native", "portable"):
            options = {"model": "dropout", "dropout": dropout, **self.options}
            trainer = variant.trainer(variant.experiment(regression(12), **options))
            before = trainer.parameters()
            traces = _traces(trainer)
            trainer.fit(updates=1)
            moved = moved_by_gradient(before, trainer.parameters())
            for name, gradient in moved.items():
                summed = sum(trace.gradients[name] for trace in traces)
                assert_arrays_match(summed, gradient, relative=ONE_WINDOW, what=name)
            program: Any = trainer.program
            state = program.restore(trainer.snapshot())
            batch, divisors, _ = next(_micro_batches(trainer))
            # three stamps, for two of them may draw the same few masks by chance
            outputs = set()
            for update in (0, 1, 2):
                trace = program.trace(state, batch, divisors, stamp=(update, 0, 4))
                outputs.add(trace.outputs[0].tobytes())
            if len(outputs) == 1:
                raise MatchError(f"{dropout} dropout draws the same masks at every update")

    def test_forced_inputs_and_outputs(self, variant: Variant) -> None:
        """What is forced goes on; what arrived and what the layer made of it is told."""
        data = regression(3)
        trainer = linear_trainer(variant, data)
        plain = _traces(trainer)[0]
        layer = _first_leaf(plain)
        inputs = np.full((3, 3), 0.5)
        outputs = np.full((3, 2), 7.0)
        forced = {(layer.name, layer.call): Forced((inputs,), (outputs,))}
        trace = _traces(trainer, forced=forced, gradients=False)[0]
        fed = _first_leaf(trace)
        assert_bit_identical(fed.inputs[0], layer.inputs[0], what="what arrived")
        made = inputs @ START["weight"].T + START["bias"]
        assert_arrays_match(fed.outputs[0], made, relative=FORMULA, what="what the layer made")
        assert_arrays_match(trace.outputs[0], outputs, relative=0.0, what="what went on")
        squares = np.array([((outputs - data["y"]) ** 2).mean()])
        assert_arrays_match(trace.terms, squares, relative=FORMULA, what="terms")
        if trace.gradients:
            raise MatchError("gradients that nobody asked for")

    def test_evaluation_mode(self, variant: Variant) -> None:
        """With train=False nothing is dropped."""
        data = regression(3)
        trainer = variant.trainer(variant.experiment(data, model="dropout"))
        parameters = trainer.parameters()
        outputs = data["x"] @ parameters["head.weight"].T + parameters["head.bias"]
        trace = _traces(trainer, train=False)[0]
        assert_arrays_match(trace.outputs[0], outputs, relative=FORMULA, what="outputs")
