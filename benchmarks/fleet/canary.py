"""How often the canary test gives a false alarm, and how often it catches a slower release.

Usage: python benchmarks/fleet/canary.py [TRIALS]

Devices differ (lognormal, 30 %), requests vary, devices drift between before and after (5 % sd), and all of
them share a change of the day. There are 20 looks; a trial alarms if any look does. Pooled Mann-Whitney on
the same data is what many canary services do; it is here for comparison. With a spread of 2 the release makes
canaries drift twice as far as controls, with no effect on average: no alarm is right then either.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from edgeinfer.fleet.operator.canary import Sums, compare_arms

LOOKS = 20
DRIFT = 0.05
NOISE = 0.05  # of one device's p99 in one look


def trial(rng, canaries, controls, effect, margin, alpha, spread):
    """Return what the first conclusive look says, and whether pooled Mann-Whitney ever alarmed."""
    day = rng.normal(0, 0.03, size=LOOKS).cumsum()  # what happens to all devices alike

    def arm(size, shift, spread):
        base = rng.normal(0, 0.3, size=size)
        before = base + rng.normal(0, NOISE / math.sqrt(LOOKS), size=size)
        drift = rng.normal(0, DRIFT * spread, size=size)
        after = base + drift + shift + day[:, None] + rng.normal(0, NOISE, size=(LOOKS, size))
        return before, after

    before_c, after_c = arm(canaries, math.log1p(effect), spread)
    before_k, after_k = arm(controls, 0.0, 1.0)
    verdict, alarmed_pooled = "INCONCLUSIVE", False
    for look in range(1, LOOKS + 1):
        if verdict == "INCONCLUSIVE":
            changes = [a[:look].mean(axis=0) - b for a, b in ((after_c, before_c), (after_k, before_k))]
            interval = compare_arms(Sums.of(changes[0]), Sums.of(changes[1]), alpha).interval
            if interval is not None and interval.low > math.log1p(margin):
                verdict = "FAIL"
            elif interval is not None and margin and interval.high < math.log1p(margin):
                verdict = "PASS"
        alarmed_pooled |= mann_whitney(after_c[:look].ravel(), after_k[:look].ravel()) < alpha
    return verdict, alarmed_pooled


def mann_whitney(a, b):
    """Return the one-sided p value of `a` being greater, by the normal approximation."""
    ranks = np.empty(a.size + b.size)
    ranks[np.concatenate([a, b]).argsort()] = np.arange(1, a.size + b.size + 1)
    u = ranks[: a.size].sum() - a.size * (a.size + 1) / 2
    z = (u - a.size * b.size / 2) / math.sqrt(a.size * b.size * (a.size + b.size + 1) / 12)
    return 0.5 * math.erfc(z / math.sqrt(2))


def shares(trials, *, canaries, effect, margin, controls=200, spread=1.0, alpha=0.01, seed=0):
    rng = np.random.default_rng([seed, canaries, round(1000 * effect), round(1000 * margin)])
    results = [trial(rng, canaries, controls, effect, margin, alpha, spread) for _ in range(trials)]
    verdicts = [verdict for verdict, _ in results]
    return {
        "PASS": verdicts.count("PASS") / trials,
        "FAIL": verdicts.count("FAIL") / trials,
        "pooled": sum(pooled for _, pooled in results) / trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", nargs="?", type=int, default=2000)
    trials = parser.parse_args().trials
    print(f"{trials} trials, {LOOKS} looks, alpha 1 %, device drift {DRIFT:.0%}")
    print("canaries  controls  spread  effect  margin    PASS    FAIL   (pooled Mann-Whitney alarms)")
    cases = [(n, 200, spread, 0.0, 0.0) for n in (10, 20, 50) for spread in (1.0, 2.0)]
    cases += [(n, 200, 1.0, effect, 0.05) for n in (10, 20, 50) for effect in (0.0, 0.10, 0.20)]
    cases += [(10, controls, 1.0, 0.20, 0.05) for controls in (10, 20, 40)]
    for canaries, controls, spread, effect, margin in cases:
        share = shares(
            trials, canaries=canaries, controls=controls, spread=spread, effect=effect, margin=margin
        )
        print(
            f"{canaries:8}  {controls:8}  {spread:6.0f}  {effect:+6.0%}  {margin:6.0%}  "
            f"{share['PASS']:6.1%}  {share['FAIL']:6.1%}   ({share['pooled']:.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
