"""The line to change, on the other side or on the reference's, so that both do the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multibackend.parity.causes.place import Place, shown, shown_sum
from multibackend.protocol.tracing import LayerCall

__all__ = ["repair_of"]

# What frameworks call the settings of a layer that a trait is about.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "epsilon": ("eps", "variance_epsilon"),
    "padding": ("padding",),
    "stride": ("stride",),
    "dilation": ("dilation", "kernel_dilation"),
    "rate": ("rate", "p"),
    "format": ("dtype", "compute_dtype"),
    "momentum": ("momentum",),
    "bias": ("use_bias", "bias"),
}


def repair_of(topic: str, trait: str, values: tuple[Any, Any], place: Place) -> str:
    """Tell what to write on one side so that it does what the other one does."""
    lines = []
    # the other side first: what is compared with a reference is to become like it
    for index in (1, 0):
        line = _line(topic, trait, values[1 - index], values[index], place, index)
        if line is not None:
            lines.append(f"in {place.backends[index]}: {line}")
    return ", or ".join(lines)


def _line(topic: str, trait: str, value: Any, present: Any, place: Place, index: int) -> str | None:
    """The line of one side that gives a trait a value instead of the present one."""
    call = place.calls[index]
    # what arrives at a layer is not of its own making: its settings do not matter
    if call is not None and topic != "arrival":
        setting = _setting_of(call, trait)
        if setting is not None:
            written = _written(trait, value, present, call.settings[setting])
            return f"{call.kind}(..., {setting}={written})"
    idioms = place.idioms[index]
    # from the most special idiom to the most general
    for name in (f"{topic} {trait} {value}", str(value), f"{topic} {trait}"):
        if name in idioms:
            return idioms[name].replace("VALUE", shown(value))
    if index == 0:
        return None
    if trait == "terms":
        return f"make it {shown_sum(dict(value or ()))}"
    return f"{trait}: {shown(value)}"


def _setting_of(call: LayerCall, trait: str) -> str | None:
    """The name of a layer's setting that decides about a trait."""
    names = _SETTINGS.get(trait, ())
    for setting in call.settings:
        # dropout's "p" begins many another setting
        if setting in names or (trait != "rate" and setting.startswith(names)):
            return setting
    return None


def _written(trait: str, value: Any, present: Any, setting: Any) -> str:
    """A value as the layer's own setting writes it: a momentum may weigh the old value.

    Args:
        trait: what has the value.
        value: to be written.
        present: the trait's value as it was found in the numbers.
        setting: as it is, which is another way to write the present value.
    """
    if trait == "momentum" and isinstance(setting, float) and isinstance(present, float):
        if abs(1 - setting - present) < abs(setting - present):
            value = float(f"{1 - float(value):.6g}")
        return shown(value)
    if trait == "bias":
        return repr(value == "added")
    if trait == "padding" and isinstance(value, tuple):
        return _written_padding(value, setting)
    return repr(value)


def _written_padding(pads: tuple[Any, ...], setting: Any) -> str:
    """(before, after) of each axis, or of both axes; one number an axis where the setting is so."""
    each = pads if isinstance(pads[0], tuple) else (pads, pads)
    nested = isinstance(setting, tuple) and any(isinstance(pad, tuple) for pad in setting)
    if nested or not isinstance(setting, int | tuple):
        return repr(each)
    if all(low == high for low, high in each):
        return repr(tuple(low for low, _ in each))
    return f"0, after padding by {each}"
