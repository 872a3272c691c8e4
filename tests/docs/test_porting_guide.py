"""docs/porting.md has a step for each of the mistakes of examples/port.py, in order, the last without any."""

from __future__ import annotations

import re

from docs.pages import DOCS


def test_the_guide_has_a_step_for_each_mistake() -> None:
    steps = re.findall(r"^\$ multibackend compare .* --step (\d)$", (DOCS / "porting.md").read_text(), re.M)
    assert steps == ["0", "1", "2", "3", "4", "5"]
