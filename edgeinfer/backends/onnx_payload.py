"""The ONNX form of a payload: one file, or two when the weights do not fit a protobuf message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import attrs

from edgeinfer.artifact.payload import Payload
from edgeinfer.atomic import scratch_folder
from edgeinfer.backends.onnx_wire import (
    ExternalTensor,
    MalformedModelError,
    look_through,
    move_external,
)
from edgeinfer.backends.protocol import ModelToCompile
from edgeinfer.errors import ArtifactFormatError, ArtifactTrustError

__all__ = ["EXTERNAL_THRESHOLD_BYTES", "OnnxSource", "onnx_files", "onnx_source", "payload_of_onnx"]

# A protobuf message cannot reach 2 GiB; weights go to an external file well before that.
EXTERNAL_THRESHOLD_BYTES = 1 << 30

# What OpenVINO and ONNX Runtime call memory of the process, in the place of a file.
_IN_MEMORY = "*/_ORT_MEM_ADDR_/*"


@final
@attrs.frozen(kw_only=True)
class OnnxSource:
    """A model and its data, all in memory: nothing in it makes a runtime open a file.

    Attributes:
        model: The serialized model.
        data: The files that it keeps weights in, by the name that it uses.
    """

    model: bytes
    data: Mapping[str, memoryview] = attrs.field(factory=dict)

    def with_addresses(self) -> bytes:
        """Return the model with memory addresses in place of file names. They live as long as `data`."""
        addresses = {name: _address(view) for name, view in self.data.items()}

        def place(tensor: ExternalTensor) -> tuple[str, int, int]:
            length = (
                len(self.data[tensor.location]) - tensor.offset if tensor.length is None else tensor.length
            )
            return _IN_MEMORY, addresses[tensor.location] + tensor.offset, length

        return move_external(self.model, place) if self.data else self.model


def onnx_files(model: ModelToCompile) -> dict[str, bytes | Path]:
    """Return the files of a model: in memory, or in a temporary folder when it is large."""
    if model.nbytes < EXTERNAL_THRESHOLD_BYTES:
        return {"model.onnx": model.to_bytes()}
    folder = scratch_folder()
    model.save(folder / "model.onnx", external_data=True)
    return {path.name: path for path in sorted(folder.iterdir())}


def onnx_source(payload: Payload) -> OnnxSource:
    """Return what a runtime is given.

    Raises:
        ArtifactFormatError: The entry is no ONNX model, or a tensor is not where the model says.
        ArtifactTrustError: The model names a file that is not one of the payload.
    """
    model = payload.read()
    try:
        tensors, nodes = look_through(model)
    except MalformedModelError as error:
        raise ArtifactFormatError(
            f"The model of the artifact is not readable: {error}.",
            where=payload.entry,
            expected="a serialized onnx.ModelProto",
            found=f"{len(model)} bytes",
            hint="Compile the model again.",
        ) from error
    if nodes:
        raise ArtifactTrustError(
            "The model makes an execution provider open a file.",
            where=f"{payload.entry}, node {nodes[0]!r}",
            expected="EPContext nodes with embed_mode 1",
            found="embed_mode 0",
            hint="Compile the model with embedded contexts.",
        )
    data = {tensor.location: _data_file(payload, tensor) for tensor in tensors}
    for tensor in tensors:
        size = len(data[tensor.location])
        if tensor.offset + (tensor.length or 0) > size:
            raise ArtifactFormatError(
                "A tensor is not in the file that the model names.",
                where=f"{payload.entry}, tensor {tensor.name!r}",
                expected=f"{tensor.length or 0} bytes at offset {tensor.offset} of {tensor.location!r}",
                found=f"{size} bytes",
                hint="Compile the model again.",
            )
    return OnnxSource(model=model, data=data)


def _data_file(payload: Payload, tensor: ExternalTensor) -> memoryview:
    others = sorted(payload.files.keys() - {payload.entry})
    if tensor.location not in others:
        raise ArtifactTrustError(
            "The model keeps weights in a file that is not in the artifact.",
            where=f"{payload.entry}, tensor {tensor.name!r}",
            expected=" or ".join(map(repr, others)) or "all weights in the model itself",
            found=repr(tensor.location),
            hint="Do not load it; whoever made it means to read other files. Compile the model again.",
        )
    return payload.view(tensor.location)


def _address(view: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


def payload_of_onnx(
    model: ModelToCompile, *, device: str, options: Mapping[str, object] | None = None
) -> Payload:
    """Return a portable payload: the model as `model.onnx`, with its data beside it when it is large."""
    return Payload(entry="model.onnx", files=onnx_files(model), device=device, options=options or {})
