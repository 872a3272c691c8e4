"""Do two runs match, and if not, where do they part?"""

from multibackend.core.differences import relative_differences
from multibackend.parity.accumulation import AccumulationReport, check_accumulation
from multibackend.parity.comparison import compare
from multibackend.parity.findings import STAGES, Cause, Divergence
from multibackend.parity.report import CompareReport
from multibackend.parity.tolerances import Tolerance, tolerance_for

__all__ = [
    "STAGES",
    "AccumulationReport",
    "Cause",
    "CompareReport",
    "Divergence",
    "Tolerance",
    "check_accumulation",
    "compare",
    "relative_differences",
    "tolerance_for",
]
