"""What pytest learns from this package: backends to choose, tests that run on each, golden traces to hold on to.

Installing multibackend is enough; nothing has to be imported.

    pytest --backend torch,jax     the backends that the tests run on; all that are installed unless given
    pytest --update-golden         rewrite golden files whose run moved, and say at the end what moved

    def test_learns(backend): ...                              # once for each chosen backend, which it is the name of

    @pytest.mark.backends("torch", "jax")                      # never on others; skipped where they are not chosen
    @pytest.mark.backends(requires="memory")                   # on those that have a capability

    def test_stays(golden, backend):                           # held against golden/FILE.TEST.json beside the test file
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
_NAME = "_multibackend_name"  # the fixture that is parametrized: where a project has its own `backend`, nobody uses it
_MOVED = "multibackend: golden file"

MARKER = (
    "backends(*names, requires=()): run the test on these backends only, and on those that have the capabilities in "
    "`requires`. With the fixture `backend` it runs on each of them that is chosen; without it, where all are chosen"
)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add `--update-golden`; and `--backend`, but not before the conftests had a chance to have their own."""
    group = parser.getgroup("multibackend", "training on several frameworks (multibackend)")
    group.addoption(
        "--update-golden",
        action="store_true",
        dest=_UPDATE,
        help="rewrite golden traces whose run moved beyond rounding, and say what moved",
    )
    files = [str(getattr(plugin, "__file__", None)) for plugin in pluginmanager.get_plugins()]
    # a conftest with `pytest_plugins = [...]` loads this module: by then the hook below has already
    # been called
    if any(Path(file).name == "conftest.py" for file in files):
        _add_backend(parser)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # the older spelling, which every pytest that may load this knows
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Iterator[None]:
    """Add `--backend` once the conftests are known, so that a project which has that option keeps it."""
    values = [value for option, value in itertools.pairwise(args) if option == _OPTION]
    places = early_config.known_args_namespace.file_or_dir
    for value in values:  # `--backend torch`: not yet an option, so its value was taken for a path
        if value in places:
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
    named = [name for mark in item.iter_markers("backends") for name in mark.args]
    if not names or any(name not in names for name in named):
        item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what became of the golden files; read from the tests' reports, so that it arrives from xdist's workers."""
    if not terminalreporter.config.getoption(_UPDATE, False):
        return
    moved = set()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        # other plugins file things among the reports that have no properties
        moved |= {text for name, text in getattr(report, "user_properties", ()) if name == _MOVED}
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
        "the fixture 'backend' was asked for while the test was running, too late to run it once per backend; name "
        f"`backend` as an argument of the test or of the fixture that overrides it, or choose one of {names} with "
        "--backend",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def backend(_multibackend_name: str) -> str:
    """The name of the backend to test; a test that takes it runs once for each that `--backend` chooses."""
    return _multibackend_name


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`golden(experiment, file=None, backend=None, updates=None)` holds a run against its golden trace.

    The file is `golden/MODULE.TEST.json` beside the test's file unless `file` is given, which
    is taken from there too; the backend is the test's `backend` where it has one, else the one
    that recorded. One file serves all backends. With `--update-golden` it is rewritten where
    the run moved.
    """
    test_backend = request.getfixturevalue("backend") if "backend" in request.fixturenames else None

    def hold(
        experiment: Experiment,
        file: str | Path | None = None,
        *,
        backend: str | None = None,
        updates: int | None = None,
    ) -> Any:
        __tracebackhide__ = True
        from multibackend.golden import Change  # noqa: PLC0415
        from multibackend.testing.experiments import assert_golden  # noqa: PLC0415 - only where a test wants it

        folder = request.path.parent / "golden"
        path = folder / (_file_name(request.node) if file is None else file)
        update = bool(request.config.getoption(_UPDATE, False))
        # a project's own fixture `backend` may be anything
        name = test_backend if backend is None and isinstance(test_backend, str) else backend
        result = assert_golden(experiment, path, backend=name, updates=updates, update=update)
        if isinstance(result, Change) and result.written:
            lines = [os.path.relpath(path, request.config.rootpath)]
            lines += [f"  {reason}" for reason in result.reasons]
            request.node.user_properties.append((_MOVED, "\n".join(lines)))
        return result

    return hold


def _add_backend(parser: pytest.Parser) -> None:
    """Add `--backend`, unless somebody has it: the parser has no list of its options, so it is asked to read one."""
    try:
        unknown = parser.parse_known_and_unknown_args([f"{_OPTION}=?"])[1]
    except (Exception, SystemExit):
        return  # somebody has it, and does not accept that value
    if unknown:
        parser.getgroup("multibackend").addoption(
            _OPTION,
            dest=_CHOSEN,
            metavar="NAMES",
            help="the backends that tests with the fixture `backend` run on, for example torch,jax; default: all that "
            "are installed",
        )


def _chosen(config: pytest.Config) -> tuple[str, ...]:
    """Return the backends of `--backend`, or all that are installed; `UsageError` for one that is not there."""
    from multibackend.core.validation import closest  # noqa: PLC0415
    from multibackend.protocol.registry import list_backends  # noqa: PLC0415 - only where a test wants it

    infos = {info.name: info for info in list_backends()}
    option = config.getoption(_CHOSEN, None)
    if not option:
        return tuple(name for name, info in infos.items() if info.installed)
    names = tuple(dict.fromkeys(name.strip() for name in option.split(",")))
    for name in names:
        if name not in infos:
            known = ", ".join(map(repr, infos)) or "none"
            raise pytest.UsageError(
                f"--backend {option}: no backend is called {name!r}; registered are {known}{closest(name, infos)}"
            )
        if not infos[name].installed:
            raise pytest.UsageError(f"--backend {option}: {name!r} is not installed here; run: {infos[name].install}")
    return names


def _allowed(config: pytest.Config, node: Any) -> tuple[list[str], list[str]]:
    """Return (the chosen backends that the marks of a test allow, why others are not among them)."""
    from multibackend.protocol.registry import list_backends  # noqa: PLC0415 - only where a test wants it

    infos = {info.name: info for info in list_backends()}
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
            lacking = [name for name in names if capability not in infos[name].capabilities]
            names = [name for name in names if name not in lacking]
            reasons += [f"{name} has no capability {capability!r}" for name in lacking]
    return names, reasons or ["no backend is installed"]


def _read_mark(mark: pytest.Mark, infos: dict[str, BackendInfo]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read (names, capabilities); a slip fails the test rather than skipping it for ever."""
    from multibackend.core.validation import closest  # noqa: PLC0415

    needed = mark.kwargs.get("requires", ())
    needed = (needed,) if isinstance(needed, str) else tuple(needed)
    words = [*mark.args, *needed]
    extra = [name for name in mark.kwargs if name != "requires"]
    problem = ""
    if extra or not words or not all(isinstance(word, str) for word in words):
        problem = "takes names of backends, and requires= with names of capabilities"
    else:
        unknown = [name for name in mark.args if name not in infos]
        if unknown:
            known = ", ".join(map(repr, infos))
            problem = f"no backend is called {unknown[0]!r}; registered are {known}{closest(unknown[0], infos)}"
    if problem:
        pytest.fail(f"@pytest.mark.backends: {problem}", pytrace=False)
    return mark.args, needed


def _why(name: str, infos: dict[str, BackendInfo]) -> str:
    return f"{name} is not chosen by --backend" if infos[name].installed else f"{name} is not installed"


def _file_name(node: Any) -> str:
    """Make `MODULE.TEST.json`, with the parameters of the test other than the backend: one file serves them all."""
    parameters = {} if not hasattr(node, "callspec") else node.callspec.params
    values = [value for name, value in parameters.items() if name not in (_NAME, "backend")]
    if not all(isinstance(value, str | int | float) for value in values):
        pytest.fail(f"golden: give file=, the parameters {values} make no name of a file", pytrace=False)
    name = "-".join([getattr(node, "originalname", None) or node.name, *map(str, values)])
    name = name if node.cls is None else f"{node.cls.__name__}.{name}"
    safe = "".join(letter if letter.isalnum() or letter in "-_.[]" else "-" for letter in name)
    return f"{node.path.stem}.{safe}.json"
