"""What a user's own code raises while the library runs it, told as what it is.

    with user_code("the model", layer_of):
        outputs = call(module, batch, train)

Whatever is raised inside comes out as a `UserCodeError`, from the user's own error, and says which
function it was, where in the user's file, and, of a model, in which layer and what went into it.
All of it is read off the traceback: nothing is recorded while things go well, so that it costs
nothing, inside a compiled function and out of it.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from multibackend.core.paths import arrays_by_path
from multibackend.core.validation import shown
from multibackend.errors import DataError, MultibackendError, UserCodeError

__all__ = [
    "Layer",
    "LayerOf",
    "add_origin",
    "arguments_of",
    "check_outputs",
    "fields_of",
    "name_of",
    "origin",
    "user_code",
]

# files of Python, of installed packages and of this library: a user's own code is none of these
_FOREIGN = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parents[1])}
)
_LIBRARIES = ("multibackend_torch", "multibackend_jax")


@dataclass(frozen=True)
class Layer:
    """A part of a model, as an error names it.

    Attributes:
        path: its dotted path in the model; "" for the model itself.
        kind: the name of its class.
        shapes: of its own parameters, by name, as the framework keeps them.
    """

    path: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        parameters = [f"{name} {list(shape)}" for name, shape in self.shapes.items()]
        inside = ", ".join([self.kind, *parameters])
        return f"layer {self.path!r} ({inside})" if self.path else f"the model itself ({inside})"


LayerOf = Callable[[Any], Layer | None]
"""From any object to the layer that it is, None for what is none."""


class user_code:  # noqa: N801 - a context manager, used like a function
    """Tell what a user's code raises inside the `with` as a `UserCodeError`.

    Errors of the library's own pass, and so does all that is no `Exception`.

    Args:
        role: what the code is: "the torch builder", "the loss 'tokens'".
        layer_of: recognises the layers of a model, where the code calls one.
        hint: how the function is called, or what it may read; told with the error.
        repair: the way out of an error that it knows; "" for any other.
    """

    __slots__ = ("_hint", "_layer_of", "_repair", "_role")

    # A class, which is entered and left in less than a microsecond: it is around every micro-batch.
    def __init__(
        self,
        role: str,
        layer_of: LayerOf | None = None,
        hint: str | Callable[[], str] = "",
        repair: Callable[[Exception], str] | None = None,
    ) -> None:
        self._role = role
        self._layer_of = layer_of
        self._hint = hint
        self._repair = repair

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, MultibackendError):
            return
        repair = "" if self._repair is None else self._repair(error)
        hint = repair or (self._hint if isinstance(self._hint, str) else self._hint())
        raise _told(self._role, error, self._layer_of, hint) from error


def _told(role: str, error: Exception, layer_of: LayerOf | None, hint: str) -> UserCodeError:
    layer, inputs = _innermost_layer(error, layer_of)
    sentence = f"{role} raised {type(error).__name__}"
    if layer is not None:
        given = ", ".join(inputs) or "no array"
        sentence += f" in {layer}, which was given {given}"
    lines = [f"{sentence}: {error}"]
    place = _place(error)
    if place:
        lines.append(f"raised at {place}")
    if hint:
        lines.append(hint)
    return UserCodeError("\n  ".join(lines), role=role, layer=None if layer is None else layer.path)


def check_outputs(outputs: Any, kind: type) -> None:
    """Raise unless there is an array of the framework, a `kind`, somewhere in what a model returned."""
    leaves = list(arrays_by_path(outputs).values())
    if any(isinstance(leaf, kind) for leaf in leaves):
        return
    if leaves:
        found = type(leaves[0]).__name__
        sentence = f"the model returned an array of type {found}, which has left the framework: it has no gradient"
        raise UserCodeError(f"{sentence}; compute in the framework's own functions", role="the model")
    value = f"{type(outputs).__name__} {shown(outputs)}" if outputs is not None else "None"
    raise DataError(f"the model returned {value}, but its outputs must be arrays [batch, ...]; is a return missing?")


def fields_of(batch: Mapping[str, Any]) -> str:
    """Describe the fields that a function was called with."""
    listed = [f"{name!r} {' '.join(_described(value))}" for name, value in batch.items()]
    return "the batch has " + ", ".join(listed)


def arguments_of(call: str, outputs: Any, batch: Mapping[str, Any]) -> str:
    """Describe how a custom loss or metric is called, and with what."""
    given = ", ".join(_described(outputs)) or type(outputs).__name__
    return f"it is called as function{call}, here with the outputs {given}; {fields_of(batch)}"


def name_of(function: object) -> str:
    """Return the name of a function after a space; "" for one that has none of its own."""
    name = getattr(function, "__name__", "<lambda>")
    return "" if name.startswith("<") else f" {name!r}"


@contextlib.contextmanager
def origin(of: str) -> Iterator[None]:
    """Say of errors inside the `with`, which pass on as they are, whose they are; not of the library's own."""
    try:
        yield
    except Exception as error:
        add_origin(error, of)
        raise


def add_origin(error: BaseException, of: str) -> None:
    """Say whose an error is that passes on as it is, as a note below it; once for each error."""
    note = f"raised by {of}"
    if isinstance(error, MultibackendError):  # whose message has said it
        return
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Iterate over the frames that an error came through, the innermost last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


def _innermost_layer(error: BaseException, layer_of: LayerOf | None) -> tuple[Layer | None, list[str]]:
    """Return the last layer that was called before the error, and what it was given."""
    if layer_of is None:
        return None, []
    for frame in reversed(list(_frames(error))):
        owner = frame.f_locals.get("self")
        layer = None if owner is None else layer_of(owner)
        if layer is not None:
            return layer, _arrays(frame)
    return None, []


def _arrays(frame: FrameType) -> list[str]:
    """Describe the arrays among the arguments of a frame's function, but for `self`."""
    arguments = inspect.getargvalues(frame)
    names = [*arguments.args[1:], *filter(None, (arguments.varargs, arguments.keywords))]
    return [text for name in names for text in _described(arguments.locals.get(name))]


def _described(value: Any) -> Iterator[str]:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        # "torch.float32" and "float32" are one type
        yield f"{str(value.dtype).rpartition('.')[2]} {list(value.shape)}"
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _described(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _described(part)


def _place(error: BaseException) -> str:
    """Return the last line of the user's own that an error came through; "" where there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if _is_users(code):
            text = linecache.getline(code.co_filename, line).strip()
            return f"{code.co_filename}, line {line}, in {code.co_name}" + (f": {text}" if text else "")
    return ""


def _is_users(code: CodeType) -> bool:
    path = code.co_filename
    if path.startswith("<") or any(path.startswith(foreign) for foreign in _FOREIGN):
        return False
    return not any(name in Path(path).parts for name in _LIBRARIES)
