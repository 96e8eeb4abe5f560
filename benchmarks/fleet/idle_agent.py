"""What an idle agent costs: memory and processor time, with nothing to install.

    python benchmarks/fleet/idle_agent.py [SECONDS]

A device that runs one model polls a signed repository once a minute (the default) and once a second. The
agent has a process of its own; its figures are from /proc. Signing needs the package cryptography.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60.0)
    parser.add_argument("--limit-mb", type=float, default=256.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _install(folder)
        for poll_s in (60.0, 1.0):
            _measure(folder, poll_s, arguments.seconds, arguments.limit_mb)
    return 0


def _install(folder: Path) -> None:
    """Publish a signed release of the digits model over a folder, and install it."""
    import edgeinfer as ei
    from edgeinfer.demo import load_digits, model_path
    from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
    from edgeinfer.fleet.operator.assigning import signer_of

    fleet = ei.fleet.open(folder / "fleet")
    golden = [{"images": load_digits().images[:1]}]
    release = fleet.publish("digits", ei.compile(model_path(), target="onnxruntime"), golden=golden)
    assignment = Assignment(
        device="idle", incarnation=1, model="digits", generation=(1, 1), release=release.digest, version="1"
    )
    document = SignedAssignments(
        device="idle", incarnation=1, issued_at=int(time.time()), assignments=(assignment,)
    )
    desired = folder / "fleet" / "repository" / "desired"
    desired.mkdir()
    (desired / "idle.json").write_bytes(
        document.to_bytes(signer_of(fleet.repository.keys)(document.payload()))
    )
    (folder / "root.json").write_bytes(fleet.root)
    _run(folder, "--until-idle", "--option", "soak_s=0").wait()


def _run(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edgeinfer", "agent", "run", str(folder / "device"), "--device", "idle"]
    command += ["--source", str(folder / "fleet"), "--root", str(folder / "root.json"), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def _measure(folder: Path, poll_s: float, seconds: float, limit_mb: float) -> None:
    agent = _run(folder, "--option", f"poll_s={poll_s}")
    time.sleep(10)
    before, cpu = time.monotonic(), _cpu_seconds(agent.pid)
    time.sleep(seconds)
    used, took = _cpu_seconds(agent.pid) - cpu, time.monotonic() - before
    memory = {name: value / 1e6 for name, value in _memory(agent.pid).items()}
    agent.send_signal(signal.SIGTERM)
    agent.wait()
    fits = "fits in" if memory["VmHWM"] < limit_mb else "DOES NOT FIT in"
    print(
        f"poll every {poll_s:g} s: {1e3 * used / took:.2f} ms of processor time a second "
        f"({100 * used / took:.2f} % of a core), resident {memory['VmRSS']:.0f} MB (anonymous "
        f"{memory['RssAnon']:.0f}), peak {memory['VmHWM']:.0f} MB: {fits} {limit_mb:g} MB",
        flush=True,
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.startswith(("VmRSS:", "VmHWM:", "RssAnon:")))
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs}


if __name__ == "__main__":
    sys.exit(main())
