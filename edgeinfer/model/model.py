"""`Model`: an ONNX graph with its signature and its history of transforms."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, final

import attrs
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError

from edgeinfer.artifact.signature import ANY_SIZE_NAMES, Signature
from edgeinfer.display import Table
from edgeinfer.errors import InvalidModelError, ModelError, ModelLoadError, UnsupportedModelError
from edgeinfer.model.canonical import canonical_digest
from edgeinfer.model.external_data import internalize
from edgeinfer.values import as_tuple

__all__ = ["HistoryEntry", "Model", "ModelSource", "check_graph", "name_nodes"]

MIN_OPSET = 7
HISTORY_KEY = "edgeinfer.history"
TARGET_KEY = "edgeinfer.target"

# A protobuf message cannot reach 2 GiB; weights go to an external file well before that.
EXTERNAL_THRESHOLD_BYTES = 1 << 30
# No tensor of a model that fits a device has more elements than this; larger shapes are attacks or defects
# (a dimension of 2**62 makes one runtime's compiler hang).
MAX_ELEMENTS = 1 << 40
IrModel: TypeAlias = ir.Model  # inside the class `ir` is a field
ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | Model"


@attrs.frozen(kw_only=True)
class HistoryEntry:
    """One transform that was applied to a model.

    Attributes:
        name: The transform's class name.
        config: Its configuration, as JSON-compatible values.
        digest_before: The model's digest before it.
        digest_after: The model's digest after it.
        applied: How many places it changed.
        skipped: How many places it left alone, with a reason in its report.
        notes: What else it said, such as an opset conversion.
    """

    name: str
    config: Mapping[str, object] = attrs.field(factory=dict)
    digest_before: str
    digest_after: str
    applied: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)


@final
@attrs.frozen(eq=False, repr=False, slots=False)
class Model:
    """A frozen handle on an `onnx_ir.Model`.

    Nothing in edgeinfer changes a Model: transforms return new ones, which share the weights that were
    not touched. Make one with `Model.load`; every function that takes a model takes the same sources.

    Attributes:
        ir: The graph. It is shared; do not change it. `copy_ir()` gives one that you may change.
        path: The file it came from, if any.
        report: The TransformReport of the `optimize` call that made it, in this process.
    """

    ir: IrModel
    path: Path | None = None
    report: Any = None

    @classmethod
    def load(cls, source: ModelSource) -> Model:
        """Read and check a model.

        Args:
            source: A path to an `.onnx` file, its bytes, an `onnx.ModelProto`, an `onnx_ir.Model`, or a
                Model, which is returned as it is. External data is read from the folder of the path.

        Raises:
            ModelLoadError: The file is missing, unreadable, truncated, or not ONNX.
            InvalidModelError: The graph breaks the ONNX specification.
            ExternalDataError: External data is missing or not safe to read.
            UnsupportedModelError: The opset is older than 7 or newer than the installed `onnx` knows.
        """
        if isinstance(source, Model):
            return source
        if isinstance(source, ir.Model):
            return cls.from_ir(source.clone())
        if isinstance(source, onnx.ModelProto):
            own = onnx.ModelProto()  # tensors are views of it, so the caller's may not be used
            own.CopyFrom(source)
            return cls._from_proto(own, None, "the ModelProto")
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls._from_proto(_parse(bytes(source), "the bytes"), None, "the bytes")
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            return cls._from_proto(_parse(_read_file(path), str(path)), path, str(path))
        raise ModelLoadError(
            "That is not a model.",
            expected="a path, bytes, onnx.ModelProto, onnx_ir.Model or edgeinfer.Model",
            found=type(source).__name__,
        )

    @classmethod
    def from_ir(cls, model: IrModel, *, path: Path | None = None) -> Model:
        """Take over an `onnx_ir.Model` that the caller will not change any more, after checking it.

        Raises:
            InvalidModelError: The graph breaks the ONNX specification.
            UnsupportedModelError: The opset is too old or too new.
        """
        _check_opset(model)
        name_nodes(model)
        _free_dimensions(model)
        _check_sizes(model)
        check_graph(model)
        return cls(model, path)

    @classmethod
    def _from_proto(cls, proto: onnx.ModelProto, path: Path | None, where: str) -> Model:
        if not proto.HasField("graph") or not proto.opset_import:
            raise ModelLoadError(
                "That is not an ONNX model: it has no graph or no opset.",
                where=where,
                hint="Give the .onnx file itself; a truncated download looks like this, too.",
            )
        try:
            model = ir.from_proto(proto)
            internalize(model, path.parent if path is not None else None)
            return cls.from_ir(model, path=path)
        except ModelError as error:
            error.where = where if error.where is None else f"{where}: {error.where}"
            raise
        except Exception as error:
            raise InvalidModelError(
                f"The graph cannot be read: {_root_of(error)}", where=where, hint="Export the model again."
            ) from error

    @cached_property
    def signature(self) -> Signature:
        """The inputs (without weights) and outputs, with dtypes and shapes."""
        return Signature.of_graph(self.ir.graph, ir_version=self.ir.ir_version)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the canonical serialization (see `edgeinfer.model.canonical`)."""
        return canonical_digest(self.ir)

    @property
    def opset(self) -> int:
        """The version of the default ONNX operator set."""
        return self.ir.opset_imports.get("", 0)

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The transforms that made this model, oldest first.

        Raises:
            InvalidModelError: The metadata entry is not what edgeinfer wrote.
        """
        text = self.ir.metadata_props.get(HISTORY_KEY)
        try:
            return tuple(HistoryEntry(**entry) for entry in json.loads(text)) if text else ()
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidModelError(
                "The model's history cannot be read.",
                where=f"metadata entry {HISTORY_KEY!r}",
                found=str(error),
                hint="Upgrade edgeinfer, or remove the entry from the model's metadata.",
            ) from error

    @property
    def target(self) -> str | None:
        """The target that `optimize` was given, as text, if any."""
        return self.ir.metadata_props.get(TARGET_KEY)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's metadata, read-only."""
        return MappingProxyType(self.ir.metadata_props)

    @cached_property
    def nbytes(self) -> int:
        """The size of all weights in bytes: initializers and Constant nodes, wherever they are."""
        graphs = [self.ir.graph, *self.ir.graph.subgraphs()]
        tensors = [v.const_value for graph in graphs for v in graph.initializers.values()]
        owners: list[ir.Graph | ir.Function] = [self.ir.graph, *self.ir.functions.values()]
        for owner in owners:
            tensors += [
                ir.convenience.get_const_tensor(node.outputs[0])
                for node in owner.all_nodes()
                if (node.domain, node.op_type) == ("", "Constant")
            ]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def copy_ir(self) -> IrModel:
        """Return a copy of the graph that may be changed. Weights and `meta` values are shared."""
        copy = self.ir.clone()
        copy.meta.update(self.ir.meta)
        return copy

    def with_metadata(self, **entries: str) -> Model:
        """Return this model with further metadata entries; underscores in names become dots."""
        copy = self.copy_ir()
        copy.metadata_props.update({name.replace("_", "."): value for name, value in entries.items()})
        return Model(copy, self.path)

    def with_history(self, entries: tuple[HistoryEntry, ...]) -> Model:
        """Return this model with the given history in its metadata."""
        text = json.dumps([attrs.asdict(entry) for entry in entries], separators=(",", ":"))
        copy = self.copy_ir()
        copy.metadata_props[HISTORY_KEY] = text
        return Model(copy, self.path)

    def to_proto(self) -> onnx.ModelProto:
        """Return an `onnx.ModelProto` with all weights inline.

        Raises:
            UnsupportedModelError: The weights do not fit a protobuf message (2 GB); save it instead.
        """
        if self.nbytes >= (1 << 31) - (1 << 24):
            raise UnsupportedModelError(
                "The model is too large for one protobuf message.",
                expected="under 2 GB",
                found=f"{self.nbytes / 1e9:.2f} GB of weights",
                hint="Use Model.save(path), which keeps the weights in a file beside the model.",
            )
        return ir.to_proto(self.ir)

    def to_bytes(self) -> bytes:
        """Return the serialized `ModelProto` with all weights inline (under 2 GB)."""
        data: bytes = self.to_proto().SerializeToString(deterministic=True)
        return data

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> Path:
        """Write the model atomically: to a temporary sibling, then by rename.

        With external data there are two renames, the data first.

        Args:
            path: The `.onnx` file to write.
            external_data: Keep weights in `<name>.data` beside it. None: from 1 GiB on.

        Returns:
            The path written.

        Raises:
            ModelError: It cannot be written; a file that was there before is untouched.
        """
        path = Path(path)
        if external_data is None:
            external_data = self.nbytes >= EXTERNAL_THRESHOLD_BYTES
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
                draft = Path(folder) / path.name
                data = f"{path.name}.data"
                if external_data:
                    ir.save(self.copy_ir(), draft, external_data=data)
                    _replace(Path(folder) / data, path.with_name(data))
                else:
                    draft.write_bytes(self.to_bytes())
                _replace(draft, path)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise ModelError(
                f"The model cannot be written: {getattr(error, 'strerror', None) or error}.",
                where=str(path),
                hint="Check that the folder exists, is writable and has room.",
            ) from error
        return path

    def table(self) -> Table:
        """Return what a person wants to know at a glance."""
        signature = self.signature
        rows = [("input", spec.name, spec.describe()) for spec in signature.inputs]
        rows += [("output", spec.name, spec.describe()) for spec in signature.outputs]
        rows.append(("opset", str(self.opset), f"{self.nbytes / 1e6:.2f} MB of weights"))
        rows.append(("digest", self.digest[:12], f"{len(self.history)} transforms"))
        name = self.path.name if self.path else self.ir.graph.name or "model"
        return Table(title=f"Model {name}", columns=("", "", ""), rows=tuple(rows))

    def __repr__(self) -> str:
        name = self.path.name if self.path else self.ir.graph.name or "model"
        return f"<Model {name}: {self.signature.describe()}, opset {self.opset}, {self.nbytes / 1e6:.2f} MB>"

    def _repr_html_(self) -> str:
        return self.table().to_html()


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


def _root_of(error: BaseException) -> BaseException:
    """Return what began it: onnx-ir wraps an error once for each level of the graph."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _read_file(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelLoadError("There is no such model file.", where=str(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"The model cannot be read: {reason}.", where=str(path)) from error
    if not data:
        raise ModelLoadError("The model file is empty.", where=str(path), hint="Copy or download it again.")
    return data


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        return proto
    except DecodeError as error:
        raise ModelLoadError(
            "That is not an ONNX model, or it is truncated.",
            where=where,
            expected="a serialized onnx.ModelProto",
            found=f"{len(data)} bytes that do not parse",
            hint="Copy or download it again; Git LFS pointers and HTML error pages look like this, too.",
        ) from error


def _check_opset(model: ir.Model) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("")
    if opset is not None and not MIN_OPSET <= opset <= newest:
        raise UnsupportedModelError(
            "The model's ONNX opset is not supported.",
            expected=f"opset {MIN_OPSET} to {newest}",
            found=f"opset {opset}",
            hint="Upgrade the onnx package." if opset > newest else "Export the model with a newer opset.",
        )


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


def _free_dimensions(model: ir.Model) -> None:
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


def _check_sizes(model: ir.Model) -> None:
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


def _replace(source: Path, destination: Path) -> None:
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(destination)
