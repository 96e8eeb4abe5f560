"""Run the targets of this folder under atheris, each in a process of its own.

    pip install atheris          # has wheels for Python 3.10 to 3.13
    PYTHONPATH=. python tests/fuzz/run.py [TARGET …] [--runs 1000000] [--keep FOLDER]

Each line tells the executions, how many a second of wall-clock time and of processor time, how many edges of
the parser's modules were reached, and what was found. Inputs that ended a target otherwise than with a typed
error lie in FOLDER (default: fuzz-finds/), and `TARGET FILE` repeats one.
"""

from __future__ import annotations

import argparse
import atexit
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

TIMEOUT_S, MEMORY_MB, LONGEST = 20, 3072, 16384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="end each target after this time; 0: never")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-finds"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    import tests.fuzz.targets as known

    if len(options.targets) == 2 and Path(options.targets[1]).is_file():
        print(known.TARGETS[options.targets[0]].run(Path(options.targets[1]).read_bytes()))
        return 0
    options.keep.mkdir(parents=True, exist_ok=True)
    found = [_in_process(name, options) for name in options.targets or known.TARGETS]
    return int(any(found))


def _in_process(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one target; return whether something was found."""
    with tempfile.TemporaryDirectory() as corpus:
        command = [
            sys.executable,
            "-c",
            f"from tests.fuzz.run import fuzz; fuzz({name!r}, {corpus!r}, {str(options.keep)!r})",
        ]
        command += [f"-runs={options.runs}", f"-seed={options.seed}", f"-max_len={LONGEST}", "-len_control=0"]
        command += [f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1"]
        command.append(f"-max_total_time={options.seconds}")
        command += [f"-artifact_prefix={options.keep}/{name}-"]
        begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        log = options.keep / f"{name}.log"
        with log.open("wb") as file:
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
        seconds = time.monotonic() - begun
        processor = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used
        kept = len(list(Path(corpus).iterdir()))
    text = log.read_text(errors="replace")
    runs = _number(r"number_of_executed_units: +(\d+)", text)
    edges = _number(r"cov: (\d+)", text)
    peak = _number(r"peak_rss_mb: +(\d+)", text)
    finds = re.findall(r"^FIND .*", text, re.MULTILINE)
    outcome = "ended, see the log" if ended.returncode else "; ".join(finds) or "only typed errors"
    print(
        f"{name:18} {runs:9,} executions, {runs / seconds:5,.0f} a second ({runs / processor:5,.0f} of "
        f"processor time), {edges} edges, {kept} inputs kept, "
        f"peak {peak} MB: {outcome}",
        flush=True,
    )
    return bool(finds) or ended.returncode != 0


def _number(pattern: str, text: str) -> int:
    return int((re.findall(pattern, text) or ["0"])[-1])


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
    for number, seed in enumerate(target.seeds()):
        Path(corpus, f"seed{number}").write_bytes(seed)

    finds: dict[str, int] = {}

    def once(data: bytes) -> None:
        try:
            target.run(data)
        except known.ALLOWED:
            pass
        except Exception as error:
            kind = _kind(error)
            finds[kind] = finds.get(kind, 0) + 1
            if finds[kind] == 1:
                Path(keep, f"{name}-{len(finds)}").write_bytes(data)
                print(f"FIND {len(finds)}: {kind}", flush=True)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = target.mutate(data, rng) if rng.randrange(4) else atheris.Mutate(data, longest)
        return bytes(changed[:longest])

    atheris.Setup([sys.argv[0], *sys.argv[1:], corpus], once, custom_mutator=mutator)
    atheris.Fuzz()


def _modules(name: str) -> list[str]:
    """Which modules are watched; asked of another process, since importing them here would be too early."""
    code = f"import tests.fuzz.targets as t; print(*t.TARGETS[{name!r}].modules)"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


if __name__ == "__main__":
    sys.exit(main())
