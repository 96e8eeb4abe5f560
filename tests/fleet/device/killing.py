"""Kills a device's agent at a system call, by strace's fault injection, and looks at what is left."""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.fleet.device.kit import running
from tests.fleet.device.scenarios import Scenario, go_on

__all__ = ["CALLS", "available", "check_after_crash", "kill_points", "run_injected"]

# Every call by which the agent changes the disk. Creating a file (openat) is not among them: to be killed
# after it is to be killed before the next of these.
CALLS = (
    "write,pwrite64,writev,copy_file_range,sendfile,ftruncate,fallocate,fsync,fdatasync,rename,renameat,"
    "renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,utimensat"
)
_LINE = re.compile(r"^(?:\d+ +)?([a-z0-9_]+)\(")


def available() -> bool:
    """Whether strace is installed and may trace."""
    strace = shutil.which("strace")
    return (
        strace is not None
        and subprocess.run([strace, "-o", "/dev/null", "true"], check=False).returncode == 0
    )


def run_injected(
    folder: Path, inject: str | None, *, log: str = "/dev/null", extra: tuple[str, ...] = ()
) -> int:
    """Let a fork of this process go on with a prepared folder, under strace; return its wait status.

    Args:
        folder: Prepared.
        inject: What strace injects, such as `fsync:signal=SIGKILL:when=3`.
        log: Where strace writes the calls.
        extra: Further options of strace.
    """
    begin, ready = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ready)
            os.read(begin, 1)
            code = 0 if go_on(folder) else 1
        finally:
            os._exit(code)
    os.close(begin)
    options = ["-e", f"inject={inject}"] if inject is not None else []
    strace = subprocess.Popen(
        ["strace", "-p", str(child), "-o", log, "-e", f"trace={CALLS}", *extra, *options],
        stderr=subprocess.PIPE,
    )
    assert strace.stderr is not None
    attached = strace.stderr.readline()
    assert b"attached" in attached, attached
    os.write(ready, b".")
    os.close(ready)
    status = os.waitpid(child, 0)[1]
    strace.wait()
    strace.stderr.close()
    return status


def kill_points(folder: Path, scratch: Path) -> Iterator[tuple[str, int]]:
    """Yield (system call, n) for each call that the program makes on a prepared folder, in their order."""
    copy = scratch / "trace"
    shutil.copytree(folder, copy, symlinks=True)
    status = run_injected(copy, None, log=str(scratch / "log"))
    assert status == 0, status
    counts: collections.Counter[str] = collections.Counter()
    for line in (scratch / "log").read_text().splitlines():
        match = _LINE.match(line)
        if match is not None:
            counts[match[1]] += 1
            yield match[1], counts[match[1]]
    shutil.rmtree(copy)


def check_after_crash(folder: Path, scenario: Scenario) -> None:
    """Hold that what an application finds is the old or the new set, and that the agent comes to its end."""
    found = running(folder / "dev")  # every file of it is verified
    assert found in (scenario.old, scenario.new), found
    phase, last = go_on(folder)
    assert (phase, last) == (scenario.end, scenario.last), (phase, last)
