"""Which parameter of one model is which of another, and how one's arrays become the other's."""

from multibackend.matching.links import Link, Matching, Rearrangement

__all__ = ["Link", "Matching", "Rearrangement"]
