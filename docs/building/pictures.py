"""The pictures of the examples: each is trained on both backends from one start, and drawn.

    python docs/building/pictures.py              # all, some minutes on two cores
    python docs/building/pictures.py digits       # one

Above, both losses; below, how far they are apart, relative. Written to docs/pictures/NAME.svg.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

import multibackend as mb
from multibackend.cli.experiment_file import load_experiment_file

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
# what is trained: the file's flags, and how many updates
RUNS: dict[str, tuple[list[str], int]] = {
    "digits": ([], 150),
    "linear_regression": ([], 75),
    "token_lm": ([], 100),
    "char_gpt": ([], 150),
    "transformers_twins": ([], 40),
}

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT = 70, 20
UPPER, LOWER = (56, 236), (272, 352)  # from top to bottom, of the two panels
COLOURS = ("#e8590c", "#1c7ed6")
GREY = "#5c5f66"


def main(names: Sequence[str]) -> None:
    """Draw the examples that are named, or all."""
    for name in names or RUNS:
        flags, updates = RUNS[name]
        experiment = load_experiment_file(ROOT / "examples" / f"{name}.py").build(flags)
        report = mb.compare(experiment, updates=updates)
        path = PICTURES / f"{name}.svg"
        path.write_text(draw(name, report), encoding="utf-8")
        difference = float(np.max(report.loss_differences))
        print(f"{path.relative_to(ROOT)}: {updates} updates, largest difference of a loss {difference:.1e}")


def draw(name: str, report: mb.CompareReport) -> str:
    """Draw two losses and their relative difference."""
    losses = [history["loss"] for history in report.histories]
    differences = np.maximum(np.asarray(report.loss_differences, np.float64), 1e-9)
    across = scale(1, len(losses[0]), LEFT, WIDTH - RIGHT)
    smallest, largest = min(map(np.min, losses)), max(map(np.max, losses))
    up = log_scale(smallest, largest, UPPER)
    low = log_scale(1e-9, 1e-2, LOWER)
    parts = [
        text(LEFT, 24, f"{name}: {report.updates} updates in {report.precision}, from the same initial values", 15),
        *axis(up, loss_marks(smallest, largest), UPPER, "loss"),
        *axis(low, [1e-8, 1e-6, 1e-4, 1e-2], LOWER, "relative difference"),
        line(losses[0], across, up, f'stroke="{COLOURS[0]}" stroke-width="6" stroke-opacity="0.45"'),
        line(losses[1], across, up, f'stroke="{COLOURS[1]}" stroke-width="1.6"'),
        line(differences, across, low, f'stroke="{GREY}" stroke-width="1.4"'),
        *legend(report.backends),
        text(LEFT, HEIGHT - 22, "update 1"),
        text(WIDTH - RIGHT, HEIGHT - 22, f"update {len(losses[0])}", anchor="end"),
    ]
    label = f"Losses of {name} on {' and '.join(report.backends)}, which lie on each other, and their difference"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">'
    )
    card = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>'  # legible on a dark page too
    return "\n".join([head, f"<title>{escape(label)}</title>", card, *parts, "</svg>", ""])


def scale(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    """Map [first, last] to [start, end], evenly."""
    return lambda value: start + (value - first) / max(last - first, 1e-12) * (end - start)


def log_scale(low: float, high: float, panel: tuple[int, int]) -> Callable[[float], float]:
    """Map [low, high] to a panel, the larger the higher, in logarithms."""
    even = scale(math.log(low), math.log(high), panel[1], panel[0])
    return lambda value: even(math.log(value))


def loss_marks(low: float, high: float) -> list[float]:
    """Choose round numbers within a range: as many as six will do, the rounder the better."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        marks = [factor * 10.0**power for power in powers for factor in factors]
        marks = [mark for mark in marks if low <= mark <= high]
        if len(marks) <= 6:
            break
    return marks


def axis(place: Callable[[float], float], marks: Sequence[float], panel: tuple[int, int], title: str) -> list[str]:
    """Draw a panel's grid with its numbers, and its title above."""
    parts = [text(LEFT, panel[0] - 8, title)]
    for mark in marks:
        y = place(mark)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dee2e6" fill="none"/>')
        parts.append(text(LEFT - 8, y + 4, f"{mark:g}".replace("e-0", "e-"), anchor="end"))
    return parts


def line(values: np.ndarray, across: Callable[[float], float], place: Callable[[float], float], style: str) -> str:
    """Draw one curve."""
    points = " ".join(f"{across(update):.1f},{place(float(value)):.1f}" for update, value in enumerate(values, start=1))
    return f'<polyline points="{points}" fill="none" stroke-linejoin="round" {style}/>'


def legend(names: Sequence[str]) -> list[str]:
    """Name the two curves."""
    parts = []
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        x = WIDTH - RIGHT - 150 + 80 * index
        width, opacity = (6, 0.45) if index == 0 else (2, 1)
        parts.append(f'<path d="M{x} 44h22" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>')
        parts.append(text(x + 28, 48, name))
    return parts


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "start") -> str:
    """Write words."""
    return (
        f'<text x="{x:.0f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{GREY}">{escape(words)}</text>'
    )


if __name__ == "__main__":
    main(sys.argv[1:])
