"""Models with several outputs: a loss and a metric name the one that they are of, on both backends alike."""

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.variants import QUICK, STUB

import multibackend as mb
from multibackend import golden
from multibackend.errors import ConfigurationError, DataError
from multibackend.losses import CrossEntropy, MeanSquaredError
from multibackend.metrics import F1, R2, RMSE, Accuracy, Custom
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FEW_UPDATES_RESUMED, FORMULA
from multibackend.training.saving.experiment_description import describe, differences

RANDOM = np.random.default_rng(3)
N = 22
DATA = {"a": RANDOM.normal(size=(N, 3)), "b": RANDOM.normal(size=(N, 2)), "y": RANDOM.normal(size=(N, 1))}
DATA["k"] = RANDOM.integers(0, 3, size=N)


@dataclass
class Heads:
    cls: Any
    reg: Any


Pair = namedtuple("Pair", ["cls", "reg"])

STRUCTURES = {
    "dict": (lambda cls, reg: {"cls": cls, "reg": reg}, "cls", "reg"),
    "nested": (lambda cls, reg: {"heads": (cls, reg)}, "heads.0", "heads.1"),
    "dataclass": (Heads, "cls", "reg"),
    "namedtuple": (Pair, "cls", "1"),
}


def model(structure: Any) -> mb.Model:
    """Two inputs, a hidden layer, a head of three classes and one of a number."""

    def build_torch() -> Any:
        import torch  # noqa: PLC0415

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = torch.nn.Linear(5, 4)
                self.cls = torch.nn.Linear(4, 3)
                self.reg = torch.nn.Linear(4, 1)

            def forward(self, a: Any, b: Any) -> Any:
                h = torch.tanh(self.body(torch.cat([a, b], dim=-1)))
                return structure(self.cls(h), self.reg(h))

        return Net()

    def build_flax(rngs: Any) -> Any:
        import jax.numpy as jnp  # noqa: PLC0415
        from flax import nnx  # noqa: PLC0415

        class Net(nnx.Module):
            def __init__(self) -> None:
                self.body = nnx.Linear(5, 4, rngs=rngs)
                self.cls = nnx.Linear(4, 3, rngs=rngs)
                self.reg = nnx.Linear(4, 1, rngs=rngs)

            def __call__(self, a: Any, b: Any) -> Any:
                h = jnp.tanh(self.body(jnp.concatenate([a, b], axis=-1)))
                return structure(self.cls(h), self.reg(h))

        return Net()

    return mb.Model(torch=build_torch, jax=build_flax, inputs=("a", "b"))


def experiment(kind: str = "dict", **changes: Any) -> mb.Experiment:
    structure, cls, reg = STRUCTURES[kind]
    options: dict[str, Any] = {
        "model": model(structure),
        "loss": {"cls": CrossEntropy(target="k", output=cls), "reg": MeanSquaredError(target="y", output=reg)},
        "optimizer": mb.optimizers.SGD(learning_rate=0.1),
        "train_data": DATA,
        "eval_data": DATA,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "precision": "float64",
        "metrics": (
            Accuracy(target="k", output=cls),
            RMSE(target="y", output=reg),
            R2(target="y", output=reg),
            F1(target="k", output=cls),
        ),
    }
    return mb.Experiment(**{**options, **changes})


def by_hand(p: dict[str, np.ndarray]) -> dict[str, float]:
    h = np.tanh(np.concatenate([DATA["a"], DATA["b"]], axis=1) @ p["body.weight"].T + p["body.bias"])
    z = h @ p["cls.weight"].T + p["cls.bias"]
    residual = h @ p["reg.weight"].T + p["reg.bias"] - DATA["y"]
    entropy = np.log(np.exp(z).sum(axis=1)) - z[np.arange(N), DATA["k"]]
    terms = {"loss/cls": entropy.mean(), "loss/reg": (residual**2).mean()}
    return {
        **terms,
        "loss": sum(terms.values()),
        "accuracy": (z.argmax(axis=1) == DATA["k"]).mean(),
        "rmse": np.sqrt((residual**2).mean()),
        "r2": 1 - (residual**2).sum() / ((DATA["y"] - DATA["y"].mean()) ** 2).sum(),
    }


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_trains_and_evaluates(backend: str, kind: str) -> None:
    """Terms in the history, losses and metrics by their formulas, whatever structure holds the outputs."""
    trainer = mb.Trainer(experiment(kind), backend, execution=QUICK.get(backend, "auto"))
    history = trainer.fit(updates=3).history
    assert set(history[0].terms) == {"loss/cls", "loss/reg"}
    expected = by_hand(trainer.parameters())
    for size in (3, N):
        found = trainer.evaluate(batch_size=size)
        assert_arrays_match({name: found[name] for name in expected}, expected, relative=FORMULA)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_losses_of_a_dataclass_are_wide_in_bf16(backend: str) -> None:
    """A framework's trees know no plain dataclass; what it holds is cast all the same."""
    dtypes = []

    def spread(xp: Any, outputs: Any, batch: Any) -> Any:
        dtypes.append(str(outputs.dtype).rpartition(".")[2])
        return outputs

    loss = mb.losses.Custom(spread, output="reg")
    mb.Trainer(experiment("dataclass", precision="bf16", loss=loss, metrics=()), backend).evaluate()
    assert set(dtypes) == {"float32"}


def test_both_backends_match() -> None:
    report = mb.compare(experiment(), updates=6, executions=QUICK)
    assert report.matches


def test_goes_on_from_the_other_backend_and_from_a_golden_trace(tmp_path: Path) -> None:
    """A run that torch began and JAX ends is the run of torch alone; JAX repeats what torch recorded."""
    whole = mb.Trainer(experiment(), "torch")
    whole.fit(updates=2)
    path = whole.save(tmp_path / "saved")
    expected = whole.fit(updates=4).history
    rest = mb.Trainer.resume(path, experiment(), backend="jax", execution=QUICK["jax"])
    found = rest.fit(updates=4).history
    for name in ("loss/cls", "loss/reg"):
        assert_arrays_match(found[name], expected[name], relative=FEW_UPDATES_RESUMED)
    trace = golden.record(experiment(), "torch", updates=3)
    again = golden.repeat(trace, experiment(), "jax", execution=QUICK["jax"])
    assert golden.hold(trace, again).matches


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_accumulation_is_exact(backend: str) -> None:
    assert mb.check_accumulation(experiment(), backend=backend).matches


def test_the_output_is_part_of_what_a_checkpoint_remembers() -> None:
    """Going on with a loss of another output is another run."""
    first = describe(experiment(), DATA)
    assert differences(first, describe(experiment(), DATA)) == {}
    other = {"cls": CrossEntropy(target="k", output="cls"), "reg": MeanSquaredError(target="y", output="other")}
    changed = differences(first, describe(experiment(loss=other, metrics=()), DATA))
    assert "output='other'" in changed["loss"]


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"loss": MeanSquaredError(target="y", output="rgr")},
            ConfigurationError,
            r"output='rgr' is not there: they have 'cls', 'reg'; did you mean 'reg'",
        ),
        (
            {"loss": MeanSquaredError(target="y")},
            DataError,
            r"MeanSquaredError needs one array.*several: 'cls', 'reg'; say which one, for example output='cls'",
        ),
        (
            {"loss": MeanSquaredError(target="y", output="cls")},
            DataError,
            r"MeanSquaredError\(output='cls'\): the model's outputs have shape \(4, 3\).*'y' has \(4, 1\)",
        ),
        (
            {"loss": CrossEntropy(target="k", output="reg")},
            DataError,
            r"CrossEntropy\(output='reg'\): label \d in 'k' is outside \[0, 1\)",
        ),
        ({"metrics": Accuracy(target="k", output="class")}, ConfigurationError, "output='class' is not there"),
    ],
)
def test_wrong_outputs_are_refused_before_training(backend: str, changes: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        mb.Trainer(experiment(**changes), backend)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_metrics_of_outputs_that_do_not_fit(backend: str) -> None:
    metrics = {
        "several: 'cls', 'reg'; say which": (Accuracy(target="k"),),
        r"outputs have shape \(4, 3\), the target 'y' has \(4, 1\)": (RMSE(target="y", output="cls"),),
        r"logits must have the shape of.*\(4, 1\) and labels \(4, 1\)": (Accuracy(target="j", output="reg"),),
    }
    data = {**DATA, "j": DATA["k"][:, None]}
    for words, metric in metrics.items():
        trainer = mb.Trainer(experiment(metrics=metric, eval_data=data), backend)
        with pytest.raises(DataError, match=words):
            trainer.evaluate()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_custom_ones_get_what_they_pick(backend: str) -> None:
    """A picked array, or all outputs; over the set by their paths."""
    metrics = (
        Custom(lambda xp, outputs, batch: outputs - batch["y"], output="reg", name="bias"),
        Custom(lambda outputs, batch: float(np.ptp(outputs)), output="heads.1", over="set", name="range"),
        Custom(lambda outputs, batch: sum(array.size for array in outputs.values()), over="set", name="size"),
        Custom(lambda outputs, batch: outputs["1"].shape[0], output="heads", over="set", name="rows"),
    )
    both = model(lambda cls, reg: {"heads": (cls, reg), "reg": reg})
    loss = mb.losses.Custom(lambda xp, outputs, batch: xp.abs(outputs - batch["y"]), output="reg")
    trainer = mb.Trainer(experiment(model=both, loss=loss, metrics=metrics), backend)
    found = trainer.evaluate()
    assert (found["size"], found["rows"]) == (N * 5, N)
    assert found["range"] > 0
    assert abs(found["bias"]) <= found["loss"]


def test_the_stub_has_one_output() -> None:
    data = {"x": DATA["a"], "y": DATA["b"]}
    with pytest.raises(ConfigurationError, match=r"the model returns one array \[3, 2\]; drop output="):
        STUB.trainer(STUB.experiment(data, loss=MeanSquaredError(target="y", output="reg")))


def test_a_path_is_a_word() -> None:
    with pytest.raises(ConfigurationError, match="output must be a dotted path"):
        MeanSquaredError(target="y", output=0)
    with pytest.raises(ConfigurationError, match="output must be a dotted path"):
        Accuracy(target="y", output="")
