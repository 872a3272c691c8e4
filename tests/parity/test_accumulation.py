"""However an effective batch is cut into micro-batches, both backends make the step of one large PyTorch batch."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import flax_models, torch_models
from support.reference import large_batch_steps

import multibackend as mb
from multibackend.testing import assert_arrays_match
from multibackend.testing.conformance.problems import tokens
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW, ONE_WINDOW_FLOAT32

EXAMPLES, EFFECTIVE, LIMIT, EPOCHS = 29, 12, 0.3, 2
BATCHES = [np.arange(0, 12), np.arange(12, 24), np.arange(24, 29)] * EPOCHS
DATA = tokens(EXAMPLES)
MODEL = mb.Model(
    torch=functools.partial(torch_models.Mlp, 3, 4, 2), jax=functools.partial(flax_models.Mlp, 3, 4, 2), inputs="x"
)


@pytest.fixture(scope="module")
def start() -> dict[str, np.ndarray]:
    module = torch_models.Mlp(3, 4, 2).double()
    random = np.random.default_rng(7)
    return {name: random.normal(size=tuple(p.shape)) * 0.5 for name, p in module.named_parameters()}


@pytest.fixture(scope="module")
def expected(start: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[float]]:
    def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), batch["label"].flatten(), ignore_index=-100)

    def build(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.01)

    return large_batch_steps(torch_models.Mlp(3, 4, 2), start, DATA, BATCHES, loss, build, LIMIT)


def run(backend: str, steps: int, start: dict[str, np.ndarray], precision: str) -> tuple[mb.Trainer, mb.FitResult]:
    experiment = mb.Experiment(
        model=MODEL,
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=0.5, momentum=0.9, weight_decay=0.01),
        train_data=DATA,
        micro_batch_size=EFFECTIVE // steps,
        gradient_accumulation_steps=steps,
        max_grad_norm=LIMIT,
        precision=precision,
        shuffle=False,
    )
    trainer = mb.Trainer(experiment, backend)
    trainer.load_parameters(start)
    return trainer, trainer.fit(epochs=EPOCHS)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 12])
def test_float64_equals_one_large_batch(backend: str, steps: int, start: dict, expected: tuple) -> None:
    """k = 1, ..., 12 with partial windows, ragged micro-batches and ignored labels: the same updates to 1e-11."""
    trainer, result = run(backend, steps, start, "float64")
    parameters, losses = expected
    assert_arrays_match(trainer.parameters(), parameters, relative=ONE_WINDOW)
    assert_arrays_match(result.history["loss"], np.array(losses), relative=ONE_WINDOW, what="loss")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_float32_is_close(backend: str, start: dict, expected: tuple) -> None:
    """The same in float32, to float32's own rounding."""
    trainer, result = run(backend, 4, start, "float32")
    parameters, losses = expected
    assert_arrays_match(trainer.parameters(), parameters, relative=ONE_WINDOW_FLOAT32)
    assert_arrays_match(result.history["loss"], np.array(losses), relative=ONE_WINDOW_FLOAT32, what="loss")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_check_accumulation_says_yes(backend: str) -> None:
    """`check_accumulation` finds nothing where the law holds."""
    report = mb.check_accumulation(linear_classifier(normalize="window"), backend)
    assert report.matches, report
    assert report.reasons == ()


@pytest.mark.parametrize(("model", "reason"), [("batch_norm", "batch statistics"), ("dropout", "randomness")])
def test_check_accumulation_says_why_not(model: str, reason: str) -> None:
    """A model that cannot obey the law is found out, with its reason."""
    random = np.random.default_rng(0)
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_models.MODELS[model], inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data={"x": random.normal(size=(24, 3)), "y": random.normal(size=(24, 2))},
        micro_batch_size=3,
        gradient_accumulation_steps=4,
    )
    report = mb.check_accumulation(experiment, "torch")
    assert not report.matches
    assert len(report.reasons) == 1
    assert reason in report.reasons[0]


def test_check_accumulation_names_the_mean_of_means() -> None:
    """normalize="microbatch" with uneven labels is named as the reason."""
    report = mb.check_accumulation(linear_classifier(normalize="microbatch"), "torch")
    assert not report.matches
    assert "microbatch" in report.reasons[0]


FORMS = {
    "number": (4, [4] * 6),
    "mapping": ({0: 4, 2: 2, 4: 1}, [4, 4, 2, 2, 1, 1]),
    "function": (lambda update: 1 + update % 3, [1, 2, 3, 1, 2, 3]),
    "effective batch": (mb.EffectiveBatch(12), [4] * 6),
}


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("form", FORMS)
def test_schedules_and_logging_count_updates(backend: str, form: str, start: dict, tmp_path: Path) -> None:
    """However the micro-batches are given: one record, one place of the schedule and one line of the log per update."""
    given, steps = FORMS[form]

    def schedule(update: int) -> float:
        return 0.1 / (1 + update)

    experiment = mb.Experiment(
        model=MODEL,
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=schedule),
        train_data=tokens(200),
        micro_batch_size=3,
        gradient_accumulation_steps=given,
        precision="float64",
        lr_scaling="linear",
        base_batch_size=6,
    )
    events: list[mb.events.Event] = []
    trainer = mb.Trainer(experiment, backend, run_dir=tmp_path, callbacks=[events.append])
    trainer.load_parameters(start)
    history = trainer.fit(updates=6).history
    rates = [schedule(update) * k * 3 / 6 for update, k in enumerate(steps)]
    assert_arrays_match(history["update"], np.arange(1, 7), relative=0.0)
    assert_arrays_match(history["examples"], np.array(steps) * 3, relative=0.0)
    assert_arrays_match(history["learning_rate"], np.array(rates), relative=FORMULA)
    finished = [event for event in events if isinstance(event, mb.events.UpdateFinished)]
    assert len(finished) == 6
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [line["record"] for line in lines if "record" in line]
    assert [line["update"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in logged] == history["learning_rate"].tolist()


def linear_classifier(normalize: str) -> mb.Experiment:
    return mb.Experiment(
        model=mb.Model(torch=torch_models.linear, jax=flax_models.linear, inputs="x"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=DATA,
        micro_batch_size=3,
        gradient_accumulation_steps=4,
        normalize=normalize,
    )
