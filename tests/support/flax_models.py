"""The same modules in flax, nnx and linen, with torch's numbers where defaults differ."""

import jax
import jax.numpy as jnp
from flax import linen, nnx


def linear(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Linear(3, 2, rngs=rngs)


class Gated(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.main, self.extra, self.spare = (nnx.Linear(3, 2, rngs=rngs) for _ in range(3))

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        return self.main(x) + gate[:, None] * self.extra(x)


class Normed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.head = nnx.BatchNorm(3, momentum=0.9, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(x))


class Dropped(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(x))


class Mlp(nnx.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(inputs, hidden, rngs=rngs), nnx.Linear(hidden, hidden, rngs=rngs)])
        self.head = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


NNX = {"linear": linear, "gated": Gated, "batch_norm": Normed, "dropout": Dropped}


class LinenGated(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        outputs = linen.Dense(2, name="main")(x) + gate[:, None] * linen.Dense(2, name="extra")(x)
        linen.Dense(2, name="spare")(x)
        return outputs


class LinenNormed(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return linen.Dense(2, name="head")(x)


class LinenDropped(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dropout(0.5, deterministic=not train, name="drop")(x)
        return linen.Dense(2, name="head")(x)


LINEN = {
    "linear": lambda: linen.Dense(2),
    "gated": LinenGated,
    "batch_norm": LinenNormed,
    "dropout": LinenDropped,
}
