"""Losses: one value and one weight per element, reduced over a whole window.

    L = scale * sum(w * l) / sum(w)   over every element of every micro-batch of the window

Several named terms, `loss={"tokens": CrossEntropy(...), "balance": Custom(..., scale=0.01)}`, are
each reduced by their own weights, so that none changes with the number of micro-batches, and added.

An element is an example, a token or a scalar of a regression target. The weights of a built-in loss
depend on the batch alone, so the host knows a window's divisor before the first backward pass.
Specs become native functions by `functools.singledispatch` in each backend's `losses.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from multibackend.core.custom_values import custom_values
from multibackend.core.paths import Shapes
from multibackend.core.slips import accepts, describe
from multibackend.core.validation import Problems, is_integer, shown
from multibackend.errors import ConfigurationError, DataError

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Custom", "Huber", "Loss", "MeanSquaredError", "check_batch"]

Batch = Mapping[str, Any]

_PROBABILITIES_SUM_TO = 1e-2  # 1 within this, also in bfloat16


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What every loss has.

    Args:
        weights: name of a field of the data with a weight >= 0 per element; None for 1 everywhere.
        scale: what the weighted mean is multiplied by.
        output: which of several outputs the loss is of, a dotted path into the dict, tuple, dataclass or
            object that the model returns: "cls", "heads.0"; None for all that it returns.

    >>> terms = {"cls": CrossEntropy(target="k", output="cls"), "reg": MeanSquaredError(target="y", output="reg")}
    """

    weights: str | None = None
    scale: float = 1.0
    output: str | None = None

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        if self.weights is not None:
            problems.field_name("weights", self.weights)
        problems.number("scale", self.scale, minimum=-math.inf)
        check_output(problems, self.output)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a subclass's own arguments."""

    @property
    def title(self) -> str:
        """What messages call it: its class, and the output that it picks."""
        return type(self).__name__ + ("" if self.output is None else f"(output={self.output!r})")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the data that this loss reads."""
        return () if self.weights is None else (self.weights,)

    @property
    def aligned_field(self) -> str | None:
        """The field that is as long as the outputs, of which padded sequences differ in length; None for none."""
        return None

    def weight_sums(self, batch: Batch, leading: int) -> np.ndarray | None:
        """Sum the weights, float64, over all but the first `leading` axes of a stack of batches.

        None where the weights are known only once the model has run.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how its elements are weighted")

    def validate(self, batch: Batch, output_shape: tuple[int, ...]) -> None:
        """Raise `DataError` where a numpy batch does not fit outputs of shape [batch, ...]."""

    @property
    def takes_logits(self) -> bool:
        """Whether the outputs must be logits, from which the loss makes probabilities itself."""
        return False

    def doubt(self, outputs: np.ndarray) -> str:
        """Say what speaks against outputs [batch, ...] being logits, with figures; "" where nothing does."""
        return ""


@dataclass(frozen=True, kw_only=True)
class _Targeted(Loss):
    target: str

    def _check(self, problems: Problems) -> None:
        problems.field_name("target", self.target)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.target, *super().fields)

    @property
    def aligned_field(self) -> str:
        return self.target


def _may_be_probabilities(outputs: np.ndarray) -> bool:
    return outputs.size > 0 and bool(outputs.min() >= 0 and outputs.max() <= 1)


def broadcast_weights(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Add axes of length 1 on the right of `weights` [batch, ...], to broadcast against `shape`."""
    if weights.shape != shape[: weights.ndim]:
        raise DataError(f"the weights have shape {weights.shape}, which is not the beginning of the target's {shape}")
    # numpy would align [batch] with the last axis; a weight belongs to the first, the example.
    return weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))


_SMALLEST_WEIGHT = 1e-30
_LARGEST_WEIGHT = 1e30


def check_weights(name: str, weights: np.ndarray) -> None:
    # Not (weights < 0) | (weights == inf), which NaN would pass: every comparison with it is false.
    wrong = weights[~((weights >= 0) & (weights < np.inf))]
    if wrong.size:
        value = wrong[0].item()
        raise DataError(f"the weights in {name!r} must be finite numbers >= 0, got {value!r}")
    # Sums of them, and what is divided by those, must be numbers in float32.
    extreme = weights[(weights > _LARGEST_WEIGHT) | ((weights < _SMALLEST_WEIGHT) & (weights > 0))]
    if extreme.size:
        raise DataError(
            f"the weights in {name!r} must be 0 or from {_SMALLEST_WEIGHT} to {_LARGEST_WEIGHT}, got "
            f"{extreme[0].item()!r}; only the ratios of weights matter, so multiply all of them by one number"
        )


@dataclass(frozen=True, kw_only=True)
class _Elementwise(_Targeted):
    """A loss per scalar of a target that has the shape of the outputs."""

    def weight_sums(self, batch: Batch, leading: int) -> np.ndarray:
        shape = np.shape(batch[self.target])
        if self.weights is None:
            return np.full(shape[:leading], float(np.prod(shape[leading:])))
        weights = np.asarray(batch[self.weights], np.float64)
        scalars = np.broadcast_to(broadcast_weights(weights, shape), shape)
        return scalars.sum(axis=tuple(range(leading, len(shape))))

    def validate(self, batch: Batch, output_shape: tuple[int, ...]) -> None:
        shape = np.shape(batch[self.target])
        if shape != output_shape:
            raise DataError(
                f"{self.title}: the model's outputs have shape {output_shape}, the target "
                f"{self.target!r} has {shape}; they must be equal, because frameworks broadcast them "
                "in different ways. Reshape the one that is wrong, for example target[:, None] for "
                "outputs of shape [batch, 1]"
            )
        if self.weights is not None:
            broadcast_weights(np.asarray(batch[self.weights]), shape)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(_Elementwise):
    """l = (output - target)² for each scalar. Outputs and target have one shape, [batch, ...].

    No factor 1/2 (`optax.l2_loss` has one).
    """


@dataclass(frozen=True, kw_only=True)
class Huber(_Elementwise):
    """l = r²/2 where |r| <= delta, else delta * (|r| - delta/2), with r = output - target.

    Source: Huber 1964. torch's `smooth_l1_loss(beta)` is this divided by beta.
    """

    delta: float = 1.0

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.number("delta", self.delta, minimum=0.0, above_minimum=True)


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(_Elementwise):
    """l = softplus(z) - y * z for logits z and targets y in [0, 1]; both [batch, ...]."""

    @property
    def takes_logits(self) -> bool:
        return True

    def doubt(self, outputs: np.ndarray) -> str:
        if not _may_be_probabilities(outputs):
            return ""
        return (
            f"{self.title} takes logits, and all {outputs.size} outputs of the first micro-batch lie between "
            f"{outputs.min():.3g} and {outputs.max():.3g}, as probabilities do; if the model ends in a sigmoid, "
            "drop it: the loss has one"
        )

    def validate(self, batch: Batch, output_shape: tuple[int, ...]) -> None:
        super().validate(batch, output_shape)
        targets = np.asarray(batch[self.target])
        if targets.size and not (targets.min() >= 0 and targets.max() <= 1):  # NaN is in no interval
            wrong = targets[~((targets >= 0) & (targets <= 1))][0].item()
            raise DataError(
                f"{self.title}: the target {self.target!r} must be in [0, 1], got {wrong!r}; for labels of several "
                "classes use CrossEntropy"
            )


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_Targeted):
    """Cross entropy between logits [batch, ..., classes] and integer labels [batch, ...].

        l = -sum_c q_c * log_softmax(z)_c
        q = (1 - label_smoothing) * onehot(label) + label_smoothing / classes

    Args:
        target: field with integer labels in [0, classes), or `ignore_index`.
        ignore_index: labels of this value weigh 0 (torch's convention).
        label_smoothing: in [0, 1).
        class_weights: a weight per class. An element weighs what its label's class does, so the
            divisor is the sum of those weights (torch's "mean"). Not together with
            `label_smoothing`, for which frameworks disagree.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.number("label_smoothing", self.label_smoothing, minimum=0.0, below=1.0)
        if not is_integer(self.ignore_index):
            problems.add(f"ignore_index must be an integer, got {self.ignore_index!r}", wrong_type=True)
        if self.class_weights is None:
            return
        if not isinstance(self.class_weights, Sequence | np.ndarray) or len(self.class_weights) == 0:
            what = "class_weights must be a sequence with a number >= 0 per class"
            problems.add(f"{what}, got {shown(self.class_weights)}", wrong_type=True)
            return
        for index, weight in enumerate(self.class_weights):
            problems.number(f"class_weights[{index}]", weight, minimum=0.0)
        if self.label_smoothing:
            problems.add("class_weights and label_smoothing cannot be combined; drop one of them")

    def weight_sums(self, batch: Batch, leading: int) -> np.ndarray:
        labels = np.asarray(batch[self.target])
        weights = (labels != self.ignore_index).astype(np.float64)
        if self.class_weights is not None:
            table = np.asarray(self.class_weights, np.float64)
            # Ignored labels look class 0 up and stay at weight 0. Labels that are no class are
            # clipped, because this may run before `validate`, which reports them.
            weights *= table[np.where(weights > 0, np.clip(labels, 0, len(table) - 1), 0)]
        if self.weights is not None:
            example_weights = np.asarray(batch[self.weights], np.float64)
            weights *= broadcast_weights(example_weights, labels.shape)
        return weights.sum(axis=tuple(range(leading, labels.ndim)))

    def validate(self, batch: Batch, output_shape: tuple[int, ...]) -> None:
        labels = np.asarray(batch[self.target])
        if labels.dtype.kind not in "iu":
            raise DataError(
                f"{self.title}: the target {self.target!r} must hold integer labels, got "
                f"{labels.dtype}{_repaired_labels(self.target, labels, output_shape)}"
            )
        if len(output_shape) == 0 or labels.shape != output_shape[:-1]:
            raise DataError(
                f"{self.title}: logits must have the shape of the labels and one more axis, the "
                f"classes, at the end; got logits {output_shape} and labels "
                f"{labels.shape}{_repaired_labels(self.target, labels, output_shape)}"
            )
        classes = output_shape[-1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            count = len(self.class_weights)
            raise DataError(f"{self.title}: {count} class_weights for {classes} classes")
        if self.weights is not None:
            broadcast_weights(np.asarray(batch[self.weights]), labels.shape)
        check_labels(f"{self.title}: ", self.target, labels, classes, self.ignore_index)

    @property
    def takes_logits(self) -> bool:
        return True

    def doubt(self, outputs: np.ndarray) -> str:
        if not _may_be_probabilities(outputs):
            return ""
        gap = float(np.abs(outputs.sum(axis=-1) - 1).max())
        if gap > _PROBABILITIES_SUM_TO:
            return ""
        return (
            f"{self.title} takes logits, and the outputs of the first micro-batch are probabilities: all lie between "
            f"{outputs.min():.3g} and {outputs.max():.3g}, and each row of {outputs.shape[-1]} sums to 1 within "
            f"{gap:.1e}; if the model ends in a softmax, drop it: the loss has one"
        )


def _repaired_labels(target: str, labels: np.ndarray, output_shape: tuple[int, ...]) -> str:
    """Return the line that makes labels of what was given as such; empty where nothing tells."""
    last = labels.ndim - 1
    if labels.ndim and labels.shape == output_shape and np.all(labels.sum(axis=-1) == 1):
        return f"; they are one-hot: pass data[{target!r}].argmax({last})"
    if labels.shape == output_shape and labels.dtype.kind == "f" and np.all(labels >= 0):
        return f"; probabilities of classes are no labels: data[{target!r}].argmax({last}), or write a custom loss"
    index = "" if labels.shape[:-1] != output_shape[:-1] or labels.shape[-1:] != (1,) else f"[{':, ' * last}0]"
    if labels.dtype.kind == "f" and np.all(labels == np.rint(labels)):
        return f"; they are whole numbers: pass data[{target!r}]{index}.astype(np.int64)"
    if labels.dtype.kind == "f":
        return "; numbers that are not whole are no classes: MeanSquaredError is a loss for those"
    return f"; pass data[{target!r}]{index}" if index else ""


def check_labels(title: str, target: str, labels: np.ndarray, classes: int, ignore_index: int) -> None:
    """Raise `DataError` unless every label is a class or `ignore_index`."""
    # Every dispatch comes here. Two passes without new memory settle the usual case; the masks
    # are made only where something is ignored or wrong.
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < classes):
        return
    outside = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if outside.any():
        raise DataError(
            f"{title}label {int(labels[outside][0])} in {target!r} is outside [0, {classes}) and is not "
            f"ignore_index={ignore_index}"
        )


@dataclass(frozen=True)
class Custom(Loss):
    """A loss written by the user, once against the array API standard or once per backend.

    Args:
        function: `(xp, outputs, batch) -> values` or `(values, weights)`, with `xp` the array
            namespace of the backend; or a mapping from backend names to native functions
            `(outputs, batch) -> ...`.
        weights: name of a field with a weight per element, where the function returns values only.
        per: what the values are, so that their weights are known before the model has run, as one
            of several terms needs it: "example" for values [batch], "weight" for one value per
            entry of the field `weights`, "micro_batch" for a single value, such as an auxiliary
            loss over all tokens at once, that counts once for each micro-batch. None for values of
            any shape, with weights that the function may return.

    Values have any shape that begins with the batch; weights broadcast, constants to the gradient.

    >>> loss = Custom(lambda xp, outputs, batch: xp.abs(outputs - batch["y"]))
    >>> load = lambda xp, outputs, batch: xp.mean(outputs["load"] ** 2)
    >>> balance = Custom(load, per="micro_batch", scale=0.01)
    """

    function: Callable[..., Any] | Mapping[str, Callable[..., Any]]
    _: KW_ONLY
    per: str | None = None

    def _check(self, problems: Problems) -> None:
        check_function(problems, "function", self.function)
        if self.per is not None:
            problems.choice("per", self.per, ("example", "weight", "micro_batch"))
        if self.per == "weight" and self.weights is None:
            problems.add('per="weight" needs weights=, the name of the field whose entries the values belong to')
        if self.per == "micro_batch" and self.weights is not None:
            problems.add(f'per="micro_batch" counts once for each micro-batch; drop weights={self.weights!r}')

    def weight_sums(self, batch: Batch, leading: int) -> np.ndarray | None:
        if self.per is None:
            return None
        # Without a field of weights any field will do: all begin with the same axes.
        field = self.weights or next(iter(batch))
        shape = np.shape(batch[field])
        if self.per == "micro_batch":
            return np.ones(shape[:leading])
        if self.weights is None:
            return np.full(shape[:leading], float(shape[leading]))
        weights = np.asarray(batch[self.weights], np.float64)
        return weights.sum(axis=tuple(range(leading, weights.ndim)))

    def values_of(self, role: str, result: Any, batch: Batch, kind: type) -> tuple[Any, Any]:
        """Check what the function returned, in arrays of that `kind`; return (values, weights or None).

        Raises:
            DataError: it is no values and weights, or not what `per` says.
        """
        size = len(next(iter(batch.values())))
        values, weights = custom_values(role, result, kind, batch_size=size if self.per is None else None)
        if self.per is not None:
            field = () if self.weights is None else tuple(batch[self.weights].shape)
            self.check_values(tuple(values.shape), size, field)
        if weights is not None or self.weights is None:
            return values, weights
        # of a field, which is checked in the same way as weights that the function returns
        return custom_values(role, (values, batch[self.weights]), kind, batch_size=None)

    def check_values(self, values_shape: tuple[int, ...], batch_size: int, weights_shape: tuple[int, ...]) -> None:
        """Raise `DataError` where what the function returned is not what `per` says."""
        if self.per is None:
            return
        expected = {"example": (batch_size,), "weight": weights_shape, "micro_batch": ()}[self.per]
        if values_shape != expected:
            raise DataError(
                f"the custom loss returned values of shape {values_shape}, but per={self.per!r} "
                f"means shape {expected}; reduce them to it, or say what they are with another per="
            )


def check_function(problems: Problems, name: str, function: object, arguments: str = "xp, outputs, batch") -> None:
    """Add a problem unless `function` takes these arguments, or maps backend names to functions (outputs, batch)."""
    if isinstance(function, Mapping):
        if not function:
            problems.add(f"{name} maps no backend to a function, got {{}}")
        for backend, native in function.items():
            if not isinstance(backend, str) or not callable(native):
                problems.add(f"{name} must map backend names to functions, got {backend!r}: {native!r}")
            elif not accepts(native, 2):
                problems.add(f"{name}[{backend!r}] must take (outputs, batch), got {describe(native)}")
    elif callable(function):
        if not accepts(function, len(arguments.split(","))):
            problems.add(f"{name} must take ({arguments}), got {describe(function)}{_signature_of(function)}")
    else:
        problems.add(f"{name} must be a function or a mapping from backend names to functions, got {shown(function)}")


def _signature_of(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return ""


def check_gradient(parameters: Iterable[str], depends: bool) -> None:
    """Raise unless the model has parameters, and some term of the loss depends on them.

    Raises:
        ConfigurationError: the model has none.
        DataError: the loss depends on none.
    """
    if not any(True for _ in parameters):
        raise ConfigurationError("Model", ["the model has no parameter, so there is nothing to train"])
    if not depends:
        raise DataError(
            "the loss does not depend on the model's parameters, so there is nothing to train: it reads the batch "
            "alone, or the outputs were detached or rounded on the way"
        )


def check_output(problems: Problems, output: object) -> None:
    """Add a problem unless `output` is a dotted path or None."""
    if output is not None and (not isinstance(output, str) or not output):
        what = "a dotted path to one of the model's outputs, such as 'cls' or 'heads.0'"
        problems.add(f"output must be {what}, got {output!r}", wrong_type=True)


def check_batch(loss: Loss, batch: Batch, shapes: Shapes) -> None:
    """Check a host batch against the shapes of the model's outputs for some other batch size.

    Raises:
        DataError: a shape or a label does not fit.
    """
    if loss.weights is not None:
        check_weights(loss.weights, np.asarray(batch[loss.weights]))
    if isinstance(loss, Custom):
        return
    # The program was traced on a batch of its own size; only the axes after it are the model's.
    size = len(next(iter(batch.values())))
    loss.validate(batch, (size, *picked_shape(loss.title, loss.output, shapes)[1:]))


def picked_shape(title: str, output: str | None, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the one array that a loss or metric is of; raise `DataError` where it is none."""
    shape = shapes.get(output or "")
    if shape:
        return shape
    prefix = f"{output}." if output else ""
    parts = [path for path in shapes if path and path.startswith(prefix)]
    if not parts:
        found = "it returns none" if shape is None else "it returns a single number"
        raise DataError(f"{title} needs a model whose output is an array [batch, ...], but {found}")
    listed = ", ".join(map(repr, parts))
    where = "the model returns" if output is None else f"output={output!r} is"
    raise DataError(
        f"{title} needs one array [batch, ...], but {where} several: {listed}; say which one, for example "
        f"output={parts[0]!r}, or write a custom one"
    )
