"""What a device goes through while it is killed: prepared folders, and what goes on with them."""

from __future__ import annotations

from pathlib import Path

import attrs

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import Sensor, SystemProbe
from edgeinfer.fleet.device.release import DeviceFacts
from tests.fleet.device.kit import NOW, Shelf, artifact_folder, assign, drive, make_agent, running

__all__ = ["SCENARIOS", "Scenario", "go_on", "open_agent", "prepare"]


@attrs.frozen(kw_only=True)
class Scenario:
    """What a device goes through.

    Attributes:
        old: The version of each model before.
        new: The version of each model that is assigned.
        end: The phase at the end.
    """

    name: str
    old: dict[str, str]
    new: dict[str, str]
    end: Phase = Phase.COMMITTED

    @property
    def last(self) -> dict[str, str]:
        """What runs at the end."""
        return self.new if self.end is Phase.COMMITTED else self.old


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="first", old={}, new={"m": "1"}),
        Scenario(name="update", old={"m": "1"}, new={"m": "2"}),
        Scenario(name="rollback", old={"m": "1"}, new={"m": "2"}, end=Phase.ROLLED_BACK),
        Scenario(name="several", old={"a": "1", "b": "1"}, new={"a": "2", "b": "2", "c": "2"}),
    )
}


class HeatedBySecondGeneration:
    """A made-up probe: a device that is too hot while its second generation runs."""

    def __init__(self, root: Path) -> None:
        self._generations = Generations(root)
        self._real = SystemProbe()

    def temperature_c(self) -> Sensor:
        hot = self._generations.current() == 2
        return Sensor(value=95.0 if hot else 40.0, source="made-up sensor of a test")

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def prepare(folder: Path, scenario: Scenario) -> None:
    """Bring a device to where the scenario begins."""
    shelf = Shelf(folder / "repo")
    budget = Budget(temperature_c=80.0)
    for n, versions in enumerate((scenario.old, scenario.new), start=1):
        if not versions:
            continue
        releases = [
            shelf.publish(model, version, artifact_folder(float(n)), budget=budget if n == 2 else None)
            for model, version in versions.items()
        ]
        shelf.desire(*(assign(release, n) for release in releases), at=NOW + n)
        if n == 1 and scenario.old:
            with open_agent(folder) as agent:
                drive(agent)
    (folder / "scenario").write_text(scenario.name)


def open_agent(folder: Path) -> Agent:
    """Return the agent of a prepared device."""
    probe: object = HeatedBySecondGeneration(folder / "dev")
    name = (folder / "scenario").read_text() if (folder / "scenario").exists() else ""
    if name != "rollback":
        probe = SystemProbe()
    agent = make_agent(folder / "dev", Shelf(folder / "repo"), probe=probe)
    agent.device._facts = DeviceFacts(arch="x86_64", backends={"onnxruntime": "1.23"})
    return agent


def go_on(folder: Path) -> tuple[Phase, dict[str, str]]:
    """Let the device go on to the end; return its phase and what runs."""
    with open_agent(folder) as agent:
        phase = drive(agent)
    return phase, running(folder / "dev")
