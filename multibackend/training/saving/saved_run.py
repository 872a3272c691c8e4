"""A run's state on the host and in a checkpoint, whose groups `docs/run_state.md` describes.

Random numbers need no state: masks, shuffling and framework randomness alike are pure functions of
the seed, the update, the micro-batch and the epoch (`multibackend.core.rng`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from multibackend.checkpoint import Contents
from multibackend.core.arrays import Arrays, among
from multibackend.core.history import History, SkippedWindow
from multibackend.core.precision import LossScale
from multibackend.errors import CheckpointError
from multibackend.matching import Matching
from multibackend.protocol import PartialWindow, Position, Snapshot
from multibackend.protocol.values import is_native_slot
from multibackend.training.evaluation_state import EvaluationState

__all__ = ["SavedRun", "from_contents", "in_names_of", "to_contents"]

_REASONS = ("nonfinite", "weightless", "overflow")
_SKIPPED = "skipped/"
_SKIPPED_COLUMNS = ("update", "epoch", "offset", "reason")
_SHARES = "gradient_shares"
_ACCUMULATOR = "accumulator/"
_MODEL_STATE = "model_state/"
_MOST_UPDATES = 2**31 - 2  # JAX counts them in 32 bits
_LARGEST_COUNT = 2**53  # of examples and the like: numbers that every float64 and int64 holds

T = TypeVar("T")


@dataclass(frozen=True)
class SavedRun:
    """All that a run needs to go on.

    Attributes:
        snapshot: parameters, model state, optimizer slots, update, loss scale, moving average.
        position: where the next window begins in the data, or the one that has begun.
        partial: the window that has begun.
        micro_batches: in the whole windows so far.
        history, skipped, idle_examples: as `multibackend.training.run_state.RunState` has them.
        gradient_shares: the same by parameter.
        backend: the one that wrote it.
        dropout_layers: the names by which masks were drawn.
        experiment: `multibackend.training.saving.experiment_description.describe`.
        evaluations: those made so far, and what early stopping remembers.
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
    evaluations: EvaluationState
    kinds: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def best_parameters(self) -> Arrays:
        """Parameters of the best evaluation; empty where they are not kept."""
        best = self.evaluations.best
        if best is None:
            return {}
        return best.parameters or {}


def to_contents(run: SavedRun) -> Contents:
    """A run's state as what a checkpoint holds; arrays are not copied."""
    window = {}
    micro_batches = 0
    if run.partial is not None:
        window = _window_group(run.partial)
        micro_batches = run.partial.done
    # groups without arrays are left out, so that a checkpoint lists what it has
    groups = {
        "parameters": run.snapshot.parameters,
        "model_state": run.snapshot.model_state,
        "optimizer": _optimizer_group(run.snapshot),
        "ema": run.snapshot.ema,
        "evaluations": run.evaluations.arrays(),
        "best": run.best_parameters,
        "history": _history_group(run),
        "window": window,
    }
    return Contents(
        tensors={name: arrays for name, arrays in groups.items() if arrays},
        state=_metadata(run),
        update=run.snapshot.update,
        micro_batches=micro_batches,
    )


def _metadata(run: SavedRun) -> dict[str, Any]:
    """What is no array."""
    scale = run.snapshot.loss_scale
    position = run.position
    return {
        "backend": run.backend,
        "experiment": dict(run.experiment),
        "data": {
            "epoch": position.epoch,
            "offset": position.offset,
            "micro_batches": run.micro_batches,
        },
        "schedule": {"update": run.snapshot.update},
        "kinds": dict(run.kinds),
        "randomness": {
            "seed": run.experiment.get("seed"),
            "law": "pure functions of seed, update, micro-batch and epoch",
            "dropout_layers": list(run.dropout_layers),
        },
        "loss_scale": None if scale is None else {"scale": scale.scale, "updates": scale.updates},
        "idle_examples": run.idle_examples,
        "history": {"terms": list(run.history.terms)},
        "evaluations": run.evaluations.metadata(),
    }


def _optimizer_group(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Slots as "SLOT/NAME", and as "SLOT" what a framework's own optimizer has of no parameter."""
    group = {}
    for slot, arrays in snapshot.optimizer.items():
        for name, array in arrays.items():
            group[f"{slot}/{name}" if name else slot] = array
    return group


def _history_group(run: SavedRun) -> dict[str, np.ndarray]:
    group = {}
    if len(run.history):
        group.update(run.history.arrays())
    if run.skipped:
        rows = [(w.update, w.epoch, w.offset, _REASONS.index(w.reason)) for w in run.skipped]
        columns = np.array(rows, np.int64).T.copy()
        for name, column in zip(_SKIPPED_COLUMNS, columns, strict=True):
            group[_SKIPPED + name] = column
    shares = [run.gradient_shares[name] for name in sorted(run.snapshot.parameters)]
    group[_SHARES] = np.array(shares)
    return group


def _window_group(partial: PartialWindow) -> dict[str, np.ndarray]:
    return {
        **_above(partial.accumulator, _ACCUMULATOR),
        **_above(partial.model_state, _MODEL_STATE),
        "totals": partial.totals,
        "factors": partial.inverse_divisors,  # their name in the format since its first version
        "weights": partial.weights,
    }


def from_contents(contents: Contents) -> SavedRun:
    """A run's state from a checkpoint; raises `CheckpointError` for one that holds no run."""
    try:
        return _read(contents)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        # whatever a hostile or foreign file holds in place of what is expected
        raise CheckpointError(
            f"the checkpoint holds no run of this library: {type(error).__name__}: {error}"
        ) from error


def _read(contents: Contents) -> SavedRun:
    state = contents.state
    tensors = contents.tensors
    columns = tensors.get("history", {})
    shares = zip(sorted(tensors["parameters"]), _column(columns, _SHARES).tolist(), strict=True)
    experiment = _typed(state["experiment"], dict)
    micro_batches = _natural(state["data"]["micro_batches"])
    partial = None
    if contents.micro_batches:
        partial = _read_window(tensors["window"], contents.micro_batches)
        _check_shapes("window/accumulator", partial.accumulator, tensors["parameters"])
        _check_shapes("window/model_state", partial.model_state, tensors.get("model_state", {}))
    evaluations = tensors.get("evaluations", {})
    best = tensors.get("best", {})
    return SavedRun(
        snapshot=_read_snapshot(contents),
        position=_read_position(state["data"], micro_batches, experiment),
        partial=partial,
        micro_batches=micro_batches,
        history=_read_history(state, columns),
        skipped=_read_skipped(columns),
        idle_examples=_natural(state["idle_examples"]),
        gradient_shares=dict(shares),
        backend=_typed(state["backend"], str),
        dropout_layers=tuple(_strings(state["randomness"]["dropout_layers"])),
        experiment=experiment,
        kinds=dict(zip(state.get("kinds", {}), _strings([*state.get("kinds", {}).values()]), strict=True)),
        evaluations=EvaluationState.read(evaluations, state["evaluations"], best),
    )


def _read_position(data: Mapping[str, Any], micro_batches: int, experiment: Mapping[str, Any]) -> Position:
    """Read a place in the data, which a run of so many micro-batches can have reached."""
    position = Position(_natural(data["epoch"]), _natural(data["offset"]))
    if position.epoch > micro_batches:
        raise ValueError(f"it stands in epoch {position.epoch} after {micro_batches} micro-batches")
    length = experiment.get("data length")
    if length is not None and position.offset > _natural(length):
        raise ValueError(f"it stands at example {position.offset} of an epoch of {length}")
    return position


def _read_snapshot(contents: Contents) -> Snapshot:
    tensors = contents.tensors
    slots: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.get("optimizer", {}).items():
        slot, _, name = key.partition("/")
        slots.setdefault(slot, {})[name] = array
    for slot, arrays in slots.items():
        if not is_native_slot(slot):
            _check_shapes(f"optimizer/{slot}", arrays, tensors["parameters"])
    _check_shapes("ema", tensors.get("ema", {}), tensors["parameters"])
    scale = contents.state["loss_scale"]
    if scale is not None:
        scale = LossScale(_scale(scale["scale"]), _natural(scale["updates"]))
    update = contents.update
    if update > _MOST_UPDATES or update != contents.state["schedule"]["update"]:
        schedule = contents.state["schedule"]["update"]
        raise ValueError(f"update {update} in its manifest, {schedule!r:.40} in its schedule, at most {_MOST_UPDATES}")
    return Snapshot(
        parameters=dict(tensors["parameters"]),
        model_state=dict(tensors.get("model_state", {})),
        optimizer=slots,
        update=update,
        loss_scale=scale,
        ema=dict(tensors.get("ema", {})),
    )


def _read_history(state: Mapping[str, Any], columns: Arrays) -> History:
    history = History(_strings(state["history"]["terms"]))
    known = {name: _column(columns, name) for name in among(columns, history.columns)}
    if known:
        lengths = {name: len(column) for name, column in known.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of its history have the lengths {lengths}")
        history.extend(**known)
    return history


def _read_skipped(columns: Arrays) -> list[SkippedWindow]:
    skipped = _below(columns, _SKIPPED)
    numbers = [_column(skipped, name).tolist() for name in _SKIPPED_COLUMNS if name in skipped]
    windows = []
    for update, epoch, offset, reason in zip(*numbers, strict=True):
        windows.append(SkippedWindow(_natural(update), _natural(epoch), _natural(offset), _REASONS[_natural(reason)]))
    return windows


def _read_window(arrays: Arrays, done: int) -> PartialWindow:
    totals = arrays["totals"]
    inverse_divisors = arrays["factors"]
    weights = arrays["weights"]
    shapes = [array.shape for array in (totals, inverse_divisors, weights)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0] != shapes[1]:
        raise ValueError(f"the window's sums have the shapes {shapes}")
    accumulator = _below(arrays, _ACCUMULATOR)
    model_state = _below(arrays, _MODEL_STATE)
    return PartialWindow(done, accumulator, model_state, totals, inverse_divisors, weights)


def _check_shapes(part: str, arrays: Arrays, owners: Arrays) -> None:
    """Raise `ValueError` unless each array has the shape of its owner, as whose kin it will be rearranged."""
    for name, array in arrays.items():
        if name in owners and array.shape != owners[name].shape:
            raise ValueError(f"{part} has {name} of the shape {array.shape}, which itself has {owners[name].shape}")


def _above(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in arrays.items()}


def _below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    below = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            below[name.removeprefix(prefix)] = array
    return below


def in_names_of(run: SavedRun, initial: Snapshot, matching: Matching) -> SavedRun:
    """A run's state in the names and layouts of another program.

    Args:
        run: from a checkpoint.
        initial: the program's state at its beginning.
        matching: of the run's arrays, the reference, with the program's.
    """
    snapshot = run.snapshot
    translate = matching.to_other
    arrays = translate({**snapshot.model_state, **snapshot.parameters})
    # what the program has and the run lacks is found out by `restore`
    moved = replace(
        snapshot,
        parameters={name: arrays[name] for name in initial.parameters if name in arrays},
        model_state={name: arrays[name] for name in initial.model_state if name in arrays},
        optimizer={
            slot: values if is_native_slot(slot) else translate(values) for slot, values in snapshot.optimizer.items()
        },
        ema=translate(snapshot.ema),
    )
    partial = run.partial
    if partial is not None:
        accumulator = translate(partial.accumulator)
        partial = replace(partial, accumulator=accumulator, model_state=translate(partial.model_state))
    return replace(
        run,
        snapshot=moved,
        partial=partial,
        gradient_shares=_moved_shares(run.gradient_shares, initial, matching),
        evaluations=run.evaluations.with_parameters(translate(run.best_parameters)),
    )


def _moved_shares(shares: Mapping[str, float], initial: Snapshot, matching: Matching) -> dict[str, float]:
    """Gradient shares by the program's parameters; of a cut array each part gets the whole's."""
    moved = dict.fromkeys(initial.parameters, 0.0)
    for link in matching.links:
        if link.other in moved:
            moved[link.other] = max(moved[link.other], shares.get(link.reference, 0.0))
    return moved


def _typed(value: Any, kind: Callable[..., T]) -> T:
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise TypeError(f"{value!r:.80} should be a {getattr(kind, '__name__', kind)}")
    return value  # type: ignore[return-value]


def _strings(value: Any) -> list[str]:
    return [_typed(item, str) for item in _typed(value, list)]


def _column(columns: Arrays, name: str) -> np.ndarray:
    column = columns[name]
    if column.ndim != 1:
        raise ValueError(f"{name} has the shape {column.shape}, not one axis")
    return column


def _scale(value: Any) -> float:
    if not LossScale.smallest <= float(value) <= LossScale.largest:
        raise ValueError(f"{value!r:.80} is no loss scale")
    return float(value)


def _natural(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"{value!r:.80} should be a whole number from 0 to {_LARGEST_COUNT}")
    return value
