"""Every backend and execution, a stranger's included, passes the part of the suite that a linear model can show."""

import pytest
from support.variants import DISPATCH, SCAN, SCAN_MANY, STUB, TORCH, TORCH_COMPILED

from multibackend.testing.conformance import (
    AverageConformance,
    GroupConformance,
    ResumeConformance,
    ScheduleConformance,
    SkipConformance,
    StateConformance,
    WindowConformance,
)


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN, DISPATCH], ids=str)
class TestWindows(WindowConformance):
    pass


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestSkips(SkipConformance):
    pass


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN_MANY, DISPATCH], ids=str)
class TestSchedules(ScheduleConformance):
    pass


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN_MANY, DISPATCH], ids=str)
class TestState(StateConformance):
    pass


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestGroups(GroupConformance):
    pass


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestAverages(AverageConformance):
    pass


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
@pytest.mark.parametrize("variant", [STUB, TORCH, TORCH_COMPILED, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestResuming(ResumeConformance):
    pass
