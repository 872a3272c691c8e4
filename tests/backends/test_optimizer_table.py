"""The table in docs/optimizers.md, which `support.optimizer_table` writes."""

from support.optimizer_runs import BACKENDS, CASES
from support.optimizer_table import COLUMNS, rows

import multibackend as mb
from multibackend.testing.tolerances import MANY_UPDATES


def test_the_table_has_every_optimizer() -> None:
    """Each case on each backend, and every float64 figure within the bound that the tests allow."""
    table = list(rows())
    wanted = [(name.partition(",")[0], backend) for name in CASES for backend in BACKENDS]
    assert [(row[0], row[2]) for row in table] == wanted
    for row in table:
        figures = dict(zip(COLUMNS, row, strict=True))
        assert float(figures["parameters"]) <= MANY_UPDATES, row
        assert figures["state"] == "–" or float(figures["state"]) <= MANY_UPDATES, row
        assert float(figures["float32"]) >= 0


def test_every_optimizer_has_a_case() -> None:
    """All specs but the native one, which follows no law of ours."""
    specs = {
        name
        for name, value in vars(mb.optimizers).items()
        if isinstance(value, type) and issubclass(value, mb.optimizers.Optimizer)
    }
    assert specs - {"Optimizer", "Native"} == {name.partition(",")[0] for name in CASES}
