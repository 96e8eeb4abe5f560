"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["quickstart.py"])
def test_scripts_run(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy on held-out images: 98.66%" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_device_of_a_fleet(tmp_path):
    pytest.importorskip("cryptography", reason="signing needs the extra `fleet`")
    for _ in range(3):  # it judges latencies, and on a machine that gets busy meanwhile it judges wrongly
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / "fleet_device.py")],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 requests failed" in done.stdout
    assert "Rolled back by the limit" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default")  # the kernel client's own warnings are not ours
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    # The kernel of this interpreter, whatever kernels are installed for the user.
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    for shown in ("MACs", "FuseBatchNorm", "Artifact", "Session", "p99.9", "SQNR"):
        assert shown in html
    assert any("98.66%" in output.get("text", "") for output in outputs)
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]


def test_the_notebook_and_the_script_are_the_same():
    nbformat = pytest.importorskip("nbformat")
    script = (EXAMPLES / "quickstart.py").read_text()
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for line in code.splitlines():
        calls = [verb for verb in ("ei.inspect", "ei.optimize", "ei.compile", "ei.compare") if verb in line]
        for _ in calls:
            assert line.strip() in script or f"print({line.strip()})" in script
