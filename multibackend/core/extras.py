"""Packages that are not installed: which extra of this library brings them, and the command that installs them."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator
from types import ModuleType

from multibackend.errors import PackageNotInstalledError

__all__ = ["extra_of", "import_extra", "told_missing"]

_REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+).*\bextra\s*==\s*["'](?P<extra>[\w.-]+)["']""")


def import_extra(module: str, extra: str, *, by: str = "this listener") -> ModuleType:
    """Import a package of an extra; raises `PackageNotInstalledError` where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageNotInstalledError(
            f"the package {module.partition('.')[0]!r} is not installed, which {by} needs; run: "
            f"pip install 'multibackend[{extra}]'"
        ) from error


@contextlib.contextmanager
def told_missing(by: object) -> Iterator[None]:
    """Tell of a module that `by` imports inside and that is not there as a `PackageNotInstalledError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        # of an error that somebody raised by hand nothing is known
        if error.name is None or isinstance(error, PackageNotInstalledError):
            raise
        package = error.name.partition(".")[0]
        extra = extra_of(package)
        what = f"pip install {package}, or put the module beside the file if it is your own"
        if extra is not None:
            what = f"pip install 'multibackend[{extra}]'"
        raise PackageNotInstalledError(f"{by} imports {error.name!r}, which is not installed; run: {what}") from error


def extra_of(module: str, requirements: Iterable[str] | None = None) -> str | None:
    """Return the extra of this library that brings a module, the smallest of several; None for any other module.

    Args:
        module: the name that is imported.
        requirements: as the metadata of a distribution have them; this library's own unless given.

    >>> extra_of("sklearn", ["numpy>=2", "scikit-learn>=1.4; extra == 'test'", "ruff; extra == 'test'",
    ...                      "scikit-learn>=1.4; extra == 'examples'"])
    'examples'
    """
    members: dict[str, list[str]] = {}
    for requirement in _own_requirements() if requirements is None else requirements:
        match = _REQUIREMENT.match(requirement)
        if match is not None:
            members.setdefault(match["extra"], []).append(match["package"])
    fitting = [extra for extra, packages in members.items() if any(_brings(package, module) for package in packages)]
    return min(fitting, key=lambda extra: (len(members[extra]), extra), default=None)


def _own_requirements() -> list[str]:
    # imported here: it is a fifth of the time that importing this package takes
    from importlib.metadata import PackageNotFoundError, requires  # noqa: PLC0415

    try:
        return requires("multibackend") or []
    except PackageNotFoundError:
        return []


def _brings(package: str, module: str) -> bool:
    """Tell whether a package brings a module: by its name, or one that the module's abbreviates, as sklearn does."""
    package, module = (re.sub(r"[-_.]", "-", name.lower()) for name in (package, module))
    if package == module or package.startswith(f"{module}-"):
        return True
    letters = iter(package)
    # `in` takes letters from the iterator, so that they must come in order
    is_abbreviation = all(letter in letters for letter in module) and package[0] == module[0]
    return is_abbreviation and len(module) >= 0.55 * len(package)
