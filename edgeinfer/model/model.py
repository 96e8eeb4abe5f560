"""`Model`: an ONNX graph with its signature and its history of transforms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, final

import attrs
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.artifact.signature import Signature
from edgeinfer.atomic import draft_folder
from edgeinfer.backends.onnx_payload import EXTERNAL_THRESHOLD_BYTES
from edgeinfer.display import Table
from edgeinfer.errors import InvalidModelError, ModelError, ModelLoadError, UnsupportedModelError
from edgeinfer.model.canonical import canonical_digest
from edgeinfer.model.checks import (
    check_functions,
    check_graph,
    check_opset,
    check_sizes,
    check_types,
    free_dimensions,
    name_nodes,
)
from edgeinfer.model.external_data import internalize
from edgeinfer.model.shape_hints import drop_wrong_shapes
from edgeinfer.model.transform_report import TransformReport
from edgeinfer.plain_json import parse_json

__all__ = ["Model", "ModelSource"]

HISTORY_KEY = "edgeinfer.history"
TARGET_KEY = "edgeinfer.target"
OPTIONS_KEY = "edgeinfer.options"


IrModel: TypeAlias = ir.Model  # inside the class `ir` is a field
ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | Model"


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
    report: TransformReport | None = None

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
            return cls._loaded(source.clone())
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
        check_opset(model)
        check_functions(model)
        name_nodes(model)
        free_dimensions(model)
        check_types(model)
        check_sizes(model)
        check_graph(model)
        return cls(model, path)

    @classmethod
    def _loaded(cls, model: IrModel, *, path: Path | None = None) -> Model:
        loaded = cls.from_ir(model, path=path)
        drop_wrong_shapes(model)
        return loaded

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
            return cls._loaded(model, path=path)
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
            return tuple(HistoryEntry(**entry) for entry in parse_json(text)) if text else ()
        except (ValueError, TypeError) as error:
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
    def target_options(self) -> dict[str, object]:
        """The backend's options that it was tuned with, for `target`; empty if there are none.

        Raises:
            InvalidModelError: The metadata entry is not what edgeinfer wrote.
        """
        text = self.ir.metadata_props.get(OPTIONS_KEY)
        try:
            found: dict[str, object] = dict(parse_json(text)) if text else {}
        except (ValueError, TypeError) as error:
            raise InvalidModelError(
                "The options that the model was tuned with cannot be read.",
                where=f"metadata entry {OPTIONS_KEY!r}",
                found=str(error),
                hint="Remove the entry from the model's metadata.",
            ) from error
        return found

    def tuned_for(self, target: str, options: Mapping[str, object]) -> Model:
        """Return this model with what it was tuned for, which `compile` then uses.

        Args:
            target: The target.
            options: The backend's options, of values that JSON can hold.
        """
        text = json.dumps(dict(options), sort_keys=True)
        return self.with_metadata(edgeinfer_target=target, edgeinfer_options=text)

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
        """Write the model atomically: to a draft beside it, then by rename.

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
            if path.exists() and not path.is_file():  # a rename would put a file in a device's place
                raise ModelError(
                    "There is something else at that path.",
                    where=str(path),
                    expected="a file, or nothing",
                    found="a folder" if path.is_dir() else "a device or a pipe",
                    hint="Choose another path.",
                )
            with draft_folder(path.parent, path.name) as folder:
                draft = folder / path.name
                data = f"{path.name}.data"
                if external_data:
                    ir.save(self.copy_ir(), draft, external_data=data)
                    _replace(folder / data, path.with_name(data))
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
        """Return an overview."""
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


def _replace(source: Path, destination: Path) -> None:
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(destination)
