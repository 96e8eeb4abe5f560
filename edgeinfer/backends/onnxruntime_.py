"""The ONNX Runtime backend: runs everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact import Payload
from edgeinfer.backends.base import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    KernelCosts,
    LoadOptions,
    QDQDialect,
    machine_facts,
    options_from,
    payload_of_onnx,
)
from edgeinfer.backends.onnx_payload import onnx_source
from edgeinfer.model import Model

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeOptions"]

NAME = "onnxruntime"

# Fitted to the per-node profiles of MobileNetV2, SqueezeNet, ResNet-20, NanoDet, DS-CNN and MobileNetV1-0.25 on
# one thread of an AVX512-VNNI CPU (ONNX Runtime 1.32): within 30 % of most kernels. Integer convolutions with few
# input channels gather bytes one by one, which is why first layers and depthwise ones seldom gain.
COSTS = KernelCosts(
    float_macs=50e3,
    float_depthwise_macs=19e3,
    float_call_us=2.0,
    integer_macs=175e3,
    integer_depthwise_macs=20e3,
    integer_ragged_macs=7e3,
    integer_call_us=5.0,
    integer_store_us=0.12e-3,
    gather_us=0.95e-3,
    float_weight_us=0.16e-3,
    integer_weight_us=0.066e-3,
    pool_us=3.2e-3,
    table_us=0.3e-3,
    quantize_us=1.0e-3,
    dequantize_us=0.8e-3,
)

DIALECT = QDQDialect(
    name=NAME,
    activation_dtype="uint8",
    quantize_bias=True,
    fold_relu=True,
    needs_output={"Conv"},
    requantizing={"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"},
    costs=COSTS,
)


@final
@attrs.frozen(kw_only=True)
class OnnxRuntimeOptions:
    """Options of the ONNX Runtime backend.

    Attributes:
        threads: Threads within an operator; 0 lets the runtime choose.
    """

    threads: int = attrs.field(default=0, validator=attrs.validators.ge(0))


@final
class OnnxRuntimeBackend:
    """Adapter to `onnxruntime`."""

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed `onnxruntime` can do here."""
        try:
            import onnxruntime as ort
        except ImportError as error:
            return Capabilities(available=False, reason=f"onnxruntime cannot be imported: {error}")
        device = DeviceInfo(name="CPU", description="CPU", precisions={"float32", "int8"})
        return Capabilities(
            available=True, version=ort.__version__, devices=(device,), dialect=DIALECT, facts=machine_facts()
        )

    def compile(self, model: Model, options: CompileOptions, /) -> Payload:
        """Return a portable payload: the ONNX graph."""
        chosen = options_from(OnnxRuntimeOptions, options.options, backend=NAME)
        return payload_of_onnx(model, device=options.device or "CPU", options=attrs.asdict(chosen))

    def load(self, payload: Payload, options: LoadOptions, /) -> OnnxRuntimeRunner:
        """Create an inference session."""
        import onnxruntime as ort

        chosen = options_from(OnnxRuntimeOptions, payload.options, options.options, backend=NAME)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = chosen.threads
        session = ort.InferenceSession(onnx_source(payload), settings, providers=["CPUExecutionProvider"])
        return OnnxRuntimeRunner(session)


@final
class OnnxRuntimeRunner:
    """Runs one `InferenceSession`."""

    thread_safe = True

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`."""
        outputs: list[np.ndarray] = self._session.run(self._outputs, feeds)
        return outputs

    def close(self) -> None:
        """Free the session."""
        del self._session
