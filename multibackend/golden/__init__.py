"""Golden traces: what a run did, kept in a small file that later runs of any framework are held against.

    from multibackend import golden

    golden.save(golden.record(experiment, "torch", updates=20), "digits.json")
    report = golden.check(golden.load("digits.json"), experiment, "jax")
    report.matches, report.first_divergence

Both runs start from the same initial parameters without any being stored: see
`multibackend.golden.laws`.
"""

from multibackend.golden.file import FORMAT, Golden, load, save
from multibackend.golden.laws import Law, draw, law_of
from multibackend.golden.report import GoldenReport, check, hold
from multibackend.golden.rewriting import Change, update
from multibackend.golden.run import record, repeat
from multibackend.golden.summary import Summary, summarise

__all__ = [
    "FORMAT",
    "Change",
    "Golden",
    "GoldenReport",
    "Law",
    "Summary",
    "check",
    "draw",
    "hold",
    "law_of",
    "load",
    "record",
    "repeat",
    "save",
    "summarise",
    "update",
]
