"""The plots of the page, each with its caption and with words for whoever cannot see it."""

from __future__ import annotations

import numpy as np

from multibackend.pages.plots import Plot
from multibackend.pages.words import relative
from multibackend.parity.findings import Divergence
from multibackend.parity.html.figures import difference_figure, heat_figure, loss_figure
from multibackend.parity.html.layers import WHOLE, Heat, layer_of, thinned
from multibackend.parity.result import ComparisonResult

__all__ = ["difference_plot", "heat_plot", "heat_words", "loss_plot", "shown_updates"]

MOST_POINTS = 2000  # of a curve, about twice the pixels that it is wide


def loss_plot(result: ComparisonResult) -> Plot:
    """Plot both loss curves, one on top of the other."""
    shown = shown_updates(result, MOST_POINTS)
    histories = dict(zip(result.backends, result.histories, strict=True))
    losses = {backend: history["loss"][shown] for backend, history in histories.items()}
    updates = result.histories[0]["update"][shown]
    first, second = result.backends
    ends = [f"{name} from {run[0].loss:.6g} to {run[-1].loss:.6g}" for name, run in histories.items()]
    return Plot(
        anchor="loss-plot",
        figure=loss_figure(updates, losses, _diverging_update(result)),
        caption=f"The loss of each update, {first} wide and solid, {second} narrow and dashed on top of it.",
        label=f"Both loss curves over {result.updates} updates: {', '.join(ends)}.",
    )


def difference_plot(result: ComparisonResult) -> Plot:
    """Plot the relative difference of the losses, its tolerance, and rounding where it is known."""
    shown = shown_updates(result, MOST_POINTS)
    rounding = None
    caption = f"{_differences_in_words(result)} The shaded band is the tolerance."
    if result.rounding is not None:
        rounding = np.asarray(result.rounding, np.float64)[shown]
        caption += " What rounding alone makes lies below the dotted line."
    figure = difference_figure(
        result.histories[0]["update"][shown],
        result.loss_differences[shown],
        result.tolerance.loss,
        _diverging_update(result),
        rounding,
    )
    return Plot("difference-plot", figure, caption, _differences_in_words(result))


def _differences_in_words(result: ComparisonResult) -> str:
    differences = result.loss_differences
    bound = result.tolerance.loss
    zeros = int((differences == 0).sum())
    end = f", and in {zeros} the losses are equal to the last bit." if zeros else "."
    return (
        f"The relative difference of the losses: at most {relative(result.max_loss_difference)}, at update "
        f"{int(np.argmax(differences)) + 1}; {int((differences > bound).sum())} of {result.updates} updates are beyond "
        f"the tolerance of {relative(bound)}{end}"
    )


def heat_plot(result: ComparisonResult, heat: Heat) -> Plot:
    """Plot the differences of the gradient norms, by layer and update."""
    mark = _diverging_row(result.first_divergence, heat)
    # in words too, for whoever cannot see the map
    worst = int(np.argmax(heat.differences.max(axis=1)))
    column = int(np.argmax(heat.differences[worst]))
    largest = (
        f"Largest difference: {relative(float(heat.differences[worst, column]))} in {heat.rows[worst]} at update "
        f"{int(heat.updates[column])}."
    )
    caption = (
        "Relative difference of the gradient norms, by layer in the model's order and by update; the darkest (in the "
        "dark the brightest) differ most."
    )
    blocks = len(heat.rows)
    if heat.layers > blocks:
        caption += f" {heat.layers} layers are shown as {blocks} blocks, each by its worst layer."
    if mark is not None:
        caption += " A ring marks the first divergence."
    return Plot(
        anchor="layer-plot",
        figure=heat_figure(heat, result.precision, mark),
        caption=f"{caption} {largest}",
        label=f"Heat map of layers by updates. {largest}",
    )


def heat_words(heat: Heat) -> str:
    """Say of two runs that match how closely their gradients agree."""
    largest = float(heat.differences.max(initial=0.0))
    layers = "the layer" if heat.layers == 1 else f"all {heat.layers} layers"
    return (
        f"Nothing but rounding: over {layers} and all updates the norms of the gradients agree to {relative(largest)}."
    )


def shown_updates(result: ComparisonResult, most: int) -> np.ndarray:
    """Indices of about `most` updates, the worst and the first divergence always among them."""
    # at an index that no update has, if the runs never part
    parts_at = (_diverging_update(result) or 0) - 1
    return thinned(result.loss_differences, most, keep=(parts_at,))


def _diverging_update(result: ComparisonResult) -> int | None:
    return None if result.first_divergence is None else result.first_divergence.update


def _diverging_row(divergence: Divergence | None, heat: Heat) -> tuple[str, int] | None:
    """Find the row of the heat map that holds the first divergence: (the row, the update)."""
    if divergence is None:
        return None
    # a row may be a layer, or a block whose name begins the layer's
    for layer in (divergence.what, layer_of(divergence.what)):
        for row in heat.rows:
            if row != WHOLE and (layer == row or layer.startswith(f"{row}.")):
                return row, divergence.update
    return None
