"""The listings of the coming-from pages, theirs and ours: the same losses from the same start.

torch's and Flax's always; those of Keras, Lightning and Accelerate where they are installed, as in `make coming-from`.
"""

from __future__ import annotations

import runpy
from importlib.util import find_spec

import pytest
from docs.pages import DOCS

CHECK = runpy.run_path(str(DOCS / "building" / "coming_from.py"))
INSTALLED = [name for name in CHECK["OURS"] if find_spec(name) is not None]


@pytest.mark.parametrize("name", INSTALLED)
def test_both_listings_make_the_same_losses(name: str) -> None:
    """Within the tolerance that the pages state."""
    assert CHECK["compare"](name) <= CHECK["TOLERANCE"]
