"""Where the parameters of a run come from: its own builder, another backend's, or a file of weights.

`Experiment(initial=...)` says which. What comes from elsewhere is paired with the model's own
arrays by `multibackend.matching`, as `compare` and `load_parameters` do, model state included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multibackend.checkpoint.weights_file import WeightsFile, read_weights_file
from multibackend.errors import CapabilityError, ParameterMatchError
from multibackend.experiment import NATIVE, Experiment, is_weights_path
from multibackend.matching import Matching
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Execution, Program, Snapshot, WeightsReader
from multibackend.protocol.registry import load_backend
from multibackend.training.model_matching import BuiltModel, alike, match_models, plain_experiment
from multibackend.training.plan import Plan

__all__ = ["remark_of_start", "starting_snapshot"]

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class _Built:
    """A `BuiltModel` before there is a trainer."""

    experiment: Experiment
    backend: str
    device: str | None
    program: Program

    def snapshot(self) -> Snapshot:
        return self.program.snapshot(self.program.init())


def starting_snapshot(plan: Plan, program: Program) -> Snapshot | None:
    """The state to begin with; None for the program's own.

    Raises:
        BackendNotInstalledError: the backend that it is to come from cannot be used.
        ConfigurationError: the model has no builder for it.
        DataError: there is no such file, or it holds no weights.
        ParameterMatchError: the arrays do not pair up with the model's.
    """
    initial = str(plan.experiment.initial)
    if plan.saved is not None or initial in (NATIVE, plan.backend.name):
        return None
    own = _Built(plan.experiment, plan.backend.name, plan.execution.device, program)
    if is_weights_path(initial):
        return _from_file(Path(initial), own)
    return _from_backend(initial, own, plan)


def remark_of_start(plan: Plan) -> str | None:
    """What is to be said where several backends would start apart; None where they do not."""
    experiment = plan.experiment
    others = [name for name in experiment.model.builders if name != plan.backend.name]
    if plan.saved is not None or experiment.initial != NATIVE or not others:
        return None
    listed = " and ".join(others)
    return (
        f"initial='native': these are the start values of the {plan.backend.name} builder, {listed} would begin with "
        f"others; initial={plan.backend.name!r} in the Experiment starts them alike"
    )


def _from_backend(name: str, own: BuiltModel, plan: Plan) -> Snapshot:
    """The values of another backend's builder."""
    experiment = plain_experiment(plan.experiment, plan.experiment.precision)
    experiment = experiment.replace(dropout="native", batch_statistics="microbatch")
    backend = load_backend(name)
    program = backend.compile(experiment, example=plan.feed.example(), execution=Execution())
    source = _Built(experiment, name, None, program)
    return alike(_match_either_way(source, own), source.snapshot(), own.snapshot())


def _match_either_way(source: BuiltModel, own: BuiltModel) -> Matching:
    """Match two models whose `rename` and `transform` may have either of them as their reference."""
    try:
        return match_models(source, own)
    except ParameterMatchError as error:
        try:
            return match_models(own, source).reversed()
        except ParameterMatchError:
            # of the two errors the one in the direction in which the values go
            raise error from None


def _from_file(path: Path, own: BuiltModel) -> Snapshot:
    """The values of a file, by canonical names or by those of the backend itself."""
    weights = _read(path, own)
    snapshot = own.snapshot()
    native = own.program.info.native_arrays
    arrays = weights.arrays
    parameters = weights.parameters
    if parameters is None:
        names = {} if native is None else native.to_native({**snapshot.model_state, **snapshot.parameters})
        if native is not None and names.keys() >= arrays.keys():
            arrays = native.to_canonical(arrays)
        # what counts, such as num_batches_tracked, is no parameter anywhere
        floats = {name for name, array in arrays.items() if array.dtype.kind == "f"}
        parameters = frozenset(floats - snapshot.model_state.keys())
    try:
        return with_arrays(snapshot, arrays, own.experiment.model, own.program, parameters)
    except ParameterMatchError as error:
        raise ParameterMatchError(f"initial={str(path)!r} does not fit the {own.backend} model: {error}") from error


def _read(path: Path, own: BuiltModel) -> WeightsFile:
    if path.suffix not in _PICKLES or not path.is_file():
        return read_weights_file(path)
    # the backend whose own format it is, which the one that trains need not be
    for name in (own.backend, *own.experiment.model.builders):
        backend = load_backend(name)
        if isinstance(backend, WeightsReader):
            return WeightsFile(backend.read_weights(path), None)
    raise CapabilityError(f"no backend of the model reads {path.suffix} files; convert {str(path)!r} to safetensors")
