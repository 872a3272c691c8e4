"""What the whole suite shares: programs that JAX compiled once and quickly; most tests build the same few."""

import os
import shutil
import tempfile

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_MADE_HERE = _CACHE not in os.environ

# before any test imports JAX; the processes that pytest-xdist starts, and those that tests start, inherit it
if _MADE_HERE:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="multibackend-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Most of the time of a test on JAX goes into compiling: a GPT of two blocks 8 s of 11, at LLVM's first level of
# optimisation 6, with the same bits in float64, for XLA itself fuses as ever. `make test-all` sets XLA_FLAGS, so there
# everything is compiled as users compile it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that made the cache removes it."""
    if _MADE_HERE:
        shutil.rmtree(os.environ[_CACHE], ignore_errors=True)
