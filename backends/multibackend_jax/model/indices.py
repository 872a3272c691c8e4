"""Which fields go unchanged into a table of the model as its indices: read off the jaxpr of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from multibackend.protocol import IndexRange

__all__ = ["index_ranges"]

# what gives an array with the values of another, in whatever shape
_SAME_VALUES = frozenset(
    {"broadcast_in_dim", "copy", "copy_p", "expand_dims", "reshape", "rev", "squeeze", "stop_gradient", "transpose"}
)


@dataclass(frozen=True)
class _Origin:
    """Where the values of an array come from.

    Attributes:
        fields: the fields of the data all of whose values it has.
        added: what was added to them, which makes an index that counts from the end one from the
            beginning.
        is_sign: whether it says which of them are below 0.
        rows: of the table for which negative ones were replaced by those from its end; None where
            they are as they were.
        table: the parameter whose values it has.
    """

    fields: frozenset[str] = frozenset()
    added: int = 0
    is_sign: bool = False
    rows: int | None = None
    table: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the fields are as the data have them."""
        return not self.is_sign and self.added == 0


_NOTHING = _Origin()
_Origins = dict[core.Var, _Origin]


def index_ranges(jaxpr: core.Jaxpr, tables: Sequence[str], fields: Sequence[str]) -> dict[str, IndexRange]:
    """Follow the fields of a batch through a model's operations, into the tables that they index.

    As soon as its values change, or some of them are left out, it is the model's own affair what
    becomes of them. No layer needs to be known: `nnx.Embed`, `linen.Embed` and `table[ids]` all come
    down to a gather.

    Args:
        jaxpr: of a function of the tables, the fields, and whatever else.
        tables: the names of the parameters and the state of the model.
        fields: those of the batch.

    Returns:
        what was found; of several tables for one field the smallest.
    """
    origins: _Origins = {}
    for variable, name in zip(jaxpr.invars, tables, strict=False):
        origins[variable] = _Origin(table=name)
    for variable, name in zip(jaxpr.invars[len(tables) :], fields, strict=False):
        aval: Any = variable.aval
        if jnp.issubdtype(aval.dtype, jnp.integer):
            origins[variable] = _Origin(fields=frozenset({name}))
    ranges: dict[str, IndexRange] = {}
    for field, found in _lookups(jaxpr, origins):
        if field not in ranges or found.rows < ranges[field].rows:
            ranges[field] = found
    return ranges


def _lookups(jaxpr: core.Jaxpr, origins: _Origins) -> Iterator[tuple[str, IndexRange]]:
    """Yield each field that a gather looks up in a table; `origins` learns of the variables on the way."""
    for equation in jaxpr.eqns:
        inner = _inner(equation)
        if inner is not None:
            inside = {}
            for variable, operand in zip(inner.invars, equation.invars, strict=True):
                inside[variable] = _origin(operand, origins)
            yield from _lookups(inner, inside)
            for variable, result in zip(equation.outvars, inner.outvars, strict=True):
                origins[variable] = _origin(result, inside)
            continue
        given = [_origin(operand, origins) for operand in equation.invars]
        if equation.primitive.name == "gather":
            yield from _gathered(equation, *given)
        origins[equation.outvars[0]] = _followed(equation, given)


def _inner(equation: Any) -> core.Jaxpr | None:
    """Return what an equation runs on its own operands, as a nested jit or a checkpoint does."""
    for value in equation.params.values():
        jaxpr = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        if not isinstance(jaxpr, core.Jaxpr):
            continue
        if _shapes(jaxpr) == _shapes(equation):
            return jaxpr
    return None


def _shapes(part: Any) -> list[tuple[int, ...]]:
    """Return the shapes of what a jaxpr or an equation takes and gives."""
    return [variable.aval.shape for variable in (*part.invars, *part.outvars)]


def _origin(operand: Any, origins: _Origins) -> _Origin:
    return _NOTHING if isinstance(operand, core.Literal) else origins.get(operand, _NOTHING)


def _followed(equation: Any, given: list[_Origin]) -> _Origin:
    """Return where the values of a result come from."""
    name = equation.primitive.name
    first = given[0] if given else _NOTHING
    if name in _SAME_VALUES:
        return first
    if name == "convert_element_type":
        return first if _keeps_values(equation, first) else _NOTHING
    if name == "concatenate":
        return _Origin(fields=frozenset[str]().union(*(part.fields for part in given if part.is_plain)))
    if name == "select_n":
        return _chosen(given)
    return _compared(equation, first) if first.fields and first.is_plain else _NOTHING


def _compared(equation: Any, origin: _Origin) -> _Origin:
    """Return what the beginnings are of an index that counts from the end, as indexing and `jnp.take` allow it."""
    name = equation.primitive.name
    number = _literal(equation)
    if name == "lt" and number == 0:
        return replace(origin, is_sign=True)
    if name == "add" and number:
        return replace(origin, added=number)
    return _NOTHING


def _chosen(given: list[_Origin]) -> _Origin:
    """Return the fields where negative ones alone are replaced, by those that count from the end."""
    if len(given) != 3:
        return _NOTHING
    sign, plain, shifted = given
    if sign.is_sign and plain.is_plain and shifted.added and sign.fields == plain.fields == shifted.fields:
        return replace(plain, rows=shifted.added)
    return _NOTHING


def _gathered(equation: Any, table: _Origin, indices: _Origin) -> Iterator[tuple[str, IndexRange]]:
    dimensions = equation.params["dimension_numbers"]
    if table.table is None or not indices.is_plain or len(dimensions.start_index_map) != 1:
        return
    axis = dimensions.start_index_map[0]
    rows = equation.invars[0].aval.shape[axis]
    # whoever asks for clipping means indices outside
    clips = equation.params["mode"] == lax.GatherScatterMode.CLIP
    if equation.params["slice_sizes"][axis] != 1 or clips or indices.rows not in (None, rows):
        return
    for field in sorted(indices.fields):
        yield field, IndexRange(table.table, rows)


def _keeps_values(equation: Any, origin: _Origin) -> bool:
    """Whether a conversion of dtypes leaves every index as it was; of a table any will do."""
    if not origin.fields:
        return True
    before = equation.invars[0].aval.dtype
    after = equation.outvars[0].aval.dtype
    return jnp.issubdtype(after, jnp.integer) and after.itemsize >= before.itemsize


def _literal(equation: Any) -> int | None:
    """Return the constant that an operation on two has as its second operand."""
    second = equation.invars[1] if len(equation.invars) == 2 else None
    if isinstance(second, core.Literal) and jax.numpy.ndim(second.val) == 0:
        return int(second.val)
    return None
