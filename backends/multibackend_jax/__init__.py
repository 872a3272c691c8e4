"""The JAX backend of multibackend. Importing this package does not import JAX."""

from multibackend.protocol import BackendPlugin

__all__ = ["plugin"]

plugin = BackendPlugin(
    name="jax",
    backend="multibackend_jax.backend:JaxBackend",
    requires=("jax", "flax", "optax"),
    distributions=("jax", "flax", "optax"),
    install="pip install 'multibackend[jax]'",
    execution_modes=("scan", "dispatch"),
    capabilities=frozenset({"memory"}),
)
