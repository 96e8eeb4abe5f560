"""For authors of backends, transforms and transports: conformance checks, models, numerics."""

from edgeinfer.testing import conformance, models

__all__ = ["conformance", "models"]
