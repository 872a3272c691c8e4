"""What an experiment file may be, and what is said of one that cannot run."""

import sys
from pathlib import Path

import pytest

from multibackend.cli.experiment_file import load_experiment_file
from multibackend.cli.main import main
from multibackend.core.extras import extra_of
from multibackend.errors import ExperimentFileError, PackageNotInstalledError

VARIABLE = """
import numpy as np
import multibackend as mb
from multibackend_stub.backend import Linear

x = np.ones((12, 3))
NAME = mb.Experiment(
    model=mb.Model(stub=lambda: Linear(3, 2), inputs="x"),
    loss=mb.losses.MeanSquaredError(target="y"),
    optimizer=mb.optimizers.SGD(learning_rate=0.1),
    train_data={"x": x, "y": x[:, :2]},
    micro_batch_size=3,
)
UPDATES = 3
if __name__ == "__main__":
    raise SystemExit("a command runs the file, and not this")
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "mine.py"
    path.write_text(text)
    return path


def test_a_variable_is_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, and has no flags."""
    path = written(tmp_path, VARIABLE.replace("NAME", "experiment"))
    file = load_experiment_file(path)
    assert (file.flags, file.build([]).micro_batch_size) == (frozenset(), 3)
    assert main(["train", str(path), "--backend", "stub"]) == 0
    assert "3" in capsys.readouterr().out


def test_a_variable_of_another_name_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, VARIABLE.replace("NAME", "my_run"))
    with pytest.raises(ExperimentFileError, match="an Experiment called 'my_run': call it experiment"):
        load_experiment_file(path)


@pytest.mark.parametrize("where", ["on import", "in the function"])
@pytest.mark.parametrize(
    ("module", "repair"),
    [("sklearn", r"pip install 'multibackend\[examples\]'"), ("no_such_thing", "pip install no_such_thing, or put")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, module: str, repair: str
) -> None:
    """With the extra that brings it, if one of this library's does."""
    monkeypatch.setitem(sys.modules, module, None)
    text = f"import {module}.datasets\ndef experiment(): pass"
    if where != "on import":
        text = f"def experiment():\n    import {module}.datasets"
    path = written(tmp_path, text)
    with pytest.raises(PackageNotInstalledError, match=f"mine.py imports '{module}.*not installed; run: {repair}"):
        load_experiment_file(path).build([])


def test_the_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["train", str(Path(__file__).parents[2] / "examples" / "digits.py")]) == 2
    assert "pip install 'multibackend[examples]'" in " ".join(capsys.readouterr().err.split())


def test_extras_by_the_names_of_modules() -> None:
    """As written, a part, or an abbreviation; nothing for another library's module."""
    requirements = [
        "numpy>=2",
        "torch>=2.6; extra == 'torch'",
        "torch>=2.6; extra == 'all'",
        "jax>=0.8; extra == 'all'",
        "flax>=0.12; extra == 'all'",
        "orbax-checkpoint>=0.11; extra == 'orbax'",
        "scikit-learn>=1.4; extra == 'metrics'",
        "tensorboardX>=2.6; extra == 'tensorboard'",
        "array-api-compat>=1; extra == 'torch'",
    ]
    expected = {
        "torch": "torch",  # the smaller of two extras
        "orbax": "orbax",
        "sklearn": "metrics",
        "tensorboardX": "tensorboard",
        "array_api_compat": "torch",
        "torchvision": None,
        "numpy": None,
        "my_helpers": None,
    }
    assert {module: extra_of(module, requirements) for module in expected} == expected
