"""The moving average of the parameters on both backends: the formula over many updates, and across frameworks."""

from pathlib import Path

import numpy as np
import pytest
from support.variants import DISPATCH, SCAN, SCAN_MANY, TORCH

import multibackend as mb
from multibackend.errors import CapabilityError, ConfigurationError
from multibackend.testing import Variant, assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.tolerances import FEW_UPDATES_FLOAT32, FORMULA, ONE_WINDOW, tolerance_for
from multibackend.weights.files import load_weights, save_weights

ADAMW = mb.optimizers.AdamW(learning_rate=mb.schedules.WarmupCosine(peak=0.05, warmup=10, total=120))


@pytest.mark.parametrize("variant", [TORCH, SCAN_MANY, DISPATCH], ids=str)
@pytest.mark.parametrize("warmup", [False, True])
def test_formula_over_a_hundred_updates(warmup: bool, variant: Variant) -> None:
    """From the parameters after each of 100 updates, as the backend itself reports them, to the last digits."""
    experiment = variant.experiment(
        regression(62), optimizer=ADAMW, gradient_accumulation_steps=4, ema_decay=0.95, ema_warmup=warmup
    )
    trainer, expected = variant.trainer(experiment, START), dict(START)
    for made in range(100):
        trainer.fit(updates=made + 1)
        d = min(0.95, (1 + made) / (10 + made)) if warmup else 0.95
        expected = {name: d * expected[name] + (1 - d) * p for name, p in trainer.parameters().items()}
    assert_arrays_match(trainer.ema_parameters(), expected, relative=FORMULA, what="the average")


@pytest.mark.parametrize(("precision", "bound"), [("float64", None), ("float32", FEW_UPDATES_FLOAT32)])
def test_backends_agree_and_snapshots_cross(precision: str, bound: float | None) -> None:
    """44 updates on one backend and 44 more on the other end in the average of 88 on either, in each direction."""
    bound = tolerance_for("float64").parameters if bound is None else bound
    options = {"optimizer": ADAMW, "gradient_accumulation_steps": 2, "ema_decay": 0.98, "precision": precision}

    def fresh(variant: Variant) -> mb.Trainer:
        return variant.trainer(variant.experiment(regression(62), **options), START)

    whole = {str(variant): fresh(variant) for variant in (TORCH, SCAN)}
    for trainer in whole.values():
        trainer.fit(updates=88)
    one, other = (trainer.ema_parameters() for trainer in whole.values())
    assert_arrays_match(other, one, relative=bound, what="averages")
    for first, second in ((TORCH, SCAN), (SCAN, TORCH)):
        begun, ended = fresh(first), fresh(second)
        begun.fit(epochs=4)  # 44 updates, and the other begins at the start of an epoch too
        ended.restore(begun.snapshot())
        ended.fit(updates=88)
        expected = whole[str(second)].ema_parameters()
        assert_arrays_match(ended.ema_parameters(), expected, relative=bound, what=f"{first} to {second}")


@pytest.mark.parametrize("variant", [TORCH, SCAN], ids=str)
def test_batch_norm_statistics_are_those_of_the_training(variant: Variant) -> None:
    """Only parameters are averaged; the evaluation of the average uses the running statistics, and leaves them."""
    data = regression(29)
    experiment = variant.experiment(data, model="batch_norm", eval_data=data, ema_decay=0.9)
    trainer = variant.trainer(experiment)
    trainer.fit(updates=12)
    before = trainer.snapshot()
    loss = trainer.evaluate(ema=True)["loss"]
    assert_bit_identical(trainer.snapshot().model_state, before.model_state, what="statistics")
    e, s = trainer.ema_parameters(), before.model_state
    normed = (data["x"] - s["norm.running_mean"]) / np.sqrt(s["norm.running_var"] + 1e-5)
    outputs = (normed * e["norm.weight"] + e["norm.bias"]) @ e["head.weight"].T + e["head.bias"]
    assert_arrays_match(loss, float(((outputs - data["y"]) ** 2).mean()), relative=ONE_WINDOW, what="loss")
    assert loss != trainer.evaluate()["loss"]


@pytest.mark.parametrize("variant", [TORCH, SCAN], ids=str)
def test_nothing_is_kept_unless_asked_for(variant: Variant) -> None:
    """Without ema_decay the state and the snapshot hold no average, and what a snapshot brings is let go."""
    trainer = variant.trainer(variant.experiment(regression(12)), START)
    kept = variant.trainer(variant.experiment(regression(12), ema_decay=0.5), START)
    trainer.restore(kept.snapshot())
    trainer.fit(updates=2)
    assert trainer.snapshot().ema == {}
    assert trainer.state.program_state.ema == {}
    with pytest.raises(ConfigurationError, match="ema_decay="):
        trainer.ema_parameters()


def test_a_file_of_weights_begins_the_average_anew(tmp_path: Path) -> None:
    """Loaded weights are where the average starts, as the initial parameters are."""
    trainer = TORCH.trainer(TORCH.experiment(regression(12), ema_decay=0.5), START)
    save_weights(trainer.snapshot(), tmp_path / "weights.safetensors")
    trainer.fit(updates=3)
    load_weights(trainer, tmp_path / "weights.safetensors")
    assert_bit_identical(trainer.ema_parameters(), dict(START), what="the average")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay must be a finite number >= 0.0 and < 1.0, got 1.0"),
        ({"ema_decay": -0.1}, "got -0.1"),
        ({"ema_decay": "0.9"}, "got '0.9'"),
        ({"ema_warmup": True}, "ema_warmup=True needs ema_decay"),
        ({"ema_decay": 0.9, "ema_warmup": 1}, "ema_warmup must be True or False"),
    ],
)
def test_arguments(options: dict, words: str) -> None:
    """A decay outside [0, 1), or a warm-up of nothing, is refused at construction."""
    with pytest.raises(ConfigurationError, match=words.replace("(", "\\(")):
        TORCH.experiment(regression(12), **options)


def test_a_backend_without_averages_says_so() -> None:
    """A backend whose snapshots hold none, though the experiment asks for one, is named."""
    trainer = TORCH.trainer(TORCH.experiment(regression(12), ema_decay=0.5), START)
    trainer.state.program_state.ema = {}
    with pytest.raises(CapabilityError, match="'torch' keeps no moving average"):
        trainer.ema_parameters()
