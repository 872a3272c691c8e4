"""Rematerialisation changes memory and time, never values."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from support import block_models as blocks
from support import flax_models, torch_models

import multibackend as mb
from multibackend.errors import ConfigurationError
from multibackend.testing import Variant, assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import columns, regression
from multibackend.testing.tolerances import SAME_ARITHMETIC

NNX = {"blocks": blocks.NnxBlocks, **flax_models.NNX}
LINEN = {"blocks": blocks.LinenBlocks, **flax_models.LINEN}
TORCH = Variant("torch", {"blocks": blocks.TorchBlocks, **torch_models.MODELS}, "eager")
SCAN = Variant("jax", NNX, "scan", windows_per_dispatch=1, label="nnx")
DISPATCH = Variant("jax", NNX, "dispatch", label="nnx")
SCAN_LINEN = Variant("jax", LINEN, "scan", windows_per_dispatch=2, label="linen")
SETUP_LINEN = Variant("jax", {"blocks": blocks.LinenSetup}, "dispatch", label="linen")
DATA = regression(29)


def run(variant: Variant, rule: Any, *, model: str = "blocks", **options: Any) -> dict[str, Any]:
    """All that six updates leave behind, partial window and ragged micro-batch included."""
    experiment = variant.experiment(
        DATA,
        model=model,
        eval_data=DATA,
        optimizer=mb.optimizers.AdamW(learning_rate=0.01),
        gradient_accumulation_steps=4,
        rematerialize=rule,
        shuffle=True,
        **options,
    )
    trainer = variant.trainer(experiment)
    history = columns(trainer.fit(updates=6))
    snapshot = trainer.snapshot()
    return {
        **history,
        "evaluation": trainer.evaluate()["loss"],
        "parameters": snapshot.parameters,
        "model_state": snapshot.model_state,
        "optimizer": snapshot.optimizer,
    }


@functools.cache
def plain(variant: str, model: str) -> dict[str, Any]:
    chosen = next(v for v in (TORCH, SCAN, DISPATCH, SCAN_LINEN, SETUP_LINEN) if str(v) == variant)
    return run(chosen, False, model=model)


@pytest.mark.parametrize(
    ("rule", "model"),
    [
        (True, "blocks"),
        ("*.down", "blocks"),
        (lambda path: path.endswith("0"), "blocks"),
        (True, "linear"),
        (True, "batch_norm"),
        (True, "dropout"),
    ],
)
def test_torch_is_bit_identical(rule: Any, model: str) -> None:
    """BatchNorm's statistics are updated once, dropout draws the same mask again: the same bits everywhere."""
    expected = plain(str(TORCH), model)
    assert_bit_identical(run(TORCH, rule, model=model), expected)
    if model == "blocks":
        assert expected["model_state"]["blocks.0.norm.num_batches_tracked"] == 20  # 2 epochs of 10 micro-batches


@pytest.mark.parametrize(
    ("variant", "rule", "model"),
    [
        (SCAN, True, "blocks"),
        (SCAN, True, "linear"),
        (DISPATCH, True, "blocks"),
        (SCAN_LINEN, True, "blocks"),
        (SCAN_LINEN, True, "dropout"),
        (SETUP_LINEN, "blocks_*", "blocks"),
    ],
    ids=str,
)
def test_jax_is_identical_but_for_fusion(variant: Variant, rule: Any, model: str) -> None:
    """The same random numbers and statistics; XLA may fuse a second forward pass otherwise, which moves last digits."""
    assert_arrays_match(run(variant, rule, model=model), plain(str(variant), model), relative=SAME_ARITHMETIC)


class Spectral(torch.nn.Module):
    """A layer whose output depends on a buffer that each forward pass changes, and which writes it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 2))
        self.register_buffer("calls", torch.zeros([], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.layer(x) + self.calls


def test_torch_buffers_that_decide_the_output() -> None:
    """The second forward pass starts from the buffers of the first, and leaves none of its own."""
    variant = Variant("torch", {"spectral": Spectral}, "eager")
    results = [run(variant, rule, model="spectral") for rule in (False, "layer", lambda path: path == "layer", True)]
    for other in results[1:]:
        assert_bit_identical(other, results[0])


def test_torch_runs_a_block_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more for each micro-batch, and not in evaluation."""
    calls = []
    forward = blocks.TorchBlock.forward
    monkeypatch.setattr(blocks.TorchBlock, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])

    class Blocks(blocks.TorchBlocks):
        pass

    counts = []
    for rule in (False, True):
        variant = Variant("torch", {"blocks": functools.partial(_fresh, Blocks)}, "eager")
        trainer = variant.trainer(variant.experiment(DATA, model="blocks", rematerialize=rule, eval_data=DATA))
        calls.clear()
        trainer.fit(updates=2)
        counts.append(len(calls))
        calls.clear()
        trainer.evaluate()
        counts.append(len(calls))
    assert counts == [4, 20, 8, 20]


def _fresh(kind: type[torch.nn.Module]) -> torch.nn.Module:
    """A model whose blocks have a class of their own: the patched method must not meet a class made earlier."""
    module = kind()
    own = type("OwnBlock", (blocks.TorchBlock,), {})
    for block in module.blocks:
        block.__class__ = own
    return module


@pytest.mark.parametrize("models", [NNX, LINEN], ids=["nnx", "linen"])
@pytest.mark.parametrize("execution", ["scan", "dispatch"])
def test_jax_needs_less_memory(models: dict[str, Any], execution: str) -> None:
    """Temporary memory of the compiled window shrinks, on CPU too."""
    from multibackend_jax.memory import compiled_programs  # noqa: PLC0415

    bytes_of = []
    builder = functools.partial(models["blocks"], width=32, depth=4)
    for rule in (False, True):
        variant = Variant("jax", {"blocks": builder}, execution, windows_per_dispatch=1)
        trainer = variant.trainer(
            variant.experiment(regression(64), model="blocks", micro_batch_size=64, rematerialize=rule)
        )
        example = trainer.experiment.train_data.take(np.arange(64))
        programs = compiled_programs(trainer.program, example, 1)
        bytes_of.append(next(iter(programs))[0].memory_analysis().temp_size_in_bytes)
    assert bytes_of[1] < 0.7 * bytes_of[0], bytes_of


@pytest.mark.parametrize("variant", [TORCH, SCAN, SCAN_LINEN], ids=str)
def test_a_pattern_that_matches_nothing(variant: Variant) -> None:
    """A typed error that shows a near name, when the trainer is made."""
    experiment = variant.experiment(DATA, model="blocks", rematerialize="haed")
    assert_raises(ConfigurationError, lambda: variant.trainer(experiment), "'haed'", "did you mean 'head'")


@pytest.mark.parametrize(
    ("rule", "mentions"),
    [
        (1, ("got 1",)),
        ("", ("empty pattern",)),
        ((), ("empty pattern",)),
        ((True,), ("got (True,)",)),
        (None, ("None",)),
    ],
)
def test_a_rule_that_is_none(rule: Any, mentions: tuple[str, ...]) -> None:
    """Told when the experiment is made."""
    assert_raises(
        ConfigurationError,
        lambda: TORCH.experiment(DATA, model="blocks", rematerialize=rule),
        "rematerialize",
        *mentions,
    )
