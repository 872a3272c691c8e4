"""Optimizer specs as `torch.optim` optimizers, with fused or foreach kernels.

The learning rate is written into the parameter groups before each step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from multibackend import optimizers
from multibackend.core.arrays import Arrays
from multibackend.errors import ConfigurationError
from multibackend.optimizers import GroupedParameters
from multibackend_torch.step import update_rules
from multibackend_torch.step.update_rules import DirectionOptimizer

__all__ = ["build_grouped", "build_optimizer", "read_slots", "set_learning_rate", "slot_names", "write_slots"]

Parameters = Mapping[str, torch.nn.Parameter]
Slots = Mapping[str, Arrays]
_FACTOR = "learning_rate_factor"


def build_grouped(
    spec: optimizers.Optimizer, groups: Iterable[GroupedParameters], parameters: Parameters
) -> torch.optim.Optimizer:
    """Build the native optimizer of a spec, with a native group for each that is not frozen."""
    if not spec.groups and not isinstance(spec, optimizers.Muon):
        return build_optimizer(spec, parameters.values())
    native_groups: list[dict[str, Any]] = []
    for group in groups:
        if group.frozen:
            continue
        native_group: dict[str, Any] = {"params": [parameters[name] for name in group.names]}
        if group.learning_rate_factor != 1.0:
            native_group[_FACTOR] = group.learning_rate_factor
        if hasattr(group.spec, "weight_decay"):  # `Native` leaves it to its builder
            native_group |= _floats(group.spec, "weight_decay")
        if isinstance(spec, optimizers.Muon):
            native_group["matrices"] = isinstance(group.spec, optimizers.Muon)
        native_groups.append(native_group)
    return build_optimizer(spec, native_groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Write the rate of the next step into every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_FACTOR, 1.0)


@singledispatch
def build_optimizer(spec: optimizers.Optimizer, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """Build the native optimizer of a spec.

    `parameters` is what `torch.optim` takes: tensors or groups, whose "weight_decay" goes
    before the spec's.
    """
    problem = "the torch backend has no such optimizer; register it with build_optimizer"
    raise ConfigurationError(type(spec).__name__, [problem])


@build_optimizer.register
def _(spec: optimizers.SGD, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "momentum", "weight_decay")
    return torch.optim.SGD(parameters, lr=0.0, nesterov=spec.nesterov, fused=True, **options)


@build_optimizer.register
def _(spec: optimizers.Adam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, **_adam_options(spec), amsgrad=spec.amsgrad, fused=True)


@build_optimizer.register
def _(spec: optimizers.AdamW, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_adam_options(spec), amsgrad=spec.amsgrad, fused=True)


# torch has no fused kernels for the optimizers below
@build_optimizer.register
def _(spec: optimizers.Adamax, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adamax(parameters, **_adam_options(spec), foreach=True)


@build_optimizer.register
def _(spec: optimizers.RAdam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.RAdam(parameters, **_adam_options(spec), foreach=True)


@build_optimizer.register
def _(spec: optimizers.NAdam, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "beta1", "beta2", "eps", "weight_decay", "momentum_decay")
    return update_rules.NAdam(parameters, **options)


@build_optimizer.register
def _(spec: optimizers.Lion, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return update_rules.Lion(parameters, **_floats(spec, "beta1", "beta2", "weight_decay"))


@build_optimizer.register
def _(spec: optimizers.Muon, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "momentum", "beta1", "beta2", "eps", "weight_decay")
    return update_rules.Muon(parameters, nesterov=spec.nesterov, **options)


@build_optimizer.register
def _(spec: optimizers.RMSprop, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "eps", "momentum", "weight_decay")
    if spec.centered:  # a rule of our own, which says why
        return update_rules.CenteredRMSprop(parameters, beta2=float(spec.beta2), **options)
    return torch.optim.RMSprop(parameters, lr=0.0, alpha=float(spec.beta2), foreach=True, **options)


@build_optimizer.register
def _(spec: optimizers.Adagrad, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "eps", "weight_decay")
    options["initial_accumulator_value"] = float(spec.initial_accumulator)
    return torch.optim.Adagrad(parameters, lr=0.0, foreach=True, **options)


@build_optimizer.register
def _(spec: optimizers.Adadelta, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    options = _floats(spec, "rho", "eps", "weight_decay")
    return torch.optim.Adadelta(parameters, lr=0.0, foreach=True, **options)


@build_optimizer.register
def _(spec: optimizers.Native, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return spec.build("torch", torch.optim.Optimizer, parameters)


def _floats(spec: optimizers.Optimizer, *names: str) -> dict[str, Any]:
    return {name: float(getattr(spec, name)) for name in names}  # torch takes no numpy numbers


def _adam_options(spec: Any) -> dict[str, Any]:
    betas = (float(spec.beta1), float(spec.beta2))
    return {"lr": 0.0, "betas": betas, **_floats(spec, "eps", "weight_decay")}


# what torch.optim calls its per-parameter tensors; `slot_names` adds what options add
_SLOTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.Adamax: ("exp_avg", "exp_inf"),
    torch.optim.RMSprop: ("square_avg",),
    torch.optim.Adagrad: ("sum",),
    torch.optim.Adadelta: ("square_avg", "acc_delta"),
}

_NATIVE = "torch."  # begins the slots of a user's optimizer, which no other backend can read


def _is_native(optimizer: torch.optim.Optimizer) -> bool:
    known = isinstance(optimizer, DirectionOptimizer | torch.optim.SGD)
    return not known and type(optimizer) not in _SLOTS


def slot_names(optimizer: torch.optim.Optimizer, saved: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of its per-parameter tensors: of a native optimizer, torch's among `saved`."""
    if _is_native(optimizer):
        return tuple(slot for slot in saved if slot.startswith(_NATIVE))
    if isinstance(optimizer, DirectionOptimizer):
        names: dict[str, None] = {}  # ordered, without repetition
        for group in optimizer.param_groups:
            names |= dict.fromkeys(optimizer.slots_of(group))
        return tuple(names)
    slots = _SLOTS.get(type(optimizer), ())
    if optimizer.defaults.get("amsgrad"):
        slots += ("max_exp_avg_sq",)
    if optimizer.defaults.get("momentum"):
        slots += ("momentum_buffer",)
    return slots


def _slots_by_name(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, tuple[str, ...]]:
    """Return the slots of each parameter: those of its group, which differ under Muon."""
    if not isinstance(optimizer, DirectionOptimizer):
        return dict.fromkeys(parameters, slot_names(optimizer))
    slots: dict[int, tuple[str, ...]] = {}
    for group in optimizer.param_groups:
        slots |= dict.fromkeys(map(id, group["params"]), optimizer.slots_of(group))
    return {name: slots[id(parameter)] for name, parameter in parameters.items()}


def read_slots(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, dict[str, torch.Tensor]]:
    """Return the optimizer's per-parameter tensors by slot; zeros where it has not stepped yet."""
    tensors: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    if _is_native(optimizer):
        for name, parameter in parameters.items():
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor | float | int):
                    tensors[_NATIVE + key][name] = torch.as_tensor(value)
        return dict(tensors)
    for name, slots in _slots_by_name(optimizer, parameters).items():
        parameter = parameters[name]
        state = optimizer.state[parameter]
        for slot in slots:
            tensors[slot][name] = state[slot] if slot in state else torch.zeros_like(parameter)
    return dict(tensors)


def write_slots(optimizer: torch.optim.Optimizer, parameters: Parameters, slots: Slots, update: int) -> None:
    """Replace the optimizer's per-parameter tensors and its count of updates."""
    if _is_native(optimizer):
        _load_native(optimizer, parameters, slots)
        return
    for name, names in _slots_by_name(optimizer, parameters).items():
        parameter = parameters[name]
        state = optimizer.state[parameter]
        for slot in names:
            state[slot] = torch.tensor(slots[slot][name]).to(parameter)
        if type(optimizer) in _SLOTS:
            # fused kernels read the count on the device, the others on the host
            device = parameter.device if optimizer.defaults.get("fused") else "cpu"
            state["step"] = torch.tensor(float(update), device=device)
    if isinstance(optimizer, DirectionOptimizer):
        optimizer.count = update


def _load_native(optimizer: torch.optim.Optimizer, parameters: Parameters, slots: Slots) -> None:
    """Load the slots through `load_state_dict`, which knows where torch wants each tensor."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved: dict[int, dict[str, torch.Tensor]] = {}  # torch numbers parameters through all groups
    for index, parameter in enumerate(order):
        saved[index] = {}
        for slot, arrays in slots.items():
            if names[id(parameter)] in arrays:
                array = arrays[names[id(parameter)]]
                saved[index][slot.removeprefix(_NATIVE)] = torch.from_numpy(np.array(array))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
    for index, parameter in enumerate(order):
        state = optimizer.state[parameter]
        for key, value in saved[index].items():
            if value.ndim == 0:  # a count, to which torch gave the dtype of the parameter
                state[key] = state[key].to(value.dtype)
