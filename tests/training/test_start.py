"""Where a run starts, `Experiment(initial=)`: two backends that are to start alike do, from the first update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import resume_models
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import ConfigurationError, DataError, ParameterMatchError
from multibackend.events import Event, FitStarted, Remark
from multibackend.loggers.jsonl import read_log
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW
from multibackend.weights import save_weights
from multibackend.weights.files import write_arrays

BACKENDS = ("torch", "jax")


def trainer_of(backend: str, initial: str | Path, **options: Any) -> mb.Trainer:
    described = resume_models.experiment(initial=initial)
    return mb.Trainer(described, backend, execution=QUICK.get(backend, "auto"), **options)


def check_alike(trainers: list[mb.Trainer]) -> None:
    """The same parameters and statistics, and the same loss of the first update."""
    first, other = trainers
    assert_bit_identical(other.parameters(), first.parameters(), what="parameters")
    for name, array in other.snapshot().model_state.items():
        assert_bit_identical(array, first.snapshot().model_state[name], what=name)
    losses = [trainer.fit(updates=1).history[0].loss for trainer in trainers]
    assert_arrays_match(losses[1], losses[0], relative=FORMULA, what="the first loss")


@pytest.mark.parametrize("initial", BACKENDS)
def test_both_backends_start_from_one_builder(initial: str) -> None:
    trainers = [trainer_of(backend, initial) for backend in BACKENDS]
    assert [trainer.initial for trainer in trainers] == [initial, initial]
    native = mb.Trainer(resume_models.experiment(), initial)
    assert_bit_identical(trainers[0].parameters(), native.parameters(), what="the builder's own")
    check_alike(trainers)


def test_both_backends_start_from_one_file(tmp_path: Path) -> None:
    """Trained weights with their statistics; the averages begin at them."""
    trained = trainer_of("torch", "native")
    trained.fit(updates=4)
    save_weights(trained.snapshot(), tmp_path / "weights.safetensors")
    trainers = [trainer_of(backend, tmp_path / "weights.safetensors") for backend in BACKENDS]
    for trainer in trainers:
        assert trainer.state.update == 0
        assert_bit_identical(trainer.parameters(), trained.parameters(), what="parameters")
        assert_bit_identical(trainer.ema_parameters(), trained.parameters(), what="the average")
        statistics = trainer.snapshot().model_state["norm.running_var"]
        assert_bit_identical(statistics, trained.snapshot().model_state["norm.running_var"], what="statistics")
    check_alike(trainers)


def test_files_in_a_frameworks_own_names(tmp_path: Path) -> None:
    """A state_dict as torch's users keep it, pickled or not, on either backend; flax's own names on JAX."""
    net = resume_models.TorchNet().double()
    save_file(net.state_dict(), tmp_path / "torch.safetensors")
    torch.save(net.state_dict(), tmp_path / "torch.pt")
    expected = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    for name, backend in (("torch.safetensors", "torch"), ("torch.safetensors", "jax"), ("torch.pt", "jax")):
        started = trainer_of(backend, str(tmp_path / name))
        assert_bit_identical(started.parameters(), expected, what=f"{name} on {backend}")
    snapshot = started.snapshot()
    native = started.program.info.native_arrays
    assert native is not None
    write_arrays(tmp_path / "flax.safetensors", native.to_native({**snapshot.model_state, **expected}), {})
    flax = trainer_of("jax", tmp_path / "flax.safetensors")
    assert_bit_identical(flax.parameters(), expected, what="flax's own names")


def test_names_that_differ_pair_up_in_either_direction() -> None:
    """`rename` is written for one direction, and the values may have to go in the other."""

    class Renamed(resume_models.TorchNet):
        def __init__(self) -> None:
            super().__init__()
            self.output = self.head
            del self.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(self.drop(torch.tanh(self.norm(self.stem(x)))))

    for initial in BACKENDS:
        model = mb.Model(torch=Renamed, jax=resume_models.NnxNet, inputs="x", rename={"head": "output"})
        described = resume_models.experiment(model=model, initial=initial, dropout="native")
        weights = [mb.Trainer(described, backend).parameters() for backend in BACKENDS]
        assert_bit_identical(weights[1]["head.weight"], weights[0]["output.weight"], what=initial)


def test_a_native_start_says_that_the_backends_start_apart() -> None:
    """Once, where there is another backend to start apart from; the event has where the run began."""
    heard: list[Event] = []
    trainer = trainer_of("torch", "native", callbacks=[heard.append])
    trainer.fit(updates=1)
    trainer.fit(updates=2)
    assert [event.initial for event in heard if isinstance(event, FitStarted)] == ["native", "native"]
    remarks = [event.message for event in heard if isinstance(event, Remark)]
    expected = (
        "initial='native': these are the start values of the torch builder, jax would begin with others; "
        "initial='torch' in the Experiment starts them alike"
    )
    assert [remark for remark in remarks if "start" in remark] == [expected]
    heard.clear()
    trainer_of("torch", "torch", callbacks=[heard.append]).fit(updates=1)
    assert not any(isinstance(event, Remark) and "start" in event.message for event in heard)


def test_a_run_remembers_where_it_began(tmp_path: Path) -> None:
    """In its log and its checkpoints; going on asks neither for the file nor for the other backend."""
    start = tmp_path / "start.safetensors"
    save_weights(mb.Trainer(resume_models.experiment(), "torch").snapshot(), start)
    trainer = trainer_of("torch", start, run_dir=tmp_path / "run")
    trainer.fit(updates=1)
    assert [line["initial"] for line in read_log(tmp_path / "run") if line["event"] == "FitStarted"] == [str(start)]
    start.unlink()
    for initial in ("jax", start):
        described = resume_models.experiment(initial=initial)
        resumed = mb.Trainer.resume(tmp_path / "run", described)
        assert resumed.initial == str(start)
        assert_bit_identical(resumed.parameters(), trainer.parameters(), what="parameters")
    resumed.save(tmp_path / "again")
    assert mb.Trainer.resume(tmp_path / "again", described).initial == str(start)


def test_compare_shares_the_start_that_is_asked_for() -> None:
    """The reference starts where `initial` says, and the other one at the reference."""
    described = resume_models.experiment(initial="jax")
    report = mb.compare(described, updates=1, executions=QUICK)
    assert report.matches
    own = mb.Trainer(described, "jax", execution="dispatch").fit(updates=1).history[0].loss
    for history in report.histories:
        assert_arrays_match(history[0].loss, own, relative=ONE_WINDOW, what="the first loss")


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        ("troch", r"one of 'native', 'torch', 'jax', .* got 'troch'; did you mean 'torch'"),
        ("stub", r"the name of a backend that the model has"),
        ("", r"got ''"),
        (3, r"got 3"),
    ],
)
def test_what_names_no_start_is_refused_at_once(initial: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        resume_models.experiment(initial=initial)


def test_files_that_are_no_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no weights at"):
        trainer_of("torch", "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(DataError, match="is no weights file"):
        trainer_of("jax", tmp_path / "text.safetensors")
    write_arrays(tmp_path / "other.safetensors", {"a": np.zeros((7, 7))}, {})
    for backend in BACKENDS:
        with pytest.raises(ParameterMatchError, match=f"other.safetensors' does not fit the {backend} model"):
            trainer_of(backend, tmp_path / "other.safetensors")
