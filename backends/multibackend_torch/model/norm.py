"""BatchNorm in torch: the library's layer, and what `Experiment(batch_statistics=...)` does to every such layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from multibackend.core.validation import Problems
from multibackend.errors import DataError
from multibackend.experiment.batch_norm import window_momentum

__all__ = ["BatchNorm", "Momentum", "averaging", "batch_norm_layers", "prepare_statistics", "without_hooks"]


class BatchNorm(_BatchNorm):
    """Batch normalisation with one definition on every backend, torch's: inputs [N, C, ...].

        y = (x - mean) / sqrt(var + eps) * weight + bias       mean, var (biased) over all axes but the channels'
        running = (1 - momentum) * running + momentum * new    new: the mean, and the unbiased var * n / (n - 1)

    In evaluation the running statistics take the place of mean and var.

    Args:
        features: C.
        momentum: the weight of the new value, in [0, 1].
        eps: added to the variance.

    Raises:
        ConfigurationError: an argument is wrong.
        DataError: in training, a channel has a single value, which has no variance.

    Source: Ioffe and Szegedy 2015, "Batch normalization".
    """

    def __init__(self, features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        problems = Problems("BatchNorm")
        problems.integer("features", features, minimum=1)
        if problems.number("momentum", momentum, minimum=0.0) and momentum > 1:
            problems.add(f"momentum must be <= 1, got {momentum!r}")
        problems.number("eps", eps, minimum=0.0)
        problems.raise_if_any()
        super().__init__(int(features), eps=float(eps), momentum=float(momentum))

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - torch's own signature
        if input.ndim < 2:
            raise DataError(f"BatchNorm takes inputs [N, C, ...], got the shape {tuple(input.shape)}")
        if self.training and input.numel() == input.shape[1]:
            raise DataError(f"BatchNorm needs two values per channel in training, got the shape {tuple(input.shape)}")


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers with running statistics, torch's own and the library's, by path."""
    return {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }


class Momentum:
    """A hook, one for all copies of a module, that rescales momentum to windows of `steps`."""

    def __init__(self) -> None:
        self.steps = 1

    def __deepcopy__(self, memo: object) -> Momentum:
        return self  # the program trains a copy of its module, and sets the hook that it has

    def __call__(self, layer: nn.Module, inputs: object) -> None:
        layer.__dict__["momentum"] = window_momentum(layer.__dict__["whole_momentum"], self.steps)


def _freeze(layer: nn.Module, inputs: object) -> None:
    """Put a layer into evaluation mode before each forward pass, whatever the module's mode."""
    layer.training = False


def prepare_statistics(module: nn.Module, mode: str) -> tuple[tuple[str, ...], Momentum | None]:
    """Apply `Experiment(batch_statistics=mode)` to a module.

    Returns the paths of its layers with running statistics; and the hook of "window", else None.
    """
    layers = batch_norm_layers(module)
    momentum = Momentum() if mode == "window" and layers else None
    for layer in layers.values():
        if mode == "frozen":
            layer.register_forward_pre_hook(_freeze)
        elif momentum is not None and layer.momentum is not None:  # None is torch's cumulative average
            layer.__dict__["whole_momentum"] = layer.momentum
            layer.register_forward_pre_hook(momentum)
    return tuple(layers), momentum


def without_hooks(module: nn.Module) -> None:
    """Undo `prepare_statistics`, in place."""
    for layer in batch_norm_layers(module).values():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _freeze or isinstance(hook, Momentum):
                del layer._forward_pre_hooks[key]
        if "whole_momentum" in layer.__dict__:
            layer.momentum = layer.__dict__.pop("whole_momentum")


@contextlib.contextmanager
def averaging(module: nn.Module) -> Iterator[Callable[[int], None]]:
    """Make running statistics means over the batches that follow, weighted by size.

    Yields the function that must be called with the size of each batch before its forward pass.
    """
    layers = list(batch_norm_layers(module).values())
    before = [(layer.momentum, dict(layer._forward_pre_hooks)) for layer in layers]
    examples = 0

    def weigh(size: int) -> None:
        nonlocal examples
        examples += size
        for layer in layers:  # 1 for the first batch: nothing of training's statistics is left
            layer.momentum = size / examples

    for layer in layers:
        layer._forward_pre_hooks.clear()  # a window's momentum has no say here
    try:
        yield weigh
    finally:
        for layer, (momentum, hooks) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer._forward_pre_hooks.update(hooks)
