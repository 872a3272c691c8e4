"""Every backend tells what its layers do."""

import pytest
from support.variants import DISPATCH, SCAN_MANY, TORCH

from multibackend.testing.conformance import TraceConformance


@pytest.mark.parametrize("variant", [TORCH, SCAN_MANY, DISPATCH], ids=str)
class TestTraces(TraceConformance):
    pass
