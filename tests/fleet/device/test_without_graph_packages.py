"""The agent, its child and applications need no package that only making models needs."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.fleet.device.kit import Shelf, assign, drive, make_agent

REFUSE = """
import sys

REFUSED = ("onnx", "onnx_ir", "onnxscript", "sympy", "rich", "cattrs", "sqlalchemy", "starlette")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r} (refused by a test)", name=name)

sys.meta_path.insert(0, Refuse())
"""
DEVICE = """
import sys
import numpy as np
import edgeinfer as ei
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.device.staging import ProcessChecker, StagingRequest

folder, artifact = sys.argv[1:]
with ei.fleet.connect(folder) as device:
    with device.model("m", accepts="m/1").request() as session:
        assert np.array_equal(session.infer({"x": np.ones((1, 4), np.float32)})["y"], np.ones((1, 4)))
request = StagingRequest(model="m", artifact=artifact, golden=None, budget=ei.Budget(), runs=20)
found = ProcessChecker(SystemProbe()).stage(request, lambda: None)
assert found.verdict.ok, found
assert ei.fleet.Agent.__name__ == "Agent"
print(ei.fleet.AgentStatus.of(folder))
"""


def test_a_device_without_them(tmp_path):
    shelf = Shelf(tmp_path / "repo")
    shelf.desire(assign(shelf.publish(), 1))
    with make_agent(tmp_path / "dev", shelf) as agent:
        drive(agent)
        pin = agent.device.running().models["m"]
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(REFUSE)
    path = os.pathsep.join((str(site), *(entry for entry in sys.path if entry)))
    artifact = tmp_path / "dev" / pin.folder / "artifact"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICE, str(tmp_path / "dev"), str(artifact)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "camera-1" in done.stdout
