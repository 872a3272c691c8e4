"""The example files: a wheel has them inside the package, a clone beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from multibackend.errors import ConfigurationError

__all__ = ["copy_examples"]

_PACKAGE = Path(__file__).parents[1]


def copy_examples(target: str | Path) -> list[Path]:
    """Copy every example to a folder, which is made if need be; return their paths.

    Raises:
        ConfigurationError: one of the files is there already; nothing is copied then.

    >>> copy_examples("examples")  # doctest: +SKIP
    [PosixPath('examples/char_gpt.py'), ...]
    """
    target = Path(target)
    sources = sorted(_folder().glob("*.py"))
    copies = [target / source.name for source in sources]
    taken = [str(path) for path in copies if path.exists()]
    if taken:
        problem = f"{', '.join(taken)} would be written over; name another folder: multibackend examples FOLDER"
        raise ConfigurationError("examples", [problem])
    target.mkdir(parents=True, exist_ok=True)
    for source, copy in zip(sources, copies, strict=True):
        shutil.copyfile(source, copy)
    return copies


def _folder() -> Path:
    packed = _PACKAGE / "examples"
    return packed if packed.is_dir() else _PACKAGE.parent / "examples"
