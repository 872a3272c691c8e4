"""What is known of a model's arrays before it is run, and what is open after looking at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from multibackend.core.arrays import without
from multibackend.matching.links import Link, Part, Rearrangement, Shapes

__all__ = ["CANONICAL", "Group", "Pair", "Proposal", "Side"]

CANONICAL = "canonical"  # the kind of an array whose layout is canonical, whatever its layer


@dataclass(frozen=True)
class Side:
    """A model's arrays, parameters and model state alike.

    Attributes:
        shapes: by canonical name, in order of definition where that is known.
        kinds: what sort of layer each belongs to ("linear", "embedding", "convolution",
            "normalisation", ...), and so that its layout is canonical; "" for an array of
            the user's own module, whose layout is anyone's guess. Names that are missing
            count as canonical.
        parameters: the names that are trained; the others are model state.
        ordered: whether the order of `shapes` is one of definition.
        integers: names of arrays of integers, which pair up by equal names only.
        slices: names that stand for slices of arrays: {name: (the array, which part)}.
    """

    shapes: Shapes
    kinds: Mapping[str, str] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    ordered: bool = False
    integers: frozenset[str] = frozenset()
    slices: Mapping[str, tuple[str, Part]] = field(default_factory=dict)

    def kind(self, name: str) -> str:
        """The kind of an array."""
        return self.kinds.get(name, CANONICAL)

    def size(self, name: str) -> int:
        """The number of elements of an array, which no change of layout alters."""
        return math.prod(self.shapes[name])

    def sliced(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays with the slices by their names in place of the whole."""
        wholes = {whole for whole, _ in self.slices.values()}
        result = without(arrays, wholes)
        for name, (whole, part) in self.slices.items():
            if whole in arrays:
                result[name] = part.take(arrays[whole])
        return result

    def joined(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of `sliced`."""
        result = without(arrays, self.slices)
        for name, (whole, part) in self.slices.items():
            if name in arrays:
                array = result.setdefault(whole, np.zeros(part.shape, arrays[name].dtype))
                part.put(array, arrays[name])
        return result


@dataclass(frozen=True)
class Pair:
    """An array and its partner, with the changes of layout that their shapes allow, the likeliest first."""

    reference: str
    other: str
    changes: tuple[Rearrangement, ...]
    evidence: str
    open: bool = False

    def link(self, reference: Side, other: Side) -> Link:
        """The link that the first change makes, between whole arrays or parts of them."""
        # slices were only to be paired: a link is between the arrays that they are slices of
        name, part = reference.slices.get(self.reference, (self.reference, None))
        partner, other_part = other.slices.get(self.other, (self.other, None))
        shape = tuple(reference.shapes[self.reference]) if part is None else part.shape
        return Link(name, partner, self.changes[0], shape, part, other_part, evidence=self.evidence)

    def taking(self, change: Rearrangement, evidence: str) -> Pair:
        """The pair settled on one change."""
        return replace(self, changes=(change,), evidence=evidence, open=False)


@dataclass(frozen=True)
class Group:
    """An array that is several of the other model's: the ways in which it may be cut, the likeliest first.

    Attributes:
        whole: its name.
        parts: the names on the other side.
        of_reference: whether the whole is the reference's.
        ways: for each way (its name, the links); the same name means the same way for
            weight and bias.
        evidence: why these belong together.
        role: groups of one role are cut in one way.
    """

    whole: str
    parts: tuple[str, ...]
    of_reference: bool
    ways: tuple[tuple[str, tuple[Link, ...]], ...]
    evidence: str
    role: str

    @property
    def open(self) -> bool:
        """Whether names and shapes leave more than one way."""
        return len(self.ways) > 1

    @property
    def links(self) -> tuple[Link, ...]:
        """The links of the likeliest way."""
        _, links = self.ways[0]
        return tuple(replace(link, evidence=link.evidence or self.evidence) for link in links)


@dataclass(frozen=True)
class Proposal:
    """What names, shapes, kinds and order say.

    Attributes:
        pairs, groups: every array that has a partner is in one of them.
        sets: names of the reference in `pairs` whose partners could as well be
            exchanged among them.
        reference_left, other_left: arrays without a partner.
        plain: all names and shapes were equal but for style, and nothing is open.
    """

    pairs: tuple[Pair, ...]
    groups: tuple[Group, ...] = ()
    sets: tuple[tuple[str, ...], ...] = ()
    reference_left: tuple[str, ...] = ()
    other_left: tuple[str, ...] = ()
    plain: bool = False

    @property
    def open(self) -> bool:
        """Whether something is left for the models themselves to tell."""
        return bool(self.sets) or any(part.open for part in (*self.pairs, *self.groups))

    def links(self, reference: Side, other: Side) -> tuple[Link, ...]:
        """The links of every pair and group, each by its likeliest choice."""
        links = [pair.link(reference, other) for pair in self.pairs]
        for group in self.groups:
            links += group.links
        return tuple(links)
