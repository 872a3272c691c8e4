"""Examples to windows: every example once, counts and divisors right, the same from any position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibackend.core.rng import epoch_order
from multibackend.data import ArraySource, IterableSource
from multibackend.losses import CrossEntropy, Custom, MeanSquaredError
from multibackend.protocol import Position, WindowStack
from multibackend.protocol.values import inverse
from multibackend.testing import assert_arrays_match
from multibackend.testing.reference import cut
from multibackend.testing.tolerances import FORMULA
from multibackend.training.input.epoch_reader import EpochReader

LOSS = MeanSquaredError(target="y", weights="w")
SIZES = st.integers(1, 7)
SHAPES = {
    "length": st.integers(1, 40),
    "size": SIZES,
    "steps": st.integers(1, 5),
    "seed": st.integers(0, 9),
}


def data(length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(length)
    weights = random.uniform(0, 2, length) * (random.uniform(size=length) < 0.7)
    return {"id": np.arange(length), "y": random.normal(size=(length, 2)), "w": weights}


def reader(length: int, size: int, **options: object) -> EpochReader:
    return EpochReader(ArraySource(data(length)), [LOSS], micro_batch_size=size, **{"seed": 0, **options})


def ids(stack: WindowStack) -> list[list[list[int]]]:
    """The examples of each micro-batch of each window."""
    return [[batch["id"].tolist() for batch, _ in stack.micro_batches(window)] for window in range(len(stack))]


def epoch(windows: EpochReader, steps: int, chunk: int) -> list[WindowStack]:
    """A whole epoch, `chunk` windows at a time."""
    position, stacks = Position(), []
    while windows.settle(position, steps).epoch == 0:
        stacks.append(windows.read(position, [steps] * chunk, capacity=steps, room=chunk))
        position = stacks[-1].stop
    return stacks


@settings(deadline=None, max_examples=60)
@given(**SHAPES, chunk=st.integers(1, 5), shuffle=st.booleans())
def test_every_example_exactly_once(length: int, size: int, steps: int, seed: int, chunk: int, shuffle: bool) -> None:
    """An epoch's windows are the epoch's order, cut; read in chunks or one by one."""
    windows = reader(length, size, seed=seed, shuffle=shuffle)
    found = [window for stack in epoch(windows, steps, chunk) for window in ids(stack)]
    order = epoch_order(seed, 0, length, shuffle=shuffle)
    assert found == [[batch.tolist() for batch in window] for window in cut(order, size, [steps] * length)]
    assert sorted(i for window in found for batch in window for i in batch) == list(range(length))


@settings(deadline=None, max_examples=60)
@given(**SHAPES, chunk=st.integers(1, 5))
def test_counts_and_weights(length: int, size: int, steps: int, seed: int, chunk: int) -> None:
    """Examples, full micro-batches and weights of each window are those of its rows."""
    windows = reader(length, size, seed=seed)
    source = data(length)
    for stack in epoch(windows, steps, chunk):
        for window, batches in enumerate(ids(stack)):
            rows = np.concatenate([np.array(batch) for batch in batches])
            assert stack.examples[window] == len(rows)
            assert stack.counts[window] == len(rows) // min(size, length)
            assert_arrays_match(
                stack.weights[window], np.array([2 * source["w"][rows].sum()]), relative=FORMULA, floor=1.0
            )
        assert stack.stop.offset == stack.start.offset + stack.examples.sum()


@settings(deadline=None, max_examples=60)
@given(**SHAPES)
def test_divisors_make_a_mean(length: int, size: int, steps: int, seed: int) -> None:
    """By window sum(weight / divisor) is 1; by micro-batch each of the m has weight / divisor = 1 / m, or no weight."""
    for normalize in ("window", "microbatch"):
        for stack in epoch(reader(length, size, seed=seed, normalize=normalize), steps, 3):
            for window in range(len(stack)):
                parts = [(2 * inverse(d)[0] * b["w"].sum(), b["w"].sum()) for b, d in stack.micro_batches(window)]
                shares = [share for share, weight in parts if weight > 0]
                if normalize == "window":
                    assert_arrays_match(float(sum(shares)), float(bool(shares)), relative=FORMULA)
                else:
                    assert_arrays_match(np.array(shares), np.full(len(shares), 1 / len(parts)), relative=FORMULA)


@settings(deadline=None, max_examples=60)
@given(**SHAPES, skip=st.integers(0, 6))
def test_reading_from_any_position(length: int, size: int, steps: int, seed: int, skip: int) -> None:
    """A reader that starts at a position reads what one that came there would read next, in any epoch."""
    there, position = reader(length, size, seed=seed), Position()
    for _ in range(skip):
        position = there.settle(there.read(position, [steps], capacity=steps).stop, steps)
    fresh = reader(length, size, seed=seed)
    first, second = (r.read(position, [steps] * 2, capacity=steps, room=2) for r in (there, fresh))
    assert ids(first) == ids(second)
    assert_arrays_match(first.divisors, second.divisors, relative=0.0)


@settings(deadline=None, max_examples=60)
@given(**SHAPES)
def test_drop_last(length: int, size: int, steps: int, seed: int) -> None:
    """Only full windows, and the next epoch after the last of them."""
    found = [
        window for stack in epoch(reader(length, size, seed=seed, drop_last=True), steps, 2) for window in ids(stack)
    ]
    assert len(found) == length // (size * steps)
    assert all(len(window) == steps and all(len(batch) == size for batch in window) for window in found)


def test_mixed_steps_and_spare_capacity() -> None:
    """Windows of 3, 1 and 2 micro-batches in arrays that have room for more."""
    stack = reader(20, 2, shuffle=False).read(Position(), [3, 1, 2], capacity=5, room=4)
    assert ids(stack) == [[[0, 1], [2, 3], [4, 5]], [[6, 7]], [[8, 9], [10, 11]]]
    assert stack.fields["id"].shape == (4, 5, 2)


def test_weights_known_on_the_device_only() -> None:
    """A custom loss leaves the weights open: NaN on the host, divisors without them."""
    source = ArraySource(data(7))
    loss = Custom(lambda xp, outputs, batch: outputs)
    for normalize, expected in (("window", [1, 1, 1]), ("microbatch", [3] * 3)):
        windows = EpochReader(source, [loss], micro_batch_size=3, seed=0, normalize=normalize)
        stack = windows.read(Position(), [3], capacity=3)
        assert stack.weighed_by_model
        assert np.isnan(stack.weights).all()
        divisors = [divisors[0] for _, divisors in stack.micro_batches(0)]
        assert_arrays_match(divisors, [float(divisor) for divisor in expected], relative=FORMULA)


def test_padding_weighs_nothing() -> None:
    """Room that no example fills is class 0 to look at, and has no weight."""
    source = ArraySource({"label": np.array([1, -100, 2, 0, 1])})
    windows = EpochReader(source, [CrossEntropy(target="label")], micro_batch_size=2, seed=0, shuffle=False)
    stack = windows.read(Position(), [4], capacity=4, room=3)
    assert_arrays_match(stack.weights, np.array([[4.0]]), relative=0.0)


@pytest.mark.parametrize("steps", [13, 10**6, 10**18, 10**30])
def test_a_window_takes_the_memory_of_what_it_holds(steps: int) -> None:
    """Room for the full micro-batches of the epoch, for epochs of known and unknown length, at every epoch the same."""
    rows = data(50)
    items = [{name: array[index] for name, array in rows.items()} for index in range(50)]
    sources = {ArraySource(rows): 12, IterableSource(lambda: iter(items)): min(steps, 16)}
    for source, room in sources.items():
        windows = EpochReader(source, [LOSS], micro_batch_size=4, seed=0, shuffle=False)
        for number in range(2):
            stack = windows.read(Position(number), [steps], capacity=steps)
            assert stack.fields["y"].shape == (1, room, 4, 2)
            assert (stack.counts.tolist(), stack.examples.tolist()) == ([12], [50])
            assert windows.settle(stack.stop, steps) == Position(number + 1)


def test_a_micro_batch_takes_the_memory_of_what_it_holds() -> None:
    """One that is larger than the epoch is the epoch."""
    stack = reader(50, 10**9, shuffle=False).read(Position(), [3], capacity=3)
    assert stack.fields["y"].shape == (1, 1, 50, 2)
    assert stack.ragged is None
    assert ids(stack) == [[list(range(50))]]
