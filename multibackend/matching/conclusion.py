"""From a proposal to a matching, or to an error that names what found no partner."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from multibackend.errors import ParameterMatchError
from multibackend.matching.by_names import Transform, propose
from multibackend.matching.links import Link, Matching
from multibackend.matching.sides import Proposal, Side
from multibackend.matching.stacks import unstack

__all__ = ["finish", "match_parameters"]

_STATE = "model state that the other model does not keep"
_IDLE = "its gradient is exactly 0: it takes no part, and the other model has none such"
_REMEDY = (
    "\nGive both models the same names, pass rename={name: name in the reference} "
    "or transform={name: axes} to Model, or Model(matching=FILE) with a matching that `compare` saved"
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
        ParameterMatchError: a parameter has no partner; names the nearest candidates
            and their shapes.
    """
    linked = {link.reference for link in more}
    other_linked = {link.other for link in more}
    left = [name for name in proposal.reference_left if name not in linked]
    other_left = [name for name in proposal.other_left if name not in other_linked]
    reference_only = _reasons(left, reference, idle[0])
    other_only = _reasons(other_left, other, idle[1])
    problems = []
    for name in left:
        if name not in reference_only:
            nearest = _nearest(name, other, proposal.other_left)
            shape = tuple(reference.shapes[name])
            problems.append(f"{name} {shape} of the reference is left over{nearest}")
    for name in other_left:
        if name not in other_only:
            nearest = _nearest(name, reference, proposal.reference_left)
            problems.append(f"{name} {tuple(other.shapes[name])} has no partner{nearest}")
    if problems:
        lines = "\n  - ".join(["the parameters of the two models do not pair up:", *problems])
        raise ParameterMatchError(lines + _REMEDY)
    return Matching((*proposal.links(reference, other), *more), reference_only, other_only)


def _reasons(names: Sequence[str], side: Side, idle: Collection[str]) -> dict[str, str]:
    """Return why arrays may go without a partner, of those that may."""
    reasons = {}
    for name in names:
        if name not in side.parameters:
            reasons[name] = _STATE
        elif name in idle:
            reasons[name] = _IDLE
    return reasons


def _nearest(name: str, partners: Side, left: Sequence[str]) -> str:
    """Return the likeliest partners of a name in words, those without a partner first."""
    # below difflib's own 0.6, because frameworks write few letters of one meaning alike
    free = [candidate for candidate in left if candidate in partners.parameters]
    nearest = difflib.get_close_matches(name, free, n=2, cutoff=0.4)
    if len(nearest) < 2:
        taken = [candidate for candidate in partners.shapes if candidate not in left]
        nearest += difflib.get_close_matches(name, taken, n=2 - len(nearest), cutoff=0.4)
    if not nearest:
        return ""
    listed = [f"{candidate} {tuple(partners.shapes[candidate])}" for candidate in nearest]
    return f" (nearest: {', '.join(listed)})"


def match_parameters(
    reference: Side,
    other: Side,
    *,
    rename: Mapping[str, str] | None = None,
    transform: Mapping[str, Transform] | None = None,
) -> Matching:
    """The matching of two models from names, shapes and kinds alone.

    Raises:
        ParameterMatchError: something has no partner, or is open: only the models
            themselves could tell.

    >>> reference = Side({"layers_0.kernel": (2, 3)}, kinds={"layers_0.kernel": ""})
    >>> match_parameters(reference, Side({"h.0.weight": (3, 2)})).links[0].change
    'transposed'
    """
    whole_reference = reference
    reference = unstack(reference, other)
    other = unstack(other, whole_reference)
    proposal = propose(reference, other, rename=rename, transform=transform)
    # what has no partner is told first: often it is the reason for what is open
    matching = finish(proposal, reference, other)
    choices = _open_choices(proposal, other)
    if choices:
        lines = ["names and shapes leave open how the parameters pair up:", *choices]
        remedy = "save report.matching and give it as Model(matching=FILE)"
        raise ParameterMatchError("\n  - ".join(lines) + f"\n`compare` lets both models tell; {remedy}")
    return matching


def _open_choices(proposal: Proposal, other: Side) -> list[str]:
    """Return what names and shapes leave open, a sentence each."""
    choices = []
    for pair in proposal.pairs:
        # Arrays of one name and shape are taken to be laid out alike where no run can tell.
        if pair.open and pair.evidence != "name":
            shape = tuple(other.shapes[pair.other])
            layouts = "as it is or with its axes permuted"
            choices.append(f"{pair.other} {shape} could be {pair.reference} {layouts}")
    choices += [f"{', '.join(names)} could be exchanged among each other" for names in proposal.sets]
    for group in proposal.groups:
        if group.open:
            parts = ", ".join(group.parts)
            choices.append(f"{parts} could be put together to {group.whole} in {len(group.ways)} ways")
    return choices
