"""A plugin for pytest where frameworks are left out on purpose: a test that asks for one of them is skipped.

PYTHONPATH=packaging pytest -p skip_missing_frameworks tests/core
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from multibackend.errors import BackendNotInstalledError


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Run one test; what it needs and is not here is the reason of its skip."""
    try:
        return (yield)
    except BackendNotInstalledError as error:
        pytest.skip(str(error))
