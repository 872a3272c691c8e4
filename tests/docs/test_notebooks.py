"""The notebooks of the documentation run from their first cell to their last."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from docs.pages import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    """In a kernel of its own, as a reader runs it."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    execute = runpy.run_path(str(DOCS / "building" / "notebooks.py"))["execute"]
    execute(path, tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_what_it_printed(path: Path) -> None:
    """Every cell was run, in order, without an error."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
