"""From a proposal to a matching, or to an error that names what found no partner."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from multibackend.errors import ParameterMatchError
from multibackend.matching.links import Link, Matching
from multibackend.matching.by_names import Transform, propose
from multibackend.matching.sides import Proposal, Side
from multibackend.matching.stacks import unstack

__all__ = ["finish", "match_parameters"]

STATE = "model state that the other model does not keep"
IDLE = "its gradient is exactly 0: it takes no part, and the other model has none such"
_REMEDY = (
    "\nGive both models the same names, pass rename={name: name in the reference} or transform={name: axes} to Model, "
    "or Model(matching=FILE) with a matching that `compare` saved"
)


def finish(
    proposal: Proposal,
    reference: Side,
    other: Side,
    *,
    idle: tuple[Collection[str], Collection[str]] = ((), ()),
    more: Sequence[Link] = (),
) -> Matching:
    """The matching of a proposal with nothing open.

    Args:
        proposal: whose pairs and groups are settled.
        reference, other: the two models.
        idle: parameters of either side that are known to take no part.
        more: links of arrays that the proposal left over.

    Raises:
        ParameterMatchError: a parameter has no partner; names the nearest candidates and their shapes.
    """
    linked = {link.reference for link in more}, {link.other for link in more}
    only: tuple[dict[str, str], dict[str, str]] = ({}, {})
    lines = []
    sides = (reference, other), (proposal.reference_left, proposal.other_left)
    for index, (side, names) in enumerate(zip(*sides, strict=True)):
        for name in names:
            if name in linked[index]:
                continue
            if name not in side.parameters:
                only[index][name] = STATE
            elif name in idle[index]:
                only[index][name] = IDLE
            else:
                there = sides[0][1 - index]
                ends = f"{name} {tuple(side.shapes[name])}" + (
                    " of the reference is left over" if index == 0 else " has no partner"
                )
                lines.append(ends + _nearest(name, there, sides[1][1 - index]))
    if lines:
        raise ParameterMatchError(
            "the parameters of the two models do not pair up:" + "".join(f"\n  - {line}" for line in lines) + _REMEDY
        )
    return Matching((*proposal.links(reference, other), *more), *only)


def match_parameters(
    reference: Side,
    other: Side,
    *,
    rename: Mapping[str, str] | None = None,
    transform: Mapping[str, Transform] | None = None,
) -> Matching:
    """The matching of two models from names, shapes and kinds alone.

    Raises:
        ParameterMatchError: something has no partner, or is open: only the models themselves could tell.

    >>> match_parameters(Side({"layers_0.kernel": (2, 3)}), Side({"h.0.weight": (3, 2)})).links[0].change
    'transposed'
    """
    reference, other = unstack(reference, other), unstack(other, reference)
    proposal = propose(reference, other, rename=rename, transform=transform)
    matching = finish(proposal, reference, other)
    lines = [
        f"{pair.other} {tuple(other.shapes[pair.other])} could be {pair.reference} as it is or with its axes permuted"
        for pair in proposal.pairs
        if pair.open and pair.evidence != "name"
    ]
    lines += [f"{', '.join(found)} could be exchanged among each other" for found in proposal.sets]
    lines += [
        f"{', '.join(group.parts)} could be put together to {group.whole} in {len(group.ways)} ways"
        for group in proposal.groups
        if group.open
    ]
    if lines:
        raise ParameterMatchError(
            "names and shapes leave open how the parameters pair up:"
            + "".join(f"\n  - {line}" for line in lines)
            + "\n`compare` lets both models tell; save report.matching and give it as Model(matching=FILE)"
        )
    return matching


def _nearest(name: str, there: Side, left: Sequence[str]) -> str:
    """The likeliest partners of a name, those without a partner first."""
    near = difflib.get_close_matches(name, [n for n in left if n in there.parameters], n=2, cutoff=0.4)
    near += (
        difflib.get_close_matches(name, [n for n in there.shapes if n not in left], n=2 - len(near), cutoff=0.4)
        if len(near) < 2
        else []
    )
    return f" (nearest: {', '.join(f'{n} {tuple(there.shapes[n])}' for n in near)})" if near else ""
