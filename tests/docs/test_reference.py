"""The reference has every public name."""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType

import pytest
from docs.pages import DOCS

import multibackend

SHOWN = set(re.findall(r"^::: (\S+)$", "".join(path.read_text() for path in (DOCS / "reference").glob("*.md")), re.M))


def test_every_public_name_has_its_place() -> None:
    """Each name of `multibackend.__all__` is shown, rooms whole."""
    assert [name for name in multibackend.__all__ if f"multibackend.{name}" not in SHOWN] == []


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_is_shown_exists(name: str) -> None:
    """A module, or a name in one, with a docstring; a name that a room exports has one as well."""
    try:
        documented = importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        documented = getattr(importlib.import_module(module), attribute)
    assert documented.__doc__
    if isinstance(documented, ModuleType):
        exported = [getattr(documented, key) for key in documented.__all__]
        # the site leaves out what has no docstring
        described = [value for value in exported if inspect.isroutine(value) or inspect.isclass(value)]
        assert [value for value in described if not value.__doc__] == []
