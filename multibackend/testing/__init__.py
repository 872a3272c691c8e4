"""For people who test: assertions that raise, tolerances, and the suite for any backend.

Importing it imports no framework. See `multibackend.testing.conformance` for how a backend takes
the suite, and `multibackend.testing.plugin` for what pytest learns from this package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibackend.testing.assertions import (
        assert_arrays_match,
        assert_bit_identical,
        assert_raises,
        assert_snapshots_identical,
        assert_trainers_match,
    )
    from multibackend.testing.experiments import assert_golden, assert_matches
    from multibackend.testing.variant import Variant

__all__ = [
    "Variant",
    "assert_arrays_match",
    "assert_bit_identical",
    "assert_golden",
    "assert_matches",
    "assert_raises",
    "assert_snapshots_identical",
    "assert_trainers_match",
]

# imported when first asked for, so that the pytest plugin beside them costs nothing where nobody
# uses it
_LATER = {
    "Variant": "multibackend.testing.variant",
    "assert_golden": "multibackend.testing.experiments",
    "assert_matches": "multibackend.testing.experiments",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    module = import_module(_LATER.get(name, "multibackend.testing.assertions"))
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
