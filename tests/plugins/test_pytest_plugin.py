"""The pytest plugin in projects of its own: what it offers, what it refuses, and that it leaves other tests alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests"

Run = Callable[..., str]


def write(folder: Path, **files: str) -> None:
    """Files by name, `__` standing for a slash."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs pytest with the plugin, and no other, in the project in tmp_path; returns what it printed."""

    def run(*arguments: str, code: int = 0, plugins: tuple[str, ...] = ("multibackend.testing.plugin",)) -> str:
        loaded = [word for name in plugins for word in ("-p", name)]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
        environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(SUPPORT)])
        command = [sys.executable, "-W", "error", "-m", "pytest", "-v", "-rs", *loaded, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        assert done.returncode == code, printed
        return printed

    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["--strict-markers"]\n')
    return run


# --- it costs nothing


@pytest.mark.parametrize("arguments", [["--help"], ["--collect-only"], []])
def test_it_costs_nothing_where_nobody_uses_it(arguments: list[str], run: Run, tmp_path: Path) -> None:
    """Not even numpy is imported, neither for `--help` nor for a project of plain tests."""
    write(
        tmp_path,
        spy="""
        import atexit, sys
        heavy = {"numpy", "torch", "jax", "flax", "optax", "rich", "tyro", "safetensors", "xxhash"}
        atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules)), "numpy" in sys.modules))
        """,
        test_plain="def test_plain():\n    assert True\n",
    )
    printed = run(*arguments, plugins=("spy", "multibackend.testing.plugin"))
    assert "imported: [] False" in printed


def test_without_the_marker_no_backend_is_listed(run: Run, tmp_path: Path) -> None:
    """The same holds at run time: what the plugin itself loaded are two modules and their packages."""
    write(
        tmp_path,
        test_plain="""
        import sys
        def test_plain():
            ours = sorted(name for name in sys.modules if name.startswith("multibackend"))
            assert ours == ["multibackend", "multibackend.testing", "multibackend.testing.plugin"]
        """,
    )
    assert "1 passed" in run()


# --- backends

TESTS = """
import pytest

def test_each(backend):
    assert backend in ("torch", "jax", "stub")

@pytest.mark.backends("torch", "jax")
def test_some(backend):
    assert backend != "stub"

@pytest.mark.backends("torch", "jax")
def test_both():
    pass

@pytest.mark.backends(requires="memory")
def test_capable(backend):
    assert backend != "stub"

@pytest.mark.backends("stub")
class TestOfOne:
    def test_inner(self, backend):
        assert backend == "stub"

    @pytest.mark.backends("torch")
    def test_none_is_left(self, backend):
        raise AssertionError("must not run")

@pytest.fixture(scope="session")
def model(backend):
    return f"model of {backend}"

@pytest.mark.parametrize("size", [1, 2])
def test_fixture(model, size, backend):
    assert model == f"model of {backend}"
"""


def outcomes(printed: str) -> dict[str, str]:
    """{name of the test: PASSED, SKIPPED or FAILED}."""
    found = {}
    for line in printed.splitlines():
        place, _, rest = line.partition(" ")
        if "::" in place and rest.split(" ")[0] in ("PASSED", "SKIPPED", "FAILED"):
            found[place.partition("::")[2]] = rest.split(" ")[0]
    return found


def test_a_test_runs_once_for_each_chosen_backend(run: Run, tmp_path: Path) -> None:
    """All that are installed unless told; marks restrict it; what is left out says why."""
    write(tmp_path, test_it=TESTS)
    everywhere = outcomes(run())
    each = {f"test_each[{name}]" for name in ("torch", "jax", "stub")}
    assert {name for name in everywhere if "test_each" in name} == each
    assert {name for name in everywhere if "test_some" in name} == {"test_some[torch]", "test_some[jax]"}
    assert {name for name in everywhere if "test_capable" in name} == {"test_capable[torch]", "test_capable[jax]"}
    skipped = {name for name, outcome in everywhere.items() if outcome == "SKIPPED"}
    assert skipped == {"TestOfOne::test_none_is_left[none]"}
    assert len(everywhere) == 3 + 2 + 1 + 2 + 1 + 1 + 6

    printed = run("--backend", "torch,stub")
    some = outcomes(printed)
    assert {name for name in some if "test_each" in name} == {"test_each[torch]", "test_each[stub]"}
    assert some["test_both"] == "SKIPPED"
    assert "the test is for torch and jax, but jax is not chosen by --backend" in printed
    assert "TestOfOne::test_inner[stub]" in some

    printed = run("--backend=stub")
    assert "the test is for torch and jax, but torch is not chosen by --backend and jax is not chosen" in printed
    assert "stub has no capability 'memory'" in printed
    assert outcomes(printed)["test_some[none]"] == "SKIPPED"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("tensorflow", "no backend is called 'tensorflow'; registered are 'jax', 'stub', 'torch'"),
        ("torch,jaxx", "no backend is called 'jaxx'; registered are 'jax', 'stub', 'torch'; did you mean 'jax'?"),
        ("torch,", "no backend is called ''"),
    ],
)
def test_an_unknown_backend_is_a_usage_error(value: str, words: str, run: Run, tmp_path: Path) -> None:
    """One line, exit code 4, no traceback."""
    write(tmp_path, test_it=TESTS)
    printed = run("--backend", value, code=4)
    assert f"ERROR: --backend {value}: {words}" in printed
    assert "Traceback" not in printed


def test_a_backend_that_is_not_installed_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    """With the command that installs it; not chosen, it is left out and the skip says why."""
    site = tmp_path / "site" / "absent-0.1.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: absent\nVersion: 0.1\n")
    (site / "entry_points.txt").write_text("[multibackend.backends]\nabsent = absent_backend:plugin\n")
    (tmp_path / "site" / "absent_backend.py").write_text(
        "from multibackend.protocol import BackendPlugin\n"
        "plugin = BackendPlugin(name='absent', backend='a:B', requires=('not_there',), distributions=(), "
        "install='pip install absent')\n"
    )
    write(
        tmp_path,
        conftest="import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'site'))\n",
        test_it="import pytest\n@pytest.mark.backends('absent')\ndef test_it(backend): ...\n",
    )
    printed = run("--backend=absent", code=4)
    assert "--backend absent: 'absent' is not installed here; run: pip install absent" in printed
    assert "the test is for absent, but absent is not installed" in run()


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("('tourch')", "no backend is called 'tourch'; registered are 'jax', 'stub', 'torch'; did you mean 'torch'?"),
        ("(needs='memory')", "takes names of backends, and requires= with names of capabilities"),
        ("()", "takes names of backends"),
        ("(3)", "takes names of backends"),
    ],
)
def test_a_slip_in_the_marker_fails(mark: str, words: str, run: Run, tmp_path: Path) -> None:
    """A test that is skipped for ever because of a slip would be worse."""
    write(tmp_path, test_it=f"import pytest\n@pytest.mark.backends{mark}\ndef test_it(backend): ...\n")
    assert f"@pytest.mark.backends: {words}" in run(code=2)


# --- it leaves others alone


def test_a_project_s_own_fixture_and_option_win(run: Run, tmp_path: Path) -> None:
    """Neither is a conflict: `backend` is theirs, `--backend` too, with a space or an equals sign."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    write(
        tmp_path,
        tests__conftest="""
        import pytest
        def pytest_addoption(parser):
            parser.addoption("--backend", choices=["cpu", "gpu"], default="cpu")
        @pytest.fixture(params=["a", "b"])
        def backend(request):
            return request.config.getoption("--backend") + request.param
        """,
        tests__test_it="""
        import pytest
        def test_theirs(backend):
            assert backend in ("gpua", "gpub")
        @pytest.mark.parametrize("backend", ["x", "y"])
        def test_direct(backend):
            assert backend in "xy"
        """,
    )
    for option in (["--backend", "gpu"], ["--backend=gpu"]):
        assert set(outcomes(run(*option))) == {
            "test_theirs[a]",
            "test_theirs[b]",
            "test_direct[x]",
            "test_direct[y]",
        }
    assert "argument --backend: invalid choice: 'torch'" in run("--backend=torch", code=4)


def test_a_project_may_build_on_the_fixture(run: Run, tmp_path: Path) -> None:
    """A fixture `backend` that takes the plugin's `backend` runs for each; parametrized directly it is the test's."""
    write(
        tmp_path,
        conftest="import pytest\n@pytest.fixture\ndef backend(backend):\n    return backend.upper()\n",
        test_it="""
        import pytest
        def test_upper(backend):
            assert backend in ("TORCH", "STUB")
        @pytest.mark.parametrize("backend", ["x"])
        def test_direct(backend):
            assert backend == "x"
        """,
    )
    assert "test_upper[torch] PASSED" in run("--backend", "torch,stub", "-k", "upper")
    assert outcomes(run("-k", "direct")) == {"test_direct[x]": "PASSED"}


def test_the_value_of_the_option_is_no_path(run: Run, tmp_path: Path) -> None:
    """`--backend stub` with `testpaths`: the conftest there is still found before its options are needed."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    write(
        tmp_path,
        tests__conftest="def pytest_addoption(parser):\n    parser.addoption('--mine', action='store_true')\n",
        tests__test_it="def test_it(backend, request):\n    assert request.config.getoption('--mine')\n",
    )
    assert outcomes(run("--backend", "stub", "--mine")) == {"test_it[stub]": "PASSED"}
    assert outcomes(run("--mine", "--backend", "stub", "tests/test_it.py")) == {"test_it[stub]": "PASSED"}


def test_it_may_be_named_in_a_conftest(run: Run, tmp_path: Path) -> None:
    """`pytest_plugins` in the conftest, for those who switch off loading by entry point."""
    write(
        tmp_path,
        conftest='pytest_plugins = ["multibackend.testing.plugin"]\n',
        test_it="def test_it(backend):\n    assert backend == 'stub'\n",
    )
    assert outcomes(run("--backend=stub", plugins=())) == {"test_it[stub]": "PASSED"}


def test_asking_for_the_fixture_too_late_is_explained(run: Run, tmp_path: Path) -> None:
    """One chosen backend serves; of several the plugin cannot run the test once for each any more."""
    write(tmp_path, test_it="def test_it(request):\n    assert request.getfixturevalue('backend') == 'stub'\n")
    assert "1 passed" in run("--backend=stub")
    assert "name `backend` as an argument of the test" in run("--backend=stub,torch", code=1)


def test_markers_and_options_are_told(run: Run) -> None:
    """`--markers` and `--help` have them; no warning about an unknown mark under --strict-markers."""
    assert "@pytest.mark.backends(*names, requires=()): run the test on these backends only" in run("--markers")
    printed = run("--help")
    assert "--backend=NAMES" in printed
    assert "--update-golden" in printed


# --- golden traces

GOLDEN = """
import numpy as np
import pytest
import settings
from support.examples import experiment

DATA = {"x": np.random.default_rng(0).normal(size=(20, 3))}
DATA["y"] = DATA["x"] @ np.ones((3, 2))

def build():
    import multibackend as mb
    return experiment(DATA, optimizer=mb.optimizers.SGD(learning_rate=settings.RATE))

def test_line(golden, backend):
    golden(build(), updates=4)

class TestAgain:
    @pytest.mark.parametrize("size", [2, 3])
    def test_line(self, golden, size):
        golden(build().replace(micro_batch_size=size), updates=2)

def test_named(golden):
    golden(build(), "named.json", backend="stub")
"""


def test_golden_traces_are_written_held_and_rewritten(run: Run, tmp_path: Path) -> None:
    """Missing: a failure that says what to do. Written, they hold. Moved: the first divergence. Then the summary."""
    write(tmp_path, settings="RATE = 0.1\n", tests__test_line=GOLDEN)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    missing = run("--backend=stub", code=1)
    assert "there is no golden file" in missing
    assert "under pytest --update-golden does" in missing
    assert "4 failed" in missing

    printed = run("--backend=stub", "--update-golden")
    folder = tmp_path / "tests" / "golden"
    names = {"test_line.test_line", "test_line.TestAgain.test_line-2", "test_line.TestAgain.test_line-3", "named"}
    assert {path.stem for path in folder.iterdir()} == names
    for name in names:
        assert f"tests/golden/{name}.json\n  the first trace, for there was none" in printed
    before = {path: path.read_bytes() for path in folder.iterdir()}

    assert "golden traces" not in run("--backend=stub")
    printed = run("--backend=stub", "--update-golden")
    assert "nothing moved beyond rounding; no file was written" in printed
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    write(tmp_path, settings="RATE = 0.2\n")
    failed = run("--backend=stub", "-k", "named", code=1)
    assert "First divergence: learning_rate at update 1: recorded 0.1, now 0.2 (relative 5.0e-01)" in failed
    assert "pytest --update-golden" in failed
    printed = run("--backend=stub", "--update-golden", "-k", "named")
    assert "tests/golden/named.json\n  First divergence: learning_rate at update 1" in printed
    assert "losses moved, most at update" in printed
    assert "2 of 2 parameters moved by the end" in printed
    changed = {path.stem for path in folder.iterdir() if path.read_bytes() != before[path]}
    assert changed == {"named"}
    assert "1 passed" in run("--backend=stub", "-k", "named")


def test_the_summary_arrives_from_workers(run: Run, tmp_path: Path) -> None:
    """With xdist tests run in other processes; what moved is told in this one, each file once."""
    write(tmp_path, settings="RATE = 0.1\n", test_line=GOLDEN)
    printed = run("--backend=stub", "--update-golden", "-n", "2", plugins=("xdist", "multibackend.testing.plugin"))
    assert printed.count("golden/test_line.test_line.json\n  the first trace, for there was none") == 1
    assert printed.count("the first trace, for there was none") == 4


def test_parameters_that_make_no_file_name_are_refused(run: Run, tmp_path: Path) -> None:
    write(
        tmp_path,
        test_it="import pytest\n@pytest.mark.parametrize('f', [len])\ndef test_it(golden, f):\n    golden(None)\n",
    )
    assert "golden: give file=, the parameters" in run(code=1)
