"""What every graph must keep to: the ONNX specification, an opset that is known, sizes that can be."""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Collection, Iterable, Mapping

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.artifact.signature import ANY_SIZE_NAMES
from edgeinfer.errors import InvalidModelError, UnsupportedModelError

__all__ = [
    "MIN_OPSET",
    "check_functions",
    "check_graph",
    "check_opset",
    "check_sizes",
    "check_types",
    "free_dimensions",
    "name_nodes",
]

MIN_OPSET = 7
# No tensor of a model that fits a device has more elements than this; larger shapes are attacks or defects
# (a dimension of 2**62 makes one runtime's compiler hang).
MAX_ELEMENTS = 1 << 40
# The largest models have some ten thousand.
MAX_NODES = 1 << 20


def check_opset(model: ir.Model) -> None:
    """Refuse an opset that is older than edgeinfer handles or newer than `onnx` knows.

    Raises:
        UnsupportedModelError: It is.
    """
    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("")
    if opset is not None and not MIN_OPSET <= opset <= newest:
        raise UnsupportedModelError(
            "The model's ONNX opset is not supported.",
            expected=f"opset {MIN_OPSET} to {newest}",
            found=f"opset {opset}",
            hint="Upgrade the onnx package." if opset > newest else "Export the model with a newer opset.",
        )


def check_functions(model: ir.Model) -> None:
    """Refuse functions that call each other in a circle, or that make very many nodes when they are inlined.

    A dozen functions of ten calls each are a trillion nodes ("billion laughs"), on which the ONNX checker,
    which looks into every call, does not come to an end.

    Raises:
        InvalidModelError: There are such functions.
    """
    functions = {function.identifier(): function for function in model.functions.values()}
    if not functions:
        return
    called = {name: _calls(function.all_nodes(), functions) for name, function in functions.items()}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        for name in graphlib.TopologicalSorter(called).static_order():
            sizes[name] = min(_size(functions[name].all_nodes(), sizes), MAX_NODES + 1)
    except graphlib.CycleError as error:
        raise InvalidModelError(
            "Functions of the model call each other in a circle.",
            where=" -> ".join(f"{name[0]}::{name[1]}" for name in error.args[1]),
            hint="ONNX has no recursion; use Loop.",
        ) from error
    if _size(model.graph.all_nodes(), sizes) > MAX_NODES:
        raise InvalidModelError(
            "The functions of the model make too many nodes.",
            expected=f"at most {MAX_NODES:,} after inlining",
            found="more",
            hint="No model of use is like that; where is it from?",
        )


def _calls(
    nodes: Iterable[ir.Node], functions: Collection[ir.OperatorIdentifier]
) -> set[ir.OperatorIdentifier]:
    return {node.op_identifier() for node in nodes} & set(functions)


def _size(nodes: Iterable[ir.Node], sizes: Mapping[ir.OperatorIdentifier, int]) -> int:
    return sum(sizes.get(node.op_identifier(), 1) for node in nodes)


def name_nodes(model: ir.Model) -> None:
    """Give every node a unique name, so that reports and options can name it."""
    taken: set[str] = set()
    nodes = list(model.graph.all_nodes())
    named = {node.name for node in nodes if node.name}
    for index, node in enumerate(nodes):
        if not node.name or node.name in taken:
            name = f"{node.op_type}_{index}"
            while name in named or name in taken:
                name += "_"
            node.name = name
        taken.add(node.name)


def free_dimensions(model: ir.Model) -> None:
    """Read dimensions of -1, or with a name that names nothing, as unknown ones; see `ANY_SIZE_NAMES`."""
    for graph in (model.graph, *model.graph.subgraphs()):
        outputs = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.outputs, *outputs):
            dims = list(value.shape or ())
            known = [None if _is_any_size(dim) else dim for dim in dims]
            if known != dims:
                value.shape = ir.Shape(known)


def _is_any_size(dim: int | ir.SymbolicDim) -> bool:
    if isinstance(dim, int):
        return dim == -1
    return dim.value is not None and dim.value.strip().lower() in ANY_SIZE_NAMES


def check_types(model: ir.Model) -> None:
    """Refuse inputs and outputs whose elements have no type.

    Raises:
        InvalidModelError: There is one.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype is ir.DataType.UNDEFINED:
            raise InvalidModelError(
                "An input or output has elements of no type.",
                where=f"tensor {value.name!r}",
                expected="a type such as float32",
                found=value.dtype.name,
                hint="Export the model again.",
            )


def check_sizes(model: ir.Model) -> None:
    """Refuse shapes that no tensor can have, and weights whose data is not of their shape.

    Raises:
        InvalidModelError: There is one.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            count = 1
            for dim in value.shape or ():
                if isinstance(dim, int):
                    count *= dim
                if count < 0 or count > MAX_ELEMENTS:
                    raise InvalidModelError(
                        "A tensor's shape is impossible.",
                        where=f"tensor {value.name!r}",
                        expected="0 to 2**40 elements, no negative dimension",
                        found=str(value.shape),
                    )
            tensor = value.const_value
            if tensor is not None and tensor.dtype is not ir.DataType.STRING:
                _check_payload(value.name or "", tensor, count)


def _check_payload(name: str, tensor: ir.TensorProtocol, count: int) -> None:
    found: int | None = None
    with contextlib.suppress(Exception):
        found = int(tensor.numpy().size)
    if found != count:
        raise InvalidModelError(
            "A weight's data does not have the size of its shape.",
            where=f"tensor {name!r}",
            expected=f"{count} elements of {tensor.dtype.name}",
            found="unreadable data" if found is None else f"{found} elements",
            hint="The file is damaged; copy or export it again.",
        )


def check_graph(model: ir.Model) -> None:
    """Run the ONNX checker. Inputs and outputs of unknown rank, which it refuses and runtimes take, pass.

    Raises:
        InvalidModelError: With the checker's message.
    """
    values = (*model.graph.inputs, *model.graph.outputs)
    unranked = [value for value in values if value.shape is None and isinstance(value.type, ir.TensorType)]
    for value in unranked:
        value.shape = ir.Shape(())
    try:
        common_passes.CheckerPass()(model)
    except Exception as error:
        cause = error.__cause__ or error
        raise InvalidModelError(
            f"The graph breaks the ONNX specification: {str(cause).strip()}",
            hint="Export the model again, or repair the node named above.",
        ) from error
    finally:
        for value in unranked:
            value.shape = None
