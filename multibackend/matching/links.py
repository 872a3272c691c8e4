"""A matching: links between the parameters of two models, each with the change of layout between them.

Every change is linear and loses nothing (axes reshaped and permuted, arrays joined or cut), so one
matching serves parameters, gradients, moments and averages alike, in both directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.core import json_text
from multibackend.core.arrays import Arrays
from multibackend.core.files import replace_file
from multibackend.errors import ParameterMatchError

__all__ = ["Link", "Matching", "Part", "Rearrangement", "Shapes"]

_FORMAT = "multibackend-matching-1"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Rearrangement:
    """How one array becomes another with the same elements: reshape to `merged`, permute by `axes`, reshape to `shape`.

    >>> Rearrangement(merged=(2, 3), axes=(1, 0), shape=(3, 2))(np.zeros((2, 3))).shape
    (3, 2)
    """

    merged: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> Rearrangement:
        """The change between arrays that are laid out alike: none."""
        return cls(shape, tuple(range(len(shape))), shape)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array.reshape(self.merged).transpose(self.axes).reshape(self.shape), order="C")

    def inverse(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Bring an array back to the `shape` that it was changed from."""
        permuted = array.reshape(tuple(self.merged[axis] for axis in self.axes))
        # the axes' positions in order are the permutation that undoes them
        return np.asarray(permuted.transpose(np.argsort(self.axes)).reshape(shape), order="C")

    def reversed(self, shape: tuple[int, ...]) -> Rearrangement:
        """The change back to an array of `shape`, as a change of its own."""
        merged = tuple(self.merged[axis] for axis in self.axes)
        return Rearrangement(merged, tuple(np.argsort(self.axes).tolist()), shape)

    @property
    def moves(self) -> bool:
        """Whether it does more than reshape; axes of length 1 move no element."""
        axes = [axis for axis in self.axes if self.merged[axis] > 1]
        return axes != sorted(axes)


@dataclass(frozen=True)
class Part:
    """A slice of an array: seen as `view`, what lies at `index` along `axis`, brought to `piece`.

    One of three projections in a fused [3 * d, in] is view (3, d, in), axis 0; where they
    alternate within each head, view (heads, 3, dim, in), axis 1; one layer of a stack is its
    index along axis 0.

    Attributes:
        shape: of the whole array.
        view: a shape with as many elements.
        axis, index: which slice of the view.
        piece: the shape that the slice is given.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    axis: int
    index: int
    piece: tuple[int, ...]

    def take(self, array: np.ndarray) -> np.ndarray:
        """The slice."""
        return np.asarray(array.reshape(self.view).take(self.index, self.axis).reshape(self.piece), order="C")

    def put(self, whole: np.ndarray, piece: np.ndarray) -> None:
        """Write the slice into a whole, contiguous array in place; adds to what is there."""
        view = whole.reshape(self.view)  # of a contiguous array no copy
        slot = view[(slice(None),) * self.axis + (self.index,)]
        slot += piece.reshape(slot.shape)

    def __str__(self) -> str:
        words = f"part {self.index + 1} of {self.view[self.axis]} along axis {self.axis}"
        # an axis, or blocks along it, are clear from the shape; alternating parts are not
        return words if len(self.view) <= len(self.shape) + 1 else f"{words} of {list(self.view)}"


@dataclass(frozen=True)
class Link:
    """A parameter of the reference, or a part of it, and its partner in the other model, or a part of that.

    Attributes:
        reference, other: names.
        rearrangement: from the one (part) to the other (part).
        reference_shape: of the reference's whole array.
        reference_part, other_part: where only a slice is meant.
        evidence: why these two, and why so: "name", "shape", "gradient agrees to 1e-15,
            next best 0.3".
    """

    reference: str
    other: str
    rearrangement: Rearrangement
    reference_shape: tuple[int, ...]
    reference_part: Part | None = None
    other_part: Part | None = None
    evidence: str = ""

    @property
    def other_shape(self) -> tuple[int, ...]:
        """The shape of the other's whole array."""
        if self.other_part is None:
            return self.rearrangement.shape
        return self.other_part.shape

    @property
    def reference_piece(self) -> tuple[int, ...]:
        """The shape of what is meant of the reference's array."""
        if self.reference_part is None:
            return self.reference_shape
        return self.reference_part.piece

    @property
    def change(self) -> str:
        """The change of layout in words.

        >>> Link("a", "b", Rearrangement((2, 3), (1, 0), (3, 2)), (2, 3)).change
        'transposed'
        """
        words = []
        if self.reference_part is not None:
            words.append(f"{self.reference_part} of the reference")
        layout = _in_words(self.rearrangement, self.reference_piece)
        if layout:
            words.append(layout)
        if self.other_part is not None:
            words.append(f"becomes {self.other_part}")
        return ", ".join(words) or "as it is"

    def to_other(self, array: np.ndarray) -> np.ndarray:
        """The piece of the other that this link makes from the reference's whole array."""
        return self.rearrangement(self.of_reference(array))

    def of_reference(self, array: np.ndarray) -> np.ndarray:
        """The piece of the reference's whole array that this link is about."""
        if self.reference_part is None:
            return array
        return self.reference_part.take(array)

    def of_other(self, array: np.ndarray) -> np.ndarray:
        """The piece of the other's whole array that this link is about."""
        if self.other_part is None:
            return array
        return self.other_part.take(array)

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """The piece of the reference that this link makes from the other's whole array."""
        return self.rearrangement.inverse(self.of_other(array), self.reference_piece)

    def reversed(self) -> Link:
        """The same link seen from the other model."""
        change = self.rearrangement.reversed(self.reference_piece)
        parts = (self.other_part, self.reference_part)
        return Link(self.other, self.reference, change, self.other_shape, *parts, self.evidence)


def _in_words(change: Rearrangement, shape: tuple[int, ...]) -> str:
    if change.moves:
        if change.merged != shape or len(change.shape) != len(shape):
            return f"seen as {list(change.merged)}, axes permuted {change.axes}"
        if change.axes == (1, 0):
            return "transposed"
        return f"axes permuted {change.axes}"
    if change.shape == shape:
        return ""
    if len(change.shape) == len(shape):
        return "reshaped"
    return "axes split" if len(change.shape) > len(shape) else "axes joined"


@dataclass(frozen=True)
class Matching:
    """All links between two models.

    Attributes:
        links: every array of either model is in at least one of them, or in the mappings below.
        reference_only, other_only: {name: why it has no partner}, for example model state that one
            side alone keeps.

    >>> Matching.of_pairs({"b": "a"}, {"a": (2, 3)}).to_other({"a": np.zeros((2, 3))}).keys()
    dict_keys(['b'])
    """

    links: tuple[Link, ...]
    reference_only: Mapping[str, str] = field(default_factory=dict)
    other_only: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_pairs(cls, pairs: Mapping[str, str], shapes: Shapes) -> Matching:
        """From {name of other: name of reference}, laid out alike, and the shapes of the reference."""
        unchanged = {name: Rearrangement.identity(shape) for name, shape in shapes.items()}
        links = [Link(name, other, unchanged[name], shapes[name], evidence="name") for other, name in pairs.items()]
        return cls(tuple(links))

    def to_other(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Arrays by the reference's names as arrays by the other's; links whose array is not there are left out."""
        result: dict[str, np.ndarray] = {}
        for link in self.links:
            if link.reference not in arrays:
                continue
            piece = link.to_other(arrays[link.reference])
            if link.other_part is None:
                result[link.other] = piece
            else:
                whole = result.setdefault(link.other, np.zeros(link.other_shape, piece.dtype))
                link.other_part.put(whole, piece)
        return result

    def to_reference(self, arrays: Arrays, *, gradients: bool = False) -> dict[str, np.ndarray]:
        """Arrays by the other's names as arrays by the reference's; links whose array is not there are left out.

        Where the other holds a tied array several times the first counts; with `gradients` their
        sum, because each use adds to the gradient of the one.
        """
        result: dict[str, np.ndarray] = {}
        filled: set[tuple[str, Part | None]] = set()
        for link in self.links:
            place = (link.reference, link.reference_part)
            if link.other not in arrays or (place in filled and not gradients):
                continue
            piece = link.to_reference(arrays[link.other])
            if link.reference_part is not None:
                whole = result.setdefault(link.reference, np.zeros(link.reference_shape, piece.dtype))
                link.reference_part.put(whole, piece)
            elif place in filled:
                result[link.reference] = result[link.reference] + piece
            else:
                result[link.reference] = piece
            filled.add(place)
        return result

    def reversed(self) -> Matching:
        """The same matching with the other model as the reference."""
        return Matching(tuple(link.reversed() for link in self.links), self.other_only, self.reference_only)

    def to_json(self) -> str:
        """Return it as text for `from_json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Matching:
        """Read the text of `to_json`; raises `ParameterMatchError` for what is none."""
        try:
            return cls._of_json(json_text.load(text.encode("utf-8", "surrogatepass"), json_text.FILE))
        except json_text.JSONTextError as error:
            raise ParameterMatchError(f"this is no matching: {error}") from error

    @classmethod
    def _of_json(cls, content: Any) -> Matching:
        try:
            name = content.get("format")
            if name != _FORMAT:
                raise ParameterMatchError(f"this is no matching: its format is {name!r}, not {_FORMAT!r}")
            links = tuple(_read_link(entry) for entry in content["links"])
            return cls(links, dict(content["reference_only"]), dict(content["other_only"]))
        except ParameterMatchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # any other file
            raise ParameterMatchError(f"this is no matching: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the JSON to a file; raises `FileError`."""
        replace_file(Path(path), [(self.to_json() + "\n").encode("utf-8")])

    @classmethod
    def load(cls, path: str | Path) -> Matching:
        """Read what `save` wrote; raises `ParameterMatchError`."""
        try:
            content = json_text.read_file(Path(path))
        except json_text.JSONTextError as error:
            raise ParameterMatchError(f"{str(path)!r} is no matching: {error}") from error
        except (OSError, ValueError) as error:  # a ValueError: the path has a null character
            raise ParameterMatchError(f"there is no matching at {str(path)!r}: {error}") from error
        try:
            return cls._of_json(content)
        except ParameterMatchError as error:
            raise ParameterMatchError(f"{str(path)!r}: {error}") from error

    def check(self, reference: Shapes, other: Shapes) -> None:
        """Raise `ParameterMatchError` unless it fits two models' shapes and leaves no array over."""
        links = [(link.reference, link.reference_shape) for link in self.links]
        other_links = [(link.other, link.other_shape) for link in self.links]
        problems = [
            *_misfits("reference", reference, links),
            *_misfits("other model", other, other_links),
            *_left_over("reference", reference, {*dict(links), *self.reference_only}),
            *_left_over("other model", other, {*dict(other_links), *self.other_only}),
        ]
        unsound = [link.other for link in self.links if not _is_sound(link)]
        problems += [f"{name}: the link's shapes do not fit each other" for name in unsound]
        if problems:
            raise ParameterMatchError("\n  - ".join(["the matching does not fit the models:", *problems]))


def _misfits(model: str, shapes: Shapes, links: Iterable[tuple[str, tuple[int, ...]]]) -> Iterator[str]:
    for name, shape in links:
        if name not in shapes:
            yield f"{name} {shape} is no array of the {model}"
        elif tuple(shapes[name]) != tuple(shape):
            yield f"{name} of the {model} has shape {tuple(shapes[name])}, the matching says {tuple(shape)}"


def _left_over(model: str, shapes: Shapes, accounted: Container[str]) -> Iterator[str]:
    for name, shape in shapes.items():
        if name not in accounted:
            yield f"{name} {tuple(shape)} of the {model} has no link"


def _is_sound(link: Link) -> bool:
    """Whether a link's pieces have as many elements on either side, cut from the shapes it names."""
    # what comes from a file may be anything, and is asked before an array is cut by it
    change = link.rearrangement
    size = math.prod(change.merged)
    sizes = {math.prod(link.reference_piece), math.prod(change.shape)}
    if sorted(change.axes) != list(range(len(change.merged))) or sizes != {size}:
        return False
    parts = [part for part in (link.reference_part, link.other_part) if part is not None]
    return all(math.prod(part.piece) == size and _is_sound_part(part) for part in parts)


def _is_sound_part(part: Part) -> bool:
    if not 0 <= part.axis < len(part.view):
        return False
    count = part.view[part.axis]
    whole = math.prod(part.piece) * count
    return math.prod(part.view) == math.prod(part.shape) == whole and 0 <= part.index < count


def _read_link(entry: Mapping[str, Any]) -> Link:
    change = Rearrangement(**_fields(entry["rearrangement"]))
    reference_part = _read_part(entry["reference_part"])
    other_part = _read_part(entry["other_part"])
    names = (str(entry["reference"]), str(entry["other"]))
    return Link(*names, change, tuple(entry["reference_shape"]), reference_part, other_part, str(entry["evidence"]))


def _read_part(entry: Mapping[str, Any] | None) -> Part | None:
    return None if entry is None else Part(**_fields(entry))


def _fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers, and lists of them as tuples, because JSON knows no tuples."""
    return {name: tuple(map(int, value)) if isinstance(value, list) else int(value) for name, value in entry.items()}
