"""Amounts of memory, as people write them and as numbers of bytes.

>>> parse_bytes("1.5GiB"), format_bytes(1610612736)
(1610612736, '1.5 GiB')
"""

from __future__ import annotations

import re
from typing import Any

from multibackend.core.validation import Problems, is_integer

__all__ = ["check_bytes", "format_bytes", "parse_bytes"]

# No sign and no exponent: "-1GB" and "1e9B" are refused with the list of units, not guessed at.
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def check_bytes(name: str, value: Any, problems: Problems) -> bool:
    """Add a problem unless `value` is a number of bytes >= 1, or a string such as "2GiB"."""
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
    """Return the number of bytes: KiB, MiB, ... count by 1024, KB, MB, ... by 1000."""
    amount = _WRITTEN.fullmatch(str(value))
    if amount is None:
        return int(value)
    number, prefix, binary = amount.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** _POWERS[prefix])


def format_bytes(value: int) -> str:
    """Write a number of bytes in the largest binary unit of which there is one, with four digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    # Ten bits make a unit. Bit lengths rather than a logarithm, which rounding could put below the
    # next power; TiB is the last unit, however many of them there are.
    power = min((max(value, 1).bit_length() - 1) // 10, len(units) - 1)
    return f"{value / 1024**power:.4g} {units[power]}"
