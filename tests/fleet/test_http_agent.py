"""A real agent, over real HTTP and with a doorbell, from token to committed model and back to the page."""

from __future__ import annotations

import threading

import edgeinfer as ei
from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.device.enrolment import enroll
from edgeinfer.fleet.operator.server.options import ServerOptions
from tests.fleet.device.kit import OPTIONS, artifact_folder
from tests.fleet.served import broker, served, until

# Agent and server are in one process with those who wait for them: on a busy machine, looking a hundred
# times a second leaves the others nothing.
LONGEST = {"seconds": 240.0, "every": 0.25}


def test_a_rollout_reaches_a_device_over_http(tmp_path):
    with broker(tmp_path) as mosquitto:
        options = ServerOptions(interval=0.5, doorbell=mosquitto.url)
        with served(tmp_path / "fleet", options) as server:
            release = server.fleet.publish("m", artifact_folder(), interface="m/1")
            folder = tmp_path / "edge"
            enroll(folder, server.url, server.fleet.devices.token("camera", device_class="small"))
            patient = ei.fleet.AgentOptions(
                soak_s=0, poll_s=20.0, staging_runs=30, may_lack=OPTIONS.may_lack, tick_s=0.01
            )
            agent = ei.fleet.Agent(folder, source=server.url, options=patient, doorbell=mosquitto.url)
            thread = threading.Thread(target=agent.run, daemon=True)
            thread.start()
            until(lambda: b"edgeinfer_doorbell_devices 1" in server.ask("GET", "/metrics").data, **LONGEST)
            rollout = server.fleet.rollout(
                release, stages=[Stage(percent=100)], gates=[FailureRate(max=0.99)]
            )  # one device detects nothing less
            rollout.start()
            until(lambda: rollout.state == "COMPLETED", **LONGEST)
            agent.stop()
            thread.join(120.0)
            assert not thread.is_alive()
            page = server.ask("GET", "/rollouts/1").data.decode()
    assert "1 SUCCESS" in page
    assert next(iter(server.fleet.devices))["running"] == release.digest
    with ei.fleet.connect(folder) as application:
        assert application.model("m", accepts="m/1") is not None
