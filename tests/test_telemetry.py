"""Nothing is sent and nothing written below HOME, from the import of a runtime to the end of the process.

The runtimes' own telemetry is what this is about. The processes here have no way out: their proxies are a
port of this machine that counts who calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

BACKENDS = ["onnxruntime", "openvino"]

USE = """
import os, sys, time
import numpy as np
import onnx.parser
import edgeinfer as ei

def wait(pid):
    for _ in range(1200):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"

net = '<ir_version: 10, opset_import: ["": 21]> g (float[4] x) => (float[4] y) { y = Add(x, x) }'
artifact = ei.compile(onnx.parser.parse_model(net), sys.argv[1])
session = ei.load(artifact, options={"threads": int(sys.argv[2])})
session.infer(np.ones(4, np.float32))
ends = []
for close in (False, True):
    if close:
        session.close()
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    ends.append(wait(pid))
print(ends)
"""


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """Give a port of this machine, and the list of what was sent to it."""
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    seen.append(connection.recv(200).decode(errors="replace"))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def environment(home: Path, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), f"http://127.0.0.1:{port}"
    )
    # CI=true turns one of them off by itself.
    return {**kept, **proxies, "HOME": str(home), "CI": ""}


def written_below(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runtime_sends_nothing_writes_nothing_and_lets_forked_children_end(backend, tmp_path):
    pytest.importorskip(backend)
    with listener() as (port, seen):
        done = subprocess.run(
            [sys.executable, "-c", USE, backend, "3"],
            env=environment(tmp_path, port), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[0, 0]\n"), done.stderr
    assert seen == []
    assert written_below(tmp_path) == []


def strace() -> str:
    """Return the command, where it is there and allowed."""
    found = shutil.which("strace")
    works = found and subprocess.run([found, "-o", os.devnull, "true"], capture_output=True, check=False)
    if found and works and works.returncode == 0:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail("CI needs strace, and the right to use it")
    pytest.skip("no strace, or it is not allowed here")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_runtime_opens_a_connection_beyond_this_machine(backend, tmp_path):
    pytest.importorskip(backend)
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    calls = "connect,sendto,sendmsg,sendmmsg,socket"
    command = [
        strace(),
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    ]
    with listener() as (port, seen):
        done = subprocess.run(
            [*command, sys.executable, "-c", USE, backend, "1"],
            env=environment(home, port), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[0, 0]\n"), done.stderr
    assert re.findall(r".*\bAF_INET6?\b.*", trace.read_text()) == []
    assert seen == []
    assert written_below(home) == []


FIRST = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
import {backend}
import edgeinfer as ei
print(ei.backends()["{backend}"].available)
"""


@pytest.mark.parametrize(
    ("backend", "environ", "told"),
    [
        ("onnxruntime", {}, True),
        ("onnxruntime", {"ORT_DISABLE_TELEMETRY": "1"}, False),
        ("openvino", {}, True),
    ],
)
def test_a_runtime_that_was_imported_before_is_told(backend, environ, told, tmp_path):
    pytest.importorskip(backend)
    if backend == "openvino":
        pytest.importorskip("openvino_telemetry")
    with listener() as (port, _):
        done = subprocess.run(
            [sys.executable, "-c", FIRST.format(backend=backend)],
            env=environment(tmp_path, port) | environ,
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "True"
    assert ("was imported before edgeinfer used it" in done.stdout) is told


def test_the_import_of_openvino_leaves_another_user_of_its_telemetry_package_alone(monkeypatch):
    pytest.importorskip("openvino")
    telemetry = pytest.importorskip("openvino_telemetry")
    from edgeinfer.backends.openvino_ import process

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr("sys.path", [])  # so that importing it fails
    with pytest.raises(ImportError):
        process.vendor_module()
    assert sys.modules["openvino_telemetry"] is telemetry


def test_nothing_is_logged_when_all_is_well(caplog):
    """The tests themselves turn ONNX Runtime's telemetry off before they import it."""
    from edgeinfer.backends.onnxruntime_ import backend as onnxruntime_

    onnxruntime_._runtime.cache_clear()
    with caplog.at_level(logging.WARNING):
        onnxruntime_._runtime()
    assert caplog.messages == []
