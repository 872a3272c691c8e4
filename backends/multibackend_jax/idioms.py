"""How JAX and Flax write what a diagnosis may ask to be changed, by the names of `multibackend.parity.causes`."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["IDIOMS"]

IDIOMS: Mapping[str, str] = {
    "relu": "jax.nn.relu(x)",
    "gelu (erf)": "jax.nn.gelu(x, approximate=False)",
    "gelu (tanh)": "jax.nn.gelu(x, approximate=True)",
    "silu": "jax.nn.silu(x)",
    "tanh": "jnp.tanh(x)",
    "sigmoid": "jax.nn.sigmoid(x)",
    "quick gelu": "x * jax.nn.sigmoid(1.702 * x)",
    "arrival activation none": "no activation there",
    "arrival activation softmax": "jax.nn.softmax(x, axis=-1)",
    **{
        f"leaky relu {slope}": f"jax.nn.leaky_relu(x, {slope})"
        for slope in ("0.01", "0.02", "0.05", "0.1", "0.2", "0.3")
    },
    "attention scale 1/sqrt(head dim)": 'scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(head_dim)',
    "attention scale 1/sqrt(width)": 'scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width)',
    "attention scale 1": 'scores = jnp.einsum("nqhd,nkhd->nhqk", q, k)',
    "attention mask causal": "jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)",
    "attention mask none": "no mask on the scores",
    "attention masked scores -inf": "jnp.where(mask, scores, -jnp.inf)",
    "attention softmax over keys": "jax.nn.softmax(scores, axis=-1)",
    "attention split into heads [heads, dim]": "x.reshape(n, t, heads, dim)",
    "attention heads joined [heads, dim]": "y.reshape(n, t, heads * dim) of y [n, t, heads, dim]",
    "arrival pooling max": "nnx.max_pool(x, ...)",
    "arrival pooling average": "nnx.avg_pool(x, ...)",
    "arrival padding counts yes": "nnx.avg_pool(..., count_include_pad=True)",
    "arrival padding counts no": "nnx.avg_pool(..., count_include_pad=False)",
    "cross entropy label smoothing": "optax.smooth_labels(onehot, VALUE)",
    "cross entropy ignored label": "weights = labels != VALUE",
    "cross entropy reduction mean": "losses.mean()",
    "cross entropy reduction sum": "losses.sum()",
    "update weight decay": "optax.adamw(..., weight_decay=VALUE)",
    "update epsilon": "optax.adam(..., eps=VALUE)",
    "update epsilon's place outside the root": "optax.adam(..., eps=..., eps_root=0)",
    "update epsilon's place in the root": "optax.adam(..., eps=0, eps_root=...)",
    "update beta2": "optax.adam(..., b2=VALUE)",
    "update beta1": "optax.adam(..., b1=VALUE)",
    "update optimizer Nesterov": "optax.sgd(..., nesterov=True)",
    "update optimizer momentum": "optax.sgd(..., nesterov=False)",
    "update momentum": "optax.sgd(..., momentum=VALUE)",
    "update kind of decay decoupled": "optax.adamw",
    "update kind of decay coupled: into the gradient": "optax.chain(optax.add_decayed_weights(...), optax.adam(...))",
    "Linear digits of the factors all": 'jax.default_matmul_precision("highest")',
}
"""By "topic trait value", by the value alone, or by "topic trait", where VALUE stands for the value."""
