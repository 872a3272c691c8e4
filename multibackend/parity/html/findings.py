"""The words at the top of the page: whether the runs match, where they first part, and why."""

from __future__ import annotations

import math

from multibackend.parity.findings import STAGES, Cause, Divergence
from multibackend.parity.html.markup import Markup, join, name, prose, tag
from multibackend.parity.html.words import number, relative
from multibackend.parity.report import CompareReport

__all__ = ["divergence_section", "facts", "verdict"]

# what a divergence can name that is no layer, parameter or statistic
_FIGURES = ("loss", "grad_norm", "clip factor", "number of skipped windows")
_OUTPUTS = "the model's outputs"
_STAGE = {
    "data order": "The two runs did not see the same examples.",
    "initial parameters": "The two models did not start from the same numbers.",
    "activations": "The forward pass is where they part: from equal parameters and equal inputs, this layer's outputs "
    "differ.",
    "loss": "The losses differ.",
    "gradients": "The backward pass is where they part.",
    "clip": "Gradients agree; clipping them to their global norm is where the runs part.",
    "update": "The optimizer's step is where the runs part, or what led to it.",
    "model state": "Parameters agree; what the model keeps beside them, such as running statistics, differs.",
    "next update": "The update itself agreed; the one after it does not.",
}


def facts(rows: list[tuple[object, object]]) -> Markup:
    """Terms with what they are."""
    return tag("dl", *(join(tag("dt", term), tag("dd", value)) for term, value in rows))


def verdict(report: CompareReport) -> Markup:
    """One sentence, then the figures that it rests on."""
    divergence, tolerance = report.first_divergence, report.tolerance
    if divergence is None:
        words = "✓ The runs match."
    else:
        words = f"✗ The runs part at update {divergence.update}: {divergence.stage}{_of(divergence)}."
    loss = f"Largest relative difference of a loss: {relative(report.max_loss_difference)}"
    parameters = f"of a parameter at the end: {relative(report.max_relative_difference)}"
    bounds = (_tolerance(tolerance.loss), _tolerance(tolerance.parameters))
    return tag(
        "div",
        tag("p", words, class_="words"),
        tag("p", prose(f"{loss} ({bounds[0]}); {parameters} ({bounds[1]}).")),
        class_=f"verdict {'good' if divergence is None else 'bad'}",
    )


def _of(divergence: Divergence) -> str:
    """What the verdict says behind the stage."""
    place = getattr(divergence, "place", "")
    if place.startswith("between"):
        return f" {place}"
    if divergence.what == divergence.stage:
        return ""
    return f" ({divergence.what})" if _is_figure(divergence) else f" of {divergence.what or _OUTPUTS}"


def _is_figure(divergence: Divergence) -> bool:
    return divergence.what in _FIGURES or divergence.what.startswith("loss/") or divergence.stage == "data order"


def _tolerance(bound: float) -> str:
    return f"tolerance {relative(bound)}" if math.isfinite(bound) else "no tolerance"


def divergence_section(report: CompareReport) -> Markup:
    """Where the runs first part: stage, update, layer, both values, the size, rounding, and what explains it."""
    divergence = report.first_divergence
    if divergence is None:
        words = "None: every loss and every parameter is within the tolerance."
        return join(tag("p", words), tag("p", prose(f"Why this tolerance: {report.tolerance.reason}."), class_="note"))
    sentence = str(divergence).splitlines()[0]
    stages = [tag("li", stage, aria_current="step" if stage == divergence.stage else None) for stage in STAGES]
    what = name(divergence.what) if divergence.what else _OUTPUTS
    rows: list[tuple[object, object]] = [
        ("Stage", join(divergence.stage, tag("span", f". {_STAGE.get(divergence.stage, '')}", class_="of"))),
        ("Update", f"{divergence.update} of {report.updates}"),
        ("What" if _is_figure(divergence) else "Layer or parameter", what),
    ]
    if divergence.partner and divergence.partner != divergence.what:
        rows.append((f"In {report.backends[1]}", name(divergence.partner)))
    place, remark = getattr(divergence, "place", ""), getattr(divergence, "remark", "")
    if place:
        rows.append(("Place", place))
    rows += [
        (f"Value in {backend}", tag("span", number(value), class_="value"))
        for backend, value in zip(report.backends, divergence.values, strict=True)
    ]
    rows += [("Relative difference", relative(divergence.difference)), ("Rounding alone", _rounding(divergence))]
    return join(
        tag("p", prose(sentence), class_="sentence"),
        tag("ol", *stages, class_="stages", aria_label="The stages of an update, in order"),
        facts(rows),
        tag("p", prose(remark)) if remark else "",
        _also(report),
        *(_cause(cause) for cause in divergence.causes),
        "" if divergence.causes else tag("p", "Its cause was not found.", class_="note"),
    )


def _also(report: CompareReport) -> Markup:
    """Where to read of the other places that are wrong."""
    wrong = len(getattr(report, "layers", ()))
    if wrong < 2:
        return Markup()
    link = tag("a", f"{wrong} places that are wrong by themselves", href="#places")
    return tag("p", "This is the first of ", link, ".")


def _rounding(divergence: Divergence) -> str:
    if divergence.rounding is None:
        return "not measured"
    if divergence.rounding == 0:
        return "none, so this is a real difference"
    factor = divergence.difference / divergence.rounding
    times = f"{factor:,.0f}" if factor < 1e6 else relative(factor)
    return f"{relative(divergence.rounding)}; what was found is {times} times that"


def _cause(cause: Cause) -> Markup:
    """A cause with its proof and the line to change."""
    if cause.after is None:
        proof = f"It could not be tried. The difference is {relative(cause.before)}."
    else:
        proof = f"Proof: with that undone, the difference of {relative(cause.before)} falls to {relative(cause.after)}."
    return tag(
        "article",
        tag("h3", f"Cause: {cause.name}"),
        tag("p", prose(f"{cause.explanation}.")),
        tag("p", prose(proof)),
        tag("p", "Change this line:", class_="note"),
        tag("pre", tag("code", cause.repair)),
        class_="cause",
    )
