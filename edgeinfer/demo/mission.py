"""The mission from end to end, on one machine: from a model and budgets to a fleet, and back from a bad one.

An inspection model is tuned to two classes of devices and published as one signed release. Agents install it,
each in a folder of its own. Then somebody publishes a version that averages over four turned images: as
accurate, and four times as slow, too slow for the cameras. The canaries refuse it, and the rollout takes it
back.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgeinfer.backends.registry import backends
from edgeinfer.budget import Budget
from edgeinfer.cpu_quota import usable_cpus
from edgeinfer.demo.mission_report import MissionReport
from edgeinfer.demo.releases import OPTIONS, median_ms, publish_for_classes
from edgeinfer.demo.surfaces import CLASSES, draw_surfaces, inspection_model_path
from edgeinfer.demo.turned_views import with_turned_views
from edgeinfer.demo.watch import Watch
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.device.staging import Checker, ProcessChecker
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.gates import FailureRate, Rejected
from edgeinfer.fleet.operator.opening import open_fleet
from edgeinfer.fleet.operator.rollout import Rollout
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model
from edgeinfer.runtime.open import load

__all__ = ["run_mission"]

_LOG = logging.getLogger(__name__)
# An agent that is told to hurry: one in the field polls by the minute and watches for hours.
_HURRIED = AgentOptions(poll_s=1.0, tick_s=0.05, soak_s=0.2, staging_runs=20, soak_requests=1)
# In medians of the float model here: the cameras must be fast, the line's computers may take their time.
_SLOWEST = {"camera": 2.0, "line": 12.0}
_LARGEST = {"camera": 500_000, "line": 1_200_000}  # bytes
_LONGEST_S = 300.0


def run_mission(
    *, devices: int = 20, minutes: float = 0.15, say: Callable[[str], None] | None = None
) -> MissionReport:
    """Run the mission; see the module.

    Args:
        devices: How many agents; at least 12, so that ten canaries can see what they look for.
        minutes: How long tuning may take for each class, about.
        say: Is told what is being done; None logs it.
    """
    say = say or _LOG.info
    targets = _targets()
    seconds: dict[str, float] = {}
    notes = [] if len(set(targets.values())) > 1 else ["OpenVINO is not here: both classes run ONNX Runtime"]
    model = Model.load(inspection_model_path())
    calibration, held_out = draw_surfaces(32, seed=3).feeds(), draw_surfaces(120, seed=2)

    def accuracy(candidate: Model) -> float:
        with load(compile_model(candidate, trial=False)) as session:
            return held_out.accuracy(session.infer({"image": held_out.images})["logits"])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeinfer-mission-")))
        secret = secrets.token_hex(16)  # of keys that live for a minute
        fleet = stack.enter_context(open_fleet(folder / "fleet", passphrase=lambda _: secret))
        budgets = _budgets(model, targets, calibration[0])
        with _timed(seconds, "tune and publish", say):
            tuned = fleet.publish_tuned(
                "defects",
                model,
                budgets=budgets,
                targets=targets,
                calibration=calibration,
                evaluate=accuracy,
                options=OPTIONS,
                minutes=minutes,
                progress=False,
                interface="defects/1",
                labels=CLASSES,
            )
        checker = ProcessChecker(SystemProbe())  # one machine, one answer to which runtimes work
        agents = [
            stack.enter_context(_agent(fleet, folder, number, list(targets)[number % len(targets)], checker))
            for number in range(devices)
        ]
        with _timed(seconds, f"roll release 1 out to {devices} devices", say):
            good, good_picture = _roll_out(fleet, agents, tuned.release)
        bad_release = publish_for_classes(
            fleet,
            "defects",
            with_turned_views(model),
            targets=targets,
            limits_ms={name: budget.latency_p50_ms or 0.0 for name, budget in budgets.items()},
            golden=calibration,
            labels=CLASSES,
        )
        with _timed(seconds, "roll release 2 out and back", say):
            bad, bad_picture = _roll_out(fleet, agents, bad_release)
        running = sum(row["running"] == tuned.release.digest for row in fleet.devices)
        table = fleet.devices.table()
        return MissionReport(
            tuned=tuned,
            good=good.status(),
            bad=bad.status(),
            devices=table,
            running=running,
            seconds=seconds,
            pictures=(good_picture, bad_picture),
            notes=notes,
        )


def _targets() -> dict[str, str]:
    """Return where each class runs: the second one in OpenVINO where that is here."""
    entry = backends().get("openvino")
    return {"camera": "onnxruntime", "line": "openvino" if entry and entry.available else "onnxruntime"}


def _budgets(model: Model, targets: Mapping[str, str], feed: Mapping[str, Any]) -> dict[str, Budget]:
    budgets = {}
    for name, target in targets.items():
        median = median_ms(model, target, feed)
        budgets[name] = Budget(
            latency_p50_ms=_SLOWEST[name] * median, disk_bytes=_LARGEST[name], max_drop=0.02
        )
    return budgets


def _agent(fleet: Fleet, folder: Path, number: int, device_class: str, checker: Checker) -> Agent:
    name = f"{device_class}-{number:02d}"
    key = fleet.devices.add(name, device_class=device_class, site="hall 1")
    home = folder / "devices" / name
    home.mkdir(parents=True)
    Identity(device=name, device_class=device_class, key=key.hex()).save(home)
    return Agent(home, source=fleet.source, root=fleet.root, options=_HURRIED, checker=checker)


def _roll_out(fleet: Fleet, agents: list[Agent], release: Release) -> tuple[Rollout, str]:
    """Move the fleet and its agents on until the rollout ends. Return it with a picture of what they did."""
    rollout = fleet.rollout(
        release,
        stages=[Stage(count=max(10, len(agents) // 2)), Stage(percent=100)],
        gates=[FailureRate(max=0.3), Rejected(max=0.3)],
        on_fail="rollback",
    )
    rollout.start()
    watch = Watch(release.digest)
    deadline = time.monotonic() + _LONGEST_S
    # Each agent tries a release in a process of its own: one for each core at a time.
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        while rollout.state in ("RUNNING", "ROLLING_BACK") and time.monotonic() < deadline:
            fleet.tick()
            list(pool.map(watch.step, agents))
    return rollout, watch.picture(f"What each device did with release {release.version}")


@contextmanager
def _timed(seconds: dict[str, float], part: str, say: Callable[[str], None]) -> Iterator[None]:
    say(part)
    start = time.monotonic()
    yield
    seconds[part] = time.monotonic() - start
