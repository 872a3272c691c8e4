"""What was probably meant where no loss, optimizer or metric of this library was given."""

from __future__ import annotations

from typing import Any

from multibackend import losses, metrics, optimizers
from multibackend.core.slips import accepts, describe, is_module, named_specs, nearest_spec, suggestion

__all__ = ["as_loss", "no_loss", "no_metric", "no_optimizer"]


def as_loss(loss: Any) -> Any:
    """Wrap a function (xp, outputs, batch) as a custom loss; leave anything else as it is."""
    if not callable(loss) or isinstance(loss, losses.Loss | type) or is_module(loss):
        return loss
    return losses.Custom(loss) if accepts(loss, 3) else loss


def no_loss(given: Any) -> str:
    """Say what was given as a loss, and what was probably meant."""
    specs = named_specs(losses, losses.Loss)
    metric = nearest_spec(given, named_specs(metrics, metrics.Metric))
    if metric is not None and nearest_spec(given, specs) is None:
        return f"{describe(given)}; that is a metric: metrics=mb.metrics.{metric}(...)"
    return f"{describe(given)}{suggestion(given, specs, 'mb.losses')}"


def no_optimizer(given: Any) -> str:
    """Say what was given as the optimizer, and what was probably meant."""
    specs = named_specs(optimizers, optimizers.Optimizer)
    said = f"optimizer must be one of multibackend.optimizers, got {describe(given)}"
    return f"{said}{suggestion(given, specs, 'mb.optimizers')}; mb.optimizers.Native takes a framework's own"


def no_metric(given: Any) -> str:
    """Say what was given as a metric, and what was probably meant."""
    said = f"metrics must be of multibackend.metrics, got {describe(given)}"
    said += suggestion(given, named_specs(metrics, metrics.Metric), "mb.metrics")
    return f"{said}; mb.metrics.Custom takes functions" if callable(given) else said
