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

# functions and objects of the user are written with it, and it is another one in each process
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def settings_of(experiment: Experiment, backends: Sequence[str]) -> Mapping[str, str]:
    """Describe the options of an experiment that its numbers depend on, and the versions that ran it.

    >>> settings_of(experiment, ("torch", "jax"))["seed"]   # doctest: +SKIP
    '0'
    """
    return {
        "loss": _loss(experiment),
        "optimizer": _words(experiment.optimizer),
        "gradient clipping": _clipping(experiment),
        "micro-batch": f"{experiment.micro_batch_size} examples",
        "micro-batches per update": _words(experiment.gradient_accumulation_steps),
        "training examples": "a stream" if experiment.examples is None else str(experiment.examples),
        "data order": "shuffled by the seed" if experiment.shuffle else "as given",
        "seed": str(experiment.seed),
        "start": str(experiment.initial),
        "dropout": experiment.dropout,
        "versions": _versions(backends),
        "machine": f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def _loss(experiment: Experiment) -> str:
    terms = experiment.loss_terms
    if len(terms) != 1:
        return _words(dict(terms))
    (loss,) = terms.values()
    return _words(loss)


def _clipping(experiment: Experiment) -> str:
    limit = experiment.max_grad_norm
    if limit is None:
        return "none"
    return f"to a global norm of {limit:g}"


def _versions(backends: Sequence[str]) -> str:
    """List the versions of the frameworks, of those that tell one."""
    installed = {info.name: info.version for info in list_backends()}
    versions = [installed.get(backend, "") for backend in backends]
    return ", ".join(version for version in versions if version)


def _words(value: Any) -> str:
    """Write a specification as one would by hand: defaults left out, functions without addresses."""
    if is_dataclass(value) and not isinstance(value, type):
        arguments = []
        for field in fields(value):
            argument = getattr(value, field.name)
            if field.repr and repr(argument) != repr(_default(field)):
                arguments.append(f"{field.name}={_words(argument)}")
        return f"{type(value).__name__}({', '.join(arguments)})"
    if isinstance(value, Mapping):
        entries = [f"{key!r}: {_words(entry)}" for key, entry in value.items()]
        return f"{{{', '.join(entries)}}}"
    return _ADDRESS.sub("", repr(value))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
