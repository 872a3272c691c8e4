"""What was run, as a report says it."""

import multibackend as mb
from multibackend.testing.conformance.problems import regression
from multibackend.training.settings import settings_of


def test_settings_are_words() -> None:
    """Options as one would write them: defaults are left out, functions have no address, nested ones are read too."""

    def square(xp, outputs, batch):
        return (outputs - batch["y"]) ** 2

    experiment = mb.Experiment(
        model=mb.Model(torch="nowhere:build", jax="nowhere:build", inputs="x"),
        loss=square,
        optimizer=mb.optimizers.SGD(learning_rate=mb.schedules.WarmupCosine(peak=0.1, warmup=2, total=9), momentum=0.5),
        train_data=regression(20),
        micro_batch_size=2,
        gradient_accumulation_steps=mb.EffectiveBatch(8),
        max_grad_norm=1.0,
        seed=7,
    )
    settings = settings_of(experiment, ("jax", "stub"))
    assert settings["optimizer"] == "SGD(learning_rate=WarmupCosine(peak=0.1, warmup=2, total=9), momentum=0.5)"
    assert settings["loss"].startswith("Custom(function=<function ")
    assert " at 0x" not in settings["loss"]
    assert settings["gradient clipping"] == "to a global norm of 1"
    assert settings["micro-batches per update"] == "EffectiveBatch(examples=8)"
    assert settings["training examples"] == "20"
    assert settings["seed"] == "7"
    assert settings["versions"].startswith("jax ")
    terms = experiment.replace(
        loss={"a": mb.losses.MeanSquaredError(target="y"), "b": mb.losses.MeanSquaredError(target="y")}
    )
    expected = "{'a': MeanSquaredError(target='y'), 'b': MeanSquaredError(target='y')}"
    assert settings_of(terms, ("jax",))["loss"] == expected
