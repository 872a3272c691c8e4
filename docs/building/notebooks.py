"""Runs the notebooks of the documentation and keeps what they print and draw.

python docs/building/notebooks.py             # after a change to a notebook
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(path: Path, directory: Path) -> nbformat.NotebookNode:
    """Run every cell in `directory`; an error in one is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": directory}}).execute()
    return notebook


def main() -> None:
    """Run all notebooks in place."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(path, NOTEBOOKS)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # the times of this run
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
