"""The definition of portable dropout: known words, independence, statistics, pairing of layers."""

import numpy as np
import pytest

from multibackend.errors import ConfigurationError
from multibackend.protocol import dropout_masks as dropout


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_words(key: tuple, counter: tuple, words: tuple) -> None:
    """The known answers of Random123 for threefry2x32 with 20 rounds, as integers and as arrays."""
    assert dropout.threefry(key, *counter) == words
    arrays = dropout.threefry(key, *(np.full(3, word, np.uint32) for word in counter))
    assert [array.tolist() for array in arrays] == [[word] * 3 for word in words]


def test_each_coordinate_changes_the_mask() -> None:
    """Another seed, update, micro-batch, layer or call: an unrelated mask, which agrees at half of the places."""
    base = {"seed": 0, "update": 0, "micro_batch": 0, "layer": "a", "call": 0}
    others = [{**base, **change} for change in ({"seed": 1}, {"update": 1}, {"micro_batch": 1}, {"call": 1})]
    others.append({**base, "layer": "b"})
    others.append({**base, "update": 1, "micro_batch": 1})
    masks = [dropout.keep_mask(shape=(20_000,), rate=0.5, **where) for where in (base, *others)]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert abs((mask == other).mean() - 0.5) < 0.02  # 5.7 standard deviations


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_rate_and_expectation(rate: float) -> None:
    """The share of kept elements is 1 - rate within 5 standard deviations, and so is that of each column."""
    keep = dropout.keep_mask(1, 2, 3, "layer", (1000, 200), rate)
    deviation = np.sqrt(rate * (1 - rate) / keep.size)
    assert abs(keep.mean() - (1 - rate)) <= 5 * deviation
    columns = np.abs(keep.mean(axis=0) - (1 - rate))
    assert columns.max() <= 5 * np.sqrt(rate * (1 - rate) / len(keep))
    neighbours = np.corrcoef(keep[:, :-1].ravel(), keep[:, 1:].ravel())[0, 1] if rate else 0.0
    assert abs(neighbours) < 5 / np.sqrt(keep.size)


def test_rates_at_the_ends() -> None:
    """Rate 0 keeps everything, rate 1 nothing."""
    assert dropout.keep_mask(0, 0, 0, "a", (10_000,), 0.0).all()
    assert not dropout.keep_mask(0, 0, 0, "a", (10_000,), 1.0).any()


def test_a_mask_does_not_depend_on_its_shape_beyond_the_order_of_elements() -> None:
    """Element i of the row-major order has one decision, whatever the shape and however many elements follow."""
    flat = dropout.keep_mask(5, 6, 7, "a", (105,), 0.4)
    assert np.array_equal(dropout.keep_mask(5, 6, 7, "a", (7, 3, 5), 0.4), flat.reshape(7, 3, 5))
    assert np.array_equal(dropout.keep_mask(5, 6, 7, "a", (64,), 0.4), flat[:64])


def test_masks_stay_what_they_are() -> None:
    """A recorded mask: runs of an older version can be repeated."""
    keep = dropout.keep_mask(0, 10, 3, "blocks.0.drop", (32,), 0.5)
    assert int("".join(map(str, keep.astype(int))), 2) == RECORDED


RECORDED = 0b01110010110101110110111111111001


def test_layers_pair_by_name_then_by_order() -> None:
    """Style and rename are seen through; what is left pairs by order; unequal numbers are an error."""
    assert dropout.pair_layers(["layers.0", "out"], ["Layers_0", "out"], {}) == {"Layers_0": "layers.0", "out": "out"}
    assert dropout.pair_layers(["2", "5"], ["Dropout_0", "Dropout_1"], {}) == {"Dropout_0": "2", "Dropout_1": "5"}
    assert dropout.pair_layers(["a", "b"], ["b", "x"], {}) == {"b": "b", "x": "a"}
    assert dropout.pair_layers(["a", "b"], ["x", "y"], {"x": "b"}) == {"x": "b", "y": "a"}
    with pytest.raises(ConfigurationError, match="do not pair up: 'b' of the reference and none of the other"):
        dropout.pair_layers(["a", "b"], ["a"], {})


def test_two_layers_of_one_name_are_an_error() -> None:
    """Layers that would draw the same masks are named."""
    with pytest.raises(ConfigurationError, match=r"'drop_0' and 'Drop\.0' would draw the same masks"):
        dropout.name_layers(["drop_0", "other", "Drop.0"], {})
    assert len(set(dropout.name_layers(["a", "b"], {}).values())) == 2
