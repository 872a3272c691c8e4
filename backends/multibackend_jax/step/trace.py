"""One micro-batch in JAX, forward and backward, told layer by layer; compiled once for each form of the question."""

from __future__ import annotations

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

    Each form (mode, shapes, what is forced) is compiled once; what a compiled pass returns is told by the calls that
    were seen as it was traced.
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
        functions, model = self._functions, self._functions.model
        names = list(forced or {})
        values = [(forced[name].inputs, forced[name].outputs) for name in names] if forced else []
        scale = 1.0 if state.loss_scale is None else float(state.loss_scale.scale)
        place = tuple(np.int32(number) for number in stamp)
        inverse_divisors = inverse(divisors).astype(functions.dtype)
        arguments = (
            state.parameters,
            state.model_state,
            batch,
            inverse_divisors,
            place,
            values,
            np.asarray(scale, functions.dtype),
        )
        form = (train, gradients, tuple(names), _form(arguments))
        if form not in self._compiled:
            seen: list[Call] = []
            function = jax.jit(lambda *given: self._run(names, seen, *given, train=train, gradients=gradients))
            with kept_activations():
                self._compiled[form] = function.lower(*arguments).compile(), seen
        run, calls = self._compiled[form]
        terms, arrays, outputs, model_state, gradient = jax.device_get(run(*arguments))
        return Trace(
            layers=_layer_calls(calls, arrays, model, outputs),
            outputs=tuple(map(host, outputs)),
            terms=np.asarray(terms, np.float64),
            gradients={name: model.layouts[name].to_canonical(array) / scale for name, array in gradient.items()},
            model_state={name: model.layouts[name].to_canonical(array) for name, array in model_state.items()},
        )

    def _run(
        self,
        names: list[tuple[str, int]],
        seen: list[Call],
        parameters: Arrays,
        model_state: Arrays,
        batch: Arrays,
        inverse_divisors: jax.Array,
        place: tuple[Any, Any, Any],
        values: list[tuple[Any, Any]],
        scale: jax.Array,
        *,
        train: bool,
        gradients: bool,
    ) -> Any:
        """The pass itself; fills `seen` while it is traced."""
        functions = self._functions
        forced = {name: Forced(*value) for name, value in zip(names, values, strict=True)}

        def objective(trained: Arrays) -> tuple[jax.Array, Any]:
            observer = Observer(forced)
            with observing(observer):
                stamp = Stamp(*place) if train else None
                found = forward(functions, {**parameters, **trained}, model_state, batch, inverse_divisors, stamp)
            terms, _, outputs, new_state = found
            seen[:] = observer.calls
            arrays = [(call.inputs, call.outputs) for call in observer.calls]
            return (terms * scale).sum(), (terms, arrays, arrays_in(outputs, is_array), new_state)

        trained = functions.trained(parameters)
        if not gradients:
            return (*objective(trained)[1], {})
        gradient, found = jax.grad(objective, has_aux=True)(trained)
        return (*found, gradient)


def _form(arguments: Any) -> Any:
    """The structure, shapes and dtypes of arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves)


def _layer_calls(calls: list[Call], arrays: list[Any], model: FlaxModel, outputs: list[Any]) -> tuple[LayerCall, ...]:
    """The calls with their arrays; the whole model first even where `Model(call=...)` calls its parts only."""
    owned: dict[str, list[str]] = {}
    for name in model.parameters:
        owned.setdefault(name.rpartition(".")[0], []).append(name)
    layers = [
        LayerCall(
            call.name,
            call.call,
            call.kind,
            tuple(map(host, found)),
            tuple(map(host, returned)),
            leaf=call.leaf,
            settings=call.settings,
            parameters=tuple(owned.get(call.name, ())),
            depth=call.depth,
        )
        for call, (found, returned) in zip(calls, arrays, strict=True)
    ]
    if layers and layers[0].name == "":
        return tuple(layers)
    return (LayerCall("", 0, "", (), tuple(map(host, outputs)), leaf=not layers), *layers)
