"""Safe reading of external tensor data.

The weights of an ONNX model may lie in files beside it, named by the model. A hostile model can name any
file, so four layers stand between a name and its bytes (ONNX CVE-2026-27489, -34445, -34446, -34447):

1. the path, made canonical, stays inside the model's folder;
2. no component below that folder is a symbolic link;
3. the file is opened with O_NOFOLLOW and must be a regular file;
4. its link count is 1, so that it is not another file by a second name.

Each folder on the way is opened through the one above it, and the bytes are mapped from the descriptor that
was checked, so that nothing can be swapped in between.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeinfer.errors import ExternalDataError

__all__ = ["internalize", "map_external_file"]


def internalize(model: ir.Model, folder: Path | None) -> None:
    """Replace every external tensor of `model`, in place, by one mapped from a file that was checked.

    Args:
        model: The model as deserialized; changed in place.
        folder: The model's folder, or None when the model did not come from a file.

    Raises:
        ExternalDataError: A file is missing, outside the folder, linked, or shorter than the tensor.
    """
    maps: dict[str, mmap.mmap] = {}
    for holder, tensor in _external_tensors(model):
        if folder is None:
            raise ExternalDataError(
                "The model keeps weights in external files, but it was not loaded from a file.",
                where=f"tensor {tensor.name!r}, location {str(tensor.location)!r}",
                hint="Load it by path, so that the folder of the external files is known.",
            )
        location = str(tensor.location)
        if location not in maps:
            maps[location] = map_external_file(folder, location, tensor.name)
        replacement = _read(maps[location], tensor)
        if isinstance(holder, ir.Value):
            holder.const_value = replacement
        else:
            node, name = holder
            node.attributes.add(ir.AttrTensor(name, replacement))


def map_external_file(folder: Path, location: str, tensor_name: str = "") -> mmap.mmap:
    """Map an external-data file read-only after the four checks of this module.

    Args:
        folder: The model's folder.
        location: The path that the model names, relative to `folder`.
        tensor_name: For the error message.

    Raises:
        ExternalDataError: Any check fails.
    """
    where = f"tensor {tensor_name!r}, location {location!r}"

    def refuse(what: str, expected: str, found: object, hint: str) -> ExternalDataError:
        return ExternalDataError(what, where=where, expected=expected, found=found, hint=hint)

    root = Path(os.path.realpath(folder))
    if not location or Path(location).is_absolute() or "\0" in location:
        raise refuse(
            "The external data path is not relative.",
            "a relative path",
            repr(location),
            "Re-export the model with relative paths.",
        )
    lexical = Path(os.path.normpath(root / location))
    if not lexical.is_relative_to(root) or lexical == root:
        raise refuse(
            "The external data path leaves the model's folder.",
            f"a file below {root}",
            str(lexical),
            "Keep the data beside the model.",
        )
    part = root
    for name in lexical.relative_to(root).parts:
        part = part / name
        if part.is_symlink():
            raise refuse(
                "The external data path goes through a symbolic link.",
                "folders and files",
                str(part),
                "Copy the file in place of the link (cp -L).",
            )
    try:
        descriptor = _open_below(root, lexical.relative_to(root).parts)
    except OSError as error:
        raise ExternalDataError(
            f"The external data file cannot be opened: {error.strerror}.",
            where=where,
            expected="a file that this user may read",
            found=str(lexical),
            hint="Copy the model together with its data files.",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse(
                "The external data is not a regular file.",
                "a regular file",
                stat.filemode(status.st_mode),
                "Keep the data in an ordinary file.",
            )
        if status.st_nlink != 1:
            raise refuse(
                "The external data file is hard-linked from another place.",
                "one name",
                f"{status.st_nlink} names",
                "Copy the file, so that it has one name only (cp FILE TMP && mv TMP FILE).",
            )
        if status.st_size == 0:
            raise refuse(
                "The external data file is empty.",
                "weights",
                "0 bytes",
                "Copy the model together with its data files.",
            )
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _open_below(root: Path, parts: Sequence[str]) -> int:
    """Open a file, each folder on the way through the one above it; a symbolic link anywhere is refused."""
    no_link = getattr(os, "O_NOFOLLOW", 0)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | no_link, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(parts[-1], os.O_RDONLY | no_link | getattr(os, "O_NONBLOCK", 0), dir_fd=folder)
    finally:
        os.close(folder)


def _read(mapped: mmap.mmap, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    shape = tuple(tensor.shape.numpy())
    count = math.prod(shape)
    need = math.ceil(count * tensor.dtype.bitwidth / 8)
    offset = tensor.offset or 0
    length = need if tensor.length is None else tensor.length
    if offset < 0 or length != need or offset + need > len(mapped):
        raise ExternalDataError(
            "The external data does not hold the tensor.",
            where=f"tensor {tensor.name!r}, location {str(tensor.location)!r}",
            expected=f"{need} bytes at offset {offset}",
            found=f"a file of {len(mapped)} bytes, a declared length of {length}",
            hint="The file is truncated or belongs to another model; copy both again.",
        )
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(mapped, np.uint8, need, offset)
        return ir.PackedTensor(packed, tensor.dtype, shape=ir.Shape(shape), name=tensor.name)
    array = np.frombuffer(mapped, tensor.dtype.numpy(), count, offset).reshape(shape)
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def _external_tensors(
    model: ir.Model,
) -> Iterator[tuple[ir.Value | tuple[ir.Node, str], ir.ExternalTensor]]:
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        for node in list(owner.all_nodes()):
            for attr in list(node.attributes.values()):
                if attr.type is ir.AttributeType.TENSOR and isinstance(attr.value, ir.ExternalTensor):
                    yield (node, attr.name), attr.value
