"""Finds backends by entry point: lists them without a framework, loads one by name.

A backend is an entry point in the group `multibackend.backends` whose value is a `BackendPlugin`.
The backends of this distribution are registered exactly as a stranger's would be.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from multibackend.core.validation import closest
from multibackend.errors import BackendNotFoundError, BackendNotInstalledError
from multibackend.protocol import Backend, BackendPlugin

__all__ = ["BackendInfo", "check_backend", "list_backends", "load_backend", "plugins"]

GROUP = "multibackend.backends"


@dataclass(frozen=True)
class BackendInfo:
    """One registered backend. All but `devices` is known without importing its framework.

    Attributes:
        name: what `backend=` accepts.
        installed: whether the modules that it needs can be imported.
        version: versions of its framework's distributions, for example "torch 2.13.0".
        execution_modes: the ways in which it can execute a window.
        capabilities: what else it can do.
        install: the command that installs what is missing.
    """

    name: str
    installed: bool
    version: str
    execution_modes: tuple[str, ...]
    capabilities: frozenset[str]
    install: str

    @property
    def devices(self) -> tuple[str, ...]:
        """What `device=` accepts; imports the framework. Empty where it is not installed."""
        return tuple(load_backend(self.name).devices()) if self.installed else ()


@functools.cache
def plugins() -> Mapping[str, BackendPlugin]:
    """Return every registered backend by name, in the order of names."""
    # Imported here: it is a fifth of the time that importing this package takes.
    from importlib.metadata import entry_points  # noqa: PLC0415

    # A plugin's own module imports no framework, so that all of them can be loaded to be listed.
    # Of two registrations under one name the later one stays: sorting keeps their order.
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point.load() for point in points}


def list_backends() -> tuple[BackendInfo, ...]:
    """List every registered backend, installed or not; imports no framework.

    >>> {"jax", "torch"} <= {info.name for info in list_backends()}
    True
    """
    return tuple(_info(plugin) for plugin in plugins().values())


def load_backend(name: str) -> Backend:
    """Return the backend of that name, its framework imported; one object for each name.

    Raises:
        BackendNotFoundError: no such backend is registered.
        BackendNotInstalledError: it is, but its framework is not installed.
    """
    return _made(check_backend(name).backend)


@functools.cache
def _made(reference: str) -> Backend:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def check_backend(name: str) -> BackendPlugin:
    """Return the plugin of that name; raises what `load_backend` would, and imports no framework."""
    plugin = plugins().get(name) if isinstance(name, str) else None
    if plugin is None:
        known = ", ".join(map(repr, plugins())) or "none"
        slip = closest(name, plugins()) or _framework_of(name)
        raise BackendNotFoundError(f"no backend is called {name!r}; registered are {known}{slip}")
    missing = ", ".join(_missing(plugin))
    if missing:
        problem = f"the backend {name!r} needs {missing}, not installed here"
        raise BackendNotInstalledError(f"{problem}; run: {plugin.install}")
    return plugin


def _framework_of(name: object) -> str:
    """Return `; did you mean 'jax'?` for the name of a package that a backend needs, such as flax."""
    for plugin in plugins().values():
        if str(name).lower() in (*plugin.requires, *plugin.distributions):
            return f"; did you mean {plugin.name!r}?"
    return ""


def _missing(plugin: BackendPlugin) -> list[str]:
    # find_spec looks for a module without running it: importing torch takes seconds.
    return [module for module in plugin.requires if importlib.util.find_spec(module) is None]


def _info(plugin: BackendPlugin) -> BackendInfo:
    return BackendInfo(
        name=plugin.name,
        installed=not _missing(plugin),
        version=", ".join(filter(None, map(_version, plugin.distributions))),
        execution_modes=plugin.execution_modes,
        capabilities=plugin.capabilities,
        install=plugin.install,
    )


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return ""
