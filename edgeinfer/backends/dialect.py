"""`QDQDialect`: which quantized graphs a runtime accepts, and runs fast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import attrs

__all__ = ["MOVING_OPS", "KernelCosts", "QDQDialect", "TimedModel"]


# Operators that move, select or clamp values and never make new ones: input and output share one scale.
MOVING_OPS = frozenset(
    [
        "MaxPool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Identity",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@final
@attrs.frozen(kw_only=True)
class KernelCosts:
    """What a runtime's kernels cost on one thread, to tell where integers gain nothing. Only ratios matter.

    Attributes:
        float_macs: Multiply-accumulates per microsecond of a float convolution or matrix product.
        float_depthwise_macs: The same of a depthwise convolution.
        float_call_us: What each float kernel costs beside that.
        integer_macs: As `float_macs`, in integers.
        integer_depthwise_macs: As `float_depthwise_macs`, in integers.
        integer_ragged_macs: The same when the channels are no multiple of `lanes`.
        integer_call_us: What each integer kernel costs beside that.
        integer_store_us: Per output element of an integer kernel, for requantizing.
        gather_us: Per input position that an integer convolution of under 8 input channels gathers.
        float_weight_us: Per weight element that a float kernel reads, where that takes longest.
        integer_weight_us: The same in integers.
        pool_us: Per input element of a MaxPool whose output is quantized while its input is not: the runtime
            moves the quantizer above the pool, and pools integers in the wrong layout.
        table_us: Per element of an activation that integers look up in a table and float kernels take in.
        quantize_us: Per element that is quantized.
        dequantize_us: Per element that is dequantized.
        reorder_us: Per element in and out of a float kernel among integer ones, for the change of layout.
        lanes: Channels in one vector register.
    """

    float_macs: float
    float_depthwise_macs: float
    float_call_us: float
    integer_macs: float
    integer_depthwise_macs: float
    integer_ragged_macs: float
    integer_call_us: float
    integer_store_us: float
    gather_us: float
    float_weight_us: float
    integer_weight_us: float
    pool_us: float
    table_us: float
    quantize_us: float
    dequantize_us: float
    reorder_us: float
    lanes: int = 16


@final
@attrs.frozen(kw_only=True)
class TimedModel:
    """A model that was timed in float16 and int8 on a device: a row of the table that decides elsewhere.

    Attributes:
        model: Its name, and its batch.
        attention: Products of two activations are in it, as in transformers.
        layers: Its layers with weights.
        macs: Its multiply-accumulates, of all of the batch.
        float16_ms: The median latency in float16, in ms.
        int8_ms: The same in int8.
        source: On what it was measured, and when.
    """

    model: str
    attention: bool
    layers: int
    macs: float
    float16_ms: float
    int8_ms: float
    source: str

    @property
    def ratio(self) -> float:
        """How many times as fast as float16 int8 is."""
        return self.float16_ms / self.int8_ms


@final
@attrs.frozen(kw_only=True)
class QDQDialect:
    """Which Q/DQ graphs a runtime accepts and runs fast (measured; see docs/adr).

    Attributes:
        name: The backend's name.
        activation_dtype: `uint8` or `int8`.
        activation_symmetric: Zero points of activations must be 0.
        quantize_bias: Biases are int32 behind DequantizeLinear; else they stay float.
        gemm_of_matmul: The runtime makes a Gemm of a MatMul and the Add of a constant behind it before it
            looks for quantizers. That runs in integers only with a bias in int32; and where its input has
            more than two axes, of known sizes, it is reshaped, which hides the quantizer: there the bias gets
            as many axes, and the two stay apart.
        fold_relu: A ReLU may be folded into the range of the quantizer behind it.
        min_opset: The opset that its graphs need.
        integer_ops: Operators with a constant weight that have an integer kernel worth quantizing for.
        needs_output: Those of them that run in integers only when their own output is quantized, and by
            nothing but that quantizer: float readers then read the dequantized value.
        quantize_outputs: Whether one of `needs_output` may make an output of the model, whose values are then
            8-bit ones behind DequantizeLinear: faster, and as coarse as that. Never where a Concat joins it
            with others on the way.
        epilogue: Operators that such a kernel takes in behind it. `Add` is a residual, `SiLU` is
            `Mul(x, Sigmoid(x))`.
        requantizing: Operators with an integer kernel of their own, each tensor with its own scale.
        moving: Operators that run on integers as they are; inputs and output share one scale.
        requantize_moved: A quantizer stands behind the operators of `moving`, too. Without it the one above
            them, whose scale they share, is the only one.
        wrong_before: Operators that the runtime computes wrongly once it takes the quantizer behind them into
            their kernel; what reads them, or what is computed from them value by value, stays in float.
        bias_where_shared: A convolution without a bias, or with one of zeros, whose output several nodes read
            gets one of next to nothing.
        keeps_float_by_axis: The runtime quantizes the weights of float layers between quantizers unasked,
            unless their input is dequantized with a scale for each channel; so it is.
        known_to_pay: Int8 is faster than float on every device, so that it need not be measured there.
        pairs_in_int16: On this machine the kernels add two products of an 8-bit activation and a signed 8-bit
            weight in 16 bits, which saturate (`edgeinfer.numerics.pair_sums`): weights get scales with which
            they cannot. Found by a trial (`quantization.placement.pair_overflow`) where a target is here.
        costs: Where given, what would gain nothing from integers stays in float.
        timed: Models that were timed in float16 and int8, for where a device is not here.
    """

    name: str
    activation_dtype: str = "uint8"
    activation_symmetric: bool = False
    quantize_bias: bool = False
    gemm_of_matmul: bool = False
    fold_relu: bool = True
    min_opset: int = 13
    integer_ops: frozenset[str] = attrs.field(default=frozenset({"Conv", "Gemm", "MatMul"}), converter=_names)
    needs_output: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    quantize_outputs: bool = False
    epilogue: frozenset[str] = attrs.field(default=frozenset({"Relu", "Clip"}), converter=_names)
    requantizing: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    moving: frozenset[str] = attrs.field(default=MOVING_OPS, converter=_names)
    requantize_moved: bool = True
    wrong_before: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    bias_where_shared: bool = False
    keeps_float_by_axis: bool = False
    known_to_pay: bool = False
    pairs_in_int16: bool = False
    costs: KernelCosts | None = None
    timed: tuple[TimedModel, ...] = ()
