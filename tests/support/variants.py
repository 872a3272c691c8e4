"""The ways to execute on which the conformance suite runs."""

from multibackend_stub.backend import Linear

from multibackend.testing import Variant
from support import flax_models, torch_models

TORCH = Variant("torch", torch_models.MODELS, "eager")
TORCH_COMPILED = Variant("torch", torch_models.MODELS, "compiled")
SCAN = Variant("jax", flax_models.NNX, "scan", windows_per_dispatch=1)
SCAN_MANY = Variant("jax", flax_models.LINEN, "scan", windows_per_dispatch=4, label="linen")
DISPATCH = Variant("jax", flax_models.NNX, "dispatch")
STUB = Variant("stub", {"linear": lambda: Linear(3, 2)}, windows_per_dispatch=2)

# for comparisons that do not ask how windows are executed: dispatch compiles one micro-batch, scan whole windows of
# each length, which takes twice as long
QUICK = {"jax": "dispatch"}

ALL = (TORCH, SCAN, SCAN_MANY, DISPATCH)
