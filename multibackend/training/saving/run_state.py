"""What a run's state is, and its two forms: in memory, and as the contents of a checkpoint.

Random numbers need no state: masks, shuffling and framework randomness alike are pure functions of the seed, the
update, the micro-batch and the epoch (`multibackend.core.rng`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from multibackend.checkpoint import Contents
from multibackend.core.arrays import Arrays
from multibackend.core.history import History, SkippedWindow
from multibackend.core.precision import LossScale
from multibackend.errors import CheckpointError
from multibackend.matching import Matching
from multibackend.protocol import PartialWindow, Position, Snapshot
from multibackend.training.saving.evaluation_state import EvaluationState

__all__ = ["RunState", "from_contents", "matched", "to_contents"]

_REASONS = ("nonfinite", "weightless", "overflow")
_SKIPPED = "skipped/"
_SHARES = "gradient_shares"
_ACCUMULATOR, _MODEL_STATE = "accumulator/", "model_state/"

T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """All that a run needs to go on.

    Attributes:
        snapshot: parameters, model state, optimizer slots, update, loss scale, moving average.
        position: where the next window begins in the data; the open one where there is one.
        partial: the open window.
        micro_batches: in the whole windows so far.
        history, skipped, idle_examples, gradient_shares: as `multibackend.training.results.ResultsLog` has them, shares by parameter.
        backend: that wrote it.
        dropout_layers: the names by which masks were drawn.
        experiment: `multibackend.training.saving.experiment_description.describe`.
        books: evaluations and early stopping.
        kinds: the sort of layer that each array belongs to, where the backend tells.
        path: of the checkpoint that it was read from.
    """

    snapshot: Snapshot
    position: Position
    partial: PartialWindow | None
    micro_batches: int
    history: History
    skipped: Sequence[SkippedWindow]
    idle_examples: int
    gradient_shares: Mapping[str, float]
    backend: str
    dropout_layers: tuple[str, ...]
    experiment: Mapping[str, Any]
    books: EvaluationState
    kinds: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None


def to_contents(run: RunState) -> Contents:
    """A run's state as what a checkpoint holds; arrays are not copied."""
    snapshot, partial, scale = run.snapshot, run.partial, run.snapshot.loss_scale
    groups: dict[str, Arrays] = {
        "parameters": snapshot.parameters,
        "model_state": snapshot.model_state,
        "optimizer": {f"{slot}/{n}": a for slot, arrays in snapshot.optimizer.items() for n, a in arrays.items()},
        "ema": snapshot.ema,
        "evaluations": run.books.arrays(),
        "best": (run.books.best and run.books.best.parameters) or {},
        "history": {
            **(run.history.arrays() if len(run.history) else {}),
            **_skipped_columns(run.skipped),
            _SHARES: np.array([run.gradient_shares[name] for name in sorted(snapshot.parameters)]),
        },
    }
    if partial is not None:
        groups["window"] = {
            **{_ACCUMULATOR + name: array for name, array in partial.accumulator.items()},
            **{_MODEL_STATE + name: array for name, array in partial.model_state.items()},
            "totals": partial.totals,
            "factors": partial.inverse_divisors,
            "weights": partial.weights,
        }
    state = {
        "backend": run.backend,
        "experiment": dict(run.experiment),
        "data": {"epoch": run.position.epoch, "offset": run.position.offset, "micro_batches": run.micro_batches},
        "schedule": {"update": snapshot.update},
        "kinds": dict(run.kinds),
        "randomness": {
            "seed": run.experiment.get("seed"),
            "law": "pure functions of seed, update, micro-batch and epoch",
            "dropout_layers": list(run.dropout_layers),
        },
        "loss_scale": None if scale is None else {"scale": scale.scale, "updates": scale.updates},
        "idle_examples": run.idle_examples,
        "history": {"terms": list(run.history.terms)},
        "evaluations": run.books.words(),
    }
    filled = {name: arrays for name, arrays in groups.items() if arrays}
    return Contents(filled, state, snapshot.update, 0 if partial is None else partial.done)


def from_contents(contents: Contents) -> RunState:
    """The inverse; raises `CheckpointError` for a checkpoint that holds no run."""
    try:
        return _from_contents(contents)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint holds no run of this library: {type(error).__name__}: {error}"
        ) from error


def _from_contents(contents: Contents) -> RunState:
    state, tensors = contents.state, contents.tensors
    scale, data, books = state["loss_scale"], state["data"], tensors.get("history", {})
    parameters = tensors["parameters"]
    history = History(_typed(state["history"]["terms"], list))
    columns = {name: books[name] for name in history.columns if name in books}
    if columns:
        history.extend(**columns)
    shares = zip(sorted(parameters), books[_SHARES].tolist(), strict=True)
    return RunState(
        snapshot=Snapshot(
            parameters=dict(parameters),
            model_state=dict(tensors.get("model_state", {})),
            optimizer=_by_slot(tensors.get("optimizer", {})),
            update=contents.update,
            loss_scale=None if scale is None else LossScale(float(scale["scale"]), _typed(scale["updates"], int)),
            ema=dict(tensors.get("ema", {})),
        ),
        position=Position(_natural(data["epoch"]), _natural(data["offset"])),
        partial=_partial(tensors["window"], contents.micro_batches) if contents.micro_batches else None,
        micro_batches=_natural(data["micro_batches"]),
        history=history,
        skipped=_skipped(books),
        idle_examples=_natural(state["idle_examples"]),
        gradient_shares=dict(shares),
        backend=_typed(state["backend"], str),
        dropout_layers=tuple(_typed(state["randomness"]["dropout_layers"], list)),
        experiment=_typed(state["experiment"], dict),
        kinds=_typed(state.get("kinds", {}), dict),
        books=EvaluationState.read(tensors.get("evaluations", {}), state["evaluations"], tensors.get("best", {})),
    )


def matched(run: RunState, own: Snapshot, matching: Matching) -> RunState:
    """A run's state in the names and layouts of another program, whose state at its beginning is `own`.

    Args:
        matching: of the run's arrays, the reference, with the program's.
    """
    snapshot, partial, across = run.snapshot, run.partial, matching.to_other
    shares = dict.fromkeys(own.parameters, 0.0)
    for link in matching.links:
        if link.other in shares:  # of an array that was cut the share of the whole
            shares[link.other] = max(shares[link.other], run.gradient_shares.get(link.reference, 0.0))
    everything = across({**snapshot.model_state, **snapshot.parameters})
    return replace(
        run,
        snapshot=replace(
            snapshot,
            parameters={name: everything[name] for name in own.parameters if name in everything},
            model_state={name: everything.get(name, array) for name, array in own.model_state.items()},
            optimizer={slot: across(arrays) for slot, arrays in snapshot.optimizer.items()},
            ema=across(snapshot.ema),
        ),
        partial=None
        if partial is None
        else replace(partial, accumulator=across(partial.accumulator), model_state=across(partial.model_state)),
        gradient_shares=shares,
        books=run.books.with_parameters(across((run.books.best and run.books.best.parameters) or {})),
    )


def _partial(arrays: Arrays, done: int) -> PartialWindow:
    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    rows = (arrays["totals"], arrays["factors"], arrays["weights"])
    if any(array.ndim != 2 for array in rows) or rows[0].shape != rows[1].shape:
        raise ValueError(f"the window's sums have the shapes {[array.shape for array in rows]}")
    return PartialWindow(done, part(_ACCUMULATOR), part(_MODEL_STATE), *rows)


def _by_slot(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = array
    return slots


def _skipped_columns(skipped: Sequence[SkippedWindow]) -> dict[str, np.ndarray]:
    rows = [(s.update, s.epoch, s.offset, _REASONS.index(s.reason)) for s in skipped]
    columns = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    return {} if not rows else {f"{_SKIPPED}{name}": columns[index] for index, name in enumerate(_NAMES)}


_NAMES = ("update", "epoch", "offset", "reason")


def _skipped(books: Arrays) -> list[SkippedWindow]:
    columns = [books[f"{_SKIPPED}{name}"].tolist() for name in _NAMES if f"{_SKIPPED}{name}" in books]
    rows = zip(*columns, strict=True)
    return [SkippedWindow(update, epoch, offset, _REASONS[reason]) for update, epoch, offset, reason in rows]


def _typed(value: Any, kind: Callable[..., T]) -> T:
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise TypeError(f"{value!r:.80} should be a {getattr(kind, '__name__', kind)}")
    return value  # type: ignore[return-value]


def _natural(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.80} should be a whole number >= 0")
    return value
