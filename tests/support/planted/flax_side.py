"""The same networks in flax nnx, with names and ways of their own; `mistake` plants one."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, HEADS, HIDDEN, VOCABULARY, LENGTH = 12, 2, 20, 17, 7
CLASSES = 5


class RoundedLinear(nnx.Linear):
    """What tf32 does to the factors of a product, anywhere: 10 bits behind the point."""

    def __call__(self, x: jax.Array) -> jax.Array:
        def cut(a: jax.Array) -> jax.Array:
            mantissa, exponent = jnp.frexp(a)
            return jnp.ldexp(jnp.round(mantissa * 2.0**11) / 2.0**11, exponent)

        return cut(x) @ cut(self.kernel[...]) + self.bias[...]


class BareLinear(nnx.Linear):
    """A linear layer that forgets its bias."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...]


class Transposed(nnx.Linear):
    """A square layer whose kernel is taken the wrong way round."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].T + self.bias[...]


class StdNorm(nnx.LayerNorm):
    """Divides by the unbiased deviation plus epsilon, as many tutorials do."""

    def __call__(self, x: jax.Array) -> jax.Array:
        deviation = jnp.std(x, axis=-1, keepdims=True, ddof=1)
        return self.scale[...] * (x - x.mean(-1, keepdims=True)) / (deviation + self.epsilon) + self.bias[...]


class Attention(nnx.Module):
    def __init__(self, mistake: str, fused: bool, rngs: nnx.Rngs) -> None:
        self.mistake, self.fused = mistake, fused
        if fused:
            self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        else:
            value = Transposed if mistake == "transposed weight" else nnx.Linear
            self.query, self.key = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.value = value(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def split(self, a: jax.Array) -> jax.Array:
        n, t, d = a.shape
        if self.mistake == "heads split as [dim, heads]":
            return a.reshape(n, t, d // HEADS, HEADS).transpose(0, 3, 1, 2)
        return a.reshape(n, t, HEADS, d // HEADS).transpose(0, 2, 1, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, t, d = x.shape
        parts = jnp.split(self.qkv(x), 3, axis=-1) if self.fused else (self.query(x), self.key(x), self.value(x))
        q, k, v = (self.split(a) for a in parts)
        scale = {"no scale": 1.0, "scale by width": 1 / math.sqrt(d)}.get(self.mistake, 1 / math.sqrt(d // HEADS))
        scores = jnp.einsum("nhqd,nhkd->nhqk", q, k) * scale
        mask = jnp.tril(jnp.ones((t, t), bool), 1 if self.mistake == "mask shifted" else 0)
        if self.mistake == "no mask":
            mask = jnp.ones((t, t), bool)
        finite = -1.0 if self.mistake == "mask value" else -jnp.inf
        weights = jax.nn.softmax(jnp.where(mask, scores, finite), 2 if self.mistake == "softmax over queries" else -1)
        y = jnp.einsum("nhqk,nhkd->nqhd", weights, v)
        return self.out(y.reshape(n, t, d))


def gelu(mistake: str) -> Callable[[jax.Array], jax.Array]:
    table = {
        "relu": jax.nn.relu,
        "gelu tanh": jax.nn.gelu,
        "silu": jax.nn.silu,
    }
    return table.get(mistake, lambda x: jax.nn.gelu(x, approximate=False))


class Block(nnx.Module):
    def __init__(self, mistake: str, norm: str, fused: bool, rate: float, rngs: nnx.Rngs) -> None:
        def make(wrong: bool) -> nnx.Module:
            if norm == "rms":
                return nnx.RMSNorm(WIDTH, epsilon=1e-5 if wrong and mistake == "rms epsilon" else 1e-6, rngs=rngs)
            if wrong and mistake == "unbiased norm":
                return StdNorm(WIDTH, epsilon=1e-5, rngs=rngs)
            return nnx.LayerNorm(WIDTH, epsilon=1e-6 if wrong and mistake == "layer norm epsilon" else 1e-5, rngs=rngs)

        kinds = {"tf32": RoundedLinear, "missing bias": BareLinear}
        dtypes = {"float32": jnp.float32, "bf16": jnp.bfloat16}
        self.mistake = mistake
        self.norm1, self.attention, self.norm2 = make(False), Attention(mistake, fused, rngs), make(True)
        self.up = kinds.get(mistake, nnx.Linear)(WIDTH, HIDDEN, dtype=dtypes.get(mistake), rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.drop = nnx.Dropout(0.1 if mistake == "dropout" else rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.mistake == "post-norm":
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.drop(self.attention(self.norm1(x)))
        y = self.drop(self.mlp(self.norm2(x)))
        if self.mistake == "missing residual":
            return y
        return x + (0.5 * y if self.mistake == "halved branch" else y)

    def mlp(self, x: jax.Array) -> jax.Array:
        hidden = gelu(self.mistake)(self.up(x))
        return self.down(jax.lax.stop_gradient(hidden) if self.mistake == "stopped gradient" else hidden)


class Gpt(nnx.Module):
    def __init__(
        self,
        rngs: nnx.Rngs,
        mistake: str | tuple[str, str] = "",
        norm: str = "layer",
        fused: bool = False,
        rate: float = 0.0,
        scaled: bool = False,
    ) -> None:
        self.mistake, self.scaled = mistake, scaled
        each = mistake if isinstance(mistake, tuple) else ("", mistake)  # of one block, or of both
        start = {"embedding_init": nnx.initializers.normal(0.02)} if mistake == "initial law" else {}
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs, **start)
        self.position = nnx.Embed(LENGTH + 2, WIDTH, rngs=rngs)
        self.layers = nnx.List([Block(each[i], norm, fused, rate if i == 0 else 0.0, rngs) for i in range(2)])
        norms = {"layer": lambda: nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)}
        self.final_norm = norms.get(norm, lambda: nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs))()
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.scaled and self.mistake != "no embedding scale":
            x = x * math.sqrt(WIDTH)
        start = 1 if self.mistake == "positions from 1" else 0
        x = x + self.position(jnp.arange(start, tokens.shape[1] + start))
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        if self.mistake == "tied head":
            return self.embed.attend(x)
        logits = self.lm_head(x)
        if self.mistake == "temperature":
            logits = logits / 2.0
        return jax.nn.softmax(logits) if self.mistake == "softmax twice" else logits


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, mistake: str = "", pooling: str = "average", head: str = "flatten") -> None:
        self.mistake, self.pooling, self.head = mistake, pooling, head
        padding = "SAME" if mistake == "same padding" else 1
        strides = 1 if mistake == "stride" else 2
        momentum = 0.99 if mistake == "norm momentum" else 0.9
        epsilon = 1e-3 if mistake == "batch norm epsilon" else 1e-5
        self.conv1 = nnx.Conv(3, 6, (3, 3), strides=strides, padding=padding, rngs=rngs)
        self.bn1 = nnx.BatchNorm(6, momentum=momentum, epsilon=epsilon, rngs=rngs)
        dilation = 2 if mistake == "dilation" else 1
        self.conv2 = nnx.Conv(6, 6, (3, 3), padding=dilation, kernel_dilation=dilation, rngs=rngs)
        self.bn2 = nnx.BatchNorm(6, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.fc = nnx.Linear(6 * 9 if head == "flatten" else 6, CLASSES, rngs=rngs)

    def pool(self, x: jax.Array) -> jax.Array:
        how = {"window_shape": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 1))}
        if self.pooling == "max" or self.mistake == "max pooling":
            return nnx.max_pool(x, **how)
        return nnx.avg_pool(x, **how, count_include_pad=self.mistake != "padding not counted")

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.transpose(x, (0, 2, 3, 1))
        x = self.pool(jax.nn.relu(self.bn1(self.conv1(x))))
        x = self.bn2(self.conv2(x)) + (0 if self.mistake == "missing residual" else x)
        x = jax.nn.leaky_relu(x, 0.2 if self.mistake == "leaky slope" else 0.1)
        if self.head == "mean":
            return self.fc(x.mean((1, 2)))
        if self.mistake != "flatten order":
            x = jnp.transpose(x, (0, 3, 1, 2))
        return self.fc(x.reshape(len(x), -1))


class Table(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, mistake: str = "", features: int = 6) -> None:
        fast = mistake == "fast variance"
        self.norm = nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=fast, rngs=rngs)
        self.first, self.second = nnx.Linear(features, 9, rngs=rngs), nnx.Linear(9, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jax.nn.silu(self.first(self.norm(x))))
