"""The ONNX form of a payload: one file, or two when the weights do not fit a protobuf message."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeinfer.artifact.artifact import Payload
from edgeinfer.backends.protocol import ModelToCompile

__all__ = ["EXTERNAL_THRESHOLD_BYTES", "onnx_files", "onnx_source", "payload_of_onnx"]

# A protobuf message cannot reach 2 GiB; weights go to an external file well before that.
EXTERNAL_THRESHOLD_BYTES = 1 << 30

# What is too large for memory lies in temporary folders, which live as long as the process.
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def onnx_files(model: ModelToCompile) -> dict[str, bytes | Path]:
    """Return the files of a model: in memory, or in a temporary folder when it is large."""
    if model.nbytes < EXTERNAL_THRESHOLD_BYTES:
        return {"model.onnx": model.to_bytes()}
    folder = _temporary_folder()
    model.save(folder / "model.onnx", external_data=True)
    return {path.name: path for path in sorted(folder.iterdir())}


def onnx_source(payload: Payload) -> bytes | str:
    """Return what a runtime can open: the bytes, or a path when there is external data."""
    content = payload.files[payload.entry]
    if isinstance(content, bytes) and len(payload.files) == 1:
        return content
    for other in payload.files.values():
        if isinstance(other, Path):
            return str(other.parent / payload.entry)
    folder = _temporary_folder()
    for name in payload.files:
        (folder / name).write_bytes(payload.read(name))
    return str(folder / payload.entry)


def _temporary_folder() -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="edgeinfer-"))
    return Path(_FOLDERS[-1].name)


def payload_of_onnx(
    model: ModelToCompile, *, device: str, options: Mapping[str, object] | None = None
) -> Payload:
    """Return a portable payload: the model as `model.onnx`, with its data beside it when it is large."""
    return Payload(entry="model.onnx", files=onnx_files(model), device=device, options=options or {})
