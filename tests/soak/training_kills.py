"""SIGKILL during training, again and again: the finished run must be the one that was never killed.

    cd tests && python -m soak.training_kills --kills 200            # each backend by itself: bit-identical
    cd tests && python -m soak.training_kills --kills 50 --change    # another backend after each kill: within 1e-12

A life is a forked child: this process has imported the frameworks and never runs them, so forking is safe and a life
begins in milliseconds. What a life is doing is told through shared memory, and read at the moment of the kill.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from support.resume_models import data, experiment

import multibackend as mb
from multibackend.checkpoint import list_checkpoints, newest_checkpoint, store
from multibackend.training.saving.restore import open_run

UPDATES = 120
STARTED, SAVING, PRUNING, INSIDE = range(4)
PHASES = ("starting or compiling", "saving", "pruning", "inside a window", "between windows")


@dataclass
class Tally:
    """What was killed, and what came of it."""

    phases: collections.Counter[str] = field(default_factory=collections.Counter)
    kills: int = 0
    runs: int = 0
    lost: int = 0
    worst: float = 0.0


def given() -> mb.Experiment:
    """BatchNorm, portable dropout, AdamW, warm-up-cosine, clipping, an average; epochs of 13 micro-batches."""
    return experiment(train_data=data(examples=50))


def train(backend: str, run_dir: Path | None, memory: mmap.mmap | None, updates: int = UPDATES) -> mb.Trainer:
    """One life: go on from what is there, to the end."""
    rules = mb.Checkpointing(every_micro_batches=5, every_seconds=None, keep_last=2, keep_every=20)
    if memory is not None:
        _instrument(memory)
    resume = "auto" if run_dir is not None else "never"
    trainer = mb.Trainer(given(), backend, run_dir=run_dir, checkpointing=rules, resume=resume, windows_per_dispatch=1)
    if memory is not None:
        _tell_inside(trainer, memory)
    trainer.fit(updates=updates)
    return trainer


def _instrument(memory: mmap.mmap) -> None:
    """Let the store tell when it writes and when it prunes."""

    def told(function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            memory[place] = 1
            try:
                return function(*arguments, **named)
            finally:
                memory[place] = 0
                memory[STARTED] = 1

        return call

    store.write_checkpoint = told(store.write_checkpoint, SAVING)
    store.remove_checkpoint = told(store.remove_checkpoint, PRUNING)


def _tell_inside(trainer: mb.Trainer, memory: mmap.mmap) -> None:
    run_next = trainer._run.loop.run_next

    def told(goal: Any) -> None:
        run_next(goal)
        memory[INSIDE] = trainer.state.begun is not None

    trainer._run.loop.run_next = told


def forked(work: Callable[[], None]) -> int:
    """The process that does some work and ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def reference(backend: str, folder: Path) -> dict[str, Any]:
    """The end of a run that was never stopped."""
    path = folder / f"straight-{backend}"
    child = forked(lambda: train(backend, None, None).save(path) and None)
    assert os.waitpid(child, 0)[1] == 0
    return whole(path)


def whole(path: Path) -> dict[str, Any]:
    """Every array of a run's state, by name."""
    run = open_run(path)
    snapshot = run.snapshot
    found = {**snapshot.parameters, **{f"state/{n}": a for n, a in snapshot.model_state.items()}}
    found |= {f"ema/{name}": array for name, array in snapshot.ema.items()}
    found |= {f"{slot}/{name}": array for slot, arrays in snapshot.optimizer.items() for name, array in arrays.items()}
    return found | {f"history/{name}": array for name, array in run.history.arrays().items()}


def begin(backend: str, run_dir: Path) -> None:
    """The run's first checkpoint, of update 0: initial parameters are those of one backend, whoever goes on."""
    child = forked(lambda: train(backend, run_dir, None, updates=0) and None)
    assert os.waitpid(child, 0)[1] == 0


def one_run(backends: Iterator[str], run_dir: Path, tally: Tally, most: int, ends: float) -> None:
    """Lives until the run is finished; all but the last are killed, unless there were enough kills, or it is late."""
    memory, acknowledged = mmap.mmap(-1, 8), None
    while True:
        memory[:4] = b"\0\0\0\0"
        backend = next(backends)
        child = forked(lambda backend=backend: train(backend, run_dir, memory) and None)
        spared = tally.kills >= most or time.monotonic() > ends
        if not spared and _kill(child, memory, tally):
            newest = newest_checkpoint(run_dir)
            if acknowledged is not None and (newest is None or newest.name < acknowledged):
                tally.lost += 1
                print(f"LOST: {acknowledged} was there, now {newest}")
            acknowledged = None if newest is None else newest.name
            continue
        ended = os.waitpid(child, 0)[1] if spared else 0
        assert ended == 0, f"a life on {backend} failed"
        break
    tally.runs += 1


def _kill(child: int, memory: mmap.mmap, tally: Tally) -> bool:
    """Kill a life at a random moment, most often soon after its first save, so that the run gets on.

    False if it was over before, and then it must have ended well.
    """
    early = random.random() < 0.2
    waited, deadline = 0.0, random.uniform(0.0, 2.0 if early else 0.2)
    began = time.monotonic()
    while waited < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "a life failed"
            return False
        time.sleep(0.001)
        waited = time.monotonic() - began
        if not early and not memory[STARTED]:
            began = time.monotonic()
    flags = bytes(memory[:4])
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, "a life failed"
        return False
    tally.kills += 1
    if flags[SAVING]:
        phase = 1
    elif flags[PRUNING]:
        phase = 2
    elif not flags[STARTED]:
        phase = 0
    else:
        phase = 3 if flags[INSIDE] else 4
    tally.phases[PHASES[phase]] += 1
    return True


def difference(found: dict[str, Any], wanted: dict[str, Any], *, exact: bool) -> float:
    """The largest difference relative to the size of each array; of exact ones the bits count."""
    if exact:
        same = found.keys() == wanted.keys() and all(found[n].tobytes() == wanted[n].tobytes() for n in wanted)
        return 0.0 if same else float("inf")
    shared = [name for name in wanted if name in found and not name.endswith("num_batches_tracked")]
    assert len(shared) >= len(wanted) - 1
    return max(float(np.abs(found[n] - wanted[n]).max() / max(np.abs(wanted[n]).max(), 0.01)) for n in shared)


def soak(backends: tuple[str, ...], kills: int, seed: int, seconds: float) -> Tally:
    """Runs until there were so many kills, or for so long; with several backends each life takes the next one."""
    random.seed(seed)
    tally, folder = Tally(), Path(tempfile.mkdtemp(prefix="training-kills-"))
    # compiled programs are kept between lives, so that a life is not all compilation
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    ends = time.monotonic() + seconds
    try:
        wanted = reference(backends[0], folder)
        order = itertools.cycle(backends)
        while tally.kills < kills:
            run_dir = folder / f"run-{tally.runs}"
            begin(backends[0], run_dir)
            one_run(order, run_dir, tally, kills, ends)
            end = whole(list_checkpoints(run_dir)[-1])
            tally.worst = max(tally.worst, difference(end, wanted, exact=len(backends) == 1))
            leftovers = [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
            assert not leftovers, leftovers
            shutil.rmtree(run_dir)
            report(" / ".join(backends) + " so far", tally)
            if time.monotonic() > ends:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def report(name: str, tally: Tally) -> None:
    """What was found, in two lines."""
    phases = ", ".join(f"{tally.phases[phase]} {phase}" for phase in PHASES)
    print(f"{name}: {tally.kills} kills in {tally.runs} runs, {tally.lost} checkpoints lost")
    print(f"  {phases}; difference from the uninterrupted run {tally.worst:.3g}", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--backends", default="torch,jax")
    parser.add_argument("--change", action="store_true", help="another backend after each kill")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, and tell the counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names, bad = tuple(options.backends.split(",")), False
    for group in [names] if options.change else [(name,) for name in names]:
        kills = options.kills // (1 if options.change else len(names))
        tally = soak(group, kills, options.seed, options.seconds)
        report(" / ".join(group), tally)
        bad |= tally.lost > 0 or tally.worst > (1e-12 if options.change else 0.0)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
