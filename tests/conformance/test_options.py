"""Every backend and execution passes the part of the suite about terms, mixed precision and memory."""

import pytest
from support.variants import ALL, DISPATCH, SCAN, SCAN_MANY, TORCH

from multibackend.testing.conformance import MemoryConformance, PrecisionConformance, TermConformance


@pytest.mark.parametrize("variant", ALL, ids=str)
class TestTerms(TermConformance):
    pass


@pytest.mark.parametrize("variant", [TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestPrecision(PrecisionConformance):
    pass


@pytest.mark.parametrize("variant", [TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
class TestMemory(MemoryConformance):
    pass
