"""`Workload`: what a model asks of a device, in numbers: its kernels, its file, its activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import attrs

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.estimate.kernel import COMPUTE_KINDS, Kernel
from edgeinfer.estimate.kernels import find_kernels
from edgeinfer.feeds.shapes import Shapes, resolve_shapes
from edgeinfer.measure.inspection import with_static_shapes
from edgeinfer.measure.memory_plan import plan_memory
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.values import as_tuple

__all__ = ["Workload", "workload"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_PLAN_BYTES = {**_BYTES, "int8": 4}
_MULTIPLE = 8
_NODE_BYTES = 160  # of a node in a file: names, attributes


@final
@attrs.frozen(kw_only=True)
class Workload:
    """What one inference of a model asks of a device.

    Attributes:
        name: The model's name.
        precision: What most of its products are computed in.
        kernels: Its kernels in execution order.
        file_bytes: About the size of its file.
        plan_bytes: The least memory of its activations.
        open_shapes: Whether the model leaves sizes of its inputs open, which costs time at each run.
        recurrent: Whether it has recurrent layers, whose time is not estimated.
        notes: What could not be counted.
    """

    name: str
    precision: str
    kernels: tuple[Kernel, ...] = attrs.field(converter=as_tuple, repr=False)
    file_bytes: int
    plan_bytes: int
    open_shapes: bool = False
    recurrent: bool = False
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(kernel.macs or 0 for kernel in self.kernels)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that its kernels read."""
        return sum(kernel.weight_bytes for kernel in self.kernels)

    def assume(self, precision: str) -> Workload:
        """Return the workload as it would be in another precision, everything else alike."""
        kernels = tuple(_converted(kernel, precision) for kernel in self.kernels)
        kept = tuple(kernel for kernel in kernels if kernel.kind not in ("quantize", "dequantize"))
        saved = self.weight_bytes - sum(kernel.weight_bytes for kernel in kept)
        # A plan counts the floats in front of a quantizer, too: of integer graphs it is mostly as large.
        ratio = _PLAN_BYTES[precision] / _PLAN_BYTES[self.precision]
        return attrs.evolve(
            self,
            precision=precision,
            kernels=kept,
            file_bytes=max(0, self.file_bytes - saved),
            plan_bytes=round(self.plan_bytes * ratio),
        )

    def pruned(self, keep: float) -> Workload:
        """Return the workload with this share of its products, as pruning of channels would leave it.

        Where a share k of the products stays, about √k of the channels do: a product needs an input channel
        and an output channel.
        """
        channels = keep**0.5
        kernels = tuple(_narrowed(kernel, channels) for kernel in self.kernels)
        saved = self.weight_bytes - sum(kernel.weight_bytes for kernel in kernels)
        return attrs.evolve(
            self,
            kernels=kernels,
            file_bytes=max(0, self.file_bytes - saved),
            plan_bytes=round(self.plan_bytes * channels),
        )


def _converted(kernel: Kernel, precision: str) -> Kernel:
    if kernel.kind not in COMPUTE_KINDS and precision == "int8" and kernel.kind in ("reduce", "other"):
        return kernel  # a Softmax or LayerNorm stays in float
    ratio = _BYTES[precision] / _BYTES[kernel.precision]
    return attrs.evolve(
        kernel,
        precision=precision,
        read_bytes=round(kernel.read_bytes * ratio),
        written_bytes=round(kernel.written_bytes * ratio),
        weight_bytes=round(kernel.weight_bytes * ratio)
        if kernel.kind in COMPUTE_KINDS
        else kernel.weight_bytes,
    )


def _narrowed(kernel: Kernel, channels: float) -> Kernel:
    """Return a kernel with this share of its input and output channels."""

    def part(count: int) -> int:
        return max(1, round(count * channels))

    def fewer(count: int) -> int:
        """Pruning keeps to the multiple that runtimes compute at once."""
        if count % _MULTIPLE:
            return part(count)
        return max(_MULTIPLE, round(count * channels / _MULTIPLE) * _MULTIPLE)

    separate = kernel.kind == "depthwise"  # one filter a channel
    share = channels if separate else channels * channels
    narrower = attrs.evolve(
        kernel,
        macs=round((kernel.macs or 0) * share),
        read_bytes=part(kernel.read_bytes),
        written_bytes=part(kernel.written_bytes),
        weight_bytes=round(kernel.weight_bytes * share),
        operations=round(kernel.operations * channels),
    )
    if kernel.kind not in COMPUTE_KINDS:
        return narrower
    if separate:
        return attrs.evolve(narrower, groups=fewer(kernel.groups))
    return attrs.evolve(narrower, outs=fewer(kernel.outs), ins=fewer(kernel.ins))


def workload(
    model: ModelSource,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    target: Target | str | None = None,
) -> Workload:
    """Count what a model asks of a device.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        shapes: Sizes of symbolic dimensions, or entire shapes.
        batch: The size of the batch where the model leaves it open; None: 1.
        target: Where it will run: what the runtime fuses depends on it. None for the plainest.

    Raises:
        ModelError: The model cannot be read.
        InputError: A shape does not fit.
    """
    loaded = Model.load(model)
    static, notes = with_static_shapes(loaded, resolve_shapes(loaded.signature, shapes, batch=batch))
    kernels = find_kernels(static.graph, _dialect(target))
    unknown = sum(kernel.macs is None for kernel in kernels)
    if unknown:
        notes.append(f"{unknown} kernels of unknown shape are not counted")
    if any(True for _ in static.graph.subgraphs()):
        notes.append("nodes of subgraphs (loops, branches) are not counted")
    nodes = sum(1 for _ in static.graph.all_nodes())
    return Workload(
        name=loaded.path.name if loaded.path else loaded.ir.graph.name or "model",
        precision=_most(kernels),
        kernels=kernels,
        file_bytes=loaded.nbytes + nodes * _NODE_BYTES,
        plan_bytes=plan_memory(static.graph).peak_bytes,
        open_shapes=not loaded.signature.is_static,
        recurrent=any(kernel.kind == "recurrent" for kernel in kernels),
        notes=notes,
    )


def _dialect(target: Target | str | None) -> QDQDialect | None:
    if target is None:
        return None
    return get_backend(Target.parse(target).backend).capabilities().dialect


def _most(kernels: Iterable[Kernel]) -> str:
    by: dict[str, int] = {"float32": 0}
    for kernel in kernels:
        by[kernel.precision] = by.get(kernel.precision, 0) + (kernel.macs or 0)
    return max(by, key=lambda name: by[name])
