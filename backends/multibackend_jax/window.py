"""One window as pure functions: accumulate a micro-batch, finish with one update.

The accumulator becomes `optax.MultiStepsState.acc_grads`, whose one call of `MultiSteps.update` per window emits the
update. Micro-batches are added without calling it, because each call evaluates the inner optimizer, and a NaN once in
the accumulator of `MultiSteps` stays there. Here every window starts from new zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multibackend.experiment import Experiment
from multibackend_jax.losses import weighted_sum
from multibackend_jax.models import Arrays, FlaxModel, Stamp
from multibackend_jax.norm import moved, window_share
from multibackend_jax.optimizers import build_optimizer

__all__ = ["Carry", "Row", "TrainState", "WindowFunctions"]


class TrainState(NamedTuple):
    """What a run carries from window to window. `failed` freezes it after a window with `on_nonfinite="raise"`."""

    parameters: Arrays
    model_state: Arrays
    optimizer: Any  # an optax.MultiStepsState, whose own annotations do not say that its fields are arrays
    failed: jax.Array


class Carry(NamedTuple):
    """What a window carries from micro-batch to micro-batch."""

    model_state: Arrays
    accumulator: Arrays
    loss: jax.Array
    weight: jax.Array


# What a window measured: loss, norm, weight, finite, applied, then the norm of each parameter's gradient, in the order
# in which JAX flattens the parameters. One array, because each one that is read costs a transfer.
Row = jax.Array


@dataclass(frozen=True)
class WindowFunctions:
    """The pure functions of one experiment. `dynamic`: the loss's weights are known only once the model has run."""

    experiment: Experiment
    model: FlaxModel
    dynamic: bool

    @property
    def multi_steps(self) -> optax.MultiSteps:
        # every window ends in one call of update, which must emit: so as many steps as calls, namely 1
        return optax.MultiSteps(
            build_optimizer(self.experiment.optimizer),
            every_k_schedule=1,
            use_grad_mean=False,
            accumulator_dtype=self.experiment.precision,
        )

    def init(self) -> TrainState:
        parameters = self.model.parameters
        # between windows there is no accumulator: zeros need not be kept, read and written
        optimizer = self.multi_steps.init(parameters)._replace(acc_grads={})
        return TrainState(parameters, self.model.state, optimizer, jnp.asarray(False))

    def start(self, state: TrainState) -> Carry:
        """The carry at the beginning of a window."""
        dtype = self.experiment.precision
        accumulator = jax.tree.map(lambda parameter: jnp.zeros_like(parameter, dtype), state.parameters)
        return Carry(state.model_state, accumulator, jnp.zeros([], dtype), jnp.zeros([], dtype))

    def accumulate(self, parameters: Arrays, carry: Carry, batch: Arrays, factor: jax.Array, stamp: Stamp) -> Carry:
        """Add the gradient of one micro-batch's `factor * sum(w * l)` to the accumulator."""
        rescaled = self.experiment.batch_statistics == "window"
        by_micro_batch = self.dynamic and self.experiment.normalize == "microbatch"

        def objective(parameters: Arrays) -> tuple[jax.Array, tuple[Arrays, jax.Array]]:
            outputs, model_state = self.model.apply(parameters, carry.model_state, batch, stamp, True)
            if rescaled:
                share = functools.partial(window_share, steps=stamp.size)
                model_state = moved(carry.model_state, model_state, self.model.statistics, share)
            total, weight = weighted_sum(self.experiment.loss_spec, outputs, batch)
            if by_micro_batch:
                total = total / jnp.where(weight > 0, weight, 1)
            return total * factor.astype(total.dtype), (model_state, weight)

        (loss, (model_state, weight)), gradient = jax.value_and_grad(objective, has_aux=True)(parameters)
        return Carry(
            _cast_like(model_state, carry.model_state),
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), carry.accumulator, gradient),
            carry.loss + loss.astype(carry.loss.dtype),
            carry.weight + weight.astype(carry.weight.dtype),
        )

    def finish(self, state: TrainState, carry: Carry, rates: jax.Array, first: jax.Array) -> tuple[TrainState, Row]:
        """Normalise, check, clip, update. Where the window does not apply, the state is what it was, bit for bit."""
        by_window = self.dynamic and self.experiment.normalize == "window"
        scale = 1 / jnp.where(carry.weight > 0, carry.weight, 1) if by_window else jnp.ones_like(carry.weight)
        squares = jnp.stack([jnp.vdot(g, g) for g in jax.tree.leaves(carry.accumulator)])
        norm = jnp.sqrt(squares.sum()) * scale
        finite = jnp.isfinite(norm)
        applied = finite & (carry.weight > 0) & ~state.failed
        limit = self.experiment.max_grad_norm
        clip = scale if limit is None else scale * jnp.where(norm > limit, limit / norm, 1)
        rate = rates[state.optimizer.gradient_step - first]
        failed = state.failed | ~finite if self.experiment.on_nonfinite == "raise" else state.failed
        # a branch rather than a selection: selecting keeps old and new values alive, which costs a copy of each array
        kept = jax.lax.cond(applied, lambda: self._update(state, carry, clip, rate), lambda: state)
        loss = jnp.where(carry.weight > 0, carry.loss * scale, jnp.nan)
        numbers = jnp.stack([loss, norm, carry.weight, finite.astype(norm.dtype), applied.astype(norm.dtype)])
        row = jnp.concatenate([numbers, jnp.sqrt(squares) * scale])
        return kept._replace(failed=failed), row

    def _update(self, state: TrainState, carry: Carry, scale: jax.Array, rate: jax.Array) -> TrainState:
        """One call of the inner optimizer on the accumulated gradient."""
        gradient = jax.tree.map(lambda a: a * scale.astype(a.dtype), carry.accumulator)
        held = state.optimizer._replace(acc_grads=gradient, mini_step=jnp.zeros([], jnp.int32))
        nothing = jax.tree.map(jnp.zeros_like, gradient)
        updates, optimizer = self.multi_steps.update(nothing, held, state.parameters, learning_rate=rate)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        return TrainState(parameters, carry.model_state, optimizer._replace(acc_grads={}), state.failed)


def _cast_like(tree: Any, like: Any) -> Any:
    """A module may compute its statistics in another precision than it keeps them in."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), tree, like)
