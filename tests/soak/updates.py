"""What a run takes of memory for each update that it makes: a tiny model, many updates.

    python -m soak.updates --backend jax --updates 1000000

Prints the bytes by which the process grew, for each update; with --trace those of Python's objects, and
the lines that made most of them. History has seven columns of eight bytes and room to grow.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tracemalloc
from pathlib import Path

from support.variants import SCAN, TORCH

from multibackend.optimizers import SGD
from multibackend.schedules import Cosine
from multibackend.testing.conformance.problems import START, regression

_WARM_UP = 2000
_LINES = 6


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    variant = {"torch": TORCH, "jax": SCAN}[options.backend]
    experiment = variant.experiment(
        regression(48),
        micro_batch_size=12,
        gradient_accumulation_steps=2,
        shuffle=True,
        optimizer=SGD(learning_rate=Cosine(peak=0.01, total=_WARM_UP + options.updates)),
    )
    trainer = variant.trainer(experiment, START, windows_per_dispatch=2)
    trainer.fit(updates=_WARM_UP)
    if options.trace:
        tracemalloc.start()
    before = _resident()
    trainer.fit(updates=_WARM_UP + options.updates)
    gc.collect()
    grown = (_resident() - before) / options.updates
    print(f"{options.backend}: {options.updates} updates, {grown:.1f} bytes of resident memory an update")
    if options.trace:
        traced, _ = tracemalloc.get_traced_memory()
        print(f"{traced / options.updates:.1f} bytes of Python's objects an update, most of them by")
        for line in tracemalloc.take_snapshot().statistics("lineno")[:_LINES]:
            print(f"  {line}")


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
