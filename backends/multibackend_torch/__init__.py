"""The PyTorch backend of multibackend. Importing this package does not import torch."""

from multibackend.protocol import BackendPlugin

__all__ = ["plugin"]

plugin = BackendPlugin(
    name="torch",
    backend="multibackend_torch.backend:TorchBackend",
    requires=("torch", "array_api_compat"),
    distributions=("torch",),
    install="pip install 'multibackend[torch]'",
    execution_modes=("eager", "compiled"),
    capabilities=frozenset({"memory"}),
)
