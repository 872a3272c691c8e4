"""What the examination of an update recorded, for whoever reports or explains it."""

from __future__ import annotations

from dataclasses import dataclass, field

from multibackend.experiment import Experiment
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.layers import LayerPair
from multibackend.parity.locate.rerun import Runner, Step
from multibackend.protocol.tracing import Trace

__all__ = ["Evidence", "Examination"]


@dataclass(frozen=True)
class Evidence:
    """What was recorded where two runs part. Pairs: the reference's, the other's.

    Attributes:
        update: its number.
        micro_batch: the one that was traced.
        precision: of the runs that were examined, which may be float64 beside an
            experiment in float32.
        backends, experiments: of both.
        steps: the window from the same state before it on both sides.
        traces: of the micro-batch; None where a backend tells nothing of its layers.
        forced: the second model's, each layer fed by the reference; None where no activation
            differs.
        pairs: which calls are partners, as indices into the traces' layers.
        bridge: which arrays are partners.
        sides: what ran, to trace more of it.
        history: the last windows of each side's own run, this one last.
    """

    update: int
    micro_batch: int
    precision: str
    backends: tuple[str, str]
    experiments: tuple[Experiment, Experiment]
    steps: tuple[Step, Step]
    traces: tuple[Trace, Trace] | None
    forced: Trace | None
    pairs: tuple[LayerPair, ...]
    bridge: Bridge
    sides: tuple[Runner, Runner] | None = None
    history: tuple[tuple[Step, ...], tuple[Step, ...]] = ((), ())

    @classmethod
    def of(cls, sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step]) -> Evidence:
        """Begin with the windows that were run; what is traced comes later."""
        first, second = sides
        return cls(
            update=steps[0].before.update + 1,
            micro_batch=0,
            precision=first.experiment.precision,
            backends=(first.backend, second.backend),
            experiments=(first.experiment, second.experiment),
            steps=steps,
            traces=None,
            forced=None,
            pairs=(),
            bridge=bridge,
            sides=sides,
        )


@dataclass
class Examination:
    """What the examination of one update found."""

    divergence: Divergence | None = None
    layers: tuple[LayerFinding, ...] = ()
    evidence: Evidence | None = None
    notes: list[str] = field(default_factory=list)
