"""Let two models tell what their names and shapes leave open.

Both models are run once at values for which the open choices do not matter: arrays that might be exchanged hold the
same values, a matrix that might be transposed is symmetric, the rows of a fused projection are alike. So both compute
the same function whichever choice is right; their gradients, which are not symmetric, tell which it is. What is still
tied is asked again with the symmetries that are left, and what stays tied then is exchangeable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.matching.assignment import assign
from multibackend.matching.links import Link, Matching
from multibackend.matching.pairing import make_pair
from multibackend.matching.sides import Group, Pair, Proposal, Side
from multibackend.matching.symmetry import draw
from multibackend.matching.words import read_names

__all__ = ["Agreement", "Run", "agreement", "settle"]

Run = Callable[[Arrays, Matching], tuple[Arrays, Arrays]]
"""(values of the reference, matching to move them across) → what each model answers: gradients, and how state moved."""

_ROUNDS = 4
_TIED = 1e-8  # squared relative differences as close as this are no difference
_HOPELESS = 0.5  # where even the best is this far off, gradients tell nothing


@dataclass(frozen=True)
class Agreement:
    """How far two models' answers agree under a matching: for each of its links the relative difference."""

    differences: Mapping[Link, float]

    @property
    def share(self) -> float:
        """The share of links that agree to six digits."""
        values = list(self.differences.values())
        return float(np.mean([value < 1e-6 for value in values])) if values else 1.0


def settle(proposal: Proposal, reference: Side, other: Side, initial: Arrays, run: Run) -> Proposal:
    """The proposal with nothing open: what the gradients of both models say.

    Args:
        proposal: what names and shapes say.
        reference, other: the two models.
        initial: the reference's initial values, parameters and model state.
        run: runs both models.
    """
    for attempt in range(_ROUNDS):
        if not proposal.open:
            break
        values = draw(proposal, reference, other, reference.sliced(initial), seed=attempt)
        ours, theirs = run(reference.joined(values), Matching(proposal.links(reference, other)))
        reduced = _read(proposal, reference, other, reference.sliced(ours), other.sliced(theirs))
        stuck = _openness(reduced) >= _openness(proposal)
        proposal = reduced
        if stuck:
            break
    return _closed(proposal)


def agreement(links: Sequence[Link], ours: Arrays, theirs: Arrays) -> Agreement:
    """The relative differences of two models' answers, link by link; those that have no answer are left out."""
    both = Matching(tuple(links))
    floor = _floor(ours, theirs)
    copies = defaultdict(list)
    for link in links:
        copies[link.reference, link.reference_part].append(link)
    found = {}
    for link in both.links:
        if link.reference in ours and link.other in theirs:
            summed = [
                x.to_reference(theirs[x.other])
                for x in copies[link.reference, link.reference_part]
                if x.other in theirs
            ]
            array = ours[link.reference]
            mine = array if link.reference_part is None else link.reference_part.take(array)
            found[link] = float(np.sqrt(_distance(mine, np.sum(summed, axis=0), floor)))
    return Agreement(found)


def _openness(proposal: Proposal) -> int:
    return (
        sum(len(pair.changes) - 1 for pair in proposal.pairs if pair.open)
        + sum(len(group.ways) - 1 for group in proposal.groups)
        + sum(len(found) ** 2 for found in proposal.sets)
    )


def _closed(proposal: Proposal) -> Proposal:
    """With the likeliest of what is tied."""
    pairs = [replace(pair, changes=pair.changes[:1], open=False) for pair in proposal.pairs]
    groups = [replace(group, ways=group.ways[:1]) for group in proposal.groups]
    return replace(proposal, pairs=tuple(pairs), groups=tuple(groups), sets=())


def _read(proposal: Proposal, reference: Side, other: Side, ours: Arrays, theirs: Arrays) -> Proposal:
    floor = _floor(ours, theirs)
    pairs = {pair.reference: pair for pair in proposal.pairs}
    sets = []
    for members in proposal.sets:
        changed, left = _read_set([pairs[name] for name in members], reference, other, ours, theirs, floor)
        pairs.update({pair.reference: pair for pair in changed})
        sets.extend(left)
    inside = {name for members in proposal.sets for name in members}
    pairs.update(
        _read_changes([p for p in pairs.values() if p.open and p.reference not in inside], ours, theirs, floor)
    )
    groups = _read_groups(proposal.groups, ours, theirs, floor)
    return replace(proposal, pairs=tuple(pairs.values()), sets=tuple(sets), groups=groups)


def _read_set(
    members: Sequence[Pair], reference: Side, other: Side, ours: Arrays, theirs: Arrays, floor: float
) -> tuple[list[Pair], list[tuple[str, ...]]]:
    """Who is whose partner within a set, and the smaller sets that are still tied."""
    names, others = [pair.reference for pair in members], [pair.other for pair in members]
    grid = [
        [make_pair(reference, other, a, b, pair.evidence) for b in others]
        for a, pair in zip(names, members, strict=True)
    ]
    costs = np.array([[_best(pair, ours, theirs, floor) for pair in row] for row in grid])
    prior = 1e-9 * (1 - np.eye(len(names)))
    taken = assign(costs + prior)
    own = costs[np.arange(len(names)), taken]
    if own.mean() > _HOPELESS:  # the models differ: names and order are what is left, and layouts by directions
        kept = [replace(pair, evidence=f"{pair.evidence}, gradients differ") for pair in members]
        turned = _by_directions([p for p in kept if p.open and p.reference in ours and p.other in theirs], ours, theirs)
        return [turned.get(pair.reference, pair) for pair in kept], []
    pairs = []
    for i, j in enumerate(taken):
        rest = np.delete(costs[i], j)
        words = _evidence(own[i], float(rest.min(initial=np.inf)))
        pairs.append(_narrowed(replace(grid[i][j], evidence=f"{members[i].evidence}, {words}"), ours, theirs, floor))
    swapped = costs[:, taken]
    exchange = swapped + swapped.T - own[:, None] - own[None, :]
    tied = exchange <= 3 * (own[:, None] + own[None, :]) + _TIED
    return pairs, [tuple(names[i] for i in part) for part in _components(tied) if len(part) > 1]


def _narrowed(pair: Pair, ours: Arrays, theirs: Arrays, floor: float) -> Pair:
    """With the changes of layout that no other beats."""
    if not pair.open or pair.reference not in ours or pair.other not in theirs:
        return pair
    costs = [_cost(pair, change, ours, theirs, floor) for change in pair.changes]
    return _kept(pair, costs)


def _kept(pair: Pair, costs: Sequence[float]) -> Pair:
    best = min(costs)
    kept = [change for change, cost in zip(pair.changes, costs, strict=True) if cost <= 4 * best + _TIED]
    rest = [cost for cost in costs if cost > 4 * best + _TIED]
    evidence = pair.evidence if not rest else f"{pair.evidence}, layout: {_evidence(best, min(rest))}"
    return replace(pair, changes=tuple(kept), evidence=evidence, open=len(kept) > 1)


def _read_changes(pairs: Sequence[Pair], ours: Arrays, theirs: Arrays, floor: float) -> dict[str, Pair]:
    """The layout of pairs, those of one role (all layers) together."""
    roles = defaultdict(list)
    for pair in pairs:
        role = read_names([pair.reference, pair.other])
        roles[role[0].role, role[1].role, pair.changes].append(pair)
    result, hopeless = {}, []
    for (_, _, changes), members in roles.items():
        seen = [pair for pair in members if pair.reference in ours and pair.other in theirs]
        if not seen:
            continue
        costs = np.mean([[_cost(pair, c, ours, theirs, floor) for c in changes] for pair in seen], axis=0)
        if costs.min() > _HOPELESS:
            hopeless += seen
        else:
            result.update({pair.reference: _kept(pair, costs.tolist()) for pair in members})
    return {**result, **_by_directions(hopeless, ours, theirs)}


def _by_directions(pairs: Sequence[Pair], ours: Arrays, theirs: Arrays) -> dict[str, Pair]:
    """The layout of pairs whose gradients agree in no way, because the two models differ.

    A gradient is a sum of (what comes back) x (what came in), and often one of the two is still the same on both sides:
    what is compared is which directions each axis holds. Arrays of one name within their modules are laid out alike.
    """
    leaves = defaultdict(list)
    for pair in pairs:
        leaves[pair.reference.rpartition(".")[2], pair.other.rpartition(".")[2], pair.changes].append(pair)
    result = {}
    for (_, _, changes), members in leaves.items():
        scores = np.mean([[_common(c(ours[p.reference]), theirs[p.other]) for c in changes] for p in members], axis=0)
        order = np.argsort(-scores)
        words = f"gradients differ, their directions agree to {scores[order[0]]:.2f}, next best {scores[order[1]]:.2f}"
        best = changes[int(order[0])]
        result.update({p.reference: p.taking(best, f"{p.evidence}, layout: {words}") for p in members})
    return result


def _common(first: np.ndarray, second: np.ndarray) -> float:
    """In [0, 1]: how far two arrays share the directions of their axes, whatever else."""
    total = 0.0
    for axis in range(second.ndim):
        grams = []
        for array in (first, second):
            rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            grams.append(rows @ rows.T)
        size = float(np.linalg.norm(grams[0]) * np.linalg.norm(grams[1]))
        total += float(np.sum(grams[0] * grams[1])) / size if size > 0 else 0.0
    return total / max(second.ndim, 1)


def _read_groups(groups: Sequence[Group], ours: Arrays, theirs: Arrays, floor: float) -> tuple[Group, ...]:
    """How wholes are cut: one way for each role, weights and biases together."""
    costs: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    single: dict[int, dict[str, float]] = {}
    for index, group in enumerate(groups):
        if not group.open:
            continue
        single[index] = {name: _cost_of_links(links, ours, theirs, floor) for name, links in group.ways}
        best: dict[str, float] = {}
        for name, cost in single[index].items():
            shared = _shared(name)
            best[shared] = min(best.get(shared, np.inf), cost)
        for shared, cost in best.items():
            costs[group.role][shared] += cost
    result = []
    for index, group in enumerate(groups):
        if index not in single:
            result.append(group)
            continue
        table = costs[group.role]
        least = min(table[_shared(name)] for name, _ in group.ways)
        ways = [way for way in group.ways if table[_shared(way[0])] <= 4 * least + _TIED]
        low = min(single[index][name] for name, _ in ways)
        ways = [way for way in ways if single[index][way[0]] <= 4 * low + _TIED]
        rest = [cost for shared, cost in table.items() if cost > 4 * least + _TIED]
        words = f", {_evidence(least, min(rest))}" if rest else ""
        result.append(replace(group, ways=tuple(ways), evidence=group.evidence + words))
    return tuple(result)


def _shared(way: str) -> str:
    """What weight and bias have in common: the view and the order, not whether parts are transposed."""
    return way.rpartition(" ")[0]


def _cost_of_links(links: Sequence[Link], ours: Arrays, theirs: Arrays, floor: float) -> float:
    gaps = sizes = 0.0
    for link in links:
        if link.reference in ours and link.other in theirs:
            mine, yours = link.to_other(ours[link.reference]), link.of_other(theirs[link.other])
            yours = yours.reshape(mine.shape)
            gaps += float(np.sum((mine - yours) ** 2))
            sizes += float(np.sum(mine**2) + np.sum(yours**2)) / 2
    return gaps / (sizes + floor)


def _best(pair: Pair, ours: Arrays, theirs: Arrays, floor: float) -> float:
    if pair.reference not in ours or pair.other not in theirs:
        return 1.0
    return min((_cost(pair, change, ours, theirs, floor) for change in pair.changes), default=1e3)


def _cost(pair: Pair, change: Callable[[np.ndarray], np.ndarray], ours: Arrays, theirs: Arrays, floor: float) -> float:
    return _distance(change(ours[pair.reference]), theirs[pair.other], floor)


def _distance(first: np.ndarray, second: np.ndarray, floor: float) -> float:
    """The squared difference relative to the squared size."""
    size = (float(np.sum(first**2)) + float(np.sum(second**2))) / 2
    return float(np.sum((first - second) ** 2)) / (size + floor)


def _floor(ours: Arrays, theirs: Arrays) -> float:
    """The squared size below which an answer is nothing but rounding."""
    largest = max((float(np.sum(a**2)) for a in (*ours.values(), *theirs.values())), default=0.0)
    return 1e-22 * largest + np.finfo(float).tiny


def _components(tied: np.ndarray) -> list[list[int]]:
    left, parts = set(range(len(tied))), []
    while left:
        edge, part = [min(left)], []
        left.discard(edge[0])
        while edge:
            i = edge.pop()
            part.append(i)
            reached = {int(j) for j in np.flatnonzero(tied[i])} & left
            left -= reached
            edge.extend(reached)
        parts.append(sorted(part))
    return parts


def _evidence(best: float, second: float) -> str:
    text = f"gradient agrees to {np.sqrt(best):.0e}"
    return text if not np.isfinite(second) else f"{text}, next best {np.sqrt(second):.1g}"
