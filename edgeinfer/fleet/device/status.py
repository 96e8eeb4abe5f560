"""`AgentStatus`: what a device runs and what its agent does, read from its folder without disturbing it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.display import Table
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.generations import Generations, Pin
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.journal import Journal, Quarantined
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.errors import AgentError, GenerationError, JournalError

__all__ = ["AgentStatus"]


@final
@attrs.frozen(kw_only=True)
class AgentStatus:
    """What a device runs and what its agent does.

    Attributes:
        device: Its name; empty before the agent's first start.
        generation: The number of the generation that runs; 0 for none.
        models: What runs, by model.
        phase: Where the last update stands.
        code: Why, in one word.
        detail: The same for people.
        applications: How many applications are connected.
        requests: How many inferences they answered since they serve this generation.
        errors: In how many the runtime failed.
        quarantine: What is not tried again, by the digest of the release.
        problems: What could not be read.
    """

    device: str = ""
    generation: int = 0
    models: Mapping[str, Pin] = attrs.field(factory=dict)
    phase: Phase = Phase.IDLE
    code: str = ""
    detail: str = ""
    applications: int = 0
    requests: int = 0
    errors: int = 0
    quarantine: Mapping[str, Quarantined] = attrs.field(factory=dict)
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> AgentStatus:
        """Read the status of the device whose agent works, or worked, in a folder."""
        root = Path(folder)
        problems: list[str] = []
        found = cls()
        try:
            identity = Identity.load(root)
            found = attrs.evolve(found, device=identity.device if identity is not None else "")
        except (AgentError, OSError) as error:
            problems.append(str(error))
        generations = Generations(root)
        number = generations.current()
        try:
            models = generations.read(number).models if number else {}
            found = attrs.evolve(found, generation=number, models=models)
        except GenerationError as error:
            problems.append(str(error))
        try:
            state = Journal(root).load()
        except (JournalError, OSError) as error:
            state = None
            problems.append(str(error))
        if state is not None:
            found = attrs.evolve(found, quarantine=state.quarantine)
            if state.update is not None:
                update = state.update
                found = attrs.evolve(found, phase=update.phase, code=update.code, detail=update.detail)
        apps = read_apps(root / "run")[0]
        statuses = [status for app in apps if app.generation == number for status in app.models.values()]
        return attrs.evolve(
            found,
            applications=len(apps),
            requests=sum(status.requests for status in statuses),
            errors=sum(status.errors for status in statuses),
            problems=tuple(problems),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {**attrs.asdict(self), "phase": self.phase.value}

    def table(self) -> Table:
        """Return what a person wants to know."""
        rows = [
            ("device", self.device or "(the agent never ran here)"),
            ("generation", str(self.generation) if self.generation else "none"),
            *((name, f"{p.version}, {p.variant}, {p.release[:12]}") for name, p in self.models.items()),
            ("update", " ".join(filter(None, (self.phase.value, self.code)))),
            *((("", self.detail),) if self.detail else ()),
            ("applications", f"{self.applications}, {self.requests} requests, {self.errors} errors"),
            *((f"quarantined {d[:12]}", q.code) for d, q in self.quarantine.items()),
        ]
        return Table(title="Agent", columns=("", ""), rows=rows, footer="; ".join(self.problems))

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()
