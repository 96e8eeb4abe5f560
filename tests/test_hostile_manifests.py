"""Manifests that somebody has changed."""

from __future__ import annotations

import copy
import json
import os
import string
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import decode_manifest, encode_manifest, identity_digest
from edgeinfer.errors import ArtifactFormatError, ArtifactIntegrityError
from tests.manifest_kit import decode, small_artifact, unsigned


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return small_artifact()


@pytest.fixture(scope="module")
def fields(artifact) -> dict[str, Any]:
    """The JSON of a manifest without its hash."""
    return unsigned(encode_manifest(artifact.manifest))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


# Hostile manifests


def test_annotations_cannot_speak_for_what_runs(fields):
    changed = copy.deepcopy(fields)
    changed["annotations"]["options"] = {"threads": 99}
    changed["cost"] = {"latency_p50_ms": 0.0}
    opened = decode(changed)
    assert opened.options == {"threads": 1}
    assert opened.cost.latency_p50_ms == 1.5


def test_every_byte_counts(artifact):
    clean = encode_manifest(artifact.manifest)
    rng = np.random.default_rng(0)
    for position in range(len(clean)):
        for byte in (clean[position] ^ 1 << int(rng.integers(8)), int(rng.integers(256))):
            damaged = clean[:position] + bytes([byte]) + clean[position + 1 :]
            try:
                opened = decode_manifest(damaged, where="manifest.json")
            except (ArtifactFormatError, ArtifactIntegrityError):
                continue
            assert encode_manifest(opened) == clean  # white space, or a digit of equal meaning


STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["../x", "/etc/passwd", "a/b", "O", "V99999999999", "float32,", "\0", "\ud800", "manifest.json"]
    ),
    st.lists(st.one_of(st.none(), st.integers(-3, 3), st.text(string.ascii_letters, max_size=2)), max_size=3),
    st.dictionaries(st.text(string.ascii_letters, max_size=4), st.integers(), max_size=2),
)


def everywhere(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from everywhere(item, (*path, key))


@given(data=st.data())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_a_signed_manifest_with_strange_values_is_read_or_refused(data, fields, artifact):
    changed = copy.deepcopy(fields)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(everywhere(changed), key=str)))
        action = data.draw(st.sampled_from(["change", "remove", "rename"]))
        holder = at(changed, path[:-1])
        if action == "change":
            holder[path[-1]] = data.draw(STRANGE)
        elif action == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[data.draw(st.text(max_size=6))] = holder.pop(path[-1])
    try:
        opened = decode(changed)
    except (ArtifactFormatError, ArtifactIntegrityError):
        return
    # What was accepted can be shown, identified and written.
    str(attrs.evolve(artifact, manifest=opened).table())
    assert identity_digest(decode(unsigned(encode_manifest(opened)))) == identity_digest(opened)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"3", b"{}", b"{", b"\xff", b"[" * 100_000, b'{"format_version": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_manifest(text):
    with pytest.raises(ArtifactFormatError, match="not readable"):
        decode_manifest(text, where="manifest.json")


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_folder_whose_files_were_changed_is_refused(data, artifact, tmp_path_factory):
    """Swapped, cut, lengthened, flipped, removed, or replaced by links and pipes."""
    folder = tmp_path_factory.mktemp("artifact") / "a.edge"
    artifact.save(folder)
    (folder.parent / "outside").write_bytes(b"outside")
    names = sorted(path.name for path in folder.iterdir())
    name = data.draw(st.sampled_from(names))
    action = data.draw(
        st.sampled_from(["swap", "cut", "longer", "flip", "remove", "symlink", "hard link", "pipe", "folder"])
    )
    file = folder / name
    content = bytearray(file.read_bytes())
    file.unlink()
    if action == "swap":
        file.write_bytes((folder / next(n for n in names if n != name)).read_bytes())
    elif action == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])  # not the line's end alone
    elif action == "longer":
        file.write_bytes(content + b"x")
    elif action == "flip":
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        if name == "manifest.json" and _same_json(content, encode_manifest(artifact.manifest)):
            return
    elif action == "symlink":
        (folder.parent / "copy").write_bytes(content)  # also when its contents are right
        file.symlink_to(folder.parent / "copy")
    elif action == "hard link":
        (folder.parent / "copy").write_bytes(content)
        file.hardlink_to(folder.parent / "copy")
    elif action == "pipe":
        os.mkfifo(file)
    elif action == "folder":
        file.mkdir()
    with pytest.raises((ArtifactFormatError, ArtifactIntegrityError)) as caught:
        ei.load(folder)
    assert "outside" not in str(caught.value)
    assert caught.value.hint


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False
