"""Which fields go unchanged into a table of the model as its indices: seen on the example, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multibackend.core.arrays import Arrays
from multibackend.errors import DataError
from multibackend.protocol import IndexRange, check_indices
from multibackend_torch.model.calls import Batch

__all__ = ["IndexedFields"]

aten: Any = torch.ops.aten
# what gives a tensor with the values of another
_COPIES = frozenset({aten._to_copy.default, aten.clone.default})
# (table, indices, ...): their indices count from 0
_LOOKUPS = frozenset(
    {
        aten.embedding.default,
        aten.embedding_renorm_.default,
        aten._embedding_bag.default,
        aten._embedding_bag_forward_only.default,
    }
)


class IndexedFields(TorchDispatchMode):
    """Follow the fields of a batch through a model's operations, into the tables that they index.

    A field is followed through views of all of it and through copies, also into wider integers. As
    soon as its values change, or some of them are left out, it is the model's own affair what
    becomes of them. No layer needs to be known: `nn.Embedding`, `F.embedding` and `table[ids]` all
    come down to a few operations.

    Args:
        example: the batch on the host, whose indices are checked before they are looked up.
        batch: the same on the device.
        tables: the parameters and buffers of the model, by canonical name.

    Attributes:
        ranges: what was found; of several tables for one field the smallest.
    """

    def __init__(self, example: Arrays, batch: Batch, tables: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.ranges: dict[str, IndexRange] = {}
        self._example = example
        # by the address of what holds their values: the fields in it, and how many values a whole one has
        self._fields: dict[int, tuple[frozenset[str], int]] = {}
        self._tables: dict[int, tuple[str, int]] = {}
        self._alive: list[torch.Tensor] = []  # so that no address is given out again
        for name, tensor in batch.items():
            if _is_integer(tensor):
                self._fields[_address(tensor)] = (frozenset({name}), tensor.numel())
        for name, tensor in tables.items():
            self._tables.setdefault(_address(tensor), (name, tensor.numel()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKUPS:
            self._look_up(args[0], 0, args[1])
        elif func is aten.index_select.default:
            self._look_up(args[0], args[1], args[2])
        elif func is aten.index.Tensor:
            given = [(axis, index) for axis, index in enumerate(args[1]) if index is not None]
            if len(given) == 1 and self._fields_in(given[0][1]):
                self._look_up(args[0], *given[0])
        outputs = func(*args, **(kwargs or {}))
        if func in _COPIES:
            self._follow_copy(args[0], outputs)
        elif func is aten.cat.default:
            self._follow(frozenset[str]().union(*map(self._fields_in, args[0])), outputs)
        return outputs

    def _look_up(self, table: torch.Tensor, axis: int, indices: torch.Tensor) -> None:
        name, size = self._tables.get(_address(table), ("", 0))
        if table.numel() != size:  # not the model's, or a part of one
            return
        found = IndexRange(name, table.shape[axis])
        fields = self._fields_in(indices)
        for field in fields:
            if field not in self.ranges or found.rows < self.ranges[field].rows:
                self.ranges[field] = found
        # before an accelerator sees them, which does not survive a wrong one
        check_indices(self._example, dict.fromkeys(fields, found))
        if not fields and indices.numel():
            _check_computed(indices, found)

    def _follow_copy(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        name, size = self._tables.get(_address(source), ("", 0))
        if source.numel() == size:
            self._tables[_address(copy)] = (name, size)
            self._alive.append(copy)
        if copy.element_size() >= source.element_size():
            self._follow(self._fields_in(source), copy)

    def _follow(self, fields: frozenset[str], tensor: torch.Tensor) -> None:
        if fields and _is_integer(tensor):
            self._fields[_address(tensor)] = (fields, tensor.numel())
            self._alive.append(tensor)

    def _fields_in(self, tensor: torch.Tensor) -> frozenset[str]:
        """Return the fields all of whose values the tensor has."""
        fields, size = self._fields.get(_address(tensor), (frozenset[str](), 0))
        return fields if tensor.numel() == size else frozenset()


def _check_computed(indices: torch.Tensor, table: IndexRange) -> None:
    low = int(indices.min())
    high = int(indices.max())
    if low < 0 or high >= table.rows:
        wrong = low if low < 0 else high
        raise DataError(
            f"the index {wrong}, which the model computed, is outside [0, {table.rows}): it is looked up in "
            f"{table.table!r}, which has {table.rows} rows. Compute it within that range, or give the table more rows"
        )


def _address(tensor: torch.Tensor) -> int:
    if tensor.layout != torch.strided:
        return 0
    return tensor.untyped_storage()._cdata  # which a view shares with its base


def _is_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
