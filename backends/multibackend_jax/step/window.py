"""One window as pure functions: accumulate a micro-batch, finish with one update.

The accumulator becomes `optax.MultiStepsState.acc_grads`, whose one call of `MultiSteps.update` per
window emits the update. Micro-batches are added without calling it, because each call evaluates the
inner optimizer, and a NaN once in the accumulator of `MultiSteps` stays there. Here every window
starts from new zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multibackend.core.precision import LossScale
from multibackend.experiment import Experiment
from multibackend.optimizers.groups import GroupedParameters, frozen_names, resolve_groups
from multibackend_jax.model.norm import moved, window_momentum
from multibackend_jax.model.pure import Arrays, FlaxModel, Stamp
from multibackend_jax.step.losses import loss_sum
from multibackend_jax.step.optimizers import build_grouped

__all__ = ["Carry", "DeviceLossScale", "Row", "TrainState", "WindowFunctions", "forward"]


class DeviceLossScale(NamedTuple):
    """`multibackend.core.precision.LossScale` on the device."""

    scale: jax.Array
    updates: jax.Array

    @classmethod
    def of(cls, host: LossScale) -> DeviceLossScale:
        return cls(jnp.asarray(host.scale, jnp.float32), jnp.asarray(host.updates, jnp.int32))

    def after(self, *, overflow: jax.Array, applied: jax.Array) -> DeviceLossScale:
        """Return the scale for the next window; the same if this one was dropped without overflow."""
        grows = self.updates + 1 >= LossScale.interval
        raised = jnp.where(grows, jnp.minimum(2 * self.scale, LossScale.largest), self.scale)
        counted = jnp.where(grows, 0, self.updates + 1)
        lowered = jnp.maximum(self.scale / 2, LossScale.smallest)
        scale = jnp.where(overflow, lowered, jnp.where(applied, raised, self.scale))
        updates = jnp.where(overflow, 0, jnp.where(applied, counted, self.updates))
        return DeviceLossScale(scale, updates)


class TrainState(NamedTuple):
    """What a run carries from window to window; arrays by canonical name, in native layout."""

    parameters: Arrays
    model_state: Arrays
    optimizer: Any  # an optax.MultiStepsState, whose own annotations do not say that its fields are arrays
    failed: jax.Array  # freezes the state after a window with `on_nonfinite="raise"`
    ema: Arrays  # the moving average of the parameters; empty where none is kept
    loss_scale: DeviceLossScale | None = None  # of fp16


class Carry(NamedTuple):
    """What a window carries from micro-batch to micro-batch."""

    model_state: Arrays
    accumulator: Arrays  # the sum of the gradients, times the loss scale in fp16
    loss: jax.Array  # [terms], the sums of w * l / divisor
    weight: jax.Array  # [terms], the sums of w
    loss_scale: jax.Array | None


Row = jax.Array
"""What a window measured: norm, finite, applied, loss scale; each term; each term's weight; the norm of each
parameter's gradient, in the order in which JAX flattens the parameters. One array, because each
costs a transfer.
"""


@dataclass(frozen=True)
class WindowFunctions:
    """The pure functions of one experiment.

    Attributes:
        experiment: what is trained.
        model: as a pure function.
        weighed_by_model: whether the loss's weights are known only once the model has run.
        compiler_options: for what differentiates.
    """

    experiment: Experiment
    model: FlaxModel
    weighed_by_model: bool
    compiler_options: dict[str, Any] | None = None

    @functools.cached_property
    def groups(self) -> tuple[GroupedParameters, ...]:
        """The parameters, in groups that are trained alike."""
        shapes = {name: self.model.layouts[name].canonical for name in self.model.parameters}
        return resolve_groups(self.experiment.optimizer, shapes)

    @functools.cached_property
    def frozen(self) -> frozenset[str]:
        """The parameters that stay as they are: neither differentiated nor handed to the optimizer."""
        return frozen_names(self.groups)

    def trained(self, parameters: Arrays) -> Arrays:
        """Return the parameters that are not frozen."""
        if not self.frozen:
            return parameters
        return {name: array for name, array in parameters.items() if name not in self.frozen}

    @property
    def terms(self) -> int:
        """How many terms the loss has."""
        return len(self.experiment.loss_terms)

    @property
    def dtype(self) -> str:
        """The dtype of parameters, accumulators and all that is kept."""
        return self.experiment.number_format.parameters

    @property
    def multi_steps(self) -> optax.MultiSteps:
        # built anew for each trace, to which arrays belong that a user's optimizer makes
        merged = {name: self.model.layouts[name].merged for name in self.model.parameters}
        # every window ends in one call of update, which must emit: so as many steps as calls,
        # namely 1
        return optax.MultiSteps(
            build_grouped(self.experiment.optimizer, self.groups, merged),
            every_k_schedule=1,
            use_grad_mean=False,
            accumulator_dtype=self.dtype,
        )

    def init(self) -> TrainState:
        parameters = self.model.parameters
        # between windows there is no accumulator: zeros need not be kept, read and written
        optimizer = self.multi_steps.init(self.trained(parameters))._replace(acc_grads={})
        loss_scale = DeviceLossScale.of(LossScale()) if self.experiment.number_format.scales_loss else None
        ema = {} if self.experiment.ema_decay is None else parameters
        return TrainState(parameters, self.model.state, optimizer, jnp.asarray(False), ema, loss_scale)

    def start(self, state: TrainState) -> Carry:
        """Begin a window."""
        return Carry(
            model_state=state.model_state,
            accumulator=jax.tree.map(lambda p: jnp.zeros_like(p, self.dtype), self.trained(state.parameters)),
            loss=jnp.zeros(self.terms, self.dtype),
            weight=jnp.zeros(self.terms, self.dtype),
            loss_scale=None if state.loss_scale is None else state.loss_scale.scale,
        )

    def accumulate(
        self, parameters: Arrays, carry: Carry, batch: Arrays, inverse_divisors: jax.Array, stamp: Stamp
    ) -> Carry:
        """Add the gradient of one micro-batch's `sum over terms of sum(w * l) / divisor` to the accumulator."""

        def objective(trained: Arrays) -> tuple[jax.Array, tuple[jax.Array, Arrays, jax.Array]]:
            whole = {**parameters, **trained} if self.frozen else trained
            loss, weight, _, model_state = forward(self, whole, carry.model_state, batch, inverse_divisors, stamp)
            scaled = loss if carry.loss_scale is None else loss * carry.loss_scale
            return scaled.sum(), (loss, model_state, weight)

        differentiate = jax.value_and_grad(objective, has_aux=True)
        (_, (loss, model_state, weight)), gradient = differentiate(self.trained(parameters))
        return Carry(
            model_state=_cast_like(model_state, carry.model_state),
            accumulator=jax.tree.map(lambda a, g: a + g.astype(a.dtype), carry.accumulator, gradient),
            loss=carry.loss + loss.astype(carry.loss.dtype),
            weight=carry.weight + weight.astype(carry.weight.dtype),
            loss_scale=carry.loss_scale,
        )

    def finish(self, state: TrainState, carry: Carry, rates: jax.Array, first: jax.Array) -> tuple[TrainState, Row]:
        """Normalise, check, clip, update. A window that does not apply leaves the state as it was."""
        weight = carry.weight.sum()
        if self.weighed_by_model and self.experiment.normalize == "window":
            inverse_weight = 1 / jnp.where(weight > 0, weight, 1)
        else:  # the divisors that came with the micro-batches have it already
            inverse_weight = jnp.ones_like(weight)
        loss_scale = jnp.ones_like(inverse_weight) if carry.loss_scale is None else carry.loss_scale
        gradient_scale = inverse_weight / loss_scale
        # scaled afterwards: a normalised copy of the gradient would be one more pass over memory
        squares = jnp.stack([jnp.vdot(g, g) for g in jax.tree.leaves(carry.accumulator)])
        norm = jnp.sqrt(squares.sum()) * gradient_scale
        is_loss_finite = jnp.isfinite(carry.loss).all()
        finite = is_loss_finite & jnp.isfinite(norm)
        applied = finite & (weight > 0) & ~state.failed
        update_scale = self._clipped(gradient_scale, norm)
        learning_rate = rates[state.optimizer.gradient_step - first]
        # losses are measured before they are scaled, so no scale can have spoilt them
        overflow = is_loss_finite & ~finite & (loss_scale > LossScale.smallest)
        failed = state.failed
        # an overflow is how fp16 finds its loss scale, and no failure
        if self.experiment.on_nonfinite == "raise":
            failed = state.failed | ~(finite | overflow)
        # a branch rather than a selection, which keeps old and new values alive: a copy of
        # each array
        updated = jax.lax.cond(applied, lambda: self._update(state, carry, update_scale, learning_rate), lambda: state)
        if state.loss_scale is not None:
            updated = updated._replace(
                loss_scale=state.loss_scale.after(overflow=overflow & ~state.failed, applied=applied)
            )
        # of a window that is dropped for what is not finite the losses tell why
        terms = jnp.where((weight > 0) | ~finite, carry.loss * inverse_weight, jnp.nan)
        numbers = jnp.stack([number.astype(norm.dtype) for number in (norm, finite, applied, loss_scale)])
        row = jnp.concatenate([numbers, terms, carry.weight, jnp.sqrt(squares) * gradient_scale])
        return updated._replace(failed=failed), row

    def _clipped(self, gradient_scale: jax.Array, norm: jax.Array) -> jax.Array:
        """Return what gradients are multiplied by, for a norm of at most `max_grad_norm`."""
        limit = self.experiment.max_grad_norm
        if limit is None:
            return gradient_scale
        return gradient_scale * jnp.where(norm > limit, limit / norm, 1)

    def _update(self, state: TrainState, carry: Carry, scale: jax.Array, learning_rate: jax.Array) -> TrainState:
        """Make one step of the optimizer on the gradients times `scale`."""
        gradient = jax.tree.map(lambda a: a * scale.astype(a.dtype), carry.accumulator)
        full = state.optimizer._replace(acc_grads=gradient, mini_step=jnp.zeros([], jnp.int32))
        # MultiSteps adds what it is called with to its accumulator, where the whole
        # gradient is already
        nothing = jax.tree.map(jnp.zeros_like, gradient)
        trained = self.trained(state.parameters)
        updates, optimizer = self.multi_steps.update(nothing, full, trained, learning_rate=learning_rate)
        parameters: Any = optax.apply_updates(trained, updates)
        if self.frozen:
            parameters = {**state.parameters, **parameters}
        return state._replace(
            parameters=parameters,
            model_state=carry.model_state,
            optimizer=optimizer._replace(acc_grads={}),
            ema=self._average(state.ema, parameters, state.optimizer.gradient_step),
        )

    def _average(self, ema: Arrays, parameters: Arrays, update: jax.Array) -> Arrays:
        """Move the average e to e + (1 - d) * (p - e), after the update with this index."""
        if self.experiment.ema_decay is None:
            return ema
        final_weight = 1 - float(self.experiment.ema_decay)

        def average(e: jax.Array, p: jax.Array) -> jax.Array:
            weight = jnp.asarray(final_weight, e.dtype)
            if self.experiment.ema_warmup:  # 1 - (1 + t) / (10 + t)
                weight = jnp.maximum(weight, 9 / (10 + update.astype(e.dtype)))
            return e + weight * (p - e)

        return jax.tree.map(average, ema, parameters)


def forward(
    functions: WindowFunctions,
    parameters: Arrays,
    model_state: Arrays,
    batch: Arrays,
    inverse_divisors: jax.Array,
    stamp: Stamp | None,
) -> tuple[jax.Array, jax.Array, Any, Arrays]:
    """Return each term's sum(w * l) / divisor, the sums of w, the outputs and the new state.

    Without a stamp the model is in evaluation mode.
    """
    outputs, new_state = functions.model.apply(parameters, model_state, batch, stamp, stamp is not None)
    if functions.experiment.batch_statistics == "window" and stamp is not None:
        momentum = functools.partial(window_momentum, steps=stamp.size)
        new_state = moved(model_state, new_state, functions.model.statistics, momentum)
    sums = [loss_sum(loss, outputs, batch) for loss in functions.experiment.loss_terms.values()]
    total = jnp.stack([total.astype(functions.dtype) for total, _ in sums])
    weight = jnp.stack([weight.astype(functions.dtype) for _, weight in sums])
    if functions.weighed_by_model and functions.experiment.normalize == "microbatch":
        total = total / jnp.where(weight > 0, weight, 1)
    return total * inverse_divisors.astype(total.dtype), weight, outputs, new_state


def _cast_like(tree: Any, like: Any) -> Any:
    """Cast a state to the dtypes it is kept in: a module may compute its statistics in another precision."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), tree, like)
