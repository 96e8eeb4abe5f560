"""For authors of backends and transforms: conformance checks, models, numerics."""

from edgeinfer.testing import conformance, models

__all__ = ["conformance", "models"]
