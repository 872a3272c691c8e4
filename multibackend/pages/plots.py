"""A plot with what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.pages.figures import Figure

__all__ = ["Plot"]


@dataclass(frozen=True)
class Plot:
    """A figure with its caption; `label` says in words what it shows."""

    anchor: str
    figure: Figure
    caption: str
    label: str
