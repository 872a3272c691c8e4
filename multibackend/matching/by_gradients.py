"""Let two models tell what their names and shapes leave open.

Both models are run once at values for which the open choices do not matter: arrays that might be
exchanged hold the same values, a matrix that might be transposed is symmetric, the rows of a fused
projection are alike. So both compute the same function whichever choice is right; their gradients,
which are not symmetric, tell which it is. What is still tied is asked again with the symmetries
that are left, and what stays tied then is exchangeable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.matching.answers import Answers
from multibackend.matching.assignment import assign, exchange_costs, tied_sets
from multibackend.matching.links import Link, Matching
from multibackend.matching.pairing import make_pair
from multibackend.matching.sides import Group, Pair, Proposal, Side
from multibackend.matching.symmetry import draw
from multibackend.matching.words import read_names

__all__ = ["Run", "agreement", "settle"]

Run = Callable[[Arrays, Matching], tuple[Arrays, Arrays]]
"""(the reference's values, matching to move them across) → both answers: gradients, moves of state."""

_ROUNDS = 4  # each with the symmetries that the one before has left
_TIED = 1e-8  # costs as close as this are equal: differences of 1e-4, far above float64's rounding
_HOPELESS = 0.5  # where the best choice costs this much, the models differ: gradients tell nothing


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
        answer, other_answer = run(reference.joined(values), Matching(proposal.links(reference, other)))
        answers = Answers(reference.sliced(answer), other.sliced(other_answer))
        before = proposal
        proposal = _narrowed(before, reference, other, answers)
        if _openness(proposal) >= _openness(before):
            break  # what is tied under its own symmetries stays tied: either choice is right
    return _closed(proposal)


def agreement(links: Sequence[Link], answer: Arrays, other_answer: Arrays) -> dict[Link, float]:
    """The relative difference of two models' answers for each link that both answered for."""
    answers = Answers(answer, other_answer)
    known = [link for link in links if answers.know(link)]
    # the gradient of an array that the other holds several times is the sum over its copies
    copies: dict[object, list[Array]] = defaultdict(list)
    for link in links:
        if link.other in other_answer:
            copies[link.reference, link.reference_part].append(link.to_reference(other_answer[link.other]))
    differences = {}
    for link in known:
        total = np.sum(copies[link.reference, link.reference_part], axis=0)
        cost = answers.distance(link.of_reference(answer[link.reference]), total)
        differences[link] = float(np.sqrt(cost))
    return differences


def _openness(proposal: Proposal) -> int:
    """Count the choices that are open, to see whether a round has decided any."""
    count = sum(len(pair.changes) - 1 for pair in proposal.pairs if pair.open)
    count += sum(len(group.ways) - 1 for group in proposal.groups)
    return count + sum(len(members) ** 2 for members in proposal.sets)


def _closed(proposal: Proposal) -> Proposal:
    """Take the likeliest of what is tied."""
    pairs = [replace(pair, changes=pair.changes[:1], open=False) for pair in proposal.pairs]
    groups = [replace(group, ways=group.ways[:1]) for group in proposal.groups]
    return replace(proposal, pairs=tuple(pairs), groups=tuple(groups), sets=())


def _narrowed(proposal: Proposal, reference: Side, other: Side, answers: Answers) -> Proposal:
    """Return the choices that the answers leave."""
    pairs = {pair.reference: pair for pair in proposal.pairs}
    in_sets: set[str] = set()
    sets: list[tuple[str, ...]] = []
    for members in proposal.sets:
        changed, tied = _pairs_of_set([pairs[name] for name in members], reference, other, answers)
        pairs.update({pair.reference: pair for pair in changed})
        in_sets.update(members)
        sets += tied
    pairs.update(_layouts([pair for name, pair in pairs.items() if pair.open and name not in in_sets], answers))
    groups = _ways_of_groups(proposal.groups, answers)
    return replace(proposal, pairs=tuple(pairs.values()), sets=tuple(sets), groups=groups)


def _pairs_of_set(
    members: Sequence[Pair], reference: Side, other: Side, answers: Answers
) -> tuple[list[Pair], list[tuple[str, ...]]]:
    """Tell who is whose partner within a set, and the smaller sets that are still tied."""
    costs = np.zeros((len(members), len(members)))
    candidates = {}
    for i, j in np.ndindex(costs.shape):
        row = members[i]
        pair = make_pair(reference, other, row.reference, members[j].other, row.evidence)
        candidates[i, j] = pair
        costs[i, j] = answers.least_cost(pair)
    taken = assign(costs + 1e-9 * (1 - np.eye(len(members))))  # among equals nothing moves
    assigned_costs = costs[:, taken]
    own = np.diag(assigned_costs)
    if own.mean() > _HOPELESS:  # names and order are what is left, and layouts by directions
        unsettled = {}
        for pair in members:
            evidence = f"{pair.evidence}, gradients differ"
            unsettled[pair.reference] = replace(pair, evidence=evidence)
        known = [pair for pair in unsettled.values() if pair.open and answers.know(pair)]
        unsettled.update(_layouts_by_directions(known, answers))
        return list(unsettled.values()), []
    pairs = []
    for i, j in enumerate(taken):
        pair = candidates[i, j]
        next_best = float(np.delete(costs[i], j).min(initial=np.inf))
        pair = replace(pair, evidence=f"{pair.evidence}, {_evidence(own[i], next_best)}")
        if pair.open and answers.know(pair):
            pair = _with_layouts(pair, answers.costs(pair))
        pairs.append(pair)
    # an exchange adds to what the two cost now: up to four times that in all, as in `_bound`
    tied = exchange_costs(assigned_costs) <= 3 * (own[:, None] + own[None, :]) + _TIED
    return pairs, tied_sets(tied, [pair.reference for pair in members])


def _layouts(pairs: Sequence[Pair], answers: Answers) -> dict[str, Pair]:
    """Tell the layout of pairs, those of one role (all layers) together."""
    roles: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        name, partner = read_names([pair.reference, pair.other])
        # all layers of a role come from one line of a model, so that their costs are taken together
        roles[name.role, partner.role, pair.changes].append(pair)
    result = {}
    hopeless = []
    for members in roles.values():
        known = [pair for pair in members if answers.know(pair)]
        if not known:
            continue
        costs = np.mean([answers.costs(pair) for pair in known], axis=0)
        if costs.min() > _HOPELESS:
            hopeless += known
        else:
            for pair in members:
                result[pair.reference] = _with_layouts(pair, costs.tolist())
    return {**result, **_layouts_by_directions(hopeless, answers)}


def _with_layouts(pair: Pair, costs: Sequence[float]) -> Pair:
    """Return a pair with the changes of layout that no other beats."""
    bound = _bound(min(costs))
    changes = []
    beaten = []
    for change, cost in zip(pair.changes, costs, strict=True):
        if cost <= bound:
            changes.append(change)
        elif cost > bound:
            beaten.append(cost)
    evidence = pair.evidence
    if beaten:
        evidence += f", layout: {_evidence(min(costs), min(beaten))}"
    return replace(pair, changes=tuple(changes), evidence=evidence, open=len(changes) > 1)


def _layouts_by_directions(pairs: Sequence[Pair], answers: Answers) -> dict[str, Pair]:
    """Tell the layout of pairs whose gradients agree in no way, because the two models differ.

    A gradient is a sum of (what comes back) x (what came in), and often one of the two is still the
    same on both sides: what is compared is which directions each axis holds. Arrays of one name
    within their modules are laid out alike.
    """
    leaves: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        leaf = pair.reference.rpartition(".")[2]
        other_leaf = pair.other.rpartition(".")[2]
        leaves[leaf, other_leaf, pair.changes].append(pair)
    result = {}
    for members in leaves.values():
        scores = np.mean([answers.shared_directions(pair) for pair in members], axis=0)
        best, second = np.argsort(-scores)[:2]
        words = f"their directions agree to {scores[best]:.2f}, next best {scores[second]:.2f}"
        for pair in members:
            evidence = f"{pair.evidence}, layout: gradients differ, {words}"
            result[pair.reference] = pair.taking(pair.changes[best], evidence)
    return result


def _ways_of_groups(groups: Sequence[Group], answers: Answers) -> tuple[Group, ...]:
    """Tell how wholes are cut: one way for each role, weights and biases together.

    A bias of three equal parts cannot tell their order, its weight can.
    """
    costs: list[dict[str, float]] = []
    by_role: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for group in groups:
        ways = group.ways if group.open else ()
        costs.append({way: answers.cost_of_links(links) for way, links in ways})
        cheapest: dict[str, float] = {}
        for way, cost in costs[-1].items():
            cheapest[_cut(way)] = min(cheapest.get(_cut(way), np.inf), cost)
        for cut, cost in cheapest.items():
            by_role[group.role][cut] += cost
    result = []
    for group, ways in zip(groups, costs, strict=True):
        result.append(_with_ways(group, ways, by_role[group.role]) if ways else group)
    return tuple(result)


def _with_ways(group: Group, costs: Mapping[str, float], costs_of_cuts: Mapping[str, float]) -> Group:
    """Return a group with the ways that none beats: the cut that suits its role, then the layout."""
    least = min(costs_of_cuts[_cut(way)] for way in costs)
    bound = _bound(least)
    costs = {way: cost for way, cost in costs.items() if costs_of_cuts[_cut(way)] <= bound}
    best = min(costs.values())
    ways = [way for way in group.ways if costs.get(way[0], np.inf) <= _bound(best)]
    evidence = group.evidence
    beaten = [cost for cost in costs_of_cuts.values() if cost > bound]
    if beaten:
        evidence += f", {_evidence(least, min(beaten))}"
    return replace(group, ways=tuple(ways), evidence=evidence)


def _cut(way: str) -> str:
    """What the ways of weight and bias share: view and order, not whether parts are transposed."""
    return way.rpartition(" ")[0]


def _bound(best: float) -> float:
    """The cost up to which a choice is as good as the best: twice its difference, squared."""
    return 4 * best + _TIED


def _evidence(best: float, next_best: float) -> str:
    text = f"gradient agrees to {np.sqrt(best):.0e}"
    if not np.isfinite(next_best):
        return text
    return f"{text}, next best {np.sqrt(next_best):.1g}"
