"""`python -m soak.headers`: a hundred thousand mutated manifests and headers, under digests that are right.

Bytes are replaced, dropped, doubled and moved, numbers made larger, names made paths. Each must give a checkpoint or a
`CheckpointError`, within the memory of its files and 64 MiB. Exits with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from support.forgery import DATA, forge, header, manifest, seal, sealed, tensor_file

from multibackend.checkpoint import read_checkpoint
from multibackend.errors import CheckpointError

GROUP = "parameters.safetensors"
PIECES = (
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b'"../x"',
    b'"/x"',
    b"[]",
    b"{}",
    b"null",
    b"true",
    b'"',
    b"\\u0000",
    b"[" * 99,
)
MOST_MEMORY = 64 * 2**20


def mutated(text: bytes, rng: random.Random) -> bytes:
    """One to four small changes."""
    found = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) or 1)
        end = place + rng.choice((1, 1, 1, 4, 20))
        kind = rng.randrange(5)
        if kind == 0:
            found[place:end] = bytes(rng.randrange(256) for _ in range(end - place))
        elif kind == 1:
            del found[place:end]
        elif kind == 2:
            found[place:place] = found[place:end]
        elif kind == 3:
            found[place:place] = rng.choice(PIECES)
        else:
            numbers = list(re.finditer(rb"\d+|\"[^\"]*\"", bytes(found)))
            if numbers:
                number = rng.choice(numbers)
                found[number.start() : number.end()] = rng.choice(PIECES)
    return bytes(found)


def run(folder: Path, count: int, *, seed: int) -> collections.Counter[str]:
    """What came of each mutation, counted; "fault: ..." is what must not be."""
    rng, counts = random.Random(seed), collections.Counter[str]()
    head = tensor_file(header(), b"")[8:]
    good = {GROUP: tensor_file(header())}
    body = seal(manifest(good))[:-58]
    tracemalloc.start()
    for number in range(count):
        if number % 2:
            path = forge(folder / "x", {GROUP: tensor_file(mutated(head, rng), DATA)})
        else:
            path = forge(folder / "x", good, sealed(mutated(body, rng)))
        tracemalloc.reset_peak()
        try:
            read_checkpoint(path)
            counts["read"] += 1
        except CheckpointError:
            counts["refused"] += 1
        except Exception as error:
            counts[f"fault: {error!r}"] += 1
        counts["fault: memory"] += tracemalloc.get_traced_memory()[1] > MOST_MEMORY
    tracemalloc.stop()
    counts["fault: outside"] += [path.name for path in folder.iterdir()] != ["x"]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m soak.headers", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options.count, seed=options.seed)
    faults = sum(count for what, count in counts.items() if what.startswith("fault"))
    print(*(f"{what:20} {count}" for what, count in counts.items()), sep="\n")
    print(f"{options.count} mutations, {faults} faults, {time.perf_counter() - started:.0f} s")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
