"""An optimizer of the framework's own, for which no parity is promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multibackend.core.user_code import name_of, user_code
from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError
from multibackend.optimizers.base import Group, Optimizer
from multibackend.schedules import LearningRate

__all__ = ["Native"]


@dataclass(frozen=True, kw_only=True, init=False)
class Native(Optimizer):
    """An optimizer that a framework or a package offers, one builder per backend.

        p = p - lr * d,   d whatever the native optimizer makes of g

    The schedule's rate is ours: what the native optimizer is told about learning rates does not
    count. Everything else (accumulation, clipping, skipping, groups, snapshots on the same backend)
    works as with any optimizer. Nobody promises that the two sides follow the same law; `compare`
    says so. The optimizer's state does not cross over.

    Args:
        learning_rate: as for any optimizer.
        groups: as for any optimizer, but for weight_decay, which is the builder's affair.
        by_backend: a builder by backend. torch: a function of what `torch.optim` takes as
            parameters, which returns the optimizer; the rate is written into its parameter groups
            before each step. JAX: a function of nothing that returns the optax transformation from
            gradients to the direction d, without a learning rate: of the "scale_by" kind
            (`optax.scale_by_adam()`), not `optax.adam(1e-3)`, which has the minus sign and a rate.

    Raises:
        ConfigurationError: a builder is no function. A missing one shows when its
            backend is chosen.

    >>> averaged = lambda parameters: torch.optim.ASGD(parameters, lambd=1e-3)
    >>> sorted(Native(learning_rate=0.1, torch=averaged).builders)
    ['torch']
    """

    builders: Mapping[str, Callable[..., Any]]

    def __init__(
        self,
        *,
        learning_rate: LearningRate,
        groups: Sequence[Group] = (),
        builders: Mapping[str, Callable[..., Any]] | None = None,
        **by_backend: Callable[..., Any],
    ) -> None:
        # A dataclass's own __init__ cannot take builders by name. `builders=` is there for
        # `dataclasses.replace`, which hands every field back under its name.
        object.__setattr__(self, "learning_rate", learning_rate)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "builders", {**(builders or {}), **by_backend})
        self.__post_init__()

    def builder(self, backend: str) -> Callable[..., Any]:
        """Return the builder for a backend; raise `ConfigurationError` where there is none."""
        if backend not in self.builders:
            listed = ", ".join(map(repr, self.builders))
            problem = f"there is no optimizer for the backend {backend!r}, only for {listed}"
            raise ConfigurationError("Native", [f"{problem}; pass {backend}=..."])
        return self.builders[backend]

    def build(self, backend: str, kind: type, *arguments: Any) -> Any:
        """Call a backend's builder; raise unless it returns a `kind`.

        Raises:
            ConfigurationError: there is no builder, or it returns something else.
            UserCodeError: the builder itself raised.
        """
        builder = self.builder(backend)
        hint = f"it is called with {len(arguments)} argument{'' if len(arguments) == 1 else 's'}: see optimizers.Native"
        with user_code(f"the {backend} builder{name_of(builder)} of Native", hint=hint):
            built = builder(*arguments)
        if not isinstance(built, kind):
            problem = (
                f"the {backend} builder must return a {kind.__module__}.{kind.__name__}, got {type(built).__name__}"
            )
            raise ConfigurationError("Native", [problem])
        return built

    def _check(self, problems: Problems) -> None:
        if not self.builders:
            problems.add("no optimizer given; pass a builder per backend, for example torch=lambda parameters: ...")
        for backend, builder in self.builders.items():
            if not callable(builder):
                problem = f"{backend}={builder!r} is no function that builds an optimizer"
                problems.add(problem, wrong_type=True)
