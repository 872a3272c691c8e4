"""Optimizer specs as `torch.optim` optimizers, with fused or foreach kernels.

The learning rate is written into the parameter groups before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from multibackend import optimizers
from multibackend.errors import ConfigurationError
from multibackend.optimizers import GroupedParameters
from multibackend_torch.step import update_rules as updates

__all__ = ["build_grouped", "build_optimizer", "read_slots", "set_learning_rate", "slot_names", "write_slots"]

Parameters = Mapping[str, torch.nn.Parameter]
_FACTOR = "learning_rate_factor"


def build_grouped(
    spec: optimizers.Optimizer, groups: Iterable[GroupedParameters], parameters: Parameters
) -> torch.optim.Optimizer:
    """The native optimizer of a spec, one native parameter group for each that is not frozen."""
    if not spec.groups and not isinstance(spec, optimizers.Muon):
        return build_optimizer(spec, parameters.values())
    native: list[dict[str, Any]] = []
    for group in groups:
        if not group.frozen:
            options: dict[str, Any] = {}
            if group.learning_rate_factor != 1.0:
                options[_FACTOR] = group.learning_rate_factor
            if hasattr(group.spec, "weight_decay"):
                options |= _floats(group.spec, "weight_decay")
            if isinstance(spec, optimizers.Muon):
                options["matrices"] = isinstance(group.spec, optimizers.Muon)
            native.append({"params": [parameters[name] for name in group.names], **options})
    return build_optimizer(spec, native)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Write the rate of the next step into every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_FACTOR] if _FACTOR in group else rate


@singledispatch
def build_optimizer(spec: optimizers.Optimizer, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The native optimizer of a spec. `parameters` is what `torch.optim` takes: tensors, or dicts of one group each,
    in which "weight_decay" stands in place of the spec's.
    """
    raise ConfigurationError(
        type(spec).__name__, ["the torch backend has no such optimizer; register it with build_optimizer"]
    )


@build_optimizer.register
def _(spec: optimizers.SGD, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=float(spec.momentum),
        nesterov=spec.nesterov,
        weight_decay=float(spec.weight_decay),
        fused=True,
    )


@build_optimizer.register
def _(spec: optimizers.Adam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, **_adam_options(spec), amsgrad=spec.amsgrad, fused=True)


@build_optimizer.register
def _(spec: optimizers.AdamW, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_adam_options(spec), amsgrad=spec.amsgrad, fused=True)


@build_optimizer.register
def _(spec: optimizers.Adamax, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adamax(parameters, **_adam_options(spec), foreach=True)


@build_optimizer.register
def _(spec: optimizers.RAdam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.RAdam(parameters, **_adam_options(spec), foreach=True)


@build_optimizer.register
def _(spec: optimizers.NAdam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return updates.NAdam(parameters, **_floats(spec, "beta1", "beta2", "eps", "weight_decay", "momentum_decay"))


@build_optimizer.register
def _(spec: optimizers.Lion, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return updates.Lion(parameters, **_floats(spec, "beta1", "beta2", "weight_decay"))


@build_optimizer.register
def _(spec: optimizers.Muon, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "momentum", "beta1", "beta2", "eps", "weight_decay")
    return updates.Muon(parameters, nesterov=spec.nesterov, **options)


@build_optimizer.register
def _(spec: optimizers.RMSprop, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "eps", "momentum", "weight_decay")
    if spec.centered:
        return updates.CenteredRMSprop(parameters, beta2=float(spec.beta2), **options)
    return torch.optim.RMSprop(parameters, lr=0.0, alpha=float(spec.beta2), foreach=True, **options)


@build_optimizer.register
def _(spec: optimizers.Adagrad, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(
        parameters,
        lr=0.0,
        initial_accumulator_value=float(spec.initial_accumulator),
        foreach=True,
        **_floats(spec, "eps", "weight_decay"),
    )


@build_optimizer.register
def _(spec: optimizers.Adadelta, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(parameters, lr=0.0, foreach=True, **_floats(spec, "rho", "eps", "weight_decay"))


@build_optimizer.register
def _(spec: optimizers.Native, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return spec.builder("torch")(parameters)


def _floats(spec: optimizers.Optimizer, *names: str) -> dict[str, Any]:
    return {name: float(getattr(spec, name)) for name in names}


def _adam_options(spec: Any) -> dict[str, Any]:
    return {"lr": 0.0, "betas": (float(spec.beta1), float(spec.beta2)), **_floats(spec, "eps", "weight_decay")}


_SLOTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.Adamax: ("exp_avg", "exp_inf"),
    torch.optim.RMSprop: ("square_avg",),
    torch.optim.Adagrad: ("sum",),
    torch.optim.Adadelta: ("square_avg", "acc_delta"),
}


_NATIVE = "torch."  # begins the slots of an optimizer that is none of ours, whose state crosses over to nowhere


def _is_native(optimizer: torch.optim.Optimizer) -> bool:
    known = isinstance(optimizer, updates.DirectionOptimizer | torch.optim.SGD)
    return not known and type(optimizer) not in _SLOTS


def slot_names(optimizer: torch.optim.Optimizer, given: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of its per-parameter tensors; of a native optimizer those that are `given` and may be its own."""
    if _is_native(optimizer):
        return tuple(slot for slot in given if slot.startswith(_NATIVE))
    if isinstance(optimizer, updates.DirectionOptimizer):
        return tuple(dict.fromkeys(slot for group in optimizer.param_groups for slot in optimizer.slots_of(group)))
    options, slots = optimizer.defaults, _SLOTS.get(type(optimizer), ())
    slots += ("max_exp_avg_sq",) if options.get("amsgrad") else ()
    return (*slots, "momentum_buffer") if options.get("momentum") else slots


def _slots_by_name(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, tuple[str, ...]]:
    if not isinstance(optimizer, updates.DirectionOptimizer):
        return dict.fromkeys(parameters, slot_names(optimizer))
    by_id = {id(p): optimizer.slots_of(group) for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in parameters.items()}


def read_slots(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's per-parameter tensors by slot; zeros where it has not stepped yet."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    if _is_native(optimizer):
        for name, parameter in parameters.items():
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor | float | int):
                    found.setdefault(_NATIVE + key, {})[name] = torch.as_tensor(value)
        return found
    for name, slots in _slots_by_name(optimizer, parameters).items():
        state = optimizer.state[parameters[name]]
        for slot in slots:
            found.setdefault(slot, {})[name] = state[slot] if slot in state else torch.zeros_like(parameters[name])
    return found


def write_slots(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    slots: Mapping[str, Mapping[str, np.ndarray]],
    update: int,
) -> None:
    """Replace the optimizer's per-parameter tensors and its count of updates."""
    if _is_native(optimizer):
        _load_native(optimizer, parameters, slots)
        return
    for name, names in _slots_by_name(optimizer, parameters).items():
        parameter, state = parameters[name], optimizer.state[parameters[name]]
        for slot in names:
            state[slot] = torch.tensor(slots[slot][name], dtype=parameter.dtype, device=parameter.device)
        if type(optimizer) in _SLOTS:
            # fused kernels read the count on the device, the others on the host
            device = parameter.device if optimizer.defaults.get("fused") else "cpu"
            state["step"] = torch.tensor(float(update), device=device)
    if isinstance(optimizer, updates.DirectionOptimizer):
        optimizer.count = update


def _load_native(
    optimizer: torch.optim.Optimizer, parameters: Parameters, slots: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Through `load_state_dict`, which knows where torch wants each tensor."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            slot.removeprefix(_NATIVE): torch.from_numpy(np.array(arrays[name]))
            for slot, arrays in slots.items()
            if name in arrays
        }
        for index, name in enumerate(order)
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for index, name in enumerate(order):  # torch gives single numbers the dtype of the parameter
        held = optimizer.state[parameters[name]]
        held.update({key: held[key].to(value.dtype) for key, value in state[index].items() if value.ndim == 0})
