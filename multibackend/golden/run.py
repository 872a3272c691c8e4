"""The run behind a golden trace: made once to record it, made again to be held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any

from multibackend.core.arrays import Arrays, Fields, among, without
from multibackend.core.names import shapes_of
from multibackend.core.validation import Problems
from multibackend.data.streams import is_stream
from multibackend.errors import ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.golden.file import COLUMNS, Golden
from multibackend.golden.laws import draw_all, law_of
from multibackend.golden.summary import Summary, short, summarise
from multibackend.matching import Matching, Side, match_parameters
from multibackend.matching.arrays import given_matching, side_of
from multibackend.parity.dropout import dropout_layers
from multibackend.protocol import Snapshot
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.protocol.registry import list_backends
from multibackend.training.input.order import order_of
from multibackend.training.model_matching import match_models
from multibackend.training.trainer import Trainer

__all__ = ["record", "repeat"]


def record(
    experiment: Experiment, backend: str, *, updates: int = 20, device: str | None = None, execution: str = "auto"
) -> Golden:
    """Make a run from initial parameters that all frameworks draw alike, and keep what tells it.

    Dropout layers draw portable masks, because those of one framework cannot be
    repeated in another.

    Args:
        experiment: what to train.
        backend: on which.
        updates: how many.
        device, execution: as for `Trainer`.

    Raises:
        ConfigurationError: an argument is wrong.
        NonFiniteError, OutOfMemoryError, ...: as from `Trainer.fit`.

    >>> from multibackend import golden                                             # doctest: +SKIP
    >>> golden.save(golden.record(experiment, "torch", updates=20), "digits.json")  # doctest: +SKIP
    """
    trainer = _build(experiment, backend, None, device=device, execution=execution)
    snapshot = trainer.snapshot()
    shapes = shapes_of({**snapshot.model_state, **snapshot.parameters})
    matching = Matching.of_pairs({name: name for name in shapes}, shapes)
    return _run(trainer, updates, matching, None)


def repeat(
    golden: Golden,
    experiment: Experiment,
    backend: str,
    *,
    updates: int | None = None,
    device: str | None = None,
    execution: str = "auto",
) -> Golden:
    """The run that a golden trace was recorded from, now, on this backend; all names are those of the recording.

    Args:
        golden: from `record` or `load`; its seed and laws give the initial parameters.
        experiment, backend, device, execution: as for `record`.
        updates: how many; as many as were recorded unless given.

    Raises:
        ParameterMatchError: the model's parameters and the recorded ones do not pair up.
    """
    trainer = _build(experiment, backend, golden, device=device, execution=execution)
    if updates is None:
        updates = golden.updates
    return _run(trainer, updates, _matching(golden, trainer), golden)


def _matching(golden: Golden, trainer: Trainer) -> Matching:
    """Return which of the model's parameters and state is which of the recorded.

    `Model(matching=...)` tells, else names, shapes and kinds; what these leave open, both models do
    where the framework that recorded is installed.
    """
    model = trainer.experiment.model
    side = side_of(trainer.snapshot(), trainer.program)
    recorded = {name: summary.shape for name, summary in (*golden.state_start.items(), *golden.start.items())}
    matching = given_matching(model)
    # one that was saved with another framework as its reference has other names
    if matching is not None and {link.reference for link in matching.links} >= golden.start.keys():
        matching.check(recorded, side.shapes)
        return matching
    try:
        reference = Side(recorded, {}, frozenset(golden.start))
        return match_parameters(reference, side, rename=model.rename, transform=model.transform)
    except ParameterMatchError:
        installed = {info.name for info in list_backends() if info.installed}
        if golden.backend == trainer.backend or golden.backend not in installed & model.builders.keys():
            raise
        recorded_model = Trainer(trainer.experiment.replace(initial="native"), golden.backend)
        return match_models(recorded_model, trainer)


def _build(experiment: Experiment, backend: str, golden: Golden | None, **options: Any) -> Trainer:
    """Build a trainer whose dropout layers, if any, draw portable masks by the recorded names."""
    options["record_gradient_norms"] = True
    trainer = Trainer(experiment, backend, **options)
    model = experiment.model
    layers = dropout_layers(trainer)  # known once the model is built: hence twice
    new_names: dict[str, str] = {}
    if golden is not None and (layers or golden.dropout_layers):
        pairs = pair_layers(golden.dropout_layers, layers, model.rename)
        new_names = {name: partner for name, partner in pairs.items() if layer_name(name, model.rename) != partner}
    if not layers or (experiment.dropout == "portable" and not new_names):
        return trainer
    return Trainer(experiment.replace(dropout="portable", model=model.renamed(new_names)), backend, **options)


def _run(trainer: Trainer, updates: int, matching: Matching, golden: Golden | None) -> Golden:
    """Draw the initial parameters, make the updates, keep what is to be kept.

    Args:
        trainer: at update 0.
        updates: how many.
        matching: of the model's arrays with the recorded ones, which are the reference.
        golden: whose initial parameters to start from; None for the laws of the model's own.
    """
    problems = Problems("golden")
    problems.integer("updates", updates, minimum=1)
    problems.raise_if_any()
    experiment = trainer.experiment
    initial = trainer.snapshot()
    trained = initial.parameters if golden is None else golden.start
    parameters, state = _by_recorded_name(initial, matching, trained)
    laws = {name: law_of(array) for name, array in parameters.items()}
    # drawn from the laws also when recording, so that the recorded run is the one that is repeated
    drawn = draw_all(laws, int(experiment.seed))
    if golden is not None:
        drawn = draw_all(golden.laws, golden.seed)
    _start_from(trainer, matching.to_other({**parameters, **state, **drawn}))

    start, state_start = _by_recorded_name(trainer.snapshot(), matching, trained)
    result = trainer.fit(updates=updates, progress=False)
    norms = dict(zip(trainer.program.info.parameter_names, trainer.gradient_norms().T, strict=True))
    end, state_end = _by_recorded_name(trainer.snapshot(), matching, trained)
    partners = _single_links(matching, trained)
    gradient_updates = _gradient_updates(int(updates))
    gradients = {}
    for name, partner in partners.items():
        gradients[name] = tuple(short(norms[partner][update - 1]) for update in gradient_updates)
    history = {name: _column(name, result.history[name].tolist()) for name in COLUMNS}
    skipped = tuple((window.update, window.reason) for window in result.skipped)
    all_shares = trainer.gradient_shares()
    shares = {name: short(all_shares[partner]) for name, partner in partners.items()}
    return Golden(
        experiment=experiment.name,
        backend=trainer.backend,
        versions=next((info.version for info in list_backends() if info.name == trainer.backend), ""),
        device=trainer.device,
        precision=experiment.precision,
        seed=int(experiment.seed),
        updates=int(updates),
        dropout=experiment.dropout,
        dropout_layers=dropout_layers(trainer),
        history=history,
        skipped=skipped,
        gradient_updates=gradient_updates,
        gradients=gradients,
        shares=shares,
        data=_first_window(experiment),
        laws=laws,
        start=_summaries(start),
        end=_summaries(end),
        state_start=_summaries(state_start),
        state_end=_summaries(state_end),
    )


def _by_recorded_name(snapshot: Snapshot, matching: Matching, trained: Container[str]) -> tuple[Fields, Fields]:
    """Return a snapshot's parameters and its model state by the recorded names."""
    arrays = matching.to_reference({**snapshot.model_state, **snapshot.parameters})
    for link in matching.links:
        if link.reference in arrays:  # a counter stays a number, of shape ()
            arrays[link.reference] = arrays[link.reference].reshape(link.reference_shape)
    return among(arrays, trained), without(arrays, trained)


def _start_from(trainer: Trainer, arrays: Arrays) -> None:
    """Give a trainer new parameters; model state stays what the model starts with."""
    snapshot = trainer.snapshot()
    # draws are float64, whatever the precision
    parameters = {name: arrays[name].astype(array.dtype) for name, array in snapshot.parameters.items()}
    trainer.restore(Snapshot(parameters=parameters, model_state=snapshot.model_state, update=snapshot.update))


def _single_links(matching: Matching, trained: Container[str]) -> dict[str, str]:
    """{recorded parameter: the model's own} where each is the whole of the other: norms compare."""
    uses = Counter(link.reference for link in matching.links)
    other_uses = Counter(link.other for link in matching.links)
    partners = {}
    for link in matching.links:
        is_single = uses[link.reference] == other_uses[link.other] == 1
        if is_single and link.reference in trained:
            partners[link.reference] = link.other
    return partners


def _column(name: str, values: list[float]) -> tuple[float, ...]:
    """Return a column: what was measured to twelve digits, what the host decided as it is."""
    if name in ("loss", "grad_norm"):
        return tuple(short(value) for value in values)
    return tuple(values)


def _gradient_updates(updates: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and the last: errors grow, so the first ones say most."""
    powers = {2**power for power in range(updates.bit_length())}
    return tuple(sorted({*powers, updates}))


def _summaries(arrays: Arrays) -> dict[str, Summary]:
    return {name: summarise(array) for name, array in arrays.items()}


def _first_window(experiment: Experiment) -> dict[str, Summary]:
    """Summarise the first window in the order of the run; not a stream, which is read once."""
    if is_stream(experiment.train_data):
        return {}
    order = order_of(experiment.train_data, seed=int(experiment.seed), shuffle=experiment.shuffle)
    count = int(experiment.micro_batch_size) * experiment.accumulation.steps(0)
    rows = order.take(0, 0, order.available(0, 0, count))
    numbers = {name: array for name, array in rows.items() if array.dtype.kind in "biuf"}
    return _summaries(numbers)
