"""What was run, in words, for whoever reads a report later."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from multibackend.experiment import Experiment
from multibackend.registry import list_backends

__all__ = ["settings_of"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def settings_of(experiment: Experiment, backends: Sequence[str]) -> Mapping[str, str]:
    """The options of an experiment that its numbers depend on, and the versions that ran it.

    >>> settings_of(experiment, ("torch", "jax"))["seed"]   # doctest: +SKIP
    '0'
    """
    terms = experiment.loss_terms
    clip = experiment.max_grad_norm
    examples = experiment.examples
    installed = {info.name: info.version for info in list_backends()}
    versions = [installed.get(backend, "") for backend in backends]
    return {
        "loss": _words(next(iter(terms.values())) if len(terms) == 1 else dict(terms)),
        "optimizer": _words(experiment.optimizer),
        "gradient clipping": "none" if clip is None else f"to a global norm of {clip:g}",
        "micro-batch": f"{experiment.micro_batch_size} examples",
        "micro-batches per update": _words(experiment.gradient_accumulation_steps),
        "training examples": "a stream" if examples is None else f"{examples}",
        "data order": "shuffled by the seed" if experiment.shuffle else "as given",
        "seed": str(experiment.seed),
        "dropout": experiment.dropout,
        "versions": ", ".join(filter(None, versions)),
        "machine": f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def _words(value: Any) -> str:
    """A specification as it is written, without the addresses of functions."""
    return _ADDRESS.sub("", repr(value))
