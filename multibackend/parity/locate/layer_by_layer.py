"""Every layer by itself: each is fed what the reference's layer got, and hands on what that one made.

So a mistake does not spread, and every place that is wrong shows: a layer that makes something else of right inputs,
and a place between layers at which something else arrives although all layers before were right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.parity.findings import LayerFinding
from multibackend.parity.locate.activations import ARRIVES, ENTERS, LEAVES, Fits, Seen, Sight, side_by_side
from multibackend.parity.locate.fits import GOOD, find_fit, worst_element
from multibackend.parity.locate.layers import LayerPair, finished_order, innermost
from multibackend.protocol.tracing import Forced, LayerCall, Trace

__all__ = ["findings_of", "forced_by", "one_by_one"]

TraceOther = Callable[[Mapping[tuple[str, int], Forced]], Trace]

_MOST_PASSES = 3


def one_by_one(
    reference: Trace,
    other: Trace,
    pairs: Sequence[LayerPair],
    hints: Sequence[tuple[int, ...]],
    fits: Fits,
    trace_other: TraceOther,
) -> tuple[Trace, list[Seen]]:
    """The pass of the second model with every paired layer fed and followed by the reference's arrays.

    Layouts that a mistake upstream had hidden become visible in it, so it is repeated while they change.
    """
    forced_trace, seen = other, []
    for _ in range(_MOST_PASSES):
        before = {sight: fit.rearrangement for sight, fit in fits.items()}
        forced_trace = trace_other(forced_by(reference, other, pairs, fits))
        seen = side_by_side(reference, forced_trace, pairs, hints, fits)
        if {sight: fit.rearrangement for sight, fit in fits.items()} == before:
            break
    return forced_trace, seen


def forced_by(reference: Trace, other: Trace, pairs: Sequence[LayerPair], fits: Fits) -> dict[tuple[str, int], Forced]:
    """The reference's arrays in the other's layouts: inputs and outputs of layers, the outputs of containers."""
    found: dict[tuple[str, int], Forced] = {}
    for pair in pairs:
        here, there = reference.layers[pair.reference], other.layers[pair.other]

        def given(happens: str, wanted: Sequence[np.ndarray], count: int, pair: LayerPair = pair) -> tuple | None:
            known = [fits.get((pair.reference, happens, place)) for place in range(min(len(wanted), count))]
            arrays = tuple(None if fit is None else fit.to_other(wanted[i]) for i, fit in enumerate(known))
            return arrays if any(array is not None for array in arrays) else None

        inputs = given(ARRIVES, here.inputs, len(there.inputs)) if pair.leaf else None
        outputs = given(LEAVES, here.outputs, len(there.outputs))
        if inputs is not None or outputs is not None:
            found[there.name, there.call] = Forced(inputs, outputs)
    return found


def findings_of(
    reference: Trace,
    forced: Trace,
    seen: Sequence[Seen],
    bound: Callable[[Sight], float],
    rounding: Callable[[Sight], float],
    *,
    update: int,
    micro_batch: int,
    terms: Sequence[str],
) -> tuple[LayerFinding, ...]:
    """Every place that is wrong by itself, in the order of the reference."""
    found: list[LayerFinding] = []
    right: dict[int, bool] = {}  # containers, by what enters them
    done: set[tuple[int, str]] = set()
    for one in seen:
        index, happens, _ = one.sight
        if happens == ENTERS:
            right[index] = one.difference <= bound(one.sight)
            continue
        if one.difference <= bound(one.sight) or (index, happens) in done:
            continue
        done.add((index, happens))
        kind, container, place = _where(reference.layers, one, seen, right)
        here, there = reference.layers[one.pair.reference], forced.layers[one.pair.other]
        found.append(
            LayerFinding(
                kind,
                here.name,
                there.name,
                container,
                place,
                one.difference,
                rounding(one.sight),
                worst_element(one.expected, one.found),
                one.expected,
                one.found,
                (here, there),
                _before(reference, forced, seen, one, container),
                update,
                micro_batch,
            )
        )
    for other in _other_shapes(reference, forced, seen, bound, update, micro_batch):
        found.insert(_place(reference, found, other), other)
    return (*_without_echoes(found), *_terms(reference, forced, bound, terms, update, micro_batch))


def _place(reference: Trace, found: Sequence[LayerFinding], other: LayerFinding) -> int:
    """Before which finding one belongs: the first whose layer begins later, or whose container ends later."""
    order = {(call.name, call.call): index for index, call in enumerate(reference.layers)}

    def index(finding: LayerFinding) -> int:
        return -1 if finding.calls is None else order[finding.calls[0].name, finding.calls[0].call]

    own = index(other)
    later = (n for n, one in enumerate(found) if index(one) > own or "at the end of" in one.place)
    return next(later, len(found))


def _other_shapes(
    reference: Trace,
    forced: Trace,
    seen: Sequence[Seen],
    bound: Callable[[Sight], float],
    update: int,
    micro_batch: int,
) -> list[LayerFinding]:
    """Layers with parameters that make arrays of another size of right inputs: another stride, another padding."""
    found = []
    for one in seen:
        index, happens, place = one.sight
        here, there = reference.layers[one.pair.reference], forced.layers[one.pair.other]
        if happens != ARRIVES or place or one.difference > bound(one.sight) or not here.parameters:
            continue
        if here.outputs and there.outputs and here.outputs[0].size != there.outputs[0].size:
            arrays = here.outputs[0], there.outputs[0]
            sizes = float(arrays[0].size), float(arrays[1].size)
            container = next((reference.layers[outer].name for outer in innermost(reference.layers, index)), "")
            words = f"which makes {list(arrays[0].shape)} here and {list(arrays[1].shape)} there"
            found.append(
                LayerFinding(
                    "layer",
                    here.name,
                    there.name,
                    container,
                    words,
                    1.0,
                    None,
                    sizes,
                    *arrays,
                    (here, there),
                    update=update,
                    micro_batch=micro_batch,
                )
            )
    return found


def _without_echoes(findings: Sequence[LayerFinding]) -> list[LayerFinding]:
    """A wrong array in a residual stream shows again wherever the stream goes, past every layer that was fed.

    Where the same difference is merely added again it is left out; where it may be, the finding says so.
    """
    kept: list[LayerFinding] = []
    for finding in findings:
        earlier = [one for one in kept if one.kind == "wiring"] if finding.kind == "wiring" else []
        if any(_same_gap(one, finding) for one in earlier):
            continue
        source = next((one for one in earlier if one.container in ("", finding.container)), None)
        kept.append(finding if source is None else replace(finding, follows=source.name))
    return kept


def _same_gap(first: LayerFinding, second: LayerFinding) -> bool:
    first_gap = np.asarray(first.found, np.float64) - np.asarray(first.expected, np.float64)
    second_gap = np.asarray(second.found, np.float64) - np.asarray(second.expected, np.float64)
    return first_gap.shape == second_gap.shape and relative_difference(first_gap, second_gap) <= GOOD


def _where(
    layers: Sequence[LayerCall], one: Seen, seen: Sequence[Seen], right: Mapping[int, bool]
) -> tuple[str, str, str]:
    """(kind, container, place in words)."""
    index, happens, _ = one.sight
    paired = {other.sight[0] for other in seen}
    around = [outer for outer in innermost(layers, index) if outer in paired]
    if happens == LEAVES and one.pair.leaf:
        container = layers[around[0]].name if around else ""
        return "layer", container, ""
    order = [done for done in finished_order(layers) if done in paired]
    if happens == LEAVES:
        inside = [done for done in order[: order.index(index)] if done > index]
        last = f"after {layers[inside[-1]].name}, " if inside else ""
        return "wiring", layers[index].name, f"{last}at the end of {layers[index].name or 'the model'}"
    earlier = [done for done in order if _returned(layers, done, index)]
    container = _container(layers, around, earlier, right)
    inside = f", inside {container}" if container else ""
    begin = layers[earlier[-1]].name if earlier else "the model's inputs"
    return "wiring", container, f"between {begin} and {layers[index].name or 'the model'}{inside}"


def _container(
    layers: Sequence[LayerCall], around: Sequence[int], earlier: Sequence[int], right: Mapping[int, bool]
) -> str:
    """The innermost module in which an array went wrong: what entered it was right, or it holds the layer before."""
    for outer in around:
        holds = bool(earlier) and outer in innermost(layers, earlier[-1])
        if right.get(outer, False) or holds:
            return layers[outer].name
    return ""


def _returned(layers: Sequence[LayerCall], index: int, start: int) -> bool:
    """Whether a call had returned when another began."""
    if index >= start:
        return False
    return index not in innermost(layers, start)


def _before(
    reference: Trace, forced: Trace, seen: Sequence[Seen], one: Seen, container: str
) -> tuple[tuple[LayerCall, LayerCall], ...]:
    """The paired calls inside a container that had returned."""
    layers, index = reference.layers, one.sight[0]
    pairs = {other.pair.reference: other.pair for other in seen}
    order = [done for done in finished_order(layers) if done in pairs]
    if one.sight[1] == LEAVES:
        order = [done for done in order[: order.index(index)] if layers[index].leaf or done > index]
    else:
        order = [done for done in order if _returned(layers, done, index)]
    within = [done for done in order if any(layers[outer].name == container for outer in innermost(layers, done))]
    return tuple((layers[done], forced.layers[pairs[done].other]) for done in within)


def _terms(
    reference: Trace,
    forced: Trace,
    bound: Callable[[Sight], float],
    names: Sequence[str],
    update: int,
    micro_batch: int,
) -> list[LayerFinding]:
    """Terms of the loss that differ although the model's outputs were given; none where they could not be."""
    outputs = [find_fit(*pair) for pair in zip(reference.outputs, forced.outputs, strict=False)]
    fed = all(fit is not None and fit.difference <= bound((0, LEAVES, 0)) for fit in outputs[:1])
    if not fed or len(reference.terms) != len(forced.terms):
        return []
    found = []
    for index, name in enumerate(names):
        pair = reference.terms[index : index + 1], forced.terms[index : index + 1]
        size = relative_difference(*pair)
        if size > bound((-1, "loss", index)):
            values = float(pair[0][0]), float(pair[1][0])
            found.append(
                LayerFinding(
                    "loss", name, name, "", "", size, None, values, *pair, None, update=update, micro_batch=micro_batch
                )
            )
    return found
