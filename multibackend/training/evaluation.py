"""Evaluating: what sums over the evaluation set mean, when `fit` evaluates, which is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays, Fields
from multibackend.core.history import term_name
from multibackend.core.validation import Problems, closest
from multibackend.data import Source, Stream, as_source
from multibackend.errors import CapabilityError, ConfigurationError, DataError
from multibackend.experiment import Experiment
from multibackend.protocol import EvaluationSums, Program
from multibackend.training.early_stopping import BestValue, EarlyStopping, improves
from multibackend.training.input.order import batches

__all__ = [
    "Evaluation",
    "EvaluationPlan",
    "check_ema",
    "evaluate",
    "evaluation_size",
    "evaluation_source",
    "plan_evaluations",
]

# sums that wait on the device: for numbers millions of batches, for large arrays a few
_MOST_UNREAD_FLOATS = 2**22


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that `fit` made: `metrics` after update number `update`."""

    update: int
    metrics: Mapping[str, Any]


def evaluate(
    program: Program,
    state: Any,
    experiment: Experiment,
    source: Source | Stream,
    size: int,
    *,
    check: Callable[..., None],
    ema: bool,
) -> dict[str, Any]:
    """Loss and metrics over a source in batches of `size`, each from its sums over all batches.

    `check(batch, info, source, example_of)` raises `DataError` for a batch that does not fit.
    """
    options = {}  # a backend without moving averages need not know the word
    if ema:
        options["ema"] = True
    totals = _Totals(program, experiment, size)
    for number, batch in enumerate(batches(source, size)):
        first = number * size
        check(batch, program.info, source, lambda row, first=first: f"example {first + row}")
        for metric in experiment.metrics:
            metric.check_data(batch, program.info.output_shapes)
        totals.add(program.evaluate(state, batch, **options), batch)
    return totals.results()


class _Totals:
    """Sums over batches, added on the host in float64, so that the batch size does not show."""

    def __init__(self, program: Program, experiment: Experiment, size: int) -> None:
        self._program = program
        self._experiment = experiment
        self._collectors = {metric.name: metric.collector() for metric in experiment.metrics if metric.over_set}
        self._most_unread = max(1, _MOST_UNREAD_FLOATS // _floats_of(program, experiment, size))
        self._unread: list[Any] = []
        self._batches: list[Fields] = []
        self._total: EvaluationSums | None = None

    def add(self, sums: Any, batch: Fields) -> None:
        """Take in what `Program.evaluate` gave for a batch."""
        self._unread.append(sums)
        self._batches.append(batch if self._collectors else {})
        if len(self._unread) == self._most_unread:
            self._read()

    def results(self) -> dict[str, Any]:
        """The loss, its terms, and every metric."""
        if self._unread or self._total is None:
            self._read()
        total = self._total
        assert total is not None
        results: dict[str, Any] = _terms(self._experiment, total)
        for metric in self._experiment.metrics:
            if metric.over_set:
                results[metric.name] = self._collectors[metric.name].result()
            else:
                results[metric.name] = metric.result(total.values[metric.name], total.weights[metric.name])
        return results

    def _read(self) -> None:
        sums = self._program.read_sums(self._unread)
        self._total = sums if self._total is None else self._total + sums
        if self._collectors:
            if len(sums.collected) != len(self._batches):
                listed = ", ".join(map(repr, self._collectors))
                raise CapabilityError(f"the backend does not collect outputs, which these metrics need: {listed}")
            for collected, batch in zip(sums.collected, self._batches, strict=True):
                self._collect(collected, batch)
        self._unread = []
        self._batches = []

    def _collect(self, collected: Mapping[str, Arrays], batch: Fields) -> None:
        for metric in self._experiment.metrics:
            if metric.over_set:
                arrays = collected[metric.output or ""]
                # one array is at the path "", several are handed over by their paths
                self._collectors[metric.name].add(arrays.get("", arrays), batch)


def _floats_of(program: Program, experiment: Experiment, size: int) -> int:
    """How many numbers wait on the device for each batch that is not read yet."""
    # a term gives two numbers, a metric its values and their weight
    floats = 2 * len(experiment.loss_terms)
    for metric in experiment.summed_metrics:
        floats += math.prod(metric.shape) + 1
    for picked in experiment.collected_outputs:
        for path, shape in program.info.output_shapes.items():
            if path == picked or not picked or path.startswith(f"{picked}."):
                floats += size * math.prod(shape[1:])
    return floats


def _terms(experiment: Experiment, total: EvaluationSums) -> dict[str, float]:
    """The loss, and where it has several terms what each adds to it.

    A term whose weights sum to 0 is NaN and adds nothing.
    """
    terms = experiment.loss_terms
    means: dict[str, float] = {}
    # a term that weighs nothing in the whole set is no number and must not make the loss one
    weighted: list[float] = []
    for name, term in terms.items():
        key = term_name(name, len(terms))
        weight = total.weights[key]
        means[key] = math.nan
        if weight > 0:
            means[key] = float(term.scale * total.values[key] / weight)
            weighted.append(means[key])
    loss = {"loss": math.nan}
    if weighted:
        loss["loss"] = sum(weighted)
    if len(terms) > 1:
        return {**loss, **means}
    return loss


def check_ema(experiment: Experiment) -> None:
    """Raise `ConfigurationError` where no moving average is kept."""
    if experiment.ema_decay is None:
        problem = "there is no moving average; pass ema_decay= to the Experiment"
        raise ConfigurationError("Trainer", [f"{problem}, for example ema_decay=0.999"])


def evaluation_source(data: Any, experiment: Experiment) -> Source | Stream:
    """`data` as a source with every field, or the experiment's own.

    Raises `DataError` or `ConfigurationError`.
    """
    if data is not None:
        source = as_source(data)
        problems = Problems("evaluate")
        experiment.check_fields("the data", source, problems, evaluated=True)
        if problems.found:
            raise DataError(problems.sentences[0])
        return source
    if experiment.eval_data is None:
        problem = "there is no evaluation data; pass eval_data= to the Experiment or data to evaluate()"
        raise ConfigurationError("evaluate", [problem])
    return experiment.eval_data


def evaluation_size(batch_size: int | None, experiment: Experiment) -> int:
    """Examples per evaluation batch; raises `ConfigurationError`."""
    problems = Problems("evaluate")
    if batch_size is not None:
        problems.integer("batch_size", batch_size, minimum=1)
    problems.raise_if_any()
    return int(batch_size or experiment.eval_batch_size or experiment.micro_batch_size)


class EvaluationPlan:
    """When `fit` evaluates, what came of it, and the best of it.

    Attributes:
        due: the update after which the next evaluation is made, a multiple of `every`.
        metric, mode: decide which is the best.
        made: the evaluations so far.
        best: of them.
    """

    def __init__(
        self, every: int, metric: str, mode: str, parameters: Callable[[], dict[str, np.ndarray]] | None
    ) -> None:
        self.metric = metric
        self.mode = mode
        self._every = every
        self._parameters = parameters
        self.due = 0
        self.made: list[Evaluation] = []
        self.best: BestValue | None = None

    def go_on(self, update: int) -> None:
        """Plan the next evaluation, update number `update` having been made."""
        self.due = update - update % self._every + self._every

    def made_at(self, update: int) -> bool:
        """Whether the newest evaluation was made after update number `update`."""
        return bool(self.made) and self.made[-1].update == update

    def enter(self, update: int, metrics: Mapping[str, Any]) -> None:
        """Enter an evaluation after update number `update`."""
        self.made.append(Evaluation(update, metrics))
        self.go_on(update)
        value = float(metrics[self.metric])
        best = None if self.best is None else self.best.value
        if improves(value, best, self.mode):
            parameters = None
            if self._parameters is not None:
                parameters = self._parameters()
            self.best = BestValue(update, value, self.metric, self.mode, parameters)


def plan_evaluations(
    experiment: Experiment,
    every: Any,
    best: Any,
    stoppers: Sequence[EarlyStopping],
    *,
    ema: bool,
    parameters: Callable[[], dict[str, np.ndarray]] | None,
) -> EvaluationPlan | None:
    """The plan of one call of `fit`, from its arguments; None where it does not evaluate.

    Raises:
        ConfigurationError: an argument is wrong, or it watches what is not there; every
            problem is listed.
    """
    problems = Problems("fit")
    modes = {"loss": "min", **{metric.name: metric.better for metric in experiment.metrics}}
    if every is None:
        needs = {
            "best=": best is not None,
            "keep_best=True": parameters is not None,
            "evaluate_ema=True": ema,
            "early stopping": bool(stoppers),
        }
        repair = "pass evaluate_every=, the number of updates between them"
        for name, is_asked_for in needs.items():
            if is_asked_for:
                problems.add(f"{name} needs evaluations; {repair}")
        problems.raise_if_any()
        return None
    problems.integer("evaluate_every", every, minimum=1)
    if experiment.eval_data is None:
        repair = "pass eval_data= to the Experiment"
        problems.add(f"evaluate_every={every!r} needs evaluation data; {repair}")
    if ema and experiment.ema_decay is None:
        repair = "pass ema_decay= to the Experiment, for example 0.999"
        problems.add(f"evaluate_ema=True needs a moving average; {repair}")
    if best is None:
        best = "loss"
        if stoppers:
            best = stoppers[0].metric
    _check_metric(problems, "best", best, experiment)
    for stopper in stoppers:
        is_known = _check_metric(problems, "EarlyStopping(metric=...)", stopper.metric, experiment)
        if is_known and stopper.mode != modes[stopper.metric]:
            right = modes[stopper.metric]
            problems.add(
                f"EarlyStopping(metric={stopper.metric!r}, mode={stopper.mode!r}) waits for the "
                f"wrong direction: of {stopper.metric!r} the {right}imum is the best; pass mode={right!r}"
            )
    problems.raise_if_any()
    return EvaluationPlan(int(every), best, modes[best], parameters)


def _check_metric(problems: Problems, name: str, metric: Any, experiment: Experiment) -> bool:
    """Check that an evaluation gives a number of that name."""
    shapes = {"loss": (), **{m.name: m.shape for m in experiment.metrics}}
    if not isinstance(metric, str) or metric not in shapes:
        listed = ", ".join(map(repr, shapes))
        problems.add(f"{name} must be one of {listed}, got {metric!r}{closest(metric, shapes)}")
        return False
    if shapes[metric]:
        problem = f"is an array {list(shapes[metric])}, which has no best value; name another"
        problems.add(f"{name}={metric!r} {problem}")
        return False
    return True
