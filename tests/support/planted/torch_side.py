"""A small GPT, CNN and table network in torch, as people write them; `mistake` plants one."""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, HIDDEN, VOCABULARY, LENGTH = 12, 2, 20, 17, 7
CLASSES = 5


class HalfLinear(nn.Linear):
    """A linear layer that computes in a smaller format than its surroundings."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs)
        self.compute_dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.compute_dtype
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, mistake: str, fused: bool = False) -> None:
        super().__init__()
        self.mistake, self.fused = mistake, fused
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q(x), self.k(x), self.v(x))
        if self.mistake == "swapped query and key":
            q, k = k, q
        q, k, v = (a.view(n, t, HEADS, d // HEADS).transpose(1, 2) for a in (q, k, v))
        scale = math.sqrt(d) if self.mistake == "scale by width" else math.sqrt(d // HEADS)
        scores = q @ k.transpose(-1, -2) / scale
        mask = torch.tril(torch.ones(t, t, dtype=torch.bool, device=x.device))
        scores = torch.tril(scores) if self.mistake == "tril on scores" else scores.masked_fill(~mask, -math.inf)
        y = F.softmax(scores, dim=-1) @ v
        if self.mistake != "heads not transposed back":
            y = y.transpose(1, 2)
        return self.proj(y.reshape(n, t, d))


class Block(nn.Module):
    def __init__(self, mistake: str, norm: str, fused: bool, rate: float) -> None:
        super().__init__()
        make = {"layer": nn.LayerNorm, "rms": lambda width: nn.RMSNorm(width, eps=1e-6)}[norm]
        self.ln1, self.attn, self.ln2 = make(WIDTH), Attention(mistake, fused), make(WIDTH)
        self.fc1 = HalfLinear(WIDTH, HIDDEN, torch.float32) if mistake == "float32" else nn.Linear(WIDTH, HIDDEN)
        self.act = nn.GELU(approximate="tanh" if mistake == "gelu tanh" else "none")
        self.fc2, self.drop = nn.Linear(HIDDEN, WIDTH), nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.attn(self.ln1(x)))
        return x + self.drop(self.fc2(self.act(self.fc1(self.ln2(x)))))


class Gpt(nn.Module):
    """Token and position embeddings, two pre-norm blocks, final norm, head."""

    def __init__(
        self, mistake: str = "", norm: str = "layer", fused: bool = False, rate: float = 0.0, scaled: bool = False
    ) -> None:
        super().__init__()
        self.scaled = scaled
        self.tok_emb, self.pos_emb = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH + 2, WIDTH)
        self.blocks = nn.ModuleList(
            Block(mistake if index == 1 else "", norm, fused, rate if index == 0 else 0.0) for index in range(2)
        )
        self.ln_f = nn.LayerNorm(WIDTH) if norm == "layer" else nn.RMSNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(tokens)
        if self.scaled:
            x = x * math.sqrt(WIDTH)
        x = x + self.pos_emb(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class Cnn(nn.Module):
    """Stem with stride 2, pooling, a residual convolution, a linear head on the flattened image."""

    def __init__(self, mistake: str = "", pooling: str = "average", head: str = "flatten") -> None:
        super().__init__()
        self.mistake, self.pooling, self.head = mistake, pooling, head
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.pool = {
            "average": nn.AvgPool2d(3, 2, padding=1, count_include_pad=mistake != "padding not counted"),
            "max": nn.MaxPool2d(3, 2, padding=1),
        }[pooling]
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 9 if head == "flatten" else 6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(x))
        x = F.leaky_relu(y if self.mistake == "missing residual" else y + x, 0.1)
        return self.fc(x.flatten(1) if self.head == "flatten" else x.mean((2, 3)))


class Table(nn.Module):
    """Numbers of a table through a norm and two layers."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(features), nn.Linear(features, 9), nn.Linear(9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.silu(self.first(self.norm(x))))
