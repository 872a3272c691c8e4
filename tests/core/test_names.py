"""Canonical names: what differs in style only, and what does not fit."""

import numpy as np

from multibackend.core.names import check_same_names, normalised
from multibackend.errors import ParameterMatchError
from multibackend.testing import assert_raises


def test_check_same_names() -> None:
    """Missing, unknown and misshapen names are reported together."""
    wanted = {"a": np.zeros(2), "b": np.zeros(3)}
    check_same_names(wanted, wanted, "the parameters")
    assert_raises(
        ParameterMatchError,
        lambda: check_same_names(wanted, {"a": np.zeros((2, 1)), "c": np.zeros(3)}, "the parameters"),
        "missing: b",
        "unknown: c",
        "(2, 1)",
    )


def test_normalised() -> None:
    """Case and the way of writing an index are style; nothing else is."""
    assert normalised("Blocks_11.Attn.weight") == "blocks.11.attn.weight"
    assert normalised("layer_norm.weight") == "layer_norm.weight"
