"""The command that lists backends, apart from the others: it needs nothing of the library but the registry."""

from __future__ import annotations

import argparse

from multibackend.cli.tables import backend_blocks
from multibackend.core.text import print_blocks
from multibackend.protocol.registry import list_backends

__all__ = ["backends"]


def backends(options: argparse.Namespace, flags: list[str]) -> int:
    """List the backends, installed or not."""
    print_blocks(backend_blocks(list_backends()))
    return 0
