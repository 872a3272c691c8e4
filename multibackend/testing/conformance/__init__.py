"""The suite that a backend must pass, held against plain numpy (`multibackend.testing.reference`).

Each class is a set of tests for pytest to inherit; all take one fixture, `variant`. The first five
need a model called "linear" only, the squared error and SGD; the others say what they need.

    from multibackend.testing import Variant
    from multibackend.testing.conformance import WindowConformance

    @pytest.fixture(params=[Variant("mine", {"linear": build_linear})], ids=str)
    def variant(request):
        return request.param

    class TestWindows(WindowConformance):
        pass

"linear" is y = x W^T + b with 3 inputs and 2 outputs, its parameters called `weight` [2, 3]
and `bias` [2].
"""

from multibackend.testing.conformance.averages import AverageConformance
from multibackend.testing.conformance.groups import GroupConformance
from multibackend.testing.conformance.models import (
    ClassifierConformance,
    PartialUseConformance,
    RandomConformance,
    StatisticsConformance,
)
from multibackend.testing.conformance.options import MemoryConformance, PrecisionConformance, TermConformance
from multibackend.testing.conformance.resuming import ResumeConformance
from multibackend.testing.conformance.schedules import ScheduleConformance
from multibackend.testing.conformance.skipping import SkipConformance
from multibackend.testing.conformance.state import StateConformance
from multibackend.testing.conformance.tracing import TraceConformance
from multibackend.testing.conformance.windows import WindowConformance

__all__ = [
    "AverageConformance",
    "ClassifierConformance",
    "GroupConformance",
    "MemoryConformance",
    "PartialUseConformance",
    "PrecisionConformance",
    "RandomConformance",
    "ResumeConformance",
    "ScheduleConformance",
    "SkipConformance",
    "StateConformance",
    "StatisticsConformance",
    "TermConformance",
    "TraceConformance",
    "WindowConformance",
]
