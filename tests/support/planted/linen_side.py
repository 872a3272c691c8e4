"""The CNN and a GPT in flax linen."""

import jax
import jax.numpy as jnp
from flax import linen

WIDTH, HEADS, HIDDEN, VOCABULARY, LENGTH = 12, 2, 20, 17, 7
CLASSES = 5


class Cnn(linen.Module):
    mistake: str = ""
    pooling: str = "average"
    head: str = "flatten"

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-5}
        padding = "SAME" if self.mistake == "same padding" else 1
        x = jnp.transpose(x, (0, 2, 3, 1))
        x = linen.Conv(6, (3, 3), strides=2, padding=padding, name="conv1")(x)
        x = jax.nn.relu(linen.BatchNorm(**norm, name="bn1")(x))
        how = {"window_shape": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 1))}
        x = linen.max_pool(x, **how) if self.pooling == "max" else linen.avg_pool(x, **how)
        x = linen.BatchNorm(**norm, name="bn2")(linen.Conv(6, (3, 3), padding=1, name="conv2")(x)) + x
        x = jax.nn.leaky_relu(x, 0.1)
        x = x.mean((1, 2)) if self.head == "mean" else jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)
        return linen.Dense(CLASSES, name="fc")(x)


class Block(linen.Module):
    mistake: str = ""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, t, d = x.shape
        y = linen.LayerNorm(epsilon=1e-5, name="norm1")(x)
        q, k, v = (linen.Dense(d, name=f"attention.{role}")(y) for role in ("query", "key", "value"))
        q, k, v = (a.reshape(n, t, HEADS, d // HEADS) for a in (q, k, v))
        scale = 1.0 if self.mistake == "no scale" else (d // HEADS) ** -0.5
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * scale
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30))
        x = x + linen.Dense(d, name="attention.out")(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, d))
        y = linen.Dense(HIDDEN, name="up")(linen.LayerNorm(epsilon=1e-5, name="norm2")(x))
        return x + linen.Dense(d, name="down")(jax.nn.gelu(y, approximate=False))


class Gpt(linen.Module):
    mistake: str = ""

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        x = x + linen.Embed(LENGTH + 2, WIDTH, name="position")(jnp.arange(tokens.shape[1]))
        for index in range(2):
            x = Block(self.mistake if index == 1 else "", name=f"layers_{index}")(x)
        x = linen.LayerNorm(epsilon=1e-5, name="final_norm")(x)
        return linen.Dense(VOCABULARY, use_bias=False, name="lm_head")(x)
