"""Arrays of another model put into a training state, through a matching."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from multibackend.core.arrays import Arrays, among
from multibackend.core.names import shapes_of
from multibackend.errors import ParameterMatchError
from multibackend.experiment.model import Model
from multibackend.matching import Matching, Side, match_parameters
from multibackend.protocol import Snapshot

__all__ = ["given_matching", "matching_from", "side_of", "with_arrays"]


def side_of(snapshot: Snapshot, program: Any) -> Side:
    """What is known of a program's model without running it."""
    kinds = program.info.kinds
    arrays = {**snapshot.parameters, **snapshot.model_state}
    # a program lists the kinds in the order of definition, a snapshot need not be in any order
    arrays = {**{name: arrays[name] for name in kinds if name in arrays}, **arrays}
    integers = frozenset(name for name, array in arrays.items() if array.dtype.kind in "iub")
    parameters = frozenset(snapshot.parameters)
    return Side(shapes_of(arrays), kinds, parameters, ordered=bool(kinds), integers=integers)


def given_matching(model: Model) -> Matching | None:
    """The one that `Model(matching=...)` names, read where it is a file."""
    if model.matching is None or isinstance(model.matching, Matching):
        return model.matching
    return Matching.load(model.matching)


def matching_from(saved: Snapshot, kinds: Mapping[str, str], own: Snapshot, model: Model, program: Any) -> Matching:
    """From a saved state, the reference, to the state of a program, without running either model.

    Equal names and shapes are one; else `Model(matching=...)` tells, or names, shapes and kinds of
    layers. That matching, `rename` and `transform` may have either of the two as their reference.

    Raises:
        ParameterMatchError: the parameters do not pair up, or something is open.
    """
    arrays = {**saved.parameters, **saved.model_state}
    reference = Side(shapes_of(arrays), kinds, frozenset(saved.parameters))
    side = side_of(own, program)
    if dict(reference.shapes) == dict(side.shapes):
        return Matching.of_pairs({name: name for name in side.shapes}, side.shapes)
    matching = given_matching(model)
    if matching is not None:
        try:
            matching.check(reference.shapes, side.shapes)
        except ParameterMatchError:
            matching = matching.reversed()
            matching.check(reference.shapes, side.shapes)
        return matching
    try:
        matching = match_parameters(reference, side, rename=model.rename, transform=model.transform)
    except ParameterMatchError as error:
        try:
            matching = match_parameters(side, reference, rename=model.rename, transform=model.transform).reversed()
        except ParameterMatchError:
            # of the two errors the one in the direction that the caller asked for
            raise error from None
    _check_flattened(matching, reference, side)
    return matching


def with_arrays(
    own: Snapshot, arrays: Arrays, model: Model, program: Any, trained: Collection[str] | None = None
) -> Snapshot:
    """A state with its parameters, and what there is of its model state, taken from arrays.

    Args:
        own: the state.
        arrays: by the other model's canonical names.
        model: for `rename`, `transform` and `matching`.
        program: whose state it is.
        trained: which of the arrays are parameters; all that this model does not keep as model
            state unless given.

    Raises:
        ParameterMatchError: they do not pair up with this model's parameters.
    """
    side = side_of(own, program)
    translated = _translated(side, arrays, model)
    if not own.parameters.keys() <= translated.keys():
        # then the arrays' names are to be understood anew, and the error tells what is missing
        state = own.model_state.keys()
        if trained is None:
            trained = arrays.keys() - state
            state = state & arrays.keys()  # which need not be among the arrays
        reference = Side(shapes_of(arrays), {}, frozenset(trained))
        needed = own.parameters.keys() | state
        side = replace(side, shapes=among(side.shapes, needed))
        matching = match_parameters(reference, side, rename=model.rename, transform=model.transform)
        _check_flattened(matching, reference, side)
        translated = matching.to_other(arrays)
    parameters = {name: translated[name] for name in own.parameters}
    model_state = {**own.model_state, **among(translated, own.model_state)}
    # the average of other parameters is of no use to these
    return replace(own, ema={}, parameters=parameters, model_state=model_state)


def _check_flattened(matching: Matching, reference: Side, side: Side) -> None:
    """Raise `ParameterMatchError` where a matrix of one side lies flat on the other.

    Nothing tells the order of its elements, unlike that of a bias [heads, features], which lies
    beside a matrix of its own module in either form.
    """
    problems = []
    for link in matching.links:
        piece = link.reference_piece
        other_piece = link.rearrangement.shape
        flat = None
        if _axes(piece) == 1 < _axes(other_piece):
            flat = (link.reference, reference)
        elif _axes(other_piece) == 1 < _axes(piece):
            flat = (link.other, side)
        if flat is not None and not _has_matrix_beside(*flat):
            problems.append(f"{link.reference} {piece} would become {link.other} {other_piece}")
    if problems:
        lines = "\n  - ".join(["matrices lie flat, in an order that nothing tells:", *problems])
        raise ParameterMatchError(
            f"{lines}\nSave each array in the shape that its model gives it, or say the order: Model(matching=FILE)"
        )


def _axes(shape: tuple[int, ...]) -> int:
    return sum(length > 1 for length in shape)


def _has_matrix_beside(name: str, side: Side) -> bool:
    """Whether a module holds an array of several axes besides the one of that name."""
    module = name.rpartition(".")[0]
    return any(_axes(tuple(shape)) > 1 for other, shape in side.shapes.items() if other.rpartition(".")[0] == module)


def _translated(side: Side, arrays: Arrays, model: Model) -> Arrays:
    """Bring arrays over by the model's own matching, from either side; else return nothing."""
    matching = given_matching(model)
    # arrays that have this model's names already need no translation
    if matching is None or side.parameters <= arrays.keys():
        return {}
    references = {link.reference for link in matching.links}
    others = {link.other for link in matching.links}
    if references & arrays.keys() and side.parameters <= others | matching.other_only.keys():
        return matching.to_other(arrays)
    if others & arrays.keys() and side.parameters <= references | matching.reference_only.keys():
        return matching.to_reference(arrays)
    return {}
