"""Small torch modules, one builder each."""

import torch
from torch import nn


def linear() -> nn.Module:
    return nn.Linear(3, 2)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.extra, self.spare = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        outputs = self.main(x)
        return outputs + gate[:, None] * self.extra(x) if bool(gate.any()) else outputs


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(x))


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)])
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


MODELS = {"linear": linear, "gated": Gated, "batch_norm": Normed, "dropout": Dropped}
