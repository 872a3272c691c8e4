"""Portable dropout in torch: the masks that `multibackend.protocol.dropout_masks` defines, computed in int32.

>>> layer = Dropout(0.1, name="head.drop")  # as nn.Dropout, in any module that a Trainer trains
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError
from multibackend.protocol.dropout_masks import Key, fold_in, keep_threshold, name_layers, root_key

__all__ = ["Draws", "Dropout", "keep_mask", "prepare_dropout"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_BLOCK = {"cpu": 2**16, "cuda": 2**24}  # elements at once: on CPU what stays in the cache
_STOCK = {nn.Dropout: None, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}  # spatial axes that share a decision


class Dropout(nn.Dropout):
    """Dropout whose masks every backend reproduces: y = x * keep / (1 - rate) in training, y = x in evaluation.

    `keep` is `multibackend.protocol.dropout_masks.keep_mask` of the run's seed, the update, the micro-batch and the layer's name; the
    gradient is keep / (1 - rate). A library layer is portable whatever the experiment's `dropout` says.

    Args:
        rate: the probability of dropping an element, in [0, 1).
        name: by which the layer draws; its path in the model unless given.

    Raises:
        ConfigurationError: the rate is outside [0, 1); or, in training, no Trainer has prepared the model.

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    def __init__(self, rate: float, name: str | None = None) -> None:
        problems = Problems("Dropout")
        problems.number("rate", rate, minimum=0.0, below=1.0)
        problems.raise_if_any()
        super().__init__(float(rate))
        self.name = name
        self.spatial: int | None = None
        self.word = 0
        self.draws: Draws | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in nn.Dropout
        if not self.training or self.p == 0:
            return input
        if self.p == 1:
            return input * 0.0
        if self.draws is None:
            raise ConfigurationError(
                "Dropout", ["the layer does not know the update and micro-batch; train the model with a Trainer"]
            )
        keep = self.draws.keep(self.word, self._mask_shape(input.shape), self.p, input.device)
        return torch.where(keep, input * (1.0 / (1.0 - self.p)), 0.0)

    def _mask_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The input's; with 1 for the spatial axes where whole channels are dropped, as nn.Dropout1d to 3d do."""
        if self.spatial is None:
            return tuple(shape)
        # torch takes [C, ...] without a batch for Dropout1d and Dropout3d, and [N, C, L] for Dropout2d
        leading = 1 if len(shape) == self.spatial + 1 and self.spatial != 2 else 2
        return tuple(shape[:leading]) + (1,) * (len(shape) - leading)


class Draws:
    """Where a run stands, shared by all portable layers of a program and by their copies."""

    def __init__(self, seed: int, *, compiled: bool) -> None:
        self._root = root_key(seed)
        self._window: tuple[int, Key] = (-1, self._root)
        self._key = self._root
        self._calls: dict[int, int] = {}
        self._seen: dict[tuple[int, int], int] = {}
        # the compiler must not burn the numbers of one micro-batch into its graph
        self.keep: Any = torch.compiler.disable(self._keep) if compiled else self._keep

    def __deepcopy__(self, memo: object) -> Draws:
        return self

    def at(self, update: int, micro_batch: int) -> None:
        """Everything drawn from now on is of this micro-batch."""
        if self._window[0] != update:
            self._window = (update, fold_in(self._root, update))
        self._key = fold_in(self._window[1], micro_batch)
        self._calls.clear()
        self._seen.clear()

    def _keep(self, word: int, shape: Sequence[int], rate: float, device: torch.device) -> torch.Tensor:
        return keep_mask(fold_in(fold_in(self._key, word), self._call(word)), shape, rate, device)

    def _call(self, word: int) -> int:
        """How often a layer was called before in this forward pass.

        Activation checkpointing repeats calls in the backward pass, with the state of torch's generator put back: a
        number drawn from it tells a repeated call from a new one.
        """
        seen = (word, int(torch.randint(2**62, ()).item()))
        if seen not in self._seen:
            self._seen[seen] = self._calls.get(word, 0)
            self._calls[word] = self._seen[seen] + 1
        return self._seen[seen]


def prepare_dropout(
    module: nn.Module, seed: int, *, portable: bool, rename: Mapping[str, str], compiled: bool
) -> tuple[tuple[str, ...], Draws | None]:
    """Name the dropout layers of a module and make them draw portable masks: all of them, or the library's own.

    Returns the names (paths, unless given) of all dropout layers whose rate is not 0, and where the portable ones look
    up the micro-batch; None where there are none.

    Raises:
        ConfigurationError: `portable`, and a module drops in a way that cannot be replaced.
    """
    layers = {path: layer for path, layer in module.named_modules() if _rate(layer) > 0}
    if portable:
        _check_replaceable(layers)
        for layer in layers.values():
            _replace(layer)
    draws = Draws(seed, compiled=compiled)
    names = [getattr(layer, "name", None) or path for path, layer in layers.items()]
    own = [(name, layer) for name, layer in zip(names, layers.values(), strict=True) if isinstance(layer, Dropout)]
    words = name_layers([name for name, _ in own], rename)
    for name, layer in own:
        layer.word, layer.draws = words[name], draws
    return tuple(names), draws if own else None


def _rate(layer: nn.Module) -> float:
    """The rate at which a module drops by itself; 0 for one that does not."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return float(layer.p)
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return float(layer.dropout)
    return 0.0


def _replace(layer: nn.Module) -> None:
    """Turn one of torch's dropout layers into a portable one: in place, so that every reference to it stays right."""
    if isinstance(layer, nn.modules.dropout._DropoutNd) and not isinstance(layer, Dropout):
        spatial = _STOCK[type(layer)]
        layer.__class__ = Dropout
        layer.__dict__.update(name=None, spatial=spatial, word=0, draws=None)


def _check_replaceable(layers: Mapping[str, nn.Module]) -> None:
    problems = Problems("dropout='portable'")
    for path, layer in layers.items():
        if type(layer) not in _STOCK and not isinstance(layer, Dropout):
            problems.add(
                f"{path!r} is a {type(layer).__name__} that drops at rate {_rate(layer)} in its own way; give it rate "
                "0 and put an nn.Dropout beside it"
            )
    problems.raise_if_any()


def keep_mask(key: Key, shape: Sequence[int], rate: float, device: torch.device) -> torch.Tensor:
    """Which elements are kept: bool, of a shape; `multibackend.protocol.dropout_masks.keep_mask` bit for bit."""
    count, block = math.prod(shape), _BLOCK.get(device.type, _BLOCK["cuda"])
    keep = torch.empty(count, dtype=torch.bool, device=device)
    for start in range(0, count, block):
        part = keep[start : start + block]
        bits = _bits(key, start, part.numel(), device)
        torch.lt(bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF), keep_threshold(rate), out=part)
    return keep.view(tuple(shape))


def _signed(word: int) -> int:
    """32 bits as int32 reads them."""
    return ((word + 2**31) & 0xFFFFFFFF) - 2**31


def _bits(key: Key, start: int, count: int, device: torch.device) -> torch.Tensor:
    """int32 [count]: the random words of elements start, ..., start + count - 1. Additions wrap around.

    A block never crosses a multiple of 2**31, where the counter's low word would change its sign.
    """
    words = [_signed(word) for word in (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)]
    first = _signed(start & 0xFFFFFFFF)
    y = torch.arange(first, first + count, dtype=torch.int32, device=device).add_(words[1])
    x = torch.full_like(y, _signed((start >> 32) + words[0]))
    high, low = torch.empty_like(y), torch.empty_like(y)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x.add_(y)
            torch.bitwise_left_shift(y, distance, out=high)
            # int32 shifts its sign in from the left, which the logical shift of the definition does not
            torch.bitwise_right_shift(y, 32 - distance, out=low).bitwise_and_((1 << distance) - 1)
            torch.bitwise_or(high, low, out=y).bitwise_xor_(x)
        x.add_(words[(group + 1) % 3])
        y.add_(_signed(words[(group + 2) % 3] + group + 1))
    return x.bitwise_xor_(y)
