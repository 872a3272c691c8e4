import multibackend as mb


def build_torch():
    from torch import nn

    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))


experiment = mb.Experiment(
    model=mb.Model(torch=build_torch, inputs="x"),
    loss=mb.losses.MeanSquaredError(target="y"),
    optimizer=mb.optimizers.AdamW(learning_rate=1e-2, weight_decay=0.01),
    train_data={"x": x, "y": y},
    micro_batch_size=16,
    gradient_accumulation_steps=2,
    max_grad_norm=1.0,
    shuffle=False,
)
trainer = mb.Trainer(experiment, backend="torch")
result = trainer.fit(epochs=5)
