"""Small checkpoints for the tests; also what wrote `tests/golden/checkpoints/v1`.

`python tests/support/checkpoints.py DIRECTORY` writes that one. It was run once: a golden checkpoint is never renewed,
and a later version of the format gets one of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.checkpoint import Contents, write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints" / "v1"


def golden_contents() -> Contents:
    """Every type, empty and scalar tensors, NaN with its bits, a half-filled window, and every kind of JSON value."""
    kinds = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1")
    parameters = {"layers.0.weight": np.arange(12, dtype="f4").reshape(4, 3) / 7, "layers.0.bias": np.zeros(4, "f4")}
    odd = {f"kinds.{kind}": np.array([0, 1, 100], kind) for kind in kinds}
    odd |= {
        "truth": np.array([True, False]),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), "f4"),
        "nan": np.array([0x7FF8_0000_0000_1234, 0x7FF0_0000_0000_0000], "u8").view("f8"),
    }
    return Contents(
        tensors={
            "parameters": parameters,
            "model_state": odd,
            "optimizer": {f"exp_avg/{name}": array + 0.125 for name, array in parameters.items()},
            "ema": {name: array - 0.5 for name, array in parameters.items()},
            "window": {name: array * 3 for name, array in parameters.items()},
        },
        state={
            "seed": 2**127 + 1,
            "loss_scale": 65536.0,
            "third": 1 / 3,
            "position": {"epoch": 2, "offset": 96},
            "words": ["größer", 'quote " and \\', "", None, True, False, -1, 5e-324],
        },
        update=120,
        micro_batches=2,
        extra={"of a later version": {"kept": [1, 2, 3]}},
    )


def contents(update: int = 1, *, size: int = 64, seed: int = 0, micro_batches: int = 0, **state: Any) -> Contents:
    """Two groups of about `size` float32 numbers each, other ones for each update and seed."""
    rng = np.random.default_rng((seed, update, micro_batches))
    weight = rng.normal(size=size).astype(np.float32)
    tensors = {
        "parameters": {"layer.weight": weight.reshape(-1, 4), "layer.bias": np.full(3, update, np.float32)},
        "optimizer": {"exp_avg/layer.weight": -weight},
    }
    return Contents(tensors, {"seed": seed, **state}, update, micro_batches)


def assert_same_contents(found: Contents, expected: Contents) -> None:
    """Groups, names, types, shapes, bits, state and place."""
    assert found.tensors.keys() == expected.tensors.keys()
    for group, arrays in expected.tensors.items():
        assert_same_tensors(found.tensors[group], arrays)
    assert found.state == expected.state
    assert (found.update, found.micro_batches) == (expected.update, expected.micro_batches)
    assert dict(found.extra) == dict(expected.extra)


def assert_same_tensors(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1]), golden_contents()))
