"""For authors of backends and transforms: conformance checks, models, numerics."""

__all__ = ["conformance", "models"]
