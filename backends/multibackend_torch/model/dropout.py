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
_BLOCK_ON_CPU = 2**16  # elements at once, so that four int32 arrays of them stay in the cache
_BLOCK_ELSEWHERE = 2**24  # enough work for a kernel, and 0.25 GiB at the most while a mask is drawn
# torch's own layers, by how many spatial axes share a decision
_REPLACEABLE = {nn.Dropout: None, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


class Dropout(nn.Dropout):
    """Dropout whose masks every backend reproduces: y = x * keep / (1 - rate) in training, y = x in evaluation.

    `keep` is `keep_mask` of `multibackend.protocol.dropout_masks`, of the run's seed, the update,
    the micro-batch and the layer's name; the gradient is keep / (1 - rate). A library layer is
    portable whatever the experiment says.

    Args:
        rate: the probability of dropping an element, in [0, 1).
        name: by which the layer draws; its path in the model unless given.

    Raises:
        ConfigurationError: the rate is outside [0, 1); or, in training, no Trainer has
            prepared the model.

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting".
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
            return input * 0.0  # below, 1 / (1 - rate) would be infinite
        if self.draws is None:
            problem = "the layer does not know the update and micro-batch; train the model with a Trainer"
            raise ConfigurationError("Dropout", [problem])
        keep = self.draws.keep(self.word, self._mask_shape(input.shape), self.p, input.device)
        return torch.where(keep, input * (1.0 / (1.0 - self.p)), 0.0)

    def _mask_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Return the input's shape, its spatial axes 1 where whole channels are dropped."""
        if self.spatial is None:
            return tuple(shape)
        # torch takes [C, ...] without a batch for Dropout1d and Dropout3d, and [N, C, L]
        # for Dropout2d
        has_batch = self.spatial == 2 or len(shape) != self.spatial + 1
        leading = 2 if has_batch else 1
        return tuple(shape[:leading]) + (1,) * (len(shape) - leading)


class Draws:
    """The micro-batch whose masks are drawn, one for all portable layers and their copies."""

    def __init__(self, seed: int, *, compiled: bool) -> None:
        self._root = root_key(seed)
        self._update = -1
        self._update_key = self._root  # that of `_update`, for all micro-batches of its window
        self._key = self._root
        self._calls: dict[int, int] = {}  # by layer, how many calls this forward pass has made
        self._indices: dict[tuple[int, int], int] = {}  # by layer and fingerprint of a call
        # the compiler must not burn the numbers of one micro-batch into its graph
        self.keep: Any = torch.compiler.disable(self._keep) if compiled else self._keep

    def __deepcopy__(self, memo: object) -> Draws:
        return self  # the program trains a copy of its module, and moves the one that it has

    def at(self, update: int, micro_batch: int) -> None:
        """Draw the masks of this micro-batch from now on."""
        if self._update != update:
            self._update = update
            self._update_key = fold_in(self._root, update)
        self._key = fold_in(self._update_key, micro_batch)
        self._calls.clear()
        self._indices.clear()

    def _keep(self, word: int, shape: Sequence[int], rate: float, device: torch.device) -> torch.Tensor:
        layer_key = fold_in(self._key, word)
        return keep_mask(fold_in(layer_key, self._call_index(word)), shape, rate, device)

    def _call_index(self, word: int) -> int:
        """Count how often a layer was called before in this forward pass.

        Activation checkpointing repeats calls in the backward pass, with the state of torch's
        generator put back: a number drawn from it, the call's fingerprint, tells a repeated call
        from a new one.
        """
        fingerprint = int(torch.randint(2**62, ()).item())
        if (word, fingerprint) not in self._indices:
            index = self._calls.get(word, 0)
            self._indices[word, fingerprint] = index
            self._calls[word] = index + 1
        return self._indices[word, fingerprint]


def prepare_dropout(
    module: nn.Module, seed: int, *, portable: bool, rename: Mapping[str, str], compiled: bool
) -> tuple[tuple[str, ...], Draws | None]:
    """Name the dropout layers of a module; let all of them, or the library's own, draw portable masks.

    Returns the names (paths, unless given) of all dropout layers whose rate is not 0, and what the
    portable ones draw from; None where there are none.

    Raises:
        ConfigurationError: `portable`, and a module drops in a way that cannot be replaced.
    """
    layers = {path: layer for path, layer in module.named_modules() if _rate(layer) > 0}
    if portable:
        _replace(layers)
    names = [getattr(layer, "name", None) or path for path, layer in layers.items()]
    named = zip(names, layers.values(), strict=True)
    portable_layers = [(name, layer) for name, layer in named if isinstance(layer, Dropout)]
    words = name_layers([name for name, _ in portable_layers], rename)
    draws = Draws(seed, compiled=compiled) if portable_layers else None
    for name, layer in portable_layers:
        layer.word = words[name]
        layer.draws = draws
    return tuple(names), draws


def _rate(layer: nn.Module) -> float:
    """Return the rate at which a module drops by itself; 0 for one that does not."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return float(layer.p)
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return float(layer.dropout)
    return 0.0


def _replace(layers: Mapping[str, nn.Module]) -> None:
    """Turn torch's layers into portable ones, in place: every reference to them stays right."""
    foreign = {path: layer for path, layer in layers.items() if not isinstance(layer, Dropout)}
    problems = Problems("dropout='portable'")
    for path, layer in foreign.items():
        if type(layer) not in _REPLACEABLE:
            problems.add(
                f"{path!r} is a {type(layer).__name__} that drops at rate {_rate(layer)} in its own way; give it rate "
                "0 and put an nn.Dropout beside it"
            )
    problems.raise_if_any()
    for layer in foreign.values():
        spatial = _REPLACEABLE[type(layer)]
        layer.__class__ = Dropout  # its __init__ does not run: what it sets is set here
        layer.__dict__.update(name=None, spatial=spatial, word=0, draws=None)


def keep_mask(key: Key, shape: Sequence[int], rate: float, device: torch.device) -> torch.Tensor:
    """Draw which elements are kept: bool, bit for bit the `keep_mask` of `multibackend.protocol`."""
    count = math.prod(shape)
    block = _BLOCK_ON_CPU if device.type == "cpu" else _BLOCK_ELSEWHERE
    keep = torch.empty(count, dtype=torch.bool, device=device)
    for start in range(0, count, block):
        part = keep[start : start + block]
        bits = _bits(key, start, part.numel(), device)
        # the 23 highest bits; as in `_bits` the sign that a shift brings in is masked
        torch.lt(bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF), keep_threshold(rate), out=part)
    return keep.view(tuple(shape))


def _signed(word: int) -> int:
    """Read 32 bits as int32 does."""
    return ((word + 2**31) & 0xFFFFFFFF) - 2**31


def _bits(key: Key, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Return the random words of the elements start, ..., start + count - 1: int32 [count].

    A block never crosses a multiple of 2**31, where the counter's low word would change its sign.
    """
    # torch computes with uint32 on few devices; additions of int32 wrap around to the same bits
    words = [_signed(word) for word in (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)]
    first = _signed(start & 0xFFFFFFFF)
    y = torch.arange(first, first + count, dtype=torch.int32, device=device).add_(words[1])
    x = torch.full_like(y, _signed((start >> 32) + words[0]))
    high = torch.empty_like(y)
    low = torch.empty_like(y)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x.add_(y)
            torch.bitwise_left_shift(y, distance, out=high)
            # int32 shifts its sign in from the left, the logical shift of the definition zeros
            torch.bitwise_right_shift(y, 32 - distance, out=low).bitwise_and_((1 << distance) - 1)
            torch.bitwise_or(high, low, out=y).bitwise_xor_(x)
        x.add_(words[(group + 1) % 3])
        y.add_(_signed(words[(group + 2) % 3] + group + 1))
    return x.bitwise_xor_(y)
