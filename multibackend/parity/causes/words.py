"""A difference of laws in words: the cause's name, a sentence with both values, and the line to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from multibackend.parity.causes.laws import Difference
from multibackend.parity.findings import Cause
from multibackend.protocol.tracing import LayerCall

__all__ = ["Place", "cause_of"]

Idioms = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where two models part, as far as words need it.

    Attributes:
        backends: of the reference and of the other side.
        what: the layer or the array, as the report calls it.
        calls: the layer on each side, where there is one.
        idioms: how each framework writes a thing, by the laws' names: {"gelu (erf)": "F.gelu(x)"}.
        kinds: the classes of the reference's layers by name, those of sources among them.
        known: names of the arrays that were there on the reference's side.
    """

    backends: tuple[str, str]
    what: str = ""
    calls: tuple[LayerCall | None, LayerCall | None] = (None, None)
    idioms: tuple[Idioms, Idioms] = field(default=({}, {}))
    kinds: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] = frozenset()


def cause_of(difference: Difference, place: Place) -> Cause:
    """The cause that a difference of laws is.

    The name is that of the first trait in which the laws differ; the explanation tells them all.
    """
    topic, trait = difference.laws[0].topic, difference.traits[0]
    values = [law.traits.get(trait) for law in difference.laws]
    name, sentence = _named(topic, trait, values, place)
    others = [
        f"{other} is {_shown(difference.laws[0].traits.get(other))} in {place.backends[0]}, "
        f"{_shown(difference.laws[1].traits.get(other))} in {place.backends[1]}"
        for other in difference.traits[1:]
    ]
    repair = _repair(topic, trait, values, difference, place)
    return Cause(name, "; ".join([sentence, *others]), repair, difference.before, difference.after)


def _named(topic: str, trait: str, values: list[Any], place: Place) -> tuple[str, str]:
    kind = place.calls[0].kind if place.calls[0] is not None else topic
    where = f"at {place.what}" if place.what else ""
    special: Callable[..., tuple[str, str]] | None = {
        "activation": _activation,
        "terms": _terms,
        "weight": _weights,
        "query": _roles,
        "key": _roles,
        "value": _roles,
        "optimizer": _optimizers,
    }.get(trait)
    if special is not None:
        return special(values, place, where)
    name, pattern = _PHRASES.get((topic, trait), (f"{topic} {trait}", f"{topic}, {trait}: {{}}"))
    if trait.startswith("tied with"):
        name, pattern = "tied weight", f"The gradient WHERE, {trait}, is that of {{}}"
    pattern = pattern.replace("KIND", kind).replace("PLACE", place.what or "the loss")
    pattern = pattern.replace("WHERE", where).replace("  ", " ").strip()
    told = [pattern.format(_shown(value)) for value in values]
    first, second = place.backends
    sentence = f"{told[0]} in {first}, {_shown(values[1])} in {second}"
    return name.replace("KIND", kind), sentence[0].upper() + sentence[1:]


_PHRASES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("normalisation", "epsilon"): ("KIND epsilon", "KIND WHERE adds epsilon {} to the variance"),
    ("normalisation", "variance"): ("KIND variance", "KIND WHERE takes the variance as {}"),
    ("normalisation", "epsilon's place"): ("KIND epsilon's place", "KIND WHERE adds epsilon {}"),
    ("normalisation", "mean"): ("KIND mean", "KIND WHERE has the mean {}"),
    ("normalisation", "statistics"): ("KIND statistics", "KIND WHERE normalises by statistics {}"),
    ("running statistics", "momentum"): (
        "BatchNorm momentum",
        "The new value enters the running statistics with weight {}",
    ),
    ("running statistics", "variance"): (
        "BatchNorm running variance",
        "The running variance stores the variance that is {}",
    ),
    ("Linear", "bias"): ("missing bias", "The bias WHERE is {}"),
    ("Linear", "order of inputs"): ("order of axes", "The flattened input WHERE is taken in the order {}"),
    ("Linear", "digits of the factors"): ("matmul precision", "The product WHERE is of factors rounded to {} digits"),
    ("Embedding", "scale"): ("embedding scale", "The embedding WHERE is multiplied by {}"),
    ("Embedding", "indices"): ("shifted indices", "The embedding WHERE looks up indices {}"),
    ("convolution", "padding"): ("padding", "The convolution WHERE pads (before, after) by {}"),
    ("convolution", "stride"): ("stride", "The convolution WHERE moves by {}"),
    ("convolution", "dilation"): ("dilation", "The kernel WHERE is spread by {}"),
    ("convolution", "kernel"): ("convolution kernel", "The kernel WHERE is taken {}"),
    ("convolution", "bias"): ("missing bias", "The bias WHERE is {}"),
    ("convolution", "digits of the factors"): ("matmul precision", "The convolution WHERE has factors of {} digits"),
    ("arrival", "pooling"): ("pooling", "Pooling before PLACE: {}"),
    ("arrival", "window"): ("pooling window", "The pooling window before PLACE is {}"),
    ("arrival", "stride"): ("pooling stride", "Pooling before PLACE moves by {}"),
    ("arrival", "padding"): ("pooling padding", "Pooling before PLACE pads (before, after) by {}"),
    ("arrival", "padding counts"): ("pooling counts padding", "Whether padding counts in the average before PLACE: {}"),
    ("arrival", "order of axes"): ("order of axes", "The axes of what arrives WHERE are ordered {}"),
    ("arrival", "positions"): ("shifted positions", "The positions of what arrives WHERE are {}"),
    ("arrival", "activation comes"): ("order of activation and pooling", "The activation before PLACE comes {}"),
    ("attention", "scale"): ("attention scale", "Attention scores are multiplied by {}"),
    ("attention", "mask"): ("attention mask", "The mask of the attention is {}"),
    ("attention", "masked scores"): ("attention mask value", "Masked attention scores become {}"),
    ("attention", "softmax over"): ("attention softmax axis", "The softmax of the attention runs over {}"),
    ("attention", "split into heads"): ("order of heads", "Projections are split into heads as {}"),
    ("attention", "heads joined"): ("order of heads", "Heads are joined as {}"),
    ("attention", "heads"): ("number of heads", "The attention's number of heads is {}"),
    ("dropout", "rate"): ("dropout active", "Dropout WHERE has rate {}"),
    ("number format", "format"): ("dtype", "What KIND WHERE returns has the digits of {}"),
    ("relation", "factor"): ("scale", "What arrives WHERE is multiplied by {}"),
    ("relation", "position"): ("shifted positions", "What arrives WHERE is shifted by {}"),
    ("relation", "order of axes"): ("order of axes", "The axes of what arrives WHERE are {}"),
    ("cross entropy", "reduction"): ("loss reduction", "The cross entropy is reduced by {}"),
    ("cross entropy", "label smoothing"): ("label smoothing", "The labels are smoothed by {}"),
    ("cross entropy", "ignored label"): ("ignored label", "The label that does not count is {}"),
    ("cross entropy", "outputs taken for"): ("softmax before the loss", "The loss takes the outputs for {}"),
    ("regression loss", "reduction"): ("loss reduction", "The loss is reduced by {}"),
    ("regression loss", "error"): ("loss", "The error enters the loss {}"),
    ("binary cross entropy", "reduction"): ("loss reduction", "The loss is reduced by {}"),
    ("binary cross entropy", "outputs taken for"): ("sigmoid before the loss", "The loss takes the outputs for {}"),
    ("update", "weight decay"): ("weight decay", "The optimizer's weight decay is {}"),
    ("update", "kind of decay"): ("coupling of weight decay", "Weight decay is {}"),
    ("update", "epsilon"): ("optimizer epsilon", "The optimizer's epsilon is {}"),
    ("update", "epsilon's place"): ("optimizer epsilon's place", "The optimizer adds epsilon {}"),
    ("update", "beta1"): ("optimizer beta1", "The optimizer's beta1 is {}"),
    ("update", "beta2"): ("optimizer beta2", "The optimizer's beta2 is {}"),
    ("update", "momentum"): ("optimizer momentum", "The optimizer's momentum is {}"),
    ("update", "bias correction"): ("bias correction", "The optimizer's bias correction is {}"),
    ("update", "clipping"): ("gradient clipping", "The gradient is clipped by {}"),
    ("update", "learning rate"): ("learning rate", "The learning rate of this update is {}"),
    ("data", "order"): ("data order", "The examples come {}"),
    ("data", "shuffle"): ("data order", "The examples are shuffled: {}"),
    ("data", "seed"): ("data order", "The seed of the order of the examples is {}"),
    ("data", "drop_last"): ("data order", "drop_last is {}"),
    ("data", "values"): ("data values", "The field is {}"),
    ("gradient", "flow"): ("stopped gradient", "The gradient WHERE is {}"),
    ("gradient", "factor"): ("scaled gradient", "The gradient WHERE is multiplied by {}"),
    ("clip", "max_grad_norm"): ("clip value", "The gradient is clipped to norm {}"),
    ("data", "number of examples"): ("number of examples", "The update sees this many examples: {}"),
}
"""By topic and trait: the cause's name, and a phrase for one side's value. KIND is the layer's class."""


def _activation(values: list[Any], place: Place, where: str) -> tuple[str, str]:
    name = "activation"
    if all(str(value).startswith("gelu") for value in values):
        name = "GELU tanh or erf"
    elif all(str(value).startswith("leaky relu") for value in values):
        name = "leaky relu slope"
    first, second = place.backends
    return name, f"The activation before what arrives {where} is {values[0]} in {first}, {values[1]} in {second}"


def _terms(values: list[Any], place: Place, where: str) -> tuple[str, str]:
    one, other = dict(values[0] or ()), dict(values[1] or ())
    first, second = place.backends
    sentence = f"What arrives {where} is {_sum(one)} in {first}, {_sum(other)} in {second}"
    name = _term_name(one, other, place)
    if name is not None:
        return name, sentence
    late = [name for name in other if name in place.kinds and name not in place.known]
    if late:  # layers that run only afterwards in the reference
        norms = "norm" in (place.calls[0].kind if place.calls[0] is not None else "").lower()
        name = "pre-norm or post-norm" if norms else "order of layers"
        return name, f"{sentence}, where {', '.join(late)} has run already"
    if one.keys() > other.keys() or one.keys() < other.keys():
        larger, smaller = (one, other) if len(one) > len(other) else (other, one)
        missing = sorted(larger.keys() - smaller.keys())
        side = second if larger is one else first
        return "missing residual", f"{sentence}: {', '.join(missing)} is not added in {side}"
    return "wiring", sentence


def _term_name(one: Mapping[str, str], other: Mapping[str, str], place: Place) -> str | None:
    """What it is called when these sums differ, where the names of their terms tell."""
    if one.keys() == other.keys():
        changed = [name for name in one if one[name] != other[name]]
        embedded = any("embed" in place.kinds.get(name, "").lower() for name in changed)
        return "embedding scale" if embedded else "scale"
    if any(" through " in name for name in [*one, *other]):
        return "tied weight"
    if len(one) == len(other) == 1 and "norm" in place.kinds.get(next(iter(one)), "").lower():
        return "pre-norm or post-norm"
    bare = [{name.partition(" from row ")[0] for name in terms} for terms in (one, other)]
    return "shifted positions" if bare[0] == bare[1] else None


def _weights(values: list[Any], place: Place, where: str) -> tuple[str, str]:
    first, second = place.backends
    turned = {str(value).removesuffix(", transposed") for value in values}
    sentence = f"The linear layer {where} multiplies by {values[0]} in {first}, by {values[1]} in {second}"
    return ("transposed weight" if len(turned) == 1 else "tied weight"), sentence


def _sum(terms: Mapping[str, str]) -> str:
    return " + ".join(name if factor == "1" else f"{factor} * {name}" for name, factor in terms.items())


def _roles(values: list[Any], place: Place, where: str) -> tuple[str, str]:
    first, second = place.backends
    return (
        "roles of query, key and value",
        f"The attention's first differing role is played by {values[0]} in {first}, by {values[1]} in {second}",
    )


def _optimizers(values: list[Any], place: Place, where: str) -> tuple[str, str]:
    first, second = place.backends
    plain = set(values) - {"Nesterov"}  # without a past, momentum makes the same step as none
    name = "Nesterov momentum" if len(plain) == 1 and plain <= {"momentum", "SGD"} else "optimizer"
    return name, f"The optimizer is {values[0]} in {first}, {values[1]} in {second}"


def _shown(value: Any) -> str:
    if value is None:
        return "as it is"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_KEYS: Mapping[str, tuple[str, ...]] = {
    "epsilon": ("eps", "variance_epsilon"),
    "padding": ("padding",),
    "stride": ("stride",),
    "dilation": ("dilation", "kernel_dilation"),
    "rate": ("rate", "p"),
    "format": ("dtype", "compute_dtype"),
    "momentum": ("momentum",),
    "bias": ("use_bias", "bias"),
}


def _repair(topic: str, trait: str, values: list[Any], difference: Difference, place: Place) -> str:
    """What to write on the other side so that it does what the reference does, or the other way round."""
    lines = []
    for index in (1, 0):
        wanted = values[1 - index]
        line = _line(topic, trait, wanted, difference.laws[index].traits.get(trait), place, index)
        lines += [] if line is None else [f"in {place.backends[index]}: {line}"]
    return ", or ".join(lines)


def _line(topic: str, trait: str, wanted: Any, own: Any, place: Place, index: int) -> str | None:
    call, idioms = place.calls[index], place.idioms[index]
    for key in call.settings if call is not None and trait in _KEYS and topic != "arrival" else ():
        if call is not None and key.startswith(_KEYS[trait]) and not (trait == "rate" and key not in _KEYS[trait]):
            return f"{call.kind}(..., {key}={_setting(trait, wanted, own, call.settings[key])})"
    for name in (f"{topic} {trait} {wanted}", str(wanted), f"{topic} {trait}"):
        if name in idioms:
            return idioms[name].replace("VALUE", _shown(wanted))
    if index == 0:
        return None
    return f"make it {_sum(dict(wanted or ()))}" if trait == "terms" else f"{trait}: {_shown(wanted)}"


def _setting(trait: str, value: Any, own: Any, told: Any) -> str:
    """The value as the layer's own setting writes it: a momentum may weigh the new value or the old one."""
    if trait == "momentum" and isinstance(told, float) and isinstance(own, float):
        old = abs(1 - told - own) < abs(told - own)
        return _shown(float(f"{1 - float(value):.6g}") if old else value)
    if trait == "bias":
        return repr(value == "added")
    if trait == "padding" and isinstance(value, tuple):
        each = value if isinstance(value[0], tuple) else (value, value)
        even = all(low == high for low, high in each)
        if isinstance(told, int) or (isinstance(told, tuple) and not isinstance(told[0], tuple)):
            return repr(tuple(low for low, _ in each)) if even else f"0, after padding by {each}"
        return repr(each)
    return repr(value)
