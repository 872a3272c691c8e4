"""A difference of formulas in words: the cause's name and a sentence with both values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from multibackend.parity.causes.formulas import Difference
from multibackend.parity.causes.place import Place, shown, shown_sum
from multibackend.parity.causes.repairs import repair_of
from multibackend.parity.findings import Cause

__all__ = ["cause_of"]

Values = tuple[Any, Any]

_NORM_FIRST = "pre-norm or post-norm"


def cause_of(difference: Difference, place: Place) -> Cause:
    """Return the cause that a difference of formulas is.

    The name is that of the first trait in which they differ; the explanation tells all.
    """
    reference, other = difference.formulas
    topic = reference.topic
    trait = difference.traits[0]
    values = (reference.traits.get(trait), other.traits.get(trait))
    name, sentence = _named(topic, trait, values, place)
    first, second = place.backends
    sentences = [sentence]
    for further in difference.traits[1:]:
        present = shown(reference.traits.get(further))
        sentences.append(f"{further} is {present} in {first}, {shown(other.traits.get(further))} in {second}")
    repair = repair_of(topic, trait, values, place)
    return Cause(name, "; ".join(sentences), repair, difference.before, difference.after)


def _named(topic: str, trait: str, values: Values, place: Place) -> tuple[str, str]:
    """The name of a cause, and the sentence about its first trait."""
    # the model as a whole has no name, and a stage no place
    where = f"at {place.what}" if place.what else ""
    if trait in _SPECIAL:
        return _SPECIAL[trait](values, place, where)
    name, pattern = _PHRASES.get((topic, trait), (f"{topic} {trait}", f"{topic}, {trait}: {{}}"))
    if trait.startswith("tied with"):
        name = "tied weight"
        pattern = f"The gradient WHERE, {trait}, is that of {{}}"
    kind = topic if place.calls[0] is None else place.calls[0].kind
    pattern = pattern.replace("KIND", kind).replace("PLACE", place.what or "the loss")
    # without a place WHERE leaves two spaces behind
    pattern = pattern.replace("WHERE", where).replace("  ", " ").strip()
    first, second = place.backends
    sentence = f"{pattern.format(shown(values[0]))} in {first}, {shown(values[1])} in {second}"
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
"""By topic and trait: the cause's name, and a phrase for a value. KIND is the layer's class."""


def _activation(values: Values, place: Place, where: str) -> tuple[str, str]:
    name = "activation"
    families = {str(value).rpartition(" ")[0] for value in values}
    if families == {"gelu"}:
        name = "GELU tanh or erf"
    elif families == {"leaky relu"}:
        name = "leaky relu slope"
    first, second = place.backends
    sides = f"{values[0]} in {first}, {values[1]} in {second}"
    return name, f"The activation before what arrives {where} is {sides}"


def _terms(values: Values, place: Place, where: str) -> tuple[str, str]:
    reference = dict(values[0] or ())
    other = dict(values[1] or ())
    first, second = place.backends
    sentence = f"What arrives {where} is {shown_sum(reference)} in {first}, {shown_sum(other)} in {second}"
    name = _term_name(reference, other, place)
    if name is not None:
        return name, sentence
    late = [name for name in other if name in place.kinds and name not in place.known]
    if late:  # layers that run only afterwards in the reference
        name = "order of layers"
        if place.calls[0] is not None and "norm" in place.calls[0].kind.lower():
            name = _NORM_FIRST
        return name, f"{sentence}, where {', '.join(late)} has run already"
    for smaller, larger, side in ((reference, other, first), (other, reference, second)):
        if smaller.keys() < larger.keys():
            missing = ", ".join(sorted(larger.keys() - smaller.keys()))
            return "missing residual", f"{sentence}: {missing} is not added in {side}"
    return "wiring", sentence


def _term_name(reference: Mapping[str, str], other: Mapping[str, str], place: Place) -> str | None:
    """What it is called when these sums differ, where the names of their terms tell."""
    if reference.keys() == other.keys():
        for name, factor in reference.items():
            if other[name] != factor and "embed" in place.kind(name):
                return "embedding scale"
        return "scale"
    if any(" through " in name for name in [*reference, *other]):
        return "tied weight"
    if len(reference) == len(other) == 1 and "norm" in place.kind(next(iter(reference))):
        return _NORM_FIRST
    if _without_rows(reference) == _without_rows(other):
        return "shifted positions"
    return None


def _without_rows(terms: Mapping[str, str]) -> set[str]:
    """The names of arrays, whatever the row from which they are taken."""
    return {name.partition(" from row ")[0] for name in terms}


def _weights(values: Values, place: Place, where: str) -> tuple[str, str]:
    first, second = place.backends
    weights = {str(value).removesuffix(", transposed") for value in values}
    name = "transposed weight" if len(weights) == 1 else "tied weight"
    return name, f"The linear layer {where} multiplies by {values[0]} in {first}, by {values[1]} in {second}"


def _roles(values: Values, place: Place, where: str) -> tuple[str, str]:
    del where
    first, second = place.backends
    sides = f"{values[0]} in {first}, by {values[1]} in {second}"
    return "roles of query, key and value", f"The attention's first differing role is played by {sides}"


def _optimizers(values: Values, place: Place, where: str) -> tuple[str, str]:
    del where
    first, second = place.backends
    # without a past, momentum makes the same step as none
    rest = set(values) - {"Nesterov"}
    name = "Nesterov momentum" if rest in ({"momentum"}, {"SGD"}) else "optimizer"
    return name, f"The optimizer is {values[0]} in {first}, {values[1]} in {second}"


# Traits whose cause has another name from one pair of values to the next.
_SPECIAL: Mapping[str, Callable[[Values, Place, str], tuple[str, str]]] = {
    "activation": _activation,
    "terms": _terms,
    "weight": _weights,
    "query": _roles,
    "key": _roles,
    "value": _roles,
    "optimizer": _optimizers,
}
