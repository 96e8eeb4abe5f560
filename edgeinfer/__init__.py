"""edgeinfer: optimize ONNX models for a device, run them on the right hardware, keep a fleet running them.

    import edgeinfer as ei

    model = ei.optimize("model.onnx", target="openvino")
    artifact = ei.compile(model)
    artifact.save("model.edge")
    with ei.load("model.edge") as session:
        outputs = ei.infer(session, {"input": x})

Importing this package imports neither onnx nor any vendor package: every name below is imported when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of, module_of

if TYPE_CHECKING:
    from edgeinfer import devices, errors, feeds, fleet, measure, testing, transforms
    from edgeinfer.api import compile, optimize
    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.backends.registry import backends  # the package, which is callable (see its docstring)
    from edgeinfer.budget import Budget
    from edgeinfer.devices.profile import Target
    from edgeinfer.errors import EdgeInferError
    from edgeinfer.feeds.feeds import Feeds
    from edgeinfer.feeds.preprocessing import Preprocessing
    from edgeinfer.measure.comparison import compare
    from edgeinfer.measure.inspection import inspect
    from edgeinfer.model.model import Model
    from edgeinfer.quantization.search.sensitivity import sensitivity
    from edgeinfer.runtime.adaptive.adaptive_session import AdaptiveSession
    from edgeinfer.runtime.benchmark import benchmark
    from edgeinfer.runtime.open import infer, load
    from edgeinfer.runtime.session import Session
    from edgeinfer.runtime.steady import Steady
    from edgeinfer.transforms.pipeline import Pipeline
    from edgeinfer.tuning.recipe import Recipe
    from edgeinfer.tuning.result import TuningResult
    from edgeinfer.tuning.tune import tune

__version__ = "0.1.0"

_ATTRIBUTES = {
    "AdaptiveSession": "edgeinfer.runtime.adaptive.adaptive_session",
    "Artifact": "edgeinfer.artifact.artifact",
    "Budget": "edgeinfer.budget",
    "EdgeInferError": "edgeinfer.errors",
    "Feeds": "edgeinfer.feeds.feeds",
    "Model": "edgeinfer.model.model",
    "Pipeline": "edgeinfer.transforms.pipeline",
    "Preprocessing": "edgeinfer.feeds.preprocessing",
    "Recipe": "edgeinfer.tuning.recipe",
    "Session": "edgeinfer.runtime.session",
    "Steady": "edgeinfer.runtime.steady",
    "Target": "edgeinfer.devices.profile",
    "TuningResult": "edgeinfer.tuning.result",
    "benchmark": "edgeinfer.runtime.benchmark",
    "compare": "edgeinfer.measure.comparison",
    "compile": "edgeinfer.api",
    "infer": "edgeinfer.runtime.open",
    "inspect": "edgeinfer.measure.inspection",
    "load": "edgeinfer.runtime.open",
    "optimize": "edgeinfer.api",
    "sensitivity": "edgeinfer.quantization.search.sensitivity",
    "tune": "edgeinfer.tuning.tune",
}
_MODULES = ("backends", "devices", "errors", "feeds", "fleet", "measure", "testing", "transforms")

__all__ = [
    "AdaptiveSession",
    "Artifact",
    "Budget",
    "EdgeInferError",
    "Feeds",
    "Model",
    "Pipeline",
    "Preprocessing",
    "Recipe",
    "Session",
    "Steady",
    "Target",
    "TuningResult",
    "__version__",
    "backends",
    "benchmark",
    "compare",
    "compile",
    "devices",
    "errors",
    "feeds",
    "fleet",
    "infer",
    "inspect",
    "load",
    "measure",
    "optimize",
    "sensitivity",
    "testing",
    "transforms",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = module_of(f"edgeinfer.{name}")
    elif name in _ATTRIBUTES:
        value = attribute_of(_ATTRIBUTES[name], name)
    else:
        raise AttributeError(f"module 'edgeinfer' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
