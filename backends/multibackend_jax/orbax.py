"""Parameters and model state as Orbax checkpoints in Flax's own structure, for those who go on with Flax alone.

    from multibackend_jax.orbax import export_orbax, import_orbax

    export_orbax(trainer, "digits.orbax")
    tree = orbax.checkpoint.StandardCheckpointer().restore("/absolute/digits.orbax")
    module.apply(tree, x)                                               # linen: {"params": ..., "batch_stats": ...}
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(tree))        # nnx: the pure dict of the module's state

Orbax has no digests, and no place for data position or accumulators: to go on with a run, save a
checkpoint of this library (`Trainer.save`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from multibackend.core.names import check_same_names
from multibackend.errors import CheckpointError, PackageNotInstalledError, ParameterMatchError
from multibackend.protocol import Snapshot
from multibackend_jax.program import JaxProgram

__all__ = ["export_orbax", "import_orbax"]


class _Trainer(Protocol):
    program: Any

    def snapshot(self) -> Snapshot: ...

    def restore(self, snapshot: Snapshot) -> None: ...


def export_orbax(trainer: _Trainer, path: str | Path) -> None:
    """Write parameters and model state of a trainer on the jax backend to a directory that is not there yet.

    Raises:
        PackageNotInstalledError: orbax-checkpoint is not installed.
        CheckpointError: the trainer is on another backend, or Orbax cannot write.

    >>> export_orbax(trainer, "digits.orbax")   # doctest: +SKIP
    """
    orbax = _orbax()
    program = _program(trainer)
    snapshot = trainer.snapshot()
    tree: dict[str, Any] = {}
    for name, array in program.to_flax({**snapshot.model_state, **snapshot.parameters}).items():
        *parents, leaf = program.paths[name]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(path).absolute(), tree)  # orbax refuses relative paths
    except (ValueError, OSError) as error:
        raise CheckpointError(f"orbax cannot write {path}: {error}", path=path) from error


def import_orbax(trainer: _Trainer, path: str | Path) -> None:
    """Give a trainer on the jax backend the parameters and model state of an Orbax checkpoint of the same structure.

    Optimizer and place in the data stay; a moving average begins anew.

    Raises:
        PackageNotInstalledError: orbax-checkpoint is not installed.
        CheckpointError: the trainer is on another backend, or there is no Orbax checkpoint.
        ParameterMatchError: names or shapes are others.

    >>> import_orbax(trainer, "digits.orbax")   # doctest: +SKIP
    """
    orbax = _orbax()
    program = _program(trainer)
    snapshot = trainer.snapshot()
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(Path(path).absolute())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"there is no orbax checkpoint at {path}: {error}", path=path) from error
    names = {place: name for name, place in program.paths.items()}
    # a leaf that the model does not have goes by its place, so that it is reported
    native = {names.get(place, ".".join(place)): array for place, array in _leaves(tree)}
    expected = program.to_flax({**snapshot.model_state, **snapshot.parameters})
    check_same_names(expected, native, "the arrays of the orbax checkpoint")
    kinds = {}
    for name, array in native.items():
        if array.dtype.kind != expected[name].dtype.kind:
            kinds[name] = array.dtype.kind
    if kinds:
        raise ParameterMatchError(f"the orbax checkpoint has other kinds of numbers: {kinds}")
    arrays = program.from_flax(native)
    # without a moving average, a restored state begins it at its parameters
    parameters = {name: arrays[name] for name in snapshot.parameters}
    state = {name: arrays[name] for name in snapshot.model_state}
    trainer.restore(replace(snapshot, parameters=parameters, model_state=state, ema={}))


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield the leaves of nested mappings with their paths."""
    for key, value in tree.items():
        place = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, place)
        else:
            yield place, np.asarray(value)


def _orbax() -> Any:
    try:
        from orbax import checkpoint  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise PackageNotInstalledError("orbax is not installed; run: pip install 'multibackend[orbax]'") from error
    return checkpoint


def _program(trainer: _Trainer) -> JaxProgram:
    if not isinstance(trainer.program, JaxProgram):
        raise CheckpointError(
            "only a trainer on the jax backend has Flax's structure: save it, and open the checkpoint with "
            'Trainer.resume(path, experiment, backend="jax")'
        )
    return trainer.program
