"""`python -m benchmarks.checkpoints`: what saving and loading cost, beside plain safetensors and orbax.

1. 500 MB of parameters and moments, saved and loaded: the contenders take turns, and the medians are of all rounds.
   Files are in the page cache when they are loaded. "durable": the bytes and the names are on the device.
2. A training loop with and without a save in the background, in turns: what the save adds to the loop besides the copy
   that the snapshot is, as a share of one update. The model is as large as what is saved.

On a machine that others use, `--quiet SECONDS` waits for a quiet moment before each round, and leaves out rounds during
which other processes took more than 15 % of the processors.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from multibackend.checkpoint import CheckpointStore, Contents, read_checkpoint, verify, write_checkpoint

MOST_DISTURBED = 0.15  # of all processors, taken by others during a round that counts
GROUPS = ("parameters", "exp_avg", "exp_avg_sq")
TENSORS = 10
_DISTRIBUTIONS = ("multibackend", "numpy", "safetensors", "xxhash", "orbax-checkpoint", "jax", "torch")


def main(arguments: list[str] | None = None) -> None:
    """Measure both, print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quiet", type=float, default=0, help="seconds to wait for quiet moments, altogether")
    parser.add_argument("--folder", type=Path, help="where to write; default the system's temporary directory")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args(arguments)
    console, loads, quiet = Console(width=120), [os.getloadavg()[0]], Quiet(options.quiet)
    side = max(64, int((options.megabytes * 1e6 / 4 / len(GROUPS) / TENSORS) ** 0.5) // 16 * 16)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speeds = measure_speeds(Path(folder), side, options.rounds, quiet)
        loads.append(os.getloadavg()[0])
        background = measure_background(Path(folder), side, options.rounds, quiet)
    loads.append(os.getloadavg()[0])
    megabytes = len(GROUPS) * TENSORS * side * side * 4 / 1e6
    console.print(speed_table(speeds, megabytes))
    console.print(background_table(background))
    console.print(f"load average before, between and after: {', '.join(f'{load:.1f}' for load in loads)}")
    if options.json is not None:
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.system(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": loads,
            "versions": {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
            "rounds": options.rounds,
            "megabytes": megabytes,
            "seconds": speeds,
            "background": background,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


class Quiet:
    """Says how much of the machine others take, and waits for moments when that is little."""

    def __init__(self, patience: float) -> None:
        self.on, self._until = patience > 0, time.monotonic() + patience
        self._since = self._now()

    def wait(self) -> None:
        """Until others take little for a second, or patience is at an end."""
        while self.on and time.monotonic() < self._until:
            self._since = self._now()
            time.sleep(1)
            if self.disturbed() < MOST_DISTURBED / 2:
                break
        self._since = self._now()

    def disturbed(self) -> float:
        """The share of all processors that others took since `wait`."""
        now = self._now()
        total, others = (after - before for after, before in zip(now, self._since, strict=True))
        return others / max(total, 1e-9)

    def counts(self) -> bool:
        """Whether what was measured since `wait` counts."""
        return not self.on or time.monotonic() > self._until or self.disturbed() < MOST_DISTURBED

    def _now(self) -> tuple[float, float]:
        """Seconds of all processors, and those that others took of them."""
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        per_second, idle = os.sysconf("SC_CLK_TCK"), ticks[3] + ticks[4]
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second - time.process_time()


def measure_speeds(folder: Path, side: int, rounds: int, quiet: Quiet) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by what is done and by contender."""
    rng = np.random.default_rng(0)
    state = {
        group: {f"layers.{n}.weight": rng.random((side, side), np.float32) for n in range(TENSORS)} for group in GROUPS
    }
    saves: dict[str, Callable[[Path], object]] = {
        "multibackend, durable, digests": lambda path: write_checkpoint(path, Contents(state, {}, update=1)),
        "safetensors + fsync": lambda path: _save_safetensors(path, state, durable=True),
        "safetensors, not durable": lambda path: _save_safetensors(path, state, durable=False),
        "orbax": lambda path: _orbax().save(path, state),
    }
    loads: dict[str, tuple[str, Callable[[Path], object]]] = {
        "multibackend, every byte verified": ("multibackend, durable, digests", read_checkpoint),
        "multibackend, verify only": ("multibackend, durable, digests", verify),
        "safetensors": ("safetensors + fsync", lambda path: [load_file(file) for file in sorted(path.iterdir())]),
        "orbax": ("orbax", lambda path: _orbax().restore(path)),
    }
    seconds: dict[str, dict[str, list[float]]] = {
        "save": {name: [] for name in saves},
        "load": {name: [] for name in loads},
    }
    for turn in range(rounds + 1):  # the first one warms up
        for name, save in _rotated(saves, turn):
            path = folder / name.replace(" ", "-")

            def act(save: Any = save, path: Path = path) -> float:
                shutil.rmtree(path, ignore_errors=True)
                os.sync()  # so that nobody waits for the bytes of the one before
                return _timed(lambda: save(path))

            seconds["save"][name].append(_quietly(act, quiet))
        for name, (written, load) in _rotated(loads, turn):
            path = folder / written.replace(" ", "-")
            taken = _quietly(lambda load=load, path=path: _timed(lambda: load(path)), quiet)
            seconds["load"][name].append(taken)
    for path in folder.iterdir():
        shutil.rmtree(path)
    return {kind: {name: values[1:] for name, values in found.items()} for kind, found in seconds.items()}


class Loop:
    """A training loop in torch over an MLP as large as the parameters that are saved."""

    def __init__(self, side: int) -> None:
        import torch

        torch.set_num_threads(1)  # the writer needs a core, as it would beside an accelerator
        self.model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(TENSORS)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randn(64, side)
        self.update()
        self.buffers = {group: {n: a.copy() for n, a in inner.items()} for group, inner in self._arrays().items()}

    def update(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()

    def snapshot(self) -> float:
        """Copy everything into the buffers; seconds."""
        started = time.perf_counter()
        for group, inner in self._arrays().items():
            for name, array in inner.items():
                np.copyto(self.buffers[group][name], array)
        return time.perf_counter() - started

    def run(self, updates: int, *, copy: bool, store: CheckpointStore | None, number: int = 0) -> dict[str, float]:
        """Seconds (and those on a processor) of some updates; after the first a snapshot is taken, and saved."""
        gc.collect()
        os.sync()
        handle, found, saving = None, {"copy": 0.0, "save": 0.0}, 0.0
        started, worked = time.perf_counter(), time.thread_time()
        for index in range(updates):
            if index == 1 and copy:
                found["copy"] = self.snapshot()
            if index == 1 and store is not None:
                saving = time.perf_counter()
                handle = store.save(Contents(self.buffers, {}, update=number))
            self.update()
            if handle is not None and handle.done and not found["save"]:
                found["save"] = time.perf_counter() - saving  # to within an update
        found |= {"seconds": time.perf_counter() - started, "processor": time.thread_time() - worked}
        if handle is not None and not found["save"]:
            handle.wait()
            found["save"] = time.perf_counter() - saving
        return found

    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        found: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
        for name, parameter in self.model.named_parameters():
            slots = self.optimizer.state[parameter]
            for group, tensor in zip(GROUPS, (parameter, slots["exp_avg"], slots["exp_avg_sq"]), strict=True):
                found[group][name] = tensor.detach().numpy()
        return found


def measure_background(folder: Path, side: int, rounds: int, quiet: Quiet, updates: int = 5) -> dict[str, Any]:
    """The loop with a snapshot alone, and with a snapshot that is saved meanwhile, in turns."""
    loop = Loop(side)
    copied: list[dict[str, float]] = []
    saved: list[dict[str, float]] = []
    with CheckpointStore(folder / "run", keep_last=1) as store:
        turn = 0
        while len(saved) < rounds + 1:
            turn += 1
            found: dict[bool, dict[str, float]] = {}
            quiet.wait()
            for saving in (turn % 2 == 0, turn % 2 == 1):
                found[saving] = loop.run(updates, copy=True, store=store if saving else None, number=turn)
            if turn == 1 or quiet.counts():
                copied.append(found[False])
                saved.append(found[True])
    copied, saved = copied[1:], saved[1:]  # the first one warms up

    def extra(what: str) -> list[float]:
        return [with_it[what] - without[what] for with_it, without in zip(saved, copied, strict=True)]

    one = statistics.median((found["seconds"] - found["copy"]) / updates for found in copied)
    save = statistics.median(found["save"] for found in saved)
    return {
        "updates": updates,
        "seconds_per_update": one,
        "seconds_of_the_copy": statistics.median(found["copy"] for found in copied),
        "seconds_of_the_save": save,
        "extra_seconds": extra("seconds"),
        "extra_processor_seconds": extra("processor"),
        "extra_share_of_an_update": statistics.median(extra("seconds")) / one,
        "extra_share_while_saving": statistics.median(extra("seconds")) / save,
    }


def speed_table(speeds: dict[str, dict[str, list[float]]], megabytes: float) -> Table:
    table = Table(title=f"{megabytes:.0f} MB in {len(GROUPS) * TENSORS} tensors, medians of interleaved rounds")
    for heading in ("", "contender"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seconds", "min … max", "GB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, contenders in speeds.items():
        for index, (name, seconds) in enumerate(contenders.items()):
            middle = statistics.median(seconds)
            spread = f"{min(seconds):.2f} … {max(seconds):.2f}"
            table.add_row("" if index else kind, name, f"{middle:.3f}", spread, f"{megabytes / 1e3 / middle:.2f}")
        table.add_section()
    return table


def background_table(found: dict[str, Any]) -> Table:
    table = Table("a save in the background", "", title="a training loop, one thread of torch, medians")
    extra = statistics.median(found["extra_seconds"])
    for what, value in (
        ("an update", f"{found['seconds_per_update']:.3f} s"),
        ("the snapshot's copy", f"{found['seconds_of_the_copy']:.3f} s"),
        ("the save, to the device", f"{found['seconds_of_the_save']:.2f} s"),
        ("added to the loop besides the copy", f"{extra:+.3f} s"),
        ("of that, on a processor", f"{statistics.median(found['extra_processor_seconds']):+.3f} s"),
        ("the same as a share of one update", f"{found['extra_share_of_an_update']:+.1%}"),
        ("the same as a share of the time of the save", f"{found['extra_share_while_saving']:+.1%}"),
    ):
        table.add_row(what, value)
    return table


def _rotated(contenders: dict[str, Any], turn: int) -> list[tuple[str, Any]]:
    items = list(contenders.items())
    shift = turn % len(items)
    return items[shift:] + items[:shift]


def _quietly(act: Callable[[], float], quiet: Quiet) -> float:
    """Again until nobody has disturbed it."""
    while True:
        quiet.wait()
        seconds = act()
        if quiet.counts():
            return seconds


def _timed(act: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    kept = act()
    seconds = time.perf_counter() - started
    del kept
    return seconds


def _save_safetensors(path: Path, state: dict[str, dict[str, np.ndarray]], *, durable: bool) -> None:
    path.mkdir()
    for group, arrays in state.items():
        file = path / f"{group}.safetensors"
        save_file(arrays, file)
        if durable:
            _sync(file)
    if durable:
        _sync(path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.PyTreeCheckpointer()


if __name__ == "__main__":
    main()
