"""`python -m benchmarks.memory`: what rematerialisation saves and costs, for a small GPT of several depths.

JAX: temporary bytes of the compiled window, as XLA counts them, the accumulator among them. torch: the most bytes alive
at once during one micro-batch, forward and backward, beyond parameters and gradients; `saved_tensors_hooks` would miss
those of the second forward pass. Time is that of `Trainer.fit`, runs with and without taken in turns, the median of
each.

Exits with status 1 if rematerialisation does not save memory everywhere.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import multibackend as mb
from benchmarks.workloads import WORKLOADS

VOCABULARY, LENGTH, WIDTH, HEADS, MICRO_BATCH, STEPS = 200, 128, 128, 4, 8, 2


def main(arguments: list[str] | None = None) -> None:
    """Print a table; exit with status 1 if a figure grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--frameworks", nargs="+", choices=("torch", "jax"), default=["torch", "jax"])
    parser.add_argument("--updates", type=int, default=3, help="per timing")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    table, saved = Table("framework", "layers", "without, MiB", "with, MiB", "ratio", "time"), True
    for framework in options.frameworks:
        measured = {"torch": torch_live_bytes, "jax": jax_temporary_bytes}[framework]
        for layers in options.layers:
            pair = [experiment(framework, layers, rematerialize) for rematerialize in (False, True)]
            kept, less = (measured(one) for one in pair)
            slower = time_ratio(framework, *pair, updates=options.updates, rounds=options.rounds)
            saved &= less < kept
            row = (f"{kept / 2**20:.1f}", f"{less / 2**20:.1f}", f"{less / kept:.2f}", f"{slower:.2f}")
            table.add_row(framework, str(layers), *row)
    Console().print(table)
    sys.exit(0 if saved else 1)


def experiment(framework: str, layers: int, rematerialize: bool) -> mb.Experiment:
    """The GPT of the other benchmarks, `layers` deep."""
    shape = {"vocabulary": VOCABULARY, "length": LENGTH, "width": WIDTH, "layers": layers, "heads": HEADS}
    if framework == "torch":
        from benchmarks import torch_models as models
    else:
        from benchmarks import jax_models as models
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4 * MICRO_BATCH * STEPS, LENGTH + 1)).astype(np.int32)
    return mb.Experiment(
        name="gpt",
        model=mb.Model(inputs="x", **{framework: functools.partial(models._GPT, **shape)}),
        loss=mb.losses.CrossEntropy(target="y"),
        optimizer=WORKLOADS["gpt"].experiment(framework).optimizer,
        train_data={"x": tokens[:, :-1], "y": tokens[:, 1:]},
        micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=STEPS,
        rematerialize=rematerialize,
    )


def jax_temporary_bytes(experiment: mb.Experiment) -> int:
    """Of the compiled program that runs a window."""
    from multibackend_jax.memory import compiled_programs

    program: Any = mb.Trainer(experiment, "jax", windows_per_dispatch=1).program
    example = experiment.train_data.take(np.arange(experiment.micro_batch_size))
    return max(
        compiled.memory_analysis().temp_size_in_bytes
        for compiled, _ in compiled_programs(program, example, experiment.accumulation.steps(0))
    )


def torch_live_bytes(experiment: mb.Experiment) -> int:
    """The most bytes alive at once during one micro-batch, whose gradients have their place already."""
    import torch
    from multibackend_torch.memory import LiveBytes

    program: Any = mb.Trainer(experiment, "torch").program
    state = program.init()
    batch = program._put(experiment.train_data.take(np.arange(experiment.micro_batch_size)))
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        program._total(state.module, batch)[0].backward()
    return live.most


def time_ratio(
    framework: str, plain: mb.Experiment, rematerialised: mb.Experiment, *, updates: int, rounds: int
) -> float:
    """Seconds per update with rematerialisation by those without."""
    trainers = [mb.Trainer(one, framework) for one in (plain, rematerialised)]
    for trainer in trainers:
        trainer.fit(updates=updates, progress=False)  # compiles
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
        for trainer, taken in zip(trainers, seconds, strict=True):
            started = time.perf_counter()
            trainer.fit(updates=updates * (turn + 2), progress=False)
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


if __name__ == "__main__":
    main()
