"""Golden traces on the numpy backend: what is drawn, kept, written, read and found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.examples import experiment

from multibackend import golden
from multibackend.core.rng import stream_seed
from multibackend.errors import ConfigurationError, GoldenFileError, MultibackendError
from multibackend.golden import Law
from multibackend.golden.summary import difference
from multibackend.optimizers import SGD
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises, reference
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW

DATA = regression(20)


def run(updates: int = 5, **options: Any) -> golden.Golden:
    return golden.record(experiment(DATA, **options), "stub", updates=updates)


# --- initial parameters


def test_a_draw_is_the_sum_of_four_parts_of_a_raw_word() -> None:
    """The bits of the documented formula, computed here with Python's whole numbers."""
    import xxhash  # noqa: PLC0415

    law = Law((2, 3), 0.5, 2.0, -1.5, 3.0)
    key = [stream_seed(7, 0x6D62676F6C64656E), xxhash.xxh3_64_intdigest(b"fc.weight")]
    words = [int(word) for word in np.random.Philox(key=key).random_raw(6)]
    sums = [(w & 65535) + (w >> 16 & 65535) + (w >> 32 & 65535) + (w >> 48) for w in words]
    expected = [min(max(0.5 + 2.0 * ((s - 131070) / math.sqrt((65536**2 - 1) / 3)), -1.5), 3.0) for s in sums]
    assert_bit_identical(golden.draw(law, seed=7, name="fc.weight"), np.array(expected).reshape(2, 3))


def test_draws_are_pinned() -> None:
    """These bits are in files that people keep: they never change."""
    drawn = golden.draw(Law((3,), 0.0, 1.0, -9.0, 9.0), seed=0, name="weight")
    assert drawn.tolist() == PINNED


PINNED = [1.332206498219121, -0.492530805261403, -0.8935115617234124]


def test_a_draw_follows_its_law() -> None:
    """Mean and deviation of many draws, within five of their standard errors; none beyond least and largest."""
    count = 100_000
    drawn = golden.draw(Law((count,), 0.25, 0.5, -0.5, 1.25), seed=1, name="w")
    wide = golden.draw(Law((count,), 0.25, 0.5, -9.0, 9.0), seed=1, name="w")
    assert abs(wide.mean() - 0.25) < 5 * 0.5 / math.sqrt(count)
    assert abs(wide.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * count)
    assert (drawn.min(), drawn.max()) == (-0.5, 1.25)
    assert abs(np.corrcoef(wide, golden.draw(Law((count,), 0.25, 0.5, -9, 9), seed=2, name="w"))[0, 1]) < 0.02
    assert abs(np.corrcoef(wide, golden.draw(Law((count,), 0.25, 0.5, -9, 9), seed=1, name="v"))[0, 1]) < 0.02


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.full(4, 0.1, np.float32), np.array(2.0), np.zeros((0, 3))])
def test_a_constant_tensor_stays_what_it_is(array: np.ndarray) -> None:
    drawn = golden.draw(golden.law_of(array), seed=0, name="bias").astype(array.dtype)
    assert_bit_identical(drawn, array)


# --- tensors


def test_a_summary_is_what_it_says() -> None:
    array = np.random.default_rng(0).normal(size=(3, 5))
    found = golden.summarise(array)
    assert_arrays_match(found.norm, np.linalg.norm(array), relative=ONE_WINDOW)
    assert_arrays_match(found.mean, array.mean(), relative=ONE_WINDOW)
    assert_arrays_match(found.largest, np.abs(array).max(), relative=ONE_WINDOW)
    assert_arrays_match(np.array(found.elements), array.reshape(-1)[[0, 4, 9, 14]], relative=ONE_WINDOW)
    assert found.digest != golden.summarise(array.astype(np.float32)).digest
    assert found.digest == golden.summarise(np.asfortranarray(array)).digest


def changed(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda a: a * (1 + 1e-6), "norm"),
        (lambda a: -a, "element [2, 4]"),
        (lambda a: a[::-1], "element [0, 4]"),
        (lambda a: changed(a, (1, 0), 7.0), "norm"),
        (lambda a: changed(a, (1, 0), math.nan), "norm"),
        (lambda a: changed(a, (2, 4), math.inf), "norm"),
        (lambda a: a.reshape(5, 3), "shape [3, 5] against [5, 3], norm"),
    ],
)
def test_a_summary_tells_tensors_apart(change: Callable[[np.ndarray], np.ndarray], place: str) -> None:
    """Scaled, mirrored, one element, not finite, another shape: each beyond float64's bound, and named."""
    array = np.random.default_rng(0).normal(size=(3, 5))
    array[2, 4] = 3.0
    gap, where, _ = difference(golden.summarise(array), golden.summarise(change(array)))
    assert gap > 1e-9
    assert where == place
    rounded = golden.summarise(array * (1 + 1e-13))
    assert difference(golden.summarise(array), rounded)[0] < 1e-11


# --- runs


def test_a_recording_is_the_run_of_a_formula() -> None:
    """Losses, global norms, weights and the parameters at the end, from the drawn start, by ten lines of numpy."""
    trace = run(5, gradient_accumulation_steps=2)
    start = {name: golden.draw(law, seed=0, name=name) for name, law in trace.laws.items()}
    windows = reference.cut(range(20), 3, [2] * 4) + reference.cut(range(20), 3, [2])
    expected = reference.train(start, DATA, windows[:5])
    assert_arrays_match(np.array(trace.history["loss"]), np.array(expected.losses), relative=ONE_WINDOW)
    assert_arrays_match(np.array(trace.history["grad_norm"]), np.array(expected.norms), relative=ONE_WINDOW)
    assert list(trace.history["weight"]) == expected.weights
    for name, array in expected.parameters.items():
        assert difference(golden.summarise(array), trace.end[name])[0] < FORMULA * 100
    _, _, gradient = reference.linear_gradient(start, {name: array[:6] for name, array in DATA.items()})
    assert trace.gradient_updates == (1, 2, 4, 5)
    norm = np.linalg.norm(gradient["weight"]) / trace.history["weight"][0]
    assert_arrays_match(trace.gradients["weight"][0], norm, relative=ONE_WINDOW)


def test_the_same_run_is_bit_identical() -> None:
    trace = run()
    report = golden.check(trace, experiment(DATA), "stub")
    assert report.matches
    assert report.identical
    assert "matches" in str(report)
    assert "bit for bit" in str(report)


@pytest.mark.parametrize(
    ("options", "updates", "stage", "update", "what"),
    [
        ({"train_data": {**DATA, "x": DATA["x"][::-1]}}, 5, "data order", 1, "x"),
        ({"train_data": {**DATA, "y": changed(DATA["y"], (19, 0), 50.0)}, "drop_last": False}, 7, "loss", 7, "loss"),
        ({"optimizer": SGD(learning_rate=0.1001)}, 5, "update", 1, "learning_rate"),
        ({"optimizer": SGD(learning_rate=0.1, momentum=1e-6)}, 5, "loss", 3, "loss"),
        ({"optimizer": SGD(learning_rate=0.1, momentum=1e-3)}, 2, "update", 2, "bias"),
        ({"optimizer": SGD(learning_rate=0.1, weight_decay=1e-3)}, 1, "update", 1, "weight"),
        ({"max_grad_norm": 0.1}, 5, "loss", 2, "loss"),
        ({"gradient_accumulation_steps": 2}, 5, "data order", 1, "x"),
    ],
)
def test_the_first_divergence_is_named(
    options: dict[str, Any], updates: int, stage: str, update: int, what: str
) -> None:
    """Other data, rate, optimizer, clipping or window: stage, update and name."""
    trace = run(updates)
    now = experiment(options.pop("train_data", DATA), **options)
    report = golden.check(trace, now, "stub")
    assert not report.matches
    found = report.first_divergence
    assert found is not None
    assert (found.stage, found.update, found.what) == (stage, update, what)
    said = f"{stage}: {what} ({report.place})" if report.place else what
    assert f"First divergence: {said} at update {update}: recorded " in str(report)
    assert found.values[0] != found.values[1]


def test_gradients_are_named_before_the_loss_that_follows() -> None:
    """Of two traces that differ in one gradient only, that parameter and update are told."""
    trace = run(4)
    norms = trace.gradients["bias"]
    other = replace(trace, gradients={**trace.gradients, "bias": (norms[0], norms[1] * (1 + 1e-6), norms[2])})
    found = golden.hold(trace, other).first_divergence
    assert found is not None
    assert (found.stage, found.update, found.what) == ("gradients", 2, "bias")


def test_another_initialisation_law_is_told() -> None:
    """The run starts from the recorded law; that the model's builder has another one now would go unseen otherwise."""
    from multibackend_stub.backend import Linear  # noqa: PLC0415

    from multibackend import Model  # noqa: PLC0415

    class Biased(Linear):
        def initial(self, seed: int, dtype: str) -> dict[str, np.ndarray]:
            arrays = super().initial(seed, dtype)
            return {**arrays, "bias": arrays["bias"] + 0.01}

    now = experiment(DATA, model=Model(stub=lambda: Biased(3, 2), inputs="x"))
    found = golden.check(run(), now, "stub").first_divergence
    assert found is not None
    assert (found.stage, found.what, found.values) == ("initial parameters", "bias", (0.0, 0.01))


@pytest.mark.parametrize(("factor", "told"), [(1.1, False), (1.6, True), (0.5, True)])
def test_a_law_may_stray_as_far_as_chance_goes(factor: float, told: bool) -> None:
    """256 elements drawn anew have a deviation within some 4 % of the old one; another framework's law is its own."""
    trace = run()
    trace = replace(trace, laws={**trace.laws, "weight": Law((16, 16), 0.0, 0.02, -1.0, 1.0)})
    now = replace(trace, laws={**trace.laws, "weight": Law((16, 16), 0.0, 0.02 * factor, -1.0, 1.0)})
    assert golden.hold(trace, now).matches is not told
    assert golden.hold(trace, replace(now, backend="other")).matches


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "float32"}, "precision: recorded with 'float64', asked for is 'float32'"),
        ({"seed": 5}, "seed: recorded with 0, asked for is 5"),
    ],
)
def test_other_settings_are_told(options: dict[str, Any], words: str) -> None:
    report = golden.check(run(), experiment(DATA, **options), "stub")
    assert not report.matches
    assert words in str(report)


def test_another_number_of_updates_is_told() -> None:
    report = golden.check(run(), experiment(DATA), "stub", updates=3)
    assert report.first_divergence is None
    assert report.settings == ("updates: recorded with 5, asked for is 3",)
    assert_raises(ConfigurationError, lambda: run(0), "updates must be >= 1")


# --- files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "traces" / "line.json"
    golden.save(run(), file)
    return file


def test_a_file_holds_a_trace(path: Path) -> None:
    """Read back it is equal, also with numbers that JSON does not know."""
    assert golden.load(path) == run()
    trace = run()
    odd = replace(trace, history={**trace.history, "loss": (math.inf, -math.inf, 1.5, 2.5, 3.5)})
    golden.save(odd, path)
    assert golden.load(path) == odd
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_file_reads_line_by_line(path: Path) -> None:
    """One line per update and tensor, so that a diff shows what moved; no line that nobody reads to its end."""
    lines = path.read_text().splitlines()
    assert sum(line.lstrip().startswith('{"update": ') for line in lines) == 5
    assert sum(line.lstrip().startswith('"weight": {"shape"') for line in lines) == 3  # law, start, end
    assert max(map(len, lines)) < 250
    assert len(path.read_bytes()) < 5000


def without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: [c], "its format is 'list'"),
        (lambda c: {**c, "format": "multibackend-golden-9"}, "its format is 'multibackend-golden-9'"),
        (lambda c: without(c, "laws"), "laws must be an object"),
        (lambda c: without(c, "precision"), "precision must be a string"),
        (lambda c: {**c, "precision": "float8"}, "precision must be one of"),
        (lambda c: {**c, "updates": True}, "updates must be a whole number"),
        (lambda c: {**c, "updates": 6}, "history must be 6 updates"),
        (lambda c: {**c, "history": 3}, "history must be a list"),
        (lambda c: {**c, "history": [1, *c["history"][1:]]}, "history[0] must be an object"),
        (lambda c: {**c, "history": [without(c["history"][0], "loss"), *c["history"][1:]]}, "history[0] must be"),
        (lambda c: {**c, "history": [{**c["history"][0], "loss": "x"}, *c["history"][1:]]}, "the column loss"),
        (lambda c: {**c, "gradient_updates": [1, 9]}, "gradient_updates must be numbers of updates, 1 to 5"),
        (lambda c: {**c, "gradients": {"weight": [1.0], "bias": [1.0]}}, "a list of 4 numbers"),
        (lambda c: {**c, "end": without(c["end"], "bias")}, "end must be the same parameters as in start"),
        (lambda c: {**c, "end": {**c["end"], "bias": {}}}, "end.bias must be an object with shape"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "norm": None}}}, "end.bias.norm"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "shape": [1]}}}, "elements"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "shape": [2.5]}}}, "whole numbers"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "shape": [2**70]}}}, "64 bits"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "shape": [10**80]}}}, "more than 128 bits"),
        (lambda c: {**c, "end": {**c["end"], "bias": {**c["end"]["bias"], "shape": [0, 2**62]}}}, "of an array"),
        (lambda c: {**c, "laws": {**c["laws"], "bias": {**c["laws"]["bias"], "shape": [3]}}}, "laws.bias must be"),
        (lambda c: {**c, "skipped": [[1]]}, "skipped must be pairs"),
    ],
)
def test_a_malformed_file_is_refused(change: Callable[[dict[str, Any]], Any], words: str, path: Path) -> None:
    """A typed error with the file, the place in it and what was found; never another exception."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert_raises(GoldenFileError, lambda: golden.load(path), words, path)


def test_a_damaged_file_is_refused(path: Path) -> None:
    """Cut anywhere, or no text at all, or not there."""
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:size])
        assert_raises(GoldenFileError, lambda: golden.load(path), path)
    path.write_bytes(b"\xff\xfe" + whole)
    assert_raises(GoldenFileError, lambda: golden.load(path), path)
    assert_raises(GoldenFileError, lambda: golden.load(path.with_name("other.json")), "there is no golden file")
    assert_raises(GoldenFileError, lambda: golden.load(path.parent), path.parent)


def test_entries_of_any_type_are_refused_with_a_typed_error(path: Path) -> None:
    """Each entry, in turn, replaced by values of other types: read, or refused, never a Python error."""
    content = json.loads(path.read_text())
    for place in list(places(content)):
        for value in (None, "x", -1, 10**30, 1.5, [], {}, [None], {"a": 1}):
            path.write_text(json.dumps(put(content, place, value)))
            try:
                trace = golden.load(path)
                golden.check(trace, experiment(DATA), "stub")
            except MultibackendError:
                pass


def places(content: Any, here: tuple[Any, ...] = ()) -> Any:
    """The paths of all entries, of lists the first only."""
    if here:
        yield here
    if isinstance(content, dict):
        for name, value in content.items():
            yield from places(value, (*here, name))
    elif isinstance(content, list) and content:
        yield from places(content[0], (*here, 0))


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = put(copy[place[0]], place[1:], value)
    return copy


# --- rewriting


def test_a_file_is_left_alone_where_nothing_moved(path: Path) -> None:
    """Not a byte changes; in float64 rounding is no move."""
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    change = golden.update(path, experiment(DATA), "stub", updates=5)
    assert not change.written
    assert "nothing moved beyond rounding" in str(change)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)


@pytest.mark.parametrize(
    ("options", "updates", "words"),
    [
        ({"optimizer": SGD(learning_rate=0.2)}, 5, "learning_rate at update 1: recorded 0.1, now 0.2"),
        ({"optimizer": SGD(learning_rate=0.2)}, 5, "4 of 5 losses moved"),
        ({"optimizer": SGD(learning_rate=0.2)}, 5, "2 of 2 parameters moved"),
        ({}, 4, "updates: recorded with 5, asked for is 4"),
        ({"seed": 1}, 5, "seed: recorded with 0"),
    ],
)
def test_a_file_is_rewritten_where_the_run_moved(options: dict[str, Any], updates: int, words: str, path: Path) -> None:
    """With what moved, by how much; after that the run matches."""
    now = experiment(DATA, **options)
    change = golden.update(path, now, "stub", updates=updates)
    assert change.written
    assert words in str(change)
    assert golden.load(path) == change.golden
    assert golden.check(golden.load(path), now, "stub").identical


def test_a_file_that_cannot_serve_is_rewritten(path: Path, tmp_path: Path) -> None:
    """One of other parameters, a damaged one, none at all."""
    from multibackend_stub.backend import Linear  # noqa: PLC0415

    from multibackend import Model  # noqa: PLC0415

    wider = {**DATA, "y": np.concatenate([DATA["y"], DATA["y"]], axis=1)}
    now = experiment(wider, model=Model(stub=lambda: Linear(3, 4), inputs="x"))
    assert "do not pair up" in str(golden.update(path, now, "stub", updates=5))
    path.write_text("{")
    assert "is no golden file" in str(golden.update(path, now, "stub", updates=5))
    fresh = golden.update(tmp_path / "new" / "line.json", now, "stub", updates=5)
    assert fresh.reasons == ("the first trace, for there was none",)
    assert golden.load(fresh.path) == golden.load(path)
