"""One micro-batch in JAX, forward and backward, layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from multibackend.protocol.tracing import Forced, LayerCall, Trace, arrays_in
from multibackend.protocol.values import inverse
from multibackend_jax.model.observe import Call, Observer, host, is_array, observing
from multibackend_jax.model.pure import Arrays, FlaxModel, Stamp
from multibackend_jax.model.rematerialize import kept_activations
from multibackend_jax.step.window import TrainState, WindowFunctions, forward

__all__ = ["Tracer"]


class Tracer:
    """Traces micro-batches of one experiment.

    Each form (mode, shapes, what is forced) is compiled once. A compiled pass returns arrays alone;
    the calls that they belong to were recorded as it was traced.
    """

    def __init__(self, functions: WindowFunctions) -> None:
        self._functions = functions
        self._compiled: dict[Any, tuple[Any, list[Call]]] = {}

    def __call__(
        self,
        state: TrainState,
        batch: Arrays,
        divisors: np.ndarray,
        *,
        stamp: tuple[int, int, int],
        train: bool,
        gradients: bool,
        forced: Mapping[tuple[str, int], Forced] | None,
    ) -> Trace:
        """See `multibackend.protocol.Traceable`."""
        functions = self._functions
        forced = forced or {}
        loss_scale = 1.0 if state.loss_scale is None else float(state.loss_scale.scale)
        arguments = (
            state.parameters,
            state.model_state,
            batch,
            inverse(divisors).astype(functions.dtype),
            tuple(np.int32(number) for number in stamp),
            [(arrays.inputs, arrays.outputs) for arrays in forced.values()],
            np.asarray(loss_scale, functions.dtype),
        )
        form = (train, gradients, tuple(forced), _form(arguments))
        if form not in self._compiled:
            self._compiled[form] = self._compile(arguments, list(forced), train=train, gradients=gradients)
        run, calls = self._compiled[form]
        terms, arrays, outputs, model_state, gradient = jax.device_get(run(arguments))
        layouts = functions.model.layouts
        # gradients are told without the loss scale; what layers returned never had it
        return Trace(
            layers=_layer_calls(calls, arrays, functions.model, outputs),
            outputs=tuple(map(host, outputs)),
            terms=np.asarray(terms, np.float64),
            gradients={name: layouts[name].to_canonical(array) / loss_scale for name, array in gradient.items()},
            model_state={name: layouts[name].to_canonical(array) for name, array in model_state.items()},
        )

    def _compile(
        self, arguments: tuple[Any, ...], forced: list[tuple[str, int]], *, train: bool, gradients: bool
    ) -> tuple[Any, list[Call]]:
        """Compile the pass for the shapes of its arguments, and return it with the calls that it makes."""
        calls: list[Call] = []
        run = functools.partial(self._run, names=forced, calls=calls, train=train, gradients=gradients)
        with kept_activations():  # what a rematerialised module computes inside cannot be handed out
            return jax.jit(run).lower(arguments).compile(), calls

    def _run(
        self,
        arguments: tuple[Any, ...],
        *,
        names: list[tuple[str, int]],
        calls: list[Call],
        train: bool,
        gradients: bool,
    ) -> Any:
        """Run forward and, where asked for, backward; fills `calls` while it is traced."""
        functions = self._functions
        parameters, model_state, batch, inverse_divisors, stamp, values, loss_scale = arguments
        forced = {name: Forced(*arrays) for name, arrays in zip(names, values, strict=True)}

        def objective(trained: Arrays) -> tuple[jax.Array, Any]:
            observer = Observer(forced)
            whole = {**parameters, **trained}
            moment = Stamp(*stamp) if train else None
            with observing(observer):
                results = forward(functions, whole, model_state, batch, inverse_divisors, moment)
            terms, _, outputs, new_state = results
            calls[:] = observer.calls  # of the last tracing, should JAX trace more than once
            arrays = [(call.inputs, call.outputs) for call in observer.calls]
            return (terms * loss_scale).sum(), (terms, arrays, arrays_in(outputs, is_array), new_state)

        trained = functions.trained(parameters)
        if not gradients:
            _, results = objective(trained)
            return *results, {}
        gradient, results = jax.grad(objective, has_aux=True)(trained)
        return *results, gradient


def _form(arguments: Any) -> Any:
    """Return the structure, shapes and dtypes of arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves)


def _layer_calls(calls: list[Call], arrays: list[Any], model: FlaxModel, outputs: list[Any]) -> tuple[LayerCall, ...]:
    """Return the calls with their arrays; the whole model first, even if only its parts are called."""
    parameters: dict[str, list[str]] = {}
    for name in model.parameters:
        layer, _, _ = name.rpartition(".")
        parameters.setdefault(layer, []).append(name)
    layers = []
    for call, (inputs, returned) in zip(calls, arrays, strict=True):
        layer = LayerCall(
            call.name,
            call.call,
            call.kind,
            tuple(map(host, inputs)),
            tuple(map(host, returned)),
            leaf=call.leaf,
            settings=call.settings,
            parameters=tuple(parameters.get(call.name, ())),
            depth=call.depth,
        )
        layers.append(layer)
    if not layers or layers[0].name != "":
        layers.insert(0, LayerCall("", 0, "", (), tuple(map(host, outputs)), leaf=not layers))
    return tuple(layers)
