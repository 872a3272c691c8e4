"""Runs that are saved, stopped and gone on with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from multibackend.errors import CapabilityError
from multibackend.optimizers import SGD
from multibackend.protocol import Interruptible
from multibackend.testing.assertions import assert_bit_identical, assert_raises, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, columns, regression
from multibackend.testing.variant import Variant
from multibackend.training.trainer import Trainer

__all__ = ["ResumeConformance"]

MOMENTUM = SGD(learning_rate=lambda update: 0.1 / (1 + update), momentum=0.9)
DATA = regression(29)
# three micro-batches of 3 examples: windows of 3, 3, 3 and a ragged 1
OPTIONS: dict[str, Any] = {"gradient_accumulation_steps": 3, "optimizer": MOMENTUM}


class ResumeConformance:
    """A run that stops and goes on has the bits of one that did not. Needs "linear"."""

    def test_saved_run_goes_on(self, variant: Variant) -> None:
        """Saved inside an epoch and taken up by another trainer: state and history, bit for bit."""
        experiment = variant.experiment(DATA, shuffle=True, ema_decay=0.9, **OPTIONS)
        straight = variant.trainer(experiment, START)
        expected = straight.fit(updates=9)
        first = variant.trainer(experiment, START)
        first.fit(updates=5)  # an epoch has four windows
        how = {"execution": variant.execution, "windows_per_dispatch": variant.windows_per_dispatch}
        with tempfile.TemporaryDirectory() as folder:
            path = first.save(Path(folder) / "saved")
            second = Trainer.resume(path, experiment, variant.backend, **how)
        result = second.fit(updates=9)
        assert_snapshots_identical(second.snapshot(), straight.snapshot())
        assert_bit_identical(columns(result), columns(expected), what="history")

    def test_stopping_inside_windows(self, variant: Variant) -> None:
        """Stopped after every micro-batch, also before a ragged one, a run has the same bits.

        A backend that is not `Interruptible` says so instead.
        """
        experiment = variant.experiment(DATA, max_grad_norm=1.0, **OPTIONS)
        straight = variant.trainer(experiment, START)
        cut = variant.trainer(experiment, START)
        if not isinstance(cut.program, Interruptible):
            assert_raises(CapabilityError, lambda: cut.fit(micro_batches=1), "middle of a window")
            return
        expected = straight.fit(epochs=2)
        for micro_batches in range(1, 20):  # an epoch has ten, the last of them ragged
            cut.fit(micro_batches=micro_batches)
        result = cut.fit(epochs=2)
        assert_snapshots_identical(cut.snapshot(), straight.snapshot())
        assert_bit_identical(columns(result), columns(expected), what="history")
