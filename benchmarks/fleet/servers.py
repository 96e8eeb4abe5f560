"""Servers that a benchmark starts, kills and starts again: the fleet's own, PostgreSQL, mosquitto."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


class Process:
    """A server that can be killed and started again."""

    def __init__(self, command: list[str], port: int, user: str | None = None) -> None:
        self._command, self._port, self._user = command, port, user
        self.cpu_s, self.rss = 0.0, 0
        self.start()

    def start(self) -> None:
        end = time.monotonic() + 120
        self._child = None
        while time.monotonic() < end:
            if self._child is None or self._child.poll() is not None:
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                self._child = subprocess.Popen(
                    self._command, user=self._user, cwd="/", start_new_session=True, **quiet
                )
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"{self._command[0]} did not start")

    def look(self) -> None:
        """Note what it has used."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        self.now_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        pages = int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1])
        self.rss = max(self.rss, pages * os.sysconf("SC_PAGE_SIZE"))

    def kill(self) -> None:
        self.look()
        self.cpu_s += self.now_s
        os.killpg(self._child.pid, signal.SIGKILL)  # with all that it started
        self._child.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def serve(folder: Path, url: str | None, doorbell: str | None) -> tuple[Process, int]:
    port = free_port()
    command = [sys.executable, "-m", "edgeinfer", "fleet", "serve", str(folder), "--port", str(port)]
    command += ["--interval", "0.5"] + (["--database", url] if url else [])
    command += ["--doorbell", doorbell] if doorbell else []
    return Process(command, port), port


def postgres(folder: Path) -> tuple[Process, str]:
    """Start a PostgreSQL server of this run's own, in Debian's default configuration but for its port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder.mkdir()
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    port = free_port()
    data = folder / "data"
    initdb = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "edgeinfer"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, user=user, cwd="/")
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
    url = f"postgresql+psycopg://edgeinfer@127.0.0.1:{port}/postgres"
    return Process(command, port, user), url


def mosquitto(folder: Path) -> tuple[Process, str]:
    """Start a broker in its default configuration."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Process([program, "-c", str(config)], port), f"mqtt://127.0.0.1:{port}"
