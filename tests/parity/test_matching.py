"""Two models that mean the same are matched without a rule written by hand, and then train alike."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.twin_models import LAYERS, TWINS, WIDTH, NnxPort, TorchLayers
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import DataError, ParameterMatchError
from multibackend.weights import convert_weights


def experiment(torch: Any, jax: Any, **more: Any) -> mb.Experiment:
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(16, 5, WIDTH)) for name in ("x", "y")}
    return mb.Experiment(
        model=mb.Model(torch=torch, jax=jax, inputs="x", **more),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.AdamW(learning_rate=1e-3),
        train_data=data,
        micro_batch_size=8,
    )


@pytest.mark.parametrize("name", TWINS)
def test_twins_match_and_train_alike_with_no_rename(name: str) -> None:
    """In float64 after 5 updates, with the changes of layout that the models were built with."""
    report = mb.compare(experiment(*TWINS[name]), updates=5, precision="float64", executions=QUICK)
    assert report.matches, report.first_divergence
    links = {link.other: link for link in report.matching.links}
    if name == "nameless":
        pairs = {other: link.reference for other, link in links.items()}
        assert pairs == {"zz": "a", "m1": "b", "m2": "e", "u1": "c", "v7": "d"}
        assert {n: links[n].change for n in ("zz", "m1", "m2")} == {
            "zz": "transposed",
            "m1": "transposed",
            "m2": "as it is",
        }
    if name == "fused":
        assert {link.reference for n, link in links.items() if n.startswith("to_k")} == {"qkv.weight", "qkv.bias"}
        assert {link.reference_part.index for n, link in links.items() if "to_k" in n and link.reference_part} == {1}
    if name == "stacked":
        parts = {link.reference: link.other_part for link in report.matching.links if link.other_part is not None}
        assert [parts[f"layers.{i}.up.weight"].index for i in range(LAYERS)] == list(range(LAYERS))


@pytest.mark.parametrize("forgotten", range(LAYERS))
def test_the_matching_is_right_where_the_models_differ(forgotten: int) -> None:
    """A port without one of its residuals: parameters still find their own, and the runs are told apart."""
    wrong = experiment(TorchLayers, functools.partial(NnxPort, forgotten=forgotten))
    report = mb.compare(wrong, updates=1, precision="float64", executions=QUICK)
    assert not report.matches
    for link in report.matching.links:
        here, there = link.reference.split("."), link.other.split(".")
        assert here[0] == {"blocks": "layers", "classifier": "head"}[there[0]]
        if here[0] == "layers":
            assert here[1] == there[1]
            assert here[2] == {"layer_norm": "norm", "fc_up": "up", "fc_down": "down"}[there[2]]
            assert (link.change == "transposed") == (there[-1] == "w")


def test_a_matching_is_kept_and_reused(tmp_path: Path) -> None:
    """From its file in `compare`, the other way round too, and in `load_parameters`, which alone could not know."""
    twins = TWINS["nameless"]
    report = mb.compare(experiment(*twins), updates=1, precision="float64")
    report.matching.save(tmp_path / "m.json")
    given = experiment(*twins, matching=tmp_path / "m.json").replace(precision="float64")
    again = mb.compare(given, updates=1)
    assert again.matches
    assert again.matching == report.matching
    assert mb.compare(given, ("jax", "torch"), updates=1).matches
    source, target = mb.Trainer(given, "torch"), mb.Trainer(given, "jax")
    target.load_parameters(source.parameters())
    assert source.evaluate(given.train_data) == pytest.approx(target.evaluate(given.train_data), rel=1e-12)
    plain = mb.Trainer(experiment(*twins).replace(precision="float64"), "jax")
    with pytest.raises(ParameterMatchError, match="exchanged"):
        plain.load_parameters(source.parameters())
    with pytest.raises(ParameterMatchError, match="does not fit"):
        mb.compare(experiment(*TWINS["port"], matching=tmp_path / "m.json"), updates=1)


def test_what_is_plain_runs_no_model_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names equal up to style: no probe is built."""
    from torch import nn  # noqa: PLC0415

    monkeypatch.setattr("multibackend.training.model_matching.Probe", lambda *_: pytest.fail("the models were probed"))
    from flax import nnx  # noqa: PLC0415

    def torch_model() -> nn.Module:
        return nn.ModuleDict({"fc": nn.Linear(WIDTH, WIDTH)})

    def jax_model(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Dict(fc=nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    changed = experiment(torch_model, jax_model, call=lambda model, batch, train: model["fc"](batch["x"]))
    assert mb.compare(changed, updates=2, precision="float64").matches


@pytest.mark.parametrize("name", ["fused", "stacked"])
def test_converted_weights_compute_the_same_and_come_back_unchanged(name: str, tmp_path: Path) -> None:
    """torch to Flax and back: the same bits, and outputs that agree."""
    made = experiment(*TWINS[name])
    snapshot = mb.Trainer(made.replace(seed=3), "torch").snapshot()
    save_file(dict(snapshot.parameters), tmp_path / "torch.safetensors")
    there = convert_weights(made, tmp_path / "torch.safetensors", tmp_path / "flax.safetensors")
    assert there.agrees
    assert there.outputs == 8 * 5 * WIDTH
    reused = made.replace(model=made.model.matched(there.matching))
    back = convert_weights(
        reused, tmp_path / "flax.safetensors", tmp_path / "back.safetensors", source="jax", target="torch"
    )
    assert back.agrees
    returned = load_file(tmp_path / "back.safetensors")
    assert returned.keys() == snapshot.parameters.keys()
    assert all(np.array_equal(returned[n], array) for n, array in snapshot.parameters.items())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A wrong name, a file that is none, and a pickle that holds more than tensors."""
    import torch  # noqa: PLC0415

    made = experiment(*TWINS["port"])
    save_file({"nothing": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ParameterMatchError, match="nothing"):
        convert_weights(made, tmp_path / "a.safetensors", tmp_path / "out.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    torch.save({"a": functools.partial(print)}, tmp_path / "c.pt")
    for name in ("b.safetensors", "c.pt", "missing.safetensors"):
        with pytest.raises(DataError, match=name):
            convert_weights(made, tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
