"""Parsing ONNX with TensorRT, and turning its complaints into errors that name the ONNX node."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import attrs
import onnx_ir as ir

from edgeinfer.backends.onnx_payload import EXTERNAL_THRESHOLD_BYTES
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.log import LogCapture, logger_of
from edgeinfer.backends.tensorrt_.parser_gaps import fill_gaps
from edgeinfer.errors import CompileError
from edgeinfer.model.model import Model

__all__ = ["Complaint", "build_error", "parse_onnx"]

_RETARGET = 'Rewrite the quantization with RetargetQDQ("tensorrt"), or quantize with target="tensorrt".'
_CUDA = "Check that the machine has a GPU with a driver that is new enough (nvidia-smi)."
_ONE = "Compile once for each of the compute_capabilities."
_NO_OPERATOR = "TensorRT has no implementation of this operator"

# What the parser says, as a pattern, and what it means. Its own text is kept in the error's facts.
_MEANINGS = (
    (r"non-zero zero point|shiftIsAllZeros", "it quantizes with a zero point other than 0", _RETARGET),
    (r"Plugin not found|no importer|creator &&", f"{_NO_OPERATOR}, and no plugin of that name", None),
    (r"convertDtype|Failed to convert ONNX dat[ae] type", "TensorRT does not have this data type", None),
    (r"\Afalse\Z|no runners that implement|Unsupported (operator|node)", _NO_OPERATOR, None),
    (r"CUDA_SUCCESS|cudaError|CUDA initialization", "its builder called CUDA, which failed", _CUDA),
    # RTX 1.7, for engines whose weights can be replaced.
    (r"sm_vers_\.size\(\) == 1", "it builds such an engine for one compute capability alone", _ONE),
)
_OTHERWISE = "Replace the node, or compile for another backend."


@final
@attrs.frozen(kw_only=True)
class Complaint:
    """One thing that TensorRT does not take.

    Attributes:
        node: The ONNX node's name, or the tensor's for inputs; empty when TensorRT does not tell.
        op_type: The node's operator.
        reason: Why, in our words where they are known.
        hint: What to do.
        text: What TensorRT said.
    """

    node: str
    op_type: str
    reason: str
    hint: str
    text: str

    @property
    def where(self) -> str:
        """The node and its operator, for people."""
        return f"node {self.node!r} ({self.op_type})" if self.op_type else f"tensor {self.node!r}"


def parse_onnx(trt: Any, flavour: Flavour, builder: Any, model: Model, *, config: Any = None) -> Any:
    """Return the network of a model.

    Weights beyond what a protobuf message holds go by way of a temporary folder.

    Raises:
        CompileError: With the node and the reason of each complaint in `facts["errors"]`.
    """
    kinds = trt.NetworkDefinitionCreationFlag
    model = fill_gaps(model, flavour)
    flags = sum(1 << int(getattr(kinds, name)) for name in flavour.creation_flags if hasattr(kinds, name))
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger_of(trt))
    if config is not None and hasattr(parser, "set_builder_config"):
        parser.set_builder_config(config)  # lets the parser judge what DLA takes
    with LogCapture(trt) as log:
        if model.nbytes < EXTERNAL_THRESHOLD_BYTES:
            parsed = parser.parse(model.to_bytes())
        else:
            with tempfile.TemporaryDirectory(prefix="edgeinfer-") as folder:
                path = model.save(Path(folder) / "model.onnx", external_data=True)
                parsed = parser.parse_from_file(str(path))
    if not parsed:
        found = [_complaint(parser.get_error(i), model) for i in range(parser.num_errors)]
        raise _refusal(flavour, found, log.errors)
    return network, parser


def build_error(flavour: Flavour, model: Model, log: Sequence[str]) -> CompileError:
    """Return the error for a build that failed, naming the nodes that TensorRT's messages speak of."""
    nodes = {node.name: node for node in _all_nodes(model) if node.name}
    names = sorted(nodes, key=len, reverse=True)
    found = []
    for text in log:
        # Layers are called after their nodes, with suffixes; the longest name is the right one.
        name = next((name for name in names if _named(name).search(text)), "")
        op_type = nodes[name].op_type if name else ""
        reason, hint = _meaning(text, nodes.get(name))
        found.append(Complaint(node=name, op_type=op_type, reason=reason, hint=hint, text=text))
    return _refusal(flavour, sorted(found, key=lambda complaint: not complaint.node), log)


def _named(name: str) -> re.Pattern[str]:
    """Find a name that is not a part of a longer one: of a path, say, or of a word; a suffix `_0` is fine.

    A name may begin or end with a sign, where no word begins or ends: PyTorch's begin with a slash.
    """
    return re.compile(rf"(?<![^\W_])(?<![./]){re.escape(name)}(?![^\W_]|[./]\w)")


def _all_nodes(model: Model) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(model.ir.graph))


def _refusal(flavour: Flavour, found: Sequence[Complaint], log: Sequence[str]) -> CompileError:
    if not found:
        return CompileError(
            f"{flavour} could not build the engine and did not say why.",
            found="; ".join(log) or "no message",
            hint="Simplify the model, or compile for another backend.",
        )
    first = found[0]
    named = first.where if first.node else "the model"
    more = f" ({len(found) - 1} more in error.facts['errors'])" if len(found) > 1 else ""
    return CompileError(
        f"{flavour} cannot take {named}: {first.reason}{more}.",
        where=first.where if first.node else None,
        found=first.text.strip().splitlines()[0] if first.text.strip() else None,
        hint=first.hint,
        facts={"errors": tuple(attrs.asdict(complaint) for complaint in found), "log": tuple(log)},
    )


def _complaint(error: Any, model: Model) -> Complaint:
    node = _node_of(error, model)
    text = str(error.desc())
    if node is None:
        # The importer of inputs puts the tensor's name where the file should be.
        named = str(error.file()) if hasattr(error, "file") else ""
        known = {value.name for value in model.ir.graph.inputs}
        reason, hint = _meaning(text, None)
        return Complaint(
            node=named if named in known else "", op_type="", reason=reason, hint=hint, text=text
        )
    reason, hint = _meaning(text, node)
    return Complaint(node=node.name or "", op_type=node.op_type, reason=reason, hint=hint, text=text)


def _node_of(error: Any, model: Model) -> ir.Node | None:
    """Return the node of a parser's error: by its name, and before TensorRT 10 by its position.

    Positions count within each graph, and nothing says which graph: where there are several, none is named
    rather than the wrong one.
    """
    outer, nodes = list(model.ir.graph), _all_nodes(model)
    name = str(error.node_name()) if hasattr(error, "node_name") else ""
    op_type = str(error.node_operator()) if hasattr(error, "node_operator") else ""
    named = next((node for node in nodes if node.name == name and name), None)
    if named is not None:
        return named
    index = int(error.node())
    if not 0 <= index < len(outer) or len(nodes) > len(outer):
        return None
    return outer[index] if op_type in ("", outer[index].op_type) else None


def _meaning(text: str, node: ir.Node | None) -> tuple[str, str]:
    if node is not None and node.op_type == "DequantizeLinear" and node.inputs:
        value = node.inputs[0]
        if value is not None and value.dtype is ir.DataType.INT32:
            return "an int32 tensor (a bias) is behind DequantizeLinear, and biases must be float", _RETARGET
    for pattern, reason, hint in _MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            return reason, hint or _OTHERWISE
    return (text.strip().splitlines() or ["no reason given"])[0].rstrip("."), _OTHERWISE
