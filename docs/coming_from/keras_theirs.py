import os

os.environ["KERAS_BACKEND"] = "torch"  # before the import, for the whole process

import keras

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.layers.Input((2,)),
        keras.layers.Dense(32, activation="tanh"),
        keras.layers.Dense(1),
    ]
)
model.compile(
    optimizer=keras.optimizers.AdamW(
        learning_rate=1e-2,
        weight_decay=0.01,
        epsilon=1e-8,
    ),
    loss="mse",
)
start = model.get_weights()
history = model.fit(x, y, batch_size=32, epochs=5, shuffle=False, verbose=0)
losses = history.history["loss"]
