"""Memory: what a micro-batch needs, the largest that fits, and what happens where there is none left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from multibackend_jax.memory import is_out_of_memory as jax_ran_out
from multibackend_torch.memory import LiveBytes
from multibackend_torch.memory import is_out_of_memory as torch_ran_out
from support import block_models as blocks
from support import flax_models, torch_models

import multibackend as mb
from multibackend import events
from multibackend.errors import ConfigurationError, OutOfMemoryError
from multibackend.protocol import Execution
from multibackend.protocol.registry import load_backend
from multibackend.testing import assert_bit_identical, assert_raises, assert_snapshots_identical
from multibackend.testing.conformance.problems import columns, regression

WIDE, EXAMPLES = 48, 64
MLP = 3, WIDE, 2
MODEL = mb.Model(
    torch=functools.partial(torch_models.Mlp, *MLP), jax=functools.partial(flax_models.Mlp, *MLP), inputs="x"
)
BLOCKS = mb.Model(torch=blocks.TorchBlocks, jax=blocks.NnxBlocks, inputs="x")


def experiment(model: mb.Model = MODEL, **options: Any) -> mb.Experiment:
    defaults: dict[str, Any] = {"micro_batch_size": "auto", "precision": "float64"}
    return mb.Experiment(
        model=model,
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.Adam(learning_rate=0.01),
        train_data=regression(160),
        gradient_accumulation_steps=mb.EffectiveBatch(EXAMPLES),
        **{**defaults, **options},
    )


def needed(backend: str, size: int, model: mb.Model = MODEL, **options: Any) -> int:
    one = experiment(model, micro_batch_size=size, **options)
    native: Any = load_backend(backend)
    return native.memory_of(one, example=one.train_data.take(np.arange(size)), execution=Execution())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_memory_of_a_micro_batch(backend: str) -> None:
    """At least the state (parameters twice, two slots, one gradient) and what tanh keeps of each example."""
    parameters = 8 * sum(p.numel() for p in torch_models.Mlp(*MLP).parameters())
    small, large = needed(backend, 16), needed(backend, EXAMPLES)
    assert small > 5 * parameters
    kept = 8 * WIDE * 2
    slope = (large - small) / (EXAMPLES - 16)
    assert kept <= slope <= 4 * kept
    assert needed(backend, EXAMPLES, precision="float32") < 0.6 * large


def test_rematerialisation_counts() -> None:
    """What is recomputed is not counted as kept."""
    model = mb.Model(torch=functools.partial(blocks.TorchBlocks, 32, 6), inputs="x")
    assert needed("torch", EXAMPLES, model, rematerialize=True) < 0.75 * needed("torch", EXAMPLES, model)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_largest_that_fits(backend: str) -> None:
    """A budget of what 16 examples need, and a little more or less: 16, 16 and 8 of them, in at most 5 trials."""
    exact = needed(backend, 16)
    for budget, size in ((exact, 16), (exact + 100, 16), (exact - 100, 8)):
        heard: list[Any] = []
        trainer = mb.Trainer(experiment(memory_budget=budget), backend, callbacks=[heard.append])
        assert trainer.experiment.micro_batch_size == size
        assert trainer.micro_batch is not None
        assert len(trainer.micro_batch.trials) <= 5
        (event,) = [e for e in heard if isinstance(e, events.MicroBatchChosen)]
        assert (event.micro_batch_size, event.steps, event.limit) == (size, EXAMPLES // size, budget)
    error = lambda: mb.Trainer(experiment(memory_budget="10KB"), backend)  # noqa: E731
    assert_raises(ConfigurationError, error, "one example does not fit", "(10000 bytes)", "raise memory_budget")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_search_leaves_no_trace(backend: str) -> None:
    """With BatchNorm, which refuses the single example tried first, and dropout: the run is that of the number given by
    hand, bit for bit, and the process's random numbers are where they were.
    """
    chosen = needed(backend, 16, BLOCKS)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    automatic = mb.Trainer(experiment(BLOCKS, memory_budget=chosen), backend)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    given = mb.Trainer(experiment(BLOCKS, micro_batch_size=16), backend)
    assert automatic.experiment.micro_batch_size == 16
    assert_snapshots_identical(automatic.snapshot(), given.snapshot())
    histories = [columns(trainer.fit(updates=3)) for trainer in (automatic, given)]
    assert_bit_identical(histories[0], histories[1])
    assert_snapshots_identical(automatic.snapshot(), given.snapshot())


def test_compare_and_check() -> None:
    """Both backends get the smaller of the two sizes, and match; `check_accumulation` takes "auto" as well."""
    budget = needed("torch", 32)
    report = mb.compare(experiment(memory_budget=budget), updates=3)
    assert report.matches, report.first_divergence
    assert mb.check_accumulation(experiment(memory_budget=budget), "torch").micro_batch_size == 32


def test_live_bytes() -> None:
    """What is made counts until it is let go; views, and what was there before, do not count; autograd holds on."""
    outside = torch.zeros(1000)
    with LiveBytes() as live:
        made = outside + 1
        view = made[:10]
        assert (live.now, live.most) == (4000, 4000)
        other = made * 2
        del other
        assert (live.now, live.most) == (4000, 8000)
        del made
        assert live.now == 4000  # the view holds the storage
        del view
        assert live.now == 0
        source = torch.zeros(1000, requires_grad=True)
        result = source.exp().sum()  # exp keeps its result
        assert live.now == 4000 + 4000 + 4
        result.backward()
        assert live.now == 4000 + 4 + 4000  # the source, the sum, the gradient
    assert_raises(OutOfMemoryError, lambda: _fill(LiveBytes(limit=10_000)), "10000 bytes")


def _fill(live: LiveBytes) -> list[torch.Tensor]:
    with live:
        return [torch.zeros(1000) for _ in range(3)]


TORCH_TEXTS = (
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 5.31 GiB is "
        "free. Including non-PyTorch memory, this process has 73.83 GiB memory in use."
    ),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.99 GB, other allocations: 96.00 KB, max allowed: 18 GB)."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError(),
)
JAX_TEXTS = tuple(
    jax.errors.JaxRuntimeError(text)
    for text in (
        "RESOURCE_EXHAUSTED: Out of memory allocating 70368744177664 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.",
        "RESOURCE_EXHAUSTED: Failed to allocate request for 16.00GiB (17179869184B) on device ordinal 0",
        "INTERNAL: Failed to execute XLA Runtime executable: CUDA error: out of memory",
    )
)


@pytest.mark.parametrize(
    ("recognises", "errors"), [(torch_ran_out, TORCH_TEXTS), (jax_ran_out, JAX_TEXTS)], ids=["torch", "jax"]
)
def test_real_messages_are_recognised(
    recognises: Callable[[BaseException], bool], errors: tuple[Exception, ...]
) -> None:
    """The frameworks' own words; not those of other errors, nor the same words in somebody else's."""
    assert all(map(recognises, errors))
    others = (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: executable expected 3 arguments"),
    )
    assert not any(map(recognises, others))


def test_real_refusals_are_recognised() -> None:
    """Asking either framework for a petabyte."""
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**50)
    assert torch_ran_out(torch_error.value)
    with pytest.raises(RuntimeError) as jax_error:
        jnp.zeros(2**44).block_until_ready()
    assert jax_ran_out(jax_error.value)


@pytest.mark.parametrize("where", ["run", "read", "evaluate"])
@pytest.mark.parametrize(("backend", "error"), [("torch", TORCH_TEXTS[0]), ("jax", JAX_TEXTS[0])], ids=["torch", "jax"])
def test_running_out_in_the_middle(backend: str, error: Exception, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two updates the device refuses: a typed error with the size, the precision and the ways out."""
    trainer = mb.Trainer(experiment(micro_batch_size=16, eval_data=regression(20)), backend)
    trainer.fit(updates=2)

    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(trainer.program, where, refuse)
    run = trainer.evaluate if where == "evaluate" else lambda: trainer.fit(updates=4)
    mentions = ["precision='float64'", str(error)[:20]]
    if where == "evaluate":
        mentions += ["an evaluation batch of 16 examples", "eval_batch_size"]
    else:
        mentions += [
            "micro_batch_size=16",
            "example 8 with 2 times the steps",
            "rematerialize=True",
            'precision="float32"',
        ]
    raised = assert_raises(OutOfMemoryError, run, *mentions)
    assert raised.__cause__ is error
    assert (raised.micro_batch_size, raised.precision) == (16, "float64")


def test_a_kernel_that_refuses() -> None:
    """The framework's error comes out of the model itself, in the third micro-batch of a window."""
    calls = []

    class Refusing(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 4:  # one was for the shapes
                raise TORCH_TEXTS[0]
            return super().forward(x)

    model = mb.Model(torch=functools.partial(Refusing, 3, 2), inputs="x")
    trainer = mb.Trainer(experiment(model, micro_batch_size=16), "torch")
    assert_raises(OutOfMemoryError, lambda: trainer.fit(updates=1), "micro_batch_size=16")
