"""Run random fleets with random rollouts and faults, and check what must always hold.

Usage: python benchmarks/fleet/invariants.py [SEEDS] [--first N] [--processes N] [--results FILE]

A failure prints its seed; `--first SEED 1` runs it again, step by step the same. `--results` keeps a summary
in a file as it goes, so that a run that is cut off has told what it saw.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import multiprocessing
import time
import traceback
from pathlib import Path

from edgeinfer.fleet.operator.simulator.memory import Memory
from edgeinfer.fleet.operator.simulator.scenario import run_seed

memory = functools.cache(Memory)  # one a process


def attempt(seed: int) -> tuple[int, str, int, str]:
    try:
        scenario = run_seed(seed, memory())
        return seed, scenario.state.value, scenario.oracle.checks, ""
    except Exception as error:
        return seed, "ERROR", 0, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, help="where a summary goes, as JSON")
    arguments = parser.parse_args()
    began, states, checks = time.time(), collections.Counter(), 0
    failures: dict[int, str] = {}

    def keep(done: int) -> None:
        if arguments.results:
            summary = {
                "first": arguments.first,
                "seeds": done,
                "hold": done - len(failures),
                "failures": failures,
                "ends": dict(states),
                "checks": checks,
                "seconds": round(time.time() - began, 1),
                "processes": arguments.processes,
            }
            arguments.results.write_text(json.dumps(summary, indent=1))

    seeds = range(arguments.first, arguments.first + arguments.seeds)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for done, (seed, state, count, error) in enumerate(pool.imap_unordered(attempt, seeds), 1):
            states[state] += 1
            checks += count
            if error:
                failures[seed] = error
                print(f"seed {seed}: {error}", flush=True)
            if done % 100 == 0:
                took = time.time() - began
                print(f"{done} seeds (to {seed}), {len(failures)} failures, {took:.0f} s", flush=True)
                keep(done)
    keep(arguments.seeds)
    print(
        f"{arguments.seeds} seeds, {checks} checks, {len(failures)} failures, "
        f"{time.time() - began:.0f} s; ends: {dict(states)}"
    )
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
