import numpy as np

import multibackend as mb

rng = np.random.default_rng(0)
x = rng.normal(size=(256, 2))
data = {"x": x, "y": np.sin(x).sum(axis=1, keepdims=True)}  # arrays [examples, ...]
train_data = {name: array[:192] for name, array in data.items()}
eval_data = {name: array[192:] for name, array in data.items()}


def build_torch():
    from torch import nn

    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))


def build_flax(rngs):
    from flax import nnx

    return nnx.Sequential(nnx.Linear(2, 32, rngs=rngs), nnx.tanh, nnx.Linear(32, 1, rngs=rngs))


experiment = mb.Experiment(
    name="sines",
    model=mb.Model(torch=build_torch, jax=build_flax, inputs="x"),
    loss=mb.losses.MeanSquaredError(target="y"),
    optimizer=mb.optimizers.AdamW(learning_rate=1e-2),
    train_data=train_data,
    eval_data=eval_data,
    micro_batch_size=16,
    gradient_accumulation_steps=2,
    initial="torch",  # both frameworks start from what the torch builder gives
)
