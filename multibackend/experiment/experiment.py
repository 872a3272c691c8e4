"""What is trained: `Model` and `Experiment`, described once in neutral words.

All is checked when an experiment is constructed, reported together, before a framework is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from multibackend.core.bytesize import check_bytes
from multibackend.core.precision import PRECISIONS, NumberFormat
from multibackend.core.slips import describe
from multibackend.core.user_code import origin
from multibackend.core.validation import Problems, closest
from multibackend.data import Source, Stream, as_source
from multibackend.data.streams import is_stream
from multibackend.errors import ConfigurationError, DataError
from multibackend.experiment import batch_norm as batch_statistics
from multibackend.experiment.accumulation import Accumulation, AccumulationSteps, EffectiveBatch
from multibackend.experiment.model import Model
from multibackend.experiment.rematerialization import Rematerialize, check_rule
from multibackend.experiment.slips import as_loss, no_loss, no_metric, no_optimizer
from multibackend.losses import Custom, Loss
from multibackend.metrics import Metric
from multibackend.optimizers import Optimizer
from multibackend.schedules import LR_SCALINGS

__all__ = ["AUTO", "NATIVE", "Experiment", "Model", "is_weights_path"]

NATIVE = "native"  # as initial: each backend's own builder
AUTO = "auto"  # as micro_batch_size: the largest that fits
ON_NONFINITE = ("raise", "skip")
NORMALIZATIONS = ("window", "microbatch")
DROPOUTS = ("native", "portable")

_INPUTS = "the model's inputs"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training run, described once for every backend.

    Args:
        model: the network.
        loss: a loss from `multibackend.losses`, or a function `(xp, outputs, batch) -> values` or
            `(values, weights)`; or terms {name: loss}, each reduced by its own weights, then added.
        optimizer: one from `multibackend.optimizers`.
        train_data: a dict of arrays of one length, a data frame whose columns are fields (pandas, polars), a
            map-style dataset (torch's, grain's, HuggingFace's), or an iterable of examples in an order of its own
            (a generator function, a loader, see `multibackend.data.IterableSource`).
        micro_batch_size: examples that go through the model at once; "auto" for as many as fit in
            memory, a divisor of `gradient_accumulation_steps=EffectiveBatch(n)`; `Trainer` decides.
        name: of the run, in logs.
        eval_data: like `train_data`; what `Trainer.evaluate` uses.
        gradient_accumulation_steps: micro-batches per update: a number, {update index: number} with
            key 0, a function of the update index (0 for the first), or `EffectiveBatch(examples)`.
        max_grad_norm: scale the gradient down to this global norm; None for no clipping.
        precision: "float32", "float64", or mixed with float32 for all that is kept: "bf16", "fp16"
            (loss scale: `multibackend.core.precision.LossScale`). Floating-point inputs are
            cast to it.
        rematerialize: recompute activations in the backward pass instead of keeping them, which
            changes memory and time, never values: False, True for every block, patterns on the
            paths of modules ("blocks.*"), or a function `(path) -> bool`; see `choose_modules`.
        on_nonfinite: "raise" ends the run with `NonFiniteError` where a loss or a gradient is NaN or
            infinite; "skip" drops that whole window and counts it.
        normalize: "window" divides by the sum of the weights of the whole window, so that k micro-
            batches equal one large batch exactly; "microbatch" is the mean of micro-batch means.
        shuffle: visit the examples of each epoch in an order that depends on (seed, epoch, number
            of examples) only. An iterable keeps its own.
        drop_last: drop the last window of an epoch where it is not full.
        seed: of initial parameters, data order and randomness.
        metrics: from `multibackend.metrics`, for evaluation.
        eval_batch_size: examples per evaluation batch; the micro-batch size unless given.
        lr_scaling: "linear" multiplies the learning rate of an update by effective batch /
            `base_batch_size`, "sqrt" by its root; the effective batch is micro_batch_size *
            gradient_accumulation_steps of that update (also where an epoch's last window is not
            full). None leaves the rate alone. The history has the rate that was used.
        base_batch_size: for `lr_scaling`: the examples per update that the rate was tuned for.
        ema_decay: d in [0, 1) of an exponential moving average of the parameters after each update,
            e = d * e + (1 - d) * p; it starts at the initial parameters, and a skipped window
            leaves it as it is. It has less noise than the last iterate (Polyak and Juditsky 1992);
            `Trainer.evaluate(ema=True)` uses it. None keeps none.
        ema_warmup: let the decay of the update with index t (0 for the first) be
            min(d, (1 + t) / (10 + t)), so that a short run forgets its initial parameters (as
            `tf.train.ExponentialMovingAverage(num_updates=t)`).
        memory_budget: bytes that `micro_batch_size="auto"` may use, or a string such as "2GiB";
            what the device has unless given, which a CPU does not say.
        dropout: "native" leaves a model's dropout layers as they are; "portable" lets them draw
            masks that are a pure function of (seed, update, micro-batch, layer name, element
            index), the same bits on every backend (`multibackend.protocol.dropout_masks`). Layers
            are named by their path, `Model(rename=...)` applied.
        batch_statistics: what BatchNorm layers do in training. "microbatch": each micro-batch is
            normalised by its own statistics, and the running statistics move after each; "window":
            the momentum m becomes 1 - (1 - m)**(1/k), so that a window of k micro-batches moves
            them as far as one large batch would; "frozen": layers normalise by their running
            statistics, which stay. See `multibackend.experiment.batch_norm`.
        initial: the parameters and the model state that a run begins with. "native": those of its
            own backend's builder and `seed`, so that two backends start apart; a backend's name,
            such as "torch": those of that builder, on every backend (it must be installed); the
            path of a file of weights: those in it, by canonical names or by the backend's own. It
            says nothing about a run that goes on from a checkpoint.

    Raises:
        ConfigurationError: an argument is wrong; every problem is listed.
    """

    model: Model
    loss: Loss | Callable[..., Any] | Mapping[str, Any]
    optimizer: Optimizer
    train_data: Any = field(repr=False)
    micro_batch_size: int | str
    name: str = "experiment"
    eval_data: Any = field(default=None, repr=False)
    gradient_accumulation_steps: AccumulationSteps = 1
    max_grad_norm: float | None = None
    precision: str = "float32"
    rematerialize: Rematerialize = False
    on_nonfinite: str = "raise"
    normalize: str = "window"
    shuffle: bool = True
    drop_last: bool = False
    seed: int = 0
    metrics: Sequence[Metric] = ()
    eval_batch_size: int | None = None
    lr_scaling: str | None = None
    base_batch_size: int | None = None
    ema_decay: float | None = None
    ema_warmup: bool = False
    # Here and not with the device in `Trainer`: it is half of "auto", so that `compare`,
    # `check_accumulation` and the command line need nothing more than the experiment.
    memory_budget: int | str | None = None
    dropout: str = "native"
    batch_statistics: str = "microbatch"
    initial: str | Path = "native"

    def __post_init__(self) -> None:
        problems = Problems("Experiment")
        self._check_parts(problems)
        self._check_options(problems)
        self._check_sizes(problems)
        self._check_data(problems)
        problems.raise_if_any()

    def __replace__(self, **changes: Any) -> Experiment:
        """Return this experiment with other arguments; `copy.replace` on Python 3.13 calls it."""
        arguments = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Experiment(**{**arguments, **changes})

    replace = __replace__

    @property
    def loss_terms(self) -> Mapping[str, Loss]:
        """The terms of the loss by name; a single one is called "loss"."""
        terms = self.loss if isinstance(self.loss, Mapping) else {"loss": self.loss}
        return cast(Mapping[str, Loss], terms)  # functions were wrapped in `losses.Custom`

    @property
    def summed_metrics(self) -> tuple[Metric, ...]:
        """The metrics that are sums over batches, taken where the model runs."""
        return tuple(metric for metric in self.metrics if not metric.over_set)

    @property
    def collected_outputs(self) -> tuple[str, ...]:
        """The paths of the outputs that metrics over the whole set need on the host; "" for all outputs."""
        return tuple(dict.fromkeys(metric.output or "" for metric in self.metrics if metric.over_set))

    @property
    def picked_outputs(self) -> tuple[str, ...]:
        """The paths of the outputs that a loss or metric picks."""
        paths = [spec.output for spec in (*self.loss_terms.values(), *self.metrics)]
        return tuple(dict.fromkeys(path for path in paths if path))

    @property
    def number_format(self) -> NumberFormat:
        """The dtypes that `precision` stands for."""
        return PRECISIONS[self.precision]

    @property
    def accumulation(self) -> Accumulation:
        """`gradient_accumulation_steps` parsed; an error while the micro-batch size is "auto"."""
        if self.micro_batch_size == AUTO:
            problem = "micro_batch_size='auto' is decided by Trainer; read trainer.experiment instead"
            raise ConfigurationError("Experiment", [problem])
        size = int(self.micro_batch_size)
        return Accumulation.parse(self.gradient_accumulation_steps, micro_batch_size=size)

    @property
    def held_steps(self) -> int:
        """Micro-batches of the first update's window: as many as it is to have, but no more than an epoch has."""
        steps = self.accumulation.steps(0)
        if self.examples is None:
            return steps
        return max(1, min(steps, -(-self.examples // int(self.micro_batch_size))))

    @property
    def effective_examples(self) -> int:
        """Examples of the first full window."""
        if isinstance(self.gradient_accumulation_steps, EffectiveBatch):
            return int(self.gradient_accumulation_steps.examples)
        return self.accumulation.steps(0) * int(self.micro_batch_size)

    @property
    def examples(self) -> int | None:
        """Examples in an epoch of the training data; None where only reading to its end tells."""
        return None if is_stream(self.train_data) else len(self.train_data)

    def _set(self, name: str, value: Any) -> None:
        # Frozen for users; while it is made, an experiment puts each argument into its one form.
        object.__setattr__(self, name, value)

    def _check_parts(self, problems: Problems) -> None:
        if not isinstance(self.model, Model):
            slip = "; write mb.Model(torch=build_torch, jax=build_flax, inputs=...)"
            problems.add(f"model must be a multibackend.Model, got {describe(self.model)}{slip}", wrong_type=True)
        self._check_loss(problems)
        if not isinstance(self.optimizer, Optimizer):
            problems.add(no_optimizer(self.optimizer), wrong_type=True)
        self._check_metrics(problems)

    def _check_metrics(self, problems: Problems) -> None:
        if isinstance(self.metrics, Metric | str) or callable(self.metrics):
            self._set("metrics", (self.metrics,))
        if not isinstance(self.metrics, Sequence):
            problems.add(f"metrics must be a sequence of multibackend.metrics, got {self.metrics!r}", wrong_type=True)
            return
        wrong = [metric for metric in self.metrics if not isinstance(metric, Metric)]
        for metric in wrong:
            problems.add(no_metric(metric), wrong_type=True)
        if wrong:
            return
        names = [metric.name for metric in self.metrics]
        # An evaluation's result has the loss beside them, under its own name.
        if len({*names, "loss"}) <= len(names):
            problems.add(f"metrics need distinct names other than 'loss', got {names}; pass name= to each")

    def _check_loss(self, problems: Problems) -> None:
        if not isinstance(self.loss, Mapping):
            self._set("loss", as_loss(self.loss))
            if not isinstance(self.loss, Loss):
                what = "a loss, a function (xp, outputs, batch) or a mapping from names to such terms"
                problems.add(f"loss must be {what}, got {no_loss(self.loss)}", wrong_type=True)
            return
        self._set("loss", {name: as_loss(loss) for name, loss in self.loss.items()})
        if not self.loss:
            problems.add("loss has no term; give a loss, or a mapping from names to losses")
        for name, loss in self.loss.items():
            term = f"the term {name!r} of loss must"
            if not isinstance(name, str) or not name:
                problems.add(f"the terms of loss need names that are strings, got {name!r}", wrong_type=True)
            elif not isinstance(loss, Loss):
                problems.add(
                    f"{term} be a loss or a function (xp, outputs, batch), got {no_loss(loss)}", wrong_type=True
                )
            elif isinstance(loss, Custom) and loss.per is None:
                # Each term has a divisor of its own, known before the first backward pass.
                problems.add(f'{term} say what its values are: Custom(..., per="example")')

    def _check_options(self, problems: Problems) -> None:
        problems.choice("precision", self.precision, tuple(PRECISIONS))
        problems.choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        problems.choice("normalize", self.normalize, NORMALIZATIONS)
        check_rule(self.rematerialize, problems)
        problems.choice("dropout", self.dropout, DROPOUTS)
        problems.choice("batch_statistics", self.batch_statistics, batch_statistics.MODES)
        self._check_initial(problems)
        problems.boolean("shuffle", self.shuffle)
        problems.boolean("drop_last", self.drop_last)
        problems.integer("seed", self.seed, minimum=0)
        if not isinstance(self.name, str) or not self.name:
            problems.add(f"name must be a string that is not empty, got {self.name!r}", wrong_type=True)
        if self.max_grad_norm is not None:
            problems.number("max_grad_norm", self.max_grad_norm, minimum=0.0, above_minimum=True)
        if self.ema_decay is not None:
            problems.number("ema_decay", self.ema_decay, minimum=0.0, below=1.0)
        problems.boolean("ema_warmup", self.ema_warmup)
        if self.ema_warmup is True and self.ema_decay is None:
            problems.add("ema_warmup=True needs ema_decay, for example ema_decay=0.999; got ema_decay=None")

    def _check_initial(self, problems: Problems) -> None:
        """Check where the start comes from; a file is read when a run begins, and only then."""
        if isinstance(self.initial, Path):
            self._set("initial", str(self.initial))
        initial = self.initial
        what = "initial must be 'native', the name of a backend that the model has, or the path of a weights file"
        if not isinstance(initial, str) or not initial:
            problems.add(f"{what}, got {initial!r}", wrong_type=not isinstance(initial, str))
        elif isinstance(self.model, Model) and not is_weights_path(initial):
            names = (NATIVE, *self.model.builders)
            if initial not in names:
                listed = ", ".join(map(repr, names))
                problems.add(
                    f"{what}: one of {listed}, or such as 'start.safetensors'; got {initial!r}{closest(initial, names)}"
                )

    def _check_sizes(self, problems: Problems) -> None:
        _check_scaling(self.lr_scaling, self.base_batch_size, problems)
        if self.eval_batch_size is not None:
            problems.integer("eval_batch_size", self.eval_batch_size, minimum=1)
        steps = self.gradient_accumulation_steps
        auto = isinstance(self.micro_batch_size, str) and self.micro_batch_size == AUTO
        if auto and not isinstance(steps, EffectiveBatch):
            problems.add(
                "micro_batch_size='auto' needs gradient_accumulation_steps=EffectiveBatch(n), the "
                f"examples of an update, which it then keeps; got {steps!r}"
            )
        if self.memory_budget is not None:
            check_bytes("memory_budget", self.memory_budget, problems)
            if not auto:
                only = "memory_budget is for micro_batch_size='auto' only"
                problems.add(f"{only}, got {self.micro_batch_size!r} with it")
        # Of an unknown size 1 is a divisor of every effective batch, so that only what is wrong
        # with the steps themselves is reported.
        size = 1
        if not auto and problems.integer("micro_batch_size", self.micro_batch_size, minimum=1):
            size = int(self.micro_batch_size)
        try:
            Accumulation.parse(steps, micro_batch_size=size).steps(0)
        except ConfigurationError as error:
            wrong_type = isinstance(error, TypeError)
            for sentence in error.problems:
                problems.add(sentence, wrong_type=wrong_type)

    def _check_data(self, problems: Problems) -> None:
        for name in ("train_data", "eval_data"):
            data = getattr(self, name)
            if data is None and name == "eval_data":
                continue
            try:
                with origin(f"{name}, as its first example was read"):
                    source = as_source(data)
            except DataError as error:
                problems.add(f"{name}: {error}")
                continue
            self._set(name, source)
            self.check_fields(name, source, problems, evaluated=name == "eval_data")
        # Only where all else is right, because the sizes are worked out from the other arguments.
        if problems.found or not self.drop_last or not self.examples:
            return
        if self.effective_examples > self.examples:
            problems.add(
                f"drop_last=True leaves no window: one window has {self.effective_examples} examples, "
                f"the data {self.examples}; use fewer accumulation steps or drop_last=False"
            )

    def check_fields(
        self, name: str, source: Source | Stream, problems: Problems, *, evaluated: bool, computes_loss: bool = True
    ) -> None:
        """Add a problem for each field that the model, the loss or a metric needs and lacks."""
        readers: dict[str, str] = {}
        # A model that is called by the user's function reads what that function reads, unseen here.
        if isinstance(self.model, Model) and self.model.call("") is None:
            readers.update(dict.fromkeys(self.model.inputs, _INPUTS))
        for term in self.loss_terms.values():
            if computes_loss and isinstance(term, Loss):
                readers.update(dict.fromkeys(term.fields, "the loss"))
        if evaluated and isinstance(self.metrics, Sequence):
            for metric in self.metrics:
                if isinstance(metric, Metric):
                    readers.update(dict.fromkeys(metric.fields, f"the metric {metric.name!r}"))
        for field_name, reader in readers.items():
            prefix = f"{field_name}."  # an input may name a nested part, whose fields lie below it
            if reader == _INPUTS and any(field.startswith(prefix) for field in source.fields):
                continue
            if field_name not in source.fields:
                listed = ", ".join(map(repr, source.fields))
                needed = f"{field_name!r}, which {reader} needs"
                slip = closest(field_name, source.fields)
                problems.add(f"{name} has no field {needed}; it has {listed}{slip}")


def is_weights_path(initial: str) -> bool:
    """Tell whether `Experiment(initial=...)` names a file: a word without suffix and directory names a backend."""
    return bool(Path(initial).suffix) or Path(initial).name != initial


def _check_scaling(lr_scaling: str | None, base_batch_size: int | None, problems: Problems) -> None:
    if lr_scaling is not None:
        problems.choice("lr_scaling", lr_scaling, LR_SCALINGS)
    if base_batch_size is not None:
        problems.integer("base_batch_size", base_batch_size, minimum=1)
    if (lr_scaling is None) != (base_batch_size is None):
        problems.add(
            f"lr_scaling and base_batch_size go together, got lr_scaling={lr_scaling!r} and "
            f"base_batch_size={base_batch_size!r}; give the examples per update that the learning rate "
            'was tuned for, and lr_scaling="linear" or "sqrt"'
        )
