"""Files and folders that are written in one step: drafts, locks, and readers beside writers."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeinfer import atomic
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.atomic import FolderReader, draft_folder, scratch_folder, write_file, write_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeinfer import atomic
target = Path(sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "folder":
    atomic._swap_in = die
    atomic.write_folder(target, {"a": b"new"})
elif sys.argv[1] == "file":
    atomic.write_file(target, die)
elif sys.argv[1] == "scratch":
    import tempfile
    tempfile.tempdir = str(target.parent)
    (atomic.scratch_folder() / "large").write_bytes(b"x")
    die()
"""


def save(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "folder":
        write_folder(path, {"a": b"good"})
    elif kind == "file":
        write_file(path, b"good")
    else:
        monkeypatch.setattr("tempfile.tempdir", str(path.parent))
        scratch_folder().rename(path)


@pytest.mark.parametrize("kind", ["folder", "file", "scratch"])
def test_the_draft_of_a_killed_writer_is_removed_by_the_next(kind, tmp_path, monkeypatch):
    for _ in range(2):
        assert run_child(KILLED, kind, tmp_path / "target").returncode == -signal.SIGKILL
    (draft,) = names(tmp_path)  # the second removed that of the first
    assert draft.endswith(".draft")
    save(kind, tmp_path / "target", monkeypatch)
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_draft_of_a_writer_that_lives_is_left_alone(kind, tmp_path, monkeypatch):
    """Also those of other names, and files that only look like drafts."""
    with draft_folder(tmp_path, "other"), draft_folder(tmp_path, "target") as live:
        (live / "half").touch()
        (tmp_path / ".target.draft").touch()
        (tmp_path / ".target.notes.draft").touch()
        before = names(tmp_path)
        save(kind, tmp_path / "target", monkeypatch)
        assert names(tmp_path) == sorted([*before, "target"])
        assert (live / "half").exists()
    assert names(tmp_path) == [".target.draft", ".target.notes.draft", "target"]


def test_model_save_reaps_as_well(tmp_path):
    import onnx.parser

    import edgeinfer as ei

    net = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'
    left = tmp_path / ".net.onnx.0123456789ab.draft"
    left.mkdir()
    (left / "net.onnx").touch()
    ei.Model.load(onnx.parser.parse_model(net)).save(tmp_path / "net.onnx")
    assert names(tmp_path) == ["net.onnx"]


def test_a_scratch_folder_outlives_forked_children_and_not_its_process(tmp_path):
    code = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from edgeinfer.atomic import scratch_folder
folder = scratch_folder()
pid = os.fork()
if pid == 0:
    sys.exit(0)
os.waitpid(pid, 0)
print(folder.is_dir())
"""
    assert run_child(code, tmp_path).stdout == "True\n"
    assert names(tmp_path) == []


def test_without_locks_drafts_are_neither_locked_nor_reaped(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    (tmp_path / ".a.0123456789ab.draft").mkdir()
    write_folder(tmp_path / "a", {"x": b"1"})
    assert names(tmp_path) == [".a.0123456789ab.draft", "a"]


def test_a_draft_that_is_taken_for_abandoned_is_made_again(tmp_path, monkeypatch):
    real = atomic._create_folder
    made = []

    def stolen_once(path: Path) -> int:
        made.append(path)
        descriptor = real(path)
        if len(made) < 3:
            path.rmdir()
        return descriptor

    monkeypatch.setattr(atomic, "_create_folder", stolen_once)
    write_folder(tmp_path / "a", {"x": b"1"})
    assert len(made) == 3
    assert names(tmp_path) == ["a"]


def test_a_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path):
    write_file(tmp_path / "new", b"1")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "new").chmod(0o640)
    write_file(tmp_path / "new", b"2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"1"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_writer_that_fails_changes_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def fail(file: object) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_file(tmp_path / "a", fail)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_without_an_exchange_of_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    write_folder(tmp_path / "a", {"x": b"1"})
    write_folder(tmp_path / "a", {"y": b"2"})
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["y"]


def test_a_reader_stays_with_the_folder_that_it_opened(tmp_path):
    write_folder(tmp_path / "a", {"x": b"old"})
    with FolderReader(tmp_path / "a") as reader:
        assert not reader.replaced()
        file = reader.open("x")
        write_folder(tmp_path / "a", {"x": b"new"})
        assert reader.replaced()
        assert file.read() == b"old"
        file.close()
        with pytest.raises(FileNotFoundError):
            reader.open("x")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_opened(kind, tmp_path):
    folder, outside = tmp_path / "a", tmp_path / "secret"
    folder.mkdir()
    outside.write_bytes(b"secret")
    if kind == "symlink":
        (folder / "x").symlink_to(outside)
    elif kind == "hard link":
        (folder / "x").hardlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(folder / "x")
    else:
        (folder / "x").mkdir()
    with FolderReader(folder) as reader, pytest.raises(OSError):
        reader.open("x")


WRITER = """
import sys, time
import attrs
import edgeinfer as ei
a, b = (ei.Artifact.open(path) for path in sys.argv[1:3])
print("ready", flush=True)
until = time.monotonic() + 3
count = 0
while time.monotonic() < until:
    (a, b)[count % 2].save(sys.argv[3])
    count += 1
print(count)
"""


def test_readers_beside_a_writer_see_one_artifact_or_the_other(tmp_path):
    import onnx.parser

    import edgeinfer as ei

    def artifact(size: int) -> Artifact:
        net = f'<ir_version: 10, opset_import: ["": 21]> g (float[{size}] x) => (float[{size}] y)'
        return ei.compile(onnx.parser.parse_model(net + "{ y = Add(x, x) }"), "onnxruntime")

    one, two = artifact(2).save(tmp_path / "one"), artifact(3).save(tmp_path / "two")
    one.save(tmp_path / "shared")
    command = [sys.executable, "-c", WRITER, *(str(tmp_path / name) for name in ("one", "two", "shared"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        seen = []
        while writer.poll() is None:
            opened = Artifact.open(tmp_path / "shared")
            assert opened.payload.read() == (one if opened.digest == one.digest else two).payload.read()
            seen.append(opened.digest)
            time.sleep(0)
        assert int(writer.stdout.read()) > 10
    assert set(seen) == {one.digest, two.digest}
    assert names(tmp_path) == ["one", "shared", "two"]


@pytest.mark.parametrize("write", [lambda path: write_file(path, b"x"), lambda path: write_folder(path, {})])
def test_an_error_names_the_path_and_not_the_draft(write, tmp_path):
    path = tmp_path / "missing" / "report.html"
    with pytest.raises(FileNotFoundError) as caught:
        write(path)
    assert caught.value.filename == str(path)
