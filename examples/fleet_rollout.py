"""50 devices on one machine: a good release goes out in stages, a bad one is caught and taken back.

    pip install 'edgeinfer[fleet]'
    python examples/fleet_rollout.py [--agents 50] [--page fleet_rollout.html]

Each device is a process with an agent in it, as `edgeinfer agent run` has it, enrolled over HTTP with a
one-time token. The processes are forked from one that has done the imports; each model is tried in one that
starts from nothing, as on any device. The first release is the digits model. The second one averages over
sixteen turned images: too slow for the cameras, and fast enough for the computers at the line. Nobody notices
before the cameras among the canaries refuse it: the gate fails, and the release is taken back from those that
had installed it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import urllib3

import edgeinfer as ei
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.enrolment import enroll
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.device.staging import ProcessChecker

# Each of the agents' processes imports this file, so what they do not need is imported where it is used.
TARGETS = {"camera": "onnxruntime", "line": "onnxruntime"}
SLOWEST = {"camera": 3.0, "line": 60.0}  # in medians of the first release on this machine
# An agent that is told to hurry: one in the field polls by the minute and watches for hours.
HURRIED = AgentOptions(poll_s=3.0, tick_s=0.2, soak_s=1.0, staging_runs=50, soak_requests=1)
LONGEST_S = 1_800.0


def main() -> None:
    from edgeinfer.demo.data import load_digits, model_path
    from edgeinfer.demo.releases import median_ms, publish_for_classes
    from edgeinfer.demo.turned_views import with_turned_views
    from edgeinfer.fleet.operator.server.options import ServerOptions
    from edgeinfer.fleet.operator.server.running import background

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--agents", type=int, default=50, help="at least 24: a 30 %% fault at 95 %% needs 9 canaries"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("fleet_rollout.html"), help="where the page is written"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeinfer-rollout-")))
        secret = secrets.token_hex(16)  # of keys that live for some minutes
        fleet = stack.enter_context(ei.fleet.open(folder / "fleet", passphrase=lambda _: secret))
        fleet.set_site("hall 1", max_in_flight=3)
        fleet.set_site("hall 2", max_in_flight=3)
        url = stack.enter_context(background(fleet, ServerOptions(interval=0.5)))

        model, digits = ei.Model.load(model_path()), load_digits()
        feeds = [{"images": digits.images[i : i + 1]} for i in range(4)]
        median = {name: median_ms(model, target, feeds[0]) for name, target in TARGETS.items()}
        limits = {name: SLOWEST[name] * median[name] for name in TARGETS}
        print(
            "Limits on the median latency: " + ", ".join(f"{n} {ms:.2f} ms" for n, ms in limits.items()),
            flush=True,
        )

        def publish(candidate: ei.Model) -> ei.fleet.Release:
            return publish_for_classes(
                fleet,
                "digits",
                candidate,
                targets=TARGETS,
                limits_ms=limits,
                golden=feeds,
                labels=list("0123456789"),
            )

        agents = stack.enter_context(running_agents(fleet, url, folder / "devices", arguments.agents))
        ready_s = time.monotonic() - began
        print(f"{len(agents)} agents run, {memory_mb(agents):.0f} MB together ({ready_s:.0f} s)", flush=True)

        good = publish(model)
        roll_out(fleet, good)
        slow = publish(with_turned_views(with_turned_views(model), prefix="again."))
        rollout = roll_out(fleet, slow)
        arguments.page.write_bytes(urllib3.request("GET", f"{url}/rollouts/{rollout.id}").data)

        rows = list(fleet.devices)
        back = sum(row["running"] == good.digest for row in rows)
        print(f"\n{back} of {len(rows)} devices run the first release")
        print(f"{sum(agent.is_alive() for agent in agents)} of {len(agents)} agents are alive")
        figures = urllib3.request("GET", f"{url}/metrics").data.decode()
        print("\n".join(line for line in figures.splitlines() if line.startswith("edgeinfer_reports_total")))
        print(f"The page of the second rollout: {arguments.page}; {time.monotonic() - began:.0f} s in all")
        assert [ro.state for ro in fleet.rollouts] == ["COMPLETED", "ROLLED_BACK"]
        assert all(row["running"] == good.digest for row in rows)


@contextlib.contextmanager
def running_agents(fleet: ei.fleet.Fleet, url: str, folder: Path, count: int) -> Iterator[list[BaseProcess]]:
    """Enrol devices and run their agents, one process each."""
    folder.mkdir()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Agent.__module__, "edgeinfer.fleet.device.staging", "urllib3"])
    versions = ProcessChecker(SystemProbe()).facts()  # one machine, one answer to which runtimes work
    agents: list[BaseProcess] = []
    try:
        for number in range(count):
            device_class = list(TARGETS)[number % 2]
            home = folder / f"{device_class}-{number:02d}"
            token = fleet.devices.token(
                home.name, device_class=device_class, site=f"hall {1 + number % 4 // 2}"
            )
            enroll(home, url, token)
            agents.append(context.Process(target=run_agent, args=(home, url, versions)))
            agents[-1].start()
        yield agents
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.join()


def run_agent(home: Path, url: str, versions: Mapping[str, str]) -> None:
    """Be a device until it is switched off."""
    logging.basicConfig(filename=f"{home}.log", level=logging.INFO, format="%(asctime)s %(message)s")
    checker = ProcessChecker(SystemProbe(), versions=versions)
    Agent(home, source=url, options=HURRIED, checker=checker).run()


def roll_out(fleet: ei.fleet.Fleet, release: ei.fleet.Release) -> ei.fleet.Rollout:
    """Move the fleet to a release, and say what happens. The server's controller does it all."""
    from edgeinfer.fleet import FailureRate, Rejected, Stage

    rollout = fleet.rollout(
        release,
        stages=[Stage(percent=40), Stage(percent=70), Stage(percent=100)],
        gates=[FailureRate(max=0.3), Rejected(max=0.3)],
        on_fail="rollback",
    )
    print(f"\nRelease {release.version}. {rollout.simulate()}", flush=True)
    rollout.start()
    began, said = time.monotonic(), 0
    while rollout.state in ("RUNNING", "ROLLING_BACK") and time.monotonic() - began < LONGEST_S:
        log = rollout.status().log
        for line in log[said:]:
            if line["action"] != "expose":
                print(f"{time.monotonic() - began:6.1f} s  {line['actor']}: {line['reason']}", flush=True)
        said = len(log)
        time.sleep(0.5)
    status = rollout.status()
    print(f"{time.monotonic() - began:6.1f} s  {status.log[-1]['reason']}\n\n{status}", flush=True)
    print(f"{sum(counts.exposed for counts in status.stages)} devices were given the release", flush=True)
    return rollout


def memory_mb(agents: list[BaseProcess]) -> float:
    """Return what the processes hold in memory, what they share counted in part (PSS), in megabytes."""
    texts = [Path(f"/proc/{agent.pid}/smaps_rollup").read_text() for agent in agents]
    return sum(int(text.partition("Pss:")[2].split()[0]) for text in texts) / 1e3


if __name__ == "__main__":
    main()
