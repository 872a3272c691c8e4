"""The README's program runs as it stands there, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_the_first_program_of_the_readme() -> None:
    """It trains on torch and finds that both backends match."""
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    x = np.random.default_rng(0).normal(size=(100, 2))
    names: dict[str, Any] = {"x": x, "y": np.sin(x).sum(axis=1, keepdims=True)}
    exec(found[1], names)
    assert names["report"].matches
    assert names["report"].max_relative_difference < 1e-12


def test_the_files_that_the_readme_links_to_exist() -> None:
    """Relative links lead somewhere."""
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
