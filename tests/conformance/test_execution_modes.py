"""How a window executes never shows in the result."""

import numpy as np
import pytest
from support.variants import DISPATCH, SCAN, TORCH, TORCH_COMPILED

from multibackend.optimizers import AdamW
from multibackend.schedules import Cosine
from multibackend.testing import Variant, assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance import WindowConformance
from multibackend.testing.conformance.problems import START, columns, regression
from multibackend.testing.tolerances import SAME_ARITHMETIC

ADAMW = AdamW(learning_rate=Cosine(peak=0.1, total=12))


def run(variant: Variant, precision: str, **options: object) -> dict[str, np.ndarray]:
    experiment = variant.experiment(
        regression(62), optimizer=ADAMW, gradient_accumulation_steps=4, shuffle=True, precision=precision
    )
    trainer = variant.trainer(experiment, START, **options)
    history = columns(trainer.fit(epochs=2))
    return {**history, **trainer.parameters()}


def test_jax_scan_and_dispatch() -> None:
    """One dispatch per micro-batch, per window and per three windows give one run, in float64 to the last digits."""
    expected = run(SCAN, "float64")
    for variant, windows in ((SCAN, 3), (DISPATCH, None)):
        assert_arrays_match(run(variant, "float64", windows_per_dispatch=windows), expected, relative=SAME_ARITHMETIC)


def test_torch_windows_per_dispatch() -> None:
    """In torch the order of operations does not depend on it at all: the same bits, in float32 too."""
    for precision in ("float64", "float32"):
        expected = run(TORCH, precision, windows_per_dispatch=1)
        for windows in (3, None):
            assert_bit_identical(run(TORCH, precision, windows_per_dispatch=windows), expected)


def test_many_windows_per_dispatch() -> None:
    """A dispatch may hold more windows than are ever left unread."""
    experiment = TORCH.experiment(regression(2100), micro_batch_size=3)
    few = TORCH.trainer(experiment, START, windows_per_dispatch=1)
    many = TORCH.trainer(experiment, START, windows_per_dispatch=600)
    few.fit(updates=1300)
    many.fit(updates=1300)
    assert_bit_identical(many.parameters(), few.parameters())


@pytest.mark.parametrize("variant", [TORCH, SCAN, DISPATCH], ids=str)
def test_a_window_larger_than_the_epoch(variant: Variant) -> None:
    """It is the epoch, whatever its size: the bits of one that has just as many micro-batches, and no compilation
    more."""
    runs = []
    for steps in (4, 10**18):
        experiment = variant.experiment(regression(11), gradient_accumulation_steps=steps)
        trainer = variant.trainer(experiment, START)
        history = columns(trainer.fit(updates=3))
        runs.append({**history, **trainer.parameters(), "compiled": np.array(trainer.program.compilations())})
    assert_bit_identical(runs[0], runs[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
def test_torch_compiled() -> None:
    """The compiled execution passes the window with a partial window and a ragged micro-batch."""
    WindowConformance().test_partial_window_and_ragged_micro_batch(TORCH_COMPILED)
