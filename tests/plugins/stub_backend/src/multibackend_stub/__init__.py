"""A backend in numpy alone, as a third party would write one: linear models, squared error, SGD."""

from multibackend.protocol import BackendPlugin

__all__ = ["plugin"]

plugin = BackendPlugin(
    name="stub",
    backend="multibackend_stub.backend:StubBackend",
    requires=("numpy",),
    distributions=("numpy",),
    install="pip install -e tests/plugins/stub_backend",
    execution_modes=("plain",),
)
