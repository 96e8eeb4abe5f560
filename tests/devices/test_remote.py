"""Measuring on another device: a real sshd, links that break, devices that hang or are full."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import edgeinfer as ei
from edgeinfer.devices.remote.ssh import Address
from edgeinfer.errors import (
    EdgeInferError,
    GoldenMismatchError,
    InputError,
    OptionsError,
    RemoteConnectionError,
    RemoteError,
    RemoteStorageError,
    RemoteTimeoutError,
)
from edgeinfer.runtime.benchmark import BenchmarkReport
from edgeinfer.runtime.memory import MemoryReport

ROOT = Path(__file__).parents[2]
# What a device-only install does not have.
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"onnx", "onnx_ir", "onnxscript", "sympy", "rich"}:
            raise ImportError(f"{name} is not on the device (by this test)")
sys.meta_path.insert(0, Refuse())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("sshd did not start")


class Lab:
    """An sshd, a client configuration for it, and Pythons for the "device"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        for name in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\n"
        )
        with (folder / "sshd.log").open("w") as log:
            self.process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdout=log
            )
        wait_for(self.port)
        public = (folder / "host_key.pub").read_text().split()[:2]
        (folder / "known_hosts").write_text(f"* {' '.join(public)}\n")
        (folder / "ssh_config").write_text(
            f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
            "StrictHostKeyChecking yes\nHashKnownHosts no\nHost *\n"
        )
        refuse = folder / "refuse"
        refuse.mkdir()
        (refuse / "sitecustomize.py").write_text(REFUSE)
        self.path = f"{refuse}:{ROOT}"
        self.python = self.script("device-python", f'exec {sys.executable} "$@"')

    def script(self, name: str, body: str) -> str:
        file = self.folder / name
        tag = f"export EDGEINFER_LAB={self.port}\nexport PYTHONPATH={self.path}\n"
        file.write_text(f"#!/bin/sh\n{tag}{body}\n")
        file.chmod(0o755)
        return str(file)

    def url(self, port: int | None = None) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{port or self.port}"

    def connect(self, folder: Path, *, port: int | None = None, python: str | None = None, **more):
        return ei.devices.connect(
            self.url(port),
            python=python or self.python,
            config=self.folder / "ssh_config",
            folder=str(folder),
            **more,
        )

    def running(self) -> list[str]:
        """Return the workers and measurements that run on the "device"."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                int(entry.name)
                if f"EDGEINFER_LAB={self.port}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in found if "edgeinfer.devices.remote" in line]

    def comes_to_rest(self) -> bool:
        end = time.monotonic() + 30
        while self.running() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.running()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    missing = [
        name
        for name in ("ssh", "sshd", "ssh-keygen")
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} must be installed in CI")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


def model(size: int = 4) -> onnx.ModelProto:
    """y = x W, with a W of `size` x `size` that does not compress."""
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    graph = oh.make_graph(
        [oh.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", size])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", size])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def artifact():
    made = ei.compile(model(), "onnxruntime", options={"threads": 1})
    x = np.ones((2, 4), np.float32)
    with ei.load(made) as session:
        return made.with_golden({"x": x}, session.infer({"x": x}), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def large():
    """16 MiB on disk."""
    return ei.compile(model(2048), "onnxruntime", options={"threads": 1})


@pytest.fixture
def device(lab, tmp_path):
    return lab.connect(tmp_path / "copies")


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class Link:
    """Passes bytes on to sshd; cuts or stops once the client has sent `limit` of them."""

    def __init__(self, port: int, *, limit: int, then: str) -> None:
        self._to = port
        self.left = limit
        self._then = then
        self.reached = threading.Event()
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target, *args) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                self._sockets.append(client)
                server = socket.create_connection(("127.0.0.1", self._to))
                self._sockets.append(server)
                self._start(self._pass, client, server, True)
                self._start(self._pass, server, client, False)

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    self.left -= len(data)
                if self.left < 0:
                    self.reached.set()
                    if self._then == "stop":
                        return  # both ends stay open, and nothing moves any more
                    break
                sink.sendall(data)
        for end in (source, sink):
            self._shut(end)

    @staticmethod
    def _shut(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._sockets:
            self._shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


def test_benchmark_memory_and_golden(device, artifact, tmp_path):
    timing = device.benchmark(artifact, runs=50, warmup=3, shapes={"N": 8})
    assert isinstance(timing, BenchmarkReport)
    assert timing.n == 50
    assert timing.latencies_ms.min() > 0
    assert (timing.backend, timing.warmup) == ("onnxruntime", 3)
    assert any(device.host in note for note in timing.notes)
    peak = device.memory(artifact, {"x": np.ones((3, 4), np.float32)}, runs=2)
    assert isinstance(peak, MemoryReport)
    assert peak.peak_bytes > peak.baseline_bytes > 1 << 20
    assert device.check_golden(artifact) is None
    cost = device.cost(artifact, {"x": np.ones((1, 4), np.float32)})
    assert not ei.Budget(latency_p99_ms=1e6, peak_bytes="1 TB", disk_bytes="1 GB").check(cost)
    assert len(copies(tmp_path / "copies")) == 1, "one copy of one artifact, and no scratch left"


def test_feeds_travel(device, artifact):
    feeds = [{"x": np.full((n, 4), n, np.float32)} for n in (1, 2, 3)]
    assert device.benchmark(artifact, feeds, runs=6).n == 6
    with pytest.raises(InputError, match="input 'x'"):
        device.benchmark(artifact, {"x": np.ones((1, 5), np.float32)}, runs=1)


def test_a_wrong_golden_output_is_the_same_error_as_here(device, artifact):
    wrong = artifact.with_golden(
        {"x": np.ones((2, 4), np.float32)}, {"y": np.zeros((2, 4), np.float32)}, rtol=0, atol=1e-3
    )
    with pytest.raises(GoldenMismatchError) as caught:
        device.check_golden(wrong)
    assert caught.value.where.startswith(device.host)
    assert caught.value.facts["output"] == "y"


def test_an_option_that_is_refused_there(device, artifact):
    with pytest.raises(OptionsError, match="no_such_option"):
        device.benchmark(artifact, runs=1, options={"no_such_option": 1})


def test_what_the_device_is(device):
    here = ei.devices.local()
    there = device.local()
    assert there.cpu == here.cpu
    assert there.cgroup == here.cgroup
    assert device.version == ei.__version__
    assert "processor" in device._repr_html_()


def test_an_artifact_is_copied_once(device, artifact, tmp_path, monkeypatch):
    key = device.push(artifact)
    saved = artifact.save(tmp_path / "saved.edge")
    asked = []
    original = type(device)._ask

    def ask(self, request, *arguments, **named):
        asked.append(request["operation"])
        return original(self, request, *arguments, **named)

    monkeypatch.setattr(type(device), "_ask", ask)
    assert device.push(saved.path) == key
    assert asked == ["has"]
    assert device.clear() == 1
    assert device.push(artifact) == key


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
