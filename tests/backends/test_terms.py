"""Several named terms of a loss: each is normalised by its own weights and keeps its size, whatever k is."""

from typing import Any

import numpy as np
import pytest
from support.variants import ALL, STUB, Variant

import multibackend as mb
from multibackend.errors import CapabilityError, ConfigurationError, DataError
from multibackend.losses import Custom, MeanSquaredError
from multibackend.testing import assert_arrays_match
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.tolerances import ONE_WINDOW

EXAMPLES, SIZE = 12, 3
BALANCE = 0.25
variants = pytest.mark.parametrize("variant", ALL, ids=str)


def data() -> dict[str, np.ndarray]:
    """Two weights per example, the second all but absent in the first micro-batches."""
    random = np.random.default_rng(7)
    rare = np.zeros(EXAMPLES)
    rare[[2, 7, 8, 11]] = [1.0, 3.0, 0.5, 2.0]
    return {**regression(EXAMPLES), "w": random.uniform(0.1, 2, EXAMPLES), "rare": rare}


def balance(xp: Any, outputs: Any, batch: Any) -> Any:
    """An auxiliary loss over a whole micro-batch: the square of its mean output."""
    return xp.mean(outputs) ** 2


TERMS = {
    "main": MeanSquaredError(target="y", weights="w"),
    "rare": MeanSquaredError(target="y", weights="rare", scale=0.5),
    "size": Custom(lambda xp, outputs, batch: xp.sum(outputs**2, axis=-1), per="example", scale=0.1),
    "balance": Custom(balance, per="micro_batch", scale=BALANCE),
}


def expected(batches: list[np.ndarray], source: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
    """The terms and the gradient of a window at START, in plain numpy, from the examples of each micro-batch."""
    rows = np.concatenate(batches)
    x, y = source["x"], source["y"]
    out = x @ START["weight"].T + START["bias"]
    terms, slope = {}, np.zeros_like(out)
    for name, weights, scale in (("main", source["w"], 1.0), ("rare", source["rare"], 0.5)):
        share = np.zeros(len(x))
        share[rows] = scale * weights[rows] / max(2 * weights[rows].sum(), 1e-300)
        terms[name] = float((share[:, None] * (out - y) ** 2).sum())
        slope += 2 * share[:, None] * (out - y)
    terms["size"] = float(0.1 * (out[rows] ** 2).sum(axis=1).mean())
    slope[rows] += 0.1 * 2 * out[rows] / len(rows)
    means = [out[batch].mean() for batch in batches]
    terms["balance"] = float(BALANCE * np.mean(np.square(means)))
    for batch, mean in zip(batches, means, strict=True):
        slope[batch] += BALANCE * 2 * mean / (len(batches) * out[batch].size)
    return terms, {"weight": slope.T @ x, "bias": slope.sum(axis=0)}


@variants
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("examples", [12, 11])
def test_a_window_of_four_terms(variant: Variant, steps: int, examples: int) -> None:
    """Losses, terms and the update are those of the formula, also with a ragged last micro-batch."""
    source = {name: array[:examples] for name, array in data().items()}
    experiment = variant.experiment(
        source,
        loss=TERMS,
        gradient_accumulation_steps=steps,
        micro_batch_size=SIZE,
        optimizer=mb.optimizers.SGD(learning_rate=1.0),
    )
    trainer = variant.trainer(experiment, START)
    batches = [rows for rows in np.split(np.arange(examples), range(SIZE, examples, SIZE)) if len(rows)]
    updates = -(-len(batches) // steps)
    history = trainer.fit(updates=1).history
    terms, gradient = expected(batches[:steps], source)
    assert_arrays_match(
        {n: history[f"loss/{n}"] for n in terms}, {n: np.array([v]) for n, v in terms.items()}, relative=ONE_WINDOW
    )
    assert_arrays_match(history["loss"], np.array([sum(terms.values())]), relative=ONE_WINDOW)
    assert dict(history[0].terms) == {f"loss/{name}": history[f"loss/{name}"][0] for name in terms}
    moved = {name: START[name] - array for name, array in trainer.parameters().items()}
    assert_arrays_match(moved, gradient, relative=ONE_WINDOW, floor=1.0)
    last = variant.trainer(experiment, START)
    last.fit(updates=updates)  # the ragged window runs as well
    assert len(last.snapshot().parameters) == 2


@variants
def test_an_auxiliary_term_keeps_its_size_whatever_k_is(variant: Variant) -> None:
    """k micro-batches of the same three examples give the auxiliary gradient of one of them, and not k times it."""
    one = {name: array[:SIZE] for name, array in data().items()}
    moved = []
    for steps in (1, 4):
        source = {name: np.concatenate([array] * steps) for name, array in one.items()}
        experiment = variant.experiment(source, loss=TERMS, gradient_accumulation_steps=steps, micro_batch_size=SIZE)
        trainer = variant.trainer(experiment, START)
        trainer.fit(updates=1)
        moved.append(trainer.parameters())
    assert_arrays_match(moved[1], moved[0], relative=ONE_WINDOW)


@variants
def test_evaluation_reports_each_term(variant: Variant) -> None:
    """The weighted mean over all of the data, whatever the batch size, and their sum."""
    source, terms = data(), {name: TERMS[name] for name in ("main", "rare", "size")}
    trainer = variant.trainer(variant.experiment(source, loss=terms), START)
    means, _ = expected([np.arange(EXAMPLES)], source)
    for size in (5, EXAMPLES):
        found = trainer.evaluate(source, batch_size=size)
        wanted = {"loss": sum(means[name] for name in terms), **{f"loss/{name}": means[name] for name in terms}}
        assert_arrays_match(
            {name: np.array(value) for name, value in found.items()},
            {name: np.array(value) for name, value in wanted.items()},
            relative=ONE_WINDOW,
        )


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_scale_multiplies_a_single_loss(backend: str) -> None:
    variant = next(v for v in ALL if v.backend == backend)
    losses = []
    for scale in (1.0, 3.0):
        experiment = variant.experiment(data(), loss=MeanSquaredError(target="y", scale=scale))
        trainer = variant.trainer(experiment, START)
        losses.append([trainer.evaluate(data())["loss"], trainer.fit(updates=1).history["loss"][0]])
    assert_arrays_match(np.array(losses[1]), 3 * np.array(losses[0]), relative=ONE_WINDOW)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_values_must_be_what_per_says(backend: str) -> None:
    variant = next(v for v in ALL if v.backend == backend)
    wrong = Custom(lambda xp, outputs, batch: outputs, per="example")
    with pytest.raises(DataError, match=r"shape \(3, 2\).*per='example'.*\(3,\)"):
        variant.trainer(variant.experiment(data(), loss={"a": wrong, "b": wrong}), START).fit(updates=1)


def test_bad_terms_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ALL[0].experiment(data(), loss={"a": 3, "b": lambda xp, outputs, batch: outputs, "": TERMS["main"]})
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigurationError, match="no term"):
        ALL[0].experiment(data(), loss={})
    with pytest.raises(ConfigurationError, match="weights="):
        Custom(balance, per="weight")


def test_a_backend_that_knows_one_loss_says_so() -> None:
    with pytest.raises(CapabilityError):
        STUB.trainer(STUB.experiment(data(), loss=TERMS))
