"""A complete third-party backend: it runs models in the ONNX reference evaluator.

It inherits from nothing. Copy it to start a backend of your own: `docs/writing_a_backend.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.facts import machine_facts
from edgeinfer.backends.onnx_payload import payload_of_onnx
from edgeinfer.backends.options import options_from
from edgeinfer.backends.protocol import Capabilities, CompileOptions, DeviceInfo, LoadOptions
from edgeinfer.backends.reports import ExecutionReport, LayerExecution
from edgeinfer.errors import DeviceError
from edgeinfer.model.model import Model

__all__ = ["NumpyBackend"]

NAME = "numpy-reference"


@attrs.frozen(kw_only=True)
class NumpyOptions:
    """Options: `verbose` from 0 to 10, as the evaluator takes it."""

    verbose: int = attrs.field(
        default=0, validator=[attrs.validators.instance_of(int), attrs.validators.ge(0)]
    )


class NumpyBackend:
    """The backend: what it can do, how it compiles, how it loads."""

    name = NAME
    api_version = 1

    def capabilities(self) -> Capabilities:
        """One device, float32 only."""
        device = DeviceInfo(name="CPU", description="numpy on this CPU", precisions={"float32"})
        return Capabilities(
            available=True, version=onnx.__version__, devices=(device,), facts=machine_facts()
        )

    def compile(self, model: Model, options: CompileOptions, /) -> Payload:
        """Keep the ONNX graph as it is: a portable payload."""
        chosen = options_from(NumpyOptions, options.options, backend=NAME)
        if options.device not in ("", "CPU"):
            raise DeviceError(
                f"{NAME} has no device {options.device!r}.", expected="CPU", found=options.device
            )
        return payload_of_onnx(model, device="CPU", options=attrs.asdict(chosen))

    def load(self, payload: Payload, options: LoadOptions, /) -> NumpyRunner:
        """Parse the graph; its files were verified before."""
        chosen = options_from(NumpyOptions, payload.options, options.options, backend=NAME)
        return NumpyRunner(payload.read(), chosen.verbose)


class NumpyRunner:
    """Runs validated feeds."""

    thread_safe = (
        False  # the evaluator keeps state while it runs, so the session lets one thread in at a time
    )
    takes_optional_inputs = True  # a value given for an initializer that is an input replaces it

    def __init__(self, model: bytes, verbose: int) -> None:
        self._evaluator = ReferenceEvaluator(onnx.load_model_from_string(model), verbose=verbose)

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Return fresh arrays, in the order of the graph's outputs; strings are objects."""
        outputs = self._evaluator.run(None, dict(feeds))
        return [np.array(o, object if np.asarray(o).dtype.kind in "OUS" else None) for o in outputs]

    def execution(self) -> ExecutionReport:
        """Every node runs as it stands in the graph."""
        nodes = self._evaluator.proto_.graph.node
        layers = [
            LayerExecution(
                name=node.name,
                op_type=node.op_type,
                device="CPU",
                precision="float32",
                onnx_nodes=(node.name,),
            )
            for node in nodes
        ]
        return ExecutionReport(backend=NAME, layers=layers)

    def close(self) -> None:
        """Nothing to free."""
