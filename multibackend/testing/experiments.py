"""Assertions on whole experiments: two backends match, or a run matches its golden trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multibackend import golden
from multibackend.core.arrays import among, without
from multibackend.errors import ConfigurationError, GoldenFileError, MatchError
from multibackend.experiment import Experiment
from multibackend.parity import CompareReport, compare
from multibackend.protocol.registry import list_backends

__all__ = ["assert_golden", "assert_matches"]

_ROWS = 10  # parameters that a message names: the worst ones say enough


def assert_matches(
    experiment: Experiment,
    *,
    updates: int = 20,
    precision: str | None = None,
    backends: Sequence[str] | None = None,
) -> tuple[CompareReport, ...]:
    """Raise `MatchError`, an `AssertionError`, unless the backends train an experiment alike.

    The message says in words where they first part, with the name of the layer or parameter, why
    where the cause is known, and which parameters differ most.

    Args:
        experiment: what to train, with a model for each of the backends.
        updates: how many.
        precision: "float64" proves, "float32" is a smoke test; the experiment's own unless given.
        backends: their names, the first one the reference for each of the others; unless given, all
            that the model has a builder for and that are installed, in the order in which `Model`
            was given them.

    Returns:
        A report for each pair.

    Raises:
        MatchError: the runs part.
        ConfigurationError: fewer than two backends, or an argument is wrong.
        ParameterMatchError: the parameters of two models do not pair up.

    >>> assert_matches(experiment, updates=20, precision="float64")   # doctest: +SKIP
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    names = _installed(experiment)
    if backends is not None:
        names = tuple(backends)
    if isinstance(backends, str) or len(names) < 2:
        installed = ", ".join(map(repr, _installed(experiment))) or "none"
        problem = (
            f"backends must be two names at least, got {backends!r}; of the model's {installed} "
            "are installed. A test that needs both is skipped elsewhere with "
            '@pytest.mark.backends("torch", "jax")'
        )
        raise ConfigurationError("assert_matches", [problem])
    reports = []
    failures = []
    for other in names[1:]:
        report = compare(experiment, (names[0], other), updates=updates, precision=precision)
        reports.append(report)
        if not report.matches:
            failures.append(_describe(report))
    if failures:
        raise MatchError("\n\n".join(failures))
    return tuple(reports)


def assert_golden(
    experiment: Experiment,
    path: str | Path,
    *,
    backend: str | None = None,
    updates: int | None = None,
    update: bool = False,
) -> golden.Change | golden.GoldenReport:
    """Raise `MatchError`, an `AssertionError`, unless a run matches the golden trace in a file.

    Args:
        experiment: what to train.
        path: of the file that `multibackend record` or `update=True` writes.
        backend: which trains; the one that the file was recorded on unless given.
        updates: how many; as many as were recorded unless given.
        update: first bring the file up to date on the backend that it was recorded on, where it has
            moved or is not there; `multibackend.golden.update` says how.

    Returns:
        The report; with `update` what became of the file.

    Raises:
        MatchError: the run parts from the trace; the message has the first divergence.
        GoldenFileError: there is no such file, or it is none.

    >>> assert_golden(experiment, "golden/digits.json", backend="jax")   # doctest: +SKIP
    """
    __tracebackhide__ = True
    change = _update(experiment, Path(path), backend, updates) if update else None
    trace = golden.load(path) if change is None else change.golden
    runs_on = backend or trace.backend
    if change is not None and runs_on == trace.backend:
        return change  # it was just made, or just held against the file
    report = golden.check(trace, experiment, runs_on, updates=updates)
    if not report.matches:
        lines = "\n  ".join([f"{report.verdict()} in {path}", *report.details()])
        repair = "pytest --update-golden, or multibackend record --output"
        raise MatchError(f"{lines}\nIf that is meant, rewrite the file: {repair}")
    return change or report


def _update(experiment: Experiment, path: Path, backend: str | None, updates: int | None) -> golden.Change:
    """Bring a file up to date on the backend that it was recorded on, where that is installed."""
    usable = _installed(experiment)
    runs_on = backend or next(iter(usable), None)
    length = 20
    if path.exists():
        try:
            old = golden.load(path)
        except GoldenFileError:
            pass  # rewritten, and the summary says why
        else:
            length = old.updates
            if old.backend in usable:
                runs_on = old.backend  # on another one every file would move by rounding
    if runs_on is None:
        problem = "no backend that the model has a builder for is installed"
        raise ConfigurationError("assert_golden", [problem])
    if updates is not None:
        length = updates
    return golden.update(path, experiment, runs_on, updates=length)


def _installed(experiment: Experiment) -> tuple[str, ...]:
    """Return the model's backends that are installed, in the order in which it was given them."""
    infos = {info.name: info for info in list_backends() if info.installed}
    return tuple(among(experiment.model.builders, infos))


def _describe(report: CompareReport) -> str:
    """Say where and by how much the runs of a failed comparison part."""
    first, second = report.backends
    tolerance = report.tolerance
    differences = report.parameter_differences
    # a parameter whose gradient is rounding alone wanders on both sides and would head the list
    # for nothing
    determined = without(differences, report.undetermined)
    largest = sorted(determined, key=lambda name: -differences[name])[:_ROWS]
    width = len(max(largest, key=len, default=""))
    verdict = (
        f"{report.experiment}: {first} and {second} do not match "
        f"over {report.updates} updates in {report.precision} "
        f"(tolerance: losses {tolerance.loss:.0e}, parameters {tolerance.parameters:.0e})"
    )
    lines = [
        verdict,
        f"First divergence: {report.first_divergence}",
        f"Largest difference of a loss: {report.max_loss_difference:.1e}",
        "Largest differences of the parameters at the end, relative:",
    ]
    lines += [f"  {name:<{width}}  {differences[name]:.1e}" for name in largest]
    if len(determined) > len(largest):
        lines.append(f"  ... and {len(determined) - len(largest)} more")
    lines += [f"Note: {note}" for note in report.notes]
    return "\n".join(lines)
