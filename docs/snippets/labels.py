import numpy as np

import multibackend as mb

rng = np.random.default_rng(0)
points = rng.normal(size=(256, 2))
quadrant = 2 * (points[:, 0] > 0) + (points[:, 1] > 0)  # integer labels 0 ... 3
data = {"x": points, "label": quadrant.astype(np.int32)}
train_data = {name: array[:192] for name, array in data.items()}
eval_data = {name: array[192:] for name, array in data.items()}


def build_torch():
    from torch import nn

    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4))


experiment = mb.Experiment(
    name="quadrants",
    model=mb.Model(torch=build_torch, inputs="x"),
    loss=mb.losses.CrossEntropy(target="label"),
    optimizer=mb.optimizers.Adam(learning_rate=3e-2),
    train_data=train_data,
    eval_data=eval_data,
    micro_batch_size=16,
)
