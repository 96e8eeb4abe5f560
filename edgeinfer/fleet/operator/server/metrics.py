"""GET /metrics: what Prometheus scrapes, in its text format 0.0.4."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, final

import sqlalchemy as sa

from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.server.controlling import ControllerThread
from edgeinfer.fleet.operator.server.doorbell import Bells
from edgeinfer.fleet.operator.server.intake import Intake
from edgeinfer.fleet.operator.server.overview import by_class
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.schema import cells, rollouts

__all__ = ["Metrics"]

_KEPT_S = 5.0  # a scrape counts the devices; several scrapers share one count


@final
class Metrics:
    """The figures of a server and its fleet.

    Attributes:
        controller: The controller of this process, if there is one.
        bells: The doorbell of this process, if there is one.
    """

    def __init__(self, database: Database, intake: Intake) -> None:
        self._database = database
        self._intake = intake
        self.controller: ControllerThread | None = None
        self.bells: Bells | None = None
        self._text, self._at = "", -_KEPT_S

    def text(self) -> str:
        """Return all figures."""
        now = time.monotonic()
        if now - self._at >= _KEPT_S:
            self._text, self._at = "".join(self._fleet()), now
        return "".join(self._server()) + self._text

    def _server(self) -> Iterable[str]:
        intake = self._intake
        counts = {"applied": intake.applied, "ignored": intake.ignored, "refused": intake.refused}
        yield from _figure(
            "edgeinfer_reports_total",
            "counter",
            "Reports of devices, by what became of them.",
            (({"result": name}, count) for name, count in counts.items()),
        )
        yield from _figure(
            "edgeinfer_ingest_seconds_total",
            "counter",
            "Time spent on taking reports in.",
            [({}, intake.seconds)],
        )
        yield from _figure(
            "edgeinfer_reports_waiting",
            "gauge",
            "Reports that wait for the database.",
            [({}, intake.waiting)],
        )
        if self.controller is not None:
            rounds = {"done": self.controller.rounds, "failed": self.controller.failures}
            yield from _figure(
                "edgeinfer_controller_rounds_total",
                "counter",
                "Rounds of the controller.",
                (({"result": name}, count) for name, count in rounds.items()),
            )
        if self.bells is not None:
            yield from _figure(
                "edgeinfer_doorbell_connected",
                "gauge",
                "Whether the broker is reached.",
                [({}, int(self.bells.is_connected))],
            )
            yield from _figure(
                "edgeinfer_doorbell_devices",
                "gauge",
                "Devices that are connected to the broker.",
                [({}, len(self.bells.online))],
            )

    def _fleet(self) -> Iterable[str]:
        with self._database.reading() as connection:
            rows = by_class(connection)
            states = connection.execute(sa.select(rollouts.c.id, rollouts.c.model, rollouts.c.state)).all()
            statement = (
                sa.select(
                    cells.c.rollout, cells.c.stage, cells.c.outcome, sa.func.sum(cells.c.devices).label("n")
                )
                .group_by(cells.c.rollout, cells.c.stage, cells.c.outcome)
                .order_by(cells.c.rollout, cells.c.stage, cells.c.outcome)
            )
            members = connection.execute(statement).all()
        yield from _figure(
            "edgeinfer_devices",
            "gauge",
            "Devices by class and phase of their last update.",
            (({"class": row["device_class"], "phase": row["phase"]}, row["devices"]) for row in rows),
        )
        yield from _figure(
            "edgeinfer_rollout_info",
            "gauge",
            "Rollouts, by their state.",
            (({"rollout": row.id, "model": row.model, "state": row.state}, 1) for row in states),
        )
        yield from _figure(
            "edgeinfer_rollout_devices",
            "gauge",
            "Devices of rollouts, by stage and outcome.",
            (
                (
                    {"rollout": row.rollout, "stage": row.stage + 1, "outcome": Outcome(row.outcome).value},
                    row.n,
                )
                for row in members
            ),
        )


def _figure(
    name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, Any], float]]
) -> Iterable[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in values:
        inner = ",".join(f'{label}="{_escaped(str(each))}"' for label, each in labels.items())
        yield f"{name}{{{inner}}} {value}\n" if inner else f"{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
