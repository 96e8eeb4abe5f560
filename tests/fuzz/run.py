"""Run the targets of this folder under atheris, each in processes of its own.

    pip install atheris
    PYTHONPATH=. python tests/fuzz/run.py [TARGET …] [--runs 1000000] [--jobs 4] [--keep FOLDER]

A process fuzzes one target for `--seconds`; the next one goes to the target that is furthest behind, with
another seed and with the inputs that the ones before kept, until each target was executed `--runs` times.
FOLDER (default: fuzz-finds/) gets `figures.json` after each process, a log and a corpus for each target, and
the inputs that ended a target otherwise than with a typed error; `TARGET FILE` repeats one of those.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TIMEOUT_S, MEMORY_MB, LONGEST = 20, 3072, 16384
FAILURES = 5
"""Processes that end badly before a target is given up."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of each target")
    parser.add_argument("--seconds", type=int, default=60, help="of one process")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-finds"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    import tests.fuzz.targets as known

    if len(options.targets) == 2 and Path(options.targets[1]).is_file():
        print(known.TARGETS[options.targets[0]].run(Path(options.targets[1]).read_bytes()))
        return 0
    options.keep.mkdir(parents=True, exist_ok=True)
    tallies = [Tally(name) for name in options.targets or known.TARGETS]
    work = Work(tallies, options)
    with ThreadPoolExecutor(options.jobs) as pool:
        for worker in [pool.submit(work.go_on) for _ in range(options.jobs)]:
            worker.result()
    for tally in tallies:
        print(tally.line())
    return int(any(tally.finds or tally.failures or tally.executions < options.runs for tally in tallies))


class Tally:
    """What the processes of one target did."""

    def __init__(self, name: str):
        self.name = name
        self.executions = self.processes = self.running = self.failures = 0
        self.seconds = self.processor_s = 0.0
        self.edges = self.peak_mb = 0
        self.finds: dict[str, str] = {}

    def add(self, text: str, seconds: float, processor_s: float, status: int) -> None:
        """Count a process that ended, by what it printed."""
        runs = _number(r"number_of_executed_units: +(\d+)", text) or _number(r"^#(\d+)", text)
        self.executions += runs
        self.seconds += seconds
        self.processor_s += processor_s
        self.edges = max(self.edges, _number(r"cov: (\d+)", text))
        self.peak_mb = max(self.peak_mb, _number(r"peak_rss_mb: +(\d+)", text))
        self.finds |= dict(re.findall(r"^FIND (\w+): (.*)", text, re.MULTILINE))
        if status:
            self.failures += 1
            self.finds[f"status {status}"] = text.strip().splitlines()[-1][:300] if text.strip() else ""

    def ahead(self, seconds: float) -> float:
        """Return the executions, with what the running processes are likely to add."""
        rate = self.executions / self.seconds if self.seconds else 1.0
        return self.executions + self.running * rate * seconds

    def line(self) -> str:
        rate = self.executions / max(self.seconds, 1e-9)
        processor = self.executions / max(self.processor_s, 1e-9)
        found = "; ".join(self.finds.values()) or "only typed errors"
        return (
            f"{self.name:18} {self.executions:9,} executions, {rate:5,.0f} a second ({processor:5,.0f} of "
            f"processor time), {self.processes} processes, {self.edges} edges, {self.peak_mb} MB: {found}"
        )


class Work:
    """Gives the next process to the target that is furthest behind."""

    def __init__(self, tallies: list[Tally], options: argparse.Namespace):
        self.tallies, self.options = tallies, options
        self.lock = threading.Lock()
        self.begun = time.monotonic()

    def go_on(self) -> None:
        """Run one process after another until nothing is left."""
        while (started := self._next()) is not None:
            tally, number = started
            log = self.options.keep / f"{tally.name}.{number}.log"
            begun = time.monotonic()
            status, processor_s = _run(self._command(tally, number), log)
            with self.lock:
                tally.running -= 1
                tally.add(log.read_text(errors="replace"), time.monotonic() - begun, processor_s, status)
                print(tally.line(), flush=True)
                self._write()
            if not status:
                log.rename(self.options.keep / f"{tally.name}.log")

    def _next(self) -> tuple[Tally, int] | None:
        with self.lock:
            left = [
                tally
                for tally in self.tallies
                if tally.ahead(self.options.seconds) < self.options.runs and tally.failures < FAILURES
            ]
            if not left:
                return None
            tally = min(left, key=lambda tally: (tally.ahead(self.options.seconds), tally.running))
            tally.running += 1
            tally.processes += 1
            return tally, tally.processes

    def _command(self, tally: Tally, number: int) -> list[str]:
        keep = self.options.keep
        corpus = keep / "corpus" / tally.name
        corpus.mkdir(parents=True, exist_ok=True)
        call = f"from tests.fuzz.run import fuzz; fuzz({tally.name!r}, {str(corpus)!r}, {str(keep)!r})"
        seed = self.options.seed * 1000 + number
        limits = [
            f"-timeout={TIMEOUT_S}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-max_len={LONGEST}",
            "-len_control=0",
        ]
        runs = max(self.options.runs - tally.executions, 1)
        amount = [f"-runs={runs}", f"-max_total_time={self.options.seconds}", f"-seed={seed}"]
        limits += ["-print_final_stats=1", f"-artifact_prefix={keep}/{tally.name}-"]
        return [sys.executable, "-c", call, *amount, *limits]

    def _write(self) -> None:
        figures = {
            tally.name: {k: v for k, v in vars(tally).items() if k != "name"} for tally in self.tallies
        }
        path = self.options.keep / "figures.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"wall_s": time.monotonic() - self.begun, "targets": figures}, indent=1))
        new.replace(path)


def _run(command: list[str], log: Path) -> tuple[int, float]:
    """Run a process; return its status and its processor time in seconds."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _number(pattern: str, text: str) -> int:
    return int((re.findall(pattern, text, re.MULTILINE) or ["0"])[-1])


def _kind(error: Exception) -> str:
    """Say where an error came from, so that one defect is told once."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/edgeinfer/" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the target itself"
    return f"{type(error).__name__} at {place}: {str(error).splitlines()[:1]}"[:150]


def fuzz(name: str, corpus: str, keep: str) -> None:
    """Fuzz in this process; go on after a find."""
    import atheris

    with atheris.instrument_imports(include=_modules(name), enable_loader_override=False):
        import tests.fuzz.targets as known

    target = known.TARGETS[name]
    atexit.register(known.remove_folder)
    warnings.simplefilter("ignore")
    logging.disable()  # onnx-ir tells a lot about models that are none
    for number, seed in enumerate(target.seeds()):
        Path(corpus, f"seed{number}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], *sys.argv[1:], corpus],
        _once(name, target.run, known.ALLOWED, Path(keep)),
        custom_mutator=_mutator(target.mutate, atheris),
    )
    atheris.Fuzz()


def _once(
    name: str, run: Callable[[bytes], object], allowed: type[Exception], keep: Path
) -> Callable[[bytes], None]:
    """Return what is executed for each input; a kind of find is told and kept once."""
    finds: set[str] = set()

    def once(data: bytes) -> None:
        try:
            run(data)
        except allowed:
            pass
        except Exception as error:
            kind = _kind(error)
            key = hashlib.sha256(kind.encode()).hexdigest()[:10]
            if key not in finds:
                finds.add(key)
                keep.joinpath(f"{name}-{key}").write_bytes(data)
                print(f"\nFIND {key}: {kind}", flush=True)

    return once


def _mutator(mutate: Callable[[bytes, random.Random], bytes], atheris: Any) -> Callable[..., bytes]:
    """Return the change of an input: three times in four one that keeps its format."""

    def change(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutate(data, rng) if rng.randrange(4) else atheris.Mutate(data, longest)
        return bytes(changed[:longest])

    return change


def _modules(name: str) -> list[str]:
    """Which modules are watched; asked of another process, since importing them here would be too early."""
    code = f"import tests.fuzz.targets as t; print(*t.TARGETS[{name!r}].modules)"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


if __name__ == "__main__":
    sys.exit(main())
