"""The pairing of two models' parameters."""

import numpy as np
import pytest

from multibackend.core.names import check_same_names, match_names, normalised, pair_state
from multibackend.errors import ParameterMatchError
from multibackend.testing import assert_raises


@pytest.mark.parametrize(
    ("reference", "other", "rename", "expected"),
    [
        (["a.weight", "a.bias"], ["a.weight", "a.bias"], {}, ["a.weight", "a.bias"]),
        (["layers.0.weight", "layers.1.weight"], ["layers_0.weight", "Layers_1.weight"], {}, None),
        (["0.weight", "2.weight"], ["first.weight", "last.weight"], {"first": "0", "last": "2"}, None),
        (["enc.w", "dec.w"], ["x.w", "y.w"], {"x.w": "dec.w", "y.w": "enc.w"}, ["dec.w", "enc.w"]),
        (["a.b.w"], ["m.b.w"], {"m": "z", "m.b": "a.b"}, ["a.b.w"]),
    ],
    ids=["equal", "style", "modules", "crossed", "longest prefix wins"],
)
def test_pairs(reference: list[str], other: list[str], rename: dict[str, str], expected: list[str] | None) -> None:
    """Equal names, names equal but for style, and renamed modules or parameters; shapes are all alike here."""
    shapes = [dict.fromkeys(names, (2, 2)) for names in (reference, other)]
    assert match_names(shapes[0], shapes[1], rename) == dict(zip(other, expected or reference, strict=True))


def test_unique_shapes_pair_what_is_left() -> None:
    """A shape that occurs once on each side decides; two of one shape are never guessed."""
    assert match_names({"0.weight": (2, 3), "1.weight": (4, 2)}, {"a.weight": (4, 2), "b.weight": (2, 3)}) == {
        "a.weight": "1.weight",
        "b.weight": "0.weight",
    }
    same = {"0.weight": (2, 2), "1.weight": (2, 2)}, {"a.weight": (2, 2), "b.weight": (2, 2)}
    assert_raises(ParameterMatchError, lambda: match_names(*same), "a.weight", "0.weight", "rename")


def test_shapes_must_agree() -> None:
    """Equal names of unequal shapes are an error with both shapes: a transposed kernel never passes."""
    assert_raises(ParameterMatchError, lambda: match_names({"w": (2, 3)}, {"w": (3, 2)}), "(2, 3)", "(3, 2)")


def test_no_two_names_for_one_parameter() -> None:
    """Two names that both fit one of the reference are an error, not a silent overwrite."""
    assert_raises(ParameterMatchError, lambda: match_names({"w": (2,)}, {"w": (2,), "W": (2,)}), "W")
    assert_raises(ParameterMatchError, lambda: match_names({"w": (2,)}, {"a": (2,), "b": (2,)}, {"a": "w", "b": "w"}))


def test_left_over_names_are_listed() -> None:
    """What has no partner is named on either side, with the nearest candidate."""
    error = assert_raises(ParameterMatchError, lambda: match_names({"head.weight": (2,), "x.b": (3,)}, {"x.b": (3,)}))
    assert "head.weight" in str(error)
    assert_raises(ParameterMatchError, lambda: match_names({"x.b": (3,)}, {"x.b": (3,), "more.b": (4,)}), "more.b")


def test_state_may_stay_unpaired() -> None:
    """A counter that one side alone keeps is left out."""
    reference = {"norm.running_mean": (3,), "norm.num_batches_tracked": ()}
    assert pair_state(reference, {"norm.running_mean": (3,)}) == {"norm.running_mean": "norm.running_mean"}
    assert pair_state(reference, {"norm.running_mean": (4,)}) == {}


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
