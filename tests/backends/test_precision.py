"""Mixed precision: what is kept stays in float32, the frameworks agree, and fp16's loss scale follows one rule."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from multibackend_jax.step.window import DeviceLossScale
from support.variants import ALL, QUICK, STUB, Variant
from test_examples import load

import multibackend as mb
from multibackend.core.precision import LossScale
from multibackend.errors import CapabilityError
from multibackend.parity.tolerances import tolerance_for
from multibackend.testing import assert_arrays_match
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.tolerances import ONE_WINDOW_FLOAT32

LOW = ("bf16", "fp16")
variants = pytest.mark.parametrize("variant", [v for v in ALL if v.execution != "compiled"], ids=str)


class TorchSlope(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))


class FlaxSlope(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.zeros(1))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_512_unit_gradients_sum_to_512(backend: str, precision: str) -> None:
    """The accumulator is float32: in bf16 the sum would stop at 256, and in fp16 at 2048."""
    times = {"bf16": 1, "fp16": 8}[precision]
    model = mb.Model(
        torch=TorchSlope,
        jax=FlaxSlope,
        call={"torch": lambda model, batch, train: batch["x"] * model.w, "jax": lambda m, b, t: b["x"] * m.w[...]},
    )
    experiment = mb.Experiment(
        model=model,
        loss=mb.losses.Custom(lambda xp, outputs, batch: (outputs, batch["share"])),
        optimizer=mb.optimizers.SGD(learning_rate=1.0),
        train_data={"x": np.ones((512 * times, 1)), "share": np.full(512 * times, 1 / (512 * times))},
        micro_batch_size=1,
        gradient_accumulation_steps=512 * times,
        precision=precision,
    )
    trainer = mb.Trainer(experiment, backend)
    history = trainer.fit(updates=1).history
    assert_arrays_match(trainer.parameters()["w"], np.array([-1.0]), relative=ONE_WINDOW_FLOAT32)
    assert_arrays_match(history["weight"], np.array([1.0]), relative=ONE_WINDOW_FLOAT32)


def small_gpt() -> mb.Experiment:
    return load("char_gpt").experiment(sequence_length=16, width=32, heads=2, micro_batch_size=8, updates=100)


@functools.cache
def losses_in_float32() -> np.ndarray:
    return mb.Trainer(small_gpt(), "torch").fit(updates=100).history["loss"]


@pytest.mark.parametrize("precision", LOW)
def test_losses_of_a_small_gpt_stay_together(precision: str) -> None:
    """Within 2 % of each other and of float32, for 100 updates from the same parameters: torch's, of one seed."""
    report = mb.compare(small_gpt(), updates=100, precision=precision, executions=QUICK)
    assert report.matches, report.first_divergence
    assert report.tolerance.loss == 0.02
    expected = losses_in_float32()
    actual = report.histories[0]["loss"]
    assert np.abs(actual / expected - 1).max() < 0.02
    assert not np.array_equal(actual, expected), "nothing was computed in low precision"


@pytest.mark.parametrize("precision", LOW)
@variants
def test_what_is_kept_is_float32(variant: Variant, precision: str) -> None:
    """Parameters, optimizer slots and model state; the model computes in the low format, so losses are rounded."""
    adam = mb.optimizers.Adam(learning_rate=0.01)
    experiment = variant.experiment(regression(12), model="batch_norm", optimizer=adam, precision=precision)
    trainer = variant.trainer(experiment)
    trainer.fit(updates=3)
    state = trainer.snapshot()
    arrays: list[Mapping[str, np.ndarray]] = [state.parameters, state.model_state, *state.optimizer.values()]
    assert {a.dtype for part in arrays for a in part.values() if a.dtype.kind == "f"} == {np.dtype("float32")}
    assert set(trainer.evaluate(regression(7))) == {"loss"}


@variants
def test_the_scale_grows_and_survives_a_snapshot(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """It doubles after `interval` updates, and crosses with the state."""
    monkeypatch.setattr(LossScale, "interval", 3)
    experiment = variant.experiment(regression(24), precision="fp16")
    first, second = variant.trainer(experiment, START), variant.trainer(experiment, START)
    # 2^16 and 2^15 overflow, three updates at 2^14, then 2^15 and 2^14 overflow, on every backend
    assert [skipped.update for skipped in first.fit(updates=5).skipped] == [1, 1, 4, 4]
    assert first.snapshot().loss_scale == LossScale(2.0**13, 2)
    second.restore(first.snapshot())
    second.fit(updates=6)
    assert second.snapshot().loss_scale == LossScale(2.0**14, 0)


def test_the_rule_on_the_device_is_the_rule_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "interval", 4)
    random = np.random.default_rng(0)
    host, device = LossScale(), DeviceLossScale.of(LossScale())
    for _ in range(200):
        overflow, applied = random.choice([(True, False), (False, True), (False, True), (False, False)])
        host = host.after(overflow=bool(overflow)) if overflow or applied else host
        device = device.after(overflow=jnp.asarray(overflow), applied=jnp.asarray(applied))
        assert (float(device.scale), int(device.updates)) == (host.scale, host.updates)


def test_the_scale_has_bounds() -> None:
    assert LossScale(1.0).after(overflow=True).scale == 1.0
    assert LossScale(LossScale.largest, LossScale.interval - 1).after(overflow=False).scale == LossScale.largest


def test_a_backend_without_mixed_precision_says_so() -> None:
    with pytest.raises(CapabilityError, match="bf16"):
        STUB.trainer(STUB.experiment(regression(6), precision="bf16"))


def test_mixed_tolerances_say_why() -> None:
    for precision in LOW:
        assert tolerance_for(precision).loss == 0.02
        assert "softmax" in tolerance_for(precision).reason
