"""The rules of `AdaptiveSession` against naive thresholds, on simulated load.

    python benchmarks/adaptive_simulation.py [--requests 20000] [--seed 0]

Four variants that take 20, 12, 7 and 4 ms on an idle machine, a deadline of 30 ms. Each scenario is a factor
that slows all variants down, request by request, with 5 % noise and now and then an outlier that has nothing
to do with load. For each policy: switches, misses, and how much of the time each variant ran.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from edgeinfer.runtime.adaptive.controller import Controller

IDLE_MS = (20.0, 12.0, 7.0, 4.0)
DEADLINE_MS = 30.0


def idle(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.ones(n)


def step(n: int, rng: np.random.Generator) -> np.ndarray:
    """Another program runs for the middle half."""
    return np.where((np.arange(n) > n // 4) & (np.arange(n) < 3 * n // 4), 1.9, 1.0)


def square(n: int, rng: np.random.Generator) -> np.ndarray:
    """Another program runs every other 300 requests."""
    return np.where(np.arange(n) // 300 % 2, 2.0, 1.0)


def heat(n: int, rng: np.random.Generator) -> np.ndarray:
    """The clock falls slowly, and recovers."""
    return 1.0 + 1.6 * np.sin(np.linspace(0, np.pi, n)) ** 2


def bursts(n: int, rng: np.random.Generator) -> np.ndarray:
    """Short bursts of other work."""
    factor = np.ones(n)
    for start in rng.integers(0, n, n // 400):
        factor[start : start + int(rng.integers(30, 250))] = rng.uniform(1.4, 3.5)
    return factor


def wandering(n: int, rng: np.random.Generator) -> np.ndarray:
    """The load wanders."""
    log = np.zeros(n)
    for i in range(1, n):
        log[i] = 0.999 * log[i - 1] + 0.02 * rng.standard_normal()
    return np.exp(np.abs(log))


def edge(n: int, rng: np.random.Generator) -> np.ndarray:
    """The best variant is just about as long as the deadline."""
    return np.full(n, 1.42)


SCENARIOS = (idle, edge, step, square, heat, bursts, wandering)


class Ours:
    def __init__(self) -> None:
        self._controller = Controller(IDLE_MS, DEADLINE_MS)

    @property
    def level(self) -> int:
        return self._controller.level

    def observe(self, latency_ms: float) -> None:
        self._controller.observe(self.level, latency_ms)


class Threshold:
    """Down on a miss; up after `quiet` requests in a row that took less than `part` of the deadline."""

    def __init__(self, part: float, quiet: int) -> None:
        self.level = 0
        self._part, self._quiet, self._calm = part, quiet, 0

    def observe(self, latency_ms: float) -> None:
        self._calm = self._calm + 1 if latency_ms < self._part * DEADLINE_MS else 0
        if latency_ms > DEADLINE_MS:
            self.level, self._calm = min(self.level + 1, len(IDLE_MS) - 1), 0
        elif self._calm >= self._quiet:
            self.level, self._calm = max(self.level - 1, 0), 0


class Average:
    """Down when the mean of the last 10 exceeds 0.9 of the deadline, up when it is below 0.6 of it."""

    def __init__(self) -> None:
        self.level = 0
        self._last: list[float] = []

    def observe(self, latency_ms: float) -> None:
        self._last = [*self._last, latency_ms][-10:]
        mean = sum(self._last) / len(self._last)
        wanted = (
            self.level + (mean > 0.9 * DEADLINE_MS) - (mean < 0.6 * DEADLINE_MS and len(self._last) == 10)
        )
        wanted = min(max(wanted, 0), len(IDLE_MS) - 1)
        if wanted != self.level:
            self.level, self._last = wanted, []


POLICIES: dict[str, Callable[[], Ours | Threshold | Average]] = {
    "edgeinfer": Ours,
    "miss / 20 below 0.7": lambda: Threshold(0.7, 20),
    "miss / 50 below 0.8": lambda: Threshold(0.8, 50),
    "mean of 10": Average,
}


def simulate(
    policy: Ours | Threshold | Average, factor: np.ndarray, seed: int
) -> tuple[int, int, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = np.exp(0.05 * rng.standard_normal(len(factor)))
    outliers = np.where(rng.random(len(factor)) < 0.002, rng.uniform(1.5, 4.0, len(factor)), 1.0)
    switches = misses = 0
    ran = np.zeros(len(IDLE_MS), int)
    for slow_down in factor * noise * outliers:
        level = policy.level
        latency_ms = IDLE_MS[level] * slow_down
        ran[level] += 1
        misses += latency_ms > DEADLINE_MS
        policy.observe(latency_ms)
        switches += policy.level != level
    return switches, misses, ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    head = f"{'scenario':10s} {'policy':20s} {'switches':>8s} {'missed':>7s}  share of each variant"
    print(f"{arguments.requests} requests, variants {IDLE_MS} ms, deadline {DEADLINE_MS} ms\n{head}")
    for scenario in SCENARIOS:
        factor = scenario(arguments.requests, np.random.default_rng(arguments.seed))
        for name, make in POLICIES.items():
            switches, misses, ran = simulate(make(), factor, arguments.seed + 1)
            shares = " ".join(f"{share:5.1%}" for share in ran / ran.sum())
            rate = misses / arguments.requests
            print(f"{scenario.__name__:10s} {name:20s} {switches:8d} {rate:7.2%}  {shares}")


if __name__ == "__main__":
    main()
