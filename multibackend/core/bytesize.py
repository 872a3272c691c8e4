"""Amounts of memory, as people write them and as numbers of bytes.

>>> parse_bytes("1.5GiB"), format_bytes(1610612736)
(1610612736, '1.5 GiB')
"""

from __future__ import annotations

import re
from typing import Any

from multibackend.core.validation import Problems, is_integer

__all__ = ["check_bytes", "format_bytes", "parse_bytes"]

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def check_bytes(name: str, value: Any, problems: Problems) -> bool:
    """Add a problem unless `value` is a number of bytes of at least 1, or a string such as "2GiB"."""
    if is_integer(value):
        return problems.integer(name, value, minimum=1)
    if not isinstance(value, str):
        problems.add(f"{name} must be a number of bytes or a string such as '2GiB', got {value!r}", wrong_type=True)
        return False
    if not _WRITTEN.fullmatch(value) or parse_bytes(value) < 1:
        problems.add(f"{name} must be a number with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, got {value!r}")
        return False
    return True


def parse_bytes(value: int | str) -> int:
    """The number of bytes: KiB, MiB, ... count by 1024, KB, MB, ... by 1000."""
    written = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if written is None:
        return int(value)
    number, prefix, binary = written.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])


def format_bytes(value: int) -> str:
    """With the largest binary unit in which it is at least 1, four digits."""
    power = min(max(value, 1).bit_length() - 1, 49) // 10
    return f"{value / 1024**power:.4g} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"
