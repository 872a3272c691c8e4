"""Packages that only some users need: imported when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

from multibackend.errors import PackageNotInstalledError

__all__ = ["import_extra"]


def import_extra(module: str, extra: str, *, by: str = "this listener") -> ModuleType:
    """Import a package of an extra; raises `PackageNotInstalledError` where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageNotInstalledError(
            f"the package {module.partition('.')[0]!r} is not installed, which {by} needs; run: "
            f"pip install 'multibackend[{extra}]'"
        ) from error
