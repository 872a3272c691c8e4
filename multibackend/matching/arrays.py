"""Arrays of another model put into a training state, through a matching."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from multibackend.core.arrays import Arrays
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
    order = list(dict.fromkeys([*(name for name in kinds if name in arrays), *arrays]))
    shapes = {name: tuple(arrays[name].shape) for name in order}
    whole = frozenset(name for name, array in arrays.items() if array.dtype.kind in "iub")
    return Side(shapes, kinds, frozenset(snapshot.parameters), ordered=bool(kinds), integers=whole)


def given_matching(model: Model) -> Matching | None:
    """The one that `Model(matching=...)` names, read where it is a file."""
    if model.matching is None or isinstance(model.matching, Matching):
        return model.matching
    return Matching.load(model.matching)


def matching_from(saved: Snapshot, kinds: Mapping[str, str], own: Snapshot, model: Model, program: Any) -> Matching:
    """From a saved state, the reference, to the state of a program, without running either model.

    Equal names and shapes are one; else `Model(matching=...)` tells, or names, shapes and kinds of layers. That
    matching, `rename` and `transform` may have either of the two as their reference.

    Raises:
        ParameterMatchError: the parameters do not pair up, or something is open.
    """
    arrays = {**saved.parameters, **saved.model_state}
    there, here = Side(shapes_of(arrays), kinds, frozenset(saved.parameters)), side_of(own, program)
    if dict(there.shapes) == dict(here.shapes):
        return Matching.of_pairs({name: name for name in there.shapes}, there.shapes)
    given, changes = given_matching(model), {"rename": model.rename, "transform": model.transform}
    if given is not None:
        try:
            given.check(there.shapes, here.shapes)
        except ParameterMatchError:
            given = given.reversed()
            given.check(there.shapes, here.shapes)
        return given
    try:
        return match_parameters(there, here, **changes)
    except ParameterMatchError as error:
        try:
            return match_parameters(here, there, **changes).reversed()
        except ParameterMatchError:
            raise error from None


def with_arrays(
    own: Snapshot, arrays: Arrays, model: Model, program: Any, trained: Collection[str] | None = None
) -> Snapshot:
    """A state with its parameters, and what of its model state is there, taken from another model's arrays.

    Args:
        own: the state.
        arrays: by the other model's canonical names.
        model: for `rename`, `transform` and `matching`.
        program: whose state it is.
        trained: which of the arrays are parameters; all that this model does not keep as model state unless given.

    Raises:
        ParameterMatchError: they do not pair up with this model's parameters.
    """
    here = side_of(own, program)
    translated = _translated(here, arrays, model)
    lacking = [name for name in own.parameters if name not in translated]
    if lacking:  # then the arrays' names are to be understood anew, and the error tells what is missing
        known = frozenset(arrays) - own.model_state.keys() if trained is None else frozenset(trained)
        there = Side(shapes_of(arrays), {}, known)
        kept = own.model_state.keys() & arrays.keys() if trained is None else own.model_state.keys()
        mine = replace(here, shapes={n: s for n, s in here.shapes.items() if n in own.parameters or n in kept})
        found = match_parameters(there, mine, rename=model.rename, transform=model.transform)
        translated = found.to_other(arrays)
    parameters = {name: translated[name] for name in own.parameters}
    state = {name: translated.get(name, array) for name, array in own.model_state.items()}
    return replace(own, ema={}, parameters=parameters, model_state=state)


def _translated(here: Side, arrays: Arrays, model: Model) -> Arrays:
    """Through the matching that the model was given, whichever side of it the arrays are; else nothing."""
    given = given_matching(model)
    if given is None:
        return {}
    ours, theirs = {link.reference for link in given.links}, {link.other for link in given.links}
    mine = here.parameters
    if theirs >= mine - given.other_only.keys() and ours & arrays.keys() and not arrays.keys() >= mine:
        return given.to_other(arrays)
    if ours >= mine - given.reference_only.keys() and theirs & arrays.keys() and not arrays.keys() >= mine:
        return given.to_reference(arrays)
    return {}
