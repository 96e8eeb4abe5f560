"""Power cuts that are not the model's fault change nothing; resets that it causes take it back."""

from __future__ import annotations

import random

import attrs
import pytest

from edgeinfer.fleet.device.crash_rate import LIMIT, chance_of, chance_of_slow
from edgeinfer.fleet.device.journal import Boots
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import SystemProbe
from tests.fleet.device.kit import NOW, Shelf, artifact_folder, assign, drive, make_agent, running

HOUR = 3600.0


def test_the_chance_is_that_of_the_negative_binomial():
    # Of a device that was watched for long the count is Poisson: P(X >= 3 | mean 1) = 0.0803014.
    assert chance_of(3, 1e6, baseline=10**6, baseline_seconds=1e12) == pytest.approx(0.0803014, rel=1e-3)
    assert chance_of(0, 5.0, baseline=0, baseline_seconds=0.0) == 1.0
    assert chance_of(40, HOUR, baseline=0, baseline_seconds=1000 * HOUR) < 1e-60


def test_few_slow_requests_say_nothing_and_five_of_five_say_all():
    assert chance_of_slow(1, 1) == pytest.approx(0.01)
    assert chance_of_slow(1, 100) == 1.0
    assert chance_of_slow(5, 5) == pytest.approx(1e-10)
    assert chance_of_slow(3, 100) > 0.01


@pytest.mark.parametrize("mean_uptime_s", [120.0, HOUR, 24 * HOUR])
def test_a_thousand_power_cuts_at_the_usual_rate(mean_uptime_s):
    rng = random.Random(int(mean_uptime_s))
    uptimes = [rng.expovariate(1 / mean_uptime_s) for _ in range(2000)]
    baseline, soak = uptimes[:1000], uptimes[1000:]
    seconds = 0.0
    for cuts, uptime in enumerate(soak, start=1):
        seconds += uptime
        chance = chance_of(cuts, seconds, baseline=len(baseline), baseline_seconds=sum(baseline))
        assert chance > LIMIT, (cuts, chance)


@pytest.mark.parametrize("cuts_before", [0, 3])
def test_a_model_that_resets_the_device_is_seen_within_ten_resets(cuts_before):
    cuts = next(
        n
        for n in range(1, 20)
        if chance_of(n, n * 20.0, baseline=cuts_before, baseline_seconds=30 * 24 * HOUR) < LIMIT
    )
    assert cuts <= 10


class Rebooting:
    """The real device, whose boots are made up."""

    boot = 1

    def __init__(self) -> None:
        self._real = SystemProbe()

    def boot_id(self) -> str:
        return f"made-up boot {self.boot}"

    def __getattr__(self, name):
        return getattr(self._real, name)


def cut(agent) -> None:
    agent._started = False
    agent.close()
    Rebooting.boot += 1


@pytest.mark.parametrize(("usual", "end"), [(200, Phase.SOAKING), (0, Phase.ROLLED_BACK)])
def test_in_the_soak_of_a_real_agent(tmp_path, usual, end):
    shelf = Shelf(tmp_path / "repo")
    options = {"soak_s": 1000.0}
    shelf.desire(assign(shelf.publish(), 1))
    with make_agent(tmp_path / "dev", shelf, probe=Rebooting()) as agent:
        drive(agent)
        boots = Boots(boot_id=agent.device.probe.boot_id(), unclean=usual, seconds=usual * 30.0 or 1e6)
        agent.device.save(attrs.evolve(agent.device.state, boots=boots))
    shelf.desire(assign(shelf.publish(version="2", artifact=artifact_folder(2.0)), 2), at=NOW + 1)
    agent = make_agent(tmp_path / "dev", shelf, probe=Rebooting(), options=options)
    assert drive(agent, until=Phase.SOAKING) is Phase.SOAKING
    phase = Phase.SOAKING
    for _ in range(12):
        cut(agent)
        agent = make_agent(tmp_path / "dev", shelf, probe=Rebooting(), options=options)
        phase = agent.step()
        if phase is not Phase.SOAKING:
            phase = drive(agent)
            break
    assert phase is end
    assert running(tmp_path / "dev") == {"m": "2" if end is Phase.SOAKING else "1"}
    if end is Phase.ROLLED_BACK:
        assert agent.device.state.update.code == "resets"
    agent.close()
