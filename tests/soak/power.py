"""`python -m soak.power`: the power fails between any two steps of saving and pruning.

A kill leaves the page cache alone; power loss does not. The steps that saving asks of the file system are recorded, and
after each of them every state is considered that POSIX allows the disk to be in:

- bytes of a file written since its last fsync may be there, missing, cut off or zeros;
- names made, moved or removed in a directory since its last fsync may each have got there or not, in any combination;
  a rename is one step.

Where there are more than `--states` of them, so many are drawn at random, the two extremes among them. In each, every
checkpoint that is listed must be whole and as it was saved, the newest must be the last acknowledged one or newer, and
the next start must find a run that it can go on with. Exits with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.checkpoints import assert_same_contents, contents

from multibackend.checkpoint import CheckpointStore, list_checkpoints, read_checkpoint
from multibackend.checkpoint.disk import Disk
from multibackend.errors import CheckpointError


class RecordingDisk(Disk):
    """Does everything, and keeps a list of the steps, with paths relative to `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.steps = root, list[tuple[Any, ...]]()
        self._open: dict[int, str] = {}

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self.steps.append(("make", self._name(path), True))

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._open[descriptor] = self._name(path)
        self.steps.append(("make", self._name(path), False))
        return descriptor

    def write(self, descriptor: int, data: Any) -> None:
        super().write(descriptor, data)
        self.steps.append(("write", self._open[descriptor], bytes(data)))

    def sync(self, descriptor: int) -> None:
        self.steps.append(("sync", self._open[descriptor]))

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        del self._open[descriptor]

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.steps.append(("move", self._name(source), self._name(target)))

    def sync_directory(self, path: Path) -> None:
        self.steps.append(("sync", self._name(path)))

    def remove_tree(self, path: Path) -> None:
        for entry in sorted(path.iterdir()):
            self.steps.append(("remove", self._name(entry)))
        self.steps.append(("remove", self._name(path)))
        super().remove_tree(path)


class QuietDisk(Disk):
    """Real, without waiting for a device."""

    def sync(self, descriptor: int) -> None:
        pass


@dataclass(eq=False)
class Node:
    """A file or directory: what is on the device for certain, and what has been asked for since."""

    is_directory: bool
    names: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, Node]] = field(default_factory=list)  # (name gone, name made, what)
    data: bytes = b""
    written: bytes = b""

    def now(self) -> dict[str, Node]:
        """The names as the running system sees them."""
        return self.after(range(len(self.pending)))

    def after(self, chosen: Any) -> dict[str, Node]:
        """The names if those of the pending changes have got to the device."""
        names = dict(self.names)
        for index in chosen:
            gone, made, node = self.pending[index]
            if gone is not None:
                names.pop(gone, None)
            if made is not None:
                names[made] = node
        return names

    def sync(self) -> None:
        self.names, self.pending, self.data = self.now(), [], self.written


def apply(root: Node, step: tuple[Any, ...]) -> None:
    """A step of the running system."""

    def find(name: str) -> Node:
        node = root
        for part in Path(name).parts:
            node = node.now()[part]
        return node

    kind, name, *rest = step
    folder, last = find(str(Path(name).parent)), Path(name).name
    if kind == "make":
        folder.pending.append((None, last, Node(rest[0])))
    elif kind == "write":
        find(name).written += rest[0]
    elif kind == "sync":
        find(name).sync()
    elif kind == "move":
        folder.pending.append((last, Path(rest[0]).name, find(name)))
    elif kind == "remove":
        folder.pending.append((last, None, find(name)))


def nodes(root: Node) -> Iterator[Node]:
    """All that may still be there after a crash."""
    seen, rest = set[int](), [root]
    while rest:
        node = rest.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            rest += [*node.names.values(), *(node for _, _, node in node.pending)]


def crashes(root: Node, most: int, rng: random.Random) -> Iterator[dict[int, Any]]:
    """Choices for what has got to the device: indices of changes by directory, bytes by file."""
    options: list[tuple[int, list[Any]]] = []
    for node in nodes(root):
        if node.pending:
            count = len(node.pending)
            subsets = [[i for i in range(count) if mask >> i & 1] for mask in range(2**count)]
            options.append((id(node), subsets))
        if node.written != node.data:
            size = len(node.written)
            half = node.written[: size // 2]
            options.append((id(node), [node.data, half, half + bytes(size - len(half)), bytes(size), node.written]))
    total = 1
    for _, choices in options:
        total *= len(choices)
    if total <= most:
        for chosen in itertools.product(*(choices for _, choices in options)):
            yield dict(zip((key for key, _ in options), chosen, strict=True))
        return
    yield {key: choices[0] for key, choices in options}
    yield {key: choices[-1] for key, choices in options}
    for _ in range(most - 2):
        yield {key: rng.choice(choices) for key, choices in options}


def build(node: Node, chosen: dict[int, Any], path: Path) -> None:
    """The disk after the crash."""
    if not node.is_directory:
        path.write_bytes(chosen.get(id(node), node.data))
        return
    path.mkdir(exist_ok=True)
    for name, inner in node.after(chosen.get(id(node), ())).items():
        build(inner, chosen, path / name)


def record(root: Path, updates: int, disk: RecordingDisk) -> list[tuple[Any, ...]]:
    """The steps of opening a run, saving and pruning; ("acknowledged", update) where a save has returned.

    One place is saved twice, and the run goes back once.
    """
    with CheckpointStore(root / "a" / "run", keep_last=2, disk=disk) as store:
        for update in (*range(1, updates + 1), updates, updates - 1):
            store.save(contents(update, size=16), background=False)
            disk.steps.append(("acknowledged", store.list()[-1].name))
    return disk.steps


def fault(run_dir: Path, acknowledged: list[str]) -> str | None:
    """What is wrong with the disk after the crash, if anything is."""
    listed = list_checkpoints(run_dir)
    for path in listed:
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            return f"damaged: {error}"
        assert_same_contents(found, contents(found.update, size=16))
    if acknowledged:
        sequence = {name: age for age, name in enumerate(acknowledged)}
        # one that is not among the acknowledged is newer than all of them
        if not listed or sequence.get(listed[-1].name, len(acknowledged)) < len(acknowledged) - 1:
            return f"lost: {acknowledged[-1]} was acknowledged, and there are {[path.name for path in listed]}"
    with CheckpointStore(run_dir, disk=QuietDisk()) as store:
        if [path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]:
            return "leftovers stay after a start"
        return None if store.list() == listed else "the start changed the list"


def outcomes(folder: Path, *, updates: int, states: int, seed: int, disk: RecordingDisk | None = None) -> Iterator[str]:
    """For each state tried, what is wrong with it, or nothing."""
    folder.mkdir(exist_ok=True)
    disk = disk or RecordingDisk(folder / "recorded")
    disk.root.mkdir()
    steps = record(disk.root, updates, disk)
    rng, acknowledged, root = random.Random(seed), list[str](), Node(True)
    for number, step in enumerate(steps):
        if step[0] == "acknowledged":
            acknowledged.append(step[1])
        else:
            apply(root, step)
        for chosen in crashes(root, states, rng):
            shutil.rmtree(folder / "crashed", ignore_errors=True)
            build(root, chosen, folder / "crashed")
            found = fault(folder / "crashed" / "a" / "run", acknowledged)
            yield f"after step {number} of {len(steps)}, {step[:2]}: {found}" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m soak.power", description=__doc__)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--states", type=int, default=500, help="per step, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "power"
        found = list(outcomes(place, updates=options.updates, states=options.states, seed=options.seed))
    faults = [fault for fault in found if fault]
    print(*faults[:20], f"{len(found)} states, {len(faults)} faults, {time.perf_counter() - started:.0f} s", sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
