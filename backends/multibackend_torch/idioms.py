"""How PyTorch writes what a diagnosis may ask to be changed, by the names of `multibackend.parity.causes`."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["IDIOMS"]

_SLOPES = ("0.01", "0.02", "0.05", "0.1", "0.2", "0.3")

IDIOMS: Mapping[str, str] = {
    "relu": "F.relu(x)",
    "gelu (erf)": 'F.gelu(x, approximate="none")',
    "gelu (tanh)": 'F.gelu(x, approximate="tanh")',
    "silu": "F.silu(x)",
    "tanh": "torch.tanh(x)",
    "sigmoid": "torch.sigmoid(x)",
    "quick gelu": "x * torch.sigmoid(1.702 * x)",
    "arrival activation none": "no activation there",
    "arrival activation softmax": "F.softmax(x, dim=-1)",
    # the slopes that the diagnosis tries: each is a trait of its own, not a VALUE
    **{f"leaky relu {slope}": f"F.leaky_relu(x, {slope})" for slope in _SLOPES},
    "attention scale 1/sqrt(head dim)": "scores = q @ k.transpose(-1, -2) / math.sqrt(head_dim)",
    "attention scale 1/sqrt(width)": "scores = q @ k.transpose(-1, -2) / math.sqrt(width)",
    "attention scale 1": "scores = q @ k.transpose(-1, -2)",
    "attention mask causal": "scores.masked_fill(~torch.tril(torch.ones(t, t, dtype=torch.bool)), -math.inf)",
    "attention mask none": "no mask on the scores",
    "attention masked scores -inf": "scores.masked_fill(~mask, -math.inf)",
    "attention softmax over keys": "F.softmax(scores, dim=-1)",
    "attention split into heads [heads, dim]": "x.view(n, t, heads, dim).transpose(1, 2)",
    "attention heads joined [heads, dim]": "y.transpose(1, 2).reshape(n, t, heads * dim)",
    "arrival pooling max": "F.max_pool2d(x, ...)",
    "arrival pooling average": "F.avg_pool2d(x, ...)",
    "arrival padding counts yes": "F.avg_pool2d(..., count_include_pad=True)",
    "arrival padding counts no": "F.avg_pool2d(..., count_include_pad=False)",
    "cross entropy label smoothing": "F.cross_entropy(..., label_smoothing=VALUE)",
    "cross entropy ignored label": "F.cross_entropy(..., ignore_index=VALUE)",
    "cross entropy reduction mean": 'F.cross_entropy(..., reduction="mean")',
    "cross entropy reduction sum": 'F.cross_entropy(..., reduction="sum")',
    "update weight decay": "torch.optim.AdamW(..., weight_decay=VALUE)",
    "update epsilon": "torch.optim.Adam(..., eps=VALUE)",
    "update beta2": "torch.optim.Adam(..., betas=(beta1, VALUE))",
    "update beta1": "torch.optim.Adam(..., betas=(VALUE, beta2))",
    "update optimizer Nesterov": "torch.optim.SGD(..., nesterov=True)",
    "update optimizer momentum": "torch.optim.SGD(..., nesterov=False)",
    "update momentum": "torch.optim.SGD(..., momentum=VALUE)",
    "update kind of decay decoupled": "torch.optim.AdamW",
    "update kind of decay coupled: into the gradient": "torch.optim.Adam(..., weight_decay=...)",
    "Linear digits of the factors all": 'torch.set_float32_matmul_precision("highest")',
}
"""Code by "topic trait value", by the value alone, or by "topic trait", where VALUE stands for the value."""
