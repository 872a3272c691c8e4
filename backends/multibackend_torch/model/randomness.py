"""Random numbers of a run as a pure function of (seed, update, micro-batch), the process's own generators untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from multibackend.core.rng import stream_seed
from multibackend_torch.model.dropout import Draws

__all__ = ["Randomness", "seeded"]


def _generator(device: torch.device) -> torch.Generator:
    """The generator from which layers on `device` draw."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the host and of `device`; put their states back afterwards."""
    generators = {id(generator): generator for generator in (torch.default_generator, _generator(device))}.values()
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


class Randomness:
    """Seeds the generator for each micro-batch, and puts the process's state back after each run of windows."""

    def __init__(self, seed: int, device: torch.device, draws: Draws | None = None) -> None:
        self._seed, self._device, self._draws = seed, device, draws
        self._generator = _generator(device)
        self._window = (-1, 0)  # (update, its seed), kept because mixing costs more than seeding

    def scope(self) -> contextlib.AbstractContextManager[None]:
        return seeded(self._seed, self._device)

    def stamp(self, update: int, micro_batch: int) -> None:
        """Everything drawn from now on depends on the seed and these two numbers only."""
        if self._window[0] != update:
            self._window = (update, stream_seed(self._seed, update))
        self._generator.manual_seed(self._window[1] ^ (micro_batch * 0x9E3779B1))
        if self._draws is not None:
            self._draws.at(update, micro_batch)
