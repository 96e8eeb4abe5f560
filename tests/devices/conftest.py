"""Fixtures of the tests of devices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgeinfer as ei
from tests.devices.lab import Lab, model


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    missing = [
        name
        for name in ("ssh", "sshd", "ssh-keygen")
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} must be installed in CI")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def artifact():
    made = ei.compile(model(), "onnxruntime", options={"threads": 1})
    x = np.ones((2, 4), np.float32)
    with ei.load(made) as session:
        return made.with_golden({"x": x}, session.infer({"x": x}), rtol=1e-5, atol=1e-5)
