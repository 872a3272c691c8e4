"""Random numbers as a pure function of (seed, update, micro-batch), beside those of the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from multibackend.core.rng import stream_seed
from multibackend_torch.model.dropout import Draws

__all__ = ["Randomness", "seeded"]


def _generator(device: torch.device) -> torch.Generator:
    """Return the generator from which layers on `device` draw."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()  # before, the tuple of generators is empty
    if device.index is None:
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.cuda.default_generators[device.index]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the host and of `device`; put their states back afterwards."""
    generators = {torch.default_generator, _generator(device)}  # one and the same on a CPU
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


class Randomness:
    """Seed the generator for each micro-batch; restore the process's state after a run of windows."""

    def __init__(self, seed: int, device: torch.device, draws: Draws | None = None) -> None:
        self._seed = seed
        self._device = device
        self._draws = draws
        self._generator = _generator(device)
        self._update = -1
        self._update_seed = 0  # that of `_update`: mixing a seed costs more than seeding

    def scope(self) -> contextlib.AbstractContextManager[None]:
        return seeded(self._seed, self._device)

    def stamp(self, update: int, micro_batch: int) -> None:
        """Make everything drawn from now on depend on the seed and these two numbers only."""
        if self._update != update:
            self._update = update
            self._update_seed = stream_seed(self._seed, update)
        # 2**32 / golden ratio, odd: seeds are distinct, and those of neighbours differ in many bits
        self._generator.manual_seed(self._update_seed ^ (micro_batch * 0x9E3779B1))
        if self._draws is not None:
            self._draws.at(update, micro_batch)
