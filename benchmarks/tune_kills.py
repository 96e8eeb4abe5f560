"""A tuning run that is killed with -9 at random points, and goes on each time.

    python benchmarks/tune_kills.py [KILLS] [--seed 0] [--folder OUT]

A process tunes a small model from a journal and is killed after a random time or a random number of journal
lines, KILLS times (20); one that came to its end is followed by a new one. It is checked that

1. what was in the journal at each kill is still there, byte for byte but for a line that was cut off;
2. every record is what the planner decides from the records before it: the proposals are those of a run that
   was never killed, because they depend on nothing else;
3. no process of a killed run is left;
4. the result has a best candidate, whose recipe is replayed bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx.parser

import edgeinfer as ei
from edgeinfer.tuning.actions import Evaluate, Make, MeasureMemory, MeasureSensitivity, Prepare, Problem, Time
from edgeinfer.tuning.planner import next_action
from edgeinfer.tuning.space import Space
from edgeinfer.tuning.state import State

MINUTES = 0.5
LAST = "layers"  # the record that a run ends with
LEFT_S = 30.0  # one that is still importing looks for its parent afterwards
BUDGET = ei.Budget(latency_p50_ms=1000.0, max_drop=0.5)


def model() -> ei.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8, 12, 12] x) => (float[N, 8, 12, 12] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, w2)
            d = Relu(c)
            y = Conv<pads = [1, 1, 1, 1]>(d, w3)
        }"""
    )
    for name, shape in (("w1", (32, 8, 3, 3)), ("w2", (32, 32, 3, 3)), ("w3", (8, 32, 3, 3))):
        array = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ei.Model.load(proto)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(8)]


def evaluate(candidate: ei.Model) -> float:
    return 0.9 - 0.001 * len(candidate.history)


def tune(journal: Path) -> ei.TuningResult:
    return ei.tune(
        model(),
        BUDGET,
        target="onnxruntime",
        calibration=feeds(),
        evaluate=evaluate,
        minutes=MINUTES,
        journal=journal,
        options={"threads": 1},
        progress=True,
    )


def left_over(journal: Path) -> list[int]:
    """Processes of tuning that still work in the journal's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            folder = str((entry / "fd" / "2").readlink())
        except OSError:
            continue
        if b"edgeinfer.tuning." in command and folder.startswith(str(journal.parent)):
            found.append(int(entry.name))
    return found


def check_decisions(records: list[dict]) -> int:
    """Compare each record with what the planner decides from those before it."""
    start = records[0]
    problem = Problem(
        budget=BUDGET,
        space=Space(
            precisions=start["precisions"],
            options=start["options"],
            narrow=start.get("narrow", ()),
            fixes=start.get("fixes", False),
        ),
        seed=start["seed"],
        seconds=60 * MINUTES,
        evaluates=True,
    )
    checked = 0
    for number in range(1, len(records)):
        record = records[number]
        if record["kind"] in ("evaluating", "layers", "end"):
            continue
        action = next_action(State.of(records[:number]), problem)
        kinds = {
            Prepare: "prepared",
            Make: "made",
            Time: "rung",
            MeasureSensitivity: "sensitivity",
            Evaluate: "evaluated",
            MeasureMemory: "memory",
        }
        assert kinds[type(action)] == record["kind"], (number, action, record["kind"])
        if isinstance(action, (Make, Evaluate, MeasureMemory)):
            assert action.trial == record["trial"], (number, action, record)
        if isinstance(action, Make):
            assert action.candidate.to_dict() == record["candidate"], (number, action, record)
        if isinstance(action, Time):
            assert [str(index) for index, _ in action.trials] == list(record["timings"]) or set(
                map(str, dict(action.trials))
            ) == set(record["timings"])
        checked += 1
    return checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("tune_kills"))
    parser.add_argument("--child", action="store_true", help="(used by the script itself)")
    arguments = parser.parse_args()
    if arguments.child:
        tune(arguments.folder / "journal.jsonl")
        return
    shutil.rmtree(arguments.folder, ignore_errors=True)
    draw = random.Random(arguments.seed)
    kinds: Counter[str] = Counter()
    kept, runs = b"", 0
    for kill in range(arguments.kills):
        folder = arguments.folder.resolve() / f"run-{runs}"
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "journal.jsonl"
        lines = kept.count(b"\n")
        more, wait = draw.choice((0, 0, 1, 1, 2)), draw.uniform(0.0, 3.0)
        command = [sys.executable, __file__, "--child", "--folder", str(folder)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines + more:
                break
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + LEFT_S  # children see that nobody listens, and end
        while left_over(journal) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left_over(journal), left_over(journal)
        now = journal.read_bytes() if journal.exists() else b""
        whole = now[: now.rfind(b"\n") + 1]
        assert whole.startswith(kept), f"kill {kill}: the journal lost a record"
        kept = whole
        last = json.loads(kept.splitlines()[-1])["kind"] if kept else "nothing"
        kinds[last] += 1
        print(f"kill {kill + 1}: {kept.count(bytes([10]))} records, the last one is {last!r}", flush=True)
        if last == LAST or kill + 1 == arguments.kills:
            check_result(journal, kept)
            kept, runs = b"", runs + 1
    print(f"{arguments.kills} kills of {runs} runs, after {dict(kinds)}")


def check_result(journal: Path, kept: bytes) -> None:
    """Let a run go on to its end, and look at what it gives."""
    result = tune(journal)
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert journal.read_bytes().startswith(kept)
    checked = check_decisions(records)
    assert result.best.recipe.apply(model()).digest == result.best.model.digest
    print(f"{len(records)} records; {checked} decisions are what the records before them lead to")
    print(f"best: candidate {result.chosen}, {result.best.candidate.describe()}; recipe replayed bit for bit")


if __name__ == "__main__":
    main()
