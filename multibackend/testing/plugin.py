"""What pytest learns from this package: backends to choose, golden traces to hold on to.

Installing multibackend is enough; nothing has to be imported.

    pytest --backend torch,jax     the backends that the tests run on; all installed unless given
    pytest --update-golden         rewrite golden files whose run moved, and say what moved

    def test_learns(backend): ...             # once for each chosen backend, by its name

    @pytest.mark.backends("torch", "jax")     # never on others; skipped where they are not chosen
    @pytest.mark.backends(requires="memory")  # on those that have a capability

    def test_stays(golden, backend):          # held against golden/FILE.TEST.json beside the test
        golden(experiment(), updates=20)

`multibackend.testing.assert_matches` and `assert_golden` are plain functions and work
without the plugin.

A session that uses none of this pays nothing for it: this module imports pytest and the standard
library, and what it needs of the rest when a test asks for it. A project's own fixture `backend` or
option `--backend` wins: pytest lets a conftest's fixture hide a plugin's, and the option is added
only where no conftest has one.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from multibackend.experiment import Experiment
    from multibackend.protocol.registry import BackendInfo

__all__ = ["backend", "golden"]

_OPTION = "--backend"
_CHOSEN = "multibackend_backends"
_UPDATE = "multibackend_update_golden"
# the fixture that is parametrized: where a project has its own `backend`, nobody uses it
_NAME = "_multibackend_name"
_MOVED = "multibackend: golden file"

MARKER = (
    "backends(*names, requires=()): run the test on these backends only, and on those that have "
    "the capabilities in `requires`. With the fixture `backend` it runs on each of them that is "
    "chosen; without it, where all are chosen"
)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add `--update-golden`, and `--backend` where the conftests are already loaded."""
    group = parser.getgroup("multibackend", "training on several frameworks (multibackend)")
    group.addoption(
        "--update-golden",
        action="store_true",
        dest=_UPDATE,
        help="rewrite golden traces whose run moved beyond rounding, and say what moved",
    )
    for plugin in pluginmanager.get_plugins():
        file = str(getattr(plugin, "__file__", None))
        # a conftest with `pytest_plugins = [...]` loads this module: by then the hook below has
        # already been called
        if Path(file).name == "conftest.py":
            _add_backend(parser)
            return


# the older spelling of the mark, which every pytest that may load this knows
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Iterator[None]:
    """Add `--backend` once the conftests are known: a project which has that option keeps it."""
    places = early_config.known_args_namespace.file_or_dir
    for option, value in itertools.pairwise(args):
        # `--backend torch`: not yet an option, so its value was taken for a path
        if option == _OPTION and value in places:
            places.remove(value)
    yield
    _add_backend(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse a backend that is not there."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption(_CHOSEN, None):
        _chosen(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses this plugin's `backend` on each chosen backend that its marks allow."""
    if _NAME not in metafunc.fixturenames:
        return
    names, reasons = _allowed(metafunc.config, metafunc.definition)
    # without parameters pytest would skip it too, but would not say why
    parameters = names or [pytest.param("none", marks=pytest.mark.skip(reason="; ".join(reasons)))]
    metafunc.parametrize(_NAME, parameters, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Skip a test without `backend` unless every backend that its marks name is chosen."""
    if item.get_closest_marker("backends") is None or _NAME in getattr(item, "fixturenames", ()):
        return
    names, reasons = _allowed(item.config, item)
    named = set()
    for mark in item.iter_markers("backends"):
        named.update(mark.args)
    if not names or not named.issubset(names):
        item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what became of the golden files, as told by reports: those of xdist's workers arrive."""
    if not terminalreporter.config.getoption(_UPDATE, False):
        return
    moved = set()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        # other plugins file things among the reports that have no properties
        for name, text in getattr(report, "user_properties", ()):
            if name == _MOVED:
                moved.add(text)
    terminalreporter.section("golden traces")
    for text in sorted(moved):
        terminalreporter.line(text)
    if not moved:
        terminalreporter.line("nothing moved beyond rounding; no file was written")


@pytest.fixture(scope="session")
def _multibackend_name(request: pytest.FixtureRequest) -> str:
    """The name of the backend that a test runs on."""
    if hasattr(request, "param"):
        return request.param
    names = _chosen(request.config)
    if len(names) == 1:
        return names[0]
    pytest.fail(
        "the fixture 'backend' was asked for while the test was running, too late to run it once "
        "per backend; name `backend` as an argument of the test or of the fixture that overrides "
        f"it, or choose one of {names} with --backend",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def backend(_multibackend_name: str) -> str:
    """The name of the backend to test; the test runs once for each that `--backend` chooses."""
    return _multibackend_name


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`golden(experiment, file=None, backend=None, updates=None)` holds a run against its golden trace.

    The file is `golden/MODULE.TEST.json` beside the test's file unless `file` is given, which
    is taken from there too; the backend is the test's `backend` where it has one, else the one
    that recorded. One file serves all backends. With `--update-golden` it is rewritten where
    the run moved.
    """
    test_backend = None
    if "backend" in request.fixturenames:
        test_backend = request.getfixturevalue("backend")

    def hold(
        experiment: Experiment,
        file: str | Path | None = None,
        *,
        backend: str | None = None,
        updates: int | None = None,
    ) -> Any:
        __tracebackhide__ = True
        # only where a test wants it
        from multibackend.golden import Change  # noqa: PLC0415
        from multibackend.testing.experiments import assert_golden  # noqa: PLC0415

        if file is None:
            file = _file_name(request.node)
        path = request.path.parent / "golden" / file
        update = bool(request.config.getoption(_UPDATE, False))
        # a project's own fixture `backend` may be anything
        if backend is None and isinstance(test_backend, str):
            backend = test_backend
        result = assert_golden(experiment, path, backend=backend, updates=updates, update=update)
        if isinstance(result, Change) and result.written:
            place = os.path.relpath(path, request.config.rootpath)
            text = "\n  ".join([place, *result.reasons])
            request.node.user_properties.append((_MOVED, text))
        return result

    return hold


def _add_backend(parser: pytest.Parser) -> None:
    """Add `--backend`, unless somebody has it."""
    # the parser has no list of its options, so it is asked to read one
    try:
        unknown = parser.parse_known_and_unknown_args([f"{_OPTION}=?"])[1]
    except (Exception, SystemExit):
        return  # somebody has it, and does not accept that value
    if unknown:
        parser.getgroup("multibackend").addoption(
            _OPTION,
            dest=_CHOSEN,
            metavar="NAMES",
            help="the backends that tests with the fixture `backend` run on, for example torch,jax; "
            "default: all that are installed",
        )


def _chosen(config: pytest.Config) -> tuple[str, ...]:
    """Return the backends of `--backend`, all of them installed, or all that are installed."""
    from multibackend.core.validation import closest  # noqa: PLC0415

    infos = _infos()
    option = config.getoption(_CHOSEN, None)
    if not option:
        return tuple(name for name, info in infos.items() if info.installed)
    names: dict[str, None] = {}
    for word in option.split(","):
        name = word.strip()
        problem = ""
        if name not in infos:
            known = ", ".join(map(repr, infos)) or "none"
            problem = f"no backend is called {name!r}; registered are {known}{closest(name, infos)}"
        elif not infos[name].installed:
            problem = f"{name!r} is not installed here; run: {infos[name].install}"
        if problem:
            raise pytest.UsageError(f"--backend {option}: {problem}")
        names[name] = None
    return tuple(names)


def _infos() -> dict[str, BackendInfo]:
    """Return the registered backends by name; the registry is imported where a test asks for it."""
    from multibackend.protocol.registry import list_backends  # noqa: PLC0415

    return {info.name: info for info in list_backends()}


def _allowed(config: pytest.Config, node: Any) -> tuple[list[str], list[str]]:
    """Return (the chosen backends that the marks of a test allow, why others are not among them)."""
    infos = _infos()
    chosen = _chosen(config)
    names = list(chosen)
    reasons: list[str] = []
    for mark in node.iter_markers("backends"):
        named, needed = _read_mark(mark, infos)
        if named:
            names = [name for name in names if name in named]
            absent = [_why(name, infos) for name in named if name not in chosen]
            if absent:
                reasons.append(f"the test is for {' and '.join(named)}, but {' and '.join(absent)}")
        for capability in needed:
            for name in tuple(names):
                if capability not in infos[name].capabilities:
                    names.remove(name)
                    reasons.append(f"{name} has no capability {capability!r}")
    return names, reasons or ["no backend is installed"]


def _read_mark(mark: pytest.Mark, infos: dict[str, BackendInfo]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read (names, capabilities); a slip fails the test rather than skipping it for ever."""
    from multibackend.core.validation import closest  # noqa: PLC0415

    requires = mark.kwargs.get("requires", ())
    if isinstance(requires, str):
        requires = (requires,)
    needed = tuple(requires)
    words = [*mark.args, *needed]
    extra = mark.kwargs.keys() - {"requires"}
    if extra or not words or not all(isinstance(word, str) for word in words):
        problem = "takes names of backends, and requires= with names of capabilities"
        pytest.fail(f"@pytest.mark.backends: {problem}", pytrace=False)
    for name in mark.args:
        if name not in infos:
            known = ", ".join(map(repr, infos))
            problem = f"no backend is called {name!r}; registered are {known}{closest(name, infos)}"
            pytest.fail(f"@pytest.mark.backends: {problem}", pytrace=False)
    return mark.args, needed


def _why(name: str, infos: dict[str, BackendInfo]) -> str:
    if infos[name].installed:
        return f"{name} is not chosen by --backend"
    return f"{name} is not installed"


def _file_name(node: Any) -> str:
    """Make `MODULE.TEST.json`, with the test's parameters but the backend, which all share it."""
    values = []
    if hasattr(node, "callspec"):
        parameters = dict(node.callspec.params)
        parameters.pop(_NAME, None)
        parameters.pop("backend", None)
        values = list(parameters.values())
    if not all(isinstance(value, str | int | float) for value in values):
        problem = f"give file=, the parameters {values} make no name of a file"
        pytest.fail(f"golden: {problem}", pytrace=False)
    name = "-".join([getattr(node, "originalname", None) or node.name, *map(str, values)])
    if node.cls is not None:
        name = f"{node.cls.__name__}.{name}"
    safe = re.sub(r"[^\w.\[\]-]", "-", name)
    return f"{node.path.stem}.{safe}.json"
