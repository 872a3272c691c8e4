"""A small project outside this repository uses the plugin as installed: a correct port passes, a broken one fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PYPROJECT = """
[project]
name = "tagger"
version = "0.1"

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
addopts = ["--strict-markers", "-ra", "--backend=torch,jax"]
filterwarnings = ["error"]
"""

MODELS = '''
"""One network, written twice. BROKEN names a layer of the port to plant a mistake in."""

import os

BROKEN = os.environ.get("BROKEN", "")


def build_torch():
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks, self.head = nn.Linear(4, 8), nn.ModuleList([Block(), Block()]), nn.Linear(8, 3)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    return Net()


def build_flax(rngs):
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, name):
            self.norm = nnx.LayerNorm(8, epsilon=1e-2 if BROKEN == f"{name}.norm" else 1e-5, rngs=rngs)
            self.fc1 = nnx.Linear(8, 16, use_bias=BROKEN != f"{name}.fc1.bias", rngs=rngs)
            self.fc2 = nnx.Linear(16, 8, rngs=rngs)
            self.scale = 1.01 if BROKEN == f"{name}.fc2" else 1.0

        def __call__(self, x):
            return x + self.scale * self.fc2(nnx.gelu(self.fc1(self.norm(x)), approximate=False))

    class Net(nnx.Module):
        def __init__(self):
            self.stem = nnx.Linear(4, 8, rngs=rngs)
            self.blocks = nnx.List([Block("blocks.0"), Block("blocks.1")])
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    return Net()
'''

CONFTEST = """
import numpy as np
import pytest

import models
import multibackend as mb


@pytest.fixture
def experiment():
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=(48, 4)), "label": random.integers(0, 3, size=48)}
    return mb.Experiment(
        name="tagger",
        model=mb.Model(torch=models.build_torch, jax=models.build_flax, inputs="x"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.AdamW(learning_rate=1e-2),
        train_data=data,
        micro_batch_size=8,
        gradient_accumulation_steps=2,
        precision="float64",
    )
"""

TESTS = """
import pytest

import multibackend as mb
from multibackend.testing import assert_matches


def test_it_learns(experiment, backend):
    history = mb.Trainer(experiment, backend).fit(updates=10).history
    assert history[-1].loss < history[0].loss


@pytest.mark.backends("torch", "jax")
def test_the_port_matches(experiment):
    assert_matches(experiment, updates=4)


def test_the_run_is_the_recorded_one(experiment, golden, backend):
    golden(experiment, updates=4)


def test_arithmetic():
    assert 1 + 1 == 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, beside a directory that holds what an installer would: this distribution's entry points."""
    folder = tmp_path_factory.mktemp("outside")
    site = folder / "site" / "multibackend_plugin-0.0.1.dist-info"
    (folder / "tagger" / "tests").mkdir(parents=True)
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: multibackend-plugin\nVersion: 0.0.1\n")
    (site / "entry_points.txt").write_text("[pytest11]\nmultibackend = multibackend.testing.plugin\n")
    files = {"pyproject.toml": PYPROJECT, "models.py": MODELS}
    files |= {"tests/conftest.py": CONFTEST, "tests/test_port.py": TESTS}
    for name, text in files.items():
        (folder / "tagger" / name).write_text(textwrap.dedent(text))
    return folder / "tagger"


def run(project: Path, *arguments: str, broken: str = "") -> tuple[int, str]:
    """Pytest there, with every plugin that is installed; (exit code, what it printed)."""
    site = str(project.parent / "site")
    path = os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "BROKEN": broken, "COLUMNS": "200"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def recorded(project: Path) -> tuple[Path, str]:
    """The project with its golden trace, recorded on torch; and what pytest printed as it wrote it."""
    code, printed = run(project, "--update-golden", "-k", "recorded")
    assert code == 0, printed
    return project, printed


def test_the_entry_point_is_declared() -> None:
    """What an installer would read from this repository is what the project beside it was given."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'\[project\.entry-points\.pytest11\]\nmultibackend = "multibackend\.testing\.plugin"', text)


def test_a_correct_port_passes(recorded: tuple[Path, str]) -> None:
    """Both backends learn, match each other and the golden trace that torch recorded; --backend chooses."""
    project, printed = recorded
    assert (
        "tests/golden/test_port.test_the_run_is_the_recorded_one.json\n  the first trace, for there was none" in printed
    )
    code, printed = run(project)
    assert code == 0, printed
    assert "6 passed" in printed
    for name in ("test_it_learns", "test_the_run_is_the_recorded_one"):
        for backend in ("torch", "jax"):
            assert f"{name}[{backend}] PASSED" in printed
    code, printed = run(project, "--backend=torch", "-k", "matches or arithmetic")
    assert code == 0, printed
    assert "1 passed, 1 skipped" in printed
    assert "the test is for torch and jax, but jax is not chosen by --backend" in printed


@pytest.mark.parametrize("broken", ["blocks.0.norm"])
def test_a_broken_port_fails_with_the_layer_s_name(broken: str, recorded: tuple[Path, str]) -> None:
    """The layer is the first divergence of the comparison; the golden trace fails on that side only."""
    code, printed = run(recorded[0], "-k", "not learns", broken=broken)
    assert code == 1
    assert "test_the_port_matches FAILED" in printed
    failure = printed[printed.index("tagger: torch and jax do not match over 4 updates in float64") :]
    first = next(line for line in failure.splitlines() if "First divergence: " in line)
    assert f"First divergence: activations: {broken} at update 1: " in first
    assert "test_the_run_is_the_recorded_one[jax] FAILED" in printed
    assert "test_the_run_is_the_recorded_one[torch] PASSED" in printed
    assert "tagger on jax" in printed
    assert "does NOT match the golden trace of torch" in printed
    assert "test_arithmetic PASSED" in printed
    assert "site-packages/multibackend" not in printed  # the failure shows the line of the test, not the library's


def test_a_missing_parameter_is_named(project: Path) -> None:
    """A port without a bias: parameters that do not pair up are an error of its own, with the name."""
    code, printed = run(project, "-k", "test_the_port_matches", broken="blocks.1.fc1.bias")
    assert code == 1
    assert "blocks.1.fc1.bias" in printed
