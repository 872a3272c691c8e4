import multibackend as mb


def build_flax(rngs):
    from flax import nnx

    return nnx.Sequential(
        nnx.Linear(2, 32, rngs=rngs),
        nnx.tanh,
        nnx.Linear(32, 1, rngs=rngs),
    )


experiment = mb.Experiment(
    model=mb.Model(jax=build_flax, inputs="x"),
    loss=mb.losses.MeanSquaredError(target="y"),
    optimizer=mb.optimizers.SGD(learning_rate=0.05, momentum=0.9),
    train_data={"x": x, "y": y},
    micro_batch_size=16,
    gradient_accumulation_steps=2,
    max_grad_norm=1.0,
    shuffle=False,
)
trainer = mb.Trainer(experiment, backend="jax")
result = trainer.fit(epochs=5)
