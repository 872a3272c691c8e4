import jax.numpy as jnp
import optax
from flax import nnx

rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(2, 32, rngs=rngs),
    nnx.tanh,
    nnx.Linear(32, 1, rngs=rngs),
)
step_rule = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.sgd(0.05, momentum=0.9),
)
optimizer = nnx.Optimizer(
    model,
    optax.MultiSteps(step_rule, every_k_schedule=2),
    wrt=nnx.Param,
)


@nnx.jit
def train_step(model, optimizer, inputs, targets):
    def mean_squared_error(model):
        return jnp.mean((model(inputs) - targets) ** 2)

    loss, gradients = nnx.value_and_grad(mean_squared_error)(model)
    optimizer.update(model, gradients)
    return loss


losses = []
for epoch in range(5):
    for first in range(0, len(x), 16):
        rows = slice(first, first + 16)
        loss = train_step(model, optimizer, x[rows], y[rows])
        losses.append(float(loss))
