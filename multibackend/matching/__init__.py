"""Which parameter of one model is which of another, and how one's arrays become the other's."""

from multibackend.matching.by_gradients import settle
from multibackend.matching.by_names import propose
from multibackend.matching.conclusion import finish, match_parameters
from multibackend.matching.links import Link, Matching, Part, Rearrangement
from multibackend.matching.sides import Group, Pair, Proposal, Side

__all__ = [
    "Group",
    "Link",
    "Matching",
    "Pair",
    "Part",
    "Proposal",
    "Rearrangement",
    "Side",
    "finish",
    "match_parameters",
    "propose",
    "settle",
]
