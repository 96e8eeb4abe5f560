"""A real PostgreSQL server of the tests' own: skipped where there is none, a failure where CI has none."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_USER = "nobody"  # the server refuses to run as root


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _run(*command: str) -> None:
    ids = {}
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_USER)
        ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **ids)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def server() -> Iterator[str]:
    """Yield the URL of a server, and stop it afterwards."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs PostgreSQL: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, _USER)
    data = folder / "data"
    try:
        _run(
            initdb,
            "--pgdata",
            str(data),
            "--auth=trust",
            "--username=fleet",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=30"
        )
        _run(pg_ctl, "--pgdata", str(data), "--log", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://fleet@/postgres?host={folder}"
        finally:
            _run(pg_ctl, "--pgdata", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
