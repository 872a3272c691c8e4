"""How many micro-batches make an update."""

import numpy as np
import pytest

from multibackend.errors import ConfigurationError
from multibackend.experiment.accumulation import Accumulation, EffectiveBatch
from multibackend.testing import assert_raises


@pytest.mark.parametrize(
    "value", [4, np.int64(4), {0: 4}, EffectiveBatch(8), lambda update: 4, lambda update: np.int32(4)]
)
def test_a_constant_in_every_form(value: object) -> None:
    """A number, a numpy integer, a mapping, an effective batch and a function say the same."""
    accumulation = Accumulation.parse(value, micro_batch_size=2)
    assert [accumulation.steps(update) for update in (0, 1, 1000)] == [4, 4, 4]
    assert all(type(accumulation.steps(update)) is int for update in (0, 1))


def test_a_mapping_holds_from_its_keys_on() -> None:
    """{0: 8, 10: 4, 20: 1}: the number at the largest key not above the update, in whatever order they are given."""
    accumulation = Accumulation.parse({20: 1, 0: 8, 10: 4}, micro_batch_size=1)
    assert [accumulation.steps(update) for update in (0, 9, 10, 19, 20, 99)] == [8, 8, 4, 4, 1, 1]
    assert (accumulation.largest, accumulation.constant) == (8, False)


def test_a_function_is_asked_with_the_update_index() -> None:
    """0 for the first update; what it returns is checked when it is asked."""
    accumulation = Accumulation.parse(lambda update: update + 1, micro_batch_size=1)
    assert [accumulation.steps(update) for update in range(4)] == [1, 2, 3, 4]
    assert accumulation.largest is None
    rubbish = Accumulation.parse(lambda update: 2 - update, micro_batch_size=1)
    assert_raises(ConfigurationError, lambda: rubbish.steps(2), "integer >= 1", "got 0", "(2)")


def test_several_problems_are_reported_together() -> None:
    """Every bad key and every bad number of a mapping."""
    error = assert_raises(ConfigurationError, lambda: Accumulation.parse({-1: 2, 3: 0, 5: "x"}, micro_batch_size=1))
    assert len(error.problems) == 3
