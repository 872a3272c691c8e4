"""The core names no framework; choosing a backend never loads the other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multibackend

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax"}
BACKENDS = {"multibackend_torch", "multibackend_jax"}
CORE = sorted((ROOT / "multibackend").rglob("*.py"))
SHOW = "import sys; print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"


def loaded(code: str) -> set[str]:
    """The top-level modules in a fresh process after `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{SHOW}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import multibackend",
        "import multibackend as mb; assert len(mb.list_backends()) >= 3",
        "import multibackend.testing.conformance",
        "import multibackend.cli",
        "import multibackend_torch, multibackend_jax",
        "import multibackend as mb; mb.Model(torch='a:b', jax='c:d', inputs='x')",
    ],
)
def test_no_framework(code: str) -> None:
    """Importing, listing, describing and even importing the backends' packages load no framework."""
    assert not loaded(code) & FRAMEWORKS


@pytest.mark.parametrize(("backend", "own"), [("torch", {"torch"}), ("jax", {"jax", "flax", "optax"}), ("stub", set())])
def test_one_framework(backend: str, own: set[str]) -> None:
    """Loading a backend loads its own framework and no other, nor another backend."""
    modules = loaded(f"from multibackend.protocol.registry import load_backend; load_backend({backend!r})")
    assert own <= modules
    assert not modules & (FRAMEWORKS - own - {"jaxlib"})
    listed = {name for name in BACKENDS if f"{name}.backend" in submodules(backend)}
    assert listed <= {f"multibackend_{backend}"}


def test_loggers_are_imported_when_asked_for() -> None:
    """Neither the package nor the listeners' own modules load what they write with; only making a listener does."""
    listeners = "from multibackend.loggers import mlflow, tensorboard, wandb"
    pages = "import multibackend.parity, multibackend.parity.html.page"
    code = f"import multibackend, multibackend.cli\n{listeners}\n{pages}"
    assert not loaded(code) & {"tensorboardX", "wandb", "mlflow", "plotly", "jinja2"}


def submodules(backend: str) -> set[str]:
    load = f"from multibackend.protocol.registry import load_backend; load_backend({backend!r})"
    code = f"{load}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of everything that a file imports, inside functions and by `import_module("...")` too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {str(arg.value).partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_names_no_framework(path: Path) -> None:
    """No import of a framework or a backend anywhere in the core, not even inside a function."""
    assert not imported(ast.parse(path.read_text())) & (FRAMEWORKS | BACKENDS)


def test_import_scan_sees_what_it_should() -> None:
    """The scan finds imports in functions and by name."""
    code = "def f():\n    import torch.nn\n    from jax import numpy\n    importlib.import_module('optax.x')"
    assert imported(ast.parse(code)) == {"torch", "jax", "optax"}


def test_import_contracts() -> None:
    """import-linter's contracts in pyproject.toml are kept."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KEPT" in done.stdout


def imports_of(tree: ast.AST, modules: set[str]) -> set[str]:
    """Which of the modules a file imports: at its top, inside functions, and for type-checking alike."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return found & modules


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of modules each of which reaches every other one."""
    reached = {}
    for module, imported_modules in graph.items():
        seen: set[str] = set()
        waiting = list(imported_modules)
        while waiting:
            following = waiting.pop()
            if following not in seen:
                seen.add(following)
                waiting += graph[following]
        reached[module] = seen
    found = set()
    for module, seen in reached.items():
        if module in seen:
            found.add(frozenset(other for other in seen if module in reached[other]))
    return found


def test_no_two_files_import_each_other() -> None:
    """No circle of imports among the package's files and the backends', of any kind."""
    files: dict[str, Path] = {}
    for top in ("multibackend", "backends"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[1:] if top == "backends" else parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in files.items():
        graph[module] = imports_of(ast.parse(path.read_text()), set(files)) - {module}
    assert circles(graph) == set()


def test_circles_are_seen() -> None:
    """The search finds a circle of two, one of three, and none where there is none."""
    two = {"a": {"b"}, "b": {"a"}, "c": {"a"}}
    assert circles(two) == {frozenset({"a", "b"})}
    three = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}
    assert circles(three) == {frozenset({"a", "b", "c"})}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()
    lazy = "def f():\n    from m import x\nif TYPE_CHECKING:\n    import n"
    assert imports_of(ast.parse(lazy), {"m", "n", "m.x"}) == {"m.x", "n"}


def test_the_top_holds_what_users_name() -> None:
    """A file at the top of the package is one that a user writes `mb.` before."""
    top = {path.stem for path in (ROOT / "multibackend").glob("*.py")} - {"__init__"}
    assert top <= set(multibackend.__all__)
