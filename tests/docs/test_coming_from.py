"""The listings of the coming-from pages, theirs and ours: the same losses from the same start.

Those of Keras, Lightning and Accelerate where they are installed, in `make coming-from`; torch's and Flax's always.
"""

from __future__ import annotations

import runpy

import pytest
from docs.pages import DOCS

CHECK = runpy.run_path(str(DOCS / "building" / "coming_from.py"))


@pytest.mark.parametrize("name", CHECK["OURS"])
def test_both_listings_make_the_same_losses(name: str) -> None:
    """Within the tolerance that the pages state."""
    pytest.importorskip(name)
    assert CHECK["compare"](name) <= CHECK["TOLERANCE"]
