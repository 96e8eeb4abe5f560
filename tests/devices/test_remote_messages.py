"""Addresses, messages and the store of remote devices; nothing here needs a connection."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from edgeinfer.devices.remote.messages import read_message, write_message
from edgeinfer.devices.remote.ssh import Address, error_from
from edgeinfer.devices.remote.store import Store, artifact_key
from edgeinfer.devices.remote.worker import describe_error
from edgeinfer.errors import (
    ArtifactIntegrityError,
    EdgeInferError,
    GoldenMismatchError,
    RemoteConnectionError,
    RemoteError,
)


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_addresses():
    found = Address.parse("ssh://edge@10.0.0.7:2222", python="/opt/e dge/python")
    assert (found.host, found.port) == ("edge@10.0.0.7", 2222)
    assert found.command()[-3:] == [
        "--",
        "edge@10.0.0.7",
        "exec '/opt/e dge/python' -m edgeinfer.devices.remote.worker",
    ]


def test_messages():
    stream = io.BytesIO()
    write_message(stream, {"a": 1}, {"x": b"12345", "y": b""})
    write_message(stream, {"b": 2})
    whole = stream.getvalue()
    stream = io.BytesIO(b"noise\n" + whole)
    first = read_message(stream)
    assert (first.header, first.sizes) == ({"a": 1}, {"x": 5, "y": 0})
    assert first.read("x") == b"12345"
    assert read_message(stream).header == {"b": 2}
    assert read_message(stream) is None


def test_a_message_that_is_cut_anywhere_is_seen():
    stream = io.BytesIO()
    write_message(stream, {"a": 1}, {"x": b"12345"})
    whole = stream.getvalue()
    for end in range(len(whole)):
        cut = io.BytesIO(whole[:end])
        try:
            message = read_message(cut)
        except RemoteConnectionError:
            continue
        if message is not None:
            with pytest.raises(RemoteConnectionError):
                message.read("x")


def test_errors_keep_their_type_on_the_way():
    made = error_from(describe_error(GoldenMismatchError("No.", where="y", facts={"worst": 1.5})), "h")
    assert type(made) is GoldenMismatchError
    assert (made.where, made.facts) == ("h: y", {"worst": 1.5})
    assert type(error_from(describe_error(ValueError("odd")), "h")) is RemoteError
    assert type(error_from({"type": "os", "what": "x"}, "h")) is RemoteError


def test_a_store_takes_nothing_that_is_damaged(artifact, tmp_path):
    folder = artifact.save(tmp_path / "model.edge").path
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    key = artifact_key(folder)
    damaged = files | {"model.onnx": files["model.onnx"][:-1] + b"\0"}
    for contents, error in (
        (damaged, ArtifactIntegrityError),
        (files | {"../evil": b""}, RemoteError),
        ({}, EdgeInferError),
    ):
        stream = io.BytesIO()
        write_message(stream, {}, contents)
        stream.seek(0)
        with pytest.raises(error):
            Store(tmp_path / "store").put(key, read_message(stream))
        assert copies(tmp_path / "store") == []
    with pytest.raises(RemoteError, match="key"):
        Store(tmp_path).path("../../etc")
