"""Devices over ssh: connections that break, disks that are full, what is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgeinfer as ei
from edgeinfer.devices.remote.ssh import Address
from edgeinfer.errors import (
    EdgeInferError,
    OptionsError,
    RemoteConnectionError,
    RemoteError,
    RemoteStorageError,
    RemoteTimeoutError,
)
from tests.devices.lab import Link, free_port, model


@pytest.fixture(scope="module")
def large():
    """16 MiB on disk."""
    return ei.compile(model(2048), "onnxruntime", options={"threads": 1})


@pytest.fixture
def device(lab, tmp_path):
    return lab.connect(tmp_path / "copies")


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_connection_that_breaks_while_copying(lab, artifact, large, tmp_path):
    folder = tmp_path / "copies"
    lab.connect(folder).push(artifact)
    before = copies(folder)
    link = Link(lab.port, limit=4 << 20, then="cut")
    try:
        device = lab.connect(folder, port=link.port)
        with pytest.raises(RemoteConnectionError):
            device.push(large)
    finally:
        link.close()
    assert link.reached.is_set()
    assert lab.comes_to_rest()
    assert copies(folder) == before, "nothing half-written"
    key = lab.connect(folder).push(large)
    assert f"{key}.edge" in copies(folder)


def test_a_link_that_hangs_while_copying(lab, large, tmp_path):
    folder = tmp_path / "copies"
    link = Link(lab.port, limit=4 << 20, then="stop")
    try:
        device = lab.connect(folder, port=link.port)
        started = time.monotonic()
        with pytest.raises(RemoteTimeoutError, match="within 4 s"):
            device.push(large, timeout_s=4)
        assert time.monotonic() - started < 60
    finally:
        link.close()
    assert [name for name in copies(folder) if name.endswith(".edge")] == []


def test_a_draft_of_a_killed_worker_is_removed_by_the_next(lab, artifact, tmp_path):
    folder = tmp_path / "copies"
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine, dead = folder / f".draft-{os.getpid()}-a", folder / f".draft-{gone.pid}-b"
    for path in (mine, dead):
        path.mkdir(parents=True)
    lab.connect(folder).push(artifact)
    assert mine.is_dir(), "its process is alive"
    assert not dead.exists()


def test_a_device_that_hangs(lab, tmp_path):
    python = lab.script("hanging-python", "exec sleep 1000")
    with pytest.raises(RemoteTimeoutError, match="within 3 s"):
        lab.connect(tmp_path, python=python, timeout_s=3)


def test_a_measurement_that_takes_too_long(lab, device, artifact):
    with pytest.raises(RemoteTimeoutError, match="took too long"):
        device.benchmark(artifact, seconds=3600, timeout_s=5)
    assert lab.comes_to_rest(), "the measurement still runs"


def test_a_connection_that_breaks_while_measuring_leaves_nothing_running(lab, artifact, tmp_path):
    folder = tmp_path / "copies"
    link = Link(lab.port, limit=1 << 40, then="cut")
    device = lab.connect(folder, port=link.port)
    device.push(artifact)
    caught: list[EdgeInferError] = []

    def measure() -> None:
        try:
            device.benchmark(artifact, seconds=3600, timeout_s=3600)
        except EdgeInferError as error:
            caught.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    end = time.monotonic() + 60
    while not any("remote.measure" in line for line in lab.running()) and time.monotonic() < end:
        time.sleep(0.1)
    assert any("remote.measure" in line for line in lab.running())
    link.left = 0  # the next byte of the client, its keep-alive, cuts the link
    thread.join(timeout=60)
    link.close()
    assert isinstance(caught[0], RemoteConnectionError)
    assert lab.comes_to_rest(), "the measurement still runs"
    assert len(copies(folder)) == 1, "the copy, and no scratch"


def test_a_limit_on_files(lab, artifact, large, tmp_path):
    """`ulimit -f` counts blocks of 512 bytes in sh: 1 MiB here."""
    folder = tmp_path / "copies"
    python = lab.script("limited-python", f'ulimit -f 2048\nexec {sys.executable} "$@"')
    device = lab.connect(folder, python=python)
    kept = device.push(artifact)
    with pytest.raises(RemoteStorageError, match="no room"):
        device.push(large)
    assert copies(folder) == [f"{kept}.edge"]
    assert device.benchmark(artifact, runs=2).n == 2


def test_a_full_disk(lab, artifact, large, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted by this user")
    try:
        device = lab.connect(disk / "copies")
        kept = device.push(artifact)
        with pytest.raises(RemoteStorageError) as caught:
            device.push(large)
        assert "free" in str(caught.value)
        (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - 20_000))
        other = ei.compile(model(128), "onnxruntime")
        with pytest.raises(RemoteStorageError):
            device.push(other)
        assert copies(disk / "copies") == [f"{kept}.edge"]
        assert device.benchmark(artifact, runs=2).n == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_is_not_there(lab, tmp_path):
    with pytest.raises(RemoteError, match="no edgeinfer") as caught:
        lab.connect(tmp_path, python="/nowhere/python")
    assert "/nowhere/python" in str(caught.value)
    bare = lab.folder / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RemoteError, match="no edgeinfer"):
        lab.connect(tmp_path, python=str(bare))
    with pytest.raises(RemoteConnectionError, match="refused"):
        lab.connect(tmp_path, port=free_port())
    with pytest.raises(RemoteConnectionError, match=r"[Pp]ermission denied"):
        ei.devices.connect(f"ssh://nobody-there@127.0.0.1:{lab.port}", config=lab.folder / "ssh_config")
    stranger = lab.folder / "stranger_config"
    stranger.write_text((lab.folder / "ssh_config").read_text().replace("known_hosts\n", "no_hosts\n"))
    with pytest.raises(RemoteConnectionError, match=r"[Hh]ost key"):
        ei.devices.connect(lab.url(), config=stranger, python=lab.python)


def test_a_login_script_that_prints_is_no_harm(lab, artifact, tmp_path):
    python = lab.script("chatty-python", f'echo "Welcome to the device"\nexec {sys.executable} "$@"')
    assert lab.connect(tmp_path, python=python).benchmark(artifact, runs=2).n == 2


@pytest.mark.parametrize(
    "url",
    ["host", "http://host", "ssh://", "ssh://-oProxyCommand=true", "ssh://a@-host", "ssh://u:p@host",
     "ssh://host/path", "ssh://ho st", "ssh://host:no"],
)  # fmt: skip
def test_what_is_no_address(url):
    with pytest.raises(OptionsError):
        Address.parse(url)
