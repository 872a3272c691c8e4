"""The run behind a golden trace: made once to record it, made again to be held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.names import shapes_of
from multibackend.core.validation import Problems
from multibackend.data.streams import is_stream
from multibackend.errors import ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.golden.draw import draw_all, law_of
from multibackend.golden.file import Golden
from multibackend.golden.summary import Summary, short, summarise
from multibackend.matching import Matching, Side, match_parameters
from multibackend.matching.arrays import given_matching, side_of
from multibackend.parity.dropout import dropout_layers
from multibackend.parity.matching import match_models
from multibackend.protocol import Snapshot
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.protocol.registry import list_backends
from multibackend.training.input.order import order_of
from multibackend.training.trainer import Trainer

__all__ = ["record", "repeat"]

_COLUMNS = ("loss", "grad_norm", "learning_rate", "weight", "examples", "epoch")


def record(
    experiment: Experiment, backend: str, *, updates: int = 20, device: str | None = None, execution: str = "auto"
) -> Golden:
    """Make a run from initial parameters that every framework draws alike, and keep what tells it from another.

    Dropout layers draw portable masks, because those of one framework cannot be repeated in another.

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
    own = trainer.snapshot()
    arrays = {**own.model_state, **own.parameters}
    return _run(trainer, updates, Matching.of_pairs({name: name for name in arrays}, shapes_of(arrays)), None)


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
    return _run(trainer, golden.updates if updates is None else updates, _matching(golden, trainer), golden)


def _matching(golden: Golden, trainer: Trainer) -> Matching:
    """Which of the model's arrays, parameters and model state, is which of the recorded ones.

    `Model(matching=...)` tells, else names, shapes and kinds; what these leave open, both models do where the
    framework that recorded is installed.
    """
    model, own = trainer.experiment.model, side_of(trainer.snapshot(), trainer.program)
    recorded = {name: summary.shape for name, summary in (*golden.state_start.items(), *golden.start.items())}
    given = given_matching(model)
    if given is not None and {link.reference for link in given.links} >= golden.start.keys():
        given.check(recorded, own.shapes)
        return given
    try:
        there = Side(recorded, {}, frozenset(golden.start))
        return match_parameters(there, own, rename=model.rename, transform=model.transform)
    except ParameterMatchError:
        known = {info.name for info in list_backends() if info.installed} & model.builders.keys()
        if golden.backend == trainer.backend or golden.backend not in known:
            raise
        return match_models(Trainer(trainer.experiment, golden.backend), trainer)


def _build(experiment: Experiment, backend: str, golden: Golden | None, **how: Any) -> Trainer:
    """A trainer whose dropout layers, if there are any, draw portable masks, by the recorded names."""
    trainer = Trainer(experiment, backend, **how)
    layers, model = dropout_layers(trainer), experiment.model
    new: dict[str, str] = {}
    if golden is not None and (layers or golden.dropout_layers):
        pairs = pair_layers(golden.dropout_layers, layers, model.rename)
        new = {name: partner for name, partner in pairs.items() if layer_name(name, model.rename) != partner}
    if not layers or (experiment.dropout == "portable" and not new):
        return trainer
    return Trainer(experiment.replace(dropout="portable", model=model.renamed(new)), backend, **how)


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
    own, experiment = trainer.snapshot(), trainer.experiment
    trained = own.parameters if golden is None else golden.start
    shapes = {link.reference: link.reference_shape for link in matching.links}

    def by_recorded_name(snapshot: Snapshot) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(parameters, model state)."""
        found = matching.to_reference({**snapshot.model_state, **snapshot.parameters})
        found = {name: array.reshape(shapes[name]) for name, array in found.items()}  # a counter stays a number
        state = {name: array for name, array in found.items() if name not in trained}
        return {name: array for name, array in found.items() if name in trained}, state

    parameters, state = by_recorded_name(own)
    laws = {name: law_of(array) for name, array in parameters.items()}
    seed = int(experiment.seed) if golden is None else golden.seed
    drawn = matching.to_other({**parameters, **state, **draw_all(laws if golden is None else golden.laws, seed)})
    begin = {name: drawn[name].astype(array.dtype) for name, array in own.parameters.items()}
    trainer.restore(Snapshot(parameters=begin, model_state=own.model_state, update=own.update))

    start, state_start = map(_summaries, by_recorded_name(trainer.snapshot()))
    single = _single_links(matching, trained)
    result = trainer.fit(updates=updates)
    norms = dict(zip(trainer.program.info.parameter_names, trainer.gradient_norms().T, strict=True))
    places = _gradient_updates(int(updates))
    end, state_end = map(_summaries, by_recorded_name(trainer.snapshot()))
    shares = trainer.gradient_shares()
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
        history={name: _column(name, result.history[name].tolist()) for name in _COLUMNS},
        skipped=tuple((window.update, window.reason) for window in result.skipped),
        gradient_updates=places,
        gradients={name: tuple(short(norms[p][place - 1]) for place in places) for name, p in single.items()},
        shares={name: short(shares[partner]) for name, partner in single.items()},
        data=_first_window(experiment),
        laws=laws,
        start=start,
        end=end,
        state_start=state_start,
        state_end=state_end,
    )


def _single_links(matching: Matching, trained: Container[str]) -> dict[str, str]:
    """{recorded parameter: the model's own}, where each is the whole of the other, so that norms are comparable."""
    here, there = Counter(link.reference for link in matching.links), Counter(link.other for link in matching.links)
    links = [link for link in matching.links if here[link.reference] == there[link.other] == 1]
    return {link.reference: link.other for link in links if link.reference in trained}


def _column(name: str, values: list[float]) -> tuple[float, ...]:
    """A column of the history: what was measured to twelve digits, what the host decided as it is."""
    return tuple(map(short, values)) if name in ("loss", "grad_norm") else tuple(values)


def _gradient_updates(updates: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and the last: errors grow, so the first ones say most."""
    return tuple(sorted({*(2**power for power in range(updates.bit_length())), updates}))


def _summaries(arrays: Arrays) -> dict[str, Summary]:
    return {name: summarise(array) for name, array in arrays.items()}


def _first_window(experiment: Experiment) -> dict[str, Summary]:
    """The fields of the first window in the order of the run; a stream, which may be read once only, is left alone."""
    if is_stream(experiment.train_data):
        return {}
    order = order_of(experiment.train_data, seed=int(experiment.seed), shuffle=experiment.shuffle)
    wanted = int(experiment.micro_batch_size) * experiment.accumulation.steps(0)
    rows = order.take(0, 0, order.available(0, 0, wanted))
    return _summaries({name: array for name, array in rows.items() if array.dtype.kind in "biuf"})
