"""A real sshd on this machine, as a device."""

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

import edgeinfer as ei

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
