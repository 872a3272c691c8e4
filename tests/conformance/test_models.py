"""Every backend and execution mode passes what needs labels, unused parameters, statistics, dropout."""

import pytest
from support.variants import DISPATCH, SCAN, SCAN_MANY, TORCH

from multibackend.testing.conformance import (
    ClassifierConformance,
    PartialUseConformance,
    RandomConformance,
    StatisticsConformance,
)


@pytest.mark.parametrize("variant", [TORCH, SCAN], ids=str)
class TestClassifier(ClassifierConformance):
    pass


@pytest.mark.parametrize("variant", [TORCH, SCAN, DISPATCH], ids=str)
class TestPartialUse(PartialUseConformance):
    pass


@pytest.mark.parametrize("variant", [TORCH, SCAN_MANY, DISPATCH], ids=str)
class TestStatistics(StatisticsConformance):
    pass


@pytest.mark.parametrize("variant", [TORCH, SCAN_MANY, DISPATCH], ids=str)
class TestRandom(RandomConformance):
    pass
