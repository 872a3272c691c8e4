"""Every program on every page of docs/ runs as it stands, from the top of its page to the end."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from docs.pages import ROOT, python_pages

import multibackend as mb
from multibackend.testing import assert_golden

PROGRAMS = python_pages()
OWN_WARNINGS = [getattr(mb.errors, name) for name in mb.errors.__all__ if name.endswith("Warning")]


@pytest.fixture
def backend() -> str:
    """One backend for the tests that pages define; a page's test is run by the test of its page."""
    return "torch"


@pytest.fixture
def golden(tmp_path: Path, backend: str) -> Callable[..., None]:
    """Record a trace and hold the run against it; the plugin's fixture would look beside this file."""

    def hold(experiment: mb.Experiment, *, updates: int) -> None:
        path = tmp_path / "golden.json"
        assert_golden(experiment, path, backend=backend, updates=updates, update=True)
        assert_golden(experiment, path, backend=backend, updates=updates)

    return hold


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_of_a_page_run(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and in one namespace, beside the examples; the tests that a page defines are called as pytest would."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    names: dict[str, Any] = {"__name__": "page"}
    for block in PROGRAMS[name]:
        if block.requires and find_spec(block.requires) is None:
            continue
        # as many empty lines as stand above it, so that an error shows the page's own line
        source = "\n" * (block.line - 1) + block.text
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            for warning in OWN_WARNINGS:
                warnings.simplefilter("error", warning)  # what the library warns of is no example
            exec(compile(source, str(ROOT / name), "exec"), names)
    for function in [value for key, value in names.items() if key.startswith("test_")]:
        function(**{argument: request.getfixturevalue(argument) for argument in inspect.signature(function).parameters})
