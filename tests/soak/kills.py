"""`python -m soak.kills`: processes that save in a loop, each killed (SIGKILL) at a random instant.

A child opens the run, looks for the newest checkpoint and goes on from there, saving in the background or not, pruning
as it goes; it tells each acknowledged save (`Handle.wait()` has returned) through a pipe. After each kill:

- the newest checkpoint is the last acknowledged one or a newer one, bit for bit what was saved;
- every checkpoint that is listed is whole: none is damaged, none half-removed;
- the next start has cleared away what was left half-written.

Exits with status 1 if one of them ever fails. The children are forks of this process, which imports no framework.
"""

from __future__ import annotations

import argparse
import collections
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from support.checkpoints import assert_same_contents

from multibackend.checkpoint import (
    CheckpointStore,
    Contents,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    verify,
)
from multibackend.checkpoint.disk import Disk
from multibackend.errors import CheckpointError

PHASES = ("between saves", "opening", "create", "write", "sync", "rename", "sync directory", "remove")
BASE = np.random.default_rng(0).normal(size=125_000)


class Shared:
    """What the child is doing, in memory that outlives it: one byte."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self, phase: str) -> None:
        self._memory[0] = PHASES.index(phase)

    def get(self) -> str:
        return PHASES[self._memory[0]]


class TellingDisk(Disk):
    """Says what it is about to do."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def create(self, path: Path) -> int:
        self._shared.set("create")
        return super().create(path)

    def write(self, descriptor: int, data: Any) -> None:
        self._shared.set("write")
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._shared.set("sync")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._shared.set("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._shared.set("sync directory")
        super().sync_directory(path)

    def remove_tree(self, path: Path) -> None:
        self._shared.set("remove")
        super().remove_tree(path)


def contents(update: int) -> Contents:
    """About 2 MB that depend on the update everywhere."""
    tensors = {"parameters": {"weight": BASE + update, "bias": BASE[:7] * update}, "optimizer": {"m": BASE - update}}
    return Contents(tensors, {"update": update, "text": str(update) * 5}, update)


def child(run_dir: Path, pipe: int, shared: Shared, background: bool) -> None:
    """Save for ever."""
    shared.set("opening")
    options: dict[str, Any] = {"keep_last": 2, "keep_best": 1, "best_metric": "loss", "keep_every": 50}
    store = CheckpointStore(run_dir, disk=TellingDisk(shared), **options)
    newest = store.newest()
    update = read_checkpoint(newest).update if newest is not None else 0
    handle = None
    while True:
        update += 1
        made = contents(update)
        if handle is not None:
            handle.wait()
            shared.set("between saves")
            os.write(pipe, b"%d\n" % (update - 1))
        handle = store.save(made, metric=1 / update, background=background)


def one_life(run_dir: Path, rng: random.Random, longest: float) -> tuple[int, str]:
    """(the last acknowledged update or 0, what the child was doing) of a child that lives for a random time."""
    shared, (reading, writing) = Shared(), os.pipe()
    background = rng.random() < 0.5
    process = os.fork()
    if process == 0:
        try:
            child(run_dir, writing, shared, background)
        except BaseException as error:  # told by the exit status, which is then no kill's
            os.write(2, f"the child ended: {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(rng.random() * longest)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child ended by itself")
    return (int(lines[-1]) if lines else 0), shared.get()


def leftovers(run_dir: Path) -> int:
    folder = run_dir / "checkpoints"
    return sum(entry.name.startswith(".") for entry in folder.iterdir()) if folder.is_dir() else 0


def examine(run_dir: Path, acknowledged: int) -> list[str]:
    """What is wrong after a kill, a word for each."""
    faults = []
    for path in list_checkpoints(run_dir):
        try:
            verify(path)
        except CheckpointError as error:
            faults.append(f"unreadable: {error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest = newest_checkpoint(run_dir)
    found = read_checkpoint(newest) if newest is not None else None
    if acknowledged > (found.update if found else 0):
        faults.append(f"lost: {acknowledged} was acknowledged, and the newest is {newest}")
    if found is not None:
        expected = contents(found.update)
        try:
            assert_same_contents(Contents(found.tensors, found.state, found.update), expected)
        except AssertionError:
            faults.append(f"wrong: {newest} is not what was saved")
    return faults


def run(run_dir: Path, kills: int, *, longest: float, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """(counts of what happened, faults)."""
    rng, counts, faults, acknowledged = random.Random(seed), collections.Counter[str](), [], 0
    for number in range(kills):
        last, phase = one_life(run_dir, rng, longest)
        acknowledged = max(acknowledged, last)
        counts["kills"] += 1
        counts["inside a save"] += phase not in ("between saves", "opening")
        counts[f"  in: {phase}"] += 1
        counts["left something half-written or half-removed"] += leftovers(run_dir) > 0
        faults += [f"kill {number}: {fault}" for fault in examine(run_dir, acknowledged)]
        if number % 10 == 0 or number == kills - 1:  # most starts are killed themselves before they have cleaned
            CheckpointStore(run_dir).close()
            faults += [f"kill {number}: leftovers stay after a start"] * (leftovers(run_dir) > 0)
    counts["acknowledged saves"] = acknowledged
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m soak.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--longest", type=float, default=0.15, help="seconds that a child lives at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = run(Path(folder) / "run", options.kills, longest=options.longest, seed=options.seed)
    for what, count in counts.items():
        print(f"{what:45} {count:6}")
    print(*faults, f"{len(faults)} faults, {time.perf_counter() - started:.0f} s", sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
