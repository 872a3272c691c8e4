"""What was run, in words, for whoever reads a report later."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from multibackend.experiment import Experiment
from multibackend.protocol.registry import list_backends

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
    """A specification as one would write it: what is not the default, functions without their addresses."""
    if is_dataclass(value) and not isinstance(value, type):
        given = [(field.name, getattr(value, field.name)) for field in fields(value) if _is_given(value, field)]
        return f"{type(value).__name__}({', '.join(f'{name}={_words(part)}' for name, part in given)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_words(part)}' for key, part in value.items())}}}"
    return _ADDRESS.sub("", repr(value))


def _is_given(value: Any, field: Field[Any]) -> bool:
    """Whether a field is not what it would have been."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return field.repr and repr(getattr(value, field.name)) != repr(default)
