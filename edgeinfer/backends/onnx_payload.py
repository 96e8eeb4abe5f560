"""The ONNX form of a payload: one file, or two when the weights do not fit a protobuf message."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeinfer.artifact.artifact import Payload
from edgeinfer.model.model import EXTERNAL_THRESHOLD_BYTES, Model

__all__ = ["onnx_files", "onnx_source"]

# What is too large for memory lies in temporary folders, which live as long as the process.
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def onnx_files(model: Model) -> dict[str, bytes | Path]:
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
