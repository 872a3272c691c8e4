"""One update of two runs from the same state, stage by stage: the first at which they part beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multibackend.core.differences import relative_difference, relative_differences
from multibackend.core.history import term_name
from multibackend.experiment import Experiment
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.activations import LEAVES, Fits, Sight, hints_of, roundings, side_by_side
from multibackend.parity.locate.fits import find_fit, worst_element
from multibackend.parity.locate.layer_by_layer import findings_of, one_by_one
from multibackend.parity.locate.layers import LayerPair, pair_layers
from multibackend.parity.locate.rerun import Bridge, Runner, Step, nudged
from multibackend.parity.locate.statistics import differs_by_bias
from multibackend.parity.tolerances import TOLERANCES
from multibackend.protocol import Snapshot
from multibackend.protocol.tracing import Trace

__all__ = ["Evidence", "Examination", "bound_for", "examine", "undetermined"]

Bound = Callable[[float], float]

_MOST_MICRO_BATCHES = 16
_BASE = {"float64": 1e-12, "float32": 1e-4}
_BASE_OF_MIXED = 3e-2
_TIMES = 100.0


@dataclass(frozen=True)
class Evidence:
    """What was recorded where two runs part, for whoever wants to explain it. Pairs: the reference's, the other's.

    Attributes:
        update: its number.
        micro_batch: the one that was traced.
        precision: of the runs that were examined, which may be float64 beside an experiment in float32.
        backends, experiments: of both.
        steps: the window from the same state before it on both sides.
        traces: of the micro-batch; None where a backend tells nothing of its layers.
        forced: the second model's, each layer fed by the reference; None where no activation differs.
        pairs: which calls are partners, as indices into the traces' layers.
        bridge: which arrays are partners.
        sides: what ran, to trace more of it.
        history: the last windows of each side's own run, this one last.
    """

    update: int
    micro_batch: int
    precision: str
    backends: tuple[str, str]
    experiments: tuple[Experiment, Experiment]
    steps: tuple[Step, Step]
    traces: tuple[Trace, Trace] | None
    forced: Trace | None
    pairs: tuple[LayerPair, ...]
    bridge: Bridge
    sides: tuple[Runner, Runner] | None = None
    history: tuple[tuple[Step, ...], tuple[Step, ...]] = ((), ())


@dataclass
class Examination:
    """What the examination of one update found."""

    divergence: Divergence | None = None
    layers: tuple[LayerFinding, ...] = ()
    evidence: Evidence | None = None
    notes: list[str] = field(default_factory=list)


def bound_for(precision: str) -> Bound:
    """The relative difference up to which nothing is said, given the one that rounding was measured to make.

    Frameworks add up in other orders and fuse, which is more than one rounding error at the start: 100 times what that
    makes, and a base for what happens to be exact in the measurement.
    """
    base = _BASE.get(precision, _BASE_OF_MIXED)
    return lambda rounding: base + _TIMES * rounding


def undetermined(step: Step, names: Sequence[str], precision: str) -> set[str]:
    """The parameters whose gradient is nothing but rounding."""
    noise = TOLERANCES[precision].noise
    norms, whole = step.results.gradient_norms[0], max(float(step.results.grad_norm[0]), np.finfo(np.float64).tiny)
    return {name for name, norm in zip(names, norms, strict=True) if norm / whole <= noise}


class _Update:
    """One update: the windows of both sides from the same state, and the reference's one rounding error away."""

    def __init__(self, sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step]) -> None:
        self.reference, self.other = sides
        self.bridge, self.precision = bridge, self.reference.experiment.precision
        self.bound = bound_for(self.precision)
        self.start = steps[0].before
        self.other_start = bridge.to_other(self.start, steps[1].before)
        self.nudged_start = nudged(self.start)
        self.steps = steps[0], self.other.again(steps[1], self.other_start)
        self.nudged = self.reference.again(steps[0], self.nudged_start)
        self.number = self.start.update + 1
        self.found = Examination()

    def part(
        self, stage: str, what: str, values: tuple[float, float], size: float, rounding: float | None = None
    ) -> Divergence:
        """A divergence at this update."""
        return Divergence(stage, self.number, what, values, size, rounding, self.bridge.partner(what))

    def first_of(
        self,
        stage: str,
        arrays: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
        order: Sequence[str],
        skip: set[str],
    ) -> Divergence | None:
        """The first name in order whose arrays (reference, other, nudged reference) differ beyond rounding."""
        sizes, rounding = relative_differences(arrays[0], arrays[1]), relative_differences(arrays[0], arrays[2])
        for name in order:
            if name in sizes and name not in skip and sizes[name] > self.bound(rounding[name]):
                values = worst_element(arrays[0][name], arrays[1][name])
                return self.part(stage, name, values, sizes[name], rounding[name])
        return None


def examine(sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step]) -> Examination:
    """Hold one update of both sides against each other, from the reference's state before it.

    Args:
        sides: the reference and the other.
        bridge: between them.
        steps: the windows that were run, of the same update.
    """
    data = _data_order(steps)
    if data is not None:
        found = Examination(Divergence("data order", steps[0].before.update + 1, *data))
        found.evidence = _evidence(sides, bridge, steps, None)
        return found
    update = _Update(sides, bridge, steps)
    update.found.evidence = _evidence(sides, bridge, update.steps, None)
    for stage in (_initial_parameters, _passes, _window_loss, _clip, _applied, _update, _model_state):
        update.found.divergence = stage(update)
        if update.found.divergence is not None:
            break
    return update.found


def _evidence(
    sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step], traces: tuple[Trace, Trace] | None
) -> Evidence:
    first, second = sides
    return Evidence(
        update=steps[0].before.update + 1,
        micro_batch=0,
        precision=first.experiment.precision,
        backends=(first.backend, second.backend),
        experiments=(first.experiment, second.experiment),
        steps=steps,
        traces=traces,
        forced=None,
        pairs=(),
        bridge=bridge,
        sides=sides,
    )


def _data_order(steps: tuple[Step, Step]) -> tuple[str, tuple[float, float], float] | None:
    """(field, values, size) of the first difference in the data; only fields that both sides have are looked at."""
    batches = [list(step.micro_batches()) for step in steps]
    counts = [len(found) for found in batches]
    if counts[0] != counts[1]:
        return (
            "micro-batches per update",
            (float(counts[0]), float(counts[1])),
            relative_difference(counts[0], counts[1]),
        )
    for (first, _), (second, _) in zip(*batches, strict=True):
        for name in first:
            a, b = first[name], second.get(name)
            if b is None or (a.dtype.kind not in "fiub" and np.array_equal(a, b)):
                continue
            if a.shape != b.shape:
                return f"the shape of {name}", (float(len(a)), float(len(b))), 1.0
            if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return name, worst_element(a, b), relative_difference(a, b)
    return None


def _initial_parameters(update: _Update) -> Divergence | None:
    """What was moved to the other side must have arrived."""
    other = update.other.program
    arrived = update.bridge.to_reference(other.snapshot(other.restore(update.other_start))).parameters
    own = {name: array for name, array in update.start.parameters.items() if name in arrived}
    return update.first_of("initial parameters", (own, arrived, own), list(own), set())


def _passes(update: _Update) -> Divergence | None:
    """Activations, loss and gradients of the micro-batches in turn."""
    if not (update.reference.traceable and update.other.traceable):
        return None
    for index, _ in enumerate(list(update.steps[0].micro_batches())[:_MOST_MICRO_BATCHES]):
        found = _micro_batch(update, index)
        if found is not None:
            return found
    return None


def _micro_batch(update: _Update, index: int) -> Divergence | None:
    step, twin = update.steps
    reference = update.reference.trace(update.start, step, index)
    perturbed = update.reference.trace(update.nudged_start, step, index)
    other = update.other.trace(update.other_start, twin, index)
    pairs = pair_layers(reference, other, update.bridge.links)
    evidence = update.found.evidence
    assert evidence is not None
    update.found.evidence = replace(evidence, micro_batch=index, traces=(reference, other), pairs=pairs)
    rounding = roundings(reference, perturbed)
    activations = _activations(update, index, (reference, other), pairs, rounding)
    if activations is not None:
        return activations
    sizes = [
        (relative_difference(first, second), relative_difference(first, nearby), float(first), float(second))
        for first, second, nearby in zip(reference.terms, other.terms, perturbed.terms, strict=True)
    ]
    for name, (size, own, first, second) in zip(_terms(update.reference.experiment), sizes, strict=True):
        if size > update.bound(own):
            return update.part("loss", name, (first, second), size, own)
    gradients = update.bridge.gradients(other.gradients)
    common = {name: array for name, array in reference.gradients.items() if name in gradients}
    skip = undetermined(step, update.reference.program.info.parameter_names, update.precision)
    order = _backwards(reference, list(common))
    return update.first_of("gradients", (common, gradients, perturbed.gradients), order, skip)


def _terms(experiment: Experiment) -> list[str]:
    """The names of the loss's terms."""
    return [term_name(name, len(experiment.loss_terms)) for name in experiment.loss_terms]


def _activations(
    update: _Update,
    index: int,
    traces: tuple[Trace, Trace],
    pairs: Sequence[LayerPair],
    rounding: Callable[[Sight], float],
) -> Divergence | None:
    reference, other = traces
    fits: Fits = {}
    hints = hints_of(reference, update.bridge.parameters)

    def bound(sight: Sight) -> float:
        return update.bound(rounding(sight))

    seen = side_by_side(reference, other, pairs, hints, fits)
    wrong = [one for one in seen if one.sight[1] != "enters" and one.difference > bound(one.sight)]
    if not wrong and _same_outputs(update, traces) and _same_terms(update, traces, bound):
        return None

    def trace_other(forced: Mapping) -> Trace:
        return update.other.trace(update.other_start, update.steps[1], index, gradients=False, forced=forced)

    forced, alone = one_by_one(reference, other, pairs, hints, fits, trace_other)
    terms = _terms(update.reference.experiment)
    update.found.layers = findings_of(
        reference, forced, alone, bound, rounding, update=update.number, micro_batch=index, terms=terms
    )
    assert update.found.evidence is not None
    update.found.evidence = replace(update.found.evidence, forced=forced)
    for finding in update.found.layers:
        if finding.kind != "loss":
            divergence = update.part("activations", finding.name, finding.values, finding.difference, finding.rounding)
            return replace(divergence, partner=finding.partner, place=finding.place)
    if not wrong:
        return None
    first, layers = wrong[0], (reference.layers[wrong[0].pair.reference], other.layers[wrong[0].pair.other])
    divergence = update.part(
        "activations",
        layers[0].name,
        worst_element(first.expected, first.found),
        first.difference,
        rounding(first.sight),
    )
    return replace(divergence, partner=layers[1].name, place="" if first.sight[1] == LEAVES else "what arrives there")


def _same_outputs(update: _Update, traces: tuple[Trace, Trace]) -> bool:
    """Whether the loss sees the same."""
    fits = [find_fit(a, b) for a, b in zip(traces[0].outputs, traces[1].outputs, strict=False)]
    return all(fit is None or fit.difference <= update.bound(0.0) for fit in fits[:1])


def _same_terms(update: _Update, traces: tuple[Trace, Trace], bound: Callable[[Sight], float]) -> bool:
    return relative_difference(traces[0].terms, traces[1].terms) <= update.bound(0.0)


def _backwards(trace: Trace, names: Sequence[str]) -> list[str]:
    """Parameters in the order in which a backward pass comes to their layers."""
    last: dict[str, int] = {}
    for place, call in enumerate(trace.layers):
        last |= dict.fromkeys(call.parameters, place)
    return sorted(names, key=lambda name: -last.get(name, -1))


def _window_loss(update: _Update) -> Divergence | None:
    """The loss of the whole window: its weights may differ where no micro-batch's sum does."""
    rows = [step.results.terms[0] for step in (*update.steps, update.nudged)]
    for name, first, second, nearby in zip(_terms(update.reference.experiment), *rows, strict=True):
        size, rounding = (relative_difference(np.array(first), np.array(other)) for other in (second, nearby))
        if size > update.bound(rounding):
            return update.part("loss", name, (float(first), float(second)), size, rounding)
    return None


def _clip(update: _Update) -> Divergence | None:
    """The global norm, and the factor by which the gradient was scaled."""
    norms = [float(step.results.grad_norm[0]) for step in (*update.steps, update.nudged)]
    size, rounding = (relative_difference(np.array(norms[0]), np.array(other)) for other in norms[1:])
    if size > update.bound(rounding):
        return update.part("clip", "grad_norm", (norms[0], norms[1]), size, rounding)
    factors = [
        1.0 if limit is None or norm <= limit else limit / norm
        for norm, limit in zip(norms, (side.experiment.max_grad_norm for side in _sides(update)), strict=False)
    ]
    size = relative_difference(np.array(factors[0]), np.array(factors[1]))
    if size > update.bound(rounding):
        return update.part("clip", "clip factor", (factors[0], factors[1]), size, rounding)
    return None


def _sides(update: _Update) -> Iterator[Runner]:
    yield update.reference
    yield update.other


def _applied(update: _Update) -> Divergence | None:
    skipped = [float(not step.results.applied[0]) for step in update.steps]
    if skipped[0] == skipped[1]:
        return None
    return update.part("update", "number of skipped windows", (skipped[0], skipped[1]), 1.0)


def _update(update: _Update) -> Divergence | None:
    """How far each parameter moved, then the optimizer's slots."""
    step, twin = update.steps
    skip = undetermined(step, update.reference.program.info.parameter_names, update.precision)
    after = update.bridge.to_reference(twin.after)
    moves = [
        {name: array - before.parameters[name] for name, array in state.parameters.items()}
        for state, before in (
            (step.after, step.before),
            (after, update.bridge.to_reference(update.other_start)),
            (update.nudged.after, update.nudged_start),
        )
    ]
    order = [name for name in moves[0] if name in moves[1]]
    own = {name: moves[0][name] for name in order}
    found = update.first_of("update", (own, moves[1], moves[2]), order, skip)
    if found is not None:
        return found
    return _slots(update, step.after, after, order, skip)


def _slots(update: _Update, own: Snapshot, other: Snapshot, order: Sequence[str], skip: set[str]) -> Divergence | None:
    for slot, arrays in own.optimizer.items():
        twin, nearby = other.optimizer.get(slot, {}), update.nudged.after.optimizer[slot]
        names = [name for name in order if name in arrays and name in twin]
        part = {name: arrays[name] for name in names}
        found = update.first_of("update", (part, {name: twin[name] for name in names}, nearby), names, skip)
        if found is not None:
            return replace(found, remark=f"It is the optimizer's {slot!r} that differs.")
    return None


def _model_state(update: _Update) -> Divergence | None:
    """Statistics by name; that one side keeps the biased variance is a note, for each keeps its own definition."""
    step, twin = update.steps
    after, nearby = update.bridge.to_reference(twin.after).model_state, update.nudged.after.model_state
    own = {name: array for name, array in step.after.model_state.items() if name in after and array.dtype.kind == "f"}
    skip = set()
    for name, array in own.items():
        count = differs_by_bias(array, after[name], step.before.model_state[name])
        if count is not None and relative_difference(array, after[name]) > update.bound(0.0):
            skip.add(name)
            update.found.notes.append(
                f"{name}: one side keeps the unbiased variance of a micro-batch, the other the biased one, a factor of "
                f"{count / (count - 1):.6g} for {count} values; it shows in evaluation only"
            )
    return update.first_of("model state", (own, after, nearby), list(own), skip)
